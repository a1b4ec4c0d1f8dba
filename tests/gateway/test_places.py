"""What is kept where, by the configuration."""

from collections.abc import Mapping
from typing import Any

from gateway.config import Config
from gateway.flights import Tasks
from gateway.places import BothNews, Places, open_places
from gateway.store.sharing import Listener, News
from tests.kit import redis_server
from tests.kit.clock import Clock


async def opened(config: Config, news: News | None = None) -> Places:
    clock, tasks = Clock(), Tasks()
    return await open_places(
        config,
        config.rules(),
        tasks=tasks,
        now=clock.now,
        draw=lambda: 0.0,
        clock=clock.monotonic,
        news=news,
    )


async def test_one_process_with_everything_in_memory_takes_no_leases() -> None:
    config = Config.model_validate({"tiers": {"cold": {"store": "memory"}}})
    places = await opened(config)
    assert places.leading is None
    assert {fill.tier: fill.store for fill in places.tiers.fills()} == {
        "hot": "memory", "warm": "memory", "cold": "memory",
    }  # fmt: skip
    await places.close()


async def test_with_a_redis_url_its_tiers_and_all_that_is_shared_lie_there() -> None:
    store = {"redis_url": redis_server.shared().url}
    config = Config.model_validate({"tiers": {"cold": {"store": "redis"}}, "store": store})
    places = await opened(config)
    try:
        assert [fill.store for fill in places.tiers.fills()] == ["memory", "memory", "redis"]
        assert places.leading is not None
        assert await places.leases.take(b"test-places", ttl_s=60)
        other = await opened(config)
        assert await other.leases.held(b"test-places")
        await other.close()
        await places.leases.release(b"test-places")
    finally:
        await places.close()


async def test_who_could_not_find_anothers_answer_does_not_wait_for_it() -> None:
    places = await opened(Config.model_validate({"store": {"redis_url": "redis://127.0.0.1:1"}}))
    assert places.leading is None
    await places.close()


class Heard:
    """News that are noted."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.listens: list[str] = []

    async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        self.told.append(topic)

    def listen(self, topic: str, listener: Listener) -> None:
        self.listens.append(topic)


async def test_workers_beside_us_and_gateways_elsewhere_are_told() -> None:
    near, far = Heard(), Heard()
    both = BothNews(near, far)

    async def hear(message: Mapping[str, Any]) -> None:
        pass

    both.listen("clear", hear)
    await both.tell("clear", {})
    assert near.told == far.told == near.listens == far.listens == ["clear"]
    store = {"redis_url": "redis://127.0.0.1:1"}
    places = await opened(Config.model_validate({"store": store}), near)
    assert isinstance(places.news, BothNews)
    await places.close()
