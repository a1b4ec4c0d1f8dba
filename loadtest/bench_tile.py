"""How many rows should a tile have? `python -m loadtest.bench_tile --model FILE [--dtype bfloat16]`

Times, in this process and without a server, what the choice of `chunk_tokens` weighs against each other:
a cold prompt of 888 tokens, its last 24 tokens after a hit on 864, and decode steps. `--alone` pads every
step to the whole tile, as a machine has to on which no two row counts agree (`engine.models.exact`).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from engine import request
from engine.kernels import kv_element
from engine.kv.cache import KvCache
from engine.kv.layout import KvLayout
from engine.models.network import Network
from engine.request import GenerationRequest, SamplingParams
from engine.runner import Runner
from engine.scheduler import Schedule, Span
from engine.weights.load import LoadedModel, load

PROMPT_TOKENS, CACHED_TOKENS = 888, 864
BLOCKS, BLOCK_TOKENS = 320, 32
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--tiles", default="32,64,128,256")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    loaded = load(options.model, device=CPU, dtype=dtype)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {options.dtype}")
    print("milliseconds: smallest / median\n")
    print(
        "| tile | row counts | cold 888 | warm 24 | ratio | decode @128 | @888 | 8x @100 | 8x @850 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for tile in map(int, options.tiles.split(",")):
        runner = make_runner(loaded, dtype, tile, alone=options.alone)
        print(row(runner, options.runs), flush=True)


def make_runner(
    loaded: LoadedModel[Network], dtype: torch.dtype, tile: int, *, alone: bool
) -> Runner:
    layout = KvLayout(
        layers=loaded.config.layers,
        shape=loaded.model.kv_shape,
        block_tokens=BLOCK_TOKENS,
        element=kv_element("auto", dtype),
    )
    cache = KvCache(layout, BLOCKS, device=CPU, dtype=dtype)
    runner = Runner(loaded.model, cache, tile_tokens=tile)
    if alone:
        runner.use(replace(runner.shapes, row_counts=(tile,)))
    return runner


def row(runner: Runner, runs: int) -> str:
    """One line of the table."""
    dice = torch.Generator().manual_seed(0)
    tokens = torch.randint(runner.model.config.vocab, (PROMPT_TOKENS,), generator=dice).tolist()
    one = holding(tokens, range(28))
    eight = [holding(tokens, range(32 + 28 * i, 60 + 28 * i)) for i in range(8)]

    def step(ones: Sequence[request.Sequence], start: int, stop: int) -> Callable[[], torch.Tensor]:
        spans = tuple(
            Span(each, start + number, stop + number, sample=True)
            for number, each in enumerate(ones)
        )
        return lambda: runner.forward(Schedule(spans))

    runner.cache.data.fill_(0.5)  # memory that was never written reads faster than real keys
    cold = timed(step([one], 0, PROMPT_TOKENS), runs)
    warm = timed(step([one], CACHED_TOKENS, PROMPT_TOKENS), 3 * runs)
    cells = [
        str(runner.tile_tokens),
        "/".join(map(str, runner.shapes.row_counts)),
        shown(cold),
        shown(warm),
        f"{min(cold) / min(warm):.1f}",
        shown(timed(step([one], 127, 128), 5 * runs)),
        shown(timed(step([one], 887, 888), 5 * runs)),
        shown(timed(step(eight, 100, 101), 3 * runs)),
        shown(timed(step(eight, 850, 851), 3 * runs)),
    ]
    return f"| {' | '.join(cells)} |"


def holding(tokens: Sequence[int], blocks: Sequence[int]) -> request.Sequence:
    sampling = SamplingParams(temperature=0.0)
    asked = GenerationRequest(id="bench", prompt=tuple(tokens), sampling=sampling)
    return request.Sequence(request=asked, serial=0, tokens=list(tokens), blocks=list(blocks))


def timed(work: Callable[[], object], runs: int) -> list[float]:
    """Milliseconds of each run, after one that is not counted."""
    work()
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        found.append((time.perf_counter() - began) * 1e3)
    return found


def shown(milliseconds: Sequence[float]) -> str:
    return f"{min(milliseconds):.0f} / {statistics.median(milliseconds):.0f}"


if __name__ == "__main__":
    main()
