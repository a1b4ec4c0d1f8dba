"""The line of each request: the fast way writes the same bytes as the plain one."""

import io
import json
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import request_log as module
from gateway.logs import ConsoleLine, Sink
from gateway.request_log import Answered, RequestLog, Visit, console_line, fields
from gateway.tally import MAX_NAME
from policies.keys import Principal
from policies.outcome import Outcome
from tests.kit.entries import asked

CLOCK = "2026-11-22T12:31:05.123+00:00"
OUTCOME = Outcome(key="k", tier="warm")


def answered(
    outcome: Outcome = OUTCOME,
    *,
    model: str = "m",
    tenant: str = "default",
    enabled: bool = True,
    seconds: float = 0.0123,
) -> Answered:
    _, plan = asked(kv_cache=enabled, model=model, principal=Principal(tenant))
    visit = Visit("req-1", "chat", 0.0, plan=plan, outcome=outcome, seconds=seconds)
    return Answered(visit, plan, outcome)


@given(
    model=st.text(min_size=1, max_size=80),
    tenant=st.text(min_size=1, max_size=20),
    enabled=st.booleans(),
    seconds=st.floats(0, 1e6),
    level=st.sampled_from(["none", "prefix", "response", "negative"]),
    backend=st.none() | st.sampled_from(["up", "a b", "\x1b[2J"]),
    why=st.none() | st.sampled_from(["cold", "fingerprint"]),
)
@pytest.mark.parametrize("worker", [None, 3])
@pytest.mark.parametrize("colours", [True, False])
def test_the_fast_console_line_is_the_plain_one(
    *,
    colours: bool,
    worker: int | None,
    model: str,
    tenant: str,
    enabled: bool,
    seconds: float,
    level: Literal["none", "prefix", "response", "negative"],
    backend: str | None,
    why: str | None,
) -> None:
    outcome = replace(OUTCOME, level=level, backend=backend, miss_reason=why, status=404)
    visit = answered(outcome, model=model, tenant=tenant, enabled=enabled, seconds=seconds)
    plain = ConsoleLine(colours=colours, worker=worker)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gateway.logs.timestamp", lambda: CLOCK)
        expected = plain(Sink(io.StringIO(), "kvgate.request"), "info", fields(visit))
    fast = console_line(visit, CLOCK[11:23], plain.severities["info"], f"{plain.end}\n")
    assert fast.encode("utf-8", "backslashreplace") == expected
    assert fast.count("\n") == 1


def test_many_lines_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "timestamp", lambda: CLOCK)
    stream = io.StringIO()
    log = RequestLog("info", "console", stream)
    log.answered([answered(), answered(seconds=1.5)])
    first, second = stream.getvalue().splitlines()
    assert first.startswith("12:31:05.123 info     request 200 none     warm    12.300 id=req-1")
    assert " 1500.000 " in second


def test_as_json_each_line_is_an_object() -> None:
    stream = io.StringIO()
    RequestLog("info", "json", stream).answered([answered(model="x" * 500)] * 2)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["request", "request"]
    assert lines[0]["model"] == "x" * MAX_NAME


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_above_info_nothing_is_written(log_format: Literal["json", "console"]) -> None:
    stream = io.StringIO()
    log = RequestLog("warning", log_format, stream)
    log.answered([answered()])
    log.write([{"event": "left"}])
    assert stream.getvalue() == ""


def test_of_nothing_nothing_is_written() -> None:
    stream = io.StringIO()
    RequestLog("info", "console", stream).answered([])
    assert stream.getvalue() == ""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_of_several_workers_each_line_says_whose_it_is(
    log_format: Literal["json", "console"],
) -> None:
    stream = io.StringIO()
    RequestLog("info", log_format, stream, worker=3).answered([answered()])
    line = stream.getvalue()
    assert line.endswith(" worker=3\n") if log_format == "console" else '"worker":3' in line
