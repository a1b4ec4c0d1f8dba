"""The response of a streamed call while its answer is computed.

It is opened by the first piece of the answer, by a comment of the upstream, or after 10 s of silence:
from then on an error is an event. While the stream waits, comments keep it alive. Each stream has one
timer, which is set anew when it is due: a chunk costs no timer and no task.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Final

from aiohttp import web

from gateway import sse
from gateway.chunks import Comment
from gateway.flights import Tasks
from gateway.pipeline import Boarded, Missed

KEEP_ALIVE_S: float = 10.0
"""The longest silence of a stream that waits. Proxies end a connection after 30 or 60 s of it."""
HEADERS: Final = {
    "Content-Type": sse.CONTENT_TYPE,
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class Live:
    """A stream to one client. ``head`` renders its headers when the answer has not begun.

    :meth:`close` ends it, also when it was never opened.
    """

    __slots__ = (
        "_aside", "_head", "_loop", "_request", "_response", "_speaking", "_tasks", "_timer",
        "_waited", "_writing", "_written_s",
    )  # fmt: skip

    def __init__(
        self,
        request: web.Request,
        tasks: Tasks,
        head: Callable[[Missed, Boarded], Mapping[str, str]],
    ) -> None:
        self._request = request
        self._tasks = tasks
        self._head = head
        self._loop = asyncio.get_running_loop()
        self._aside: list[bytes] = []
        self._response: web.StreamResponse | None = None
        self._speaking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waited: tuple[Missed, Boarded] | None = None
        self._writing = False
        self._written_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether its head is out."""
        return self._response is not None

    def waits(self, missed: Missed, boarded: Boarded) -> None:
        """The answer is waited for on a flight from now on."""
        self._waited = missed, boarded
        boarded.reader.heard = self._heard
        if self._timer is None:
            self._written_s = self._loop.time()
            self._timer = self._loop.call_later(KEEP_ALIVE_S, self._due)

    async def open(self, headers: Mapping[str, str]) -> web.StreamResponse:
        """Send the head, if it is not out yet."""
        if self._response is not None:
            return self._response
        if self._speaking is not None:  # it did not come to run: the comments follow this head
            self._speaking.cancel()
        response = await self._opened(headers)
        if self._aside:
            await self.write(self._taken())
        return response

    async def write(self, data: bytes) -> None:
        """Send whole events or comments. Raises: ConnectionError."""
        assert self._response is not None  # it was opened
        self._written_s = self._loop.time()
        self._writing = True
        await self._response.write(data)
        self._writing = False

    async def tell(self, response: web.StreamResponse) -> web.StreamResponse:
        """Send what is stored, whether the head is out or not."""
        if not isinstance(response, InPortions):
            return await self.end(_as_events(response))
        await self.open(response.headers)
        async for portion in response.portions:
            await self.write(portion)
        return await self.end()

    async def end(self, data: bytes = b"") -> web.StreamResponse:
        """Send what is left, and the end."""
        assert self._response is not None  # it was opened
        self.close()
        await self._response.write_eof(data)
        return self._response

    def close(self) -> None:
        """Say nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._speaking is not None:
            self._speaking.cancel()

    async def _opened(self, headers: Mapping[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, **HEADERS})
        await response.prepare(self._request)
        self._response = response
        return response

    def _due(self) -> None:
        silent_s = self._loop.time() - self._written_s
        if silent_s >= KEEP_ALIVE_S and not self._writing:
            self._say(sse.COMMENT)
        left_s = KEEP_ALIVE_S - silent_s
        self._timer = self._loop.call_later(left_s if left_s > 0 else KEEP_ALIVE_S, self._due)

    def _heard(self, comment: Comment) -> None:
        self._say(comment.text)

    def _say(self, text: bytes) -> None:
        self._aside.append(text)
        if self._speaking is None or self._speaking.done():
            self._speaking = self._tasks.start(self._speak(), name="keep-alive")

    async def _speak(self) -> None:
        with suppress(ConnectionError):  # the handler hears of it, too
            if self._response is None:
                assert self._waited is not None  # what is heard, and the timer, come after it
                await self._opened(self._head(*self._waited))
            while self._aside:
                await self.write(self._taken())

    def _taken(self) -> bytes:
        said = b"".join(self._aside)
        self._aside.clear()
        return said


class InPortions(web.Response):
    """A stored stream that is too long to be told in one turn of the event loop."""

    def __init__(self, portions: AsyncIterator[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(headers=headers)
        self.portions = portions


def _as_events(response: web.StreamResponse) -> bytes:
    """The bytes of a stored answer in a stream whose head is out. A refusal is an error event."""
    assert isinstance(response, web.Response)
    assert isinstance(response.body, bytes)
    if response.content_type == "text/event-stream":
        return response.body
    return b"data: %b\n\n" % response.body
