"""kvgate beside its peers, as data: rows, ratios, tables, and results of several runs put together. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from loadtest.stats import Spread, figure, ratios, spread

OURS: Final = "kvgate"
BEGIN: Final = "<!-- compare: written by loadtest.compare, do not edit by hand -->"
END: Final = "<!-- /compare -->"

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Row:
    """One measure of several servers, asked in turn: ``runs[server][i]`` was beside all other ``[i]``."""

    what: str
    unit: str
    better: Better
    runs: Mapping[str, Sequence[float]]

    def times_as_good(self, peer: str) -> Spread | None:
        """How many times as good as ``peer`` kvgate is; None where one of them has no figure."""
        ours, theirs = self.runs.get(OURS), self.runs.get(peer)
        if not ours or not theirs or len(ours) != len(theirs) or 0 in {*ours, *theirs}:
            return None
        return ratios(ours, theirs) if self.better == "higher" else ratios(theirs, ours)

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "what": self.what,
            "unit": self.unit,
            "better": self.better,
            "runs": {name: [round(one, 4) for one in values] for name, values in self.runs.items()},
            "times_as_good": {
                peer: found.median
                for peer in self.runs
                if peer != OURS and (found := self.times_as_good(peer)) is not None
            },
        }


def row_of(data: Mapping[str, Any]) -> Row:
    """The opposite of :meth:`Row.as_dict`. Raises: KeyError."""
    return Row(data["what"], data["unit"], data["better"], data["runs"])


@dataclass(frozen=True, slots=True)
class Part:
    """What was measured together: rows, the servers with their versions, and who was not there."""

    facts: Mapping[str, Any]
    servers: Mapping[str, str]
    rows: Sequence[Row]
    absent: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    rss_mib: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            **self.facts,
            "servers": dict(self.servers),
            "absent": dict(self.absent),
            "notes": list(self.notes),
            "rss_mib": dict(self.rss_mib),
            "rows": [row.as_dict() for row in self.rows],
        }


def merged(before: Mapping[str, Any], now: Mapping[str, Part]) -> dict[str, Any]:
    """The results as JSON: parts that were measured now in place of those of before."""
    parts = {**before.get("parts", {}), **{name: part.as_dict() for name, part in now.items()}}
    return {"parts": parts}


def shown(values: Sequence[float] | None) -> str:
    """A median, or a dash."""
    return figure(spread(values).median) if values else "–"


def cell(row: Row, server: str) -> str:
    """A figure, with how many times as good kvgate is in brackets; kvgate's own in bold."""
    said = shown(row.runs.get(server))
    if server == OURS:
        return f"**{said}**"
    found = row.times_as_good(server)
    return said if found is None else f"{said} (×{figure(found.median)})"


def table(part: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown: a row per measure, a column per server, kvgate's last."""
    servers = sorted(part["servers"], key=lambda name: name == OURS)
    lines = [_line("", "unit", *servers), f"|---|---|{'--:|' * len(servers)}"]
    for data in part["rows"]:
        row = row_of(data)
        lines.append(_line(row.what, row.unit, *(cell(row, server) for server in servers)))
    if part["rss_mib"]:
        held = [
            figure(part["rss_mib"][name]) if name in part["rss_mib"] else "–" for name in servers
        ]
        lines.append(_line("resident at the end", "MiB", *held))
    return lines


def section(results: Mapping[str, Any]) -> str:
    """All parts as Markdown, with where the figures come from and who was not there."""
    blocks = []
    for part in results["parts"].values():
        lines = table(part)
        versions = ", ".join(f"{name} {version}" for name, version in part["servers"].items())
        machine = part["machine"]
        origin = (
            f"`{part['command']}`, {part['at'][:10]}, {machine['cpu']}, {machine['cores']} cores"
        )
        lines += ["", f"{origin}. {versions}."]
        lines += [f"Not there: {name} ({why})." for name, why in part["absent"].items()]
        lines += list(part["notes"])
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def replaced(text: str, written: str) -> str:
    """``text`` with what stands between its marks replaced. Raises: ValueError without the marks."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"no {BEGIN} with an {END} after it")
    return f"{text[: begin + len(BEGIN)]}\n{written}\n{text[end:]}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
