"""The backend for OpenAI-compatible servers, against a real socket that answers by script."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from gateway.backends.dialects import Dialect, usage_of
from gateway.backends.openai import OpenAIBackend
from gateway.backends.waits import Timeouts
from gateway.chunks import Chunk, Comment, Opening, Piece, Whole, fold
from gateway.errors import BackendFault
from policies.call import Call
from policies.outcome import Completed, Failed, Usage
from policies.plan import Plan
from tests.kit.entries import asked
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import (
    DONE,
    EVENTS,
    WORDS,
    Reply,
    ScriptedUpstream,
    Step,
    chat_events,
    error_reply,
    event,
    json_reply,
    stream_reply,
)

EVENTS_OF_AN_ANSWER = chat_events({"model": "m"})
MIDDLE = b"".join(EVENTS_OF_AN_ANSWER[:3])


@asynccontextmanager
async def backend_at(
    upstream: ScriptedUpstream,
    *,
    dialect: Dialect = "generic",
    api_key: str | None = "sk-operator",
    read_s: float = 30.0,
    locate: Callable[[], str] | None = None,
) -> AsyncIterator[OpenAIBackend]:
    async with aiohttp.ClientSession() as session:
        ticks = iter(range(1000))
        yield OpenAIBackend(
            "up",
            session=session,
            locate=locate or (lambda: upstream.url),
            clock=lambda: next(ticks),
            api_key=api_key,
            dialect=dialect,
            timeouts=Timeouts(read_s=read_s),
        )


async def pieces_of(
    backend: OpenAIBackend, request: tuple[Call, Plan] | None = None
) -> list[Piece]:
    return [piece async for piece in backend.run(*(request or asked()))]


async def answer_to(
    *replies: Reply, request: tuple[Call, Plan] | None = None, **options: Any
) -> tuple[list[Piece], ScriptedUpstream]:
    async with ScriptedUpstream(*replies) as upstream, backend_at(upstream, **options) as backend:
        return await pieces_of(backend, request), upstream


async def failure_of(*replies: Reply, **options: Any) -> Failed:
    pieces, _ = await answer_to(*replies, **options)
    ending = pieces[-1]
    assert isinstance(ending, Failed)
    assert all(isinstance(piece, Opening | Comment | Chunk | Whole) for piece in pieces[:-1])
    return ending


async def test_a_plain_answer_is_passed_on_as_it_is() -> None:
    body = {"choices": [{"index": 0, "finish_reason": "stop", "x": 1}], "usage": None, "y": []}
    pieces, _ = await answer_to(json_reply(body))
    assert pieces[0] == Opening(headers={})
    assert pieces[1] == Whole(body)
    assert pieces[2] == Completed(Usage(), 1.0)


async def test_a_stream_comes_event_by_event_and_folds_to_the_plain_answer() -> None:
    plain, _ = await answer_to()
    streamed, _ = await answer_to(request=asked(stream=True))
    assert isinstance(plain[1], Whole)
    chunks = [piece for piece in streamed if isinstance(piece, Chunk)]
    assert len(chunks) == len(WORDS) + 3
    assert fold(chunks) == plain[1].body
    assert streamed[-1] == Completed(Usage(9, 4, 0), 1.0)


async def test_what_is_sent_is_the_clients_body_and_nothing_of_ours() -> None:
    request = asked(
        kv_cache={"enabled": True, "ttl": 60}, zzz={"deep": [1, None]}, temperature=0.5, user="u"
    )
    _, upstream = await answer_to(request=request)
    seen = upstream.seen[0]
    assert seen.path == "/v1/chat/completions"
    assert seen.body == {**request[0].body, "model": "m"}
    assert "kv_cache" not in seen.body
    assert seen.headers["Authorization"] == "Bearer sk-operator"
    assert not any(name.lower().startswith("x-cache") for name in seen.headers)


async def test_without_an_operators_key_none_is_sent() -> None:
    _, upstream = await answer_to(api_key=None)
    assert "Authorization" not in upstream.seen[0].headers


@pytest.mark.parametrize("endpoint", ["completions", "embeddings"])
async def test_each_endpoint_has_its_path(endpoint: Any) -> None:
    _, upstream = await answer_to(request=asked(endpoint=endpoint, input="x"))
    assert upstream.seen[0].path == f"/v1/{endpoint}"


async def test_a_stream_that_will_be_stored_is_asked_for_its_usage() -> None:
    _, upstream = await answer_to(request=asked(stream=True, stream_options={"other": 1}))
    assert upstream.seen[0].body["stream_options"] == {"other": 1, "include_usage": True}


async def test_a_stream_that_will_not_be_stored_is_passed_on_untouched() -> None:
    _, upstream = await answer_to(request=asked(kv_cache=False, stream=True))
    assert "stream_options" not in upstream.seen[0].body


async def test_our_own_engine_is_told_what_was_decided_and_always_asked_for_a_stream() -> None:
    request = asked(kv_cache={"enabled": True, "tier": "hot", "preload": True})
    pieces, upstream = await answer_to(request=request, dialect="kvgate")
    body = upstream.seen[0].body
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["kv"] == {
        "salt": request[1].salt,
        "priority": "high",
        "ttl_s": 300.0,
        "lane": "warm",
        "reuse": True,
        "floor": "warm",
    }
    assert pieces[-1] == Completed(Usage(9, 4, 0), 1.0)


async def test_what_the_engine_says_about_reuse_is_known_at_the_opening() -> None:
    headers = {"X-KV-Hit-Tokens": "32", "X-KV-Miss-Tokens": "5"}
    pieces, _ = await answer_to(stream_reply(*EVENTS_OF_AN_ANSWER, DONE, headers=headers))
    assert pieces[0] == Opening(headers={}, hit_tokens=32, miss_tokens=5)


async def test_rate_limit_headers_are_passed_back_and_no_others() -> None:
    headers = {
        "X-RateLimit-Remaining": "7",
        "OpenAI-Processing-Ms": "12",
        "Set-Cookie": "a=b",
        "Server": "x",
    }
    pieces, _ = await answer_to(json_reply({}, headers=headers))
    assert isinstance(pieces[0], Opening)
    assert pieces[0].headers == {"X-RateLimit-Remaining": "7", "OpenAI-Processing-Ms": "12"}


CUTS: dict[str, tuple[tuple[Step, ...], str]] = {
    "an orderly end without DONE": ((MIDDLE,), "backend_cut"),
    "FIN": ((MIDDLE, "fin"), "backend_cut"),
    "RST": ((MIDDLE, "rst"), "backend_cut"),
    "half an event": ((MIDDLE, b'data: {"choices": ['), "backend_cut"),
    "half a character": ((MIDDLE, b'data: {"x": "\xc3'), "backend_cut"),
    "no JSON": ((MIDDLE, b"data: oops\n\n", DONE), "backend_bad_answer"),
    "no object": ((MIDDLE, b"data: [1]\n\n", DONE), "backend_bad_answer"),
    "no UTF-8": ((MIDDLE, b'data: {"x": "\xff"}\n\n', DONE), "backend_bad_answer"),
    "choices of a wrong shape": ((MIDDLE, event({"choices": [None]}), DONE), "backend_bad_answer"),
    "an error event": ((MIDDLE, event({"error": {"message": "oops", "code": "x"}})), "x"),
    "a bare error event": ((MIDDLE, event({"error": "oops"}), DONE), "backend_error"),
    "DONE without a finish": ((MIDDLE, DONE), "backend_cut"),
    "DONE and nothing else": ((DONE,), "backend_cut"),
    "nothing at all": ((), "backend_cut"),
    "usage and nothing else": ((event({"choices": [], "usage": {}}), DONE), "backend_cut"),
}


@pytest.mark.parametrize("cut", list(CUTS))
async def test_a_stream_cut_in_mid_air_ends_in_one_failure(cut: str) -> None:
    steps, code = CUTS[cut]
    failure = await failure_of(stream_reply(*steps), request=asked(stream=True))
    assert (failure.code, failure.status, failure.fault) == (code, 502, "backend")


async def test_one_choice_of_two_that_does_not_finish_is_a_cut() -> None:
    events = [one for one in chat_events({"model": "m", "n": 2}) if b'"index": 0' in one]
    head = next(one for one in chat_events({"model": "m", "n": 2}) if b'"index": 1' in one)
    failure = await failure_of(stream_reply(head, *events, DONE))
    assert failure.code == "backend_cut"


async def test_words_after_a_choices_finish_do_not_open_it_again() -> None:
    late = event({"choices": [{"index": 0, "delta": {}, "finish_reason": None}]})
    pieces, _ = await answer_to(stream_reply(*EVENTS_OF_AN_ANSWER, late, DONE))
    assert isinstance(pieces[-1], Completed)


@pytest.mark.parametrize("end", [(), ("fin",), ("rst",)])
async def test_a_stream_is_complete_after_done_or_after_its_finish_and_an_orderly_end(
    end: tuple[Step, ...],
) -> None:
    raw = b"".join(EVENTS_OF_AN_ANSWER) + DONE
    finished_at = len(raw) - len(DONE) - len(b"\n\n")
    told_at = len(raw) - len(b"\n")
    places = sorted({*range(1, len(raw), len(raw) // 30), *range(finished_at - 2, len(raw))})
    replies = [stream_reply(raw[:place], *end) for place in places]
    async with ScriptedUpstream(*replies) as upstream, backend_at(upstream) as backend:
        for place in places:
            pieces = await pieces_of(backend, asked(stream=True))
            whole_from = told_at if end else finished_at
            assert isinstance(pieces[-1], Completed if place >= whole_from else Failed), place
            assert sum(isinstance(piece, Failed | Completed) for piece in pieces) == 1
        assert upstream.calls == len(places) >= 40


@pytest.mark.parametrize("cut", ["fin", "rst"])
async def test_a_connection_lost_before_the_head_is_a_failure(cut: Step) -> None:
    failure = await failure_of(Reply((cut,)))
    assert (failure.code, failure.status) == ("backend_unreachable", 502)
    assert failure.retry_after_s == 1.0


async def test_a_plain_answer_cut_in_the_middle_is_a_failure() -> None:
    failure = await failure_of(Reply((b'{"choices": [', "fin"), headers={"Content-Length": "900"}))
    assert failure.status == 502


@pytest.mark.parametrize("stalled_at", ["head", "first event", "later"])
async def test_silence_beyond_the_limit_is_a_timeout(stalled_at: str) -> None:
    steps: dict[str, tuple[Step, ...]] = {
        "head": (Gate(),),
        "first event": (b": hello\n\n", Gate()),
        "later": (MIDDLE, Gate()),
    }
    failure = await failure_of(stream_reply(*steps[stalled_at]), read_s=0.05)
    assert (failure.code, failure.status, failure.fault) == ("backend_timeout", 504, "backend")


async def test_a_server_that_is_not_there_is_a_failure() -> None:
    async with ScriptedUpstream() as upstream:
        url = upstream.url
    async with backend_at(upstream, locate=lambda: url) as backend:
        pieces = await pieces_of(backend)
        with pytest.raises(BackendFault, match="cannot be reached"):
            await backend.forward("GET", "/models", b"")
    assert len(pieces) == 1
    assert isinstance(pieces[0], Failed)
    assert pieces[0].code == "backend_unreachable"


async def test_a_backend_that_says_it_is_down_fails_as_it_says() -> None:
    def down() -> str:
        raise BackendFault("loading", code="engine_loading", status=503, retry_after_s=2.0)

    failure = await failure_of(locate=down)
    assert (failure.code, failure.status, failure.retry_after_s) == ("engine_loading", 503, 2.0)


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (400, "client"),
        (404, "client"),
        (409, "client"),
        (422, "client"),
        (408, "backend"),
        (429, "backend"),
        (500, "backend"),
        (503, "backend"),
    ],
)
async def test_a_refusal_is_passed_on_with_its_body(status: int, fault: str) -> None:
    reply = error_reply(status, "no", code="why", param="messages")
    failure = await failure_of(reply)
    assert (failure.status, failure.fault, failure.code) == (status, fault, "why")
    assert (failure.message, failure.param) == ("no", "messages")
    assert failure.body == json.loads(b"".join(s for s in reply.steps if isinstance(s, bytes)))


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_the_operators_bad_key_is_not_the_clients_to_mend(status: int) -> None:
    failure = await failure_of(error_reply(status, "Incorrect API key: sk-oper****ator"))
    assert (failure.status, failure.code, failure.fault) == (502, "backend_auth", "backend")
    assert "Incorrect API key" in failure.message
    assert "sk-" not in repr(failure)
    assert "****" not in failure.message


@pytest.mark.parametrize("status", [201, 204, 301, 302, 304])
async def test_an_odd_status_is_a_bad_gateway(status: int) -> None:
    failure = await failure_of(Reply((), status, {"Location": "http://127.0.0.1:1/"}))
    assert (failure.status, failure.fault) == (502, "backend")


@pytest.mark.parametrize("raw", [b"<html>busy</html>", b"{}", b'{"error": "busy"}', b"[]", b""])
async def test_a_refusal_of_another_shape_gets_ours_with_its_words(raw: bytes) -> None:
    failure = await failure_of(Reply((raw,), 503))
    assert (failure.status, failure.code, failure.body) == (503, "backend_refused", None)
    assert failure.message == ("busy" if b"busy" in raw else "up refused the request")


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After-Ms": "1500", "Retry-After": "7"}, 1.5),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "nan"}, None),
        ({}, None),
    ],
)  # fmt: skip
async def test_when_to_come_back_is_passed_on(
    headers: dict[str, str], wait_s: float | None
) -> None:
    assert (await failure_of(error_reply(429, headers=headers))).retry_after_s == wait_s


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"oops", "backend_bad_answer"),
        (b"[]", "backend_bad_answer"),
        (b'{"choices": "none"}', "backend_bad_answer"),
        (b'{"error": {"message": "over quota", "code": 42}}', "42"),
        (b'{"error": "over quota"}', "backend_error"),
    ],
)
async def test_nonsense_or_an_error_under_status_200_is_a_failure(raw: bytes, code: str) -> None:
    failure = await failure_of(Reply((raw,)))
    assert (failure.status, failure.code) == (502, code)
    if failure.body is not None:
        assert failure.body["error"].keys() >= {"message", "type", "param", "code"}


async def test_a_stream_asked_for_may_be_answered_plainly_and_the_reverse() -> None:
    pieces, _ = await answer_to(json_reply({"choices": []}), request=asked(stream=True))
    assert isinstance(pieces[1], Whole)
    pieces, _ = await answer_to(stream_reply(*EVENTS_OF_AN_ANSWER, DONE))
    assert isinstance(pieces[1], Chunk)


async def test_a_server_that_keeps_the_line_open_after_done_holds_up_nobody() -> None:
    gate = Gate()
    reply = stream_reply(*EVENTS_OF_AN_ANSWER, DONE, gate)
    async with ScriptedUpstream(reply) as upstream, backend_at(upstream) as backend:
        running = backend.run(*asked())
        async for piece in running:
            if isinstance(piece, Completed):
                break
        await gate.reached()
        await running.aclose()
        gate.open()


async def test_a_connection_serves_again() -> None:
    async with ScriptedUpstream() as upstream, backend_at(upstream) as backend:
        for stream in (True, False, True):
            await pieces_of(backend, asked(stream=stream))
        assert backend._requests.session.connector is not None
        ports = {seen.headers["Host"] for seen in upstream.seen}
        held = sum(map(len, backend._requests.session.connector._conns.values()))
        assert (len(ports), held) == (1, 1)


async def test_giving_up_ends_the_call_at_the_server() -> None:
    gate = Gate()
    async with (
        ScriptedUpstream(stream_reply(MIDDLE, gate)) as upstream,
        backend_at(upstream) as backend,
    ):
        running = backend.run(*asked(stream=True))
        await anext(running)
        await gate.reached()
        await running.aclose()
        await upstream.seen[0].gone.wait()


async def test_an_event_over_the_size_limit_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sse.MAX_EVENT_BYTES", 1000)
    failure = await failure_of(Reply((b"data: " + b"x" * 2000,), content_type=EVENTS))
    assert failure.status == 502
    assert "size limit" in failure.message


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        ({}, Usage()),
        ({"prompt_tokens": 9, "completion_tokens": 4}, Usage(9, 4, 0)),
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": 8}, Usage(9, 0, 8)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 3}}, Usage(9, 0, 3)),
        ({"prompt_tokens": 9, "prompt_tokens_details": None}, Usage(9, 0, 0)),
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": 99}, Usage(9, 0, 9)),
        ({"prompt_tokens": "9", "completion_tokens": -4}, Usage()),
    ],
)
def test_usage_is_understood_in_both_dialects(said: dict[str, Any], understood: Usage) -> None:
    assert usage_of(said) == understood


async def test_models_are_listed_and_other_requests_passed_on() -> None:
    async with ScriptedUpstream() as upstream, backend_at(upstream) as backend:
        assert await backend.models() == [{"id": "up-1", "object": "model"}]
        answer = await backend.forward("DELETE", "/chat/completions/c-1?x=1", b"")
        assert answer.status == 200
        assert json.loads(answer.body)["path"] == "/chat/completions/c-1?x=1"
        assert answer.headers == {"Content-Type": "application/json"}
        assert upstream.seen[-1].method == "DELETE"
        assert repr(backend) == "<OpenAIBackend up generic>"


async def test_models_that_cannot_be_listed_are_the_backends_fault() -> None:
    async with (
        ScriptedUpstream(error_reply(500), json_reply([])) as upstream,
        backend_at(upstream) as backend,
    ):
        for _ in range(2):
            with pytest.raises(BackendFault):
                await backend.models()


async def test_a_request_passed_on_that_is_not_answered_in_time_is_a_timeout() -> None:
    async with (
        ScriptedUpstream(Reply((Gate(),))) as upstream,
        backend_at(upstream, read_s=0.05) as backend,
    ):
        with pytest.raises(BackendFault) as caught:
            await backend.forward("GET", "/models", b"")
        assert caught.value.status == 504


async def test_only_our_own_engine_is_asked_about_its_kv() -> None:
    async with ScriptedUpstream() as upstream, backend_at(upstream) as foreign:
        assert await foreign.invalidate_kv(None) == 0
        assert await foreign.kv_stats() is None
        assert upstream.calls == 0
    replies = [json_reply({"tokens": 64}), json_reply({"tokens": 0}), json_reply({"blocks": 3})]
    async with (
        ScriptedUpstream(*replies) as upstream,
        backend_at(upstream, dialect="kvgate") as engine,
    ):
        assert await engine.invalidate_kv("ab") == 64
        assert await engine.invalidate_kv(None) == 0
        assert await engine.kv_stats() == {"blocks": 3}
        assert [seen.path for seen in upstream.seen] == ["/kv/invalidate"] * 2 + ["/kv/stats"]
        assert upstream.seen[0].body == {"salt": "ab"}
        assert upstream.seen[1].body == {"all": True}


async def test_a_prompt_is_prefilled_by_the_engine_only() -> None:
    prompt = [{"role": "system", "content": "Be kind."}]
    async with ScriptedUpstream() as upstream, backend_at(upstream) as foreign:
        kept = await foreign.prefill_kv(prompt, salt="ab", priority="high", ttl_s=60)
        assert (kept, upstream.calls) == (0, 0)
    replies = [json_reply({"usage": {"prompt_tokens": 12}}), error_reply(503)]
    async with (
        ScriptedUpstream(*replies) as upstream,
        backend_at(upstream, dialect="kvgate") as engine,
    ):
        assert await engine.prefill_kv(prompt, salt="ab", priority="high", ttl_s=60) == 12
        kv = {"salt": "ab", "priority": "high", "ttl_s": 60, "lane": "warm"}
        assert upstream.seen[0].path == "/kv/prefill"
        assert upstream.seen[0].body == {"messages": prompt, "kv": kv}
        with pytest.raises(BackendFault):
            await engine.prefill_kv(prompt, salt="ab", priority="high", ttl_s=60)


@pytest.mark.parametrize(
    ("dialect", "member"),
    [("vllm", "cache_salt"), ("sglang", "cache_salt"), ("deepseek", "user_id"), ("kvgate", "kv")],
)
async def test_a_call_that_must_not_be_stored_shares_no_prefix_with_any_other(
    dialect: Dialect, member: str
) -> None:
    async with ScriptedUpstream() as upstream, backend_at(upstream, dialect=dialect) as backend:
        for headers in ({"Cache-Control": "no-store"}, {}) * 2:
            await pieces_of(backend, asked(headers=headers))
        salts = [seen.body[member] for seen in upstream.seen]
        named = [salt["salt"] if isinstance(salt, dict) else salt for salt in salts]
        assert named[1] == named[3]
        assert len(set(named)) == 3
