"""A limit on the store's time does not run while our own loop is busy, and ends all the same."""

import asyncio
import time

import pytest

from gateway.flights import Tasks
from gateway.store.store_time import StoreTime

LIMIT_S = 0.01


async def test_what_hangs_is_given_up() -> None:
    with pytest.raises(TimeoutError):
        async with StoreTime(LIMIT_S):
            await asyncio.Event().wait()


async def test_what_is_raised_within_comes_out() -> None:
    with pytest.raises(ValueError, match="within"):
        async with StoreTime(LIMIT_S):
            raise ValueError("within")


async def test_time_in_which_our_own_loop_is_busy_does_not_count() -> None:
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    async with StoreTime(LIMIT_S):
        for _ in range(3):  # turns of the loop that an answer takes to be read
            loop.call_soon(time.sleep, 2 * LIMIT_S)
            await asyncio.sleep(0)
        loop.call_soon(answered.set)
        await answered.wait()


async def test_however_busy_the_loop_is_it_ends() -> None:
    async def busy() -> None:
        while True:
            time.sleep(2 * LIMIT_S)  # noqa: ASYNC251 - that is the point
            await asyncio.sleep(0)

    working = Tasks()
    working.start(busy(), name="busy")
    with pytest.raises(TimeoutError):
        async with StoreTime(LIMIT_S):
            await asyncio.Event().wait()
    await working.close()
