"""Shared contexts on the way of a call: rights before text, in every process at once."""

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.context_records import ContextRecords
from gateway.contexts import Contexts, Fitted
from gateway.errors import ClientFault
from gateway.flights import Tasks
from gateway.router import Router, Served
from gateway.store.base import StoreError
from gateway.store.sharing import Listener
from gateway.store.sharing_memory import MemoryRecords
from policies.call import Call, RequestError
from policies.contexts import ContextWish, Terms
from policies.eviction import Priority
from policies.keys import Principal, Scope, kv_salt
from policies.rules import default_rules
from tests.kit.clock import Clock
from tests.kit.scripted_backend import ScriptedBackend
from tests.policies.making import call_of, directive_of

SYSTEM = {"role": "system", "content": "Review code."}
BASE = (SYSTEM,)
TEAM = ContextWish(BASE, allowed_users=("dev1", "dev2"))
PROXY = Principal("acme", trusted=True)
DEV1, DEV3 = Principal("acme", user="dev1"), Principal("acme", user="dev3")
MAKES = {"X-Cache-Shared": "true", "X-Cache-ID": "team"}
USES = {"X-Cache-ID": "team"}
NAMES = {"shared_context": "team"}


class Prefilling(ScriptedBackend):
    """A backend that can be asked to prefill."""

    def __init__(self) -> None:
        super().__init__()
        self.prefilled: list[tuple[Any, str, Priority, float]] = []

    async def prefill_kv(
        self, messages: Any, *, salt: str, priority: Priority, ttl_s: float
    ) -> int:
        self.prefilled.append((messages, salt, priority, ttl_s))
        return 12


class Shaky(MemoryRecords):
    """Records that may be down, and say what was read."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.seen: list[str] = []

    async def read(self, kind: str, tenant: str, name: str) -> bytes | None:
        self.seen.append(kind)
        if self.down:
            raise StoreError("down")
        return await super().read(kind, tenant, name)

    async def names(self, kind: str, tenant: str | None) -> list[tuple[str, str]]:
        if self.down:
            raise StoreError("down")
        return await super().names(kind, tenant)


class Wire:
    """News between the processes of a test; it may be cut."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.cut = False

    async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        assert topic == "contexts"
        if self.cut:
            raise StoreError("cut")
        for listener in self.listeners:
            await listener(message)

    def listen(self, topic: str, listener: Listener) -> None:
        assert topic == "contexts"
        self.listeners.append(listener)


class World:
    """Records, news, a clock, a backend, and processes that share them."""

    def __init__(self) -> None:
        self.records = Shaky()
        self.clock = Clock()
        self.tasks = Tasks()
        self.backend = Prefilling()
        self.router = Router([Served(self.backend, ("m",))], {})
        self.rules = default_rules()
        self.news = Wire()
        self.named: set[str] = set()
        self._editions = itertools.count()

    def process(self, *, alone: bool = False) -> Contexts:
        held = ContextRecords(
            self.records, now=self.clock.now, edition=lambda: f"e{next(self._editions)}"
        )
        return Contexts(
            held,
            news=None if alone else self.news,
            router=self.router,
            rules=self.rules,
            tasks=self.tasks,
            now=self.clock.now,
            names_answers=self._names_answers,
        )

    async def _names_answers(self, _: str, name: str) -> bool:
        if self.records.down:
            raise StoreError("down")
        return name in self.named

    async def settled(self) -> None:
        """Wait until what goes on behind the callers' backs has ended."""
        await asyncio.gather(*self.tasks._running)


async def fit(
    contexts: Contexts,
    call: Call,
    kv_cache: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    principal: Principal = DEV1,
) -> Fitted:
    directive = directive_of({"enabled": True, **(kv_cache or {})}, (headers or {}).items())
    return await contexts.fit(call, directive, principal)


async def team(contexts: Contexts, wish: ContextWish = TEAM) -> Terms:
    return await contexts.put("acme", "team", wish, None, None)


WHOLE = call_of(SYSTEM, "Look.")
REST = call_of("Look.")


async def test_the_first_shared_call_makes_it_and_others_use_it_by_id() -> None:
    world = World()
    one, two = world.process(), world.process()
    made = await fit(one, call_of(SYSTEM), headers={**MAKES, "X-Cache-TTL": "60"})
    assert made.terms is not None
    assert (made.terms.ttl_s, made.terms.priority, made.terms.made_by) == (60, "high", "dev1")
    used = await fit(two, WHOLE, headers=USES, principal=DEV3)
    assert used == Fitted(WHOLE, made.terms, (SYSTEM,))
    await world.settled()
    assert (await one.held.usage(made.terms)).users == {"dev1": 1, "dev3": 1}


@pytest.mark.parametrize("use", ["a call came by it", "an answer has it", None])
async def test_a_name_in_use_is_no_contexts_by_the_mere_id(use: str | None) -> None:
    world = World()
    one, two = world.process(), world.process()
    if use == "a call came by it":
        await fit(one, REST, headers=USES)
    elif use is not None:
        world.named.add("team")
    terms = await team(one)
    assert terms.by_id is (use is None)
    for process in (one, two):
        await process.load()
        plain = await fit(process, WHOLE, headers=USES)
        foreseen = await process.foresee(WHOLE, directive_of({}, USES.items()), DEV1)
        assert plain == foreseen
        assert (plain == Fitted(WHOLE)) is (use is not None)
        assert (await fit(process, WHOLE, headers=MAKES)).terms == terms
    assert (await one.put("acme", "team", TEAM, None, terms)).by_id is terms.by_id
    await world.settled()


async def test_a_second_shared_call_uses_what_is_there() -> None:
    contexts = World().process()
    headers = {**MAKES, "X-Cache-Priority": "low"}
    first = await fit(contexts, WHOLE, headers=headers)
    assert first.terms is not None
    assert first.terms.priority == "low"
    assert (await fit(contexts, WHOLE, headers=MAKES)).terms == first.terms
    with pytest.raises(RequestError) as caught:
        await fit(contexts, call_of({**SYSTEM, "content": "Review."}, "Look."), headers=MAKES)
    assert (caught.value.status, caught.value.param) == (400, "messages[0].content")


async def test_a_named_context_is_put_in_front() -> None:
    contexts = World().process()
    terms = await team(contexts)
    found = await fit(contexts, REST, NAMES)
    assert found.terms == terms
    assert found.call.messages == WHOLE.messages


@pytest.mark.parametrize(
    ("kv_cache", "headers"),
    [(NAMES, {}), ({"scope": "shared", "cache_key": "team"}, {})],
)
async def test_an_unknown_context_is_404(kv_cache: Any, headers: Any) -> None:
    contexts = World().process()
    with pytest.raises(RequestError) as caught:
        await fit(contexts, WHOLE, kv_cache, headers)
    assert (caught.value.status, caught.value.code) == (404, "context_not_found")


async def test_another_tenants_context_is_unknown() -> None:
    world = World()
    contexts = world.process()
    await team(contexts)
    world.records.seen.clear()
    with pytest.raises(RequestError) as there:
        await fit(contexts, REST, NAMES, principal=Principal("other", user="dev1"))
    with pytest.raises(RequestError) as nowhere:
        await fit(contexts, REST, {"shared_context": "no-team"})
    assert (there.value.status, there.value.code) == (nowhere.value.status, nowhere.value.code)
    assert world.records.seen == ["context", "context"]  # the same way for both


@pytest.mark.parametrize("principal", [DEV3, Principal("acme"), PROXY])
@pytest.mark.parametrize(
    ("call", "kv_cache", "headers"),
    [
        (REST, NAMES, {}),
        (WHOLE, {}, MAKES),
        (WHOLE, {}, USES),
        (call_of("other"), {}, USES),
        (WHOLE, {"scope": "shared", "cache_key": "team"}, {}),
    ],
)
async def test_who_is_not_allowed_is_refused_before_the_text_is_read(
    principal: Principal, call: Call, kv_cache: Any, headers: Any
) -> None:
    world = World()
    contexts = world.process()
    terms = await team(contexts)
    world.records.seen.clear()
    with pytest.raises(RequestError) as caught:
        await fit(contexts, call, kv_cache, headers, principal=principal)
    assert (caught.value.status, caught.value.code) == (403, "context_forbidden")
    assert world.records.seen == ["context"]
    assert "Review" not in caught.value.message
    await world.settled()
    assert (await contexts.held.usage(terms)).total == 0


async def test_a_trusted_key_speaks_for_users_and_another_does_not() -> None:
    contexts = World().process()
    terms = await team(contexts)
    asked = {**USES, "X-Cache-User": "dev2"}
    assert (await fit(contexts, WHOLE, headers=asked, principal=PROXY)).terms == terms
    with pytest.raises(RequestError) as caught:
        await fit(contexts, WHOLE, headers=asked, principal=Principal("acme"))
    assert caught.value.code == "user_mismatch"


async def test_revocation_is_effective_in_the_other_process_with_the_next_call() -> None:
    world = World()
    one, two = world.process(), world.process()
    terms = await team(one)
    assert (await fit(two, REST, NAMES)).terms == terms
    only_dev2 = await one.put("acme", "team", ContextWish(BASE, ("dev2",)), None, terms)
    with pytest.raises(RequestError) as caught:
        await fit(two, REST, NAMES)
    assert caught.value.status == 403
    assert await one.delete(only_dev2)
    with pytest.raises(RequestError) as caught:
        await fit(two, REST, NAMES)
    assert caught.value.status == 404
    assert await fit(two, WHOLE, headers=USES) == Fitted(WHOLE)  # a key and nothing more


async def test_terms_that_were_revoked_since_they_were_read_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    one, two = world.process(), world.process()
    terms = await team(one)
    await one.delete(terms)

    async def late(*_: str) -> Terms:
        return terms

    monkeypatch.setattr(two.held, "find", late)
    with pytest.raises(RequestError) as caught:
        await fit(two, REST, NAMES)
    assert caught.value.code == "context_not_found"


async def test_a_made_context_may_be_gone_before_its_maker_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contexts = World().process()

    async def gone(*_: Any) -> None:
        return None

    monkeypatch.setattr(contexts.held, "base", gone)
    with pytest.raises(RequestError) as caught:
        await fit(contexts, WHOLE, headers=MAKES)
    assert caught.value.code == "context_not_found"


@pytest.mark.parametrize("wish", [{"ttl": 0}, {}])
async def test_what_must_not_be_stored_makes_no_context(wish: dict[str, Any]) -> None:
    contexts = World().process()
    headers = MAKES if wish else {**MAKES, "Cache-Control": "no-store"}
    found = await fit(contexts, WHOLE, wish, headers)
    assert found.terms is None
    assert found.without == "there is no such context, and nothing is to be stored"
    assert await contexts.held.names() == set()


async def test_a_context_larger_than_an_entry_is_refused() -> None:
    contexts = World().process()
    large = call_of({**SYSTEM, "content": "x" * 5_000_000})
    with pytest.raises(RequestError) as caught:
        await fit(contexts, large, headers=MAKES)
    assert caught.value.param == "messages"


async def test_a_store_that_is_down_costs_the_sharing_unless_the_text_is_needed() -> None:
    world = World()
    contexts = world.process()
    await team(contexts)
    world.records.down = True
    for headers in (USES, MAKES):
        found = await fit(contexts, WHOLE, headers=headers)
        assert found == Fitted(WHOLE, without="the store of shared contexts does not answer")
    with pytest.raises(StoreError):
        await fit(contexts, REST, NAMES)


async def test_a_mere_id_is_not_looked_up_unless_it_names_a_context() -> None:
    world = World()
    contexts = world.process()
    await fit(contexts, WHOLE, headers=USES)
    assert world.records.seen == []


async def test_a_mere_id_is_known_elsewhere_at_once_or_when_names_are_read_again() -> None:
    world = World()
    one, two = world.process(), world.process()
    assert not two.knows("acme", "team")
    await world.settled()
    terms = await team(one)
    assert two.knows("acme", "team")
    world.news.cut = True
    await one.put("acme", "more", ContextWish(BASE), None, None)
    assert not two.knows("acme", "more")
    world.clock.advance(5)
    two.knows("acme", "more")
    await world.settled()
    assert two.knows("acme", "more")
    await one.delete(terms)
    assert not one.knows("acme", "team")


async def test_names_that_cannot_be_read_stay_as_they_were() -> None:
    world = World()
    contexts = world.process(alone=True)
    await team(contexts)
    world.records.down = True
    await contexts.load()
    assert contexts.knows("acme", "team")


async def test_names_read_while_one_is_made_do_not_forget_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    contexts = world.process()
    names = contexts.held.names

    async def slowly() -> set[tuple[str, str]]:
        found = await names()
        await team(contexts)
        return found

    monkeypatch.setattr(contexts.held, "names", slowly)
    await contexts.load()
    assert contexts.knows("acme", "team")


@pytest.mark.parametrize("message", [{}, {"tenant": "acme"}, {"tenant": "acme", "id": 7}])
async def test_strange_news_are_no_news(message: dict[str, Any]) -> None:
    world = World()
    contexts = world.process()
    await world.news.tell("contexts", message)
    assert repr(contexts) == "<Contexts 0 known>"


async def test_its_kv_is_computed_under_its_salt_with_its_priority_and_lifetime() -> None:
    world = World()
    contexts = world.process()
    terms = await team(contexts)
    assert await contexts.prefill(terms) == 12
    salt = contexts.salt(terms)
    assert world.backend.prefilled == [(BASE, salt, "high", 7200.0)]
    anybody = Scope("shared", "acme", context="team")
    assert salt != kv_salt(anybody, world.rules.kv_secret)
    assert await contexts.drop_kv(terms) == 7
    assert world.backend.dropped == [salt]


async def test_use_keeps_kv_and_context_alive_for_all() -> None:
    world = World()
    one, two = world.process(), world.process()
    terms = await team(one)
    for _ in range(3):
        world.clock.advance(7000)
        assert (await fit(one, REST, NAMES)).terms == terms
        await world.settled()
    assert len(world.backend.prefilled) == 3
    assert (await fit(two, REST, NAMES)).terms == terms


async def test_a_backend_that_cannot_prefill_or_is_not_there_prefills_nothing() -> None:
    world = World()
    world.router = Router([Served(ScriptedBackend(), ("m",))], {})
    contexts = world.process()
    assert await contexts.prefill(await team(contexts)) == 0
    lost = await contexts.put("acme", "lost", ContextWish(BASE, model="gone"), None, None)
    with pytest.raises(ClientFault):
        await contexts.prefill(lost)
    world.clock.advance(100)
    assert (await fit(contexts, WHOLE, {"shared_context": "lost"})).terms == lost
    await world.settled()  # nobody is told of a prefill that fails
