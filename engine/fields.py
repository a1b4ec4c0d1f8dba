"""Reads a JSON object member by member, and refuses by name. No HTTP, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Final, NoReturn

from engine.errors import RequestError

TEXT_CHARS: Final = 512  # of a stop string, of a salt


class Fields:
    """Reads members of a JSON object; every complaint names the member."""

    def __init__(self, body: object, where: str = "") -> None:
        if not isinstance(body, dict):
            subject = where.rstrip(".") or None
            self._refuse(subject or "the body", "must be a JSON object", subject, "invalid_type")
        self._body: dict[str, Any] = body
        self._where = where

    def __contains__(self, name: str) -> bool:
        return self._body.get(name) is not None

    def names(self) -> Set[str]:
        return self._body.keys()

    def raw(self, name: str) -> Any:
        return self._body.get(name)

    def fail(self, name: str, complaint: str, code: str = "invalid_value") -> NoReturn:
        self._refuse(self._where + name, complaint, self._where + name, code)

    @staticmethod
    def _refuse(subject: str, complaint: str, param: str | None, code: str) -> NoReturn:
        message = f"{subject} {complaint}."
        raise RequestError(message, param=param, code=code)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(name, "must be a number", "invalid_type")
        if not low <= value <= high:  # false for NaN as well
            self.fail(name, f"must be between {low:g} and {high:g}")
        return float(value)

    def integer(
        self, name: str, low: int, high: int, *, beyond: str = "invalid_value"
    ) -> int | None:
        """`beyond` is the code of a number outside the limits."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(name, "must be an integer", "invalid_type")
        if not low <= value <= high:
            self.fail(name, f"must be between {low} and {high}", beyond)
        return int(value)

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(name, "must be true or false", "invalid_type")
        return value

    def text(self, name: str, default: str | None, *, chars: int = TEXT_CHARS) -> str | None:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fail(name, "must be a string", "invalid_type")
        if len(value) > chars:
            self.fail(name, f"must be at most {chars} characters long")
        return value

    def choice(self, name: str, default: str | None, among: tuple[str, ...]) -> Any:
        """One of these words; None is no word, and only a default."""
        value = self.text(name, default)
        if value not in (*among, default):
            self.fail(name, f"must be one of {', '.join(among)}")
        return value

    def texts(self, name: str, *, most: int) -> tuple[str, ...]:
        value = self.raw(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.fail(name, "must be a list of strings", "invalid_type")
        if len(value) > most:
            self.fail(name, f"must hold at most {most} strings")
        return tuple(value)

    def objects(self, name: str) -> list[Mapping[str, Any]] | None:
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            self.fail(name, "must be a list of objects", "invalid_type")
        return value
