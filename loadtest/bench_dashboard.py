"""What the dashboard costs the gateway: event loop time a second, for one who looks and for ten.

``python -m loadtest.bench_dashboard [--seconds 10] [--rounds 5] [--models 4] [--tenants 4]``

A gateway is given a past (calls of every model and tenant: hits, misses, uncached ones, named
conversations; shared contexts; warm jobs that have ended), and one call a second, so that the
numbers change with every frame. Rounds without a viewer, with one and with ten take turns; what the
thread of the event loop used of a core (``/proc/PID/task/PID/schedstat``, in nanoseconds) is
subtracted between neighbours. Linux only.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
from rich.console import Console
from rich.table import Table

from loadtest import report
from loadtest.client import PATH
from loadtest.processes import Server, cores
from loadtest.stats import spread

BAR_MS: Final = 1.0
VIEWERS: Final = (1, 10)
ADMIN: Final = "kv-dashboard-bench-admin"
SETTLE_S: Final = 2.0
"""After viewers came: what is sent once is not what a second costs."""
CONVERSATIONS: Final = 100
CONTEXTS: Final = 20
JOBS: Final = 5


@dataclass(frozen=True, slots=True)
class Round:
    """Milliseconds of the event loop a second, and bytes that came of one viewer's stream."""

    idle_ms: float
    looked_at_ms: Mapping[int, float]
    first_bytes: int
    bytes_per_s: float

    def added(self, viewers: int) -> float:
        """What so many viewers cost."""
        return self.looked_at_ms[viewers] - self.idle_ms


def config_of(upstream: int, models: int, tenants: int) -> dict[str, Any]:
    """The gateway's configuration."""
    names = [f"model-{number}" for number in range(models)]
    return {
        "backends": [
            {"name": "up", "base_url": f"http://127.0.0.1:{upstream}/v1", "models": names}
        ],
        "engine": {"enabled": False},
        "tiers": {"cold": {"store": "memory"}},
        "tenants": [
            {"name": "operator", "api_keys": [ADMIN], "admin": True},
            *({"name": f"tenant-{n}", "api_keys": [_key(n)]} for n in range(tenants)),
        ],
    }


def _key(tenant: int) -> str:
    return f"kv-dashboard-bench-{tenant}"


class Client:
    """Asks the gateway at ``url``."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def send(self, method: str, path: str, body: Any, key: str) -> Any:
        """One request. Raises: RuntimeError when it is refused."""
        headers = {"Authorization": f"Bearer {key}"}
        async with self._session.request(
            method, self._url + path, json=body, headers=headers
        ) as answer:
            said = await answer.json()
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {said}")
            return said

    async def ask(self, model: int, tenant: int, text: str, wish: Any) -> None:
        """One call."""
        body = {"model": f"model-{model}", "messages": [{"role": "user", "content": text}]}
        await self.send("POST", PATH, {**body, "kv_cache": wish}, _key(tenant))

    async def give_a_past(self, models: int, tenants: int) -> None:
        """Everything that a dashboard shows."""
        for tenant in range(tenants):
            for model in range(models):
                for tier in ("hot", "warm"):
                    wish = {"enabled": True, "tier": tier}
                    for _ in range(2):
                        await self.ask(model, tenant, f"{tier}?", wish)
                await self.ask(model, tenant, "uncached?", {"enabled": False})
            for number in range(CONVERSATIONS):
                for _ in range(2):
                    talk = {"enabled": True, "cache_key": f"talk-{number}"}
                    await self.ask(0, tenant, f"talk {number}?", talk)
        for number in range(CONTEXTS):
            book = {"base_prompt": f"You know book {number}.", "allowed_users": ["ann"]}
            await self.send("PUT", f"/v1/cache/contexts/book-{number}", book, ADMIN)
        for number in range(JOBS):
            asked = {"questions": [f"{number} {n}?" for n in range(20)]}
            await self.send("POST", "/v1/cache/warm", asked, ADMIN)
        while await self._jobs_run():  # noqa: ASYNC110 - a job is asked after, nothing tells
            await asyncio.sleep(0.5)

    async def _jobs_run(self) -> bool:
        jobs = (await self.send("GET", "/v1/cache/warm", None, ADMIN))["data"]
        return any(job["status"] == "running" for job in jobs)

    async def look(self, sizes: list[tuple[float, int]]) -> None:
        """Read the stream until cancelled; notes when how many bytes came."""
        headers = {"Authorization": f"Bearer {ADMIN}"}
        limit = aiohttp.ClientTimeout(total=None)
        url = f"{self._url}/dashboard/live"
        async with self._session.get(url, headers=headers, timeout=limit) as seen:
            if seen.status != 200:
                raise RuntimeError(f"the dashboard answers {seen.status}")
            async for received in seen.content.iter_any():
                sizes.append((time.monotonic(), len(received)))  # noqa: PERF401 - as it comes


def loop_ns(pid: int) -> int:
    """What the main thread has used of a core."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])


async def used_ms(client: Client, pid: int, seconds: float) -> float:
    """Milliseconds of the event loop a second, while one call a second is asked."""
    began_ns, began_s = loop_ns(pid), time.monotonic()
    for _ in range(round(seconds)):
        await client.ask(0, 0, "hot?", {"enabled": True, "tier": "hot"})
        await asyncio.sleep(1)
    return (loop_ns(pid) - began_ns) / 1e6 / (time.monotonic() - began_s)


async def one_round(client: Client, pid: int, seconds: float) -> Round:
    """Without a viewer, then with each number of them."""
    idle_ms = await used_ms(client, pid, seconds)
    looked_at_ms, sizes = {}, list[tuple[float, int]]()
    for viewers in VIEWERS:
        sizes = []
        looking = [
            asyncio.get_running_loop().create_task(client.look(sizes if not one else []))
            for one in range(viewers)
        ]
        await asyncio.sleep(SETTLE_S)
        if ended := [task for task in looking if task.done()]:
            ended[0].result()
            raise RuntimeError("a viewer was sent away")
        looked_at_ms[viewers] = await used_ms(client, pid, seconds)
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)
        await asyncio.sleep(0.5)  # the gateway learns that they left
    first, rest = sizes[0][0] + SETTLE_S / 2, sizes[-1][0] - sizes[0][0] - SETTLE_S / 2
    return Round(
        idle_ms=idle_ms,
        looked_at_ms=looked_at_ms,
        first_bytes=sum(size for at, size in sizes if at < first),
        bytes_per_s=sum(size for at, size in sizes if at >= first) / rest,
    )


async def measure(url: str, pid: int, asked: argparse.Namespace) -> tuple[list[Round], int]:
    """All rounds, and how many kinds of calls the gateway had counted."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        client = Client(url, session)
        await client.give_a_past(asked.models, asked.tenants)
        rounds = [await one_round(client, pid, asked.seconds) for _ in range(asked.rounds)]
        kinds = asked.tenants * asked.models * 5
        return rounds, kinds


def run(asked: argparse.Namespace) -> tuple[list[Round], int]:
    """The gateway and its upstream, and the rounds."""
    server_core, other_core = cores()
    with ExitStack() as stack:
        enter = stack.enter_context
        folder = Path(enter(tempfile.TemporaryDirectory()))
        mock = enter(Server("loadtest.mock_upstream", "--port", "{port}", core=other_core))
        config = folder / "config.yaml"  # JSON is YAML
        config.write_bytes(orjson.dumps(config_of(mock.port, asked.models, asked.tenants)))
        serve = ("serve", "--config", str(config), "--port", "{port}", "--log-level", "warning")
        kvgate = enter(Server("gateway", *serve, core=server_core, ready_path="/readyz"))
        url = f"http://127.0.0.1:{kvgate.port}"
        return asyncio.run(measure(url, kvgate.pid, asked))


def shown(rounds: Sequence[Round], kinds: int) -> Table:
    """The table."""
    table = Table(title=f"The dashboard of a gateway with {kinds} kinds of calls")
    for heading in ("viewers", "event loop a second", "bar"):
        table.add_column(heading, justify="right")
    table.add_row("none, one call a second", f"{spread([one.idle_ms for one in rounds])} ms", "")
    for viewers in VIEWERS:
        added = spread([one.added(viewers) for one in rounds])
        met = "" if viewers > 1 else "met" if added.median <= BAR_MS else "missed"
        table.add_row(f"{viewers}", f"{added} ms more", met)
    table.add_row("bytes at first", f"{spread([one.first_bytes for one in rounds]).median:.0f}", "")
    table.add_row("bytes a second", f"{spread([one.bytes_per_s for one in rounds]).median:.0f}", "")
    return table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--tenants", type=int, default=4)
    asked = parser.parse_args()
    facts = report.facts("loadtest.bench_dashboard")
    rounds, kinds = run(asked)
    Console(width=100).print(shown(rounds, kinds))
    result = {
        **facts,
        "how": vars(asked),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "bar_ms": BAR_MS,
        "kinds_of_calls": kinds,
        "idle_ms": asdict(spread([one.idle_ms for one in rounds])),
        "added_ms": {
            viewers: asdict(spread([one.added(viewers) for one in rounds])) for viewers in VIEWERS
        },
        "rounds": [asdict(one) for one in rounds],
    }
    print(f"written to {report.write('dashboard', result).relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
