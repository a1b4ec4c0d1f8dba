"""A hundred users of all kinds against kvgate with its own engine, and whether it stays flat.

``python -m loadtest.mixed [--users 100] [--seconds 60] [--html FILE] [SCENARIO ...]``

Starts ``kvgate serve`` with the bundled engine and four tenants, runs locust over it (SCENARIO: names
of locust's user classes; none: all of them), and ends both. Locust's exit status is ours: 1 when any
request failed. The report is written to ``loadtest/results/mixed-TIME.json`` and ``.md``.
"""

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import yaml

from loadtest.processes import HERE, Server, end_properly
from loadtest.report import RESULTS

READY_S: Final = 300.0
TENANTS: Final = ("acme", "globex", "initech")


def config(keys: Sequence[str], folder: Path, kv_memory: str) -> str:
    """Of kvgate: an administrator with the first key, a tenant for each of the others, nothing stored."""
    tenants = [{"name": "main", "api_keys": [keys[0]], "admin": True}]
    tenants += [
        {"name": name, "api_keys": [key]} for name, key in zip(TENANTS, keys[1:], strict=True)
    ]
    return yaml.safe_dump(
        {
            "tenants": tenants,
            "store": {"disk_path": str(folder / "store")},
            "engine": {"kv_memory": kv_memory},
        }
    )


def locust(asked: argparse.Namespace, server: Server, stem: Path) -> list[str]:
    """The command line."""
    command = [
        sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", *asked.scenario,
        "--headless", "-u", str(asked.users), "-r", str(max(1, asked.users // 5)),
        "-t", f"{asked.seconds}s", "--host", f"http://127.0.0.1:{server.port}",
        "--watch-pid", str(server.pid), "--report", str(stem.relative_to(HERE.parent)),
        "--note", f"engine.kv_memory {asked.kv_memory}", "--only-summary",
    ]  # fmt: skip
    return [*command, "--html", asked.html] if asked.html else command


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("scenario", nargs="*", help="user classes; none: all")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=60)
    # Memory that the pool has not used yet is not resident: with the shipped 1 GiB it would grow
    # for minutes, and what else grows could not be told from it.
    parser.add_argument("--kv-memory", default="144MiB", help="small: full before the second half")
    parser.add_argument("--html", default="", help="locust's own report")
    asked = parser.parse_args()
    end_properly()
    keys = [f"sk-{secrets.token_hex(16)}" for _ in range(1 + len(TENANTS))]
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"mixed-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "config.yaml"
        place.write_text(config(keys, Path(folder), asked.kv_memory))
        server = Server(
            "gateway", "serve", "--config", str(place), "--port", "{port}",
            ready_path="/readyz", ready_s=READY_S, log=Path(folder) / "kvgate.log",
        )  # fmt: skip
        environment = {
            **os.environ, "KVGATE_API_KEY": keys[0], "KVGATE_TENANT_KEYS": ",".join(keys[1:])
        }  # fmt: skip
        with server:
            done = subprocess.run(
                locust(asked, server, stem), cwd=HERE.parent, env=environment, check=False
            )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
