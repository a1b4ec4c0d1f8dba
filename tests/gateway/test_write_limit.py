"""Clients that stop reading are dropped, and hold neither memory nor others until then."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from gateway.chunks import Chunk, Opening, Piece
from gateway.flights import MAX_UNREAD_BYTES, Flights, Tasks
from gateway.write_limit import LOOKS, WriteLimit
from policies.outcome import Completed, Usage
from tests.kit.scripted_upstream import (
    DONE,
    Reply,
    ScriptedUpstream,
    event,
    json_reply,
    stream_reply,
)
from tests.kit.service import QUESTION, Service, serving

LIMIT_S = 30.0
WORD = "x" * 32_000
HEAVY = event({"choices": [{"index": 0, "delta": {"content": WORD}, "finish_reason": None}]})
END = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
MANY = 700  # 22 MB: more than all the buffers of two sockets


class Line:
    """A connection as the limit sees it."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.closing = False
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.size

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = True


def looked(*sizes: int) -> bool:
    """Whether a connection is dropped in which these many bytes wait, looked at all 5 s."""
    limit, line = WriteLimit(LIMIT_S), Line()
    limit.watch(line)  # type: ignore[arg-type]  # what is asked of a transport
    for look, size in enumerate(sizes):
        line.size = size
        limit.look(100.0 + look * LIMIT_S / LOOKS)
    limit.close()
    return line.aborted


async def test_a_client_that_reads_nothing_for_the_limit_is_dropped() -> None:
    assert looked(*[9] * (LOOKS + 1))
    assert not looked(*[9] * LOOKS)


async def test_a_client_that_reads_a_little_is_kept() -> None:
    assert not looked(*range(99, 9, -1))
    assert not looked(*[9] * LOOKS, 8, *[8] * (LOOKS - 1))
    assert looked(*[9] * LOOKS, 8, *[8] * LOOKS)


async def test_an_idle_connection_is_kept_and_what_is_sent_late_has_its_own_time() -> None:
    assert not looked(*[0] * 50)
    assert not looked(*[0] * 50, *[9] * LOOKS)
    assert not looked(*[9] * LOOKS, 0, *[9] * LOOKS)


async def test_bytes_that_are_added_are_no_sign_of_reading() -> None:
    assert looked(*range(9, 9 + LOOKS + 1))


async def test_a_closed_connection_is_forgotten() -> None:
    limit, line = WriteLimit(LIMIT_S), Line()
    limit.watch(line)  # type: ignore[arg-type]  # what is asked of a transport
    limit.watch(None)
    assert repr(limit) == "<WriteLimit 30 s, 1 connections>"
    line.closing = True
    limit.look(1.0)
    assert repr(limit) == "<WriteLimit 30 s, 0 connections>"
    limit.close()


class Endless:
    """Work that never ends, and how many bytes of it were made."""

    def __init__(self) -> None:
        self.bytes = 0

    async def __call__(self) -> Any:
        yield Opening({})
        while True:
            await asyncio.sleep(0)
            self.bytes += 1000
            yield Chunk({}, 1000)


async def turns(count: int = 1000) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_work_is_never_further_ahead_of_its_fastest_reader_than_its_room() -> None:
    tasks, work = Tasks(), Endless()
    flight = Flights(tasks).start(b"k", work)
    readers = [flight.read() for _ in range(3)]
    await turns()
    assert MAX_UNREAD_BYTES < work.bytes <= MAX_UNREAD_BYTES + 1000
    batches = readers[0].batches()
    read_bytes = sum(piece.size_bytes for piece in await anext(batches) if isinstance(piece, Chunk))
    await turns()
    assert read_bytes + MAX_UNREAD_BYTES < work.bytes <= read_bytes + MAX_UNREAD_BYTES + 1000
    stopped_at = work.bytes
    readers[0].close()
    readers[1].close()
    await turns()
    assert work.bytes == stopped_at  # the last one reads nothing
    readers[2].close()
    await turns(9)
    assert flight.abandoned
    assert flight.ended
    await tasks.close()


async def test_work_that_ends_without_readers_never_waits_for_one() -> None:
    async def work() -> Any:
        for _ in range(500):
            yield Chunk({}, 1000)
        yield Completed(Usage(), 0.0)

    tasks = Tasks()
    flights = Flights(tasks)
    flight = flights.start(b"k", work, finish_alone=True)
    reader = flight.read()
    await turns(9)
    assert flight.task is not None
    assert not flight.task.done()
    reader.close()
    await turns(9)
    assert flight.task.done()
    pieces: list[Piece] = [piece async for piece in flight.read()]
    assert len(pieces) == 501
    await tasks.close()


async def test_work_that_is_read_once_holds_nothing_of_what_was_read() -> None:
    async def work() -> Any:
        yield Opening({})
        for number in range(500):
            yield Chunk({"number": number}, 1000)
        yield Completed(Usage(), 0.0)

    tasks = Tasks()
    flight = Flights(tasks).start(None, work, once=True)
    numbers = []
    async for pieces in flight.read().batches():
        numbers += [piece.data["number"] for piece in pieces if isinstance(piece, Chunk)]
        held = sum(piece.size_bytes for piece in flight.pieces if isinstance(piece, Chunk))
        assert held <= MAX_UNREAD_BYTES + 1000
    assert numbers == list(range(500))
    with pytest.raises(AssertionError, match="gone"):
        flight.read()
    await tasks.close()


def heavy(chunks: int = MANY) -> Reply:
    return stream_reply(*[HEAVY] * chunks, END, DONE)


def request(service: Service, **body: Any) -> tuple[tuple[str, int], bytes]:
    raw = orjson.dumps({"model": "m", "messages": QUESTION, **body})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    host, _, port = service.url.removeprefix("http://").partition(":")
    return (host, int(port)), head.encode() + raw


class Deaf:
    """A client that sends a request and reads nothing. Its kernel holds little for it."""

    def __init__(self, service: Service, **body: Any) -> None:
        self._address, self._request = request(service, **body)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)

    async def ask(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, self._address)
        await loop.sock_sendall(self._socket, self._request)

    async def read(self) -> int:
        """How many bytes were sent to it before its connection ended."""
        loop, size = asyncio.get_running_loop(), 0
        try:
            while data := await loop.sock_recv(self._socket, 2**20):
                size += len(data)
        except ConnectionError:
            pass
        return size

    def close(self) -> None:
        self._socket.close()


async def watched(service: Service, count: int) -> None:
    """Wait until so many connections are looked at."""
    while f" {count} connections" not in repr(service.gateway.writes):  # noqa: ASYNC110 - the limit tells nobody
        await asyncio.sleep(0.01)


@pytest.fixture
def deaf() -> Iterator[list[Deaf]]:
    """Clients, closed at the end."""
    clients: list[Deaf] = []
    yield clients
    for one in clients:
        one.close()


@pytest.mark.parametrize("kv_cache", [False, True])
async def test_a_stream_reader_that_stops_is_dropped_and_its_work_is_ended(
    kv_cache: bool, deaf: list[Deaf]
) -> None:
    upstream = ScriptedUpstream(heavy())
    async with serving(upstream=upstream, server={"write_timeout": 0.3}) as service:
        deaf.append(Deaf(service, stream=True, kv_cache=kv_cache))
        await deaf[0].ask()
        await upstream.called(1)
        await upstream.seen[0].gone.wait()
        assert await deaf[0].read() < MANY * len(HEAVY)
        assert len(service.gateway.flights) == 0


async def test_a_reader_that_stops_does_not_hold_up_the_others_of_its_flight(
    deaf: list[Deaf],
) -> None:
    async with serving(
        upstream=ScriptedUpstream(heavy()),
        server={"write_timeout": 0.3},
        limits={"max_entry_bytes": "64MiB"},
        tiers={"cold": {"max_bytes": "256MiB"}},
    ) as service:
        deaf += [Deaf(service, stream=True, kv_cache=True) for _ in range(3)]
        for one in deaf:
            await one.ask()
        await service.readers(3)
        answer = await service.chat(True, stream=True)
        assert answer.text == WORD * MANY
        assert service.upstream.calls == 1


async def test_the_reader_of_a_stored_or_plain_answer_is_dropped_as_well(deaf: list[Deaf]) -> None:
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": WORD * MANY},
                         "finish_reason": "stop"}]}  # fmt: skip
    async with serving(
        upstream=ScriptedUpstream(json_reply(body)),
        server={"write_timeout": 0.2},
        limits={"max_entry_bytes": "64MiB"},
        tiers={"cold": {"max_bytes": "256MiB"}},
    ) as service:
        await service.chat(True)
        await service.settled()
        deaf += [Deaf(service, stream=stream, kv_cache=True) for stream in (False, True)]
        for one in deaf:
            await one.ask()
        await watched(service, 3)
        await watched(service, 1)
        for one in deaf:
            assert await one.read() < MANY * len(WORD)
