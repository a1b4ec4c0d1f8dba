"""Bad input: refused with a status, a code and the name of what is wrong; no backend is asked."""

import asyncio
import gzip
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.scripted_upstream import ScriptedUpstream, error_reply
from tests.kit.service import QUESTION, Service, serving

CHAT = "/v1/chat/completions"
GOOD_KEY = "kv-3f1c7a90b2d84e65a1c0"


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": QUESTION, **more}


def message(**more: Any) -> dict[str, Any]:
    return chat(messages=[more])


BAD_BODIES: list[tuple[Any, int, str, str | None]] = [
    (b"", 400, "invalid_json", None),
    (b"{", 400, "invalid_json", None),
    (b'{"model": "m",}', 400, "invalid_json", None),
    (b"\xff\xfe", 400, "invalid_json", None),
    (b'{"model": "m", "x": NaN}', 400, "invalid_json", None),
    (b"[" * 2000, 400, "invalid_json", None),
    (b'{"model": "\\ud800"}', 400, "invalid_json", None),
    ([], 400, "invalid_type", None),
    ("text", 400, "invalid_type", None),
    ({}, 400, "missing_field", "model"),
    (chat(model=None), 400, "missing_field", "model"),
    (chat(model=1), 400, "invalid_type", "model"),
    (chat(model=""), 400, "invalid_value", "model"),
    (chat(model="nope"), 404, "model_not_found", "model"),
    ({"model": "m"}, 400, "missing_field", "messages"),
    (chat(messages=[]), 400, "invalid_value", "messages"),
    (chat(messages="hi"), 400, "invalid_type", "messages"),
    (chat(messages=["hi"]), 400, "invalid_type", "messages[0]"),
    (message(content="hi"), 400, "missing_field", "messages[0].role"),
    (message(role=1, content="hi"), 400, "invalid_type", "messages[0].role"),
    (message(role="user", content=1), 400, "invalid_type", "messages[0].content"),
    (message(role="user", content=["hi"]), 400, "invalid_type", "messages[0].content[0]"),
    (chat(stream="yes"), 400, "invalid_type", "stream"),
    (chat(stream=True, stream_options=1), 400, "invalid_type", "stream_options"),
    (
        chat(stream=True, stream_options={"include_usage": 1}),
        400,
        "invalid_type",
        "stream_options.include_usage",
    ),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), BAD_BODIES)
async def test_a_bad_request_is_refused(
    body: Any, status: int, code: str, param: str | None
) -> None:
    async with serving() as service:
        answer = await service.send("POST", CHAT, body)
        error = answer.error
        assert (answer.status, error["code"], error["param"]) == (status, code, param)
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.headers["X-Should-Retry"] == "false"
        assert answer.headers["X-Request-ID"].startswith("req-")
        assert "X-Response-Time" in answer.headers
        assert service.upstream.calls == 0


BAD_WISHES: list[tuple[Any, str]] = [
    ({"ttl": -1}, "kv_cache.ttl"),
    ({"ttl": "nan"}, "kv_cache.ttl"),
    ({"ttl": "inf"}, "kv_cache.ttl"),
    ({"ttl": 604_801}, "kv_cache.ttl"),
    ({"ttl": True}, "kv_cache.ttl"),
    ({"cache_key": "k" * 600}, "kv_cache.cache_key"),
    ({"cache_key": ""}, "kv_cache.cache_key"),
    ({"cache_key": "a\nb"}, "kv_cache.cache_key"),
    ({"cache_key": "a\x00b"}, "kv_cache.cache_key"),
    ({"cache_key": "a\u2028b"}, "kv_cache.cache_key"),
    ({"cache_key": 7}, "kv_cache.cache_key"),
    ({"priority": "urgent"}, "kv_cache.priority"),
    ({"tier": "lukewarm"}, "kv_cache.tier"),
    ({"match": "fuzzy"}, "kv_cache.match"),
    ({"match": "key"}, "kv_cache.match"),
    ({"scope": "world"}, "kv_cache.scope"),
    ({"scope": "user"}, "kv_cache.scope"),
    ({"strategy": "clever"}, "kv_cache.strategy"),
    ({"enabled": "perhaps"}, "kv_cache.enabled"),
    ({"tags": "x"}, "kv_cache.tags"),
    ({"tags": ["x"] * 40}, "kv_cache.tags"),
    ("on", "kv_cache"),
    ([], "kv_cache"),
]
BAD_HEADERS = [
    ("X-Cache-TTL", "-1"),
    ("X-Cache-TTL", "nan"),
    ("X-Cache-TTL", "1e9"),
    ("X-Cache-ID", "k" * 600),
    ("X-Cache-Priority", "urgent"),
    ("X-Cache-Tier", "HOT"),
    ("X-Cache-Enable", "maybe"),
    ("X-Cache-Match", "fuzzy"),
    ("Cache-Control", "max-age=soon"),
]


@pytest.mark.parametrize(("wish", "param"), BAD_WISHES)
async def test_a_bad_wish_about_caching_is_refused(wish: Any, param: str) -> None:
    async with serving() as service:
        if isinstance(wish, dict):
            wish = {"enabled": True, **wish}
        answer = await service.chat(wish)
        error = answer.error
        assert (answer.status, error["code"]) == (400, "invalid_cache_directive")
        assert error["param"] == param
        assert len(error["message"]) < 300
        assert service.upstream.calls == 0
        assert sum(fill.entries for fill in service.gateway.store.fills()) == 0


@pytest.mark.parametrize(("name", "value"), BAD_HEADERS)
async def test_a_bad_header_is_refused_though_the_body_would_win(name: str, value: str) -> None:
    async with serving() as service:
        answer = await service.chat({"enabled": True, "ttl": 60}, headers={name: value})
        assert (answer.status, answer.error["param"]) == (400, name)
        assert answer.error["code"] == "invalid_cache_directive"
        assert service.upstream.calls == 0


async def test_unknown_words_are_ignored_and_named_on_request() -> None:
    async with serving() as service:
        answer = await service.chat(
            {"enabled": True, "ttll": 5, "debug": True}, headers={"X-Cache-Hit": "true"}
        )
        assert answer.status == 200
        assert answer.headers["X-Cache-Hit"] == "false"
        assert '"kv_cache.ttll"' in answer.headers["X-Cache-Debug"]
        assert '"X-Cache-Hit"' in answer.headers["X-Cache-Debug"]


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_body_over_the_limit_is_413(compressed: bool) -> None:
    async with serving(limits={"max_body_bytes": 10_000}) as service:
        body = b" " * 5_000_000 if compressed else b" " * 10_001
        headers = {"Content-Encoding": "gzip"} if compressed else {}
        sent = gzip.compress(body) if compressed else body
        answer = await service.send("POST", CHAT, sent, headers=headers)
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        assert (await service.chat()).status == 200


async def test_a_body_that_is_not_encoded_as_it_says_is_refused() -> None:
    async with serving() as service:
        answer = await service.send("POST", CHAT, b"oops", headers={"Content-Encoding": "gzip"})
        assert (answer.status, answer.error["code"]) == (400, "broken_body")


KEYS = [
    None,
    "",
    "Bearer",
    "Bearer wrong",
    f"Basic {GOOD_KEY}",
    GOOD_KEY,
    f"Bearer {GOOD_KEY}x",
    "Bearer " + "k" * 5000,
]


@pytest.mark.parametrize("authorization", KEYS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", CHAT),
        ("POST", "/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/m"),
        ("DELETE", "/v1/models/m"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/v1/cache/stats"),
        ("GET", "/v1/cache/entries"),
        ("GET", "/v1/cache/entries/" + "0" * 32),
        ("DELETE", "/v1/cache/entries/" + "0" * 32),
        ("POST", "/v1/cache/invalidate"),
        ("GET", "/metrics"),
    ],
)
async def test_without_a_good_key_every_door_is_shut(
    method: str, path: str, authorization: str | None
) -> None:
    async with serving(tenants=[{"name": "acme", "api_keys": [GOOD_KEY]}]) as service:
        headers = {} if authorization is None else {"Authorization": authorization}
        body = chat() if method == "POST" else None
        answer = await service.send(method, path, body, headers=headers)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.error["type"] == "authentication_error"
        assert GOOD_KEY not in answer.raw.decode()
        assert service.upstream.calls == 0


async def test_only_health_is_open() -> None:
    async with serving(tenants=[{"name": "acme", "api_keys": [GOOD_KEY]}]) as service:
        assert (await service.send("GET", "/healthz")).status == 200
        assert (await service.send("GET", "/readyz")).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/chat/completions/", 404, "unknown_url"),
        ("POST", "/v2/chat/completions", 404, "unknown_url"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/cache/entries/abc", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_where_no_route_leads_the_answer_says_so(
    method: str, path: str, status: int, code: str
) -> None:
    async with serving() as service:
        answer = await service.send(method, path)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert "X-Request-ID" in answer.headers
        assert ("Allow" in answer.headers) == (status == 405)
        assert ("without the slash" in answer.error["message"]) == path.endswith("/")


async def test_a_refusal_of_the_upstream_is_the_clients_to_read() -> None:
    refusal = error_reply(400, "max_tokens is too large", param="max_tokens", code="too_large")
    async with serving(upstream=ScriptedUpstream(refusal)) as service:
        answer = await service.chat(max_tokens=10**9)
        assert answer.status == 400
        assert answer.error["message"] == "max_tokens is too large"
        assert (answer.error["param"], answer.error["code"]) == ("max_tokens", "too_large")
        assert answer.headers["X-Should-Retry"] == "false"


async def test_a_request_id_is_echoed_when_it_is_harmless() -> None:
    async with serving() as service:
        for given, echoed in (("abc-1.2:3_4", True), ("a b", False), ("x" * 200, False)):
            answer = await service.chat(headers={"X-Request-ID": given})
            assert (answer.headers["X-Request-ID"] == given) is echoed


async def head_of(service: Service, header: bytes) -> list[bytes]:
    """The head lines of the answer to a request with this raw header line."""
    url = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    body = b'{"model":"m","messages":[{"role":"user","content":"?"}],"kv_cache":{"debug":true}}'
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        + header
        + b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
    )
    raw = await reader.read()
    writer.close()
    return raw.partition(b"\r\n\r\n")[0].split(b"\r\n")


NAMES = st.sampled_from([b"X-Cache-ID", b"X-Cache-Tags", b"X-Cache-Context", b"X-Cache-Odd"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(NAMES, st.binary(max_size=20)), max_size=6))
async def test_no_header_of_a_request_makes_headers_of_an_answer(
    values: list[tuple[bytes, bytes]],
) -> None:
    async with serving() as service:
        for name, value in values:
            status, *lines = await head_of(service, name + b": " + value)
            assert status.split(b" ")[1] in {b"200", b"400"}
            known = {line.partition(b":")[0].lower() for line in lines}
            assert all(line.isascii() for line in lines)
            assert known <= {
                b"content-type", b"content-length", b"date", b"server", b"connection",
                b"x-request-id", b"x-response-time", b"x-should-retry", b"cache-status",
                b"x-cache-hit", b"x-cache-level", b"x-cache-debug", b"x-cache-miss-reason",
            }  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(max_size=30), max_size=6))
async def test_whatever_the_cache_key_no_header_is_forged(keys: list[str]) -> None:
    async with serving() as service:
        for key in keys:
            wish = {"enabled": True, "cache_key": key, "debug": True, "tags": [key or "x"]}
            answer = await service.chat(wish, user=key)
            assert answer.status in {200, 400}
            for value in answer.headers.values():
                assert value.isascii()
                assert value.isprintable()
