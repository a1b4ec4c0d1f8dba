"""The report of ``kvgate replay`` for people."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.cli_remote import plain
from gateway.cli_replay_curve import in_terminal
from gateway.trace import JournalTrace
from gateway.whatif_advice import Advice
from gateway.whatif_run import TIERS, Run, Runner
from gateway.whatif_sweep import OF_KV, Point, Sweep
from policies.analytics import spoken

WIDTH: Final = 110
COUNTED: Final = {
    "requests": "calls",
    "stored_answers": "stored answers",
    "stored_rate": "from the store",
    "reuse_rate": "prompts reused",
    "tokens_saved": "tokens saved",
    "seconds_saved": "seconds saved",
    "money_saved": "money saved",
}
Curves = Sequence[tuple[Sweep, Sequence[Point]]]


def text(
    report: Mapping[str, Any], runs: Sequence[Run], curves: Curves, advice: Sequence[Advice] | None
) -> str:
    """Everything, in plain text of at most :data:`WIDTH` columns."""
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, highlight=False)
    trace = report["trace"]
    console.print(
        escape(
            plain(
                f"{', '.join(trace['files'])}: {trace['format']}, {trace['calls']:,} calls, "
                f"{trace['blocks']:,} blocks of prompts, {trace['hours']:g} hours"
            )
        )
    )
    if runs[0].answers is not None:
        console.print(calls(runs))
        console.print(tiers(runs))
        console.print(looked_up(runs))
    if runs[0].blocks is not None:
        console.print(blocks(runs))
    for sweep, points in curves:
        console.print(curve(sweep, points))
        console.print(escape(in_terminal(sweep, points)))
    if advice is not None:
        console.print(recommendations(advice))
    for assumption in report["assumptions"]:
        console.print(f"- {escape(assumption)}")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def calls(runs: Sequence[Run]) -> Table:
    """Totals and levels, a run after the other; of the second what is different, too."""
    shown = _table("", *COUNTED.values())
    for run in runs:
        told = run.as_dict()
        shown.add_section()
        shown.add_row(escape(plain(run.setting.name)), *_cells(told), style="bold")
        for level, tally in sorted(told["levels"].items()):
            shown.add_row(f"  {level}", *_cells(tally))
    if len(runs) == 2:
        one, other = (run.totals for run in runs)
        shown.add_section()
        shown.add_row("difference", *_differences(one, other))
    return shown


def tiers(runs: Sequence[Run]) -> Table:
    """How full each tier got, and what went."""
    shown = _table(
        "tier", "stored answers", "most bytes", "of bytes", "entries", "evictions", "ttl s"
    )
    for run in runs:
        if len(runs) > 1:
            shown.add_section()
            shown.add_row(escape(plain(run.setting.name)), style="bold")
        told = run.as_dict()["tiers"]
        for name in TIERS:
            tier = told[name]
            shown.add_row(
                f"  {name}",
                f"{tier['stored_answers']:,}",
                _size(tier["peak_bytes"]),
                _size(tier["max_bytes"]),
                f"{tier['entries']:,}",
                f"{tier['evictions']:,}",
                f"{tier['ttl_s']:g}",
            )
    return shown


def looked_up(runs: Sequence[Run]) -> Table:
    """The store beside its bounds."""
    shown = _table("stored answers", "look-ups", "found", "optimum", "without bound")
    for run in runs:
        assert run.answers is not None
        found = run.answers
        scores = (found.found, found.optimum, found.unbounded)
        shown.add_row(
            escape(plain(run.setting.name)),
            f"{found.found.lookups:,}",
            *(f"{score.hits:,} ({score.hit_rate:.1%})" for score in scores),
        )
    return shown


def blocks(runs: Sequence[Run]) -> Table:
    """KV blocks under each order."""
    shown = _table(
        "KV blocks", "room", "look-ups", "kvgate", "LRU", "optimum", "without bound", "evictions"
    )
    for run in runs:
        if run.blocks is None:
            continue
        rates = [f"{score.hit_rate:.2%}" for score in run.blocks.by_name().values()]
        shown.add_row(
            escape(plain(run.setting.name)),
            f"{run.blocks.capacity:,}",
            f"{run.blocks.ours.lookups:,}",
            *rates,
            f"{run.blocks.ours.evictions:,}",
        )
    return shown


def curve(sweep: Sweep, points: Sequence[Point]) -> Table:
    """A sweep's points as rows."""
    names = list(points[0].shares)
    columns = [name.replace("unbounded", "without bound") for name in names]
    shown = _table(sweep.varied, *columns, "tokens saved", "money saved", "evictions")
    for point in points:
        shown.add_row(
            escape(plain(point.label)),
            *(f"{point.shares[name]:.2%}" for name in names),
            f"{point.run.totals['tokens_saved']:,}",
            f"{point.run.totals['money_saved']:,.4f}",
            f"{_evictions(sweep, point):,}",
        )
    return shown


def recommendations(advice: Sequence[Advice]) -> Table:
    """What is proposed, and the gain."""
    shown = _table("recommended", "now", "then", "found", "share", "tokens", "money", "because")
    shown.columns[-1].justify = "left"
    if advice:
        shown.caption = f"tried on {spoken(advice[0].span_s)} of traffic"
    for one in advice:
        is_size = not one.option.endswith(".ttl")
        shown.add_row(
            one.option,
            _size(int(one.now)) if is_size else f"{one.now:g} s",
            _size(int(one.proposed)) if is_size else f"{one.proposed:g} s",
            f"{one.hits:+,}",
            f"{100 * one.hit_rate:+.2f} pp",
            f"{one.tokens:+,}",
            f"{one.money:+,.4f}",
            one.because,
        )
    if not advice:
        shown.add_row("nothing", *[""] * 6, "the sizes and ttls fit this traffic")
    return shown


def assumptions(runner: Runner, runs: Sequence[Run]) -> Iterator[str]:
    """What the figures rest on."""
    room = runs[0].setting.room
    if runs[0].blocks is not None:
        size = room.token_bytes * room.block_tokens
        yield (
            f"a block of KV is {room.block_tokens:.4g} tokens of {room.token_bytes:,} bytes: "
            f"{_size(int(size))}; {room.blocks:,} blocks fit (--kv-token-bytes says otherwise)"
        )
        yield "answers are not counted as KV, only prompts; one cache stands for all engines"
    if not isinstance(runner.trace, JournalTrace):
        yield "prompts only: what stored answers would have done, such a trace does not say"
        return
    yield (
        "the gateway has no tokenizer: its blocks are 512 bytes of the messages as JSON, "
        "and the backends' counts say how many tokens that is"
    )
    yield (
        "a call that is computed now and was not then takes as long as its original; "
        "tokens that backends reused are as they were for calls computed both times"
    )
    yield (
        "the optimum has the bytes of all tiers in one and keeps what is wanted soonest; with answers "
        "of different sizes it is close to the best"
    )
    there = [run.answers.replayed.there_before for run in runs if run.answers is not None]
    if there and there[0]:
        yield f"{there[0]:,} answers were there when the journal begins"
    if runner.trace.several_configs:
        yield "the configuration changed within the journal: the latest one is taken for all of it"


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [_cell(name, row.get(name, 0)) for name in COUNTED]


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    cells = []
    for name in COUNTED:
        more = other.get(name, 0) - one.get(name, 0)
        cells.append(("+" if more > 0 else "") + _cell(name, more))
    return cells


def _cell(name: str, value: float) -> str:
    match name:
        case "stored_rate" | "reuse_rate":
            return f"{value:.1%}"
        case "seconds_saved":
            return f"{value:,.1f}"
        case "money_saved":
            return f"{value:,.4f}"
        case _:
            return f"{value:,}"


def _evictions(sweep: Sweep, point: Point) -> int:
    run = point.run
    if sweep.varied in OF_KV:
        return 0 if run.blocks is None else run.blocks.ours.evictions
    return 0 if run.answers is None else sum(one.evictions for one in run.answers.replayed.fills)


def _size(size_bytes: int) -> str:
    """As 12.5MiB."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g}{unit}"
        size /= 1024
    return f"{size:.4g}TiB"
