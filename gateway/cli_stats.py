"""``kvgate stats``: what the cache of a running gateway has saved, as a table."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gateway.cli_remote import DEFAULT_URL, ApiKey, Remote, Url, one_line, plain

if TYPE_CHECKING:
    from rich.table import Table

STATS: Final = "/v1/cache/stats"
COUNTED: Final = (
    "requests", "hits", "hit_rate", "tokens_saved", "seconds_saved", "money_saved",
)  # fmt: skip
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

    Console().print(table(counted))


def table(counted: Mapping[str, Any]) -> "Table":
    """The counters: the total, then each level, tier, model and tenant."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = Table(box=SIMPLE_HEAD, pad_edge=False, caption="tokens, seconds and money: saved")
    shown.add_column("", no_wrap=True)
    for name in COUNTED:
        shown.add_column(name.removesuffix("_saved").replace("_", " "), justify="right")
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
            case "hit_rate":
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
