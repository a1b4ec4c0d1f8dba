"""What is asked of an engine beside its peer: streams over HTTP, with the moment of each piece.

Only OpenAI's own words are sent, so that any server can be asked. A prompt is made cold by a nonce in
its first words.
"""

import http.client
import json
import random
import statistics
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadtest.prompts import TURNS, example

Messages = list[dict[str, str]]

WAIT_S: Final = 280.0
WORDS: Final = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
]
TURN_TOKENS: Final = 32
PROMPTS: Final = 8
PROMPT_TOKENS: Final = 1500
ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Heard:
    """A streamed answer; times in seconds from the moment before it was asked for."""

    text: str
    piece_s: tuple[float, ...]
    prompt_tokens: int
    completion_tokens: int

    @property
    def first_s(self) -> float:
        """Time to the first token."""
        return self.piece_s[0]

    def rate(self) -> float:
        """Tokens per second after the first piece."""
        share = (len(self.piece_s) - 1) / len(self.piece_s)
        return self.completion_tokens * share / (self.piece_s[-1] - self.piece_s[0])


class Peer:
    """A server by its URL, with or without ``/v1``."""

    def __init__(self, url: str, *, key: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname is not None, url
        self._host, self._port = parts.hostname, parts.port or 80
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(self, messages: Messages, *, tokens: int, **fields: Any) -> Heard:
        """A greedy stream of at most ``tokens``. Raises: RuntimeError, OSError."""
        body = {
            "model": "default",
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        connection = http.client.HTTPConnection(self._host, self._port, timeout=WAIT_S)
        connection.connect()
        try:
            began_s = time.perf_counter()
            connection.request("POST", self._path, json.dumps(body), self._headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {answer.read()[:200]!r}")
            return _heard(answer, began_s)
        finally:
            connection.close()


def _heard(answer: http.client.HTTPResponse, began_s: float) -> Heard:
    pieces: list[str] = []
    moments: list[float] = []
    usage: Mapping[str, Any] = {}
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        at_s = time.perf_counter() - began_s
        event = json.loads(line[6:])
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            text = choice["delta"].get("content")
            if text:
                pieces.append(text)
                moments.append(at_s)
    if not moments:
        raise RuntimeError("a stream without text")
    counts = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    return Heard("".join(pieces), tuple(moments), *counts)


def nonce() -> str:
    """Not seen before by any engine."""
    return uuid.uuid4().hex[:8]


def words(count: int, seed: str) -> str:
    """So many words, always the same for a seed."""
    dice = random.Random(seed)
    return " ".join(dice.choice(WORDS) for _ in range(count))


def sized(tokens: int, *, end: str = "", salt: str | None = None) -> Messages:
    """A cold prompt of about so many tokens: these words are a token each, the rest is known."""
    start = salt or nonce()  # its eight characters are about six tokens
    text = f"{start} {words(tokens - 40, start)}. {end}"
    return [{"role": "user", "content": text}]


def said(user: str) -> Messages:
    """One message."""
    return [{"role": "user", "content": user}]


# -- what is measured; each returns figures by name ----------------------------------------------------


def two_questions(peer: Peer) -> dict[str, float]:
    """NVIDIA's example: a table and a question, then another question about it."""
    mark = nonce()
    cold = peer.ask(example(mark, "What is the age of John Doe?"), tokens=15)
    warm = peer.ask(example(mark, "What is the occupation of Jane Smith?"), tokens=15)
    return {"cold_ms": cold.first_s * 1000, "warm_ms": warm.first_s * 1000}


def prefill(peer: Peer, tokens: int) -> dict[str, float]:
    """Tokens of a cold prompt per second until the first word."""
    heard = peer.ask(sized(tokens, end="Write a long story."), tokens=4, ignore_eos=True)
    return {"tokens_per_s": heard.prompt_tokens / heard.first_s}


def decode(peer: Peer, tokens: int, *, answer: int) -> dict[str, float]:
    """Tokens per second of one stream after a prompt of so many tokens."""
    heard = peer.ask(sized(tokens, end="Write a long story."), tokens=answer, ignore_eos=True)
    return {"tokens_per_s": heard.rate()}


def together(peer: Peer, streams: int, *, answer: int) -> dict[str, float]:
    """Tokens per second of several streams in the time in which all of them run."""
    heard: list[tuple[float, Heard]] = []

    def listen(number: int) -> None:
        at_s = time.perf_counter()
        prompt = sized(128, end=f"Write a long story about {number + 3} animals.")
        heard.append((at_s, peer.ask(prompt, tokens=answer, ignore_eos=True)))

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(heard) < streams:
        raise RuntimeError("a stream failed")
    return {"tokens_per_s": common_rate(heard)}


def common_rate(heard: Sequence[tuple[float, Heard]]) -> float:
    """All tokens per second between the last stream's first piece and the first one's last."""
    begin = max(at_s + one.piece_s[0] for at_s, one in heard)
    end = min(at_s + one.piece_s[-1] for at_s, one in heard)
    if begin >= end:
        raise RuntimeError("the streams did not run at the same time")
    counted = (
        sum(begin < at_s + moment <= end for moment in one.piece_s)
        * (one.completion_tokens / len(one.piece_s))
        for at_s, one in heard
    )
    return sum(counted) / (end - begin)


def conversation(peer: Peer) -> dict[str, float]:
    """Ten turns, each repeats all that was said: time to the first word of the later ones; all."""
    told: Messages = [{"role": "system", "content": f"You help gardeners. Talk {nonce()}."}]
    firsts = []
    began_s = time.perf_counter()
    for question in TURNS:
        told.append({"role": "user", "content": question})
        heard = peer.ask(told, tokens=TURN_TOKENS)
        told.append({"role": "assistant", "content": heard.text})
        firsts.append(heard.first_s * 1000)
    total = time.perf_counter() - began_s
    return {"later_ms": statistics.median(firsts[1:]), "total_s": total}


def system_prompts(peer: Peer) -> dict[str, float]:
    """Eight long system prompts in turn: time to the first word in round 1 and in rounds 2 to 5."""
    systems = [sized(PROMPT_TOKENS)[0]["content"] for _ in range(PROMPTS)]
    first: list[float] = []
    later: list[float] = []
    for round_number in range(ROUNDS):
        for system in systems:
            asked = [{"role": "system", "content": system}, *said(f"Question {round_number}?")]
            heard = peer.ask(asked, tokens=4, ignore_eos=True)
            (later if round_number else first).append(heard.first_s * 1000)
    return {"round_1_ms": statistics.median(first), "later_ms": statistics.median(later)}


Measure = Callable[[Peer], dict[str, float]]
