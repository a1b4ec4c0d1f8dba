"""The second guide, as its reader would run it: its classes, only the base URL and lengths changed.

Conversations, adaptive caching, context types, streaming, batches, the monitor, analytics, shared
contexts with allowed users, the warmer, debugging. ``test_seed_calls`` has its single calls; here its
managers run, and each test asserts what the guide promises of one.
"""

import json
import urllib.request
from typing import Any

import pytest
from openai import NotFoundError, OpenAI, PermissionDeniedError
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from tests.kit.served import Served

pytestmark = pytest.mark.model

Messages = list[ChatCompletionMessageParam]
TUTOR = (
    "You are a Python programming tutor. Answer in short sentences, with one small example. " * 3
)
REVIEWER = (
    "You are an expert code reviewer. Provide detailed, constructive feedback on code submissions. "
    "Name what is wrong, why it is wrong, and how it is put right. Praise what is good. " * 3
)


def user(text: str) -> ChatCompletionMessageParam:
    return {"role": "user", "content": text}


def system(text: str) -> ChatCompletionMessageParam:
    return {"role": "system", "content": text}


def create(
    client: OpenAI,
    messages: Messages,
    headers: dict[str, str],
    max_tokens: int = 6,
    **more: Any,
) -> tuple[ChatCompletion, Any]:
    """The guide's call, and the headers that its later sections look at."""
    raw = client.chat.completions.with_raw_response.create(
        model="deepseek-chat",
        messages=messages,
        extra_headers=headers,
        max_tokens=max_tokens,
        **more,
    )
    return raw.parse(), raw.headers


def assistant(text: str) -> ChatCompletionMessageParam:
    return {"role": "assistant", "content": text}


def said(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""


def reused(answer: ChatCompletion) -> int:
    assert answer.usage is not None
    tokens: int = answer.usage.model_dump()["prompt_cache_hit_tokens"]
    return tokens


def get(client: OpenAI, path: str) -> dict[str, Any]:
    return client.get(path, cast_to=dict[str, Any])


class KVCacheManager:
    """Cache management: a conversation keeps its messages and its cache id."""

    def __init__(self, client: OpenAI, cache_ttl: int = 3600) -> None:
        self.client = client
        self.cache_ttl = cache_ttl
        self.conversations: dict[str, Messages] = {}
        self.headers: list[Any] = []
        self.answers: list[ChatCompletion] = []

    def create_conversation(self, conversation_id: str, system_prompt: str) -> str:
        self.conversations[conversation_id] = [system(system_prompt)]
        return conversation_id

    def send_message(self, conversation_id: str, message: str) -> str:
        messages = self.conversations[conversation_id]
        messages.append(user(message))
        answer, headers = create(
            self.client,
            messages,
            {
                "X-Cache-Enable": "true",
                "X-Cache-ID": f"cache_{conversation_id}",
                "X-Cache-TTL": str(self.cache_ttl),
            },
        )
        self.answers.append(answer)
        self.headers.append(headers)
        messages.append(assistant(said(answer)))
        return said(answer)

    def clear_cache(self, conversation_id: str) -> dict[str, Any]:
        del self.conversations[conversation_id]
        return self.client.delete(
            f"/cache/conversations/cache_{conversation_id}", cast_to=dict[str, Any]
        )


QUESTIONS = ["What are Python decorators?", "Can you show me an example?", "How do I write one?"]


def test_a_conversation_computes_only_what_is_new_in_it(client: OpenAI) -> None:
    manager = KVCacheManager(client)
    name = manager.create_conversation("guide_user_123", TUTOR)
    spoken = [manager.send_message(name, question) for question in QUESTIONS]
    hits = [reused(answer) for answer in manager.answers]
    assert hits[0] < hits[1] <= hits[2]
    assert [headers["X-Cache-Level"] for headers in manager.headers[1:]] == ["prefix", "prefix"]
    assert len(manager.conversations[name]) == 7

    # Told again from the start, all of it is in the store.
    again = KVCacheManager(client)
    again.create_conversation(name, TUTOR)
    assert [again.send_message(name, question) for question in QUESTIONS] == spoken
    assert {headers["X-Cache-Level"] for headers in again.headers} == {"response"}

    # Cleared, none of it is.
    assert again.clear_cache(name)["entries"] == 3
    third = KVCacheManager(client)
    third.create_conversation(name, TUTOR)
    third.send_message(name, QUESTIONS[0])
    assert third.headers[0]["X-Cache-Level"] != "response"


def test_a_conversation_started_with_the_cache_goes_on_with_it(client: OpenAI) -> None:
    messages = [
        system("You are a helpful AI assistant. " * 8),
        user("Hello! I'd like to start a conversation about Python programming."),
    ]
    first, _ = create(client, messages, {"X-Cache-Enable": "true", "X-Cache-TTL": "3600"})
    messages += [assistant(said(first)), user("What is a list?")]
    second, headers = create(client, messages, {"X-Cache-Enable": "true", "X-Cache-Reuse": "true"})
    assert headers["X-Cache-Hit"] == "true"
    assert reused(second) >= 32


def adaptive_caching(
    client: OpenAI, conversation_id: str, messages: Messages, message_threshold: int = 5
) -> Any:
    """Optimisation: caching for longer conversations only."""
    headers: dict[str, str] = {}
    if len(messages) >= message_threshold:
        headers = {
            "X-Cache-Enable": "true",
            "X-Cache-ID": f"adaptive_{conversation_id}",
            "X-Cache-Strategy": "adaptive",
        }
    return create(client, messages, headers)[1]


def test_adaptive_caching_stores_long_conversations_only(client: OpenAI) -> None:
    short: Messages = [system("You are a code reviewer."), user("Please review this function...")]
    long = [*short, assistant("Show it."), user("def f(): ..."), user("So?")]
    for _ in range(2):
        assert adaptive_caching(client, "guide_review", short)["X-Cache-Level"] != "response"
    first = adaptive_caching(client, "guide_review", long)
    assert first["X-Cache-Level"] != "response"
    assert int(first["X-Cache-TTL"]) == 7200  # a conversation about code
    assert adaptive_caching(client, "guide_review", long)["X-Cache-Level"] == "response"


@pytest.mark.parametrize(
    ("context_type", "ttl", "priority"),
    [
        ("code_review", 7200, "high"),
        ("casual_chat", 1800, "low"),
        ("technical_support", 3600, "medium"),
        ("documentation", 14400, "high"),
    ],
)
def test_context_types_keep_answers_as_the_guide_says(
    client: OpenAI, context_type: str, ttl: int, priority: str
) -> None:
    messages = [user(f"A question of the kind {context_type}")]
    headers = {
        "X-Cache-Enable": "true",
        "X-Cache-TTL": str(ttl),
        "X-Cache-Priority": priority,
        "X-Cache-Context": context_type,
    }
    create(client, messages, headers)
    _, again = create(client, messages, headers)
    assert again["X-Cache-Level"] == "response"
    entry = get(client, f"/cache/entries/{again['X-Cache-Key']}")
    assert (entry["priority"], entry["context"]) == (priority, context_type)
    assert 0.9 * ttl - 60 < entry["ttl_left_s"] <= ttl


def stream_with_cache(client: OpenAI, messages: Messages, conversation_id: str) -> tuple[str, int]:
    """Streaming, as unguarded as the guide has it: every chunk must have a choice."""
    response = client.chat.completions.create(
        model="deepseek-chat",
        messages=messages,
        stream=True,
        max_tokens=8,
        extra_headers={
            "X-Cache-Enable": "true",
            "X-Cache-ID": conversation_id,
            "X-Cache-Stream": "true",
        },
    )
    full_response, chunks = "", 0
    for chunk in response:
        chunks += 1
        if chunk.choices[0].delta.content:
            full_response += chunk.choices[0].delta.content
    return full_response, chunks


def test_a_stream_is_computed_once_and_told_the_same(client: OpenAI) -> None:
    messages = [system("You are a helpful assistant."), user("Explain machine learning at length.")]
    before = get(client, "/cache/stats")["savings"]["response"]["calls"]
    first, chunks = stream_with_cache(client, messages, "guide_ml_explanation")
    assert chunks > 2
    second, _ = stream_with_cache(client, messages, "guide_ml_explanation")
    assert second == first != ""
    assert get(client, "/cache/stats")["savings"]["response"]["calls"] == before + 1


def batch_process_with_cache(
    client: OpenAI, batches: list[tuple[str, Messages]], **more: str
) -> list[tuple[str, str]]:
    """Batches: what was said, and whether the cache had it."""
    results = []
    for batch_id, messages in batches:
        headers = {
            "X-Cache-Enable": "true",
            "X-Cache-Batch": "true",
            "X-Cache-Batch-ID": batch_id,
            "X-Cache-Share": "true",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        answer, received = create(client, messages, headers)
        results.append((said(answer), received["X-Cache-Level"]))
    return results


def test_a_batch_shares_its_answers_across_users(client: OpenAI) -> None:
    batches: list[tuple[str, Messages]] = [
        ("guide_batch_1", [user("What is Python used for?")]),
        ("guide_batch_2", [user("What are Python's main features?")]),
    ]
    alone = {"X_Cache_Scope": "user"}
    first = batch_process_with_cache(client, batches, X_Cache_User="ann", **alone)
    second = batch_process_with_cache(client, batches, X_Cache_User="bob", **alone)
    assert [text for text, _ in second] == [text for text, _ in first]
    assert [level for _, level in second] == ["response", "response"]
    other = [("guide_batch_3", batches[0][1])]
    assert batch_process_with_cache(client, other, X_Cache_User="bob", **alone)[0][1] != "response"
    gone = client.post("/cache/invalidate", cast_to=dict[str, Any], body={"batch": "guide_batch_1"})
    assert gone["entries"] == 1


class CacheMonitor:
    """Monitoring: by the header alone, as the guide does."""

    def __init__(self) -> None:
        self.hits = 0
        self.total = 0

    def track_request(self, headers: Any) -> None:
        self.total += 1
        self.hits += headers.get("X-Cache-Hit", "false") == "true"
        assert float(headers["X-Response-Time"].removesuffix("ms")) > 0

    def get_performance_report(self) -> dict[str, str]:
        rate = self.hits / self.total
        efficiency = "High" if rate > 0.7 else "Medium" if rate > 0.4 else "Low"
        return {"cache_hit_rate": f"{rate:.2%}", "cache_efficiency": efficiency}


def test_the_monitor_reports_what_the_gateway_counted(client: OpenAI) -> None:
    monitor = CacheMonitor()
    for number in (0, 1) * 4:
        _, headers = create(
            client,
            [user(f"Question {number}: What is AI?")],
            {"X-Cache-Enable": "true", "X-Cache-ID": "guide_ai_questions"},
        )
        monitor.track_request(headers)
    measured = get(client, "/cache/conversations/guide_ai_questions")
    assert (measured["calls"], measured["levels"]["response"]) == (8, 6)
    assert measured["hits"] == monitor.hits
    assert monitor.get_performance_report()["cache_efficiency"] == "High"


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("How do I write a function in Python?", "programming"),
        ("Explain what photosynthesis is.", "educational"),
        ("I have a problem, my printer shows an error", "support"),
        ("Good evening!", "general"),
    ],
)
def test_analytics_class_a_conversation_and_recommend(
    client: OpenAI, question: str, kind: str
) -> None:
    name = f"guide_analytics_{kind}"
    messages = [user(question), assistant("Well..."), user("Go on.")]
    headers = {"X-Cache-Enable": "true", "X-Cache-ID": name}
    for _ in range(3):
        create(client, messages, headers)
    measured = get(client, f"/cache/conversations/{name}")
    assert (measured["class"], measured["messages"], measured["hits"]) == (
        kind,
        3,
        measured["hits"],
    )
    assert measured["mean_length"] == round(
        sum(len(str(m.get("content"))) for m in messages) / 3, 1
    )
    assert 0 <= measured["reuse_potential"] <= 1
    assert measured["levels"]["response"] == 2
    assert measured["tokens_saved"] > 0
    assert measured["seconds_saved"] > 0
    listed = get(client, "/cache/recommendations")["data"]
    own = [advice for advice in listed if advice["conversation"] == name]
    assert [advice["action"] for advice in own] == [
        advice["action"] for advice in measured["recommendations"]
    ]
    assert all(advice["because"] and advice["measured"] for advice in own)


class SharedCacheManager:
    """Shared contexts, with the list of users kept where it holds: in the gateway."""

    def __init__(self, client: OpenAI) -> None:
        self.client = client
        self.prompts: dict[str, str] = {}

    def create_shared_context(
        self, context_id: str, base_prompt: str, allowed_users: list[str]
    ) -> str:
        self.prompts[context_id] = base_prompt
        made = self.client.put(
            f"/cache/contexts/shared_{context_id}",
            cast_to=dict[str, Any],
            body={"base_prompt": base_prompt, "allowed_users": allowed_users, "ttl": 7200},
        )
        assert made["allowed_users"] == allowed_users
        return context_id

    def use_shared_context(self, context_id: str, user_id: str, message: str) -> Any:
        return create(
            self.client,
            [system(self.prompts[context_id]), user(message)],
            {
                "X-Cache-Enable": "true",
                "X-Cache-ID": f"shared_{context_id}",
                "X-Cache-User": user_id,
                "X-Cache-Reuse": "true",
            },
        )


def test_a_shared_context_is_computed_once_for_those_who_may_use_it(client: OpenAI) -> None:
    manager = SharedCacheManager(client)
    team = manager.create_shared_context("guide_team", REVIEWER, ["dev1", "dev2", "lead1"])
    review1, headers1 = manager.use_shared_context(team, "dev1", "Please review this function...")
    review2, headers2 = manager.use_shared_context(team, "dev2", "Can you check this script...")
    for review, headers in ((review1, headers1), (review2, headers2)):
        assert headers["X-Cache-Level"] == "prefix"  # even the first: it was prefilled
        assert reused(review) > 0.6 * review.usage.prompt_tokens
    with pytest.raises(PermissionDeniedError) as refused:
        manager.use_shared_context(team, "mallory", "Please review this function...")
    assert refused.value.code == "context_forbidden"
    usage = get(client, "/cache/contexts/shared_guide_team")["usage"]
    assert usage["users"] == {"dev1": 1, "dev2": 1}
    _, again = manager.use_shared_context(team, "lead1", "Please review this function...")
    assert again["X-Cache-Level"] == "response"


def test_a_shared_context_may_stand_for_its_prompt_and_can_be_revoked(client: OpenAI) -> None:
    manager = SharedCacheManager(client)
    manager.create_shared_context("guide_stand_in", REVIEWER, [])
    wish = {"kv_cache": {"enabled": True, "shared_context": "shared_guide_stand_in"}}
    answer, _ = create(client, [user("What of this loop?")], {}, extra_body=wish)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 60  # the base prompt was put in front
    client.delete("/cache/contexts/shared_guide_stand_in", cast_to=dict[str, Any])
    with pytest.raises(NotFoundError) as gone:
        create(client, [user("What of this loop?")], {}, extra_body=wish)
    assert gone.value.code == "context_not_found"


def test_the_guides_own_first_use_makes_the_context(client: OpenAI) -> None:
    base = [system(REVIEWER + " Be quick.")]
    shared = {"X-Cache-Enable": "true", "X-Cache-ID": "shared_guide_first_use"}
    create(client, base, {**shared, "X-Cache-Shared": "true", "X-Cache-TTL": "7200"})
    made = get(client, "/cache/contexts/shared_guide_first_use")
    assert (made["ttl"], made["base_messages"]) == (7200, base)
    used, _ = create(client, [*base, user("Please review...")], {**shared, "X-Cache-User": "dev1"})
    assert reused(used) >= 32


PATTERNS: dict[str, tuple[Messages, list[str]]] = {
    "guide_python_help": (
        [system("You are a Python programming assistant.")],
        ["What is a list comprehension?", "How do I handle exceptions?"],
    ),
    "guide_general_qa": (
        [system("You are a helpful assistant.")],
        ["What is artificial intelligence?", "What are neural networks?"],
    ),
}


def warm_cache(client: OpenAI, pattern_id: str) -> None:
    """The guide's warmer, by headers."""
    base, variations = PATTERNS[pattern_id]
    calls = [(base, f"warm_{pattern_id}")]
    calls += [
        ([*base, user(variation)], f"warm_{pattern_id}_var_{place}")
        for place, variation in enumerate(variations)
    ]
    for messages, name in calls:
        headers = {"X-Cache-Enable": "true", "X-Cache-ID": name, "X-Cache-Warm": "true"}
        create(client, messages, headers)


def test_what_was_warmed_by_headers_is_there_for_users(client: OpenAI) -> None:
    requests = get(client, "/cache/stats")["requests"]
    for pattern_id in PATTERNS:
        warm_cache(client, pattern_id)
    assert get(client, "/cache/stats")["requests"] == requests  # no user asked
    for pattern_id, (base, variations) in PATTERNS.items():
        for place, variation in enumerate(variations):
            headers = {
                "X-Cache-Enable": "true",
                "X-Cache-ID": f"warm_{pattern_id}_var_{place}",
            }
            _, received = create(client, [*base, user(variation)], headers)
            assert received["X-Cache-Level"] == "response"


def test_what_was_warmed_by_a_job_is_there_for_users(kvgate: Served, client: OpenAI) -> None:
    base, variations = PATTERNS["guide_python_help"]
    pattern = {"id": "guide_job", "base_messages": base, "variations": variations,
               "params": {"max_tokens": 5}, "model": "deepseek-chat"}  # fmt: skip
    job = client.post("/cache/warm", cast_to=dict[str, Any], body={"patterns": [pattern]})
    progress = urllib.request.Request(
        f"{kvgate.url}/v1/cache/warm/{job['id']}", headers={"Accept": "text/event-stream"}
    )
    with urllib.request.urlopen(progress, timeout=120) as lines:
        events = [json.loads(line[5:]) for line in lines if line.startswith(b"data:")]
    assert events[-1]["status"] == "done"
    assert events[-1]["counts"]["done"] == 2
    for variation in variations:
        _, received = create(
            client, [*base, user(variation)], {"X-Cache-Enable": "true"}, max_tokens=5
        )
        assert received["X-Cache-Level"] == "response"


def debug_cache_behavior(client: OpenAI, messages: Messages, name: str) -> dict[str, str]:
    """Debug tools: the headers that start with X-Cache."""
    headers = {"X-Cache-Enable": "true", "X-Cache-ID": name, "X-Cache-Debug": "true"}
    _, received = create(client, messages, headers)
    return {k.lower(): v for k, v in received.items() if k.lower().startswith("x-cache")}


def test_debugging_says_why_and_where_a_request_differs(client: OpenAI) -> None:
    first = debug_cache_behavior(client, [user("Test message")], "guide_debug")
    assert first["x-cache-miss-reason"] == "cold"
    decided = {field: why for field, _, why in json.loads(first["x-cache-debug"])["decisions"]}
    assert decided["cache_key"] == "header X-Cache-ID"
    other = debug_cache_behavior(client, [user("Test messages")], "guide_debug")
    assert other["x-cache-miss-reason"].startswith("fingerprint; ")
    again = debug_cache_behavior(client, [user("Test message")], "guide_debug")
    assert (again["x-cache-hit"], again["x-cache-level"]) == ("true", "response")
    assert again["x-cache-key"] == first["x-cache-key"]
