"""Where a value came from: the file's line, the environment's variable or the flag.

The reading of ``KVGATE_*`` is pydantic-settings'; kept here is which variable said what, so that
an error can name it, and the refusal of variables that nobody reads.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError

from gateway.config_file import Document, Problem, Where, dotted

NOT_OPTIONS = re.compile(
    # read elsewhere, or put there by Kubernetes for a service that is called kvgate
    r"KVGATE_(CONFIG|CACHE_DIR|URL|API_KEY|TEST_.*|SERVICE_(HOST|PORT)(_.*)?|PORT(_\d+_.*)?)"
)


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below`` key by key; neither is changed."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = overlay(merged[key], value)
        else:
            merged[key] = value
    return merged


class Environment(EnvSettingsSource):
    """The ``KVGATE_*`` variables of the mapping we were given, not of the process."""

    def __init__(self, model: type[BaseSettings], environ: Mapping[str, str]) -> None:
        self._given = environ
        super().__init__(model)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): text for name, text in self._given.items() if text}


@dataclass(frozen=True, slots=True)
class Sources:
    """Which value came from where, for messages a person can act on."""

    model: type[BaseSettings]
    lines: Mapping[Where, int]
    from_environment: Mapping[str, Any]
    variables: Mapping[Where, str]
    from_flags: Mapping[str, Any]

    @classmethod
    def collect(
        cls,
        model: type[BaseSettings],
        document: Document,
        environ: Mapping[str, str],
        flags: Mapping[str, object],
    ) -> tuple["Sources", list[Problem]]:
        """Read the environment and the flags; a variable nobody knows is a problem."""
        ours = {
            name: text
            for name, text in environ.items()
            if name.upper().startswith("KVGATE_") and not NOT_OPTIONS.fullmatch(name.upper())
        }
        problems = []
        for name in list(ours):
            section = _path_of(name)[0]
            if section not in model.model_fields:
                problems.append(_unknown_variable(model, name))
                del ours[name]
        values = _read_environment(model, ours, problems)
        flag_data: dict[str, Any] = {}
        for key, value in flags.items():
            nested: Any = value
            for step in reversed(key.split(".")):
                nested = {step: nested}
            flag_data = overlay(flag_data, nested)
        variables: dict[Where, str] = {_path_of(name): name for name in ours}
        for key in flags:
            *_, last = path = tuple(key.split("."))
            variables[path] = "--" + last.replace("_", "-")
        return cls(model, document.lines, values, variables, flag_data), problems

    def at(self, where: Where, message: str) -> Problem:
        """A problem with the value at ``where``, or with what should hold it."""
        for length in range(len(where), 0, -1):
            part = where[:length]
            if _has(self.from_flags, part) or _has(self.from_environment, part):
                name = self._variable(part) or (
                    self._variable_within(where) if part == where else None
                )
                if name is not None:
                    return Problem(dotted(where), message, variable=name)
            if part in self.lines:
                return Problem(dotted(where), message, line=self.lines[part])
        return Problem(dotted(where), message)

    def _variable(self, where: Where) -> str | None:
        """The variable that holds the value at ``where``: its own, or the JSON of a level above."""
        above = (where[:length] for length in range(len(where), 0, -1))
        return next((self.variables[part] for part in above if part in self.variables), None)

    def _variable_within(self, where: Where) -> str | None:
        depth = len(where)
        return next((name for path, name in self.variables.items() if path[:depth] == where), None)

    def problem(self, detail: ErrorDetails) -> Problem:
        """One of pydantic's findings in our words."""
        where = tuple(step for step in detail["loc"] if step != "[key]")
        match detail["type"]:
            case "extra_forbidden":
                return self.at(where, _unknown_key(self.model, where))
            case "missing":
                return self.at(where, "is missing")
            case "model_type" | "dict_type":
                return self.at(where, "must be a mapping")
            case "tuple_type":
                return self.at(where, "must be a list")
            case "string_too_short":
                return self.at(where, "must not be empty")
            case "string_pattern_mismatch":
                return self.at(where, "has characters that cannot be used here, or is too long")
            case "value_error":
                return self.at(where, detail["msg"].removeprefix("Value error, "))
            case _:
                message = detail["msg"].removeprefix("Input should be ")
                return self.at(where, f"must be {message}")


def _path_of(variable: str) -> tuple[str, ...]:
    return tuple(variable.lower().removeprefix("kvgate_").split("__"))


def _read_environment(
    model: type[BaseSettings], ours: Mapping[str, str], problems: list[Problem]
) -> dict[str, Any]:
    remaining = dict(ours)
    while True:
        try:
            return {k: _null_words(v) for k, v in Environment(model, remaining)().items()}
        except SettingsError as error:
            broken = re.search(r'field "(\w+)"', str(error))
            name = next((n for n in remaining if broken and _path_of(n) == (broken[1],)), None)
            if name is None:
                raise
            problems.append(
                Problem(dotted(_path_of(name)), "must be JSON, e.g. [] or {}", variable=name)
            )
            del remaining[name]


def _null_words(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_words(inner) for key, inner in value.items()}
    return None if value == "null" else value


def _is_index(data: Any, step: str | int) -> bool:
    return isinstance(data, list) and isinstance(step, int) and step < len(data)


def _has(data: Any, where: Where) -> bool:
    for step in where:
        inside = step in data if isinstance(data, Mapping) else _is_index(data, step)
        if not inside:
            return False
        data = data[step]
    return True


def _known_keys(model: type[BaseSettings], where: Where) -> list[str]:
    """The keys that the section at ``where`` takes."""
    kind: Any = model
    for step in where:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(step))
            kind = field.annotation if field else None
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif get_origin(kind) is tuple:
            kind = get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return []


def _unknown_key(model: type[BaseSettings], where: Where) -> str:
    known = _known_keys(model, where[:-1])
    near = difflib.get_close_matches(str(where[-1]), known, n=1, cutoff=0.5)
    if near:
        return f"unknown key; did you mean {dotted((*where[:-1], near[0]))}?"
    return f"unknown key; known here: {', '.join(known)}"


def _variables_of(kind: type[BaseModel], name: str) -> Iterator[str]:
    for key, field in kind.model_fields.items():
        yield f"{name}{key}".upper()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables_of(field.annotation, f"{name}{key}__")


def _unknown_variable(model: type[BaseSettings], name: str) -> Problem:
    known = list(_variables_of(model, "KVGATE_"))
    near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.75)
    hint = f"; did you mean {near[0]}?" if near else "; levels are joined by two underscores"
    return Problem(dotted(_path_of(name)), f"no such option{hint}", variable=name)
