"""Which signals end a process of the gateway; ``test_serve`` sends them to a real one."""

import asyncio
import os
import signal

import pytest

from gateway.stop_signals import on_stop_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_each_of_them_is_heard_by_its_name(number: signal.Signals) -> None:
    heard: asyncio.Queue[signal.Signals] = asyncio.Queue()
    on_stop_signals(heard.put_nowait)
    try:
        os.kill(os.getpid(), number)
        assert await heard.get() is number
    finally:
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(one)


async def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        on_stop_signals(lambda _: pytest.fail("stopped"))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
        for one in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(one)
