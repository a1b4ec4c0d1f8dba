"""A pipeline with everything around it: scripted backend, scripted clock, loaded dice."""

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest

from gateway.chunks import Chunk, Json, Whole, fold
from gateway.errors import GatewayError
from gateway.flights import Flights, Tasks
from gateway.pipeline import Answer, Kept, Pipeline
from gateway.recall import Recall
from gateway.store.base import Store
from gateway.store.memory import MemoryStore
from gateway.store.sharing import News
from gateway.store.tiers import Tiers
from policies.outcome import Completed, Outcome
from policies.rules import Rules, TierName, default_rules
from tests.kit.clock import Clock
from tests.kit.entries import asked
from tests.kit.scripted_backend import Script, ScriptedBackend

HOT = {"enabled": True, "tier": "hot"}  # 300 s, then 30 s revalidating, 300 s in case of error
RULES = replace(default_rules(), jitter=0.0)


class Bench:
    """A pipeline and everything around it."""

    def __init__(
        self,
        *scripts: Script,
        store: Store | None = None,
        rules: Rules = RULES,
        room: int = 2**20,
        news: News | None = None,
    ) -> None:
        self.clock, self.draw = Clock(), 0.0
        self.backend = ScriptedBackend(*scripts)
        tiers: tuple[TierName, ...] = ("hot", "warm", "cold")
        self.store = Tiers(
            {tier: MemoryStore(tier, max_bytes=room) for tier in tiers}
            if store is None
            else {"warm": store}
        )
        self.tasks = Tasks()
        self.flights = Flights(self.tasks)
        self.recall = Recall()
        self.rules = rules
        self.pipeline = Pipeline(
            rules=rules,
            store=self.store,
            flights=self.flights,
            recall=self.recall,
            now=self.clock.now,
            draw=lambda: self.draw,
            news=news,
        )

    @property
    def runs(self) -> int:
        return len(self.backend.runs)

    async def start(self, text: str = "?", kv_cache: Any = True, **more: Any) -> Answer:
        call, plan = asked(text, kv_cache, rules=self.rules, **more)
        return await self.pipeline.answer(call, plan, self.backend)

    async def ask(self, text: str = "?", kv_cache: Any = True, **more: Any) -> tuple[Outcome, Json]:
        """The outcome as the opening headers say it, and the whole answer; nothing in the air."""
        answer = await self.start(text, kv_cache, **more)
        body = await read(answer)
        await self.settled()
        return answer.outcome, body

    async def settled(self) -> None:
        await asyncio.gather(*self.tasks._running, return_exceptions=True)
        await asyncio.sleep(0)

    async def fails(self, *args: Any, **more: Any) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            await self.ask(*args, **more)
        await self.settled()
        return caught.value


async def read(answer: Answer) -> Json:
    if isinstance(answer, Kept):
        body: Json = orjson.loads(answer.entry.body)
        return body
    parts: list[Chunk | Whole] = []
    async with answer.reader as pieces:
        async for piece in pieces:
            if isinstance(piece, Chunk | Whole):
                parts.append(piece)
            elif isinstance(piece, Completed):
                return fold(parts)
    raise AssertionError("the flight ended without an ending")


def text_of(body: Json) -> str:
    text: str = body["choices"][0]["message"]["content"]
    return text
