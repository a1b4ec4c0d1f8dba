"""What a child process writes; ``test_embedded`` has the same with an engine around it."""

import asyncio
import io
import os
import signal
import sys

import pytest

from gateway.backends.child import Child, signal_name

SAYS = "import os; [os.write(2, part) for part in {parts!r}]"


async def said_by(*parts: bytes, as_json: bool) -> tuple[bytes, list[str], str]:
    """What is passed on, what is said, and the last line."""
    output, said = io.BytesIO(), list[str]()
    child = Child(output, said.append if as_json else None)
    await child.spawn((sys.executable, "-c", SAYS.format(parts=parts)), os.environ)
    async with asyncio.timeout(20):
        await child.gone()
    assert child.returncode == 0
    return output.getvalue(), said, child.last_line()


async def test_its_bytes_are_passed_on_but_for_the_line_that_its_parent_logs() -> None:
    parts = (b"\r 10 %\r 20 %", b"\nkvgate engine: no model\n")
    passed, said, last = await said_by(*parts, as_json=False)
    assert passed == b"\r 10 %\r 20 %\n"
    assert said == []
    assert last == "kvgate engine: no model"


async def test_in_json_only_objects_are_passed_on_and_all_else_is_said_by_line() -> None:
    parts = (
        b'{"event": ',
        b'"a"}\nTraceback',
        b" of \x1b[1mthe\x1b[0m last\n\n  File sk-canary-1 {\nend",
    )
    passed, said, last = await said_by(*parts, as_json=True)
    assert passed == b'{"event": "a"}\n'
    assert said == ["Traceback of the last", "  File [redacted] {", "end"]
    assert last == "end"


@pytest.mark.parametrize(("number", "name"), [(signal.SIGKILL, "SIGKILL"), (250, "250")])
def test_a_signal_has_a_name_or_a_number(number: int, name: str) -> None:
    assert signal_name(number) == name
