"""The model calls: chat completions, completions, embeddings; plain and streamed.

HTTP shape only: request to ``Call`` and ``Directive`` (400 here or never), one question to the
pipeline, and its answer as JSON or as server-sent events. Every request ends in exactly one of:
an answer, an error object, or an error event without ``[DONE]``.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, assert_never

import cachetools
from aiohttp import web

from gateway import exact_json, headers
from gateway.auth import Authenticator
from gateway.backends.base import Backend
from gateway.chunks import Chunk, Comment, Opening, Whole, add_to, finish_of
from gateway.contexts import Contexts
from gateway.errors import BackendFault, GatewayError, from_failed
from gateway.flights import FlightCancelled, Tasks
from gateway.folding import Folding
from gateway.journal import Journal
from gateway.off_loop import off_loop
from gateway.outcomes import as_kept, with_opening, with_usage
from gateway.pipeline import Answer, Boarded, Flown, Kept, Missed, Pipeline, Waits
from gateway.request_log import Visit
from gateway.router import Router
from gateway.routes.embeddings import put_together
from gateway.routes.live import HEADERS as STREAM_HEADERS
from gateway.routes.live import InPortions, Live
from gateway.routes.owed import end_owed, error_owed, events_owed, replay_owed
from gateway.routes.rendered import Rendered, head_lines, plain, takes_rendered
from gateway.routes.shape import (
    Handler,
    Spoken,
    as_gateway_error,
    body_of,
    call_in,
    error_response,
    new_id,
    request_id_of,
    spoken_in,
)
from gateway.store.base import Entry
from gateway.together import Gathered, Together
from gateway.trace_context import TRACEPARENT, carried
from gateway.write_limit import WriteLimit
from policies.call import Call, Endpoint
from policies.embeddings import is_list
from policies.keys import Principal
from policies.outcome import Abandoned, Completed, Elsewhere, Failed, Outcome
from policies.plan import Plan
from policies.rules import Rules

_ID_PREFIX: Final[dict[Endpoint, str]] = {"chat": "chatcmpl-", "completions": "cmpl-"}
MEMO_BYTES: Final = 4 * 1024 * 1024
"""Of requests whose plans are remembered; a plan weighs a few times its request."""
MEMO_BODY_BYTES: Final = 64 * 1024
"""Larger bodies are parsed each time."""


@dataclass(slots=True)
class Asked:
    """A request, understood: what is wanted, what was decided, who computes it if need be.

    ``head`` is what the last answer from the store began with.
    """

    call: Call
    plan: Plan
    backend: Backend
    size_bytes: int
    said: tuple[Endpoint, Principal, Spoken]
    head: "Head | None" = None


class Head(NamedTuple):
    """The header lines of a hit, true for as long as nothing in ``of`` changes.

    Of the entry it knows the moment alone: an answer must not outlive its place in the store here.
    """

    of: tuple[float, str, int, int, int, int, bool]
    length: int
    lines: bytes


class Completions:
    """The handlers of the model calls. ``clock`` is monotonic, ``now`` unix time, in seconds."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        router: Router,
        pipeline: Pipeline,
        together: Together,
        contexts: Contexts,
        journal: Journal,
        tasks: Tasks,
        writes: WriteLimit,
        rules: Rules,
        now: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._authenticator = authenticator
        self._router = router
        self._pipeline = pipeline
        self._together = together
        self._contexts = contexts
        self._journal = journal
        self._tasks = tasks
        self._writes = writes
        self._rules = rules
        self._now = now
        self._clock = clock
        # What was answered from the store is understood once, if all that it depends on is the
        # same: bytes, endpoint, who asks, headers about caching. Rules and routes never change.
        # By the bytes alone, since they keep their hash and a tuple does not.
        self._memo: cachetools.LRUCache[bytes, Asked] = cachetools.LRUCache(
            MEMO_BYTES, getsizeof=_memo_size
        )

    def handler(self, endpoint: Endpoint) -> Handler:
        """The aiohttp handler of one endpoint."""

        async def handle(request: web.Request) -> web.StreamResponse:
            visit = Visit(request_id_of(request), endpoint, self._clock())
            if TRACEPARENT not in request.headers:
                return await self._handle(request, endpoint, visit)
            with carried(request.headers) as trace:
                visit.trace_id = None if trace is None else trace.trace_id
                return await self._handle(request, endpoint, visit)

        return handle

    async def _handle(
        self, request: web.Request, endpoint: Endpoint, visit: Visit
    ) -> web.StreamResponse:
        self._writes.watch(request.transport)
        live: Live | None = None
        try:
            principal = self._authenticator.principal(request.headers)
            raw = await body_of(request)
            visit.size_bytes = len(raw)
            said = (endpoint, principal, spoken_in(request))
            known = self._remembered(raw, said)
            asked = known or await self._understand(raw, said)
            visit.call, visit.plan, visit.stream = asked.call, asked.plan, asked.call.stream
            visit.asked_at, visit.order = self._now(), self._journal.moment()
            if asked.call.stream:
                live = Live(request, self._tasks, partial(self._waiting_head, asked, visit))
            answer = await self._answer(asked, None if live is None else live.waits)
            response: web.StreamResponse
            match answer:
                case Kept():
                    if known is None and _may_be_remembered(asked, raw):
                        self._memo[raw] = asked
                    response = self._from_store(request, asked, answer, visit)
                    if live is not None and (live.is_open or isinstance(response, InPortions)):
                        response = await live.tell(response)
                case Flown():
                    async with answer.reader:
                        if live is not None:
                            response = await self._stream(live, asked, answer, visit)
                        else:
                            response = await self._plain(asked, answer, visit)
                case Gathered():
                    with answer:
                        response = await self._list(answer, visit)
                case _:
                    assert_never(answer)
        except (asyncio.CancelledError, ConnectionError):
            self._journal.left(
                request_id=visit.request_id,
                endpoint=endpoint,
                seconds=self._clock() - visit.began_s,
                trace_id=visit.trace_id,
            )
            raise
        except Exception as error:  # noqa: BLE001 - the border: everything becomes an answer here
            fault = as_gateway_error(_of_flight(error), visit.request_id)
            if live is not None and live.is_open:
                return await self._break_off(live, fault, visit)
            return self._refuse(fault, visit)
        finally:
            if live is not None:
                live.close()
        if visit.outcome is not None:
            visit.seconds = self._clock() - visit.began_s
            self._journal.note(visit)
        return response

    def _remembered(self, raw: bytes, said: tuple[Endpoint, Principal, Spoken]) -> Asked | None:
        """What these bytes meant last time, if nothing that it depends on has changed since."""
        known = self._memo.get(raw)
        if known is None or known.said != said:
            return None
        name = known.plan.cache_key
        # A key that names a shared context by now: who may use it is looked up each time.
        return None if name is not None and self._contexts.knows(said[1].tenant, name) else known

    async def _understand(self, raw: bytes, said: tuple[Endpoint, Principal, Spoken]) -> Asked:
        """The request as data and its plan. Raises: RequestError, ClientFault."""
        endpoint, principal, spoken = said
        call, directive = await off_loop(
            len(raw), call_in, endpoint, raw, spoken, self._rules.limits
        )
        target = self._router.target(call.model, named=call.names_model)
        fit = await self._contexts.fit(call, directive, principal)
        plan = await off_loop(len(raw), fit.plan, directive, principal, self._rules, target.model)
        size_bytes = len(raw) + sum(len(name) + len(value) for name, value in spoken)
        return Asked(fit.call, plan, target.backend, size_bytes, said)

    async def _answer(self, asked: Asked, waits: Waits | None) -> Answer | Gathered:
        call, plan = asked.call, asked.plan
        if plan.enabled and not call.stream and is_list(call):
            return await self._together.answer(call, plan, asked.backend)
        return await self._pipeline.answer(call, plan, asked.backend, waits)

    def _from_store(
        self, request: web.Request, asked: Asked, kept: Kept, visit: Visit
    ) -> web.StreamResponse:
        """A stored answer: the original's content under a new id."""
        outcome = kept.outcome
        visit.outcome, visit.entry = outcome, kept.entry.meta
        visit.cost_s = visit.entry.cost_s
        if outcome.level == "response" and not asked.call.stream and takes_rendered(request):
            return self._rendered(asked, kept, visit)
        head = self._head(asked.plan, outcome, visit)
        if outcome.level == "negative":
            return web.Response(
                body=kept.entry.body,
                status=outcome.status,
                headers={**head, "X-Should-Retry": "false"},
                content_type="application/json",
            )
        body = self._replayed(asked.call, kept.entry)
        if asked.call.stream:
            said = kept.entry.body if asked.call.endpoint == "responses" else body
            replay = replay_owed(headers.stored_answer(said), outcome, asked.call)
            if isinstance(replay, bytes):
                return web.Response(body=replay, headers={**head, **STREAM_HEADERS})
            return InPortions(replay, head)
        return plain(head, body)

    def _rendered(self, asked: Asked, kept: Kept, visit: Visit) -> Rendered:
        """What :meth:`_from_store` says of a plain hit, with most of its head from the last time."""
        outcome, now = kept.outcome, self._now()
        body = self._replayed(asked.call, kept.entry)
        left_s, age_s = int(outcome.ttl_left_s or 0), int(outcome.age_s or 0)
        entry = (kept.entry.meta.stored_at, outcome.tier, outcome.tokens_saved)
        of = (*entry, int(now), age_s, left_s, outcome.stale)
        head = asked.head
        if head is None or head.of != of or head.length != len(body):
            said = headers.render(asked.plan, outcome)
            head = Head(of, len(body), head_lines(said, length=len(body), now=now))
            asked.head = head
        took_ms = (self._clock() - visit.began_s) * 1000
        lines = b"%bX-Request-ID: %b\r\nX-Response-Time: %.1fms\r\n" % (
            head.lines,
            visit.request_id.encode(),
            took_ms,
        )
        return Rendered(lines, body)

    def _replayed(self, call: Call, entry: Entry) -> bytes:
        prefix = _ID_PREFIX.get(call.endpoint)
        return headers.replayed(entry.body, prefix and prefix + new_id(), int(self._now()))

    async def _plain(self, asked: Asked, flown: Flown, visit: Visit) -> web.Response:
        """The fold over the pieces. Raises: GatewayError when the work failed."""
        folding = Folding()
        outcome = flown.outcome
        async for piece in flown.reader:
            match piece:
                case Chunk() | Whole():
                    add_to(folding, piece)
                case Completed():
                    outcome = with_usage(outcome, piece.usage)
                    break
                case Failed():
                    raise from_failed(piece)
                case Abandoned() | Elsewhere() | Opening() | Comment():
                    raise AssertionError(f"a reader met {piece}")
                case _:
                    assert_never(piece)
        answer = folding.answer()
        body = exact_json.dumps(headers.annotated(answer, outcome))
        finish = finish_of(answer, asked.call.endpoint)
        outcome = as_kept(outcome, finish, len(body), self._rules)
        visit.outcome = outcome
        return web.Response(
            body=body,
            headers={**flown.opening.headers, **self._head(asked.plan, outcome, visit)},
            content_type="application/json",
        )

    async def _list(self, gathered: Gathered, visit: Visit) -> web.Response:
        """A list of inputs, of which some may be known. Raises: GatewayError."""
        listed = await put_together(gathered)
        visit.outcome, visit.cost_s = listed.outcome, listed.cost_s
        head = self._head(gathered.plan, listed.outcome, visit)
        return plain({**listed.headers, **head}, listed.body)

    async def _stream(
        self, live: Live, asked: Asked, flown: Flown, visit: Visit
    ) -> web.StreamResponse:
        """The pieces as they come. After the first byte an error is an event without DONE."""
        head = self._head(asked.plan, flown.outcome, visit)
        response = await live.open({**flown.opening.headers, **head})
        visit.outcome = flown.outcome
        async for data in self._events(asked, flown, visit):
            await live.write(data)
        await live.end()
        return response

    async def _break_off(self, live: Live, error: GatewayError, visit: Visit) -> web.StreamResponse:
        """The head is out: an event must tell the error."""
        visit.outcome = None
        self._note_refusal(error, visit)
        return await live.end(error_owed(error.body(), visit.endpoint))

    def _waiting_head(
        self, asked: Asked, visit: Visit, missed: Missed, boarded: Boarded
    ) -> Mapping[str, str]:
        """The headers of a stream whose answer has not begun."""
        outcome = with_opening(
            missed.outcome, Opening({}), asked.backend, collapsed=boarded.collapsed
        )
        return self._head(asked.plan, outcome, visit)

    async def _events(self, asked: Asked, flown: Flown, visit: Visit) -> AsyncIterator[bytes]:
        """SSE bytes of a flight, one write for all that is there. Raises: GatewayError."""
        outcome = flown.outcome
        async for pieces in flown.reader.batches():
            events: list[bytes] = []
            for piece in pieces:
                match piece:
                    case Chunk() | Whole():
                        events += events_owed(piece, outcome, asked.call)
                    case Comment(text=text):
                        events.append(text)
                    case Completed(usage=usage):
                        visit.outcome = with_usage(outcome, usage)
                        yield b"".join([*events, end_owed(asked.call)])
                        return  # what the flight still does, nobody needs to wait for
                    case Failed():
                        yield b"".join(events)
                        raise from_failed(piece)
                    case Abandoned() | Elsewhere() | Opening():
                        raise AssertionError(f"a reader met {piece}")
                    case _:
                        assert_never(piece)
            yield b"".join(events)

    def _head(self, plan: Plan, outcome: Outcome, visit: Visit) -> dict[str, str]:
        head = headers.render(plan, outcome)
        head["X-Request-ID"] = visit.request_id
        head["X-Response-Time"] = f"{(self._clock() - visit.began_s) * 1000:.1f}ms"
        return head

    def _refuse(self, error: GatewayError, visit: Visit) -> web.Response:
        self._note_refusal(error, visit)
        elapsed_ms = (self._clock() - visit.began_s) * 1000
        return error_response(error, visit.request_id, **{"X-Response-Time": f"{elapsed_ms:.1f}ms"})

    def _note_refusal(self, error: GatewayError, visit: Visit) -> None:
        self._journal.refused(
            request_id=visit.request_id,
            endpoint=visit.endpoint,
            status=error.status,
            code=error.code,
            seconds=self._clock() - visit.began_s,
            trace_id=visit.trace_id,
        )


def _may_be_remembered(asked: Asked, raw: bytes) -> bool:
    """Not what was asked under a shared context: its rights may change at any time."""
    return asked.plan.scope.kind != "shared" and len(raw) <= MEMO_BODY_BYTES


def _memo_size(asked: Asked) -> int:
    return asked.size_bytes + 256


def _of_flight(error: Exception) -> Exception:
    if isinstance(error, FlightCancelled):
        return BackendFault(
            "The gateway is shutting down.",
            code="shutting_down",
            status=503,
            retry_after_s=1.0,
        )
    return error
