"""A line between two processes: JSON objects both ways, some of which want an answer.

One socket of a pair, one object a line::

    {"kind": "drain", "body": …}            said
    {"kind": "numbers", "id": 7, "body": …} asked;  {"re": 7, "body": …} is the answer,
                                                    {"re": 7, "error": "…"} the refusal

The end of the process at the other end is the end of the channel: whoever waits is told.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Self

import orjson
import structlog

from gateway.flights import Tasks

LONGEST_LINE_BYTES: Final = 64 * 2**20
MOST_UNREAD_BYTES: Final = 32 * 2**20
"""What may wait for an end that does not read; then it counts as gone."""

Handler = Callable[[Any], Awaitable[Any]]
_log = structlog.get_logger("kvgate.workers")


class ChannelError(Exception):
    """The other end is gone, or refused."""


class Channel:
    """One end. ``handlers`` take what the other end says or asks, by kind."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        tasks: Tasks,
        handlers: Mapping[str, Handler],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._tasks = tasks
        self._handlers = handlers
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._questions = 0
        self._open = True
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"<Channel {state}: {len(self._asked)} questions unanswered>"

    @property
    def open(self) -> bool:
        """Whether the other end is still there, as far as is known."""
        return self._open

    @classmethod
    async def over(
        cls, sock: socket.socket, *, tasks: Tasks, handlers: Mapping[str, Handler]
    ) -> Self:
        """Over one socket of a pair, which belongs to the channel from now on."""
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=LONGEST_LINE_BYTES)
        return cls(reader, writer, tasks=tasks, handlers=handlers)

    async def run(self) -> None:
        """Take in what comes, until the other end is gone."""
        try:
            while line := await self._reader.readline():
                self._take(orjson.loads(line))
        except (OSError, ValueError) as error:  # a line cut short or too long is no message
            _log.warning("channel broken", reason=str(error)[:200])
        finally:
            self.close()
            self._ended.set()

    async def gone(self, *, within_s: float) -> None:
        """Wait until :meth:`run` has read all that an ended process had said."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._ended.wait()

    def say(self, kind: str, body: Any = None) -> None:
        """Tell the other end; a message to nobody is lost."""
        self._write({"kind": kind, "body": body})

    async def ask(self, kind: str, body: Any = None, *, within_s: float) -> Any:
        """The other end's answer.

        Raises:
            ChannelError: it is gone, refused, or took longer than ``within_s``.
        """
        if not self._open:
            raise ChannelError("the other end is gone")
        self._questions += 1
        number = self._questions
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._write({"kind": kind, "id": number, "body": body})
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError:
            raise ChannelError(f"no answer within {within_s:g} s") from None
        finally:
            del self._asked[number]

    async def flush(self) -> None:
        """Wait until all that was said has left this process."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    def close(self) -> None:
        """Hang up. Safe to call twice."""
        self._open = False
        self._writer.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ChannelError("the other end is gone"))

    def _take(self, message: Mapping[str, Any]) -> None:
        if "re" in message:
            answer = self._asked.get(message["re"])
            if answer is None or answer.done():
                return  # nobody waits any more
            if "error" in message:
                answer.set_exception(ChannelError(message["error"]))
            else:
                answer.set_result(message["body"])
        else:
            self._tasks.start(self._handle(message), name=f"channel {message['kind']}")

    async def _handle(self, message: Mapping[str, Any]) -> None:
        reply: dict[str, Any] = {"re": message.get("id")}
        try:
            reply["body"] = await self._handlers[message["kind"]](message["body"])
        except Exception as error:  # noqa: BLE001 - whoever asked must not wait for nothing
            if not isinstance(error, ChannelError):
                _log.exception("message not handled", kind=message["kind"])
            reply["error"] = f"{type(error).__name__}: {error}"[:500]
        if message.get("id") is not None:
            self._write(reply)

    def _write(self, message: Mapping[str, Any]) -> None:
        if not self._open:
            return
        self._writer.write(orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE))
        if self._writer.transport.get_write_buffer_size() > MOST_UNREAD_BYTES:
            self._writer.transport.abort()
            self.close()
