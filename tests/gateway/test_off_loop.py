"""Drill F17: a large body is worked on beside the event loop, in steps, and one at a time.

Nothing here looks at a clock: what may hold the loop is counted, not timed. The times are those of
`python -m loadtest.bench_shapes`.
"""

import io
import threading
from typing import Any

import orjson
import pytest

from gateway import exact_json
from gateway.json_weight import MAX_VALUES
from gateway.off_loop import ABOVE_BYTES, off_loop
from gateway.routes import completions, shape
from policies import call as policies_call
from policies import plan as policies_plan
from tests.gateway.test_pass_through import PATHS
from tests.kit.scripted_upstream import ScriptedUpstream, chat_body, json_reply
from tests.kit.service import QUESTION, serving

Threads = dict[str, set[str]]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    """The threads in which bodies and answers were parsed, planned and written."""
    seen: Threads = {}

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*args: Any, **more: Any) -> Any:
            seen.setdefault(name, set()).add(threading.current_thread().name)
            return real(*args, **more)

        monkeypatch.setattr(owner, name, watched)

    watch(shape, "json_of")
    watch(policies_plan, "canonical")
    watch(exact_json, "dumps_in_steps")
    watch(exact_json, "loads_answer")
    return seen


LARGE = "a line of text\n" * (ABOVE_BYTES // 10)
SHAPES: dict[str, dict[str, Any]] = {
    "text": {"messages": [{"role": "user", "content": LARGE}]},
    "messages": {"messages": QUESTION * 2000},
    "token ids": {"prompt": list(range(20_000))},
    "nested lists": {"messages": QUESTION, "x": [[[]]] * 20_000},
    "members": {"messages": QUESTION, "x": {str(number): 1.0 for number in range(10_000)}},
}


@pytest.mark.parametrize("name", SHAPES)
async def test_a_large_request_is_parsed_planned_and_written_beside_the_loop(
    name: str, threads: Threads
) -> None:
    path = PATHS["completions" if "prompt" in SHAPES[name] else "chat"]
    body = {"model": "m", "kv_cache": {"enabled": True}, **SHAPES[name]}
    async with serving() as service:
        for stored in (False, True):
            answer = await service.send("POST", path, body)
            assert answer.status == 200, answer.raw
            assert (answer.headers["X-Cache-Level"] == "response") is stored
        sent = service.upstream.seen[0].body
    assert sent == {name: value for name, value in body.items() if name != "kv_cache"}
    aside = {"kvgate-large_0"}
    assert {name: threads[name] for name in ("json_of", "canonical", "dumps_in_steps")} == {
        "json_of": aside, "canonical": aside, "dumps_in_steps": aside,
    }  # fmt: skip


async def test_a_large_answer_is_parsed_beside_the_loop(threads: Threads) -> None:
    asked = {"model": "m", "messages": QUESTION}
    async with serving(upstream=ScriptedUpstream(json_reply(chat_body(asked, [LARGE])))) as service:
        assert (await service.chat()).text == LARGE
    assert threads["loads_answer"] == {"kvgate-large_0"}


async def test_a_small_request_never_leaves_the_loop(threads: Threads) -> None:
    async with serving() as service:
        assert (await service.chat({"enabled": True})).status == 200
    main = {threading.current_thread().name}
    assert threads == {"json_of": main, "canonical": main, "loads_answer": main}


async def test_large_and_small_bodies_that_say_the_same_share_an_entry() -> None:
    body = {"model": "m", "kv_cache": {"enabled": True}, "messages": QUESTION, "x": [1.0, 2]}
    raw = orjson.dumps(body)
    spaced = raw.replace(b"[1.0", b" " * ABOVE_BYTES + b"[1")
    async with serving() as service:
        for sent in (raw, spaced):
            assert (await service.send("POST", PATHS["chat"], sent)).status == 200
        assert service.upstream.calls == 1


async def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(threads: Threads) -> None:
    body = orjson.dumps({"model": "m", "messages": QUESTION, "x": [[]] * MAX_VALUES})
    async with serving() as service:
        headers = {"Content-Type": "application/json"}
        url = service.url + PATHS["chat"]
        async with service.session.post(url, data=io.BytesIO(body), headers=headers) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (400, "too_many_values")
        assert str(MAX_VALUES) in error["message"]
    assert threads["json_of"] == {"kvgate-large_0"}


async def test_large_bodies_are_worked_on_one_at_a_time() -> None:
    names = {
        await off_loop(ABOVE_BYTES + 1, lambda: threading.current_thread().name) for _ in range(3)
    }
    assert names == {"kvgate-large_0"}
    assert await off_loop(0, threading.get_ident) == threading.get_ident()


def test_the_loop_has_its_turn_as_often_for_every_size() -> None:
    assert policies_call.ONE_CALL_BYTES == ABOVE_BYTES
    assert completions.MEMO_BODY_BYTES <= ABOVE_BYTES


async def test_a_request_over_a_mebibyte_arrives_whole() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": LARGE * 20}]}
    async with serving() as service:
        raw, headers = orjson.dumps(body), {"Content-Type": "application/json"}
        url = service.url + PATHS["chat"]
        async with service.session.post(url, data=io.BytesIO(raw), headers=headers) as answer:
            assert answer.status == 200
        assert service.upstream.seen[0].body == body
