"""Figures with what is needed to judge them later: versions, command, machine, time."""

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from loadtest.processes import HERE

RESULTS: Final = HERE / "results"
PACKAGES: Final = ("aiohttp", "uvloop", "orjson", "structlog", "prometheus-client", "torch")


def facts(module: str) -> dict[str, Any]:
    """What a reader of the figures needs to know about where they come from."""
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("describe", "--always", "--dirty", "--exclude", "*"),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "system": platform.platform(),
            "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        },
    }


def write(name: str, content: dict[str, Any]) -> Path:
    """Write ``content`` to the folder of results; returns where."""
    RESULTS.mkdir(exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = RESULTS / f"{name}-{stamp}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str | None:
    asked = subprocess.run(
        ["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
