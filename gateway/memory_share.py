"""How much memory this process may use, and sizes that fit into it.

A control group (Docker, Kubernetes, systemd) ends a process that takes more than its limit, without a
word to the process. So sizes that the operator has not chosen are at most a share of that limit, or of
the machine's memory. Sizes that were chosen stay as they are.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import structlog

from gateway.config import Config

TIERS_SHARE: Final = 0.25
"""Of the memory, for the tiers in memory of all workers together."""
KV_SHARE: Final = 0.25
"""Of the memory, for the KV pools of all engines together; again for the tier beside a GPU."""
GROUP_LIMITS: Final = ("memory.max", "memory.high", "memory.limit_in_bytes")
LEAST_BYTES: Final = 2**20
UNLIMITED: Final = 2**60
_log = structlog.get_logger("kvgate")


@dataclass(frozen=True, slots=True)
class Allowed:
    """So many bytes, and what says so."""

    size_bytes: int
    source: str


def allowed(root: Path = Path("/")) -> Allowed | None:
    """The strictest limit on this process; None where nothing is known. ``root`` is for tests."""
    found = [*_control_groups(root), *_rlimits(), *_machine(root)]
    return min(found, key=lambda one: one.size_bytes, default=None)


def fitted(config: Config, limit: Allowed | None) -> Config:
    """``config``, with the sizes that the operator did not choose made to fit. One log line tells the changes."""
    if limit is None:
        return config
    tiers, chosen = _tiers(config, limit.size_bytes * TIERS_SHARE / config.server.workers)
    engine = _engine(config, limit.size_bytes * KV_SHARE) if config.engine_enabled() else {}
    made = config.model_copy(
        update={
            "tiers": config.tiers.model_copy(
                update={
                    name: getattr(config.tiers, name).model_copy(update={"max_bytes": size})
                    for name, size in tiers.items()
                }
            ),
            "engine": config.engine.model_copy(update=engine),
        }
    )
    said = {f"tiers.{name}": shown(size) for name, size in tiers.items()}
    said |= {f"engine.{name}": shown(size) for name, size in engine.items()}
    where = {"memory": shown(limit.size_bytes), "limit": limit.source}
    if said:
        _log.info("default sizes reduced to fit into the memory", **where, **said)
    if chosen * config.server.workers > limit.size_bytes:
        _log.warning("the configured tiers do not fit into the memory", **where)
    return made


def _tiers(config: Config, share_bytes: float) -> tuple[dict[str, int], int]:
    """New sizes by tier, for one worker; and how much the operator chose."""
    in_memory = {
        name: tier for name, tier in config.tiers.by_name().items() if tier.store == "memory"
    }
    free = {name: one for name, one in in_memory.items() if "max_bytes" not in one.model_fields_set}
    chosen = sum(one.max_bytes for name, one in in_memory.items() if name not in free)
    wanted = sum(one.max_bytes for one in free.values())
    scale = max(share_bytes - chosen, 0) / wanted if wanted else 1.0
    if scale >= 1:
        return {}, chosen
    return {n: max(int(one.max_bytes * scale), LEAST_BYTES) for n, one in free.items()}, chosen


def _engine(config: Config, share_bytes: float) -> dict[str, int]:
    """New sizes of the engines' KV pools: in this memory, unless they are on a GPU."""
    engine = config.engine
    processes = engine.replicas * engine.tensor_parallel
    has_gpu = engine.device == "cuda" or (engine.device == "auto" and _has_gpu())
    name = "kv_host_memory" if has_gpu else "kv_memory"
    size: int = getattr(engine, name)
    most = max(int(share_bytes / processes), LEAST_BYTES)
    return {name: most} if name not in engine.model_fields_set and most < size else {}


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()


def _control_groups(root: Path) -> Iterator[Allowed]:
    """Of version 2 and 1; a group has the limits of all above it as well."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, source = root / "sys/fs/cgroup", "cgroup v2"
        elif "memory" in controllers.split(","):
            top, source = root / "sys/fs/cgroup/memory", "cgroup v1"
        else:
            continue
        # In a container the path may be the host's; the container's own group is then the top.
        inner = PurePosixPath(path.lstrip("/"))
        for group in (inner, *inner.parents):
            for name in GROUP_LIMITS:
                text = _read(top / group / name).strip()
                if text.isdigit() and int(text) < UNLIMITED:
                    yield Allowed(int(text), source)


def _rlimits() -> Iterator[Allowed]:
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - not there on Windows

    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY:
            yield Allowed(soft, name)


def _machine(root: Path) -> Iterator[Allowed]:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            yield Allowed(int(line.split()[1]) * 1024, "machine")
            return
    names: Mapping[str, Any] = getattr(os, "sysconf_names", {})
    if root == Path("/") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        yield Allowed(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "machine")


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def shown(size_bytes: int) -> str:
    """``52428800`` as ``50MiB``."""
    return f"{size_bytes / 2**20:.0f}MiB"
