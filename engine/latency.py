"""How long requests wait for their first token, and for each one after it. Torch-free.

The engine's thread notes; anybody may read. Kept are counts and sums since start, and the latest
`KEPT` waits of each kind for their quantiles.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from engine.request import TokenEvent

KEPT: Final = 1024


@dataclass(slots=True)
class Waits:
    """Waits of one kind, in seconds."""

    count: int = 0
    total_s: float = 0.0
    latest_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def note(self, wait_s: float) -> None:
        """Count one."""
        self.count += 1
        self.total_s += wait_s
        self.latest_s.append(wait_s)

    def as_json(self) -> dict[str, float]:
        """Count and sum since start; median and 95th percentile of the latest, 0 where there are none."""
        latest = sorted(self.latest_s.copy())

        def quantile_ms(share: float) -> float:
            return round(latest[int(share * (len(latest) - 1))] * 1000, 3) if latest else 0.0

        return {
            "count": self.count,
            "total_ms": round(self.total_s * 1000, 3),
            "p50_ms": quantile_ms(0.5),
            "p95_ms": quantile_ms(0.95),
        }


class Latency:
    """Of all requests: the wait from being accepted to the first token, and between tokens."""

    def __init__(self) -> None:
        self.first_token = Waits()
        self.next_token = Waits()
        self._since: dict[
            str, tuple[float, Waits]
        ] = {}  # request -> (last moment, what comes next)

    def accepted(self, request_id: str, *, now: float) -> None:
        """A request was taken in at `now` (seconds of any clock, always the same one)."""
        self._since[request_id] = (now, self.first_token)

    def heard(self, events: Iterable[TokenEvent], *, now: float) -> None:
        """Tokens came, requests ended. A token of a request that was not accepted here counts nowhere."""
        for event in events:
            since = self._since.get(event.request_id)
            if since is not None and event.token is not None:
                since[1].note(now - since[0])
                self._since[event.request_id] = (now, self.next_token)
            if event.finish is not None:
                self._since.pop(event.request_id, None)

    def as_json(self) -> dict[str, dict[str, float]]:
        """Both kinds as plain JSON."""
        return {
            "first_token": self.first_token.as_json(),
            "inter_token": self.next_token.as_json(),
        }
