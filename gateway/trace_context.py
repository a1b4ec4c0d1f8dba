"""The trace that a call belongs to, as W3C Trace Context has it: taken from the request, passed on.

A gateway that makes no spans of its own hands ``traceparent`` and ``tracestate`` on as they came, which
the recommendation allows; one that does (:mod:`gateway.traced`) puts its own span in their place. What
is malformed is no trace: it is neither logged nor passed on.

Source: W3C Recommendation *Trace Context*, 2021-11-23, sections 3.2 and 3.3.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from multidict import CIMultiDict, CIMultiDictProxy

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
MAX_STATE: Final = 512
"""Characters of ``tracestate`` that must be passed on; longer ones are left out whole."""
_PARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]*)?"
)
_STATE: Final = re.compile(r"[\x20-\x7e]+")
_KNOWN_VERSION: Final = "00"
Headers = CIMultiDict[str] | CIMultiDictProxy[str]


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Where in which trace we are."""

    traceparent: str
    tracestate: str | None = None

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self.traceparent[3:35]

    def headers(self) -> Mapping[str, str]:
        """For whom we ask."""
        said = {TRACEPARENT: self.traceparent}
        if self.tracestate:
            said[TRACESTATE] = self.tracestate
        return said


CURRENT: Final[ContextVar[TraceContext | None]] = ContextVar("trace context", default=None)
"""Of the task that asks; a flight begins with that of the call that started it."""


def read(headers: Headers) -> TraceContext | None:
    """What a request's headers say; ``None`` when they say nothing that is valid."""
    given = headers.getall(TRACEPARENT, ())
    found = _PARENT.fullmatch(given[0].strip()) if len(given) == 1 else None
    if found is None or (found[1] == _KNOWN_VERSION and found[5] is not None):
        return None
    state = ",".join(headers.getall(TRACESTATE, ())).strip()
    valid = len(state) <= MAX_STATE and _STATE.fullmatch(state) is not None
    return TraceContext(found[0], state if valid else None)


@contextmanager
def carried(headers: Headers) -> Iterator[TraceContext | None]:
    """Within the block, the request's trace is the current one."""
    trace = read(headers)
    token = CURRENT.set(trace)
    try:
        yield trace
    finally:
        CURRENT.reset(token)  # the connection's next request is handled by the same task
