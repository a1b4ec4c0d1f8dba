"""What is kept where, by the configuration."""

from gateway.config import Config
from gateway.flights import Tasks
from gateway.places import open_places
from tests.kit.clock import Clock


async def test_one_process_with_everything_in_memory_takes_no_leases() -> None:
    config = Config.model_validate({"tiers": {"cold": {"store": "memory"}}})
    tasks = Tasks()
    places = await open_places(config, config.rules(), tasks=tasks, now=Clock().now)
    assert places.leading is None
    assert {fill.tier: fill.store for fill in places.tiers.fills()} == {
        "hot": "memory", "warm": "memory", "cold": "memory",
    }  # fmt: skip
    await places.tiers.close()
