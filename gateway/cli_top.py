"""``kvgate top``: a running gateway, live in the terminal.

Fits into 80 columns and 24 lines. With ``--json`` each look is one line of JSON; where there is no
terminal each look is printed below the last. Ctrl-C leaves with exit code 130.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gateway.cli_remote import DEFAULT_URL, ApiKey, CannotAskError, Remote, Url, one_line, plain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from gateway.top_frame import Look

ANSWER_S: Final = 10.0
BAR: Final = 12
MOST_ROWS: Final = 3
"""Backends and warm jobs that are shown."""
Frame = Mapping[str, Any]


def top(
    *,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600.0, help="Seconds between looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One look: counts since the start.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each look.")] = False,
) -> None:
    """Rates, answers from the store, prompt reuse, latency, tiers, misses, backends and warm jobs, live. Ctrl-C ends."""
    with one_line():
        from rich.console import Console

        remote = Remote(url.rstrip("/"), api_key, timeout_s=ANSWER_S)
        looks = watch(remote, interval_s=interval, once=once)
        if as_json:
            for shown in looks:
                typer.echo(json.dumps(shown, ensure_ascii=True))
                sys.stdout.flush()
            return
        _draw(looks, Console(), remote.url, once=once)


def _draw(looks: Iterator[Frame], console: "Console", url: str, *, once: bool) -> None:
    if once or not console.is_terminal:
        for shown in looks:
            console.print(screen(shown, url))
        return
    from rich.live import Live

    # an end by SIGTERM gives the terminal's own screen back too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for shown in looks:
            live.update(screen(shown, url), refresh=True)


def watch(
    remote: Remote,
    *,
    interval_s: float,
    once: bool,
    sleep: Callable[[float], None] | None = None,
    now: Callable[[], float] | None = None,
) -> Iterator[Frame]:
    """Frames for ever, or one. ``sleep`` and ``now`` (unix seconds) are arguments for the tests.

    A gateway that stops answering is waited for, and the frame says so. Raises: CannotAskError when
    it does not answer the first time.
    """
    import time

    from gateway.top_frame import frame

    sleep, now = sleep or time.sleep, now or time.time  # noqa: TID251 - the command's own clock
    before: Look | None = None
    while True:
        try:
            seen = look(remote, now())
        except CannotAskError as error:
            if before is None:
                raise
            yield {"at": round(now(), 3), "error": str(error)}
        else:
            yield frame(seen, before)
            before = seen
        if once:
            return
        sleep(interval_s)


def look(remote: Remote, now: float) -> "Look":
    """All that is asked for one frame. Raises: CannotAskError."""
    from gateway.top_frame import Look

    with remote.opened("GET", "/readyz") as response:
        try:
            ready = json.loads(response.read())
        except (OSError, ValueError):
            ready = {}
    jobs = remote.ask("GET", "/v1/cache/warm")["data"]
    running = [job for job in jobs if job["status"] == "running"]
    return Look(now, remote.ask("GET", "/v1/cache/stats"), ready, running)


def screen(shown: Frame, url: str) -> "RenderableType":
    """A frame for a terminal."""
    from rich.console import Group
    from rich.text import Text

    if "error" in shown:
        return Group(Text(f"kvgate top  {url}"), Text(shown["error"], style="bold red"))
    parts: list[RenderableType] = [_head(shown, url), _levels(shown)]
    if shown["tiers"]:
        parts.append(_tiers(shown))
    if shown["misses"]:
        reasons = "  ".join(f"{reason} {count:,}" for reason, count in shown["misses"].items())
        parts.append(Text(f"misses  {reasons}", overflow="ellipsis", no_wrap=True))
    if shown["backends"]:
        parts.append(_backends(shown))
    for job in shown["warm"][:MOST_ROWS]:
        share = job["ended"] / job["total"] if job["total"] else 1.0
        failed = f", {job['failed']} failed" if job["failed"] else ""
        line = f"warming {_bar(share)} {job['ended']}/{job['total']}{failed}  {plain(job['id'])}"
        parts.append(Text(line, overflow="ellipsis", no_wrap=True))
    return Group(*parts)


def _head(shown: Frame, url: str) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    since, rate = shown["since_start"], shown["requests_per_s"]
    window = "since the start" if rate is None else f"last {shown['interval_s']:.0f} s"
    tenant = f"  tenant {plain(shown['tenant'])}" if shown["tenant"] else ""
    first = Text(f"kvgate top  {url}  ", overflow="ellipsis", no_wrap=True)
    first.append(shown["status"], style="green" if shown["status"] == "ready" else "bold yellow")
    first.append(f"{tenant}  {window}")
    second = (
        f"{_number(rate)} calls/s  errors {shown['errors']:,}  "
        f"store errors {shown['store_errors']:,}"
    )
    if shown["flights"] is not None:
        second += f"  in the air {shown['flights']:,}"
    third = (
        f"from the store {_percent(shown['stored_rate'])} "
        f"({_percent(since['stored_rate'])} since the start)  "
        f"prompts reused {_percent(shown['reuse_rate'])} ({_percent(since['reuse_rate'])})"
    )
    fourth = (
        f"saved since the start: {since['tokens_saved']:,} tokens, {since['seconds_saved']:,.1f} s, "
        f"{since['money_saved']:,.4f} money"
    )
    lines = (second, third, fourth, "")
    rest = (Text(line, overflow="ellipsis", no_wrap=True) for line in lines)
    return Group(first, *rest)


def _levels(shown: Frame) -> "Table":
    table = _table("level", "calls", "calls/s", "share", "p50", "p95")
    for name, level in shown["levels"].items():
        table.add_row(
            plain(name),
            f"{level['requests']:,}",
            _number(level["per_s"]),
            _percent(level["share"]),
            _time(level["p50_s"]),
            _time(level["p95_s"]),
        )
    return table


def _tiers(shown: Frame) -> "Table":
    table = _table("tier", "store", "entries", "fill", "bytes", "evicted")
    for name, tier in shown["tiers"].items():
        table.add_row(
            plain(name),
            plain(tier["store"]),
            f"{tier['entries']:,}",
            _bar(tier["fill"]),
            f"{_size(tier['size_bytes'])}/{_size(tier['max_bytes'])}",
            f"{tier['evictions']:,}",
        )
    return table


def _backends(shown: Frame) -> "Table":
    table = _table("backend", "state", "KV used", "KV hits", "running", "waiting")
    held = list(shown["backends"].items())
    for name, one in held[:MOST_ROWS]:
        said = one["error"] or one["state"]
        style = "" if said == "up" else "bold yellow"
        cells = (_bar(one["kv_fill"]), _percent(one["kv_hit_rate"]))
        counts = ("-" if one[key] is None else f"{one[key]:,}" for key in ("running", "waiting"))
        table.add_row(plain(name), plain(said), *cells, *counts, style=style)
    if len(held) > MOST_ROWS:
        table.add_row(f"and {len(held) - MOST_ROWS} more")
    return table


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, expand=True, header_style="dim")
    for place, name in enumerate(columns):
        left = place < 1 or name in {"store", "state", "fill", "KV used"}
        table.add_column(
            name, justify="left" if left else "right", no_wrap=True, overflow="ellipsis"
        )
    return table


def _bar(share: float | None) -> str:
    if share is None:
        return "-"
    full = round(min(1.0, max(0.0, share)) * BAR)
    return f"{'█' * full}{'░' * (BAR - full)} {share:4.0%}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
