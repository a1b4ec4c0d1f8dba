"""The line of each request.

There is one for every call, so these lines go around structlog's loggers and straight to its
renderer, many in one write; and of the console's line there is a fast twin with its fields in
place, which writes the same bytes (a test compares them).
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TextIO

from gateway.logs import SEVERITIES, ConsoleLine, LogFormat, Sink, renderer, timestamp, word
from gateway.tally import MAX_NAME
from policies.call import Call
from policies.freshness import EntryMeta
from policies.outcome import Outcome
from policies.plan import Plan

_safe = lru_cache(maxsize=1024)(word)
"""Names repeat: model, tenant, backend."""


@dataclass(slots=True)
class Visit:
    """One request on its way; its handler fills it in.

    The answer took ``seconds`` now, and ``cost_s`` to compute once. ``outcome`` stays ``None``
    when there was no answer. It was looked up at ``asked_at`` (unix time), as number ``order`` of
    what the process did; ``entry`` is what was found. ``trace_id`` is set when the call belongs to a
    trace. The request's body had ``size_bytes``.
    """

    request_id: str
    endpoint: str
    began_s: float
    call: Call | None = None
    plan: Plan | None = None
    outcome: Outcome | None = None
    seconds: float = 0.0
    cost_s: float = 0.0
    stream: bool = False
    asked_at: float = 0.0
    order: int = 0
    entry: EntryMeta | None = None
    trace_id: str | None = None
    size_bytes: int = 0


class Answered(NamedTuple):
    """A visit that has its answer."""

    visit: Visit
    plan: Plan
    outcome: Outcome


class RequestLog:
    """Writes them, when the log level asks for severity ``info``."""

    def __init__(
        self, level: str, log_format: LogFormat, stream: TextIO, *, worker: int | None = None
    ) -> None:
        self._sink = Sink(stream, "kvgate.request")
        self._render = renderer(log_format, stream, worker=worker)
        self._on = SEVERITIES[level] <= logging.INFO

    def answered(self, visits: Sequence[Answered]) -> None:
        """One line for each, in one write."""
        if not self._on or not visits:
            return
        if isinstance(self._render, ConsoleLine):
            clock, severity = timestamp()[11:23], self._render.severities["info"]
            end = f"{self._render.end}\n"
            text = "".join(console_line(visit, clock, severity, end) for visit in visits)
            self._sink.msg(text.encode("utf-8", "backslashreplace"))
        else:
            self.write(fields(visit) for visit in visits)

    def write(self, events: Iterable[dict[str, Any]]) -> None:
        """Lines about anything else."""
        if self._on:
            self._sink.msg(b"".join(self._render(self._sink, "info", event) for event in events))


def fields(answered: Answered) -> dict[str, Any]:
    """What the line says. Never a prompt, a key or a token."""
    visit, plan, outcome = answered.visit, answered.plan, answered.outcome
    return {
        "event": "request",
        "id": visit.request_id,
        "endpoint": visit.endpoint,
        "status": outcome.status,
        "level": outcome.level,
        "tier": outcome.tier if plan.enabled else None,
        "key": plan.public_key[:12] if plan.enabled else None,
        "tenant": plan.scope.tenant,
        "model": plan.model[:MAX_NAME],
        "backend": outcome.backend,
        "stream": visit.stream,
        "saved": outcome.tokens_saved,
        "why": outcome.miss_reason,
        "ms": round(visit.seconds * 1000, 3),
        **of_trace(visit.trace_id),
    }


def of_trace(trace_id: str | None) -> dict[str, str]:
    """What a line says of the trace that its call belongs to: nothing where there is none."""
    return {} if trace_id is None else {"trace": trace_id}


def console_line(answered: Answered, clock: str, severity: str, end: str = "\n") -> str:
    """The fast twin of ``ConsoleLine`` for :func:`fields`."""
    visit, plan, outcome = answered.visit, answered.plan, answered.outcome
    tier = outcome.tier if plan.enabled else "-"
    key = f" key={plan.public_key[:12]}" if plan.enabled else ""
    backend = f" backend={_safe(outcome.backend)}" if outcome.backend is not None else ""
    why = f" why={outcome.miss_reason}" if outcome.miss_reason is not None else ""
    trace = f" trace={visit.trace_id}" if visit.trace_id is not None else ""
    return (
        f"{clock} {severity} request {outcome.status:>3} {outcome.level:<8} {tier:<4} "
        f"{visit.seconds * 1000:>9.3f} id={visit.request_id} endpoint={visit.endpoint}{key} "
        f"tenant={_safe(plan.scope.tenant)} model={_safe(plan.model[:MAX_NAME])}{backend} "
        f"stream={visit.stream} saved={outcome.tokens_saved}{why}{trace}{end}"
    )
