"""W3C trace context: what is valid is carried, logged and passed on; what is not is no trace."""

import pytest
from multidict import CIMultiDict

from gateway.trace_context import CURRENT, TraceContext, carried, read
from tests.kit.service import serving

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def headers(*pairs: tuple[str, str]) -> CIMultiDict[str]:
    return CIMultiDict(pairs)


def test_a_valid_trace_is_read_whatever_its_headers_are_called() -> None:
    found = read(headers(("TraceParent", PARENT), ("tracestate", "a=1"), ("Tracestate", "b=2")))
    assert found == TraceContext(PARENT, "a=1,b=2")
    assert found.trace_id == TRACE
    assert found.headers() == {"traceparent": PARENT, "tracestate": "a=1,b=2"}
    assert TraceContext(PARENT).headers() == {"traceparent": PARENT}


@pytest.mark.parametrize(
    "parent",
    [
        f"cc-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-what-the-future-will-bring",
        f" {PARENT} ",
        f"00-{TRACE}-{SPAN}-00",
    ],
)
def test_later_versions_and_unsampled_traces_are_traces(parent: str) -> None:
    found = read(headers(("traceparent", parent)))
    assert found is not None
    assert found.traceparent == parent.strip()


@pytest.mark.parametrize(
    "pairs",
    [
        (),
        (("traceparent", ""),),
        (("traceparent", f"ff-{TRACE}-{SPAN}-01"),),
        (("traceparent", f"00-{'0' * 32}-{SPAN}-01"),),
        (("traceparent", f"00-{TRACE}-{'0' * 16}-01"),),
        (("traceparent", f"00-{TRACE.upper()}-{SPAN}-01"),),
        (("traceparent", f"00-{TRACE}-{SPAN}-01-more"),),
        (("traceparent", f"00-{TRACE}-{SPAN}"),),
        (("traceparent", PARENT), ("traceparent", PARENT)),
        (("traceparent", PARENT + "\x00"),),
    ],
)
def test_what_is_malformed_is_no_trace(pairs: tuple[tuple[str, str], ...]) -> None:
    assert read(headers(*pairs)) is None


@pytest.mark.parametrize("state", ["x" * 513, "a=\x7f", ""])
def test_a_state_that_may_not_be_passed_on_leaves_the_trace_as_it_is(state: str) -> None:
    assert read(headers(("traceparent", PARENT), ("tracestate", state))) == TraceContext(PARENT)


def test_it_is_current_within_the_block_alone() -> None:
    with carried(headers(("traceparent", PARENT))) as trace:
        assert CURRENT.get() == trace == TraceContext(PARENT)
    assert CURRENT.get() is None


async def test_without_spans_a_trace_goes_to_the_backend_as_it_came_and_into_the_log() -> None:
    async with serving() as service:
        sent = {"traceparent": PARENT, "tracestate": "vendor=1"}
        await service.chat(True, headers=sent)
        await service.chat(True, headers=sent)
        await service.chat(True, headers=sent, model="gone")
        await service.chat({"enabled": True, "reuse": False})
        seen = [dict(one.headers) for one in service.upstream.seen]
        assert [one.get("traceparent") for one in seen] == [PARENT, None]
        assert seen[0]["tracestate"] == "vendor=1"
        assert [line.get("trace") for line in service.lines] == [TRACE, TRACE, TRACE, None]
        assert "trace" not in service.lines[-1]


async def test_a_stream_and_a_passed_on_request_carry_it_too() -> None:
    async with serving() as service:
        await service.chat(stream=True, headers={"traceparent": PARENT})
        assert service.upstream.seen[-1].headers["traceparent"] == PARENT
        await service.chat(headers={"traceparent": "nonsense"})
        assert "traceparent" not in service.upstream.seen[-1].headers


async def test_the_operator_may_keep_traces_in_the_house() -> None:
    async with serving(tracing={"pass_on": False}) as service:
        await service.chat(headers={"traceparent": PARENT, "tracestate": "vendor=1"})
        assert not {"traceparent", "tracestate"} & set(service.upstream.seen[-1].headers)
        assert service.lines[-1]["trace"] == TRACE
