"""What counts as a sign of life, and what is a time-out."""

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest

from gateway.backends.waits import Timeouts, Waits
from gateway.errors import BackendFault

NEVER = 30.0


class Wire:
    """Bytes that come a moment apart, then nothing more."""

    def __init__(self, parts: Sequence[bytes], *, apart_s: float, ends: bool = True) -> None:
        self._parts = list(parts)
        self._apart_s = apart_s
        self._ends = ends

    async def readany(self) -> bytes:
        await asyncio.sleep(self._apart_s)
        if self._parts:
            return self._parts.pop(0)
        if not self._ends:
            await asyncio.Event().wait()
        return b""


def waits(streamed: bool = True, **limits: Any) -> Waits:
    return Waits("up", Timeouts(**{"read_s": NEVER, **limits}), streamed=streamed)


async def received(one: Waits, wire: Any) -> list[bytes]:
    return [part async for part in one.received(wire)]


async def test_what_comes_in_time_comes_whole() -> None:
    parts = [b"a", b"b\n", b"c"]
    assert await received(waits(), Wire(parts, apart_s=0)) == parts
    assert await waits().whole(Wire(parts, apart_s=0)) == b"ab\nc"  # type: ignore[arg-type]  # a wire


async def test_bytes_without_a_line_are_no_sign_of_life() -> None:
    with pytest.raises(BackendFault, match="up did not answer in time") as caught:
        await received(waits(read_s=0.05), Wire([b"x"] * 1000, apart_s=0.005))
    assert (caught.value.code, caught.value.status) == ("backend_timeout", 504)


@pytest.mark.parametrize("sign", [b": waiting\n\n", b"\n", b"data: {}\n\n"])
async def test_each_line_is_a_sign_of_life(sign: bytes) -> None:
    assert len(await received(waits(read_s=0.25), Wire([sign] * 60, apart_s=0.005))) == 60


async def test_silence_is_a_time_out() -> None:
    with pytest.raises(BackendFault) as caught:
        await received(waits(read_s=0.02), Wire([b"x\n"], apart_s=0, ends=False))
    assert caught.value.code == "backend_timeout"


async def test_comments_do_not_put_off_the_first_event() -> None:
    with pytest.raises(BackendFault, match="did not begin") as caught:
        await received(waits(first_token_s=0.05), Wire([b": busy\n\n"] * 1000, apart_s=0.005))
    assert (caught.value.code, caught.value.status) == ("backend_first_token_timeout", 504)


async def test_after_the_first_event_its_limit_is_over() -> None:
    one = waits(first_token_s=0.05)
    one.began()
    assert len(await received(one, Wire([b"x\n"] * 20, apart_s=0.005))) == 20


async def test_an_answer_that_comes_at_once_has_no_first_event() -> None:
    one = waits(streamed=False, first_token_s=0.01)
    assert len(await received(one, Wire([b"x\n"] * 10, apart_s=0.005))) == 10


async def test_the_head_must_come_within_the_limit_of_the_first_event() -> None:
    never: asyncio.Future[aiohttp.ClientResponse] = asyncio.get_running_loop().create_future()
    with pytest.raises(BackendFault) as caught:
        await waits(first_token_s=0.01).head(never)
    assert caught.value.code == "backend_first_token_timeout"
    assert never.cancelled()


async def test_a_time_out_of_the_connection_itself_stays_what_it_is() -> None:
    async def connects() -> aiohttp.ClientResponse:
        raise aiohttp.ConnectionTimeoutError

    with pytest.raises(aiohttp.ConnectionTimeoutError):
        await waits(first_token_s=NEVER).head(connects())


async def test_a_reader_that_is_cancelled_is_cancelled() -> None:
    task = asyncio.ensure_future(received(waits(first_token_s=NEVER), Wire([], apart_s=NEVER)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def flowing(one: Waits, wire: Any, *, flows: bool = True) -> int:
    count = 0
    async for _ in one.received(wire):
        one.began(flows=flows)
        count += 1
    return count


async def test_a_stream_that_flows_may_be_silent_for_a_shorter_time() -> None:
    wire = Wire([b"data: {}\n\n"], apart_s=0, ends=False)
    with pytest.raises(BackendFault) as caught:
        await flowing(waits(idle_s=0.02), wire)
    assert (caught.value.code, caught.value.cause) == ("backend_timeout", "silent")


async def test_until_it_flows_the_longer_limit_holds() -> None:
    wire = Wire([b"data: {}\n\n"] * 3, apart_s=0.02)
    assert await flowing(waits(idle_s=0.001), wire, flows=False) == 3


async def test_no_silence_is_longer_than_the_limit_for_reading() -> None:
    with pytest.raises(BackendFault):
        await flowing(waits(read_s=0.02, idle_s=NEVER), Wire([b"x\n"], apart_s=0, ends=False))
