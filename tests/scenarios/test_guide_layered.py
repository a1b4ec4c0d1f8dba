"""The first guide, as its reader would run it: its classes, only the base URL and lengths changed.

Layered policies, context awareness, batches, an FAQ that is loaded ahead, code templates, documents,
metrics, cleaning up, falling back. ``test_seed_calls`` has its single calls; here its managers run,
and each test asserts what the guide promises of one.
"""

import hashlib
import time
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

pytestmark = pytest.mark.model

Messages = list[ChatCompletionMessageParam]
Answers = list[tuple[str | None, bool]]


def generate_cache_key(prompt: str, model: str = "deepseek-chat") -> str:
    return hashlib.md5(f"{model}:{prompt}".encode()).hexdigest()


def complete(
    client: OpenAI,
    messages: Messages | str,
    kv_cache: dict[str, Any] | None = None,
    model: str = "deepseek-chat",
    max_tokens: int = 6,
) -> ChatCompletion:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    extra = None if kv_cache is None else {"kv_cache": {"enabled": True, **kv_cache}}
    return client.chat.completions.create(
        model=model, messages=messages, extra_body=extra, max_tokens=max_tokens
    )


def said(answer: ChatCompletion) -> str | None:
    return answer.choices[0].message.content


def seen(client: OpenAI, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """The operations of the gateway, asked through the same client."""
    if method == "get":
        return client.get(path, cast_to=dict[str, Any])
    return client.post(path, cast_to=dict[str, Any], body=body)


def entries(client: OpenAI, prefix: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = seen(client, "get", f"/cache/entries?prefix={prefix}")["data"]
    return found


def from_store(client: OpenAI) -> int:
    """How many answers came from the response store until now."""
    calls: int = seen(client, "get", "/cache/stats")["savings"]["response"]["calls"]
    return calls


class LayeredCache:
    """Section 1."""

    def __init__(self) -> None:
        self.cache_levels: dict[str, dict[str, Any]] = {
            "hot": {"ttl": 300, "priority": "high"},
            "warm": {"ttl": 1800, "priority": "medium"},
            "cold": {"ttl": 7200, "priority": "low"},
        }

    def get_cache_config(self, prompt_type: str) -> dict[str, Any]:
        if prompt_type in {"faq", "common_query"}:
            return self.cache_levels["hot"]
        if prompt_type in {"template", "standard"}:
            return self.cache_levels["warm"]
        return self.cache_levels["cold"]

    def cached_request(self, client: OpenAI, prompt: str, prompt_type: str) -> ChatCompletion:
        config = self.get_cache_config(prompt_type)
        key = f"{prompt_type}:{generate_cache_key(prompt)}"
        return complete(client, prompt, {"cache_key": key, **config})


@pytest.mark.parametrize("prompt_type", ["faq", "common_query", "template", "standard", "novel"])
def test_layers_keep_answers_as_long_and_as_dearly_as_they_say(
    client: OpenAI, prompt_type: str
) -> None:
    cache = LayeredCache()
    prompt = f"什么是AI? ({prompt_type})"
    first = cache.cached_request(client, prompt, prompt_type)
    config = cache.get_cache_config(prompt_type)
    (entry,) = entries(client, f"{prompt_type}:{generate_cache_key(prompt)}")
    assert entry["priority"] == config["priority"]
    assert 0.9 * config["ttl"] - 60 < entry["ttl_left_s"] <= config["ttl"]
    again = cache.cached_request(client, prompt, prompt_type)
    assert (said(again), again.model_dump()["cache_hit"]) == (said(first), True)


def cached_chat(
    client: OpenAI, conversation_id: str, messages: Messages, *, use_context_cache: bool = True
) -> ChatCompletion:
    """Section 2: a key for the whole conversation, or for its last message."""
    if use_context_cache:
        key = f"context:{conversation_id}:{hashlib.md5(str(messages).encode()).hexdigest()}"
    else:
        key = generate_cache_key(str(messages[-1].get("content")))
    return complete(client, messages, {"cache_key": key, "context_aware": use_context_cache})


def test_a_conversation_is_known_by_all_of_it_or_by_its_last_message(client: OpenAI) -> None:
    question: ChatCompletionMessageParam = {"role": "user", "content": "解释一下量子纠缠"}
    long: Messages = [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好!有什么可以帮助你的吗?"},
        question,
    ]
    whole = cached_chat(client, "conv_guide", long)
    assert cached_chat(client, "conv_guide", long).model_dump()["cache_hit"] is True
    before = from_store(client)
    cached_chat(client, "conv_guide", [question])
    assert from_store(client) == before  # another history is another question
    last = cached_chat(client, "conv_guide", [question], use_context_cache=False)
    again = cached_chat(client, "conv_other", long, use_context_cache=False)
    assert said(again) == said(last)
    assert from_store(client) == before + 1
    assert said(whole) is not None


def batch_cached_processing(client: OpenAI, prompts: list[str], batch_size: int = 2) -> Answers:
    """Section 3."""
    results: Answers = []
    for start in range(0, len(prompts), batch_size):
        for place, prompt in enumerate(prompts[start : start + batch_size]):
            key = f"batch:{start // batch_size}:item:{place}:{generate_cache_key(prompt)}"
            answer = complete(client, prompt, {"cache_key": key, "batch_mode": True})
            results.append((said(answer), answer.model_dump()["cache_hit"]))
    return results


def test_a_batch_that_runs_again_is_answered_from_the_store(client: OpenAI) -> None:
    prompts = ["什么是机器学习?", "解释深度学习", "什么是神经网络?", "介绍自然语言处理"]
    first = batch_cached_processing(client, prompts)
    before = from_store(client)
    second = batch_cached_processing(client, prompts)
    assert [text for text, _ in second] == [text for text, _ in first]
    assert [hit for _, hit in second] == [True] * 4
    assert from_store(client) == before + 4


def test_a_preloaded_faq_answers_at_once_and_is_nobodys_traffic(client: OpenAI) -> None:
    questions = ["什么是人工智能?(FAQ)", "如何学习编程?", "什么是云计算?"]

    def ask(question: str, **more: Any) -> ChatCompletion:
        key = f"faq:{generate_cache_key(question)}"
        return complete(client, question, {"cache_key": key, "ttl": 86400, **more})

    before = seen(client, "get", "/cache/stats")
    preloaded = {question: said(ask(question, preload=True)) for question in questions}
    loaded = seen(client, "get", "/cache/stats")
    assert loaded["requests"] == before["requests"]
    spent = [stats["savings"]["spent"]["warming"]["calls"] for stats in (before, loaded)]
    assert spent[1] == spent[0] + 3
    for question in questions:
        answer = ask(question)
        assert (said(answer), answer.model_dump()["cache_hit"]) == (preloaded[question], True)
    (entry,) = entries(client, f"faq:{generate_cache_key(questions[1])}")
    assert (entry["tier"], entry["priority"]) == ("hot", "high")
    assert entry["ttl_left_s"] > 0.9 * 86400 - 60


PATTERNS = {"排序": "sort", "搜索": "search", "计算器": "calculator"}


def generate_code(client: OpenAI, description: str, *, use_template: bool = True) -> ChatCompletion:
    """Application 2: one key for all descriptions of a pattern, or one for each."""
    pattern = next((PATTERNS[word] for word in PATTERNS if word in description), "general")
    key = f"template:python:{pattern}" if use_template else f"code:python:{description}"
    prompt = f"用python语言实现:{description}"
    return complete(client, prompt, {"cache_key": key, "ttl": 3600}, model="deepseek-coder")


@pytest.mark.parametrize("use_template", [True, False])
def test_a_template_key_never_gives_the_code_for_another_description(
    client: OpenAI, use_template: bool
) -> None:
    """Who wants the template's answer for all of them says ``match: key``."""
    quick = f"实现一个快速排序算法 {use_template}"
    first = generate_code(client, quick, use_template=use_template)
    before = from_store(client)
    generate_code(client, f"实现一个归并排序算法 {use_template}", use_template=use_template)
    assert from_store(client) == before
    again = generate_code(client, quick, use_template=use_template)
    assert (said(again), from_store(client)) == (said(first), before + 1)


@pytest.mark.parametrize("doc_type", ["api", "function", "class"])
def test_documents_are_written_once_for_two_hours(client: OpenAI, doc_type: str) -> None:
    code = "def quicksort(arr): ..."
    prompt = f"为以下{doc_type}生成文档:\n\n```\n{code}\n```"
    key = f"docs:{doc_type}:{generate_cache_key(code)}"
    first = complete(client, prompt, {"cache_key": key, "ttl": 7200})
    before = from_store(client)
    again = complete(client, prompt, {"cache_key": key, "ttl": 7200})
    assert (said(again), from_store(client)) == (said(first), before + 1)
    (entry,) = entries(client, key)
    assert 0.9 * 7200 - 60 < entry["ttl_left_s"] <= 7200


def test_the_readers_metrics_and_the_gateways_agree(client: OpenAI) -> None:
    stats = {"total_requests": 0, "cache_hits": 0}
    before = seen(client, "get", "/cache/stats")["savings"]["response"]["calls"]
    for prompt in ("指标一", "指标二") * 3:
        answer = complete(client, prompt, {"cache_key": generate_cache_key(prompt)})
        stats["total_requests"] += 1
        stats["cache_hits"] += answer.model_dump().get("cache_hit", False)
    assert stats["cache_hits"] >= 4  # a first answer may reuse a prefix, and says so too
    after = seen(client, "get", "/cache/stats")
    assert after["savings"]["response"]["calls"] == before + 4
    assert after["tokens_saved"] > 0


def test_with_the_cache_the_same_questions_take_less_time(client: OpenAI) -> None:
    prompts = ["基准:什么是机器学习?", "基准:解释深度学习"]

    def run(kv_cache: bool) -> float:
        began = time.perf_counter()
        for _ in range(3):
            for prompt in prompts:
                wish = {"cache_key": generate_cache_key(prompt)} if kv_cache else None
                complete(client, prompt, wish, max_tokens=24)
        return time.perf_counter() - began

    no_cache_time, cache_time = run(kv_cache=False), run(kv_cache=True)
    assert cache_time < no_cache_time


def design_cache_key(prompt: str, context: Any = None, user_id: str | None = None) -> str:
    """Best practice 1."""
    parts = [hashlib.md5(prompt.encode()).hexdigest()[:16]]
    if context:
        parts.append(f"ctx:{hashlib.md5(str(context).encode()).hexdigest()[:8]}")
    if user_id:
        parts.append(f"user:{user_id}")
    return ":".join(parts)


def test_a_key_with_a_user_in_it_is_that_users_entry(client: OpenAI) -> None:
    prompt = "给我一个建议"
    before = from_store(client)
    for user in ("u1", "u2"):
        complete(client, prompt, {"cache_key": design_cache_key(prompt, {"a": 1}, user)})
    assert from_store(client) == before
    complete(client, prompt, {"cache_key": design_cache_key(prompt, {"a": 1}, "u2")})
    assert from_store(client) == before + 1


class CacheManager:
    """Best practice 2, with the call in it that the guide leaves to the reader."""

    def __init__(self, client: OpenAI) -> None:
        self.client = client
        self.cache_registry: dict[str, dict[str, Any]] = {}

    def register_cache(self, cache_key: str, ttl: int, priority: str = "medium") -> None:
        self.cache_registry[cache_key] = {"created_at": 0.0, "ttl": ttl, "priority": priority}

    def cleanup_expired_cache(self, now: float) -> int:
        expired = [
            key for key, info in self.cache_registry.items()
            if now - info["created_at"] > info["ttl"]
        ]  # fmt: skip
        gone = 0
        for key in expired:
            del self.cache_registry[key]
            gone += seen(self.client, "post", "/cache/invalidate", {"cache_key": key})["entries"]
        return gone


def test_cleaning_up_drops_what_is_named_and_nothing_else(client: OpenAI) -> None:
    manager = CacheManager(client)
    for number, (ttl, priority) in enumerate([(300, "high"), (1800, "medium"), (7200, "low")]):
        key = f"cleanup:{number}"
        complete(client, f"清理 {number}", {"cache_key": key, "ttl": ttl, "priority": priority})
        manager.register_cache(key, ttl, priority)
    there = {entry["cache_key"]: entry["priority"] for entry in entries(client, "cleanup:")}
    assert there == {key: info["priority"] for key, info in manager.cache_registry.items()}
    assert manager.cleanup_expired_cache(now=2000.0) == 2
    left = [entry["cache_key"] for entry in entries(client, "cleanup:")]
    assert left == list(manager.cache_registry) == ["cleanup:2"]


def robust_cached_request(client: OpenAI, prompt: str, kv_cache: dict[str, Any]) -> str | None:
    """Best practice 3: without the cache when it fails."""
    try:
        return said(complete(client, prompt, kv_cache))
    except BadRequestError:
        return said(complete(client, prompt))


def test_a_request_whose_wish_is_wrong_can_fall_back_to_none(client: OpenAI) -> None:
    prompt = "降级请求"
    key = generate_cache_key(prompt)
    broken = robust_cached_request(client, prompt, {"cache_key": key, "ttl": "an hour"})
    assert broken is not None
    assert entries(client, key) == []
    with pytest.raises(BadRequestError, match="ttl"):
        complete(client, prompt, {"cache_key": key, "ttl": "an hour"})
    assert robust_cached_request(client, prompt, {"cache_key": key, "ttl": 3600}) is not None
    assert len(entries(client, key)) == 1


def test_a_namespace_with_a_version_is_cleared_as_one(client: OpenAI) -> None:
    for name, text in (("v1:guide:a", "一"), ("v1:guide:b", "二"), ("v1:guides:c", "三")):
        complete(client, text, {"cache_key": name})
    assert seen(client, "post", "/cache/invalidate", {"namespace": "guide"})["entries"] == 2
    assert [entry["cache_key"] for entry in entries(client, "v1:guide")] == ["v1:guides:c"]
