"""How streams end and what answers hold, in the shapes that upstreams really send.

Each good answer is asked plain and streamed, is stored, and is replayed in both forms.
"""

import json
from typing import Any

import pytest

from tests.kit.scripted_upstream import (
    DONE,
    EVENTS,
    JSON,
    Reply,
    ScriptedUpstream,
    chat_body,
    chat_events,
    error_reply,
    event,
    stream_reply,
)
from tests.kit.service import Answer, serving
from tests.kit.wire import ASKED, CHUNKS, TEXT, is_answered_anew, last_error


def text_of(answer: Answer) -> str:
    """The content, whatever the upstream calls its only choice."""
    if not answer.headers["Content-Type"].startswith("text/event-stream"):
        return answer.text
    choices = [choice for chunk in answer.chunks for choice in chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def reshaped(old: bytes, new: bytes) -> bytes:
    return b"".join(CHUNKS).replace(old, new)


TAILS = {
    "usual": DONE,
    "one newline": b"data: [DONE]\n",
    "none": b"data: [DONE]",
    "space": b"data: [DONE] \n\n",
    "no space": b"data:[DONE]\n\n",
    "CR": b"data: [DONE]\r\r",
    "CR LF": b"data: [DONE]\r\n\r\n",
    "one CR": b"data: [DONE]\r",
    "tab": b"data:\t[DONE]\n\n",
    "named": b"event: done\ndata: [DONE]\n\n",
    "twice": DONE + DONE,
    "words after it": DONE + b"data: rubbish\n\n",
    "finish_reason and an orderly end": b"",
    "half of DONE": b"data: [DO",
    "usage and an orderly end": event({**ASKED, "choices": [], "usage": {"prompt_tokens": 1}}),
    "a comment": b": bye\n\n" + DONE,
    "an empty event": b"data:\n\n" + DONE,
    "an empty event with a space": b"data: \n\n" + DONE,
}
BODIES = {
    "CR LF": (b"".join(CHUNKS) + DONE).replace(b"\n", b"\r\n"),
    "CR": (b"".join(CHUNKS) + DONE).replace(b"\n", b"\r"),
    "byte order mark": b"\xef\xbb\xbf" + b"".join(CHUNKS) + DONE,
    "byte order mark, comments": b"\xef\xbb\xbf: hi\n\n" + b"".join(CHUNKS) + DONE,
    "comments": b": hi\n\n" + b": ping\n\n".join(CHUNKS) + DONE,
    "no space": reshaped(b"data: ", b"data:") + DONE,
    "index as text": reshaped(b'"index": 0', b'"index": "0"') + DONE,
    "index: null": reshaped(b'"index": 0', b'"index": null') + DONE,
    "empty events": b"data:\n\n".join(CHUNKS) + DONE,
    "ids and retry": b"retry: 5\n\n" + reshaped(b"data: ", b"id: 7\ndata: ") + DONE,
    "named events": reshaped(b"data: ", b"event: message\ndata: ") + DONE,
    "no empty lines": reshaped(b"\n\n", b"\n") + b"data: [DONE]\n",
    "leading empty lines": b"\n\n" + b"".join(CHUNKS) + DONE,
    "null error": reshaped(b'"choices"', b'"error": null, "choices"') + DONE,
    "the last event without an end": b"".join(CHUNKS).rstrip(b"\n"),
    "no DONE, CR LF": b"".join(CHUNKS).replace(b"\n", b"\r\n"),
}
BODIES |= {f"tail: {name}": b"".join(CHUNKS) + tail for name, tail in TAILS.items()}


@pytest.mark.parametrize("stream_first", [False, True])
@pytest.mark.parametrize("name", BODIES)
async def test_a_stream_that_clients_accept_is_a_good_answer_and_stored(
    name: str, stream_first: bool
) -> None:
    reply = stream_reply(BODIES[name])
    async with serving(upstream=ScriptedUpstream(reply)) as service:
        for level, streamed in (
            ("none", stream_first),
            ("response", stream_first),
            ("response", not stream_first),
        ):
            answer = await service.chat(True, stream=streamed)
            assert (answer.status, text_of(answer)) == (200, TEXT)
            assert answer.headers["X-Cache-Level"] == level
            await service.settled()


@pytest.mark.parametrize("name", [name for name in BODIES if "tail" in name or "CR" in name])
async def test_the_bytes_of_a_stream_may_come_one_by_one(name: str) -> None:
    raw = BODIES[name]
    reply = stream_reply(*(raw[at : at + 1] for at in range(len(raw))))
    async with serving(upstream=ScriptedUpstream(reply)) as service:
        answer = await service.chat(True, stream=True)
        assert (answer.status, answer.text) == (200, TEXT)
        await service.settled()
        assert (await service.chat(True)).headers["X-Cache-Level"] == "response"


async def test_a_stream_may_be_cut_into_two_packets_anywhere_near_its_end() -> None:
    for tail in (DONE, b"data: [DONE]\r\n\r\n", b"data: [DONE]"):
        raw = CHUNKS[-1] + tail
        replies = [
            stream_reply(b"".join(CHUNKS[:-1]), raw[:place], raw[place:])
            for place in range(1, len(raw))
        ]
        async with serving(upstream=ScriptedUpstream(*replies)) as service:
            for _ in replies:
                answer = await service.chat(stream=True)
                assert (answer.status, answer.text) == (200, TEXT)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [200, 201, 202, 203])
@pytest.mark.parametrize(
    "content_type",
    [EVENTS, "text/event-stream", "application/json", "text/plain", "application/octet-stream", ""],
)
async def test_an_answer_is_read_by_what_it_is_and_not_by_its_headers(
    content_type: str, status: int, streamed: bool
) -> None:
    stream = Reply((b"".join(CHUNKS), DONE), status, content_type=content_type)
    plain = Reply((b"\n", json.dumps(chat_body(ASKED)).encode()), status, content_type=content_type)
    async with serving(upstream=ScriptedUpstream(stream, plain)) as service:
        for question in ("as a stream?", "at once?"):
            messages = [{"role": "user", "content": question}]
            for level in ("none", "response"):
                answer = await service.chat(True, messages=messages, stream=streamed)
                assert (answer.status, answer.text) == (200, TEXT)
                assert answer.headers["X-Cache-Level"] == level
                await service.settled()
        assert service.upstream.calls == 2


@pytest.mark.parametrize("n", [2, 3])
async def test_a_choice_that_was_asked_for_and_never_began_is_no_orderly_end(n: int) -> None:
    async with serving(upstream=ScriptedUpstream(stream_reply(*CHUNKS))) as service:
        answer = await service.chat(True, stream=True, n=n)
        assert last_error(answer)["code"] == "backend_cut"


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_is_nested_too_deep_is_a_bad_gateway(streamed: bool) -> None:
    for depth in (230, 300, 900, 5000):
        deep = "[" * depth + "]" * depth
        body = json.dumps({**chat_body(ASKED), "x": "deep"}).replace('"deep"', deep)
        async with serving(upstream=ScriptedUpstream(Reply((body.encode(),)))) as service:
            answer = await service.chat(True, stream=streamed)
            assert (answer.status, answer.error["code"]) == (502, "backend_bad_answer")
            await is_answered_anew(service, stream=streamed)


async def test_a_stream_is_refused_its_usage_once_and_asked_without_it_from_then_on() -> None:
    refusal = error_reply(400, "Unrecognized request argument supplied: stream_options")
    async with serving(upstream=ScriptedUpstream(refusal)) as service:
        for question in ("one?", "two?"):
            messages = [{"role": "user", "content": question}]
            answer = await service.chat(True, stream=True, messages=messages)
            assert (answer.status, answer.text) == (200, TEXT)
            await service.settled()
            assert (await service.chat(True, messages=messages)).text == TEXT
        asked_usage = ["stream_options" in seen.body for seen in service.upstream.seen]
        assert asked_usage == [True, False, False]


@pytest.mark.parametrize("status", [400, 422])
async def test_a_client_that_asks_for_the_usage_gets_the_answer_without_it(status: int) -> None:
    refusal = error_reply(status, "extra field", param="stream_options")
    async with serving(upstream=ScriptedUpstream(refusal)) as service:
        for _ in range(2):
            answer = await service.chat(stream=True, stream_options={"include_usage": True})
            assert (answer.status, answer.text) == (200, TEXT)
        assert service.upstream.calls == 3


async def test_a_refusal_of_something_else_is_told_and_teaches_nothing() -> None:
    refusal = error_reply(400, "no such role", param="messages.0.role")
    async with serving(upstream=ScriptedUpstream(refusal)) as service:
        assert (await service.chat(True, stream=True)).error["message"] == "no such role"
        assert service.upstream.calls == 1
        other = [{"role": "user", "content": "other?"}]
        assert (await service.chat(True, stream=True, messages=other)).status == 200
        assert "stream_options" in service.upstream.seen[-1].body


def split_emoji() -> Reply:
    """An emoji whose halves come in two events, as servers that cut a text by code units send it."""
    head = {**ASKED, "object": "chat.completion.chunk"}
    deltas = [{"role": "assistant", "content": "a\ud83d"}, {"content": "\ude00z"}, {}]
    ends = [None, None, "stop"]
    pieces = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}
        for delta, end in zip(deltas, ends, strict=True)
    ]
    return stream_reply(*map(event, pieces), DONE)


async def test_halves_of_a_character_pass_as_they_came_and_are_one_in_the_whole_answer() -> None:
    async with serving(upstream=ScriptedUpstream(split_emoji())) as service:
        live = await service.chat(True, stream=True)
        assert live.status == 200
        contents = [
            json.loads(one)["choices"][0]["delta"].get("content") for one in live.events[:-1]
        ]
        assert contents == ["a\ud83d", "\ude00z", None]
        await service.settled()
        for streamed in (False, True):
            stored = await service.chat(True, stream=streamed)
            assert (stored.headers["X-Cache-Level"], stored.text) == ("response", "a\U0001f600z")
    async with serving(upstream=ScriptedUpstream(split_emoji())) as service:
        plain = await service.chat(True)
        assert (plain.status, plain.text) == (200, "a\U0001f600z")


async def test_half_of_a_character_alone_passes_and_is_no_reason_to_fail() -> None:
    half = reshaped(b"asked", rb"as\ud83dked") + DONE
    for streamed in (True, False):
        async with serving(upstream=ScriptedUpstream(stream_reply(half))) as service:
            answer = await service.chat(True, stream=streamed)
            assert answer.status == 200
            assert rb"\ud83d" in answer.raw
            await service.settled()
            assert (await service.chat(True)).headers["X-Cache-Level"] == "none"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("sent_as_stream", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
async def test_numbers_that_json_has_not_pass_as_they_came_and_are_not_stored(
    number: str, sent_as_stream: bool, streamed: bool
) -> None:
    asked: dict[str, Any] = {"logprobs": True}
    raw = b"".join(chat_events({**ASKED, **asked})) + DONE
    plain = json.dumps(chat_body({**ASKED, **asked})).encode()
    content = (raw if sent_as_stream else plain).replace(b"-0.25", number.encode())
    reply = Reply((content,), content_type=EVENTS if sent_as_stream else JSON)
    async with serving(upstream=ScriptedUpstream(reply)) as service:
        answer = await service.chat(True, stream=streamed, **asked)
        assert answer.status == 200
        assert b'"logprob":%b,' % number.encode() in answer.raw.replace(b": ", b":")
        await service.settled()
        service.upstream.replies.clear()
        again = await service.chat(True, stream=streamed, **asked)
        assert (again.status, again.headers["X-Cache-Level"]) == (200, "none")


async def test_an_error_with_a_number_that_json_has_not_keeps_its_words() -> None:
    raw = b'{"error": {"message": "bad loss", "loss": NaN}}'
    async with serving(upstream=ScriptedUpstream(*[Reply((raw,), 400)] * 2)) as service:
        for _ in range(2):
            answer = await service.chat(True)
            assert answer.status == 400
            assert b"bad loss" in answer.raw
            await service.settled()
