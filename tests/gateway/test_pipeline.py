"""One call from plan to outcome. Freshness and failures are in tests/scenarios/test_freshness."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.chunks import Whole
from gateway.errors import ClientFault
from gateway.leading import Leading
from gateway.outcomes import with_usage
from gateway.pipeline import Flown, Pipeline
from gateway.store.base import Entry, Selector, Stored, StoreError
from gateway.store.memory import MemoryStore
from gateway.store.sharing_memory import MemoryLeases
from policies.freshness import EntryMeta
from policies.keys import Principal
from policies.outcome import Outcome, Usage
from tests.kit.bench import HOT, Bench, read, text_of
from tests.kit.scripted_backend import (
    Gate,
    Script,
    body_of,
    completed,
    opening,
    streamed_answer,
    whole_answer,
)

# ---- hit and miss


async def test_the_second_time_the_store_answers() -> None:
    bench = Bench()
    first, body = await bench.ask()
    assert (first.level, first.hit, first.stored, first.miss_reason) == (
        "none",
        False,
        True,
        "cold",
    )
    assert (first.forwarded, first.backend) == ("uri-miss", "scripted")
    bench.clock.advance(10)
    second, again = await bench.ask()
    assert (second.level, second.hit, second.age_s, second.ttl_left_s) == (
        "response",
        True,
        10,
        1790,
    )
    assert (second.tokens_saved, second.tier, second.backend) == (7, "warm", None)
    assert text_of(again) == text_of(body)
    assert bench.runs == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stream_fills_the_store_for_plain_readers_and_the_reverse(stream: bool) -> None:
    bench = Bench(streamed_answer("Hel", "lo.") if stream else whole_answer())
    _, filled = await bench.ask(stream=stream)
    outcome, body = await bench.ask(stream=not stream)
    assert outcome.level == "response"
    assert text_of(body) == text_of(filled) == "Hello."
    assert body["usage"].items() >= body_of()["usage"].items()
    assert body["object"] == "chat.completion"
    assert bench.runs == 1


async def test_another_question_is_another_entry() -> None:
    bench = Bench(whole_answer("one"), whole_answer("two"))
    await bench.ask("a", {"enabled": True, "cache_key": "k"})
    outcome, body = await bench.ask("b", {"enabled": True, "cache_key": "k"})
    assert (outcome.level, outcome.miss_reason, text_of(body)) == ("none", "fingerprint", "two")


async def test_with_match_key_the_callers_word_is_taken_for_it() -> None:
    bench = Bench(whole_answer("one"), whole_answer("two"))
    wish = {"enabled": True, "cache_key": "k", "match": "key"}
    await bench.ask("a", wish)
    outcome, body = await bench.ask("b", wish)
    assert (outcome.level, text_of(body)) == ("response", "one")
    outcome, body = await bench.ask("a", wish, model="other")  # the model never leaves the key
    assert (outcome.level, text_of(body)) == ("none", "two")


async def test_without_caching_nothing_is_looked_up_stored_or_shared() -> None:
    gate = Gate()
    bench = Bench([gate, *whole_answer()])
    asking = [asyncio.create_task(bench.ask(kv_cache=False)) for _ in range(3)]
    await bench.backend.started(3)
    assert len(bench.flights) == 0
    gate.open()
    outcomes = [outcome for outcome, _ in await asyncio.gather(*asking)]
    assert {(o.forwarded, o.stored, o.collapsed, o.miss_reason) for o in outcomes} == {
        ("bypass", False, False, "disabled")
    }
    assert sum(fill.entries for fill in bench.store.fills()) == 0


async def test_reuse_false_computes_anew_and_replaces() -> None:
    bench = Bench(whole_answer("old"), whole_answer("new"))
    await bench.ask()
    outcome, body = await bench.ask(kv_cache={"enabled": True, "reuse": False})
    assert (text_of(body), outcome.forwarded, outcome.miss_reason) == ("new", "request", "no_cache")
    outcome, body = await bench.ask()
    assert (text_of(body), outcome.level, bench.runs) == ("new", "response", 2)


async def test_reuse_false_does_not_read_along_with_an_older_flight() -> None:
    gate = Gate()
    bench = Bench([gate, *whole_answer("old")], whole_answer("new"))
    old = asyncio.create_task(bench.ask())
    await gate.reached()
    answer = await bench.start(kv_cache={"enabled": True, "reuse": False})
    assert text_of(await read(answer)) == "new"
    gate.open()
    await old
    assert bench.runs == 2


@pytest.mark.parametrize(
    ("kv_cache", "headers"),
    [
        ({"enabled": True, "ttl": 0}, {}),
        ({"enabled": True}, {"Cache-Control": "no-store"}),
        ({"enabled": True, "stream": False}, {}),
    ],
)
async def test_what_should_not_be_stored_is_not(kv_cache: Any, headers: dict[str, str]) -> None:
    bench = Bench()
    outcome, _ = await bench.ask(kv_cache=kv_cache, headers=headers, stream=True)
    assert (outcome.stored, outcome.ttl_left_s) == (False, None)
    await bench.ask(kv_cache=kv_cache, headers=headers, stream=True)
    assert bench.runs == 2


async def test_no_store_may_still_be_answered_from_the_store() -> None:
    bench = Bench()
    await bench.ask()
    outcome, _ = await bench.ask(headers={"Cache-Control": "no-store"})
    assert outcome.level == "response"


async def test_only_if_cached_never_asks_a_backend() -> None:
    bench = Bench()
    wish = {"Cache-Control": "only-if-cached"}
    error = await bench.fails(headers=wish)
    assert isinstance(error, ClientFault)
    assert (error.status, error.code) == (504, "only_if_cached")
    assert bench.runs == 0
    await bench.ask()
    outcome, _ = await bench.ask(headers=wish)
    assert (outcome.level, bench.runs) == ("response", 1)


# ---- flights


async def test_identical_misses_are_one_run_and_say_so() -> None:
    gate = Gate()
    bench = Bench([gate, *streamed_answer("Hel", "lo.")])
    asking = [asyncio.create_task(bench.ask(stream=n % 2 == 0)) for n in range(6)]
    await gate.reached()
    gate.open()
    answers = await asyncio.gather(*asking)
    assert {text_of(body) for _, body in answers} == {"Hello."}
    assert sorted(outcome.collapsed for outcome, _ in answers) == [False] + [True] * 5
    assert bench.runs == 1


async def test_no_second_run_between_the_ending_and_the_storing() -> None:
    class Slow(MemoryStore):
        gate = Gate()

        async def put(self, entry: Entry, *, now: float) -> Stored:
            await self.gate.pass_through()
            return await super().put(entry, now=now)

    store = Slow("warm", max_bytes=2**20)
    bench = Bench(store=store)
    first = await bench.start()
    await read(first)
    await store.gate.reached()
    late = await bench.start()
    assert isinstance(late, Flown)
    assert late.outcome.collapsed
    assert text_of(await read(late)) == "Hello."
    store.gate.open()
    await bench.settled()
    outcome, _ = await bench.ask()
    assert (outcome.level, bench.runs) == ("response", 1)


async def test_a_look_up_that_was_slow_does_not_start_a_second_run() -> None:
    """It missed, and while it was on its way the answer was stored and the flight landed."""

    class Slow(MemoryStore):
        gates: Sequence[Gate] = ()

        async def get(self, key: bytes, *, now: float) -> Entry | None:
            found = await super().get(key, now=now)
            if self.gates:
                gate, *self.gates = self.gates
                await gate.pass_through()
            return found

    store, gate = Slow("warm", max_bytes=2**20), Gate()
    bench = Bench(store=store)
    store.gates = [gate]
    slow = asyncio.create_task(bench.ask())
    await gate.reached()
    await bench.ask()
    gate.open()
    _, body = await slow
    assert text_of(body) == "Hello."
    assert bench.runs == 1


async def test_a_preload_is_finished_though_its_client_leaves() -> None:
    gate = Gate()
    bench = Bench([opening(), gate, *whole_answer()[1:]])
    answer = await bench.start(kv_cache={"preload": True})
    assert isinstance(answer, Flown)
    await gate.reached()
    answer.reader.close()
    gate.open()
    await bench.settled()
    outcome, _ = await bench.ask(kv_cache=True)
    assert (outcome.level, bench.runs) == ("response", 1)


BATCH = {"enabled": True, "batch_mode": True}


@pytest.mark.parametrize("led", [False, True])
async def test_a_person_overtakes_a_batch_and_takes_its_readers_along(led: bool) -> None:
    gate = Gate()
    bench = Bench([gate, *streamed_answer("Late.")], streamed_answer("Soon."))
    if led:
        leases = MemoryLeases(now=bench.clock.now)
        bench.pipeline._leading = Leading(leases, bench.tasks)
    batch = asyncio.create_task(bench.ask(kv_cache=BATCH))
    await gate.reached()
    outcome, body = await bench.ask()
    assert (text_of(body), outcome.collapsed) == ("Soon.", False)
    assert text_of((await batch)[1]) == "Soon."
    assert [run.plan.lane for run in bench.backend.runs] == ["batch", "interactive"]
    assert bench.backend.runs[0].cancelled


async def test_what_a_batch_wanted_finished_is_finished_by_who_overtook_it() -> None:
    gates = Gate(), Gate()
    bench = Bench([gates[0]], [gates[1], *streamed_answer("Soon.")])
    batch = asyncio.create_task(bench.ask(kv_cache={**BATCH, "preload": True}))
    await gates[0].reached()
    person = asyncio.create_task(bench.ask())
    await gates[1].reached()
    for client in (batch, person):
        client.cancel()
    gates[1].open()
    await bench.settled()
    outcome, _ = await bench.ask()
    assert (outcome.level, bench.runs) == ("response", 2)


async def test_a_client_that_leaves_while_waiting_for_the_opening_ends_the_run() -> None:
    gate = Gate()
    bench = Bench([gate])
    asking = asyncio.create_task(bench.start())
    await gate.reached()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await bench.backend.ended()
    assert bench.backend.runs[0].cancelled


async def test_different_principals_never_share_a_flight() -> None:
    gate = Gate()
    bench = Bench([gate, *whole_answer()])
    asking = [
        asyncio.create_task(bench.ask(principal=Principal(tenant))) for tenant in ("a", "b", "b")
    ]
    await bench.backend.started(2)
    assert len(bench.flights) == 2
    gate.open()
    await asyncio.gather(*asking)
    assert bench.runs == 2


# ---- a store that fails


class FailingStore(MemoryStore):
    """A store whose calls named in ``failing`` fail."""

    failing: frozenset[str] = frozenset()

    def _maybe(self, name: str) -> None:
        if name in self.failing:
            raise StoreError("scripted")

    async def get(self, key: bytes, *, now: float) -> Entry | None:
        self._maybe("get")
        return await super().get(key, now=now)

    async def put(self, entry: Entry, *, now: float) -> Stored:
        self._maybe("put")
        return await super().put(entry, now=now)

    async def remove(self, selector: Selector) -> Sequence[EntryMeta]:
        self._maybe("remove")
        return await super().remove(selector)

    async def scan(
        self, selector: Selector, *, after: bytes | None, limit: int
    ) -> Sequence[EntryMeta]:
        self._maybe("scan")
        return await super().scan(selector, after=after, limit=limit)


@pytest.mark.parametrize("failing", ["get", "put", "scan", "remove", "get put scan remove"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_failing_store_never_fails_a_request(failing: str, stream: bool) -> None:
    store = FailingStore("warm", max_bytes=2**20)
    store.failing = frozenset(failing.split())
    bench = Bench(streamed_answer("Hello."), store=store)
    debug = {"enabled": True, "debug": True}
    wishes = [debug, {**debug, "user": "alice"}, HOT, {"enabled": True, "reuse": False}]
    for wish in (*wishes, *wishes):
        outcome, body = await bench.ask(kv_cache=wish, stream=stream)
        assert text_of(body) == "Hello."
        assert outcome.store_error == ("get" in failing and outcome.forwarded == "uri-miss")
        assert outcome.detail == ("store-error" if outcome.store_error else None)


async def test_an_answer_that_could_not_be_stored_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(whole_answer())
    troubles: list[Exception] = []
    bench.pipeline = Pipeline(
        rules=bench.rules,
        store=bench.store,
        flights=bench.flights,
        recall=bench.recall,
        now=bench.clock.now,
        draw=lambda: 0.0,
        store_failed=troubles.append,
    )

    async def full(*_: object, **__: object) -> Stored:
        raise StoreError("disk full")

    monkeypatch.setattr(bench.store, "put", full)
    await bench.ask()
    assert [str(trouble) for trouble in troubles] == ["disk full"]


async def test_identical_requests_are_one_run_even_without_a_store() -> None:
    store = FailingStore("warm", max_bytes=2**20)
    store.failing = frozenset({"get", "put"})
    gate = Gate()
    bench = Bench([gate, *whole_answer()], store=store)
    asking = [asyncio.create_task(bench.ask()) for _ in range(5)]
    await gate.reached()
    gate.open()
    await asyncio.gather(*asking)
    assert bench.runs == 1


# ---- why it was a miss


async def test_why_it_was_a_miss_is_known() -> None:
    bench = Bench()
    debug = {"enabled": True, "debug": True}
    await bench.ask("What is a cat?", debug)
    outcome, _ = await bench.ask("What is a dog?", debug)
    assert outcome.miss_reason == "fingerprint"
    assert outcome.difference is not None
    assert outcome.difference.as_dict() == {
        "field": "messages[0].content", "message": 0, "character": 10
    }  # fmt: skip
    assert outcome.debug is not None

    gone = await bench.store.remove(Selector("default"))
    bench.recall.left((meta.key for meta in gone), "invalidated")
    outcome, _ = await bench.ask("What is a cat?", debug)
    assert outcome.miss_reason == "invalidated"


async def test_what_was_evicted_is_said_to_be() -> None:
    bench = Bench(store=MemoryStore("warm", max_bytes=2500))
    await bench.ask("a")
    await bench.ask("b")
    outcome, _ = await bench.ask("a")
    assert outcome.miss_reason == "evicted"


async def test_what_finds_no_room_is_said_to_be_evicted() -> None:
    bench = Bench(store=MemoryStore("warm", max_bytes=100))
    await bench.ask("a")
    outcome, _ = await bench.ask("a")
    assert outcome.miss_reason == "evicted"


async def test_an_answer_of_the_same_principal_in_another_scope_is_named() -> None:
    bench = Bench()
    await bench.ask(kv_cache={"enabled": True})
    own = {"enabled": True, "scope": "user", "user": "alice", "debug": True}
    outcome, _ = await bench.ask(kv_cache=own)
    assert outcome.miss_reason == "scope"
    outcome, _ = await bench.ask(kv_cache={**own, "user": "bob", "scope": "user"}, text="new")
    assert outcome.miss_reason == "cold"


async def test_what_another_user_has_is_not_told() -> None:
    bench = Bench()
    await bench.ask(kv_cache={"enabled": True, "scope": "user", "user": "alice"})
    outcome, _ = await bench.ask(
        kv_cache={"enabled": True, "scope": "user", "user": "bob", "debug": True}
    )
    assert outcome.miss_reason == "cold"


# ---- what the backend reused


async def test_reuse_known_at_the_opening_is_in_the_outcome() -> None:
    script: Script = [opening(32, 5), Whole(body_of()), completed(37, 2, hit=32)]
    outcome, _ = await Bench(script).ask()
    assert (outcome.level, outcome.hit, outcome.tokens_saved) == ("prefix", True, 32)
    assert (outcome.prompt_tokens, outcome.hit_tokens, outcome.miss_tokens) == (37, 32, 5)


async def test_no_reuse_is_no_hit() -> None:
    outcome, _ = await Bench([opening(0, 5), Whole(body_of()), completed()]).ask()
    assert (outcome.level, outcome.hit, outcome.tokens_saved) == ("none", False, 0)


def test_whoever_reads_along_saves_the_whole_answer() -> None:
    outcome = Outcome(key="k", tier="warm", collapsed=True)
    assert with_usage(outcome, Usage(5, 2, 0)).tokens_saved == 7
