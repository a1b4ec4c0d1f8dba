"""Looking up, retaining, forgetting, following: between the steps of a running engine."""

import asyncio

import pytest

from engine.kv.missed import Missed
from engine.kv.retention import Wish
from engine.kv.salts import Layered
from engine.kv_control import Quota
from tests.kit.scripted_service import P, Scripted, scripted

TOKENS = tuple(range(1, 18))


async def prefilled(one: Scripted, text: str = "abcdefgh", salt: str = "") -> None:
    response = await one.post("/kv/prefill", {"prompt": text, "kv": {"salt": salt, "ttl_s": 60}})
    assert response.status == 200


def ids(text: str) -> tuple[int, ...]:
    return tuple(byte + 1 for byte in text.encode())


async def test_a_lookup_says_where_tokens_are_and_why_no_more() -> None:
    async with scripted() as one:
        await prefilled(one)
        found = await one.service.control.lookup(ids("abcdefghijkl!"), "")
        assert found.tiers == {"hot": 8, "warm": 0, "cold": 0}
        assert found.missed == Missed("never_seen", 8)
        other = await one.service.control.lookup(ids("abcdefghijkl!"), "s")
        assert other.as_json()["missed"] == {"reason": "never_seen", "at_token": 0}
        own = await one.service.control.lookup(ids("abcdefghijkl!"), "s", own_salts=[""])
        assert own.missed == Missed("other_salt", 0)


async def test_what_is_retained_is_what_is_read_back() -> None:
    async with scripted() as one:
        await prefilled(one, "abcdefghijkl")
        retain = one.service.control.retain
        wish = Wish(priority="high", ttl_s=500.0, pin=True, pin_s=9.0, floor="warm", ceiling="hot")
        await retain(ids("abcdefgh"), "", wish)
        kept = (await retain(ids("abcdefghijklmnop"), "", Wish())).as_json()
        assert (kept["tokens"], kept["held_tokens"], kept["pinned_tokens"]) == (16, 12, 8)
        first, second = kept["runs"]
        assert 0 < first.pop("ttl_left_s") <= 500
        assert 0 < first.pop("pin_left_s") <= 9
        assert 0 < second.pop("ttl_left_s") <= 60
        assert first == {
            "from_token": 0,
            "until_token": 8,
            "tier": "hot",
            "priority": "high",
            "pinned": True,
            "floor": "warm",
            "ceiling": "hot",
        }
        assert second == {
            "from_token": 8,
            "until_token": 12,
            "tier": "hot",
            "priority": "medium",
            "pinned": False,
            "pin_left_s": None,
            "floor": None,
            "ceiling": "cold",
        }
        unpinned = await retain(ids("abcdefgh"), "", Wish(pin=False, floor="none"))
        assert unpinned.as_json()["pinned_tokens"] == 0
        assert unpinned.runs[0].retention.floor is None


async def test_pins_beyond_half_of_the_pool_are_refused_and_said() -> None:
    async with scripted(blocks=8) as one:
        await prefilled(one, "abcdefghijklmnopqrstuvwx")
        kept = await one.service.control.retain(ids("abcdefghijklmnopqrstuvwx"), "", Wish(pin=True))
        said = kept.as_json()
        assert (said["pinned_tokens"], said["pin_refused_tokens"]) == (4 * P, 2 * P)
        assert said["runs"][0]["pin_left_s"] is None


async def test_a_quota_is_set_read_back_and_taken_away() -> None:
    async with scripted() as one:
        await prefilled(one, "abcdefgh", "s")
        retain = one.service.control.retain
        kept = await retain((), "s", Wish(), quota=Quota(1))
        assert (kept.quota_bytes, kept.kept_bytes) == (1, 1)
        assert (await retain((), Layered("s", "t", 1), Wish())).quota_bytes is None
        kept = await retain(ids("abcdefgh"), "s", Wish(), quota=Quota(None))
        assert (kept.quota_bytes, kept.runs[-1].stop) == (None, 4)


async def test_a_prompt_is_forgotten_from_a_token_on() -> None:
    async with scripted() as one:
        await prefilled(one, "abcdefghijkl")
        control = one.service.control
        assert await control.invalidate_from(ids("abcdefghijkl"), "", from_token=6) == 8
        found = await control.lookup(ids("abcdefghijkl"), "")
        assert found.tiers["hot"] == 4
        assert found.missed is not None
        assert found.missed.reason == "invalidated"
        assert await control.invalidate(None) == 4


async def test_a_reader_of_events_waits_until_something_happens() -> None:
    async with scripted() as one:
        control = one.service.control
        assert (await control.events(0, limit=9)).events == ()
        waiting = asyncio.create_task(control.events(0, limit=9, wait_s=60))
        other = asyncio.create_task(control.events(0, limit=9, wait_s=60))
        while len(control._waiting) < 2:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        await prefilled(one)
        for task in (waiting, other):
            page = await task
            assert {event.kind for event in page.events} == {"stored"}
            assert page.last >= 1
        assert not control._waiting


async def test_many_events_at_once_wake_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted() as one:
        control = one.service.control
        waiting = asyncio.create_task(control.events(0, limit=99, wait_s=60))
        while not control._waiting:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        await control.events(0, limit=1)  # by now it has looked
        calls: list[object] = []
        loop = asyncio.get_running_loop()
        with monkeypatch.context() as patched:
            patched.setattr(loop, "call_soon_threadsafe", calls.append)
            for _ in range(100):
                control._heard()
        assert calls == [control._wake]
        control._wake()
        assert (await waiting).events == ()
        again = asyncio.create_task(control.events(0, limit=99, wait_s=60))
        while not control._waiting:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        await prefilled(one)
        assert (await again).events


async def test_a_wait_ends_with_its_time_and_with_its_reader() -> None:
    async with scripted() as one:
        control = one.service.control
        assert (await control.events(0, limit=9, wait_s=0.001)).last == 0
        waiting = asyncio.create_task(control.events(0, limit=9, wait_s=60))
        while not control._waiting:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert not control._waiting
        await prefilled(one)
