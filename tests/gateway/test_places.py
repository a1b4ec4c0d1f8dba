"""What is kept where, by the configuration."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config
from gateway.flights import Tasks
from gateway.places import BothNews, Places, open_places, own_folder
from gateway.store.base import StoreError
from gateway.store.sharing import Listener, News
from tests.kit import redis_server
from tests.kit.clock import Clock
from tests.kit.entries import NOW, entry_of, key_of


async def opened(config: Config, news: News | None = None, *, several: bool = False) -> Places:
    clock, tasks = Clock(), Tasks()
    return await open_places(
        config,
        config.rules(),
        tasks=tasks,
        now=clock.now,
        draw=lambda: 0.0,
        clock=clock.monotonic,
        news=news,
        several=several,
    )


async def test_one_process_with_everything_in_memory_takes_no_leases() -> None:
    config = Config.model_validate({"tiers": {"cold": {"store": "memory"}}})
    places = await opened(config)
    assert places.leading is None
    assert {fill.tier: fill.store for fill in places.tiers.fills()} == {
        "hot": "memory", "warm": "memory", "cold": "memory",
    }  # fmt: skip
    await places.close()


async def test_no_request_waits_for_an_entry_that_rises() -> None:
    places = await opened(Config())
    await places.tiers.put(entry_of("a", tier="warm"), now=NOW)
    for _ in range(3):
        assert await places.tiers.get(key_of("a"), now=NOW) is not None
    assert "an entry rises" in {task.get_name() for task in asyncio.all_tasks()}
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
    tiers = {"cold": {"store": "memory"}}
    store = {"redis_url": "redis://127.0.0.1:1"}
    places = await opened(Config.model_validate({"tiers": tiers, "store": store}))
    assert places.leading is None
    await places.close()


async def test_with_a_tier_on_disk_all_that_is_shared_lies_there_too(tmp_path: Path) -> None:
    config = Config.model_validate({"store": {"disk_path": str(tmp_path / "new" / "folder")}})
    places = await opened(config, several=True)
    try:
        assert [fill.store for fill in places.tiers.fills()] == ["memory", "memory", "disk"]
        assert places.leading is not None
        assert await places.leases.take(b"k", ttl_s=60)
        await places.records.write("kind", "t", "name", b"data")
        await places.tiers.put(entry_of("a", tier="cold"), now=NOW)
        other = await opened(config, several=True)
        assert not await other.leases.take(b"k", ttl_s=60)
        assert await other.records.read("kind", "t", "name") == b"data"
        assert await other.tiers.get(key_of("a"), now=NOW) == entry_of("a", tier="cold")
        await other.close()
    finally:
        await places.close()
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "new" / "folder").iterdir()} == {
        0o600
    }


async def test_a_single_process_with_a_disk_takes_no_leases(tmp_path: Path) -> None:
    places = await opened(Config.model_validate({"store": {"disk_path": str(tmp_path)}}))
    assert places.leading is None
    await places.close()


async def test_a_folder_that_cannot_be_made_fails_the_store_and_not_the_start(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "file" / "folder")
    places = await opened(Config.model_validate({"store": {"disk_path": path}}))
    with pytest.raises(StoreError):
        await places.tiers.get(key_of("a"), now=NOW)
    await places.tiers.put(entry_of("b", tier="hot"), now=NOW)
    assert await places.tiers.get(key_of("b"), now=NOW) is not None
    await places.close()


UP = {"name": "up", "base_url": "http://127.0.0.1:9001/v1", "models": ["m"]}
TENANT = {"name": "acme", "api_keys": ["kv-3f1c7a90b2d84e65"]}
OTHER_KEY = {"name": "acme", "api_keys": ["kv-9f1c7a90b2d84e66"]}


def folder_of(**wishes: Any) -> Path:
    config = Config.model_validate({"backends": [UP], "tenants": [TENANT], **wishes})
    return own_folder(config, {"KVGATE_CACHE_DIR": "/cache"})


@pytest.mark.parametrize(
    "other",
    [
        {"backends": [{**UP, "name": "other"}]},
        {"backends": [{**UP, "base_url": "http://127.0.0.1:9002/v1"}]},
        {"backends": [{**UP, "models": ["m", "n"]}]},
        {"backends": [UP, {**UP, "name": "other"}]},
        {"engine": {"enabled": True}},
        {"engine": {"enabled": True, "model": "other"}},
        {"aliases": {"alias": "m"}},
        {"tenants": []},
        {"tenants": [TENANT, {**OTHER_KEY, "name": "other"}]},
    ],
)
def test_gateways_that_answer_otherwise_have_folders_of_their_own(other: dict[str, Any]) -> None:
    assert folder_of(**other) != folder_of()
    assert folder_of(**other) != folder_of(engine={"enabled": True, "model": "third"})


@pytest.mark.parametrize(
    "same",
    [
        {},
        {"server": {"port": 9000, "workers": 4}},
        {"tenants": [TENANT, OTHER_KEY]},
        {"backends": [{**UP, "api_key": "sk-1", "max_concurrency": 3}]},
        {"engine": {"enabled": False, "model": "other"}},
    ],
)
def test_a_folder_outlives_what_changes_no_answer(same: dict[str, Any]) -> None:
    assert folder_of(**same) == folder_of()
    assert folder_of().parent == Path("/cache")
    assert re.fullmatch(r"responses-[0-9a-f]{16}", folder_of().name)


def test_a_model_in_a_file_is_known_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.gguf").write_text("")
        monkeypatch.chdir(tmp_path / name)
        folders.add(folder_of(backends=[], engine={"model": "model.gguf"}))
    assert len(folders) == 2


async def test_two_gateways_without_a_folder_find_nothing_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVGATE_CACHE_DIR", str(tmp_path))
    elsewhere = {**UP, "base_url": "http://127.0.0.1:9002/v1"}
    one, other, again = [
        await opened(Config.model_validate({"backends": [backend]}))
        for backend in (UP, elsewhere, UP)
    ]
    await one.tiers.put(entry_of("a", tier="cold"), now=NOW)
    await one.records.write("kind", "t", "name", b"data")
    assert await other.tiers.get(key_of("a"), now=NOW) is None
    assert await other.records.read("kind", "t", "name") is None
    assert await again.tiers.get(key_of("a"), now=NOW) == entry_of("a", tier="cold")
    assert await again.records.read("kind", "t", "name") == b"data"
    for places in (one, other, again):
        await places.close()


class Heard:
    """News that are noted; with ``error`` they fail after that."""

    def __init__(self, error: str | None = None) -> None:
        self.error = error
        self.told: list[str] = []
        self.listens: list[str] = []

    async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        self.told.append(topic)
        if self.error is not None:
            raise StoreError(self.error)

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
    wishes = {"store": {"redis_url": "redis://127.0.0.1:1"}, "tiers": {"cold": {"store": "memory"}}}
    places = await opened(Config.model_validate(wishes), near)
    assert isinstance(places.news, BothNews)
    await places.close()


@pytest.mark.parametrize(("near", "far"), [("first", None), (None, "first"), ("first", "second")])
async def test_those_elsewhere_are_told_also_when_one_beside_us_does_not_hear(
    near: str | None, far: str | None
) -> None:
    beside, elsewhere = Heard(near), Heard(far)
    with pytest.raises(StoreError, match="first"):
        await BothNews(beside, elsewhere).tell("clear", {})
    assert beside.told == elsewhere.told == ["clear"]
