"""Where answers came from, counted by scenario. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

PLACES: Final = ("response", "prefix", "collapsed", "none")
"""The levels of ``X-Cache-Level``; ``collapsed`` are those who read along with another's call."""


@dataclass(frozen=True, slots=True)
class Row:
    """A scenario's answers, the share of them from each place, and the tokens not computed."""

    scenario: str
    answers: int
    shares: Mapping[str, float]
    tokens_saved: int

    @property
    def stored_rate(self) -> float:
        """The share of answers from the store. That of reused prompts is another thing, and no part."""
        return self.shares["response"]

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        return {**asdict(self), "stored_rate": self.stored_rate}


class Tally:
    """How many answers of each scenario came from each place, and how many tokens that saved."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[str] = Counter()

    def add(self, scenario: str, place: str, count: int = 1, *, tokens: int = 0) -> None:
        """Count answers."""
        self._counts[scenario, place] += count
        self._tokens[scenario] += tokens

    def ask(self, scenario: str) -> None:
        """A request was sent: its scenario has a row from now on, be it one without answers."""
        self.add(scenario, "none", 0)

    def take(self) -> list[tuple[str, str, int, int]]:
        """All counts; the tally is empty afterwards. For handing them to another process."""
        taken = []
        for (scenario, place), count in self._counts.items():
            taken.append((scenario, place, count, self._tokens.pop(scenario, 0)))
        self._counts.clear()
        return taken

    def give(self, taken: Iterable[tuple[str, str, int, int]]) -> None:
        """Add what was taken from another."""
        for scenario, place, count, tokens in taken:
            self.add(scenario, place, count, tokens=tokens)

    def rows(self) -> list[Row]:
        """A row for each scenario; the sum of all scenarios last."""
        scenarios = sorted({scenario for scenario, _ in self._counts})
        rows = [self._row(name, [name]) for name in scenarios]
        if len(scenarios) > 1:
            rows.append(self._row("all", scenarios))
        return rows

    def _row(self, name: str, scenarios: Sequence[str]) -> Row:
        at = {place: sum(self._counts[one, place] for one in scenarios) for place in PLACES}
        total = sum(at.values())
        shares = {place: count / max(1, total) for place, count in at.items()}
        return Row(name, total, shares, sum(self._tokens[one] for one in scenarios))


class Walls:
    """Whose answers had which key: no key may be two tenants'."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    def breached_by(self, whose: str, key: str | None) -> str | None:
        """Who else had this key before, if anybody."""
        if key is None:
            return None
        owner = self._owners.setdefault(key, whose)
        return None if owner == whose else owner
