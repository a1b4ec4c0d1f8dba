"""A small OpenAI-compatible upstream that counts its calls.

``python -m loadtest.mock_upstream --port 9000 [--delay-ms 0] [--chunks 20] [--chunk-ms 5]
[--capacity N] [--stamped]``

It answers ``/v1/chat/completions`` and ``/v1/completions``, plain (about 1 KB) and streamed, and
``/v1/models``. Each answer names a digest of its prompt and the number of the call, so that a wrong
hit shows itself. With ``--stamped`` each event of a stream says when it left, by the system's monotonic
clock (``at=NANOSECONDS``). ``GET /calls`` says how many calls came; the query ``?delay_ms=`` and
``?chunk_ms=`` of ``POST /shape`` change the delays while it runs.
"""

import argparse
import asyncio
import hashlib
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Final

import orjson
from aiohttp import web

FILLING: Final = (
    "The heron stands in the shallow water and waits for what the stream will bring. " * 9
)
CREATED: Final = 1_750_000_000
USAGE: Final = {"prompt_tokens": 57, "completion_tokens": 148, "total_tokens": 205}


@dataclass(slots=True)
class Shape:
    """How slow the answers are. ``delay_ms`` stands before the first byte of each."""

    delay_ms: float = 0.0
    chunks: int = 20
    chunk_ms: float = 5.0
    stamped: bool = False


@dataclass(slots=True)
class Calls:
    """What came since the start."""

    calls: int = 0
    streams: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    abandoned: int = 0


class Upstream:
    """The handlers and their counts."""

    def __init__(self, shape: Shape, capacity: int = 0) -> None:
        self.shape = shape
        self._turn: AbstractAsyncContextManager[None] = nullcontext()
        if capacity:  # calls beyond it wait in line
            self._turn = asyncio.Semaphore(capacity)
        self.counted = Calls()

    def app(self) -> web.Application:
        """The application."""
        app = web.Application(client_max_size=64 << 20)
        for prefix in ("/v1", ""):
            app.router.add_post(f"{prefix}/chat/completions", self.chat)
            app.router.add_post(f"{prefix}/completions", self.text)
            app.router.add_get(f"{prefix}/models", self.models)
        app.router.add_get("/calls", self.calls)
        app.router.add_post("/shape", self.reshape)
        return app

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """``/chat/completions``."""
        return await self._counted(request, chat=True)

    async def text(self, request: web.Request) -> web.StreamResponse:
        """``/completions``."""
        return await self._counted(request, chat=False)

    async def models(self, _: web.Request) -> web.Response:
        """``/models``."""
        model = {"id": "m", "object": "model", "created": CREATED, "owned_by": "mock"}
        return _json({"object": "list", "data": [model]})

    async def calls(self, _: web.Request) -> web.Response:
        """The counts."""
        return _json({f.name: getattr(self.counted, f.name) for f in fields(Calls)})

    async def reshape(self, request: web.Request) -> web.Response:
        """Other delays from now on."""
        for field in fields(Shape):
            if (value := request.query.get(field.name)) is not None:
                setattr(self.shape, field.name, type(getattr(self.shape, field.name))(value))
        return _json({f.name: getattr(self.shape, f.name) for f in fields(Shape)})

    async def _counted(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        counted = self.counted
        counted.calls += 1
        counted.in_flight += 1
        counted.most_in_flight = max(counted.most_in_flight, counted.in_flight)
        number = counted.calls
        try:
            async with self._turn:
                if self.shape.delay_ms:
                    await asyncio.sleep(self.shape.delay_ms / 1000)
                if body.get("stream"):
                    counted.streams += 1
                    return await self._stream(request, body, number, chat=chat)
                return _json(_whole(body, number, chat=chat))
        except (asyncio.CancelledError, ConnectionError):
            counted.abandoned += 1
            raise
        finally:
            counted.in_flight -= 1

    async def _stream(
        self, request: web.Request, body: dict[str, Any], number: int, *, chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        base = _base(body, number, "chat.completion.chunk" if chat else "text_completion")

        async def send(text: str, finish: str | None) -> None:
            part: dict[str, Any] = {"index": 0, "finish_reason": finish}
            part |= {"delta": {"content": text} if text else {}} if chat else {"text": text}
            await response.write(b"data: " + orjson.dumps({**base, "choices": [part]}) + b"\n\n")

        began_s = time.perf_counter()
        for position in range(self.shape.chunks):
            if position and self.shape.chunk_ms:
                # By the stream's own beginning: streams that were held up together part again.
                due_s = began_s + position * self.shape.chunk_ms / 1000
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            at = f"at={time.perf_counter_ns()} " if self.shape.stamped else ""
            await send(f"{at}word{position} of {base['id']} for {_digest(body)} ", None)
        await send("", "stop")
        if (body.get("stream_options") or {}).get("include_usage"):
            last = {**base, "choices": [], "usage": USAGE}
            await response.write(b"data: " + orjson.dumps(last) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def _whole(body: dict[str, Any], number: int, *, chat: bool) -> dict[str, Any]:
    text = f"Answer {number} to {_digest(body)}. {FILLING}"
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    kind = "chat.completion" if chat else "text_completion"
    return {**_base(body, number, kind), "choices": [choice], "usage": USAGE}


def _base(body: dict[str, Any], number: int, kind: str) -> dict[str, Any]:
    model = body.get("model", "m")
    return {"id": f"mock-{number}", "object": kind, "created": CREATED, "model": model}


def _digest(body: dict[str, Any]) -> str:
    asked = orjson.dumps(body.get("messages", body.get("prompt")))
    return hashlib.blake2b(asked, digest_size=4).hexdigest()


def _json(body: Any) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")


async def serve(app: web.Application, port: int) -> None:
    """Serve on loopback until the process ends."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()


def run(app: web.Application, port: int) -> None:
    """The same under uvloop, and quiet when it is told to stop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.Loop) as runner:
        try:
            runner.run(serve(app, port))
        except KeyboardInterrupt:
            return


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--chunk-ms", type=float, default=5.0)
    parser.add_argument("--capacity", type=int, default=0, help="calls at once; 0: any number")
    parser.add_argument("--stamped", action="store_true", help="events say when they left")
    asked = parser.parse_args()
    shape = Shape(asked.delay_ms, asked.chunks, asked.chunk_ms, asked.stamped)
    run(Upstream(shape, asked.capacity).app(), asked.port)


if __name__ == "__main__":
    main()
