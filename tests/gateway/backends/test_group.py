"""Several backends as one: who is asked, who is told, and what is remembered of it."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest

from gateway.backends import group as module
from gateway.backends.group import Group, Strategy
from gateway.chunks import Opening, Piece
from gateway.errors import BackendFault
from policies.call import Call
from policies.keys import Principal
from policies.plan import Plan
from tests.kit.entries import asked
from tests.kit.scripted_backend import Gate, ScriptedBackend, failed, opening, whole_answer

LONG = "All about herons, which stand in the shallow water. " * 60


class Bench:
    """A group of three, and who was asked in what order."""

    def __init__(
        self, strategy: Strategy = "prefix", *, kv_tokens: int = 1_000_000, script: Any = None
    ) -> None:
        self.members = [ScriptedBackend(script or whole_answer(), name=name) for name in "abc"]
        self.closed: set[str] = set()
        self.group = Group(
            self.members,
            dict.fromkeys("abc", kv_tokens),
            model="m",
            strategy=strategy,
            is_open=lambda name: name not in self.closed,
        )

    def choice(self, text: str = "?", kv_cache: Any = None, **more: Any) -> str:
        """Who would be asked, and is noted as asked."""
        call, plan = asked(text, kv_cache, **more)
        candidate = self.group.candidates(call, plan)[0]
        self.group._affinity.sent(candidate.name, candidate.chain)
        return candidate.name

    async def ask(self, text: str = "?", kv_cache: Any = None, **more: Any) -> str:
        """Who is asked, by what the opening says."""
        pieces = await self.pieces(*asked(text, kv_cache, **more))
        assert isinstance(pieces[0], Opening)
        assert pieces[0].backend is not None
        return pieces[0].backend

    async def pieces(self, call: Call, plan: Plan) -> Sequence[Piece]:
        return [piece async for piece in self.group.run(call, plan)]


async def settled() -> None:
    """Let every task come as far as it comes by itself."""
    for _ in range(20):
        await asyncio.sleep(0)


def turn(text: str, *more: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [
        {"role": roles[place % 2], "content": content}
        for place, content in enumerate((text, *more))
    ]


async def test_the_opening_names_the_member_and_the_rest_passes_as_it_is() -> None:
    bench = Bench(script=[opening(3, 4, {"x": "y"}), *whole_answer()[1:]])
    pieces = await bench.pieces(*asked())
    assert pieces[0] == Opening({"x": "y"}, 3, 4, backend="a")
    assert list(pieces[1:]) == list(whole_answer()[1:])
    assert bench.group.name == "a+b+c"


async def test_a_refusal_passes_as_it_is() -> None:
    bench = Bench(script=[failed(503)])
    assert list(await bench.pieces(*asked())) == [failed(503)]


async def test_in_turn_means_in_turn() -> None:
    bench = Bench("round_robin")
    assert [await bench.ask(LONG) for _ in range(5)] == ["a", "b", "c", "a", "b"]


async def test_least_busy_is_who_has_the_fewest_calls_in_the_air() -> None:
    gate = Gate()
    bench = Bench("least_busy", script=[opening(), gate, *whole_answer()[1:]])
    tasks = [asyncio.create_task(bench.ask(LONG)) for _ in range(4)]
    await settled()
    assert [len(member.runs) for member in bench.members] == [2, 1, 1]
    assert repr(bench.group) == "<Group by least_busy: a=2 b=1 c=1>"
    gate.open()
    assert await asyncio.gather(*tasks) == ["a", "b", "c", "a"]
    assert repr(bench.group) == "<Group by least_busy: a=0 b=0 c=0>"


async def test_a_call_that_is_broken_off_is_no_longer_in_the_air() -> None:
    bench = Bench("least_busy")
    async with aclosing(bench.group.run(*asked())) as pieces:
        await anext(pieces)
        assert repr(bench.group) == "<Group by least_busy: a=1 b=0 c=0>"
    assert repr(bench.group) == "<Group by least_busy: a=0 b=0 c=0>"


async def test_each_conversation_stays_where_it_began() -> None:
    bench = Bench()
    homes = [await bench.ask(messages=turn(f"{number}: {LONG}")) for number in range(6)]
    assert sorted(homes) == ["a", "a", "b", "b", "c", "c"]
    for number, home in enumerate(homes):
        more = turn(f"{number}: {LONG}", "Hello.", "And then?")
        assert await bench.ask(messages=more) == home


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.3, "max_tokens": 9, "stream": True},
        {"metadata": {"request": "7"}},
    ],
)
async def test_what_is_no_part_of_the_prompt_changes_nothing(more: dict[str, Any]) -> None:
    bench = Bench()
    bench.choice(messages=turn("x" * 5000))
    home = bench.choice(LONG)
    assert [bench.choice(LONG, **more) for _ in range(3)] == [home] * 3


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("chat", {"tools": [{"type": "function", "function": {"name": LONG}}]}),
        ("completions", {"prompt": LONG}),
        ("completions", {"prompt": list(range(3000))}),
    ],
)
async def test_tools_texts_and_token_ids_are_parts_of_the_prompt(
    endpoint: Any, body: dict[str, Any]
) -> None:
    bench = Bench()
    bench.choice("x" * 5000)
    home = bench.choice(endpoint=endpoint, **body)
    assert [bench.choice(endpoint=endpoint, **body) for _ in range(3)] == [home] * 3


async def test_tenants_and_models_do_not_meet_in_what_is_remembered() -> None:
    bench = Bench()
    call, plan = asked(LONG)
    own = bench.group.candidates(call, plan)[0].chain
    _, other = asked(LONG, principal=Principal(tenant="other"))
    for stranger in (other, asked(LONG, model="n")[1]):
        assert not set(bench.group.candidates(call, stranger)[0].chain) & set(own)


async def test_equal_short_prompts_take_turns() -> None:
    bench = Bench()
    assert [await bench.ask("Hello?") for _ in range(3)] == ["a", "b", "c"]


async def test_what_leaves_nothing_in_a_kv_cache_goes_to_the_least_busy() -> None:
    bench = Bench()
    assert [bench.choice(LONG, endpoint="embeddings", input=LONG) for _ in range(2)] == ["a", "b"]
    no_store = {"Cache-Control": "no-store"}
    assert [bench.choice(LONG, headers=no_store) for _ in range(2)] == ["c", "a"]


async def test_a_hot_beginning_spreads_though_it_is_known_in_one_place() -> None:
    gate = Gate()
    bench = Bench(script=[opening(), gate, *whole_answer()[1:]])
    bench.group._affinity.sent("b", bench.group.candidates(*asked(LONG))[0].chain)
    tasks = [asyncio.create_task(bench.ask(LONG)) for _ in range(30)]
    await settled()
    counts = [len(member.runs) for member in bench.members]
    assert counts[1] == max(counts) <= 1.25 * 10 + 2
    assert min(counts) >= 2
    gate.open()
    await asyncio.gather(*tasks)


async def test_a_cache_key_goes_where_it_went() -> None:
    bench = Bench()
    keyed = {"cache_key": "case:7", "enabled": True}
    homes = [await bench.ask(f"{number}", keyed) for number in range(4)]
    assert homes == [homes[0]] * 4
    assert await bench.ask("5", {"cache_key": "case:8", "enabled": True}) != homes[0]


async def test_only_so_many_cache_keys_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEYS", 2)
    bench = Bench()
    for name in "xyz":
        await bench.ask("?", {"cache_key": name, "enabled": True})
    assert len(bench.group._last_of) == 2


async def test_who_is_not_open_is_asked_last() -> None:
    bench = Bench()
    home = bench.choice(LONG)
    bench.closed = {home}
    assert bench.choice(LONG) != home
    assert [one.name for one in bench.group.candidates(*asked(LONG))][2] == home
    bench.closed = set("abc")
    assert len(bench.group.candidates(*asked(LONG))) == 3


async def test_a_prompt_of_very_many_token_ids_is_read_in_one_piece() -> None:
    call, plan = asked(endpoint="completions", prompt=[7] * 300_000)
    assert len(list(module._prompt(call))) == 3
    shorter, _ = asked(endpoint="completions", prompt=[7] * 3000)
    chains = [Bench().group.candidates(one, plan)[0].chain for one in (call, shorter)]
    assert chains[0][: len(chains[1]) - 1] == chains[1][:-1]


async def test_a_member_that_was_restarted_has_forgotten_what_it_knew() -> None:
    bench = Bench()
    call, plan = asked(LONG)
    chain = bench.group.candidates(call, plan)[0].chain
    bench.group._affinity.sent("b", chain)
    assert bench.choice(LONG) == "b"
    bench.group.forget("b")
    bench.group.forget("nobody")
    assert bench.group._affinity.rank(chain, "b")[0].known == 0


async def test_a_member_knows_no_more_than_its_kv_cache_holds() -> None:
    bench = Bench()
    bench.group.resize("a", 200)
    bench.group.resize("nobody", 200)
    chain = bench.group.candidates(*asked(LONG))[0].chain
    bench.group._affinity.sent("a", chain)
    assert repr(bench.group._affinity) == "<Affinity a 2, b 0, c 0>"


async def test_a_prompt_nested_too_deep_to_read_is_the_members_to_refuse() -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    bench = Bench()
    call, plan = asked("?", None, messages=[{"role": "user", "content": "x", "deep": deep}])
    assert bench.group.candidates(call, plan)[0].chain == ()


class Prefilling(ScriptedBackend):
    """One that can compute a prompt ahead."""

    async def prefill_kv(self, messages: Any, **how: Any) -> int:
        self.prefilled = messages, how
        return 12


async def test_what_was_computed_ahead_is_asked_where_it_was() -> None:
    members = [Prefilling(name=name) for name in "ab"]
    group = Group(members, {"a": 10**6, "b": 10**6}, model="m")
    base = turn(LONG)
    call, plan = asked(messages=[*base, *turn("And?")])
    await anext(group.run(*asked("x" * 3000)))
    prefilled = await group.prefill_kv(base, salt=plan.salt, priority="high", ttl_s=60)
    assert prefilled == 12
    ahead = group.candidates(call, plan)[0]
    assert ahead.name == next(member.name for member in members if hasattr(member, "prefilled"))
    assert group._affinity.rank(ahead.chain, [ahead.name])[0].known > 1


async def test_who_cannot_compute_ahead_is_not_asked_to() -> None:
    bench = Bench()
    assert await bench.group.prefill_kv([], salt="s", priority="low", ttl_s=1) == 0


async def test_what_is_no_model_call_goes_to_the_first_that_is_open() -> None:
    bench = Bench()
    bench.closed = {"a"}
    bench.members[1].listed = [{"id": "m"}]
    assert await bench.group.models() == [{"id": "m"}]
    await bench.group.forward("GET", "/x", b"")
    assert [len(member.forwarded) for member in bench.members] == [0, 1, 0]
    bench.closed = set("abc")
    await bench.group.forward("GET", "/x", b"")
    assert [len(member.forwarded) for member in bench.members] == [1, 1, 0]
    assert await bench.group.kv_stats() is None


async def test_kv_is_dropped_at_all_members_though_one_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()

    async def down(salt: str | None) -> int:
        raise BackendFault("down", code="backend_unreachable")

    monkeypatch.setattr(bench.members[0], "invalidate_kv", down)
    assert await bench.group.invalidate_kv("s") == 14
    assert [member.dropped for member in bench.members] == [[], ["s"], ["s"]]


async def test_foreseeing_takes_nobodys_turn() -> None:
    group = Group([ScriptedBackend(name="a"), ScriptedBackend(name="b")], {"a": 1000, "b": 1000})
    call, plan = asked()
    for _ in range(3):
        assert group.foreseen(call, plan) == ["a", "b"]
    assert [one.name for one in group.candidates(call, plan)] == ["a", "b"]
    assert group.foreseen(call, plan) == ["b", "a"]
    assert await group.lookup_kv(call, plan) is None  # neither can say
