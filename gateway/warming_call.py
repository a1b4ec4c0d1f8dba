"""One question that is warmed: answered on the way of every call, stored, and counted apart.

The plan is made from the same body that a client sends, so its key is the key of the client's
call. What is fresh is left alone. What it takes from users is in ``gateway.traffic``.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, assert_never

import structlog

from gateway.backends.base import Backend
from gateway.contexts import Fitted
from gateway.errors import GatewayError, from_failed, from_request_error
from gateway.flights import FlightBroken, FlightCancelled
from gateway.journal import Journal
from gateway.off_loop import off_loop
from gateway.outcomes import with_usage
from gateway.pipeline import Flown, Kept, Pipeline
from gateway.request_log import Visit
from gateway.router import Router
from gateway.store.base import Selector, StoreError
from gateway.store.tiers import Tiers
from gateway.traffic import Traffic
from policies.call import Call, RequestError, parse_call
from policies.directive import Directive, parse_directive
from policies.freshness import EntryMeta, Fresh, judge
from policies.keys import Principal
from policies.outcome import Completed, Failed
from policies.plan import Plan, decide
from policies.rules import Rules
from policies.warming import Item

TRIES: Final = 4
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
STARTING: Final = "engine_starting"
"""A model may take minutes to fetch: no reason to give up."""
_PASSING: Final = frozenset({429, 502, 503, 504})

Fit = Callable[[Call, Directive, Principal], Awaitable[Fitted]]

_log = structlog.get_logger("kvgate.warming")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, understood."""

    call: Call
    plan: Plan
    backend: Backend


@dataclass(frozen=True, slots=True)
class Warmed:
    """What became of a question. ``key`` is the public one; tokens and seconds were computed."""

    status: Literal["done", "skipped", "failed"]
    key: str | None = None
    tokens: int = 0
    seconds: float = 0.0
    code: str | None = None
    message: str | None = None


class Warming:
    """Warms questions. ``clock`` is monotonic, ``now`` unix time, in seconds.

    ``fit`` puts a call under the shared context that it names.
    """

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        store: Tiers,
        router: Router,
        fit: Fit,
        rules: Rules,
        journal: Journal,
        traffic: Traffic,
        now: Callable[[], float],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        new_id: Callable[[], str],
    ) -> None:
        self._pipeline = pipeline
        self._store = store
        self._router = router
        self._fit = fit
        self._rules = rules
        self._journal = journal
        self._traffic = traffic
        self._now = now
        self._clock = clock
        self._sleep = sleep
        self._new_id = new_id
        self._down: set[str] = set()  # backends that were given up: no waiting for each question

    async def understand(self, item: Item, principal: Principal) -> Asked:
        """The question as a client's call. Raises: RequestError, ClientFault, StoreError."""
        call, directive = self._read_item(item)
        target = self._router.target(call.model)
        fit = await self._fit(call, directive, principal)
        plan = await off_loop(
            call.size_bytes, fit.plan, directive, principal, self._rules, target.model
        )
        return Asked(fit.call, plan, target.backend)

    def _read_item(self, item: Item) -> tuple[Call, Directive]:
        directive = parse_directive(
            item.own.get("kv_cache"),
            (),
            limits=self._rules.limits,
            prompt_cache_key=item.own.get("prompt_cache_key"),
        )
        call = parse_call("chat", item.body)
        return replace(call, size_bytes=_characters(call)), directive

    def check(self, item: Item, principal: Principal) -> None:
        """Whether it may be asked at all, as far as one need not look anything up.

        Raises: RequestError naming the field.
        """
        try:
            # The base was checked with the pattern, and is the same for each of its questions.
            decide(*self._read_item(replace(item, base=())), principal, self._rules)
        except RequestError as error:
            where = f"{item.where}.{error.param}" if error.param else item.where
            raise RequestError(
                error.message, code=error.code, param=where, status=error.status
            ) from None

    async def find(self, plan: Plan) -> EntryMeta | None:
        """What is stored for it, looked at without counting as a use; None also without a store."""
        try:
            page = await self._store.scan(Selector(None, key=plan.key), after=None, limit=1)
        except StoreError:
            return await self._read_meta(plan)
        return page[0] if page else None

    async def _read_meta(self, plan: Plan) -> EntryMeta | None:
        """A list needs every tier, a look-up only the one that has it. It counts as a use."""
        try:
            entry = await self._store.get(plan.key, now=self._now())
        except StoreError:
            return None
        return entry.meta if entry is not None else None

    async def warm(self, item: Item, principal: Principal) -> Warmed:
        """Compute and store it, unless it is fresh. Never raises but for cancellation."""
        try:
            asked = await self.understand(item, principal)
            return await self.renew(asked, fresh_too=False)
        except RequestError as error:
            return _failed(None, from_request_error(error))
        except StoreError:
            return Warmed("failed", code="store_unavailable", message="the store does not answer")
        except GatewayError as error:
            return _failed(None, error)
        except Exception:  # noqa: BLE001 - a job that it ended would be taken up again for ever
            return _defect(None)

    async def renew(self, asked: Asked, *, fresh_too: bool = True) -> Warmed:
        """Compute and store it; with ``fresh_too`` also in place of a fresh answer."""
        tries, backend = 0, asked.backend.name
        while True:
            plan = asked.plan
            meta = await self.find(plan)
            if meta is not None and meta.status == 200:
                fresh = isinstance(judge(meta, plan, self._now(), 0.0, beta=0.0), Fresh)
                if fresh and plan.may_read and not fresh_too:
                    return Warmed("skipped", plan.public_key)
                # A refusal must not take the place of a good answer.
                plan = replace(plan, may_read=False)
            try:
                async with self._traffic.turn():
                    warmed = await self._ask(replace(asked, plan=plan))
                self._down.discard(backend)
            except GatewayError as error:
                tries += error.code != STARTING
                if error.status not in _PASSING:
                    return _failed(plan, error)
                if tries >= TRIES or backend in self._down:
                    self._down.add(backend)
                    return _failed(plan, error)
                pause_s = error.retry_after_s or FIRST_PAUSE_S * 2**tries
                await self._sleep(min(pause_s, LONGEST_PAUSE_S))
            except (FlightCancelled, FlightBroken):
                return Warmed("failed", plan.public_key, code="broken_off", message="broken off")
            except Exception:  # noqa: BLE001 - one question must not end the others
                return _defect(plan)
            else:
                return warmed

    async def _ask(self, asked: Asked) -> Warmed:
        """Raises: GatewayError, FlightCancelled, FlightBroken."""
        began_s = self._clock()
        # Not to be finished for its own sake: who cancels the job wants the backend free.
        plan = replace(asked.plan, preload=False)
        answer = await self._pipeline.answer(asked.call, plan, asked.backend)
        match answer:
            case Kept():
                if answer.outcome.level == "negative":
                    return Warmed(
                        "failed",
                        plan.public_key,
                        code="refused_before",
                        message=f"the backend answered {answer.outcome.status} a moment ago",
                    )
                return Warmed("skipped", plan.public_key)
            case Flown():
                return await self._read(answer, asked.plan, began_s)
            case _:
                assert_never(answer)

    async def _read(self, answer: Flown, plan: Plan, began_s: float) -> Warmed:
        outcome, tokens, seconds = answer.outcome, 0, 0.0
        async with answer.reader as reader:
            async for piece in reader:  # to the very end, when the answer has been stored
                if isinstance(piece, Completed):
                    outcome = with_usage(outcome, piece.usage)
                    tokens = piece.usage.prompt_tokens + piece.usage.completion_tokens
                    seconds = piece.duration_s
                elif isinstance(piece, Failed):
                    raise from_failed(piece)
        visit = Visit(f"warm-{self._new_id()}", "chat", began_s, plan=plan, outcome=outcome)
        visit.seconds = self._clock() - began_s
        self._journal.note(visit)
        stored = await self.find(plan)
        if stored is None or stored.status != 200:
            return Warmed(
                "failed",
                plan.public_key,
                tokens,
                seconds,
                code="not_stored",
                message=f"answered, but not stored: {plan.why_not or 'too large, or no room'}",
            )
        return Warmed("done", plan.public_key, tokens, seconds)


def _characters(call: Call) -> int:
    """Of its texts: about the size that its body would have."""
    texts = (message.get("content") for message in call.messages)
    return sum(len(text) for text in texts if isinstance(text, str))


def _failed(plan: Plan | None, error: GatewayError) -> Warmed:
    key = plan.public_key if plan is not None else None
    return Warmed("failed", key, code=error.code, message=error.message[:500])


def _defect(plan: Plan | None) -> Warmed:
    """Call it where the exception is handled: the log gets its traceback."""
    _log.exception("defect while warming")
    key = plan.public_key if plan is not None else None
    return Warmed("failed", key, code="internal_error", message="see the log")
