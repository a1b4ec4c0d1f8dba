"""What users ask, as data: seven habits, each an endless row of requests. Pure.

* :class:`Faq`: few questions, asked by everybody, some far oftener than others. The response store
  should answer almost all of them.
* :class:`Conversation`: each turn repeats all turns before it. The prefix cache should have them.
* :class:`SharedDocument`: a long table, then a question about one of its rows. The prefix cache
  should have the table.
* :class:`Streaming`: the same as the first, read word by word, so that streams fill the store and
  are answered from it.
* :class:`Stampede`: everybody asks the same new question at the same moment. One computation should
  serve them all.
* :class:`Batch`: a list of small jobs under one batch id, worked through by several clients, each in
  its own order. What one had answered the others should find.
* :class:`Tenants`: the same questions from several tenants. Each should find its own answers only.

The same seed gives the same requests (a conversation: given the same answers).
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

Message = Mapping[str, str]

SYSTEM: Final = "You are a Python programming tutor. Answer in one or two short sentences."
QUESTIONS: Final = (
    "What is a list comprehension?",
    "What is a decorator?",
    "How do I open a file?",
    "What is the difference between a list and a tuple?",
    "What does the with statement do?",
    "How do I sort a list of dictionaries?",
    "What is a generator?",
    "How do I catch an exception?",
    "What is the global interpreter lock?",
    "How do I make a virtual environment?",
    "What does the star in a parameter list mean?",
    "How do I read command line arguments?",
)
TURNS: Final = (
    "Hello! I would like to talk about functions in Python.",
    "Can you show me an example?",
    "How do I give a parameter a default value?",
    "What should I look out for there?",
    "And how do I document a function?",
    "How would I test one?",
)
NAMES: Final = ("John Doe", "Jane Smith", "Ada Brown", "Ravi Patel", "Mei Chen", "Luis Ortega")
OCCUPATIONS: Final = ("Engineer", "Doctor", "Teacher", "Baker", "Pilot", "Librarian")
COUNTRIES: Final = ("USA", "Canada", "Kenya", "India", "China", "Peru")
REVIEWS: Final = (
    "The spade broke on the first day.",
    "A good hose, it does not leak.",
    "The gloves are too small for me.",
    "Sharp, light and well made.",
    "It came late and in the wrong colour.",
    "My neighbours want one too.",
    "The handle is loose.",
    "Does what it says.",
)
ROUND_S: Final = 8.0
"""Time from one stampede to the next."""
COLUMNS: Final = ("age", "occupation", "country")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: what is asked, and what is wished of the cache in headers or in the body."""

    scenario: str
    messages: Sequence[Message]
    headers: Mapping[str, str]
    kv_cache: Mapping[str, Any] | None = None
    stream: bool = False
    max_tokens: int = 16

    def body(self, model: str) -> dict[str, Any]:
        """The JSON body for ``model``; greedy, so that answers can be compared."""
        body: dict[str, Any] = {
            "model": model,
            "messages": list(self.messages),
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.kv_cache is not None:
            body["kv_cache"] = dict(self.kv_cache)
        return body


class Habit(Protocol):
    """A user: asks, hears the answer, asks again."""

    def ask(self) -> Ask:
        """The next request."""

    def heard(self, answer: str) -> None:
        """Take note of the answer to the last request."""


class Faq:
    """Questions that many ask, the first ones far oftener (Zipf's law), half of them by body."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"faq:{seed}")

    def ask(self) -> Ask:
        """See :class:`Habit`."""
        question = _often_the_first(self._chance, QUESTIONS)
        messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": question})
        key = f"faq:{_digest(question)}"
        if self._chance.random() < 0.5:
            wish = {"enabled": True, "cache_key": key, "ttl": 86400, "prompt_type": "faq"}
            return Ask("faq", messages, {}, kv_cache=wish)
        headers = {
            "X-Cache-Enable": "true",
            "X-Cache-ID": key,
            "X-Cache-TTL": "86400",
            "X-Cache-Prompt-Type": "faq",
        }
        return Ask("faq", messages, headers)

    def heard(self, answer: str) -> None:
        """See :class:`Habit`."""


@dataclass(slots=True)
class Conversation:
    """One talk after another; each request repeats all that was said in its talk."""

    seed: int
    turns: int = len(TURNS)
    _talk: int = 0
    _said: list[Message] = field(default_factory=list)

    def ask(self) -> Ask:
        """See :class:`Habit`."""
        if len(self._said) >= 1 + 2 * self.turns:
            self._talk += 1
            self._said.clear()
        if not self._said:
            self._said.append({"role": "system", "content": f"{SYSTEM} {self._topic()}"})
        turn = len(self._said) // 2
        self._said.append({"role": "user", "content": TURNS[turn % len(TURNS)]})
        headers = {
            "X-Cache-Enable": "true",
            "X-Cache-ID": f"conv:{self.seed}:{self._talk}",
            "X-Cache-Context": "casual_chat",
            "X-Cache-Strategy": "adaptive",
        }
        return Ask("multi-turn", tuple(self._said), headers)

    def heard(self, answer: str) -> None:
        """See :class:`Habit`."""
        self._said.append({"role": "assistant", "content": answer})

    def _topic(self) -> str:
        return f"This is talk {self._talk + 1} with learner {self.seed}."


class SharedDocument:
    """A few long tables that all users share, and a question about one row of one of them."""

    def __init__(self, seed: int, *, documents: int = 3, rows: int = 40) -> None:
        self._chance = random.Random(f"document:{seed}")
        self._tables = [table(number, rows=rows) for number in range(documents)]
        self._rows = rows

    def ask(self) -> Ask:
        """See :class:`Habit`."""
        number = self._chance.randrange(len(self._tables))
        row, column = self._chance.randint(1, self._rows), self._chance.choice(COLUMNS)
        question = f"Question: What is the {column} of the person with ID {row}?"
        headers = {
            "X-Cache-Enable": "true",
            "X-Cache-ID": f"doc:{number}",
            "X-Cache-Context": "documentation",
            "X-Cache-Priority": "high",
        }
        content = f"{self._tables[number]}\n{question}"
        return Ask("document", ({"role": "user", "content": content},), headers, max_tokens=12)

    def heard(self, answer: str) -> None:
        """See :class:`Habit`."""


class Streaming:
    """The frequent questions as streams, sometimes asked for anew."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"streaming:{seed}")

    def ask(self) -> Ask:
        """See :class:`Habit`."""
        question = _often_the_first(self._chance, QUESTIONS)
        headers = {"X-Cache-Enable": "true", "X-Cache-Tier": "hot", "X-Cache-Stream": "true"}
        if self._chance.random() < 0.1:
            headers["X-Cache-Reuse"] = "false"
        messages = ({"role": "user", "content": question},)
        return Ask("streaming", messages, headers, stream=True, max_tokens=24)

    def heard(self, answer: str) -> None:
        """See :class:`Habit`."""


class Stampede:
    """One new question every ``every_s`` seconds, the same for all whatever their seed.

    ``now`` is the wall clock in seconds, so that users in other processes ask the same.
    """

    def __init__(self, seed: int, *, now: Callable[[], float], every_s: float = ROUND_S) -> None:
        self.seed = seed
        self._now = now
        self._every_s = every_s

    def ask(self) -> Ask:
        """See :class:`Habit`."""
        number = int(self._now() // self._every_s)
        question = f"News number {number} is out. {TURNS[number % len(TURNS)]}"
        messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": question})
        return Ask("stampede", messages, {}, kv_cache={"enabled": True, "ttl": 300})

    def heard(self, answer: str) -> None:
        """See :class:`Habit`."""

    def until_next_s(self) -> float:
        """How long to wait so that all ask at once."""
        return self._every_s - self._now() % self._every_s


class Batch:
    """Reviews to be judged, batch after batch, each user in an order of its own."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"batch:{seed}")
        self._number = 0
        self._left: list[str] = []

    def ask(self) -> Ask:
        """See :class:`Habit`."""
        if not self._left:
            self._number += 1
            self._left = self._chance.sample(REVIEWS, len(REVIEWS))
        content = f"Customer {self._number} writes: {self._left.pop()} Is that praise or blame?"
        wish = {
            "enabled": True,
            "batch_mode": True,
            "batch_id": f"reviews-{self._number}",
            "share": True,
        }
        messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": content})
        return Ask("batch", messages, {}, kv_cache=wish, max_tokens=8)

    def heard(self, answer: str) -> None:
        """See :class:`Habit`."""


class Tenants:
    """The frequent questions again, with a name for the entry that all tenants use alike."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"tenants:{seed}")

    def ask(self) -> Ask:
        """See :class:`Habit`."""
        question = _often_the_first(self._chance, QUESTIONS[:6])
        wish = {"enabled": True, "cache_key": f"faq:{_digest(question)}", "ttl": 3600}
        messages = ({"role": "user", "content": question},)
        return Ask("tenants", messages, {}, kv_cache=wish)

    def heard(self, answer: str) -> None:
        """See :class:`Habit`."""


def asks(habit: Habit, answer: str = "Yes.") -> Iterator[Ask]:
    """The requests of a user who always hears ``answer``, without end."""
    while True:
        yield habit.ask()
        habit.heard(answer)


def table(number: int, *, rows: int) -> str:
    """A table of people as Markdown, the same for the same ``number``."""
    chance = random.Random(f"table:{number}")
    lines = [f"# Table {number} of People", "| ID | Name | Age | Occupation | Country |"]
    lines.append("|----|------------|-----|------------|---------|")
    for row in range(1, rows + 1):
        name, work = chance.choice(NAMES), chance.choice(OCCUPATIONS)
        age, country = chance.randint(20, 70), chance.choice(COUNTRIES)
        lines.append(f"| {row} | {name} | {age} | {work} | {country} |")
    return "\n".join(lines)


def _often_the_first(chance: random.Random, choices: Sequence[str]) -> str:
    weights = [1 / rank for rank in range(1, len(choices) + 1)]
    return chance.choices(choices, weights)[0]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
