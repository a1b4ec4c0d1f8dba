"""A conversation that goes on gives the room of its earlier turns to answers that may be asked for."""

from typing import Any

from tests.kit.service import Service, serving

WISH = {"enabled": True, "cache_key": "talk", "tier": "hot"}
OTHER = {"enabled": True, "tier": "hot"}
ROOM = {
    "hot": {"max_bytes": 8_000},
    "warm": {"max_bytes": 0},
    "cold": {"max_bytes": 0, "store": "memory"},
}


async def ask(service: Service, messages: Any, wish: Any = WISH) -> bool:
    answer = await service.chat(wish, messages=messages)
    await service.settled()
    return answer.headers["X-Cache-Level"] == "response"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def test_the_turn_before_goes_first_though_it_was_used_most() -> None:
    first = [user("turn 1")]
    second = [*first, {"role": "assistant", "content": "said"}, user("turn 2")]
    async with serving(tiers=ROOM) as service:
        await ask(service, first)
        assert [await ask(service, first) for _ in range(3)] == [True, True, True]
        for number in range(2):
            await ask(service, [user(f"question {number}")], OTHER)
        await ask(service, second)
        assert await ask(service, first), "with room for it, it still answers"
        fill = service.gateway.store.fills()[0]
        while fill.evictions == 0:
            number += 1
            await ask(service, [user(f"question {number}")], OTHER)
            fill = service.gateway.store.fills()[0]
        assert not await ask(service, first), "it was the first to go"


async def test_a_turn_that_rose_to_another_tier_is_known_there() -> None:
    first = [user("turn 1")]
    second = [*first, {"role": "assistant", "content": "said"}, user("turn 2")]
    wish = {"enabled": True, "cache_key": "talk"}
    tiers = {"hot": {"max_bytes": 5_000}, "cold": {"store": "memory"}}
    async with serving(tiers=tiers) as service:
        await ask(service, first, wish)
        for _ in range(3):  # then it is in the hot tier
            assert await ask(service, first, wish)
        assert service.gateway.store.fills()[0].entries == 1
        await ask(service, [user("dear")], OTHER)
        await ask(service, second, wish)
        while service.gateway.store.fills()[0].evictions == 0:
            await ask(service, [user(f"{service.upstream.calls}")], OTHER)
        answer = await service.chat(wish, messages=first)
        assert answer.headers["X-Cache-Tier"] == "warm", "it sank before the others"


async def test_without_a_later_turn_what_was_used_most_stays() -> None:
    first = [user("turn 1")]
    async with serving(tiers=ROOM) as service:
        await ask(service, first)
        for _ in range(3):
            await ask(service, first)
        number, evictions = 0, 0
        while evictions == 0:
            number += 1
            await ask(service, [user(f"question {number}")], OTHER)
            evictions = service.gateway.store.fills()[0].evictions
        assert await ask(service, first)
