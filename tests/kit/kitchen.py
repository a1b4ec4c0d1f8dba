"""Warming with everything around it: a pipeline's bench, and time that the test lets pass."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import StringIO
from typing import Any

from gateway.contexts import Fitted
from gateway.flights import Tasks
from gateway.journal import Journal
from gateway.pipeline import Pipeline
from gateway.request_log import RequestLog
from gateway.router import Router, Served
from gateway.store.base import StoreError
from gateway.store.sharing import Leases, Records
from gateway.store.sharing_memory import MemoryLeases, MemoryRecords
from gateway.traffic import Traffic
from gateway.warming import WarmJobs
from gateway.warming_call import Warming
from policies.call import Call, parse_call
from policies.directive import Directive, parse_directive
from policies.keys import Principal
from policies.outcome import Outcome
from policies.plan import decide
from policies.rules import Limits
from policies.warming import Item, parse_wish
from tests.kit.bench import Bench, read, text_of
from tests.kit.entries import OPEN
from tests.kit.scripted_backend import Script
from tests.kit.timer import Timer


class Kitchen(Bench):
    """A process that warms. ``shared`` are another one's records, leases and store."""

    def __init__(self, *scripts: Script, concurrency: int = 2, of: "Kitchen | None" = None) -> None:
        super().__init__(*scripts)
        self.timer: Timer = of.timer if of else Timer()
        self.clock = self.timer
        self.records: Records = of.records if of else MemoryRecords()
        self.leases: Leases = of.leases if of else MemoryLeases(now=self.timer.now)
        if of is not None:
            self.store, self.backend = of.store, of.backend
        self.traffic = Traffic(
            places=concurrency, clock=self.timer.monotonic, sleep=self.timer.sleep
        )
        self.pipeline = Pipeline(
            rules=self.rules,
            store=self.store,
            flights=self.flights,
            recall=self.recall,
            now=self.timer.now,
            draw=lambda: 0.0,
            in_the_air=self.traffic.of,
        )
        self.log = StringIO()
        self.journal = Journal({}, RequestLog("info", "json", self.log))
        numbers = itertools.count()
        self.warming = Warming(
            pipeline=self.pipeline,
            store=self.store,
            router=Router([Served(self.backend, ("m",))], {}),
            fit=self.fit,
            rules=self.rules,
            journal=self.journal,
            traffic=self.traffic,
            now=self.timer.now,
            clock=self.timer.monotonic,
            sleep=self.timer.sleep,
            new_id=lambda: f"id{next(numbers)}",
        )
        self.tenants = {"default", "t", "other"}
        self.jobs = WarmJobs(
            warming=self.warming,
            records=self.records,
            leases=self.leases,
            tasks=self.tasks,
            tenants=self.tenants,
            concurrency=concurrency,
            now=self.timer.now,
            sleep=self.timer.sleep,
            new_id=lambda: f"{next(numbers)}",
        )

    async def fit(self, call: Call, directive: Directive, _: Principal) -> Fitted:
        """There are no shared contexts here."""
        if directive.shared_context is not None:
            raise StoreError("down")
        return Fitted(call)

    async def user(self, text: str, kv_cache: Any = True, **body: Any) -> tuple[Outcome, str]:
        """What a user is told who sends this, and the answer's text; nothing is in the air then."""
        messages = [{"role": "user", "content": text}]
        call = parse_call("chat", {"model": "m", "messages": messages, **body})
        directive = parse_directive(kv_cache, (), limits=Limits())
        plan = decide(call, directive, OPEN, self.rules)
        answer = await self.pipeline.answer(call, plan, self.backend)
        said = text_of(await read(answer))
        await asyncio.sleep(0)
        return answer.outcome, said

    def asked_texts(self) -> Sequence[str]:
        """The last message of each call that the backend got."""
        return [run.call.messages[-1]["content"] for run in self.backend.runs]


def items(*questions: Any, **more: Any) -> tuple[Item, ...]:
    """A list of questions as a client sends it."""
    return parse_wish({"questions": list(questions), **more}, {}, limits=Limits())


@asynccontextmanager
async def kitchen(
    *scripts: Script, concurrency: int = 2, of: Kitchen | None = None
) -> AsyncIterator[Kitchen]:
    """A kitchen whose tasks end with the block."""
    made = Kitchen(*scripts, concurrency=concurrency, of=of)
    try:
        yield made
    finally:
        await shut(made.tasks)


async def shut(tasks: Tasks) -> None:
    """What a process does at its end."""
    await tasks.close()
    await asyncio.sleep(0)


__all__ = ["OPEN", "Kitchen", "Principal", "items", "kitchen", "shut"]
