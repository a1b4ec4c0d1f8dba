"""Blocking code beside a gateway in one event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from typer.testing import CliRunner, Result

from gateway import cli

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """What ``work`` returns or raises, while the loop goes on."""
    return await asyncio.to_thread(work)


async def command(*words: str, stdin: str | None = None, **environ: str) -> Result:
    """``kvgate`` with these words, in this process."""

    def run() -> Result:
        return CliRunner().invoke(cli.app, words, input=stdin, env=environ, prog_name="kvgate")

    return await in_thread(run)
