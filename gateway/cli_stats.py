"""``kvgate stats``: what the cache of a running gateway has saved, as a table."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gateway.cli_remote import DEFAULT_URL, ApiKey, Remote, Url, one_line, plain

if TYPE_CHECKING:
    from rich.table import Table

STATS: Final = "/v1/cache/stats"
COUNTED: Final = {
    "requests": "calls",
    "stored_rate": "stored",
    "reuse_rate": "reused",
    "tokens_saved": "tokens",
    "seconds_saved": "seconds",
    "money_saved": "money",
}
NAME_CELLS: Final = 16
"""Narrower a terminal does not make the names."""
GROUPS: Final = ("levels", "tiers", "models", "tenants")


def stats(
    *,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="As the gateway says it.")] = False,
) -> None:
    """What the cache of a running gateway has saved."""
    with one_line():
        counted = Remote(url.rstrip("/"), api_key).ask("GET", STATS)
    if as_json:
        typer.echo(json.dumps(counted, indent=2, ensure_ascii=True))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for line in headlines(counted):
        console.print(line, soft_wrap=True)
    # A terminal that is too narrow wraps a line; a number that is cut would be a wrong one.
    boundless = console.options.update(max_width=10_000)
    least = console.measure(table(counted, name_cells=NAME_CELLS), options=boundless).maximum
    console.width = max(console.width, least)
    console.print(table(counted))


def headlines(counted: Mapping[str, Any]) -> tuple[str, str]:
    """The two figures that matter. They are shares of different things, and no sum of them is one."""
    stored, calls = counted.get("stored_answers", 0), counted.get("requests", 0)
    reused, tokens = counted.get("prompt_tokens_reused", 0), counted.get("prompt_tokens", 0)
    stored_rate, reuse_rate = counted.get("stored_rate", 0), counted.get("reuse_rate", 0)
    return (
        f"answers from the store  {stored_rate:.1%}  ({stored:,} of {calls:,} calls)",
        f"prompt tokens reused    {reuse_rate:.1%}  ({reused:,} of {tokens:,} sent to backends)",
    )


def table(counted: Mapping[str, Any], *, name_cells: int | None = None) -> "Table":
    """The counters: the total, then each level, tier, model and tenant."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = Table(box=SIMPLE_HEAD, pad_edge=False, caption="tokens, seconds and money: saved")
    shown.add_column("", overflow="fold", width=name_cells)
    for title in COUNTED.values():
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_row(_name(counted.get("tenant", "all")), *_cells(counted), style="bold")
    for group in GROUPS:
        rows = counted.get(group) or {}
        if rows:
            shown.add_section()
        for name, row in rows.items():
            shown.add_row(f"{group.removesuffix('s')} {_name(name)}", *_cells(row))
    return shown


def _cells(row: Mapping[str, Any]) -> list[str]:
    shown = []
    for name in COUNTED:
        value = row.get(name, 0)
        match name:
            case "stored_rate" | "reuse_rate":
                shown.append(f"{value:.1%}")
            case "seconds_saved":
                shown.append(f"{value:,.1f}")
            case "money_saved":
                shown.append(f"{value:,.4f}")
            case _:
                shown.append(f"{value:,}")
    return shown


def _name(name: object) -> str:
    from rich.markup import escape

    return escape(plain(name))
