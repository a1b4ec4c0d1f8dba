"""Shared contexts as records: two processes that see the same ones."""

import itertools

import pytest

from gateway import context_records
from gateway.context_records import ContextRecords
from gateway.errors import ClientFault
from gateway.store.base import StoreError
from gateway.store.sharing_memory import MemoryRecords
from policies.contexts import ContextWish, Terms
from tests.kit.clock import Clock

BASE = ({"role": "system", "content": "Review code."},)
OTHER = ({"role": "system", "content": "Review prose."},)
TEAM = ContextWish(BASE, allowed_users=("dev1",), ttl_s=1000.0)


class Counted(MemoryRecords):
    """Remembers what was read, and fails on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.written: list[str] = []
        self.broken: set[str] = set()

    async def read(self, kind: str, tenant: str, name: str) -> bytes | None:
        self.seen.append(kind)
        return await super().read(kind, tenant, name)

    async def write(self, kind: str, tenant: str, name: str, data: bytes) -> None:
        self.written.append(kind)
        await super().write(kind, tenant, name, data)

    async def erase(self, kind: str, tenant: str, name: str) -> bool:
        if kind in self.broken:
            raise StoreError(kind)
        return await super().erase(kind, tenant, name)

    @property
    def texts(self) -> int:
        return sum(kind == "context-base" for kind, _, _ in self._documents)


class World:
    """Records, a clock, and processes that share them."""

    def __init__(self) -> None:
        self.records = Counted()
        self.clock = Clock()
        self._editions = itertools.count()

    def process(self) -> ContextRecords:
        return ContextRecords(
            self.records, now=self.clock.now, edition=lambda: f"e{next(self._editions)}"
        )


async def made(held: ContextRecords, wish: ContextWish = TEAM, id_: str = "team") -> Terms:
    return await held.put("acme", id_, wish, None, None)


async def test_what_one_process_makes_another_finds() -> None:
    world = World()
    one, two = world.process(), world.process()
    terms = await made(one)
    assert await two.find("acme", "team") == terms
    assert await two.base(terms) == BASE
    assert (terms.allowed_users, terms.ttl_s, terms.priority) == (("dev1",), 1000.0, "high")
    assert await two.find("other", "team") is None
    assert await two.names() == {("acme", "team")}
    assert [found async for found in two.listed("acme")] == [terms]


async def test_terms_are_read_each_time_and_texts_once() -> None:
    world = World()
    held = world.process()
    await made(held)
    world.records.seen.clear()
    for _ in range(3):
        found = await held.find("acme", "team")
        assert found is not None
        assert await held.base(found) == BASE
    assert world.records.seen == ["context", "context-base", "context", "context"]


async def test_a_right_taken_away_is_gone_in_the_other_process_at_once() -> None:
    world = World()
    one, two = world.process(), world.process()
    terms = await made(one)
    await two.put("acme", "team", ContextWish(BASE, ("dev2",)), None, terms)
    found = await one.find("acme", "team")
    assert found is not None
    assert found.allowed_users == ("dev2",)
    assert await two.delete(found)
    assert await one.find("acme", "team") is None
    assert not await one.delete(found)


async def test_with_its_text_a_context_keeps_its_edition_and_with_another_not() -> None:
    world = World()
    held = world.process()
    first = await made(held)
    await held.count(first, "dev1")
    world.clock.advance(10)
    same = await held.put("acme", "team", ContextWish(BASE, ("dev2",)), None, first)
    assert (same.edition, same.created_at) == (first.edition, first.created_at)
    assert same.renewed_at == first.renewed_at + 10
    assert (await held.usage(same)).users == {"dev1": 1}
    other = await held.put("acme", "team", ContextWish(OTHER), None, same)
    assert other.edition != first.edition
    assert other.created_at == first.created_at
    assert await held.base(other) == OTHER
    assert await held.base(first) is None
    assert (await held.usage(other)).total == 0


async def test_a_context_made_again_has_nothing_of_the_deleted_one() -> None:
    world = World()
    held = world.process()
    first = await made(held)
    await held.count(first, "dev1")
    await held.delete(first)
    second = await made(held)
    assert second.edition != first.edition
    assert (await held.usage(second)).total == 0
    assert world.records.texts == 1


async def test_the_first_of_two_makers_wins_and_the_other_gets_his() -> None:
    world = World()
    one, two = world.process(), world.process()
    first = await one.make("acme", "team", TEAM, "ann")
    second = await two.make("acme", "team", ContextWish(OTHER), "bob")
    assert second == first
    assert second.made_by == "ann"
    assert world.records.texts == 1


async def test_what_has_expired_is_made_anew() -> None:
    world = World()
    held = world.process()
    first = await held.make("acme", "team", TEAM, None)
    world.clock.advance(1000)
    assert await held.find("acme", "team") is None
    second = await held.make("acme", "team", ContextWish(OTHER), None)
    assert second.edition != first.edition
    assert await held.find("acme", "team") == second


async def test_use_keeps_it_alive_here_and_elsewhere() -> None:
    world = World()
    one, two = world.process(), world.process()
    terms = await made(one)
    for _ in range(5):
        world.clock.advance(900)
        found = await one.find("acme", "team")
        assert found == terms
        if one.used(terms):
            await one.write_use(terms)
    assert await two.find("acme", "team") == terms
    assert await two.expires_at(terms) == world.clock.now() + 1000
    world.clock.advance(1000)
    assert await one.find("acme", "team") is None
    assert await two.find("acme", "team") is None


async def test_use_is_written_down_now_and_then_and_never_to_the_terms() -> None:
    world = World()
    held = world.process()
    terms = await made(held, ContextWish(BASE, ttl_s=7200.0))
    world.records.written.clear()
    due = []
    for _ in range(10):
        due.append(held.used(terms))
        if due[-1]:
            await held.write_use(terms)
        world.clock.advance(20)
    assert due == [False, False, False, True, False, False, True, False, False, True]
    assert world.records.written == ["context-used"] * 3


async def test_users_are_counted_one_by_one_up_to_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(context_records, "MAX_COUNTED_USERS", 3)
    world = World()
    held = world.process()
    terms = await made(held)
    for user in ("dev1", None, "dev1", "nobody", "dev3", "dev4", "dev1", None):
        await held.count(terms, user)
    usage = await held.usage(terms)
    assert usage.users == {"dev1": 3, "nobody": 1}
    assert (usage.nobody, usage.others, usage.total) == (2, 2, 8)


async def test_there_are_only_so_many_and_expired_ones_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(context_records, "MAX_CONTEXTS", 3)
    world = World()
    held = world.process()
    await made(held, ContextWish(BASE, ttl_s=10.0), "old")
    for number in range(2):
        await made(held, id_=f"c{number}")
    with pytest.raises(ClientFault) as caught:
        await made(held, id_="more")
    assert (caught.value.status, caught.value.code) == (409, "too_many_contexts")
    world.clock.advance(10 + 120)
    await made(held, id_="more")
    assert await held.names() == {("acme", "c0"), ("acme", "c1"), ("acme", "more")}
    assert world.records.texts == 3
    await held.put("other", "c", TEAM, None, None)  # another tenant has room of its own


async def test_a_record_that_is_not_understood_is_no_context() -> None:
    world = World()
    held = world.process()
    await world.records.write("context", "acme", "team", b"{}")
    assert await held.find("acme", "team") is None
    terms = await held.make("acme", "team", TEAM, None)
    await world.records.write("context-used", "acme", terms.edition, b"yesterday")
    assert await held.expires_at(terms) == terms.renewed_at + 1000
    world.clock.advance(1000)
    assert await held.find("acme", "team") is None


async def test_a_text_larger_than_the_memory_is_read_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(context_records, "_REMEMBERED_BYTES", 100)
    world = World()
    held = world.process()
    terms = await made(held)
    assert await held.base(terms) == await held.base(terms) == BASE
    assert world.records.seen.count("context-base") == 2


async def test_revoking_needs_the_terms_to_go_and_nothing_else() -> None:
    world = World()
    held = world.process()
    terms = await made(held)
    world.records.broken = {"context-base"}
    assert await held.delete(terms)
    assert await held.find("acme", "team") is None
    terms = await made(held)
    world.records.broken = {"context"}
    with pytest.raises(StoreError):
        await held.delete(terms)
    assert await held.find("acme", "team") == terms


def test_it_says_what_it_holds() -> None:
    assert repr(World().process()) == "<ContextRecords 0 texts, 0 used here>"


async def test_texts_that_no_terms_lead_to_go_with_the_second_sweep() -> None:
    world = World()
    one, two = world.process(), world.process()
    terms = await made(one)
    await world.records.write("context-base", "acme", "lost", b"[]")
    await world.records.write("context-used", "acme", "lost", b"1.0")
    await one.sweep()
    assert world.records.texts == 2  # its terms may be about to be written
    await one.sweep()
    assert await world.records.names("context-base", None) == [("acme", terms.edition)]
    assert await world.records.names("context-used", None) == []
    assert await two.base(terms) == BASE


async def test_terms_of_another_version_keep_every_text() -> None:
    world = World()
    held = world.process()
    await world.records.write("context", "acme", "newer", b'{"version": 99}')
    await world.records.write("context-base", "acme", "e9", b"[]")
    for _ in range(3):
        await held.sweep()
    assert world.records.texts == 1
