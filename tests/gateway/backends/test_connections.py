"""What a broken connection costs: nothing if it had been idle in the pool, a try if it was fresh."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from gateway.backends.connections import FRESH_FOR_S, Connector, Requests
from tests.kit.clock import Clock

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Lines:
    """A server that answers a request if ``answers(line, number)``, and else closes its connection.

    ``line`` counts connections, ``number`` the requests of one; both from 0.
    """

    def __init__(self, answers: Callable[[int, int], bool]) -> None:
        self._answers = answers
        self.lines = 0
        self.requests: list[tuple[int, int]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, self.lines = self.lines, self.lines + 1
        number = 0
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                await reader.readexactly(int(length or b"0"))
                self.requests.append((line, number))
                if not self._answers(line, number):
                    return
                writer.write(ANSWER)
                number += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def requests_to(lines: Lines) -> AsyncIterator[tuple[Requests, str, Clock]]:
    server = await asyncio.start_server(lines.serve, "127.0.0.1", 0)
    clock = Clock()
    async with server, aiohttp.ClientSession(connector=Connector(keepalive_s=60)) as session:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        yield Requests(session, clock.monotonic), url, clock


async def post(requests: Requests, url: str) -> bytes:
    async with await requests.send("POST", url, data=b"question") as response:
        return await response.read()


async def test_an_idle_connection_that_the_server_closes_is_replaced_by_a_fresh_one() -> None:
    lines = Lines(lambda _, number: number == 0)
    async with requests_to(lines) as (requests, url, clock):
        for _ in range(3):
            assert await post(requests, url) == b"ok"
            assert await post(requests, url) == b"ok"
            clock.advance(FRESH_FOR_S)
    assert lines.requests[:5] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


async def test_its_fellows_in_the_pool_are_not_tried() -> None:
    dead = asyncio.Event()
    lines = Lines(lambda line, _: line >= 5 or not dead.is_set())
    async with requests_to(lines) as (requests, url, _):
        await asyncio.gather(*(post(requests, url) for _ in range(5)))
        assert lines.lines == 5
        dead.set()
        assert await post(requests, url) == b"ok"
    assert lines.requests[5:] == [(lines.requests[5][0], 1), (5, 0)]


async def test_a_fresh_connection_that_breaks_off_is_not_replaced() -> None:
    lines = Lines(lambda *_: False)
    async with requests_to(lines) as (requests, url, _):
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await post(requests, url)
    assert lines.requests == [(0, 0)]


async def test_after_a_break_no_connection_is_used_again_for_a_while() -> None:
    lines = Lines(lambda line, number: line != 0 and number < 2)
    async with requests_to(lines) as (requests, url, clock):
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await post(requests, url)
        for _ in range(2):
            assert await post(requests, url) == b"ok"
        assert lines.requests == [(0, 0), (1, 0), (2, 0)]
        clock.advance(FRESH_FOR_S)
        assert await post(requests, url) == b"ok"
        assert lines.requests[3][1] == 1


async def test_a_server_that_is_gone_is_asked_once() -> None:
    async with requests_to(Lines(lambda *_: True)) as (requests, url, _):
        with pytest.raises(aiohttp.ClientConnectorError):
            await post(requests, "http://127.0.0.1:1/")
        assert await post(requests, url) == b"ok"
