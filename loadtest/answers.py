"""What an answer must have to count as one, and what it says of the cache. Pure."""

import json
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
    """An answer in order: its text, the cache level it came from, and what else it says.

    ``ending`` is its finish reason; ``collapsed`` that it was read along with another's call.
    """

    text: str
    level: str
    ending: str = ""
    collapsed: bool = False
    tokens_saved: int = 0
    key: str | None = None

    @property
    def place(self) -> str:
        """One of ``loadtest.tally.PLACES``."""
        return "collapsed" if self.collapsed else self.level


def heard(status: int, headers: Mapping[str, str], body: bytes) -> Heard:
    """A plain answer. ``headers`` finds names in any case. Raises: BadAnswerError."""
    level = _level(status, headers, body)
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise BadAnswerError(f"no chat completion: {body[:200]!r}") from error
    return _heard(headers, _spoken(text), level, str(choice.get("finish_reason")))


def heard_stream(status: int, headers: Mapping[str, str], lines: Iterable[str]) -> Heard:
    """A streamed answer out of its lines. Raises: BadAnswerError, also for one without its end.

    Its headers left before the engine's reuse was known: that stands in the usage of its last chunk.
    """
    level = _level(status, headers, b"")
    texts: list[str] = []
    ending, reused = "", 0
    for line in lines:
        data = data_of(line)
        if data == DONE:
            late = level == "none" and reused > 0
            return _heard(
                headers, _spoken("".join(texts)), "prefix" if late else level, ending,
                reused if late else 0,
            )  # fmt: skip
        if data is not None:
            texts.append(text_of(data))
            chunk = json.loads(data)
            ending = next((one.get("finish_reason") for one in chunk["choices"]), None) or ending
            reused = int((chunk.get("usage") or {}).get("prompt_cache_hit_tokens") or reused)
    raise BadAnswerError("the stream ended without [DONE]")


def _heard(
    headers: Mapping[str, str], text: str, level: str, ending: str, reused: int = 0
) -> Heard:
    collapsed = "collapsed" in headers.get("Cache-Status", "").split("; ")
    saved = int(headers.get("X-Cache-Tokens-Saved", 0)) or reused
    return Heard(text, level, ending, collapsed, saved, headers.get("X-Cache-Key"))


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
