"""What became of a prompt's tokens: the receipt that comes with each answer.

    "kv_receipt": {"prompt_tokens": 480, "hot": 448, "warm": 0, "cold": 0, "computed": 32,
                   "moved_bytes": 0, "saved_ms": 101.2, "missed": {"reason": "diverged", "at_token": 451}}

`hot`, `warm` and `cold` are the tiers that reused tokens came out of. `saved_ms` is what computing them
would have taken by the prefill rate that was measured here lately; it is left out while nothing was
measured. `missed` says why the rest was not found (`engine.kv.missed`), and is left out when all was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine.kv.missed import Missed

_WEIGHT: Final = 0.2
_FEWEST_ROWS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Of one prompt. `verified` says how a recomputation compared, when there was one."""

    prompt_tokens: int
    hot: int
    warm: int = 0
    cold: int = 0
    moved_bytes: int = 0
    missed: Missed | None = None
    verified: bool | None = None

    @property
    def hit_tokens(self) -> int:
        return self.hot + self.warm + self.cold

    def as_json(self, tokens_per_s: float | None) -> dict[str, Any]:
        """As an answer shows it."""
        shown: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "hot": self.hot,
            "warm": self.warm,
            "cold": self.cold,
            "computed": self.prompt_tokens - self.hit_tokens,
            "moved_bytes": self.moved_bytes,
        }
        if tokens_per_s is not None:
            shown["saved_ms"] = round(self.hit_tokens / tokens_per_s * 1000, 1)
        if self.missed is not None:
            shown["missed"] = self.missed.as_json()
        if self.verified is not None:
            shown["verified"] = self.verified
        return shown


def total(receipts: Sequence[Receipt]) -> Receipt:
    """Of several prompts: sums, and the first explanation. At least one."""
    checks = [one.verified for one in receipts if one.verified is not None]
    return Receipt(
        prompt_tokens=sum(one.prompt_tokens for one in receipts),
        hot=sum(one.hot for one in receipts),
        warm=sum(one.warm for one in receipts),
        cold=sum(one.cold for one in receipts),
        moved_bytes=sum(one.moved_bytes for one in receipts),
        missed=next((one.missed for one in receipts if one.missed is not None), None),
        verified=all(checks) if checks else None,
    )


class PrefillRate:
    """Tokens a second of real prefill steps, exponentially weighted. Steps that decode as well say nothing."""

    def __init__(self) -> None:
        self.tokens_per_s: float | None = None

    def saw(self, rows: int, *, seconds: float) -> None:
        """A step of so many prompt rows and nothing else took this long."""
        if rows < _FEWEST_ROWS or seconds <= 0:
            return
        rate = rows / seconds
        before = self.tokens_per_s
        self.tokens_per_s = rate if before is None else before + _WEIGHT * (rate - before)
