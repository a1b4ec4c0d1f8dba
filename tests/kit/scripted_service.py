"""A whole engine without a model: bytes are tokens, and the answer is what the test says it is."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp.test_utils import TestClient, TestServer

from engine.engine import Engine
from engine.errors import RequestError
from engine.kv.blocks import BlockPool
from engine.kv.prefix import PrefixIndex
from engine.request import Pick
from engine.scheduler import Limits, Schedule, Scheduler
from engine.server import Pace, Slot, make_app
from engine.service import Service
from tests.kit.scripted_runner import END, ScriptedRunner

P = 4
VOCABULARY = 257
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class Brackets:
    """A chat template: [role]content, and [assistant] for the answer to come."""

    takes_tools = True

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        for message in messages:
            if message["role"] == "alien":
                complaint = "no such role"
                raise RequestError(complaint, param="messages")
        text = "".join(f"[{m['role']}]{m.get('content') or ''}" for m in messages)
        if tools:
            text = f"({len(tools)} tools){text}"
        return text + "[assistant]" * add_generation_prompt


class ByteText:
    """Token = byte + 1; 0 ends, and is written <end>."""

    vocab = VOCABULARY
    chat: Brackets | None = Brackets()

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        first, *others = [[byte + 1 for byte in part.encode()] for part in text.split("<end>")]
        return first + [token for part in others for token in (0, *part)]

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token: int, *, skip_special: bool = True) -> bytes:
        if token:
            return bytes([token - 1])
        return b"" if skip_special else b"<end>"


class SayingRunner(ScriptedRunner):
    """Answers every prompt with `says`, then the end; logprobs count down from -1.

    The alternatives of a token are itself and the `rivals`.
    `gate`, when it is set, is taken once for each step.
    """

    def __init__(self, *, blocks: int) -> None:
        super().__init__(blocks=blocks, block_tokens=P, vocabulary=VOCABULARY)
        self.says = "Hello, you."
        self.rivals: Sequence[int] = (66,)
        self.gate: threading.Semaphore | None = None
        self.fail_steps = 0
        self.before_step = self._before

    def _before(self, schedule: Schedule) -> None:
        if self.gate is not None:
            self.gate.acquire()
        if self.fail_steps:
            self.fail_steps -= 1
            raise FloatingPointError

    def pick(self, logits: list[int], schedule: Schedule, /) -> list[Pick]:
        picks = []
        for span in (span for span in schedule.spans if span.sample):
            sequence = span.sequence
            if span.stop < sequence.prompt_tokens:
                token, place = sequence.tokens[span.stop], span.stop
            else:
                place = sequence.generated
                said = [byte + 1 for byte in self.says.encode()]
                token = said[place] if place < len(said) else END
            top = sequence.sampling.top_logprobs
            if top is None:
                picks.append(Pick(token))
            else:
                rivals = [(rival, -9.0 - rank) for rank, rival in enumerate(self.rivals)]
                pairs = [(token, -1.0 - place), *rivals][:top]
                picks.append(Pick(token, -1.0 - place, tuple(pairs)))
        return picks


class Scripted:
    """Engine, service, application and client of one test."""

    def __init__(
        self, *, blocks: int = 64, max_waiting: int = 16, sharded: bool = False, **limits: Any
    ) -> None:
        self.runner = SayingRunner(blocks=blocks)
        limits = {"chunk_tokens": 16, "max_sequences": 8, "max_model_len": 200, **limits}
        self.scheduler = Scheduler(
            PrefixIndex(BlockPool(blocks), block_tokens=P),
            Limits(**limits),
            end_tokens=frozenset({END}),
        )
        self.fatal: list[str] = []
        self.engine = Engine(
            self.scheduler,
            self.runner,
            self.runner,
            max_waiting=max_waiting,
            sharded=sharded,
            on_fatal=self.fatal.append,
        )
        self.text = ByteText()
        self.service = Service(
            self.engine,
            self.text,
            model="scripted",
            also_named=["some/path"],
            fingerprint="0123456789abcdef",
            wall_clock=lambda: 1_000_000.5,
            facts={"device": "none"},
        )
        self.slot = Slot(self.service)
        self.client: TestClient[Any, Any]

    async def post(self, path: str, body: object, **how: Any) -> aiohttp.ClientResponse:
        return await self.client.post(path, json=body, **how)

    async def refused(self, path: str, body: object, status: int = 400) -> dict[str, Any]:
        """The error object of a request that must be refused."""
        response = await self.post(path, body)
        assert response.status == status, await response.text()
        error = (await response.json())["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error, dict)
        return error


@asynccontextmanager
async def scripted(
    pace: Pace | None = None, *, token: str | None = None, **how: Any
) -> AsyncIterator[Scripted]:
    """Everything started; at the end no block may be held."""
    one = Scripted(**how)
    one.engine.start()
    server = TestServer(make_app(one.slot, pace, token))
    await server.start_server()  # cancels handlers, as the engine's own runner does
    one.client = TestClient(server)
    try:
        yield one
    finally:
        if one.runner.gate is not None:
            gate, one.runner.gate = one.runner.gate, None
            gate.release(1000)
        await one.client.close()
        if not one.engine.broken:
            held = await one.engine.ask(lambda scheduler: scheduler.index.pool.held_blocks)
            await one.engine.ask(lambda scheduler: scheduler.check_integrity())
            assert held == 0, "blocks are held after everybody has left"
        one.engine.close()


def chat(content: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **more}


async def stream(one: Scripted, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream that must end properly."""
    response = await one.post(path, {**body, "stream": True})
    assert response.status == 200, await response.text()
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    return [json.loads(event[6:]) for event in events[:-2]]


def contents(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    own = [choice for choice in choices if choice["index"] == index]
    return "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in own)
