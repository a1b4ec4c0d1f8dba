"""Why it was a miss, where two requests differ, and the debug line."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from policies.plan import Plan

MAX_DEBUG_BYTES = 4096
_ABSENT: Final = object()
_MAX_NAME = 64
_MAX_PATH = 160
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")


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
        """For JSON: only what is known."""
        known: dict[str, str | int] = {"field": self.field}
        if self.message is not None:
            known["message"] = self.message
        if self.character is not None:
            known["character"] = self.character
        return known


def difference(before: bytes, now: bytes) -> Difference | None:
    """The first place, in canonical order, where two canonical forms part; None if nowhere."""
    if before == now:
        return None
    old, new = _parsed(before), _parsed(now)
    if old[0] != new[0]:
        return Difference("endpoint")
    if old[2:] != new[2:]:
        return Difference("kv_cache.context_aware")
    path: list[str | int] = []
    character = _descend(old[1], new[1], path)
    in_message = len(path) > 1 and path[0] == "messages" and isinstance(path[1], int)
    return Difference(
        _written(path), int(path[1]) if in_message else None, None if character < 0 else character
    )


def miss_reason(
    plan: Plan, *, departed: str | None, nearest: bytes | None, other_scope: bool
) -> str:
    """One word for why nothing stored could answer.

    ``departed`` is how an entry of this very key went (``evicted``, ``expired``,
    ``invalidated``); ``nearest`` the canonical form of the nearest entry the same principal may
    see. ``other_scope`` may be true only for an entry in another scope *of the same principal*:
    the word must not tell one tenant, or one user, what another has.
    """
    if not plan.may_read:
        return plan.why_not or "disabled"
    if departed is not None:
        return departed
    if nearest is not None and nearest != plan.canonical:
        return "fingerprint"
    if other_scope:
        return "scope"
    return plan.why_not or "cold"


def debug_line(plan: Plan) -> str:
    """Every decision and which rule made it, as one ASCII line of JSON of at most 4 KiB.

    Holds no prompt, no cache key in clear, no user and no label; what does not fit is cut from
    the end and said to be (``"cut": true``).
    """
    reasons = [[reason.field, reason.value, reason.because] for reason in plan.reasons]
    unknown = list(plan.unknown)
    facts: dict[str, object] = {
        "key": plan.public_key,
        "model": plan.model[:_MAX_NAME],
        "scope": plan.scope.kind,
        "read": plan.may_read,
        "store": plan.may_store,
        "lane": plan.lane,
        "prefix": plan.reuse_prefix,
        "why_not": plan.why_not,
        "decisions": reasons,
        "unknown": unknown,
    }
    line = _line(facts)
    while len(line) > MAX_DEBUG_BYTES:
        (unknown or reasons).pop()
        facts["cut"] = True
        line = _line(facts)
    return line


def _line(facts: dict[str, object]) -> str:
    # DEL is ASCII to JSON, and no header value
    return json.dumps(facts, separators=(",", ":")).replace("\x7f", "\\u007f")


def _parsed(form: bytes) -> list[Any]:
    """JSON with its numbers left as text in a tuple: unlike Python's, they equal no boolean."""
    text = form.decode("utf-8", "surrogatepass")
    found: list[Any] = json.loads(text, parse_int=_number, parse_float=_number)
    return found


def _number(text: str) -> tuple[str]:
    return (text,)


def _descend(old: Any, new: Any, path: list[str | int]) -> int:
    """Walk to the first place where two unequal values part, and leave the way to it in ``path``.

    Returns the index of the character where two strings part, -1 where no strings do.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        name = next(name for name in names if old.get(name, _ABSENT) != new.get(name, _ABSENT))
        path.append(name)
        return _descend(old.get(name, _ABSENT), new.get(name, _ABSENT), path)
    if isinstance(old, list) and isinstance(new, list):
        place = _first_unequal(old, new)
        path.append(place)
        both = place < min(len(old), len(new))
        return _descend(old[place], new[place], path) if both else -1
    if isinstance(old, str) and isinstance(new, str):
        return _first_unequal(old, new)
    return -1


def _first_unequal(old: Sequence[Any], new: Sequence[Any]) -> int:
    """Where two sequences part; the length of the shorter where one begins with the other."""
    pairs = enumerate(zip(old, new, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(old), len(new)))


def _written(path: list[str | int]) -> str:
    """``messages[2].content``; a name that could be prompt text is shown as ``?``."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if _PLAIN_NAME.fullmatch(step) else "?"
            text += f".{name}" if text else name
    return text[:_MAX_PATH]
