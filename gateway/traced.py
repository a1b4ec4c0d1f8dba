"""The way of a call with a span at each station; used only where traces are wanted.

::

    POST /v1/chat/completions            the request, a child of the client's span if it sent one
    ├── plan                             not when the same bytes were understood before
    ├── lookup
    └── flight                           this call's own, or one it reads along with: then a link
        ├── backend                      its id is what the backend is told in traceparent
        └── store

The pipeline and the handlers are the plain ones: here they are asked for the same, within spans. So
a gateway without traces runs none of this. A call that is not sampled passes through with nothing but
its trace's id. Inputs of a list are not traced one by one: there may be thousands. No span holds text:
keys are hashes, names those of the configuration or, of models, 64 characters of the client's.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from opentelemetry import context as otel_context
from opentelemetry import trace as otel
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.backends.base import Computes
from gateway.chunks import Opening, Piece
from gateway.errors import GatewayError
from gateway.flights import Flight
from gateway.pipeline import Answer, Boarded, Kept, Missed, Pipeline, Waits
from gateway.request_log import Visit
from gateway.routes.completions import Asked, Completions
from gateway.routes.shape import Handler, Spoken, request_id_of
from gateway.tally import MAX_NAME
from gateway.together import Gathered
from gateway.trace_context import CURRENT, TRACEPARENT, Headers, TraceContext, read
from policies.call import Call, Endpoint
from policies.embeddings import is_list
from policies.keys import Principal
from policies.outcome import Abandoned, Completed, Failed
from policies.plan import Plan

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_OPERATIONS: Final[dict[Endpoint, str]] = {
    "chat": "chat", "completions": "text_completion", "embeddings": "embeddings", "responses": "chat",
}  # fmt: skip
_PATHS: Final[dict[Endpoint, str]] = {
    "chat": "/v1/chat/completions", "completions": "/v1/completions",
    "embeddings": "/v1/embeddings", "responses": "/v1/responses",
}  # fmt: skip


@dataclass(slots=True)
class _Flying:
    """A flight's span, for what happens within it: made after the flight, before its first step."""

    span: Span = otel.INVALID_SPAN


_FLYING: Final[ContextVar[_Flying | None]] = ContextVar("flying", default=None)
_JOINED: Final[ContextVar[list[Span] | None]] = ContextVar("joined", default=None)
"""Spans of other calls' flights that this request reads along with: they end with it."""


class TracedCompletions(Completions):
    """The handlers of the model calls, each within a span."""

    def __init__(self, *, tracer: Tracer, **parts: Any) -> None:
        super().__init__(**parts)
        self._tracer = tracer

    def handler(self, endpoint: Endpoint) -> Handler:
        """See :meth:`gateway.routes.completions.Completions.handler`."""

        async def handle(request: web.Request) -> web.StreamResponse:
            visit = Visit(request_id_of(request), endpoint, self._clock())
            with self._request(request.headers, endpoint, visit) as span:
                try:
                    response = await self._handle(request, endpoint, visit)
                except BaseException:
                    span.set_status(StatusCode.ERROR, "the client left")
                    raise
                _tell_outcome(span, visit, response.status)
                return response

        return handle

    @contextmanager
    def _request(self, headers: Headers, endpoint: Endpoint, visit: Visit) -> Iterator[Span]:
        given = read(headers) if TRACEPARENT in headers else None
        parent = otel_context.Context() if given is None else _PROPAGATOR.extract(given.headers())
        span = self._tracer.start_span(
            f"POST {_PATHS[endpoint]}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": "POST",
                "http.route": _PATHS[endpoint],
                "gen_ai.operation.name": _OPERATIONS[endpoint],
                "kvgate.request_id": visit.request_id,
            },
        )
        visit.trace_id = f"{span.get_span_context().trace_id:032x}"
        joined: list[Span] = []
        tokens = otel_context.attach(otel.set_span_in_context(span)), CURRENT.set(_wire(span))
        joining = _JOINED.set(joined)
        try:
            yield span
        finally:
            for one in joined:
                _end(one)
            span.end()
            _JOINED.reset(joining)
            CURRENT.reset(tokens[1])
            otel_context.detach(tokens[0])

    async def _understand(self, raw: bytes, said: tuple[Endpoint, Principal, Spoken]) -> Asked:
        with self._tracer.start_as_current_span("plan", record_exception=False) as span:
            asked = await super()._understand(raw, said)
            if span.is_recording():
                _tell_plan(span, asked.plan)
            return asked

    async def _answer(self, asked: Asked, waits: Waits | None) -> Answer | Gathered:
        if not is_list(asked.call):
            return await super()._answer(asked, waits)
        quiet = NonRecordingSpan(otel.get_current_span().get_span_context())
        with otel.use_span(quiet):
            return await super()._answer(asked, waits)

    def _refuse(self, error: GatewayError, visit: Visit) -> web.Response:
        span = otel.get_current_span()
        span.set_attribute("error.type", error.code)
        if error.status >= 500:
            span.set_status(StatusCode.ERROR, error.code)
        return super()._refuse(error, visit)


class TracedPipeline(Pipeline):
    """The driver, its stations within spans where the call is sampled."""

    def __init__(self, *, tracer: Tracer, **parts: Any) -> None:
        super().__init__(**parts)
        self._tracer = tracer
        self._spans: dict[Flight, Span] = {}

    async def look_up(self, plan: Plan) -> Kept | Missed:
        """See :meth:`gateway.pipeline.Pipeline.look_up`."""
        if not _is_traced():
            return await super().look_up(plan)
        with self._tracer.start_as_current_span("lookup", record_exception=False) as span:
            found = await super().look_up(plan)
            outcome = found.outcome
            if isinstance(found, Kept):
                state = "stale" if outcome.stale else "fresh"
                span.set_attribute("kvgate.tier", outcome.tier)
            else:
                state = "miss" if plan.may_read else "not_read"
                span.set_attribute("kvgate.miss_reason", outcome.miss_reason or "")
                span.set_attribute("kvgate.store_error", outcome.store_error)
            span.set_attribute("kvgate.found", state)
            return found

    def board(self, call: Call, plan: Plan, backend: Computes, *, led: bool = True) -> Boarded:
        """See :meth:`gateway.pipeline.Pipeline.board`."""
        if not _is_traced():
            return super().board(call, plan, backend, led=led)
        flying = _Flying()
        with _within(flying):
            traced = TracedBackend(backend, self._tracer, flying)
            boarded = super().board(call, plan, traced, led=led)
        if boarded.collapsed:
            self._joined(boarded.flight, plan)
        else:
            self._begun(boarded.flight, flying, plan)
        return boarded

    def renew(self, call: Call, plan: Plan, backend: Computes) -> None:
        """See :meth:`gateway.pipeline.Pipeline.renew`."""
        if not _is_traced() or self._flights.find(plan.key) is not None:
            super().renew(call, plan, backend)
            return
        flying = _Flying()
        with _within(flying):
            super().renew(call, plan, TracedBackend(backend, self._tracer, flying))
        flight = self._flights.find(plan.key)
        if flight is not None:
            self._begun(flight, flying, plan, errand="revalidation")

    async def _keep(self, call: Call, plan: Plan, *parts: Any) -> None:
        flying = _FLYING.get()
        if flying is None or not flying.span.is_recording():
            await super()._keep(call, plan, *parts)
            return
        parent = otel.set_span_in_context(flying.span)
        with self._tracer.start_as_current_span("store", context=parent) as span:
            span.set_attribute("kvgate.tier", plan.tier)
            await super()._keep(call, plan, *parts)

    def _begun(
        self, flight: Flight, flying: _Flying, plan: Plan, *, errand: str | None = None
    ) -> None:
        span = flying.span = self._tracer.start_span("flight")
        span.set_attribute("kvgate.key", plan.public_key)
        span.set_attribute("kvgate.lane", flight.lane)
        if errand is not None:
            span.set_attribute("kvgate.errand", errand)
        self._spans[flight] = span
        assert flight.task is not None  # it was started
        flight.task.add_done_callback(lambda _: self._landed(flight))

    def _landed(self, flight: Flight) -> None:
        span = self._spans.pop(flight)
        if flight.error is not None:
            span.set_status(StatusCode.ERROR, type(flight.error).__name__)
        elif flight.pieces and isinstance(last := flight.pieces[-1], Failed):
            span.set_status(StatusCode.ERROR, last.code)
        elif flight.abandoned:
            span.set_attribute("kvgate.abandoned", True)
        span.end()

    def _joined(self, flight: Flight, plan: Plan) -> None:
        leader = self._spans.get(flight)
        links = [] if leader is None else [Link(leader.get_span_context())]
        span = self._tracer.start_span("flight", links=links)
        span.set_attribute("kvgate.key", plan.public_key)
        span.set_attribute("kvgate.collapsed", True)
        joined = _JOINED.get()
        if joined is None:
            span.end()
        else:
            joined.append(span)


class TracedBackend:
    """A backend as one flight asks it: what it is told of the trace is its own span."""

    def __init__(self, backend: Computes, tracer: Tracer, flying: _Flying) -> None:
        self._backend = backend
        self._tracer = tracer
        self._flying = flying

    @property
    def name(self) -> str:
        """The backend's."""
        return self._backend.name

    async def run(self, call: Call, plan: Plan) -> AsyncGenerator[Piece, None]:
        """See :meth:`gateway.backends.base.Computes.run`."""
        span = self._tracer.start_span(
            "backend",
            context=otel.set_span_in_context(self._flying.span),
            kind=SpanKind.CLIENT,
            attributes={
                "kvgate.backend": self._backend.name,
                "gen_ai.operation.name": _OPERATIONS[call.endpoint],
                "gen_ai.request.model": plan.model[:MAX_NAME],
            },
        )
        CURRENT.set(_wire(span))  # of the flight's own task, which runs this and nothing after it
        try:
            async with aclosing(self._backend.run(call, plan)) as pieces:
                async for piece in pieces:
                    _tell_piece(span, piece)
                    if isinstance(piece, Completed | Failed):
                        span.end()  # what follows is storing the answer
                    yield piece
        finally:
            _end(span)


def _is_traced() -> bool:
    return otel.get_current_span().is_recording()


@contextmanager
def _within(flying: _Flying) -> Iterator[None]:
    """A flight that is started in here knows its span; who starts it does not keep it."""
    token = _FLYING.set(flying)
    try:
        yield
    finally:
        _FLYING.reset(token)


def _wire(span: Span) -> TraceContext | None:
    """The span as a backend is told of it."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=otel.set_span_in_context(span))
    parent = carrier.get("traceparent")
    return None if parent is None else TraceContext(parent, carrier.get("tracestate"))


def _end(span: Span) -> None:
    if span.is_recording():
        span.end()


def _tell_plan(span: Span, plan: Plan) -> None:
    span.set_attributes(
        {
            "kvgate.key": plan.public_key,
            "kvgate.scope": plan.scope.kind,
            "kvgate.tier": plan.tier,
            "kvgate.ttl_s": plan.ttl_s,
            "kvgate.enabled": plan.enabled,
            "kvgate.may_read": plan.may_read,
            "kvgate.may_store": plan.may_store,
            "kvgate.lane": plan.lane,
        }
    )


def _tell_piece(span: Span, piece: Piece) -> None:
    match piece:
        case Opening():
            span.add_event("opening")
            if piece.backend is not None:
                span.set_attribute("kvgate.backend", piece.backend)
            if piece.fallback is not None:
                span.set_attribute("gen_ai.response.model", piece.fallback)
        case Completed():
            span.set_attribute("gen_ai.usage.input_tokens", piece.usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", piece.usage.completion_tokens)
            span.set_attribute("kvgate.hit_tokens", piece.usage.hit_tokens)
        case Failed():
            span.set_attribute("error.type", piece.code)
            span.set_status(StatusCode.ERROR, piece.code)
        case Abandoned():
            span.set_attribute("kvgate.abandoned", True)
        case _:
            pass


def _tell_outcome(span: Span, visit: Visit, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    outcome, plan = visit.outcome, visit.plan
    if plan is not None:
        span.set_attribute("gen_ai.request.model", plan.model[:MAX_NAME])
        span.set_attribute("kvgate.tenant", plan.scope.tenant)
    if outcome is None:
        return
    span.set_attributes(
        {
            "kvgate.level": outcome.level,
            "kvgate.hit": outcome.hit,
            "kvgate.stale": outcome.stale,
            "kvgate.collapsed": outcome.collapsed,
            "kvgate.key": outcome.key,
            "kvgate.tokens_saved": outcome.tokens_saved,
        }
    )
    if outcome.miss_reason is not None:
        span.set_attribute("kvgate.miss_reason", outcome.miss_reason)
    if outcome.backend is not None:
        span.set_attribute("kvgate.backend", outcome.backend)
