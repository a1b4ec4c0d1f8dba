"""``kvgate inspect KEY``: what is known of one entry, and what the engine has of its prompt.

``KEY`` is what ``X-Cache-Key`` shows, its first digits (the log shows twelve), or a ``cache_key``.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gateway.cli_remote import (
    DEFAULT_URL,
    NO,
    ApiKey,
    CannotAskError,
    Remote,
    Url,
    one_line,
    plain,
)

if TYPE_CHECKING:
    from rich.table import Table

ENTRIES: Final = "/v1/cache/entries"
PAGE: Final = 1000
_DIGITS: Final = re.compile(r"[0-9a-f]{8,32}")
Entry = Mapping[str, Any]


def inspect(
    key: Annotated[str, typer.Argument(help="X-Cache-Key, its first digits, or a cache_key.")],
    *,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What is known of a stored answer: its life, its size, its hits, the plan that made it."""
    with one_line():
        found = find(Remote(url.rstrip("/"), api_key), key)
    if as_json:
        typer.echo(json.dumps(found if len(found) > 1 else found[0], indent=2, ensure_ascii=True))
        return
    from rich.console import Console

    console = Console()
    if len(found) > 1:
        console.print(several(found))
        return
    for line in told(found[0]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def find(remote: Remote, key: str) -> Sequence[Entry]:
    """The entry, or all that have this ``cache_key``. Raises: CannotAskError, code 1 for none."""
    if _DIGITS.fullmatch(key):
        try:
            return [_one(remote, key)]
        except CannotAskError as error:
            if error.status != 404:
                raise
    named = list(_named(remote, key))
    if not named:
        raise CannotAskError(f"{plain(key)}: nothing is stored under it", code=NO)
    return [_one(remote, named[0]["key"])] if len(named) == 1 else named


def _one(remote: Remote, key: str) -> Entry:
    found: Entry = remote.ask("GET", f"{ENTRIES}/{key}?response=false&kv=true")
    return found


def _named(remote: Remote, name: str) -> Iterator[Entry]:
    from urllib.parse import urlencode

    cursor = None
    while True:
        asked = {"prefix": name, "limit": str(PAGE), **({"cursor": cursor} if cursor else {})}
        page = remote.ask("GET", f"{ENTRIES}?{urlencode(asked)}")
        yield from (entry for entry in page["data"] if entry["cache_key"] == name)
        cursor = page["next_cursor"]
        if cursor is None:
            return


def told(entry: Entry) -> Iterator[str]:
    """The entry in lines for people."""
    names = {
        "key": entry["key"],
        "cache key": entry["cache_key"],
        "answer": f"{entry['endpoint']}, model {entry['model']}, status {entry['status']}",
        "shared by": _shared(entry),
        "tier": f"{entry['tier']}, priority {entry['priority']}",
        "age": f"{span(entry['age_s'])}, {_left(entry['ttl_left_s'])}",
        "tokens": f"{entry['prompt_tokens']:,} of the prompt, {entry['completion_tokens']:,} of the answer",
        "size": f"{entry['size_bytes']:,} bytes; took {entry['cost_s']:.2f} s to compute",
        "hits": "not known here" if entry.get("hits") is None else f"{entry['hits']:,}",
        "tags": ", ".join(entry["tags"]) or None,
        "batch": entry["batch"],
        "context": entry["context"],
        "KV": _kv(entry.get("kv")),
    }
    for name, value in names.items():
        if value is not None:
            yield f"{name:<10} {plain(value)}"
    yield from made_by(entry.get("made_by"))


def made_by(plan: Mapping[str, Any] | None) -> Iterator[str]:
    """The decisions of a plan, in their order."""
    if plan is None:
        yield "made by    not known here: another process stored it, or it was long ago"
        return
    for number, reason in enumerate(plan["reasons"]):
        head = "made by" if number == 0 else ""
        yield plain(f"{head:<10} {reason['field']:<10} {reason['value']:<12} {reason['because']}")


def several(entries: Sequence[Entry]) -> "Table":
    """Entries of one ``cache_key``: questions that differ."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("key", "model", "tier", "age", "ttl left", "bytes"):
        table.add_column(column, no_wrap=column == "key")
    for entry in entries:
        age, left = span(entry["age_s"]), span(entry["ttl_left_s"])
        cells = (entry["key"], entry["model"], entry["tier"], age, left, f"{entry['size_bytes']:,}")
        table.add_row(*(escape(plain(cell)) for cell in cells))
    return table


def span(seconds: float) -> str:
    """A duration in two units at most: ``1h 5m``; what is past has a minus."""
    sign, left = ("-" if seconds < 0 else ""), abs(seconds)
    if left < 60:
        return f"{sign}{left:.0f}s"
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count:.0f}{unit}")
    return sign + " ".join(parts[:2])


def _left(seconds: float) -> str:
    return f"{span(seconds)} left" if seconds > 0 else f"expired {span(-seconds)} ago"


def _shared(entry: Entry) -> str:
    user = f", user {entry['user']}" if entry["user"] else ""
    return f"{entry['scope']}, tenant {entry['tenant']}{user}"


def _kv(known: Mapping[str, Any] | None) -> str | None:
    if known is None:
        return None
    return f"{known['backend']} has {known['hit_tokens']:,} of the prompt's {known['tokens']:,} tokens now"
