"""Who runs this step. (Being written: the two dataclasses are final.)"""

from __future__ import annotations

from dataclasses import dataclass

from engine.request import Sequence


@dataclass(frozen=True, slots=True)
class Span:
    """tokens[start:stop) of one sequence are computed in this step, in one row each.

    Their KV is written at positions [start, stop) and they attend to [0, own position].
    `sample` asks for the logits of the last row (position stop-1).
    One step may hold several spans of one sequence: adjoining, in order.
    """

    sequence: Sequence
    start: int
    stop: int
    sample: bool

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Schedule:
    """The rows of one step: decode spans (one row each) first, then prefill spans."""

    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        return sum(span.rows for span in self.spans)
