"""Log-probabilities of the real engine, through the gateway and out of its store, in every form."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.kit.engine_here import engine_here
from tests.kit.service import Answer, Service, serving
from tests.kit.tiny_model import TinyLlama

END, START = 2, 1  # <|im_end|>, <|im_start|>
EMOJI = list("🙂".encode())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama().write(tmp_path_factory.mktemp("tiny"))


async def ask(service: Service, path: str, **body: Any) -> Answer:
    stored = {"enabled": True, "ttl": 60}
    return await service.send("POST", path, {"model": "m", "kv_cache": stored, **body})


def told(answer: Answer) -> tuple[str, dict[str, Any]]:
    """Text and log-probabilities of the first choice, whether plain or streamed."""
    if not answer.headers["Content-Type"].startswith("text/event-stream"):
        choices = [answer.body["choices"][0]]
    else:
        choices = [chunk["choices"][0] for chunk in answer.chunks if chunk["choices"]]
    text, logprobs = "", dict[str, Any]()
    for choice in choices:
        shown = choice.get("delta") or choice.get("message") or choice
        text += shown.get("content") or shown.get("text") or ""
        for name, values in (choice.get("logprobs") or {}).items():
            logprobs[name] = logprobs.get(name, []) + (values or [])
    return text, logprobs


async def forms(service: Service, path: str, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    """A question's answers: computed and out of the store, as a stream and plain."""
    found = []
    for seed, streams in ((1, (False, True, False)), (2, (True, False, True))):
        for number, stream in enumerate(streams):
            answer = await ask(service, path, seed=seed, stream=stream, **body)
            assert answer.status == 200, answer.raw
            level = answer.headers["X-Cache-Level"]
            assert (level == "response") == (number > 0)
            await service.settled()
            found.append(told(answer))
    return found


async def test_all_alternatives_come_back_in_every_form_where_tokens_are_half_characters(
    model: Path,
) -> None:
    async with engine_here(model) as engine, serving(backends=[engine.backend]) as service:
        token_of = {engine.service.token_bytes(token): token for token in range(3, 320)}
        forced = {str(token_of[bytes([byte])]): 100 for byte in EMOJI}
        asked = {"max_tokens": 8, "temperature": 0, "logit_bias": forced}
        body = {"prompt": "🙂", "logprobs": 20, **asked}
        completions = await forms(service, "/v1/completions", **body)
        assert all(one == completions[0] for one in completions)
        text, logprobs = completions[0]
        assert [len(top) for top in logprobs["top_logprobs"]] == [20] * 8
        assert all(0 <= start <= len(text) for start in logprobs["text_offset"])
        assert any(name.startswith("bytes:\\x") for name in logprobs["tokens"])
        messages = [{"role": "user", "content": "🙂"}]
        asked = {"messages": messages, "logprobs": True, "top_logprobs": 20, **asked}
        chats = await forms(service, "/v1/chat/completions", **asked)
        assert all(one == chats[0] for one in chats)
        text, logprobs = chats[0]
        data = b"".join(bytes(entry["bytes"] or []) for entry in logprobs["content"])
        assert data.decode(errors="replace") == text
        for entry in logprobs["content"]:
            assert len({one["token"] for one in entry["top_logprobs"]}) == 20


async def test_special_tokens_have_names_and_fitting_offsets_in_every_form(model: Path) -> None:
    async with engine_here(model) as engine, serving(backends=[engine.backend]) as service:
        body = {
            "prompt": "<|im_start|>user\nthe cat<|im_end|>",
            "max_tokens": 3,
            "temperature": 0,
            "logprobs": 3,
            "echo": True,
            "ignore_eos": True,
            "logit_bias": {str(START): 100},
        }
        answers = await forms(service, "/v1/completions", **body)
        assert all(one == answers[0] for one in answers)
        text, logprobs = answers[0]
        assert text == body["prompt"], "special tokens are no text of the answer"
        tokens, offsets = logprobs["tokens"], logprobs["text_offset"]
        assert tokens.count("<|im_end|>") == 1
        assert tokens[-3:] == ["<|im_start|>"] * 3
        assert offsets[-3:] == [len(text)] * 3
        spans = pairwise(offsets[:-2])
        assert [text[start:stop] for start, stop in spans] == tokens[:-3]
