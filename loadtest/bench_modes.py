"""The engine by itself, without HTTP: naive against absorbed latents, FP8, and what reuse saves.

Run by ``python -m loadtest.bench_engine --model deepseek-tiny`` and ``... --kv-dtype fp8``.
"""

import gc
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from engine import request
from engine.config import EngineConfig
from engine.loading import make_service
from engine.request import GenerationRequest, SamplingParams, TokenEvent
from engine.runner import Runner
from engine.scheduler import Schedule, Span
from engine.service import Service
from loadtest.stats import figure

CONTEXTS: Final = (512, 2048, 8192)
PREFILL_TOKENS: Final = 2048
DECODED: Final = 24
MODES: Final = (("naive", "auto"), ("absorb", "auto"), ("naive", "fp8"), ("absorb", "fp8"))
TURNS: Final = 10
ASKED_TOKENS: Final = 32
ANSWERED_TOKENS: Final = 24
DOCUMENTS: Final = {"no document": 0, "a document of 2000 tokens": 2000}
PROSE: Final = Path(__file__).with_name("prose.txt")


@dataclass(frozen=True, slots=True)
class Mode:
    """One way of keeping keys and values, measured."""

    mla: str
    kv_dtype: str
    token_bytes: int
    prefill_per_s: float
    decode_per_s: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation of ten turns with reuse and without: all waits together."""

    what: str
    on_s: float
    off_s: float
    reused: float

    @property
    def saved(self) -> float:
        """Share of the total latency that reuse takes away."""
        return 1 - self.on_s / self.off_s


@dataclass(frozen=True, slots=True)
class Quality:
    """What a KV dtype does to a model's answers about a fixed text, with the text's own words before."""

    kv_dtype: str
    token_bytes: int
    perplexity: float
    change: float
    greedy_changed: float


@contextmanager
def loaded(model: str, **options: Any) -> Iterator[Service]:
    """An engine that nobody else uses; ended with its memory."""
    config = EngineConfig(model=model, max_model_len=16384, **options)

    def broken(why: str) -> None:
        raise RuntimeError(why)

    yield make_service(config, wall_clock=lambda: 0.0, on_fatal=broken)
    gc.collect()


def runner_of(service: Service) -> Runner:
    """The model behind the service."""
    runner = service.engine.runner
    assert isinstance(runner, Runner)
    return runner


def by_hand(tokens: Sequence[int], block_tokens: int) -> request.Sequence:
    """A sequence that holds the first blocks of the pool."""
    asked = GenerationRequest(id="by-hand", prompt=tuple(tokens), sampling=SamplingParams())
    blocks = list(range(-(-len(tokens) // block_tokens)))
    return request.Sequence(request=asked, serial=0, tokens=list(tokens), blocks=blocks)


def modes(model: str, *, repeat: int, threads: int) -> list[Mode]:
    """Every mode of a model with latent attention; the best of ``repeat`` runs each."""
    found = []
    for mla, kv_dtype in MODES:
        with loaded(model, mla=mla, kv_dtype=kv_dtype, threads=threads) as service:
            found.append(_mode(service, mla, kv_dtype, repeat=repeat))
    return found


def _mode(service: Service, mla: str, kv_dtype: str, *, repeat: int) -> Mode:
    runner = runner_of(service)
    vocabulary = service.vocabulary
    longest = max(CONTEXTS) + DECODED
    tokens = [(7 * n * n + n) % vocabulary for n in range(longest)]
    one = by_hand(tokens, runner.cache.layout.block_tokens)

    def run(start: int, stop: int) -> float:
        at_s = time.perf_counter()
        runner.forward(Schedule((Span(one, start, stop, sample=True),)))
        return time.perf_counter() - at_s

    run(0, longest)  # memory is touched, and every context is there to decode behind
    prefill_s = min(run(0, PREFILL_TOKENS) for _ in range(repeat))
    decode = {}
    for context in CONTEXTS:
        steps = [run(context + n, context + n + 1) for _ in range(repeat) for n in range(DECODED)]
        decode[context] = 1 / statistics.median(steps)
    token_bytes = runner.cache.layout.token_bytes
    return Mode(mla, kv_dtype, token_bytes, PREFILL_TOKENS / prefill_s, decode)


def talks(model: str, *, threads: int) -> list[Talk]:
    """Conversations of ten turns, each of which repeats all that was said, with reuse and without."""
    found = []
    for what, document in DOCUMENTS.items():
        with loaded(model, threads=threads) as service:
            on_s, reused = _talk(service, document)
        with loaded(model, prefix_cache=False, threads=threads) as service:
            off_s, _ = _talk(service, document)
        found.append(Talk(what, on_s, off_s, reused))
    return found


def _talk(service: Service, document: int) -> tuple[float, float]:
    """Seconds that all ten answers took together, and the share of prompt tokens reused."""
    dice = torch.Generator().manual_seed(1)
    draw = torch.randint(3, service.vocabulary, (document + TURNS * ASKED_TOKENS,), generator=dice)
    words: list[int] = draw.tolist()
    _answer(service, [5] * 200, "warm")  # the first step of a process takes longer
    said, words = words[:document], words[document:]
    total_s = hit = prompts = 0.0
    for turn in range(TURNS):
        said += words[turn * ASKED_TOKENS : (turn + 1) * ASKED_TOKENS]
        at_s = time.perf_counter()
        events = _answer(service, said, f"turn-{turn}")
        total_s += time.perf_counter() - at_s
        hit += events[0].hit_tokens or 0
        prompts += len(said)
        said += [event.token for event in events if event.token is not None]
    return total_s, hit / prompts


def _answer(service: Service, prompt: Sequence[int], name: str) -> list[TokenEvent]:
    sampling = SamplingParams(temperature=0.0, max_tokens=ANSWERED_TOKENS, ignore_eos=True)
    service.engine.scheduler.add(
        GenerationRequest(id=name, prompt=tuple(prompt), sampling=sampling)
    )
    events: list[TokenEvent] = []
    while service.engine.scheduler.busy:
        events += service.engine.step()
    return events


def quality(model: str, kv_dtype: str) -> list[Quality]:
    """``kv_dtype`` against what the model does without quantising, on ``prose.txt``."""
    found: list[Quality] = []
    exact: torch.Tensor | None = None
    for each in ("auto", kv_dtype):
        with loaded(model, kv_dtype=each) as service:
            runner = runner_of(service)
            tokens = service.text.encode(PROSE.read_text(), add_bos=True)
            one = by_hand(tokens, runner.cache.layout.block_tokens)
            spans = (Span(one, n, n + 1, sample=True) for n in range(len(tokens)))
            said = runner.forward(Schedule(tuple(spans))).log_softmax(-1)
            exact = said if exact is None else exact
            size = runner.cache.layout.token_bytes
            found.append(
                judged(each, size, said=said, exact=exact, tokens=tokens, before=found[:1])
            )
    return found


def judged(
    kv_dtype: str,
    token_bytes: int,
    *,
    said: torch.Tensor,
    exact: torch.Tensor,
    tokens: Sequence[int],
    before: Sequence[Quality],
) -> Quality:
    """Log-probabilities (T, V) as a row of the table; ``before`` holds the one to compare with."""
    targets = torch.tensor(tokens[1:]).unsqueeze(1)
    perplexity = math.exp(-float(said[:-1].cpu().gather(1, targets).mean()))
    changed = float((said.argmax(-1) != exact.argmax(-1)).float().mean())
    change = perplexity / before[0].perplexity - 1 if before else 0.0
    return Quality(kv_dtype, token_bytes, perplexity, change, changed)


def show_modes(console: Console, found: Sequence[Mode]) -> None:
    """Naive against absorbed, side by side."""
    table = Table(title="Latent attention: tokens per second, one sequence")
    for name in ("mla", "kv_dtype", "KV bytes/token", f"prefill of {PREFILL_TOKENS}"):
        table.add_column(name)
    for context in CONTEXTS:
        table.add_column(f"decode @{context}", justify="right")
    for mode in found:
        rates = [figure(mode.decode_per_s[context]) for context in CONTEXTS]
        size = f"{mode.token_bytes:,}"
        table.add_row(mode.mla, mode.kv_dtype, size, figure(mode.prefill_per_s), *rates)
    console.print(table)


def show_talks(console: Console, model: str, found: Sequence[Talk]) -> None:
    """Total latency with reuse and without."""
    table = Table(title=f"Ten turns, {ANSWERED_TOKENS} tokens an answer: total latency, {model}")
    for name in ("talk", "reuse on, s", "reuse off, s", "lower by", "prompt reused", "bar"):
        table.add_column(name)
    for talk in found:
        numbers = (figure(talk.on_s), figure(talk.off_s), f"{talk.saved:.0%}", f"{talk.reused:.0%}")
        table.add_row(talk.what, *numbers, ">= 60 %")
    console.print(table)


def show_quality(console: Console, found: Sequence[Quality]) -> None:
    """What quantising costs."""
    table = Table(title=f"KV dtype on {PROSE.name}")
    for name in ("kv_dtype", "KV bytes/token", "perplexity", "change", "greedy tokens changed"):
        table.add_column(name)
    for row in found:
        numbers = (f"{row.perplexity:.3f}", f"{row.change:+.2%}", f"{row.greedy_changed:.2%}")
        table.add_row(row.kv_dtype, f"{row.token_bytes:,}", *numbers)
    console.print(table)


def as_json(rows: Sequence[Mode | Talk | Quality]) -> list[dict[str, Any]]:
    """For the folder of results."""
    return [asdict(row) for row in rows]
