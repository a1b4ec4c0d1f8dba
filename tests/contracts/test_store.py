"""What every store promises, whatever it keeps entries in."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.bars import MOST_BARS
from gateway.store.base import Entry, Selector, Since, Store, namespace_of
from gateway.store.disk import DiskStore, open_database
from gateway.store.memory import MemoryStore
from gateway.store.redis import RedisStore
from gateway.store.redis_client import connect
from policies.freshness import EntryMeta
from policies.keys import Scope
from tests.kit import redis_server
from tests.kit.entries import NOW, entry_of, key_of

Make = Callable[[int], Awaitable[Store]]
Open = Callable[[int, Path], AbstractAsyncContextManager[Store]]
ANY = Selector(None)
MIB = 2**20


@asynccontextmanager
async def memory(max_bytes: int, folder: Path) -> AsyncIterator[Store]:
    store = MemoryStore("warm", max_bytes=max_bytes)
    yield store
    await store.close()


@asynccontextmanager
async def redis(max_bytes: int, folder: Path) -> AsyncIterator[Store]:
    client = connect(redis_server.shared().url, limit_s=10)
    store = RedisStore("warm", client, max_bytes=max_bytes, namespace=redis_server.namespace())
    yield store
    await store.remove(ANY)
    await store.close()


@asynccontextmanager
async def disk(max_bytes: int, folder: Path) -> AsyncIterator[Store]:
    database = open_database(folder)
    store = DiskStore("warm", database, max_bytes=max_bytes)
    yield store
    await store.close()
    await database.close()


STORES: dict[str, Open] = {
    # An empty store of the tier "warm" with so many bytes; the folder is its own.
    "memory": memory,
    "disk": disk,
    "redis": redis,
}


@pytest.fixture(params=list(STORES))
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    async with AsyncExitStack() as opened:

        async def one(max_bytes: int) -> Store:
            return await opened.enter_async_context(STORES[request.param](max_bytes, tmp_path))

        yield one


def names(metas: Sequence[EntryMeta]) -> set[bytes]:
    return {meta.key for meta in metas}


async def put_all(store: Store, *entries: Entry) -> None:
    for entry in entries:
        assert (await store.put(entry, now=NOW)).kept


def since(number: int, entry: Entry) -> Entry:
    """The entry, from a flight that began in this generation."""
    return replace(entry, since=Since({"warm": number}))


async def test_what_was_put_is_found_and_nothing_else(make: Make) -> None:
    store, entry = await make(MIB), entry_of("a", b'{"answer":1}', tags=("x",), cache_key="faq:1")
    await put_all(store, entry)
    assert await store.get(key_of("a"), now=NOW) == entry
    assert await store.get(key_of("b"), now=NOW) is None


async def test_a_store_does_not_judge_age(make: Make) -> None:
    store = await make(MIB)
    await put_all(store, entry_of("a", ttl_s=1.0))
    assert await store.get(key_of("a"), now=NOW + 10_000) is not None


async def test_the_same_key_again_is_one_entry(make: Make) -> None:
    store = await make(MIB)
    await put_all(store, entry_of("a", b"old"), entry_of("a", b"newer"))
    found = await store.get(key_of("a"), now=NOW)
    assert found is not None
    assert found.body == b"newer"
    assert store.fill().entries == 1


SELECTORS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # what the entry has, how it is selected
    ({"tenant": "u"}, {}),
    ({}, {"key": key_of("hit")}),
    ({"tier": "hot"}, {"tier": "hot"}),
    ({"cache_key": "v1:ns:1"}, {"cache_key": "v1:ns:1"}),
    ({"cache_key": "v1:ns:1"}, {"prefix": "v1:"}),
    ({"cache_key": "v1:ns:1"}, {"namespace": "ns"}),
    ({"context": "code_review"}, {"context": "code_review"}),
    ({"user": "alice"}, {"user": "alice"}),
    ({"model": "other"}, {"model": "other"}),
    ({"batch_id": "b1"}, {"batch": "b1"}),
    ({"tags": ("x", "y")}, {"tag": "y"}),
]


@pytest.mark.parametrize(("has", "selected_by"), SELECTORS)
async def test_entries_are_found_and_removed_by_what_is_known_about_them(
    make: Make, has: dict[str, Any], selected_by: dict[str, Any]
) -> None:
    store = await make(MIB)
    meant = entry_of("hit", **has)
    await put_all(store, meant, entry_of("miss", cache_key="other"))
    selector = Selector(meant.meta.scope.tenant, **selected_by)
    if not selected_by:
        selector = Selector("u")
    assert names(await store.scan(selector, after=None, limit=9)) == {key_of("hit")}
    assert await store.remove(selector) == [meant.meta]
    assert await store.remove(selector) == []
    assert await store.get(key_of("hit"), now=NOW) is None
    assert await store.get(key_of("miss"), now=NOW) is not None


async def test_all_members_of_a_selector_must_agree(make: Make) -> None:
    store = await make(MIB)
    await put_all(store, entry_of("a", user="alice", model="m"), entry_of("b", user="alice"))
    assert await store.scan(Selector("t", user="alice", model="z"), after=None, limit=9) == []
    assert len(await store.scan(Selector("t", user="alice", model="m"), after=None, limit=9)) == 2


async def test_a_viewer_means_only_what_that_user_may_see(make: Make) -> None:
    store = await make(MIB)
    scopes = {
        "all": Scope("tenant", "t"),
        "batch": Scope("batch", "t", batch="b1"),
        "own": Scope("user", "t", user="ann"),
        "bobs": Scope("user", "t", user="bob"),
        "in": Scope("shared", "t", context="c", edition="1"),
        "out": Scope("shared", "t", context="c", edition="2"),
    }
    put = [entry_of(name, scope=scope, tags=("x",)) for name, scope in scopes.items()]
    await put_all(store, *put)
    seen = {key_of(name) for name in ("all", "batch", "own", "in")}
    selector = Selector("t", tag="x", viewer="ann", circles=("1",))
    assert names(await store.scan(selector, after=None, limit=9)) == seen
    assert await store.remove(Selector("t", key=key_of("bobs"), viewer="ann")) == []
    assert names(await store.remove(selector)) == seen
    left = await store.scan(Selector("t", viewer="bob", circles=("2",)), after=None, limit=9)
    assert names(left) == {key_of("bobs"), key_of("out")}


async def test_another_tenant_is_neither_seen_nor_touched(make: Make) -> None:
    store = await make(MIB)
    await put_all(store, entry_of("a", tenant="a"), entry_of("b", tenant="b"))
    assert names(await store.scan(Selector("a"), after=None, limit=9)) == {key_of("a")}
    assert await store.remove(Selector("a", key=key_of("b"))) == []
    assert await store.scan(Selector("a", key=key_of("b")), after=None, limit=9) == []
    assert names(await store.remove(Selector("a"))) == {key_of("a")}
    assert names(await store.scan(ANY, after=None, limit=9)) == {key_of("b")}


async def test_a_scan_goes_through_all_entries_once_page_by_page(make: Make) -> None:
    store = await make(MIB)
    await put_all(store, *(entry_of(str(number)) for number in range(10)))
    seen: list[bytes] = []
    after: bytes | None = None
    while page := await store.scan(ANY, after=after, limit=3):
        assert len(page) <= 3
        seen += [meta.key for meta in page]
        after = page[-1].key
    assert seen == sorted(key_of(str(number)) for number in range(10))


async def test_a_scan_may_start_at_the_beginning_of_a_key(make: Make) -> None:
    store = await make(MIB)
    await put_all(store, entry_of("a"), entry_of("b"))
    page = await store.scan(ANY, after=key_of("b")[:16], limit=1)
    assert names(page) == {key_of("b")}


async def test_how_full_it_is_is_told(make: Make) -> None:
    store = await make(MIB)
    empty = store.fill()
    assert (empty.tier, empty.entries, empty.max_bytes, empty.evictions) == ("warm", 0, MIB, 0)
    await put_all(store, entry_of("a", b"x" * 1000), entry_of("b"))
    fill = store.fill()
    assert fill.entries == 2
    assert 1000 < fill.size_bytes - empty.size_bytes < 10_000
    await store.remove(ANY)
    assert (store.fill().entries, store.fill().size_bytes) == (0, empty.size_bytes)


async def test_an_entry_larger_than_the_store_is_not_kept_and_no_older_answer_remains(
    make: Make,
) -> None:
    store = await make(20_000)
    await put_all(store, entry_of("a"), entry_of("b"))
    stored = await store.put(entry_of("a", b"x" * 20_001), now=NOW)
    assert not stored.kept
    assert await store.get(key_of("a"), now=NOW) is None
    assert await store.get(key_of("b"), now=NOW) is not None


async def test_a_write_that_began_before_a_clearing_does_not_land_after_it(make: Make) -> None:
    store = await make(MIB)
    await store.get(key_of("a"), now=NOW)
    before = store.number
    await store.bar(Selector("t", tag="x"))
    late = await store.put(since(before, entry_of("a", tags=("x",))), now=NOW)
    assert (late.kept, late.barred) == (False, True)
    assert await store.get(key_of("a"), now=NOW) is None
    assert (await store.put(since(before, entry_of("b", tags=("y",))), now=NOW)).kept
    assert (await store.put(since(store.number, entry_of("a", tags=("x",))), now=NOW)).kept


async def test_a_write_that_is_barred_leaves_what_is_there(make: Make) -> None:
    store = await make(MIB)
    await store.get(key_of("a"), now=NOW)
    older = store.number
    drawn = await store.bar(None)
    await store.bar(Selector("t", key=key_of("a")), at=drawn)
    assert (await store.put(since(drawn, entry_of("a", b"new")), now=NOW)).kept
    assert (await store.put(since(older, entry_of("a", b"old")), now=NOW)).barred
    found = await store.get(key_of("a"), now=NOW)
    assert found is not None
    assert found.body == b"new"
    await store.bar(Selector("t", key=key_of("a")), at=older)  # it changes nothing
    assert (await store.put(since(older, entry_of("a", b"old")), now=NOW)).barred


async def test_clearings_of_one_tenant_never_bar_another(make: Make) -> None:
    store = await make(MIB)
    await store.get(key_of("a"), now=NOW)
    before = store.number
    for number in range(MOST_BARS + 3):
        await store.bar(Selector("busy", cache_key=str(number)))
    assert (await store.put(since(before, entry_of("a", tenant="t")), now=NOW)).kept
    assert (await store.put(since(before, entry_of("b", tenant="busy")), now=NOW)).barred
    assert (await store.put(since(store.number - 9, entry_of("b", tenant="busy")), now=NOW)).kept


async def test_a_clearing_of_all_tenants_bars_every_one(make: Make) -> None:
    store = await make(MIB)
    await store.get(key_of("a"), now=NOW)
    before = store.number
    await store.bar(ANY)
    assert (await store.put(since(before, entry_of("a")), now=NOW)).barred


async def test_a_flight_of_which_no_generation_is_known_stores_nothing(make: Make) -> None:
    store = await make(MIB)
    await store.bar(ANY)
    assert (await store.put(since(0, entry_of("a")), now=NOW)).barred


async def test_room_is_made_by_what_is_expired_then_by_priority(make: Make) -> None:
    store = await make(60_000)
    big = b"x" * 15_000
    await put_all(
        store,
        entry_of("high", big, priority="high"),
        entry_of("low", big, priority="low"),
        entry_of("expired", big, priority="high", stored_at=NOW - 1000),
    )
    first = await store.put(entry_of("new", big), now=NOW)
    assert first.kept
    assert names(first.gone) == {key_of("expired")}
    second = await store.put(entry_of("newer", big, priority="high"), now=NOW)
    assert second.kept
    assert names(second.gone) == {key_of("low")}
    assert store.fill().evictions == 2


async def test_what_is_worth_less_than_everything_there_is_not_kept(make: Make) -> None:
    store = await make(35_000)
    big = b"x" * 15_000
    await put_all(store, entry_of("a", big, priority="high"), entry_of("b", big, priority="high"))
    stored = await store.put(entry_of("c", big, priority="low"), now=NOW)
    assert not stored.kept
    assert stored.gone == []
    assert store.fill().entries == 2


async def test_what_is_superseded_goes_first_though_it_was_dear_and_used(make: Make) -> None:
    store = await make(50_000)
    body = b"x" * 12_000
    await put_all(store, entry_of("turn 1", body, cost_s=9.0), entry_of("other", body))
    for _ in range(3):
        assert await store.get(key_of("turn 1"), now=NOW)
    older = key_of("turn 1")
    await store.put(replace(entry_of("turn 2", body, cost_s=5.0), supersedes=older), now=NOW)
    assert await store.get(older, now=NOW), "while there is room it answers"
    stored = await store.put(entry_of("newcomer", body), now=NOW)
    more = await store.put(entry_of("another", body), now=NOW)
    assert names([*stored.gone, *more.gone]) >= {older}
    assert (await store.get(key_of("turn 2"), now=NOW)) is not None
    nobody = replace(entry_of("turn 9", b""), supersedes=key_of("never there"))
    assert (await store.put(nobody, now=NOW)).kept


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdefgh"),
            st.integers(0, 9000),
            st.sampled_from(["high", "medium", "low"]),
            st.sampled_from(["put", "get", "remove"]),
        ),
        max_size=30,
    )
)
@pytest.mark.parametrize("kind", list(STORES))
async def test_a_store_never_holds_more_than_it_may_and_loses_nothing_silently(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    actions: list[tuple[str, int, str, str]],
) -> None:
    async with STORES[kind](20_000, tmp_path_factory.mktemp("store")) as store:
        await loses_nothing_silently(store, actions)


async def loses_nothing_silently(store: Store, actions: list[tuple[str, int, str, str]]) -> None:
    held: dict[bytes, bytes] = {}
    for name, size, priority, action in actions:
        if action == "put":
            body = b"x" * size
            stored = await store.put(entry_of(name, body, priority=priority), now=NOW)
            held.pop(key_of(name), None)
            for meta in stored.gone:
                del held[meta.key]
            if stored.kept:
                held[key_of(name)] = body
        elif action == "remove":
            gone = await store.remove(Selector("t", key=key_of(name)))
            assert bool(gone) == (held.pop(key_of(name), None) is not None)
        found = await store.get(key_of(name), now=NOW)
        assert (found.body if found else None) == held.get(key_of(name))
        fill = store.fill()
        assert fill.size_bytes <= fill.max_bytes
        assert fill.entries == len(held)


@pytest.mark.parametrize(
    ("cache_key", "namespace"),
    [("v1:ns:rest", "ns"), ("v1:ns:rest:more", "ns"), ("v1::x", ""), ("v1:ns", None), ("", None)],
)
def test_a_namespace_is_the_middle_of_a_key_of_three_parts(
    cache_key: str, namespace: str | None
) -> None:
    assert namespace_of(cache_key) == namespace


def test_a_selector_by_prefix_passes_entries_without_a_name_by() -> None:
    assert not Selector(None, prefix="a").matches(entry_of("x").meta)
    assert not Selector(None, namespace="a").matches(entry_of("x").meta)


def test_a_shared_contexts_id_is_a_context_too() -> None:
    meta = entry_of("x", scope=Scope("shared", "t", context="manual")).meta
    assert Selector("t", context="manual").matches(meta)
