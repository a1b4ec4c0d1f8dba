"""Lists of inputs: each has an entry of its own, and the client sees one answer."""

import asyncio
import base64
import struct
from typing import Any

import pytest

from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import (
    Reply,
    ScriptedUpstream,
    embeddings_body,
    error_reply,
    json_reply,
    vector_of,
)
from tests.kit.service import Answer, Service, serving

WISH: dict[str, Any] = {"enabled": True}


async def embed(service: Service, given: Any, kv_cache: Any = WISH, **more: Any) -> Answer:
    headers, key = more.pop("headers", None), more.pop("key", None)
    body = {"model": "m", "input": given, **more}
    if kv_cache is not None:
        body["kv_cache"] = kv_cache
    return await service.send("POST", "/v1/embeddings", body, headers=headers, key=key)


def vectors(answer: Answer) -> list[Any]:
    assert answer.status == 200, answer.raw
    data = answer.body["data"]
    assert [datum["index"] for datum in data] == list(range(len(data)))
    assert {datum["object"] for datum in data} == {"embedding"}
    return [datum["embedding"] for datum in data]


def asked(service: Service) -> list[Any]:
    """What the upstream was asked to embed, call by call."""
    return [seen.body["input"] for seen in service.upstream.seen]


async def test_a_list_with_one_new_text_computes_one_text() -> None:
    async with serving() as service:
        await embed(service, ["a", "b", "c"])
        await service.settled()
        answer = await embed(service, ["a", "new", "c", "b"])
        assert vectors(answer) == [vector_of(text) for text in ("a", "new", "c", "b")]
        assert asked(service) == [["a", "b", "c"], ["new"]]


def odd(data: Any) -> Reply:
    return json_reply({"object": "list", "model": "m", "data": data})


@pytest.mark.parametrize("data", [{"odd": 1}, "odd", ["odd"], [{"odd": 1}]])
async def test_an_answer_without_vectors_is_not_stored(data: Any) -> None:
    async with serving(upstream=ScriptedUpstream(odd(data))) as service:
        assert (await embed(service, "a")).body["data"] == data  # as the backend said it
        await service.settled()
        assert vectors(await embed(service, ["a"])) == [vector_of("a")]


async def test_a_list_that_reads_along_with_an_answer_without_vectors_is_the_backends_fault() -> (
    None
):
    gate = Gate()
    upstream = ScriptedUpstream(Reply((gate, *odd({"odd": 1}).steps)))
    async with serving(upstream=upstream) as service:
        single = asyncio.create_task(embed(service, "a"))
        await gate.reached()
        listed = asyncio.create_task(embed(service, ["a"]))
        await service.readers(2)
        gate.open()
        assert (await single).status == 200
        answer = await listed
        assert (answer.status, answer.error["code"]) == (502, "backend_bad_answer")
        assert service.upstream.calls == 1


async def test_an_answer_says_how_much_of_it_was_stored() -> None:
    async with serving() as service:
        cold = await embed(service, ["a", "b"])
        assert (cold.headers["X-Cache-Hit"], cold.headers["X-Cache-Level"]) == ("false", "none")
        assert cold.headers["Cache-Status"].startswith("kvgate; fwd=uri-miss; stored; key=")
        assert "Age" not in cold.headers
        await service.settled()
        service.clock.advance(10)
        part = await embed(service, ["a", "x", "b"])
        assert (part.headers["X-Cache-Hit"], part.headers["X-Cache-Level"]) == ("true", "response")
        assert part.headers["Cache-Status"].startswith(
            "kvgate; fwd=partial; stored; detail=response; key="
        )
        assert part.headers["X-Cache-Tokens-Saved"] == "6"
        assert part.headers["Age"] == "10"
        await service.settled()
        service.clock.advance(10)
        full = await embed(service, ["a", "x", "b"])
        assert full.headers["Cache-Status"].startswith("kvgate; hit; ttl=")
        assert full.headers["X-Cache-Tokens-Saved"] == "9"
        assert full.headers["Age"] == "20"  # the oldest
        assert full.headers["X-Cache-TTL"] == str(1800 - 20)  # the first to go
        assert [answer.body["cache_hit"] for answer in (cold, part, full)] == [False, True, True]


async def test_usage_counts_every_input_whether_it_was_computed_or_not() -> None:
    async with serving() as service:
        cold = await embed(service, ["a", "b", "a"])
        await service.settled()
        part = await embed(service, ["a", "new", "a"])
        await service.settled()
        full = await embed(service, ["a", "new", "a"])
        for answer in (cold, part, full):
            usage = answer.body["usage"]
            assert (usage["prompt_tokens"], usage["total_tokens"]) == (9, 9)
            assert usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"] == 9
        assert part.body["usage"] == full.body["usage"]


async def test_a_hit_equals_a_miss_but_for_cache_hit() -> None:
    async with serving() as service:
        cold = await embed(service, ["a", "b"])
        await service.settled()
        full = await embed(service, ["a", "b"])
        assert {**full.body, "cache_hit": False} == cold.body
        assert list(cold.body) == ["object", "data", "model", "usage", "cache_hit"]


async def test_equal_texts_of_one_request_are_computed_once() -> None:
    async with serving() as service:
        answer = await embed(service, ["a", "b", "a", "a"])
        assert vectors(answer) == [vector_of(text) for text in "abaa"]
        assert asked(service) == [["a", "b"]]
        assert answer.headers["X-Cache-Hit"] == "false"
        assert "X-Cache-Tokens-Saved" not in answer.headers


@pytest.mark.parametrize(
    ("single", "listed"), [("a", ["b", "a"]), ([5, 6], [[7], [5, 6]]), ("a", ["a"])]
)
async def test_an_input_is_the_same_alone_and_in_a_list(single: Any, listed: Any) -> None:
    async with serving() as service:
        alone = vectors(await embed(service, single))
        await service.settled()
        answer = await embed(service, listed)
        assert vectors(answer)[-1:] == alone == [vector_of(single)]
        assert answer.headers["X-Cache-Hit"] == "true"
        await service.settled()
        await service.send("POST", "/v1/cache/invalidate", {"all": True})
        await embed(service, listed)
        await service.settled()
        again = await embed(service, single)
        assert again.headers["X-Cache-Level"] == "response"
        assert vectors(again) == alone


async def test_what_is_not_in_the_store_is_asked_as_the_client_asked_it() -> None:
    async with serving() as service:
        await embed(service, ["a", "b"], dimensions=4, encoding_format="float", later=[1], user="u")
        body = {"input": ["a", "b"], "dimensions": 4, "encoding_format": "float"}
        assert service.upstream.seen[0].body == {"model": "m", **body, "later": [1], "user": "u"}
        await service.settled()
        more = {"dimensions": 4, "encoding_format": "float", "later": [1], "user": "v"}
        await embed(service, ["a", "c"], **more)
        assert service.upstream.seen[1].body == {"model": "m", **more, "input": ["c"]}


async def test_formats_and_sizes_have_entries_of_their_own() -> None:
    async with serving() as service, service.openai() as client:
        extra = {"kv_cache": WISH}
        for _ in range(2):
            # The SDK asks for base64 and decodes it, unless told otherwise.
            packed = await client.embeddings.create(model="m", input=["a", "b"], extra_body=extra)
            plain = await client.embeddings.create(
                model="m", input=["a", "b"], encoding_format="float", extra_body=extra
            )
            assert packed.data[1].embedding == plain.data[1].embedding == vector_of("b")
            await service.settled()
        assert [seen.body["encoding_format"] for seen in service.upstream.seen] == [
            "base64", "float",
        ]  # fmt: skip
        raw = vectors(await embed(service, ["b"], encoding_format="base64"))
        assert raw == [base64.b64encode(struct.pack("<4f", *vector_of("b"))).decode()]
        await embed(service, ["a", "b"], encoding_format="float", dimensions=2)
        assert service.upstream.calls == 3


async def test_vectors_that_come_out_of_order_are_put_right() -> None:
    body = embeddings_body({"model": "m", "input": ["a", "b", "c"]})
    turned = json_reply({**body, "data": body["data"][::-1]})
    async with serving(upstream=ScriptedUpstream(turned)) as service:
        assert vectors(await embed(service, ["a", "b", "c"])) == [vector_of(t) for t in "abc"]
        await service.settled()
        assert vectors(await embed(service, ["c", "a"])) == [vector_of(t) for t in "ca"]
        assert service.upstream.calls == 1


async def test_vectors_without_an_index_are_in_the_order_of_the_inputs() -> None:
    body = embeddings_body({"model": "m", "input": ["a", "b"]})
    data = [{"object": "embedding", "embedding": datum["embedding"]} for datum in body["data"]]
    async with serving(upstream=ScriptedUpstream(json_reply({**body, "data": data}))) as service:
        assert vectors(await embed(service, ["a", "b"])) == [vector_of("a"), vector_of("b")]


@pytest.mark.parametrize("data", [[], None, "x", [1, 2], [{"index": 0, "embedding": [1.0]}]])
async def test_an_answer_of_the_wrong_size_is_an_error_and_stores_nothing(data: Any) -> None:
    bad = json_reply({"object": "list", "data": data, "model": "m"})
    async with serving(upstream=ScriptedUpstream(bad)) as service:
        answer = await embed(service, ["a", "b"])
        assert (answer.status, answer.error["code"]) == (502, "backend_bad_answer")
        await service.settled()
        assert vectors(await embed(service, ["a", "b"])) == [vector_of("a"), vector_of("b")]
        assert service.upstream.calls == 2


async def test_an_answer_without_usage_has_none_later_either() -> None:
    body = embeddings_body({"model": "m", "input": ["a", "b"]})
    del body["usage"]
    async with serving(upstream=ScriptedUpstream(json_reply(body))) as service:
        for level in ("none", "response"):
            answer = await embed(service, ["a", "b"])
            assert "usage" not in answer.body
            assert answer.headers["X-Cache-Level"] == level
            await service.settled()


async def test_tokens_counted_together_are_shared_out_by_length() -> None:
    body = embeddings_body({"model": "m", "input": [[1], [1, 2, 3]]})
    body["usage"] = {"prompt_tokens": 4, "total_tokens": 4}
    async with serving(upstream=ScriptedUpstream(json_reply(body))) as service:
        await embed(service, [[1], [1, 2, 3]])
        await service.settled()
        assert (await embed(service, [1])).body["usage"]["prompt_tokens"] == 1
        assert (await embed(service, [[1, 2, 3]])).body["usage"]["total_tokens"] == 3


async def test_headers_of_the_upstream_come_through() -> None:
    body = embeddings_body({"model": "m", "input": ["a"]})
    reply = json_reply(body, headers={"x-ratelimit-remaining-requests": "7", "set-cookie": "a=1"})
    async with serving(upstream=ScriptedUpstream(reply)) as service:
        answer = await embed(service, ["a"])
        assert answer.headers["x-ratelimit-remaining-requests"] == "7"
        assert "set-cookie" not in answer.headers


# ---- directives


async def test_without_a_wish_the_list_goes_through_as_it_is() -> None:
    async with serving() as service:
        for _ in range(2):
            answer = await embed(service, ["a", "a"], kv_cache=None)
            assert answer.headers["X-Cache-Hit"] == "false"
            assert "X-Cache-Key" not in answer.headers
        assert asked(service) == [["a", "a"], ["a", "a"]]


async def test_lifetimes_tiers_and_names_hold_for_each_input() -> None:
    async with serving() as service:
        wish = {**WISH, "ttl": 100, "tier": "hot", "cache_key": "v1:docs:x", "tags": ["t"]}
        await embed(service, ["a", "b"], wish)
        await service.settled()
        entries = (await service.send("GET", "/v1/cache/entries?prefix=v1:docs")).body["data"]
        assert {entry["tier"] for entry in entries} == {"hot"}
        assert len(entries) == 2
        hit = await embed(service, ["b"], wish)
        assert hit.headers["X-Cache-Key"] in {entry["key"] for entry in entries}
        service.clock.advance(200)
        await embed(service, ["a", "b"], wish)
        assert service.upstream.calls == 2
        await service.settled()
        gone = await service.send("POST", "/v1/cache/invalidate", {"tag": "t"})
        assert gone.body["entries"] == 2


async def test_one_of_two_lifetimes_may_end_first() -> None:
    async with serving() as service:
        await embed(service, ["a"], {**WISH, "ttl": 100})
        await service.settled()
        service.clock.advance(60)
        await embed(service, ["a", "b"], {**WISH, "ttl": 100})
        await service.settled()
        service.clock.advance(60)
        answer = await embed(service, ["a", "b"], {**WISH, "ttl": 100, "tier": "cold"})
        assert asked(service) == [["a"], ["b"], ["a"]]
        assert "fwd=partial" in answer.headers["Cache-Status"]


@pytest.mark.parametrize(
    "wish", [{**WISH, "ttl": 0}, {**WISH, "cache_control": "x"}], ids=["ttl 0", "no-store"]
)
async def test_what_must_not_be_stored_is_not(wish: dict[str, Any]) -> None:
    headers = {"Cache-Control": "no-store"} if "cache_control" in wish else {}
    async with serving() as service:
        for _ in range(2):
            answer = await embed(service, ["a", "b", "a"], wish, headers=headers)
            assert vectors(answer) == [vector_of(text) for text in "aba"]
            await service.settled()
        assert asked(service) == [["a", "b"], ["a", "b"]]


async def test_reuse_false_computes_all_of_them_anew() -> None:
    async with serving() as service:
        await embed(service, ["a", "b"])
        await service.settled()
        anew = await embed(service, ["a", "b"], {**WISH, "reuse": False})
        assert anew.headers["X-Cache-Hit"] == "false"
        assert asked(service) == [["a", "b"], ["a", "b"]]


async def test_only_if_cached_needs_all_of_them() -> None:
    only = {"Cache-Control": "only-if-cached"}
    async with serving() as service:
        await embed(service, ["a", "b"])
        await service.settled()
        answer = await embed(service, ["b", "a"], headers=only)
        assert vectors(answer) == [vector_of("b"), vector_of("a")]
        missing = await embed(service, ["b", "a", "c"], headers=only)
        assert (missing.status, missing.error["code"]) == (504, "only_if_cached")
        assert service.upstream.calls == 1


async def test_a_list_is_matched_by_its_texts_even_when_asked_for_by_name() -> None:
    wish = {**WISH, "cache_key": "docs", "match": "key", "debug": True}
    async with serving() as service:
        await embed(service, ["a", "b"], wish)
        await service.settled()
        answer = await embed(service, ["b", "c"], wish)
        assert vectors(answer) == [vector_of("b"), vector_of("c")]
        assert "match key names one answer" in answer.headers["X-Cache-Debug"]
        await embed(service, "x", wish)
        await service.settled()
        assert vectors(await embed(service, "y", wish)) == [vector_of("x")]  # the caller vouched


@pytest.mark.parametrize("scope", ["user", "tenant"])
async def test_scopes_hold_for_each_input(scope: str) -> None:
    async with serving() as service:
        for user in ("dora", "emil"):
            await embed(service, ["a", "b"], {**WISH, "scope": scope, "user": user})
            await service.settled()
        assert service.upstream.calls == (2 if scope == "user" else 1)


async def test_a_miss_is_explained() -> None:
    async with serving() as service:
        wish = {**WISH, "debug": True}
        cold = await embed(service, ["a", "b"], wish)
        assert cold.headers["X-Cache-Miss-Reason"] == "cold"
        assert "X-Cache-Miss-Reason" not in (await embed(service, ["a"], wish)).headers


# ---- refusals


async def test_a_list_that_was_refused_is_refused_from_memory_and_its_inputs_are_not() -> None:
    refusal = error_reply(400, "b is too long", code="too_long")
    async with serving(upstream=ScriptedUpstream(refusal)) as service:
        first = await embed(service, ["a", "b"])
        assert (first.status, first.error["code"]) == (400, "too_long")
        await service.settled()
        again = await embed(service, ["a", "b"])
        assert (again.status, again.body) == (400, first.body)
        assert again.headers["X-Cache-Level"] == "negative"
        assert service.upstream.calls == 1
        assert vectors(await embed(service, ["a"])) == [vector_of("a")]
        assert vectors(await embed(service, "b")) == [vector_of("b")]


async def test_an_input_that_was_refused_alone_is_refused_in_any_company() -> None:
    refusal = error_reply(400, "too long", code="too_long")
    async with serving(upstream=ScriptedUpstream(refusal)) as service:
        assert (await embed(service, "bad")).status == 400
        await service.settled()
        answer = await embed(service, ["a", "bad"])
        assert (answer.status, answer.error["code"]) == (400, "too_long")
        assert answer.headers["X-Cache-Level"] == "negative"
        assert service.upstream.calls == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failure_that_may_pass_is_forgotten(status: int) -> None:
    async with serving(upstream=ScriptedUpstream(error_reply(status))) as service:
        assert (await embed(service, ["a", "b"])).status == status
        await service.settled()
        assert vectors(await embed(service, ["a", "b"])) == [vector_of("a"), vector_of("b")]


async def test_stale_vectors_help_when_the_backend_fails() -> None:
    async with serving() as service:
        hot = {**WISH, "tier": "hot", "ttl": 100}
        await embed(service, ["a", "b"], hot)
        await service.settled()
        service.clock.advance(200)
        service.upstream.replies.append(error_reply(503))
        answer = await embed(service, ["a", "b"], hot)
        assert vectors(answer) == [vector_of("a"), vector_of("b")]
        assert answer.headers["X-Cache-Stale"] == "true"
        service.upstream.replies.append(error_reply(503))
        assert (await embed(service, ["a", "b", "c"], hot)).status == 503


async def test_vectors_past_their_time_are_served_and_renewed() -> None:
    async with serving() as service:
        hot = {**WISH, "tier": "hot", "ttl": 100}
        await embed(service, ["a", "b"], hot)
        await service.settled()
        service.clock.advance(110)
        answer = await embed(service, ["a", "b"], hot)
        assert answer.headers["X-Cache-Stale"] == "true"
        await service.settled()
        assert sorted(map(str, asked(service)[1:])) == ["a", "b"]
        assert "X-Cache-Stale" not in (await embed(service, ["a", "b"], hot)).headers


async def test_numbers_and_log_count_one_request_and_what_it_saved() -> None:
    prices = {"default": {"miss_per_mtok": 1_000_000, "hit_per_mtok": 1, "output_per_mtok": 1}}
    async with serving(prices=prices) as service:
        await embed(service, ["a", "b"])
        await service.settled()
        await embed(service, ["a", "b", "c"])
        stats = (await service.send("GET", "/v1/cache/stats")).body
        assert (stats["requests"], stats["hits"], stats["tokens_saved"]) == (2, 1, 6)
        assert stats["money_saved"] == 6.0
        assert [line["level"] for line in service.lines] == ["none", "response"]


@pytest.mark.parametrize(
    "given", [[], ["a", 1], [None], [{"a": 1}], 7, {"a": "b"}, [1, "a"], [True]]
)
async def test_inputs_of_no_known_kind_are_refused_by_name(given: Any) -> None:
    async with serving() as service:
        answer = await embed(service, given)
        assert answer.status == 400
        assert answer.error["param"].startswith("input")
        assert service.upstream.calls == 0


async def test_a_thousand_inputs_are_one_call_and_then_none() -> None:
    texts = [f"text {number}" for number in range(1000)]
    async with serving() as service:
        assert vectors(await embed(service, texts))[999] == vector_of("text 999")
        await service.settled()
        answer = await embed(service, [*texts[::-1], "one more"])
        assert vectors(answer)[:1000] == [vector_of(text) for text in texts[::-1]]
        assert asked(service)[1:] == [["one more"]]
