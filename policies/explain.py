"""Why it was a miss, where two requests differ, and the debug line."""

from dataclasses import dataclass

from policies.plan import Plan


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where two canonical requests part; never any of their text.

    ``field`` is a path (``messages[2].content``); ``message`` the index of the message it is
    in, ``character`` the index in the string that differs, where there is one.
    """

    field: str
    message: int | None = None
    character: int | None = None

    def as_dict(self) -> dict[str, str | int]:
        raise NotImplementedError


def difference(before: bytes, now: bytes) -> Difference | None:
    raise NotImplementedError


def miss_reason(
    plan: Plan, *, departed: str | None, nearest: bytes | None, other_scope: bool
) -> str:
    raise NotImplementedError


def debug_line(plan: Plan) -> str:
    raise NotImplementedError
