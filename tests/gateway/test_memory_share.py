"""The memory that a process may use, read as the system says it, and sizes that fit into it."""

import resource
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.config import Config, load
from gateway.memory_share import Allowed, allowed, fitted

MIB = 2**20
SHIPPED = Path(__file__).parent.parent.parent / "config.yaml"
UP = {"name": "up", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}
MEMINFO = {"proc/meminfo": "MemTotal:        8388608 kB\nMemFree:  1 kB\n"}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, Allowed(8192 * MIB, "machine"), id="no group"),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"},
            Allowed(8192 * MIB, "machine"),
            id="version 2 without a limit",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": f"{200 * MIB}\n"},
            Allowed(200 * MIB, "cgroup v2"),
            id="version 2",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": f"{300 * MIB}\n",
                "sys/fs/cgroup/a/memory.max": f"{200 * MIB}\n",
                "sys/fs/cgroup/a/memory.high": f"{100 * MIB}\n",
            },
            Allowed(100 * MIB, "cgroup v2"),
            id="a group above is stricter",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/docker/f00\n", "sys/fs/cgroup/memory.max": f"{200 * MIB}\n"},
            Allowed(200 * MIB, "cgroup v2"),
            id="in a container, with the host's path",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/a\n0::/\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{200 * MIB}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            Allowed(200 * MIB, "cgroup v1"),
            id="version 1",
        ),
    ],
)
def test_the_strictest_limit_counts(
    tmp_path: Path, files: dict[str, str], expected: Allowed
) -> None:
    assert allowed(tree(tmp_path, MEMINFO | files)) == expected


def test_a_limit_of_the_process_itself_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {resource.RLIMIT_DATA: (300 * MIB, -1)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits.get(kind, (-1, -1)))
    assert allowed(tree(tmp_path, MEMINFO)) == Allowed(300 * MIB, "RLIMIT_DATA")


def test_this_machine_has_some() -> None:
    found = allowed()
    assert found is not None
    assert found.size_bytes > 0


def config_of(**more: Any) -> Config:
    return Config.model_validate({"backends": [UP], **more})


def tiers_of(config: Config, mib: int) -> list[int]:
    made = fitted(config, Allowed(mib * MIB, "cgroup v2"))
    return [tier.max_bytes // MIB for tier in made.tiers.by_name().values()]


def test_tiers_in_memory_share_a_quarter_and_disks_stay() -> None:
    assert tiers_of(config_of(), 200) == [25, 25, 4096]
    assert tiers_of(config_of(), 2048) == [256, 256, 4096]
    assert tiers_of(config_of(), 8) == [1, 1, 4096]
    assert tiers_of(config_of(tiers={"cold": {"store": "memory"}}), 9 * 1024) == [128, 128, 2048]


def test_workers_share_it_among_them() -> None:
    assert tiers_of(config_of(server={"workers": 5}), 200) == [5, 5, 4096]


def test_chosen_sizes_stay_and_take_their_part() -> None:
    assert tiers_of(config_of(tiers={"hot": {"max_bytes": "40MiB"}}), 200) == [40, 10, 4096]
    assert tiers_of(config_of(tiers={"hot": {"max_bytes": "1GiB"}}), 200) == [1024, 1, 4096]
    chosen = {"hot": {"max_bytes": "256MiB"}, "warm": {"max_bytes": "256MiB"}}
    assert tiers_of(config_of(tiers=chosen), 200) == [256, 256, 4096]


def test_the_shipped_file_chooses_nothing() -> None:
    config = load(SHIPPED, environ={"KVGATE_TIERS__WARM__MAX_BYTES": "auto"})
    assert config == Config()
    assert tiers_of(config, 200) == [25, 25, 4096]


@pytest.mark.parametrize(
    ("engine", "mib"),
    [
        ({}, 256),
        ({"replicas": 2}, 128),
        ({"tensor_parallel": 2, "replicas": 2}, 64),
        ({"kv_memory": "2GiB"}, 2048),
        ({"kv_memory": "auto"}, 256),
        ({"device": "cuda"}, 1024),
    ],
)
def test_the_kv_pools_share_a_quarter_too_unless_they_are_a_gpus(engine: Any, mib: int) -> None:
    config = Config.model_validate({"engine": {"device": "cpu", **engine}})
    made = fitted(config, Allowed(1024 * MIB, "cgroup v2"))
    assert made.engine.kv_memory == mib * MIB
    beside_a_gpu = 256 if made.engine.device == "cuda" else 2048
    assert made.engine.kv_host_memory == beside_a_gpu * MIB


def test_what_was_changed_is_one_line_and_what_cannot_fit_is_another() -> None:
    structlog.reset_defaults()
    with capture_logs() as lines:
        fitted(config_of(), None)
        fitted(config_of(), Allowed(64 * 1024 * MIB, "machine"))
        assert lines == []
        fitted(config_of(), Allowed(200 * MIB, "cgroup v1"))
        fitted(config_of(tiers={"hot": {"max_bytes": "1GiB"}}), Allowed(600 * MIB, "cgroup v1"))
    reduced, warm, too_large = lines
    assert reduced["event"] == "default sizes reduced to fit into the memory"
    assert (reduced["memory"], reduced["limit"]) == ("200MiB", "cgroup v1")
    assert (reduced["tiers.hot"], reduced["tiers.warm"]) == ("25MiB", "25MiB")
    assert warm["tiers.warm"] == "1MiB"
    assert too_large["log_level"] == "warning"
    assert "tiers do not fit" in too_large["event"]
