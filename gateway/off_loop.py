"""Work on large bodies, beside the event loop.

One thread for the whole process: a call in C holds Python's lock until it returns, and with two
such threads the loop would wait for both. The work that runs here is made of calls that each take a
few milliseconds (:mod:`policies.json_text`), so that the loop takes its turn in between.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

T = TypeVar("T")

ABOVE_BYTES: Final = 64 * 1024
"""Of JSON text: what is smaller takes less time than the way to another thread and back is worth."""

_thread: Final = ThreadPoolExecutor(1, "kvgate-large")


async def off_loop(size_bytes: int, work: Callable[..., T], *args: Any) -> T:
    """``work(*args)``: at once when ``size_bytes`` is little, else in the thread for large bodies."""
    if size_bytes <= ABOVE_BYTES:
        return work(*args)
    return await asyncio.get_running_loop().run_in_executor(_thread, work, *args)
