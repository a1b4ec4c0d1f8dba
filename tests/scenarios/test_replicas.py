"""Two engines side by side: conversations stay where their beginnings are, and none is left behind."""

import json
import os
import random
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.kit.served import Served, serving

pytestmark = pytest.mark.model

CONVERSATIONS = 16
TURNS = 3
BLOCK = 32
WORDS = [
    "heron",
    "water",
    "stream",
    "wind",
    "morning",
    "reed",
    "fish",
    "river",
    "cloud",
    "stone",
    "boat",
    "bridge",
    "field",
    "tree",
]


@dataclass
class Told:
    """What the answers said of the prompts, and what each engine computed of them.

    ``possible``: tokens that one engine with room for everything would not have computed again.
    """

    possible: int = 0
    cached_tokens: int = 0
    computed: dict[str, int] = field(default_factory=dict)


def text(seed: str, words: int) -> str:
    dice = random.Random(seed)
    return f"{seed}: " + " ".join(dice.choice(WORDS) for _ in range(words)) + "."


def messages(conversation: int, turn: int) -> list[dict[str, str]]:
    """A conversation's messages at one of its turns; the answers in it are fixed."""
    said = [{"role": "user", "content": text(f"opening {conversation}", 190)}]
    for number in range(turn):
        said.append({"role": "assistant", "content": text(f"answer {conversation} {number}", 25)})
        said.append({"role": "user", "content": text(f"question {conversation} {number}", 25)})
    return said


def ask(url: str, said: list[dict[str, str]]) -> tuple[int, Any]:
    body = {"model": "default", "messages": said, "max_tokens": 2, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def converse(served: Served) -> Told:
    """All conversations side by side, turn by turn, in an order of its own each turn."""
    told, dice, known = Told(), random.Random(5), dict[int, int]()
    for turn in range(TURNS):
        for conversation in dice.sample(range(CONVERSATIONS), CONVERSATIONS):
            status, answer = ask(served.url, messages(conversation, turn))
            assert status == 200, answer
            # A prompt begins with all of the one before; the first ones share the template's words.
            shared = known.get(conversation, BLOCK if known else 0)
            told.possible += shared // BLOCK * BLOCK
            known[conversation] = answer["usage"]["prompt_tokens"]
            told.cached_tokens += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    backends = served.get("/v1/cache/stats")[1]["backends"]
    told.computed = {name: said["kv"]["tokens"]["miss"] for name, said in backends.items()}
    return told


@contextmanager
def kvgate(model: Path, replicas: int, strategy: str = "prefix", *more: str) -> Iterator[Served]:
    environ = {
        "KVGATE_ENGINE__MODEL": str(model),
        "KVGATE_ENGINE__REPLICAS": str(replicas),
        "KVGATE_ENGINE__THREADS": "1",
        "KVGATE_ENGINE__KV_MEMORY": "512MiB",
        "KVGATE_ROUTING__STRATEGY": strategy,
    }
    with serving(*more, environ=environ) as served:
        until(lambda: len(events(served, "engine ready")) >= replicas)
        yield served


def events(served: Served, event: str) -> list[dict[str, Any]]:
    return [line for line in list(served.lines) if line.get("event") == event]


def until(condition: Callable[[], bool], *, timeout_s: float = 90.0) -> None:
    """Poll for something that happens in another process."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_two_engines_reuse_what_one_would_have(
    smollm_path: Path, record_property: Callable[[str, object], None]
) -> None:
    told = {}
    for strategy in ("prefix", "round_robin"):
        with kvgate(smollm_path, 2, strategy) as two:
            told[strategy] = one = converse(two)
        share = one.cached_tokens / one.possible
        record_property(strategy, share)
        print(f"{strategy}: {one.cached_tokens} of {one.possible} = {share:.1%}; {one.computed}")
    by_prefix, in_turn = told.values()
    assert by_prefix.possible == in_turn.possible
    assert by_prefix.cached_tokens >= 0.9 * by_prefix.possible
    assert in_turn.cached_tokens < 0.8 * in_turn.possible
    work = by_prefix.computed
    assert set(work) == {"embedded", "embedded-2"}
    assert max(work.values()) <= 1.25 * sum(work.values()) / 2


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_of_two_may_fall_and_ctrl_c_leaves_none(smollm_path: Path, workers: str) -> None:
    with kvgate(smollm_path, 2, "prefix", "--workers", workers) as served:
        engines = {line["engine"]: line["pid"] for line in events(served, "engine ready")}
        assert set(engines) == {"embedded", "embedded-2"}
        assert all(ask(served.url, messages(number, 0))[0] == 200 for number in range(2))
        os.kill(engines["embedded"], signal.SIGKILL)
        until(lambda: "error" in served.get("/v1/cache/stats")[1]["backends"]["embedded"])
        assert served.get("/readyz")[0] == 200
        assert all(ask(served.url, messages(number, 0))[0] == 200 for number in range(2))
        until(lambda: len(events(served, "engine ready")) == 3)
        until(lambda: "kv" in served.get("/v1/cache/stats")[1]["backends"]["embedded"])
        assert served.interrupt() == 0
        started = [line["pid"] for line in events(served, "engine starting")]
        assert len(started) == 3
        until(lambda: all(map(gone, started)))
