"""Why a call missed, from the short memory; a debug answer also looks at the principal's other scope."""

from dataclasses import replace
from typing import Any

from gateway.misses import Misses
from gateway.store.base import StoreError
from policies.keys import Principal
from policies.rules import default_rules
from tests.kit.bench import Bench
from tests.kit.entries import asked

ALICE = Principal("default", user="alice")


async def reason(bench: Bench, plan: Any, **more: Any) -> str | None:
    said = {"expired": False, "store_failed": False, **more}
    return (
        await Misses(bench.store, bench.recall, default_rules().kv_secret).outcome(plan, **said)
    ).miss_reason


async def test_the_reason_is_what_is_remembered() -> None:
    bench = Bench()
    _, plan = asked("one")
    assert await reason(bench, plan) == "cold"
    assert await reason(bench, plan, expired=True) == "expired"
    bench.recall.left([plan.key], "evicted")
    assert await reason(bench, plan) == "evicted"
    bench.recall.stored(asked("two")[1])
    assert await reason(bench, asked("three")[1]) == "fingerprint"
    assert await reason(bench, asked("four", False)[1]) == "disabled"


async def test_only_a_debug_answer_names_the_difference_and_the_decisions() -> None:
    bench = Bench()
    bench.recall.stored(asked("two")[1])
    misses = Misses(bench.store, bench.recall, default_rules().kv_secret)
    for debug in (False, True):
        plan = replace(asked("too")[1], debug=debug)
        outcome = await misses.outcome(plan, expired=False, store_failed=True)
        assert (outcome.difference is not None) is debug
        assert (outcome.debug is not None) is debug
        assert (outcome.store_error, outcome.detail) == (True, "store-error")


async def test_the_other_scope_of_the_same_user_is_looked_at_and_a_failing_store_says_nothing(
    monkeypatch: Any,
) -> None:
    bench = Bench()
    await bench.ask("one", {"enabled": True, "scope": "user"}, principal=ALICE)
    _, shared = asked("one", {"enabled": True, "debug": True}, principal=ALICE)
    assert await reason(bench, shared) == "scope"

    async def scan(*_: Any, **__: Any) -> Any:
        raise StoreError("down")

    monkeypatch.setattr(bench.store, "scan", scan)
    assert await reason(bench, shared) == "cold"
