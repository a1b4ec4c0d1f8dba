"""Log lines: readable, machine-readable, and silent about secrets."""

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from gateway.logs import Bridge, LogFormat, Sink, configure, escaped, redacted


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level
    yield
    structlog.reset_defaults()
    for handler in [known for known in root.handlers if isinstance(known, Bridge)]:
        root.removeHandler(handler)
    root.setLevel(before)


def lines(
    log_format: LogFormat, write: Any, *, level: str = "info", name: str = "kvgate.test"
) -> list[str]:
    stream = io.StringIO()
    configure(level, log_format, stream)
    write(structlog.get_logger(name))
    return stream.getvalue().splitlines()


def test_json_is_one_object_per_line_with_the_fields_given() -> None:
    (line,) = lines("json", lambda log: log.info("request", id="r1", level="response", ms=0.4))
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found.pop("ts"))
    assert found == {
        "severity": "info", "logger": "kvgate.test", "event": "request",
        "id": "r1", "level": "response", "ms": 0.4,
    }  # fmt: skip


def test_a_request_has_aligned_columns_on_the_console() -> None:
    def write(log: Any) -> None:
        log.info("request", id="a", status=200, level="response", tier="hot", ms=0.4123)
        log.info("request", id="b", status=200, level="none", tier=None, ms=1234.5)
        log.info("request", id="c", ms=7.0)

    found = lines("console", write, name="kvgate.request")
    assert [line[13:] for line in found] == [
        "info     request 200 response hot      0.412 id=a",
        "info     request 200 none     -     1234.500 id=b",
        "info     request   - -        -        7.000 id=c",
    ]


def test_lines_below_the_level_are_not_written() -> None:
    def write(log: Any) -> None:
        log.debug("a")
        log.info("b")
        log.warning("c")
        log.error("d")

    assert [json.loads(line)["event"] for line in lines("json", write, level="warning")] == [
        "c",
        "d",
    ]


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_value_cannot_forge_a_line_or_move_the_cursor(log_format: LogFormat) -> None:
    evil = 'x\n{"level":"fatal"}\r\x1b[2J\x07\x7f\x9b1m\u2028\u202eabc\udc80'
    (line,) = lines(log_format, lambda log: log.warning(evil, model=evil))
    assert line.isprintable()
    if log_format == "json":
        assert json.loads(line)["model"] == evil


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_other_scripts_stay_readable(log_format: LogFormat) -> None:
    (line,) = lines(log_format, lambda log: log.info("a", model="模型-é"))
    assert "模型-é" in line


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize(
    "name", ["prompt", "messages", "api_key", "authorization", "token", "body"]
)
def test_fields_named_like_secrets_or_text_are_never_written(
    log_format: LogFormat, name: str
) -> None:
    (line,) = lines(log_format, lambda log: log.error("a", **{name: "canary"}))
    assert "canary" not in line
    assert name in line


def test_an_exception_is_a_field_and_lines_on_the_console_with_keys_cut_out() -> None:
    def write(log: Any) -> None:
        try:
            raise ValueError("bad\x1b key sk-canary-canary")
        except ValueError as error:
            log.exception("failed", n=1)
            log.error("again", exc_info=error)
            log.error("thrice", exc_info=sys.exc_info())  # noqa: G201  # both forms are in use
        log.error("nothing was raised", exc_info=True)  # noqa: LOG014  # on purpose

    found = [json.loads(line) for line in lines("json", write)]
    for line in found[:3]:
        assert line["exception"].endswith("ValueError: bad\x1b key [redacted]\n")
    assert found[3]["exception"] == "unknown"
    console = lines("console", write)
    assert all(line.isprintable() for line in console)
    assert "canary-canary" not in "".join(console).replace('sk-canary-canary")', "")


def test_libraries_log_in_our_format_with_keys_cut_out() -> None:
    def write(_: Any) -> None:
        logging.getLogger("aiohttp.server").error("key %s", "Bearer canary")
        logging.getLogger("aiohttp.server").info("chatter")
        logging.getLogger("broken").error("%d", "no number")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "raiseExceptions", False)
        (line,) = lines("json", write)
    found = json.loads(line)
    assert (found["logger"], found["severity"]) == ("aiohttp.server", "error")
    assert found["event"] == "key [redacted]"


def test_configuring_again_leaves_one_bridge() -> None:
    configure("info", "json", io.StringIO())
    configure("debug", "json", io.StringIO())
    assert sum(isinstance(handler, Bridge) for handler in logging.getLogger().handlers) == 1
    assert logging.getLogger().level == logging.INFO


def test_values_of_any_kind_are_written() -> None:
    def write(log: Any) -> None:
        log.info("a", b=b"x", s={1}, n=None, e=ValueError("v"), t=(1, 2))

    (line,) = lines("json", write)
    assert json.loads(line)["e"] == "ValueError('v')"
    (line,) = lines("console", write)
    assert "n=" not in line
    assert 't="(1, 2)"' in line


def test_a_closed_log_fails_nobody() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    log = structlog.get_logger()
    stream.close()
    log.info("nobody hears")


def test_a_terminal_gets_colours_and_a_file_does_not() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    configure("info", "console", stream)
    structlog.get_logger().warning("a")
    assert "\x1b[33mwarning \x1b[0m" in stream.getvalue()
    (line,) = lines("console", lambda log: log.warning("a"))
    assert "\x1b" not in line


def test_lines_reach_a_real_stream_at_once() -> None:
    code = (
        "import os, sys, structlog; from gateway.logs import configure;"
        "configure('info', 'json', sys.stderr); structlog.get_logger('x').info('here'); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert json.loads(done.stderr)["event"] == "here"


STRAY = """
import os, sys, threading, warnings
from gateway.logs import catch_stray, configure
catch_stray()
configure("info", "json", sys.stderr)

class Broken:
    def __del__(self): raise ValueError("in a destructor")

Broken()
warnings.warn("an old name")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("the end")
"""


def test_what_python_would_write_itself_is_logged() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRAY], capture_output=True, check=False, text=True
    )
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [line.get("where") for line in said] == ["destructor", None, "thread", "process"]
    assert [line["severity"] for line in said] == ["critical", "warning", "critical", "critical"]
    assert "an old name" in said[1]["event"]
    assert said[3]["exception"].endswith("RuntimeError: the end\n")


def test_without_a_log_python_writes_as_it_does() -> None:
    code = "from gateway.logs import catch_stray; catch_stray(); 1 / 0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.stderr.startswith("Traceback")


def test_helpers() -> None:
    assert redacted("Authorization: Bearer abc.def rest") == "Authorization: [redacted] rest"
    assert redacted("api_key=abcdef x") == "[redacted] x"
    assert escaped("plain") == "plain"
    assert escaped("\U0001f600\n") == "\U0001f600\\n"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_of_several_workers_each_line_says_whose_it_is(log_format: LogFormat) -> None:
    stream = io.StringIO()
    configure("info", log_format, stream, worker=3)
    structlog.get_logger("kvgate.test").info("a", n=1)
    (line,) = stream.getvalue().splitlines()
    if log_format == "json":
        assert json.loads(line)["worker"] == 3
    else:
        assert line.endswith(" a n=1 worker=3")


class Writes(io.RawIOBase):
    """What was written at once."""

    def __init__(self) -> None:
        self.portions: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.portions.append(bytes(data))
        return len(data)


@pytest.mark.parametrize(
    ("lengths", "portions"),
    [
        ((10, 10), [20]),
        ((4096,), [4096]),
        ((4000, 50, 100), [4050, 100]),
        ((10, 9000, 10), [10, 9000, 10]),
        ((9000,), [9000]),
    ],
)
def test_lines_of_several_processes_do_not_run_into_each_other(
    lengths: tuple[int, ...], portions: list[int]
) -> None:
    raw = Writes()
    stream = io.TextIOWrapper(io.BufferedWriter(raw, buffer_size=2**16))
    Sink(stream).msg(b"".join(b"x" * (length - 1) + b"\n" for length in lengths))
    assert [len(portion) for portion in raw.portions] == portions


def test_a_long_line_without_an_end_is_written_too() -> None:
    raw = Writes()
    stream = io.TextIOWrapper(io.BufferedWriter(raw, buffer_size=2**16))
    Sink(stream).msg(b"x" * 5000)
    assert raw.portions == [b"x" * 5000]
