"""From options to tiers."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.kv.blocks import BlockPool
from engine.kv.opening import open_tiers
from engine.kv.prefix import PrefixIndex
from engine.kv.tiers import Tiers
from tests.kit.scripted_runner import ScriptedRunner
from tests.kit.tiered import ScriptedStore


def opened(*, disk: Path | None = None, disk_bytes: int = 1 << 20, warm_bytes: int = 0) -> Tiers:
    return open_tiers(
        PrefixIndex(BlockPool(4), block_tokens=4),
        ScriptedStore(ScriptedRunner(blocks=4, block_tokens=4)),
        fingerprint=b"f" * 32,
        block_bytes=32,
        warm_bytes=warm_bytes,
        disk_path=None if disk is None else str(disk),
        disk_bytes=disk_bytes,
        clock=lambda: 0.0,
        wall=lambda: 0.0,
    )


def test_without_options_there_is_the_pool_alone() -> None:
    tiers = opened()
    assert repr(tiers) == "Tiers(the pool alone)"
    stats = tiers.stats(now=0.0)
    assert stats["warm"] == {"on": False}
    assert stats["cold"] == {"on": False}
    tiers.close(now=0.0, until=1.0)


def test_each_tier_has_the_blocks_that_its_bytes_hold(tmp_path: Path) -> None:
    tiers = opened(disk=tmp_path / "deep" / "down", warm_bytes=100)
    assert tiers.warm is not None
    assert tiers.cold is not None
    assert tiers.warm.shelf.most == 3
    assert tiers.cold.shelf.most == (1 << 20) // (4096 + 128)
    tiers.close(now=0.0, until=1.0)
    assert opened(warm_bytes=31).warm is None


def test_a_folder_or_size_that_cannot_be_is_the_operators_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"kv_disk.path: .*file' cannot be used"):
        opened(disk=tmp_path / "file")
    with pytest.raises(ConfigError, match=r"kv_disk.max: 5000 bytes hold hardly a block"):
        opened(disk=tmp_path, disk_bytes=5000)


def test_readers_and_writers_do_not_share_the_core_of_who_uses_them(tmp_path: Path) -> None:
    usable = os.sched_getaffinity(0)
    if len(usable) < 2:
        pytest.skip("there is one core for everybody")
    tiers = opened(disk=tmp_path)
    assert tiers.cold is not None
    runs, seen = (tiers._fetcher.run, tiers.cold._run), list[set[int]]()

    def use() -> None:
        os.sched_setaffinity(0, {min(usable)})
        for run in runs:
            done = run(lambda: seen.append(os.sched_getaffinity(0)))
            assert isinstance(done, Future)
            done.result()

    user = threading.Thread(target=use)
    user.start()
    user.join()
    tiers.close(now=0.0, until=0.0)
    assert seen == [usable, usable]
