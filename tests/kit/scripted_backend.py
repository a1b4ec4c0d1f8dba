"""A backend that does what its script says, and remembers what was asked of it.

A script is a sequence of steps: a piece is yielded, a :class:`Gate` is waited at, an exception is
raised. Each run takes the next script; the last one serves all further runs.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.backends.base import Forwarded
from gateway.chunks import Chunk, Opening, Piece, Whole
from policies.call import Call
from policies.outcome import Abandoned, Completed, Failed, Usage
from policies.plan import Plan


class Gate:
    """A place where a script waits until the test opens it."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._open = asyncio.Event()

    async def reached(self) -> None:
        """Wait until somebody stands at the gate."""
        await self._reached.wait()

    def open(self) -> None:
        """Let them pass."""
        self._open.set()

    async def pass_through(self) -> None:
        """Stand at the gate until it is open."""
        self._reached.set()
        await self._open.wait()


Step = Piece | Gate | BaseException
Script = Sequence[Step]


@dataclass(eq=False)
class Run:
    """One run and what became of it."""

    call: Call
    plan: Plan
    finished: bool = False
    cancelled: bool = False


class ScriptedBackend:
    """See the module's docstring. ``finished`` and ``cancelled`` of a run are known at its end."""

    def __init__(self, *scripts: Script, name: str = "scripted") -> None:
        self.name = name
        self.runs: list[Run] = []
        self.dropped: list[str | None] = []
        self.forwarded: list[tuple[str, str, bytes]] = []
        self.stats: dict[str, Any] | None = None
        self.listed: list[dict[str, Any]] = []
        self.answer = Forwarded(200, {"Content-Type": "application/json"}, b"{}")
        self._scripts = list(scripts) or [whole_answer()]
        self._changed = asyncio.Condition()

    async def started(self, count: int) -> None:
        """Wait until ``count`` runs have begun."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.runs) >= count)

    async def ended(self, count: int = 1) -> None:
        """Wait until ``count`` runs have ended, one way or the other."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: sum(run.finished or run.cancelled for run in self.runs) >= count
            )

    async def run(self, call: Call, plan: Plan) -> AsyncGenerator[Piece, None]:
        run = Run(call, plan)
        script = self._scripts[min(len(self.runs), len(self._scripts) - 1)]
        self.runs.append(run)
        try:
            await self._tell()
            for step in script:
                match step:
                    case Gate():
                        await step.pass_through()
                    case BaseException():
                        raise step
                    case _:
                        yield step
            run.finished = True
        finally:
            run.cancelled = not run.finished
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def models(self) -> list[dict[str, Any]]:
        return self.listed

    async def forward(self, method: str, path_qs: str, body: bytes) -> Forwarded:
        self.forwarded.append((method, path_qs, body))
        return self.answer

    async def invalidate_kv(self, salt: str | None) -> int:
        self.dropped.append(salt)
        return 7

    async def kv_stats(self) -> dict[str, Any] | None:
        return self.stats


def opening(
    hit: int | None = None, miss: int | None = None, headers: Mapping[str, str] | None = None
) -> Opening:
    """What stands before every answer."""
    return Opening(headers=headers or {}, hit_tokens=hit, miss_tokens=miss)


def body_of(text: str = "Hello.", **more: Any) -> dict[str, Any]:
    """A plain chat answer."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
        **more,
    }


def delta(
    text: str | None = None, *, finish: str | None = None, index: int = 0, **more: Any
) -> Chunk:
    """One event of a chat stream."""
    inner: dict[str, Any] = {} if text is None else {"content": text}
    choice = {"index": index, "delta": inner, "finish_reason": finish}
    return Chunk(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [choice],
            **more,
        }
    )


def completed(
    prompt: int = 5, completion: int = 2, hit: int = 0, duration_s: float = 1.0
) -> Completed:
    """The ending of an answer that is all there."""
    return Completed(Usage(prompt, completion, hit), duration_s)


def failed(status: int = 503, **more: Any) -> Failed:
    """The ending of one that is not; the fault follows from the status as it usually does."""
    facts: dict[str, Any] = {
        "code": "scripted",
        "message": "as the script says",
        "fault": "client" if 400 <= status < 500 and status != 429 else "backend",
        **more,
    }
    return Failed(status=status, **facts)


def whole_answer(text: str = "Hello.", **more: Any) -> Script:
    """A plain answer, at once."""
    return (opening(), Whole(body_of(text, **more)), completed())


def streamed_answer(*texts: str) -> Script:
    """A stream: a piece for each text, the finish, the usage."""
    usage = Chunk({**delta().data, "choices": [], "usage": body_of()["usage"]})
    return (opening(), *map(delta, texts), delta(finish="stop"), usage, completed())


__all__ = [
    "Abandoned",
    "Gate",
    "Run",
    "Script",
    "ScriptedBackend",
    "Step",
    "body_of",
    "completed",
    "delta",
    "failed",
    "opening",
    "streamed_answer",
    "whole_answer",
]
