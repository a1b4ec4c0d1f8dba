"""What an answer looks like, as a stream and as a whole."""

import threading
from typing import Any

import pytest

from tests.kit.scripted_service import CHAT, COMPLETIONS, chat, contents, scripted, stream


async def test_a_chat_is_answered_in_openais_shape() -> None:
    async with scripted() as one:
        response = await one.post(CHAT, chat("hi"))
        body = await response.json()
        assert body.pop("id").startswith("chatcmpl-")
        assert body.pop("kv_receipt")["computed"] == 19
        assert body == {
            "object": "chat.completion",
            "created": 1_000_000,
            "model": "scripted",
            "system_fingerprint": "fp_0123456789",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello, you.", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 19,
                "completion_tokens": 11,
                "total_tokens": 30,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0},
                "prompt_cache_hit_tokens": 0,
                "prompt_cache_miss_tokens": 19,
            },
        }
        assert response.headers["X-KV-Hit-Tokens"] == "0"
        assert response.headers["X-KV-Miss-Tokens"] == "19"
        assert response.headers["X-Request-ID"]


async def test_the_second_equal_chat_reports_what_it_found() -> None:
    async with scripted() as one:
        await one.post(CHAT, chat("hi"))
        response = await one.post(CHAT, chat("hi"), headers={"X-Request-ID": "mine"})
        usage = (await response.json())["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 16
        assert (usage["prompt_cache_hit_tokens"], usage["prompt_cache_miss_tokens"]) == (16, 3)
        assert response.headers["X-KV-Hit-Tokens"] == "16"
        assert response.headers["X-Request-ID"] == "mine"
        other = await one.post(CHAT, chat("hi", kv={"salt": "s"}))
        assert other.headers["X-KV-Hit-Tokens"] == "0"


async def test_a_stream_says_role_content_end_and_done() -> None:
    async with scripted() as one:
        chunks = await stream(one, CHAT, chat())
        choices = [chunk["choices"][0] for chunk in chunks]
        assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert contents(chunks) == "Hello, you."
        assert choices[-1]["delta"] == {}
        assert [choice["finish_reason"] for choice in choices] == [None] * 12 + ["stop"]
        assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert all("usage" not in chunk for chunk in chunks)


async def test_usage_comes_last_in_a_stream_that_asks_for_it() -> None:
    async with scripted() as one:
        body = chat(stream_options={"include_usage": True})
        chunks = await stream(one, CHAT, body)
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        assert chunks[-1]["choices"] == []
        plain = await (await one.post(CHAT, chat(kv={"reuse": False}))).json()
        assert chunks[-1]["usage"] == plain["usage"]


@pytest.mark.parametrize(
    "more",
    [{}, {"n": 3}, {"stop": "you"}, {"max_tokens": 4}, {"logprobs": True, "top_logprobs": 2}],
)
async def test_a_plain_answer_is_the_fold_of_its_stream(more: dict[str, Any]) -> None:
    async with scripted() as one:
        plain = await (await one.post(CHAT, chat(**more))).json()
        chunks = await stream(one, CHAT, chat(**more))
        for choice in plain["choices"]:
            index = choice["index"]
            assert contents(chunks, index) == choice["message"]["content"]
            own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
            assert own[-1]["finish_reason"] == choice["finish_reason"]
            assert [c["finish_reason"] for c in own].count(None) == len(own) - 1
            shown = [t for c in own if c["logprobs"] for t in c["logprobs"]["content"]]
            assert shown == ((choice["logprobs"] or {}).get("content") or [])


async def test_a_stop_string_cuts_and_ends_the_generation() -> None:
    async with scripted() as one:
        one.runner.gate = threading.Semaphore(8)
        body = await (await one.post(CHAT, chat(stop=["lo, y", "zzz"]))).json()
        choice = body["choices"][0]
        assert choice["message"]["content"] == "Hel"
        assert choice["finish_reason"] == "stop"
        assert body["usage"]["completion_tokens"] == 8
        one.runner.gate.release(2)
        assert await one.engine.ask(lambda scheduler: scheduler.busy) is False
        assert len(one.runner.schedules) <= 8 + 1


async def test_the_length_limit_is_named_as_the_end() -> None:
    async with scripted() as one:
        for limit in ({"max_tokens": 5}, {"max_completion_tokens": 5}):
            body = await (await one.post(CHAT, chat() | limit)).json()
            assert body["choices"][0]["message"]["content"] == "Hello"
            assert body["choices"][0]["finish_reason"] == "length"


async def test_the_answer_may_be_as_long_as_there_is_room_when_nothing_is_said() -> None:
    async with scripted(max_model_len=25) as one:
        body = await (await one.post(CHAT, chat())).json()
        assert body["usage"]["total_tokens"] == 25
        assert body["choices"][0]["finish_reason"] == "length"


async def test_half_characters_are_never_sent() -> None:
    async with scripted() as one:
        one.runner.says = "5 € 🙂"
        chunks = await stream(one, CHAT, chat())
        pieces = [c["choices"][0]["delta"].get("content") for c in chunks]
        assert [piece for piece in pieces if piece] == ["5", " ", "€", " ", "🙂"]


async def test_choices_share_the_prompt_which_is_computed_and_counted_once() -> None:
    async with scripted() as one:
        body = await (await one.post(CHAT, chat("hi", n=3))).json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert body["usage"]["prompt_tokens"] == 19
        assert body["usage"]["completion_tokens"] == 33
        assert body["usage"]["prompt_cache_hit_tokens"] == 0
        prompt_rows = one.runner.rows_computed - 3 * 11
        assert prompt_rows == 19 + 2 * 3, "the others find all but the last block"


async def test_logprobs_have_openais_chat_shape() -> None:
    async with scripted() as one:
        body = await (await one.post(CHAT, chat(logprobs=True, top_logprobs=2))).json()
        content = body["choices"][0]["logprobs"]["content"]
        assert "".join(entry["token"] for entry in content) == "Hello, you."
        assert content[1] == {
            "token": "e",
            "logprob": -2.0,
            "bytes": [101],
            "top_logprobs": [
                {"token": "e", "logprob": -2.0, "bytes": [101]},
                {"token": "A", "logprob": -9.0, "bytes": [65]},
            ],
        }
        body = await (await one.post(CHAT, chat(logprobs=True))).json()
        assert body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_tokens_of_a_stop_string_have_no_logprobs() -> None:
    async with scripted() as one:
        body = await (await one.post(CHAT, chat(logprobs=True, stop="lo"))).json()
        content = body["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in content] == ["H", "e", "l"]


async def test_tools_reach_the_template_unless_none_are_to_be_used() -> None:
    async with scripted() as one:
        tools = [{"type": "function", "function": {"name": "f"}}]
        count = {}
        for choice in (None, "auto", "none"):
            body = chat(tools=tools, tool_choice=choice)
            count[choice] = (await (await one.post(CHAT, body)).json())["usage"]["prompt_tokens"]
        assert count[None] == count["auto"] == count["none"] + len("(1 tools)")


async def test_completions_take_text_lists_and_token_ids() -> None:
    async with scripted() as one:
        for prompt, tokens, choices in [
            ("abc", 3, 1),
            (["abc", "de"], 5, 2),
            ([98, 99, 100], 3, 1),
            ([[98, 99], [100], [101]], 4, 3),
        ]:
            body = await (await one.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 5})).json()
            assert body["object"] == "text_completion"
            assert body["id"].startswith("cmpl-")
            assert body["usage"]["prompt_tokens"] == tokens
            assert [choice["text"] for choice in body["choices"]] == ["Hello"] * choices
            assert [choice["index"] for choice in body["choices"]] == list(range(choices))


async def test_completions_default_to_sixteen_tokens() -> None:
    async with scripted() as one:
        one.runner.says = "x" * 50
        body = await (await one.post(COMPLETIONS, {"prompt": "abc"})).json()
        assert body["choices"][0]["text"] == "x" * 16


async def test_choices_are_ordered_by_prompt_and_then_by_number() -> None:
    async with scripted() as one:
        body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 2, "echo": True}
        answer = await (await one.post(COMPLETIONS, body)).json()
        assert [c["text"] for c in answer["choices"]] == ["aHe", "aHe", "bHe", "bHe"]


async def test_echo_with_logprobs_scores_the_prompt() -> None:
    async with scripted() as one:
        await one.post(COMPLETIONS, {"prompt": "abcdefghij"})  # what is known must not matter
        body = {"prompt": "abcdefghij", "max_tokens": 2, "echo": True, "logprobs": 1}
        choice = (await (await one.post(COMPLETIONS, body)).json())["choices"][0]
        logprobs = choice["logprobs"]
        assert choice["text"] == "abcdefghijHe"
        assert "".join(logprobs["tokens"]) == choice["text"]
        assert logprobs["text_offset"] == list(range(12))
        assert logprobs["token_logprobs"][:3] == [None, -2.0, -3.0]
        assert logprobs["token_logprobs"][-2:] == [-1.0, -2.0]
        assert logprobs["top_logprobs"][1] == {"b": -2.0}


async def test_a_prompt_can_be_scored_without_generating() -> None:
    async with scripted() as one:
        body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0}
        choice = (await (await one.post(COMPLETIONS, body)).json())["choices"][0]
        assert choice["text"] == "abc"
        assert choice["finish_reason"] == "length"
        assert len(choice["logprobs"]["tokens"]) == 3


async def test_a_completion_stream_is_text_chunks() -> None:
    async with scripted() as one:
        chunks = await stream(one, COMPLETIONS, {"prompt": "abc", "echo": True})
        assert contents(chunks) == "abcHello, you."
        assert chunks[-1]["choices"][0] == {
            "index": 0,
            "text": "",
            "logprobs": None,
            "finish_reason": "stop",
        }


HALVES = [byte + 1 for byte in (*range(0xF1, 0xF5), *range(0xA0, 0xB0))]


async def test_alternatives_are_told_apart_by_their_tokens_and_not_by_their_text() -> None:
    async with scripted() as one:
        one.runner.says = "🙂"
        one.runner.rivals = HALVES
        body = {"prompt": "abc", "max_tokens": 4, "logprobs": 20}
        choice = (await (await one.post(COMPLETIONS, body)).json())["choices"][0]
        assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [20] * 4
        assert choice["logprobs"]["tokens"][0] == "bytes:\\xf0"
        assert choice["logprobs"]["top_logprobs"][1]["bytes:\\x9f"] == -2.0
        assert choice["logprobs"]["text_offset"] == [0, 0, 0, 0]
        asked = chat(max_tokens=4, logprobs=True, top_logprobs=20)
        choice = (await (await one.post(CHAT, asked)).json())["choices"][0]
        for entry in choice["logprobs"]["content"]:
            assert len({alternative["token"] for alternative in entry["top_logprobs"]}) == 20
        shown = [(entry["token"], entry["bytes"]) for entry in choice["logprobs"]["content"]]
        assert shown[:2] == [("\\xf0", [0xF0]), ("\\x9f", [0x9F])]
        assert b"".join(bytes(data) for _, data in shown).decode() == "🙂"


async def test_alternatives_of_one_name_are_numbered() -> None:
    async with scripted() as one:
        one.runner.rivals = (66, 66)
        body = {"prompt": "abc", "max_tokens": 1, "logprobs": 3}
        choice = (await (await one.post(COMPLETIONS, body)).json())["choices"][0]
        top = {"H": -1.0, "A": -9.0, "token_id:66": -10.0}
        assert choice["logprobs"]["top_logprobs"] == [top]


async def test_a_special_token_has_its_name_and_no_bytes_of_the_text() -> None:
    async with scripted() as one:
        one.runner.says = "H"
        asked = chat(max_tokens=3, logprobs=True, top_logprobs=1, ignore_eos=True)
        choice = (await (await one.post(CHAT, asked)).json())["choices"][0]
        assert choice["message"]["content"] == "H"
        end = {"token": "<end>", "logprob": -2.0, "bytes": None}
        assert choice["logprobs"]["content"][1] == {**end, "top_logprobs": [end]}
        body = {"prompt": "abc", "max_tokens": 3, "logprobs": 1, "ignore_eos": True}
        choice = (await (await one.post(COMPLETIONS, body)).json())["choices"][0]
        assert choice["logprobs"]["tokens"] == ["H", "<end>", "<end>"]
        assert choice["logprobs"]["text_offset"] == [0, 1, 1]
        assert choice["logprobs"]["top_logprobs"][1] == {"<end>": -2.0}


@pytest.mark.parametrize(
    ("prompt", "text", "offsets"),
    [
        ("a<end>é<end>b", "a<end>é<end>b", [0, 1, 6, 6, 7, 12]),  # é is two tokens
        ([98, 0, 99], "ab", [0, 1, 1]),
        ([98, 0xF0 + 1, 99], "a\N{REPLACEMENT CHARACTER}b", [0, 1, 2]),
    ],
)
async def test_the_offsets_of_an_echo_fit_its_text(
    prompt: str | list[int], text: str, offsets: list[int]
) -> None:
    async with scripted() as one:
        body = {"prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 0}
        for streamed in (False, True):
            if streamed:
                chunks = await stream(one, COMPLETIONS, body)
                told = contents(chunks)
                parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
                starts = [start for part in parts if part for start in part["text_offset"]]
            else:
                choice = (await (await one.post(COMPLETIONS, body)).json())["choices"][0]
                told, starts = choice["text"], choice["logprobs"]["text_offset"]
            assert told == text + "H"
            assert starts == [*offsets, len(text)]
