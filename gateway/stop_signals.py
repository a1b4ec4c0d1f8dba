"""The signals that end a process of the gateway."""

import asyncio
import signal
import sys
from collections.abc import Callable


def on_stop_signals(asked_to_stop: Callable[[signal.Signals], None]) -> None:
    """Have ``asked_to_stop`` called for SIGINT, SIGTERM and SIGHUP. Under ``nohup`` SIGHUP stays ignored."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    loop = asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, asked_to_stop, number)
