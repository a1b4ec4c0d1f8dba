"""What guessing from the prompt and from earlier answers saves: repeated, similar, quoting and fresh prompts apart.

``python -m loadtest.bench_speculation [--model NAME] [--quick] [--tokens N] [--threads N]``

Two engines with the same model answer the same prompts in turn, one with ``speculate_tokens``, one
without; the texts must be the same. No HTTP: the time is that of the engine's steps after the first
token. A machine that others use too falls on both of a pair, so the ratios of pairs are what counts.

* fresh: questions that nothing like it was asked before;
* repeated: the same again, under the same salt;
* similar: the same with another word in it;
* quoting: the prompt holds a text, the answer is most of it.

Greedy, and with temperature 0.7 and another seed each time.
"""

import argparse
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from engine.request import GenerationRequest, SamplingParams, TokenEvent
from engine.service import Service
from loadtest import report
from loadtest.bench_modes import loaded
from loadtest.stats import Spread, figure, ratios, spread

QUESTIONS: Final = (
    "How does rain form?",
    "Write a short note that thanks a colleague for her help with a report.",
    "Which vegetables grow well in the shade of a house?",
    "What should a hiker carry on a day in the mountains?",
    "Explain to a child why the sky is blue.",
    "Name five uses of a paper clip.",
)
SIMILAR: Final = (
    "How does snow form?",
    "Write a short note that thanks a neighbour for her help with a report.",
    "Which vegetables grow well in the shade of a tree?",
    "What should a hiker carry on a day in the desert?",
    "Explain to a child why the sea is blue.",
    "Name five uses of a rubber band.",
)
PROSE: Final = Path(__file__).with_name("prose.txt")
QUOTED_CHARS: Final = 300
TEMPERATURES: Final = (0.0, 0.7)


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: its tokens, the steps and seconds after the first, guesses made and right by source."""

    tokens: tuple[int, ...]
    steps: int
    seconds: float
    drafted: dict[str, int]
    accepted: dict[str, int]


@dataclass(slots=True)
class Kind:
    """Pairs of answers to prompts of one kind, without guesses and with."""

    name: str
    temperature: float
    pairs: list[tuple[Answered, Answered]] = field(default_factory=list)

    def row(self) -> "Row":
        off, on = zip(*self.pairs, strict=True)
        later = [max(1, len(one.tokens) - 1) for one in off]
        drafted, accepted = (
            _sum(getattr(one, what) for one in on) for what in ("drafted", "accepted")
        )
        return Row(
            self.name,
            self.temperature,
            spread([n / one.seconds for n, one in zip(later, off, strict=True)]),
            spread([n / one.seconds for n, one in zip(later, on, strict=True)]),
            ratios([one.seconds for one in off], [one.seconds for one in on]),
            sum(later) / max(1, sum(one.steps for one in on)),
            drafted,
            accepted,
            all(a.tokens == b.tokens for a, b in self.pairs),
        )


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens a second without and with guesses, their ratio, tokens a step, guesses, and if texts agree."""

    kind: str
    temperature: float
    off_per_s: Spread
    on_per_s: Spread
    faster: Spread
    tokens_a_step: float
    drafted: dict[str, int]
    accepted: dict[str, int]
    same: bool

    def acceptance(self, source: str) -> str:
        """Of the guesses from there, as people write it."""
        tried, right = self.drafted.get(source, 0), self.accepted.get(source, 0)
        return f"{right}/{tried}" if tried else "-"


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total


def quoting(number: int) -> str:
    """A prompt that holds a text of its own and asks for it."""
    prose = PROSE.read_text()
    start = number * QUOTED_CHARS
    return f"Repeat this text word for word, and nothing else:\n\n{prose[start : start + QUOTED_CHARS]}"


def prompts(count: int) -> dict[str, tuple[str, ...]]:
    """Of each kind, in the order in which they are asked: what is repeated was fresh before."""
    return {
        "fresh": QUESTIONS[:count],
        "repeated": QUESTIONS[:count],
        "similar": SIMILAR[:count],
        "quoting": tuple(quoting(number) for number in range(count)),
    }


class Engine:
    """A loaded service that is asked one prompt at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asked = 0

    def _counts(self, what: str) -> dict[str, int]:
        counts = self._service.engine.scheduler.speculation.counts
        return {source: int(getattr(one, what)) for source, one in counts.items()}

    def ask(self, prompt: str, sampling: SamplingParams) -> Answered:
        """Answer a chat of one message."""
        service, engine = self._service, self._service.engine
        chat = service.text.chat
        assert chat is not None, "the model has no chat template"
        text = chat.render([{"role": "user", "content": prompt}])
        tokens = tuple(service.text.encode(text, add_bos=False))
        self._asked += 1
        before = {what: self._counts(what) for what in ("drafted", "accepted")}
        engine.scheduler.add(
            GenerationRequest(id=f"r{self._asked}", prompt=tokens, sampling=sampling)
        )
        events: list[TokenEvent] = []
        while engine.scheduler.busy and not events:
            events += engine.step()
        steps, began_s = engine.stats().steps, time.perf_counter()
        while engine.scheduler.busy:
            events += engine.step()
        return Answered(
            tuple(event.token for event in events if event.token is not None),
            engine.stats().steps - steps,
            max(1e-9, time.perf_counter() - began_s),
            *(
                {name: count - before[what][name] for name, count in self._counts(what).items()}
                for what in ("drafted", "accepted")
            ),
        )


def measured(off: Engine, on: Engine, *, count: int, tokens: int) -> list[Row]:
    """All kinds at all temperatures, both engines in turn."""
    rows = []
    for temperature in TEMPERATURES:
        for name, asked in prompts(count).items():
            kind = Kind(name, temperature)
            for number, prompt in enumerate(asked):
                seed = number + 100 * (name == "repeated")
                sampling = SamplingParams(temperature=temperature, seed=seed, max_tokens=tokens)
                pair = [engine.ask(prompt, sampling) for engine in (off, on)]
                if len(pair[0].tokens) > 1:
                    kind.pairs.append((pair[0], pair[1]))
            rows.append(kind.row())
    return rows


def table(rows: Sequence[Row]) -> Table:
    """As it is printed."""
    shown = Table(title="Guesses checked beside each token: tokens a second after the first")
    columns = ("prompts", "temperature", "without", "with", "times", "tokens a step")
    for name in (*columns, "from the prompt", "from answers", "same text"):
        shown.add_column(name, justify="left" if name == "prompts" else "right")
    for row in rows:
        shown.add_row(
            row.kind,
            f"{row.temperature:g}",
            figure(row.off_per_s.median),
            figure(row.on_per_s.median),
            str(row.faster),
            figure(row.tokens_a_step),
            row.acceptance("prompt"),
            row.acceptance("answers"),
            "yes" if row.same else "NO",
        )
    return shown


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--speculate", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two prompts of each kind")
    asked = parser.parse_args()
    options: dict[str, Any] = {"threads": asked.threads, "kv_memory": 256 << 20}
    count = 2 if asked.quick else len(QUESTIONS)
    known = report.facts("loadtest.bench_speculation")
    with (
        loaded(asked.model, speculate_tokens=0, **options) as without,
        loaded(asked.model, speculate_tokens=asked.speculate, **options) as guessing,
    ):
        off, on = Engine(without), Engine(guessing)
        for engine in (off, on):  # the first steps of a process take longer
            engine.ask("Hello", SamplingParams(temperature=0.0, max_tokens=4))
        rows = measured(off, on, count=count, tokens=asked.tokens)
    Console(width=140).print(table(rows))
    medians = {row.kind: row.faster.median for row in rows if row.temperature == 0}
    content = {"facts": known, "rows": [asdict(row) for row in rows], "faster": medians}
    print(report.write("speculation", content))
    over_all = statistics.geometric_mean(medians.values())
    print(f"greedy, all kinds alike: {figure(over_all)} times as fast")


if __name__ == "__main__":
    main()
