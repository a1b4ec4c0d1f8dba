"""Every kind of call in the users' guides, through the openai SDK, against the real engine.

The guides' own code is followed as closely as it runs: their key functions, their headers, their
batches; only the base URL is ours and the answers are short.
"""

import hashlib
from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

pytestmark = pytest.mark.model

Messages = list[ChatCompletionMessageParam]


def key_of(prompt: str, model: str = "deepseek-chat") -> str:
    return hashlib.md5(f"{model}:{prompt}".encode()).hexdigest()


def ask(
    client: OpenAI, prompt: str, model: str = "deepseek-chat", **kv_cache: Any
) -> ChatCompletion:
    return client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        extra_body={"kv_cache": {"enabled": True, **kv_cache}},
        max_tokens=12,
    )


def with_headers(client: OpenAI, messages: Messages, **headers: str) -> tuple[ChatCompletion, Any]:
    raw = client.chat.completions.with_raw_response.create(
        model="deepseek-chat",
        messages=messages,
        max_tokens=12,
        extra_headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    return raw.parse(), raw.headers


def said(answer: ChatCompletion) -> str | None:
    return answer.choices[0].message.content


def was_hit(answer: ChatCompletion) -> bool:
    hit = answer.model_dump()["cache_hit"]
    assert isinstance(hit, bool)
    return hit


def test_the_same_question_under_the_same_key_is_answered_from_the_store(client: OpenAI) -> None:
    prompt = "什么是深度学习?"
    first = ask(client, prompt, cache_key=key_of(prompt), ttl=3600)
    second = ask(client, prompt, cache_key=key_of(prompt), ttl=3600)
    assert not was_hit(first)
    assert was_hit(second)
    assert said(first) == said(second)
    assert first.usage == second.usage
    assert first.id != second.id


def test_one_key_with_two_questions_is_two_entries(client: OpenAI) -> None:
    first = ask(client, "Name a fruit.", cache_key="ml_explanation_basic")
    other = ask(client, "Name a river.", cache_key="ml_explanation_basic")
    assert not was_hit(first)
    assert other.model_dump()["usage"]["prompt_tokens"] > 0
    assert not was_hit_by_response(client, "Name a city.", cache_key="ml_explanation_basic")


def was_hit_by_response(client: OpenAI, prompt: str, **kv_cache: Any) -> bool:
    raw = client.chat.completions.with_raw_response.create(
        model="deepseek-chat",
        messages=[{"role": "user", "content": prompt}],
        max_tokens=12,
        extra_body={"kv_cache": {"enabled": True, **kv_cache}},
    )
    return raw.headers["X-Cache-Level"] == "response"


@pytest.mark.parametrize(
    ("prompt_type", "ttl", "priority", "tier"),
    [
        ("faq", 300, "high", "hot"),
        ("standard", 1800, "medium", "warm"),
        ("novel", 7200, "low", "cold"),
    ],
)
def test_layered_policies_of_the_guide_are_what_the_tiers_do(
    client: OpenAI, prompt_type: str, ttl: int, priority: str, tier: str
) -> None:
    prompt = f"Layered {prompt_type}: what is AI?"
    raw = client.chat.completions.with_raw_response.create(
        model="deepseek-chat",
        messages=[{"role": "user", "content": prompt}],
        max_tokens=8,
        extra_body={"kv_cache": {"enabled": True, "prompt_type": prompt_type, "debug": True}},
    )
    assert raw.headers["X-Cache-Tier"] == tier
    assert raw.headers["X-Cache-TTL"] == str(ttl)
    assert f'["priority","{priority}"' in raw.headers["X-Cache-Debug"]


def test_a_faq_key_may_live_a_day_in_the_hot_tier(client: OpenAI) -> None:
    question = "什么是人工智能?"
    preloaded = ask(client, question, cache_key=f"faq:{key_of(question)}", ttl=86400, preload=True)
    _, headers = with_headers(
        client,
        [{"role": "user", "content": question}],
        X_Cache_Enable="true",
        X_Cache_ID=f"faq:{key_of(question)}",
        X_Cache_TTL="86400",
    )
    assert said(preloaded)
    assert headers["X-Cache-Level"] == "response"
    assert headers["X-Cache-Tier"] == "hot"
    assert 86400 * 0.9 - 60 <= int(headers["X-Cache-TTL"]) <= 86400


def test_without_context_only_the_last_message_counts(client: OpenAI) -> None:
    history: Messages = [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好!有什么可以帮助你的吗?"},
    ]
    question: ChatCompletionMessageParam = {"role": "user", "content": "解释一下量子计算"}
    aware = {"X_Cache_Enable": "true", "X_Cache_ID": "conv_001"}
    with_headers(client, [*history, question], **aware)
    _, other_history = with_headers(client, [history[0], question], **aware)
    assert other_history["X-Cache-Level"] != "response"
    last_only = {**aware, "X_Cache_Context_Aware": "false"}
    with_headers(client, [*history, question], **last_only)
    _, same_question = with_headers(client, [history[0], question], **last_only)
    assert same_question["X-Cache-Level"] == "response"


def test_a_batch_item_asked_twice_is_computed_once(client: OpenAI) -> None:
    prompts = ["什么是机器学习?", "解释深度学习"]

    def batch() -> list[bool]:
        return [
            was_hit_by_response(client, prompt, cache_key=f"batch:0:item:{index}", batch_mode=True)
            for index, prompt in enumerate(prompts)
        ]

    assert batch() == [False, False]
    assert batch() == [True, True]
    _, headers = with_headers(
        client,
        [{"role": "user", "content": "What is Python?"}],
        X_Cache_Enable="true",
        X_Cache_Batch="true",
        X_Cache_Batch_ID="batch_1",
        X_Cache_Share="true",
    )
    assert headers["X-Cache-Hit"] in {"true", "false"}


def test_code_templates_share_an_answer_when_the_caller_vouches(client: OpenAI) -> None:
    wish = {"cache_key": "template:python:sort", "ttl": 3600, "match": "key"}
    first = ask(client, "用python语言实现:快速排序算法", model="deepseek-coder", **wish)
    second = ask(client, "用python语言实现:归并排序", model="deepseek-coder", **wish)
    assert was_hit(second)
    assert said(first) == said(second)


def test_a_growing_conversation_reuses_its_prefix(client: OpenAI) -> None:
    messages: Messages = [
        {"role": "system", "content": "You are a Python programming tutor. " * 12},
        {"role": "user", "content": "What are Python decorators?"},
    ]
    headers = {"X_Cache_Enable": "true", "X_Cache_ID": "cache_user_123", "X_Cache_TTL": "3600"}
    first, _ = with_headers(client, messages, **headers)
    messages += [
        {"role": "assistant", "content": said(first) or ""},
        {"role": "user", "content": "Can you show me an example?"},
    ]
    second, received = with_headers(client, messages, X_Cache_Reuse="true", **headers)
    assert second.usage
    usage = second.usage.model_dump()
    assert usage["prompt_cache_hit_tokens"] >= 64
    assert (
        usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"]
        == usage["prompt_tokens"]
    )
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_cache_hit_tokens"]
    assert received["X-Cache-Level"] == "prefix"
    assert received["X-Cache-Hit"] == "true"


def test_adaptive_caching_begins_at_five_messages(client: OpenAI) -> None:
    headers = {
        "X_Cache_Enable": "true",
        "X_Cache_ID": "adaptive_review_session_1",
        "X_Cache_Strategy": "adaptive",
        "X_Cache_Debug": "true",
    }
    short: Messages = [{"role": "user", "content": "Please review this Python function."}]
    _, received = with_headers(client, short, **headers)
    assert received["X-Cache-Miss-Reason"] == "too_short"
    long: Messages = [{"role": "system", "content": "You are a code reviewer."}]
    for turn in range(2):
        long += [
            {"role": "user", "content": f"Turn {turn}"},
            {"role": "assistant", "content": "Noted."},
        ]
    with_headers(client, long, **headers)
    _, received = with_headers(client, long, **headers)
    assert received["X-Cache-Level"] == "response"


@pytest.mark.parametrize(
    ("context", "ttl"),
    [("code_review", 7200), ("casual_chat", 1800), ("technical_support", 3600),
     ("documentation", 14400), ("anything_else", 3600)],
)  # fmt: skip
def test_context_profiles_bring_the_guides_lifetimes(
    client: OpenAI, context: str, ttl: int
) -> None:
    _, headers = with_headers(
        client,
        [{"role": "user", "content": f"Context {context}"}],
        X_Cache_Enable="true",
        X_Cache_Context=context,
    )
    assert headers["X-Cache-TTL"] == str(ttl)


def test_a_stream_is_stored_and_replayed_as_a_stream(client: OpenAI) -> None:
    def stream() -> tuple[str, Any]:
        response = client.chat.completions.create(
            model="deepseek-chat",
            messages=[
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": "Explain machine learning in detail."},
            ],
            max_tokens=12,
            stream=True,
            extra_headers={
                "X-Cache-Enable": "true",
                "X-Cache-ID": "ml_explanation",
                "X-Cache-Stream": "true",
            },
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in response if chunk.choices)
        return text, response.response.headers

    first, _ = stream()
    second, headers = stream()
    assert first
    assert second == first
    assert headers["X-Cache-Level"] == "response"


def test_the_monitor_counts_hits_from_the_headers(client: OpenAI) -> None:
    hits = 0
    for _ in range(3):
        _, headers = with_headers(
            client,
            [{"role": "user", "content": "Question: What is AI?"}],
            X_Cache_Enable="true",
            X_Cache_ID="ai_questions",
        )
        hits += headers.get("X-Cache-Hit", "false") == "true"
        assert headers["X-Response-Time"].endswith("ms")
    assert hits == 2


def test_shared_context_and_warm_headers_of_the_guide_are_understood(client: OpenAI) -> None:
    prompt: ChatCompletionMessageParam = {
        "role": "system",
        "content": "You are an expert code reviewer.",
    }
    made, _ = with_headers(
        client,
        [prompt],
        X_Cache_Enable="true",
        X_Cache_ID="shared_code_review_team",
        X_Cache_Shared="true",
        X_Cache_TTL="7200",
    )
    used, _ = with_headers(
        client,
        [prompt, {"role": "user", "content": "Please review this Python function..."}],
        X_Cache_Enable="true",
        X_Cache_ID="shared_code_review_team",
        X_Cache_User="dev1",
        X_Cache_Reuse="true",
    )
    warm, _ = with_headers(
        client,
        [prompt, {"role": "user", "content": "What are decorators?"}],
        X_Cache_Enable="true",
        X_Cache_ID="warm_python_help_var_0",
        X_Cache_Warm="true",
    )
    assert all(said(answer) is not None for answer in (made, used, warm))


def test_debug_headers_say_what_was_decided(client: OpenAI) -> None:
    _, headers = with_headers(
        client,
        [{"role": "user", "content": "Test message"}],
        X_Cache_Enable="true",
        X_Cache_ID="debug_conversation",
        X_Cache_Debug="true",
    )
    names = {name.lower() for name in headers if name.lower().startswith("x-cache")}
    assert {"x-cache-hit", "x-cache-level", "x-cache-key", "x-cache-debug"} <= names
    assert headers["X-Cache-Miss-Reason"] == "cold"


def test_the_large_table_is_computed_once_and_asked_twice(client: OpenAI) -> None:
    table = (
        "# Table of People\n"
        "| ID | Name | Age | Occupation | Country |\n"
        "|-----|---------------|-----|---------------|---------------|\n"
        "| 1 | John Doe | 29 | Engineer | USA |\n"
        + "| 2 | Jane Smith | 34 | Doctor | Canada |\n"
        * 50
    )

    def question(text: str) -> ChatCompletion:
        return client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": table + text}],
            max_tokens=15,
            top_p=1,
            frequency_penalty=1.0,
        )

    question("Question: What is the age of John Doe?")
    second = question("Question: What is the occupation of Jane Smith?")
    assert second.usage
    usage = second.usage.model_dump()
    assert usage["prompt_cache_hit_tokens"] > 0.9 * usage["prompt_tokens"]
