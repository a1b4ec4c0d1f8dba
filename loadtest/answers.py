"""What an answer must have to count as one, and a count of where answers came from. Pure."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

REQUIRED: Final = ("X-Cache-Hit", "X-Cache-Level", "X-Request-ID", "X-Response-Time")
LEVELS: Final = ("response", "prefix", "none")
DONE: Final = "[DONE]"


class BadAnswerError(Exception):
    """The answer is not what a client is owed; the message says why."""


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer in order: its text and the cache level it came from."""

    text: str
    level: str


def heard(status: int, headers: Mapping[str, str], body: bytes) -> Heard:
    """A plain answer. ``headers`` finds names in any case. Raises: BadAnswerError."""
    level = _level(status, headers, body)
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise BadAnswerError(f"no chat completion: {body[:200]!r}") from error
    return Heard(_spoken(text), level)


def heard_stream(status: int, headers: Mapping[str, str], lines: Iterable[str]) -> Heard:
    """A streamed answer out of its lines. Raises: BadAnswerError, also for one without its end."""
    level = _level(status, headers, b"")
    texts: list[str] = []
    for line in lines:
        data = data_of(line)
        if data == DONE:
            return Heard(_spoken("".join(texts)), level)
        if data is not None:
            texts.append(text_of(data))
    raise BadAnswerError("the stream ended without [DONE]")


def data_of(line: str) -> str | None:
    """What a line of server-sent events says; ``None`` for blank lines and comments."""
    return line.removeprefix("data:").strip() if line.startswith("data:") else None


def text_of(data: str) -> str:
    """The text in one chunk, often none. Raises: BadAnswerError for an error event."""
    try:
        chunk: dict[str, Any] = json.loads(data)
        if "error" in chunk:
            raise BadAnswerError(f"an error in the stream: {data[:200]}")
        return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    except (ValueError, LookupError, TypeError) as error:
        raise BadAnswerError(f"no chat completion chunk: {data[:200]}") from error


def _level(status: int, headers: Mapping[str, str], body: bytes) -> str:
    if status != 200:
        raise BadAnswerError(f"status {status}: {body[:200]!r}")
    missing = [name for name in REQUIRED if name not in headers]
    if missing:
        raise BadAnswerError(f"without {', '.join(missing)}")
    level, hit = headers["X-Cache-Level"], headers["X-Cache-Hit"]
    if level not in LEVELS or hit != ("false" if level == "none" else "true"):
        raise BadAnswerError(f"X-Cache-Level is {level!r} and X-Cache-Hit {hit!r}")
    return level


def _spoken(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise BadAnswerError("the answer has no content")
    return text


class Tally:
    """How many answers of each scenario came from each level."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, scenario: str, level: str, count: int = 1) -> None:
        """Count answers."""
        self._counts[scenario, level] += count

    def take(self) -> list[tuple[str, str, int]]:
        """All counts; the tally is empty afterwards. For handing them to another process."""
        taken = [(scenario, level, n) for (scenario, level), n in self._counts.items()]
        self._counts.clear()
        return taken

    def rows(self) -> list[tuple[str, int, dict[str, float]]]:
        """Scenario, answers, share of each level; the sum of all scenarios last."""
        scenarios = sorted({scenario for scenario, _ in self._counts})
        rows = [(name, self._shares([name])) for name in scenarios]
        if len(scenarios) > 1:
            rows.append(("all", self._shares(scenarios)))
        return [(name, total, shares) for name, (total, shares) in rows]

    def _shares(self, scenarios: list[str]) -> tuple[int, dict[str, float]]:
        at = {level: sum(self._counts[name, level] for name in scenarios) for level in LEVELS}
        total = sum(at.values())
        return total, {level: count / total for level, count in at.items()}
