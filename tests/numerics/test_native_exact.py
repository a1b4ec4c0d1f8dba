"""The native kernels: a row has the same bits in every company, and so has every key and value it keeps.

Whole or cut anywhere, row by row, alone or among eight, on one thread or three, in any blocks, out of
blocks that were away, in blocks of any size, on a machine with wider vectors: for each tiny model one table
of logits and keys that all of it is compared with, bit by bit.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from engine.native.library import Library
from engine.native.model import MOST_ROWS, Weights
from engine.native.plain import GROUP
from engine.request import Sequence
from tests.kit.native import NativeStage, compiled, native_stage, read_weights
from tests.kit.stage import sequence
from tests.kit.tiny_model import TinyLlama

TINY = {
    "three heads share keys": TinyLlama(
        hidden=96, heads=3, kv_heads=1, context_tokens=4096, tied=False, seed=11
    ),
    "four do, twice": TinyLlama(hidden=256, heads=8, kv_heads=2, context_tokens=4096, seed=12),
}  # so that attention runs through blocks of 6, 3 and 1 rows of queries
TILE_ROWS, CHUNK, MOST_SPLIT_ROWS, ITEM_ROWS = 8, 256, 8, 64  # of src/attention.h and src/model.h
LONG = 2300
TOKENS = [(11 * i * i + 5 * i + i // 7) % 260 for i in range(LONG)]
EDGES = sorted(
    {
        edge + near
        for edge in (
            TILE_ROWS,
            GROUP,
            ITEM_ROWS,
            CHUNK,
            MOST_ROWS,
            2 * CHUNK + TILE_ROWS,
            4 * CHUNK,
        )
        for near in (-1, 0, 1)
    }
)


@dataclass(frozen=True)
class Known:
    """Of one long sequence: logits of all rows, and the keys and values it kept."""

    logits: Tensor  # (LONG, V)
    kept: NDArray[np.uint16]  # (L, 2, K, LONG, D)

    def assert_same(self, found: Tensor, start: int, how: str) -> None:
        wanted = self.logits[start : start + len(found)]
        other = (found.view(torch.int32) != wanted.view(torch.int32)).any(dim=1)
        assert not bool(other.any()), f"{how}: row {start + int(other.nonzero()[0])} has other bits"

    def assert_kept(self, stage: NativeStage, one: Sequence, tokens: int, how: str) -> None:
        other = (stage.kept(one, tokens) != self.kept[:, :, :, :tokens]).any(axis=(0, 1, 2, 4))
        assert not other.any(), f"{how}: token {int(np.flatnonzero(other)[0])} has another KV"


@pytest.fixture(scope="module", params=list(TINY))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY[request.param].write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def weights(native: Library, folder: Path) -> Weights:
    return read_weights(native, folder)


@pytest.fixture(scope="module")
def wide(native: Library, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The layout of AVX-512 out of two halves, and hardly optimised: other code."""
    return compiled(tmp_path_factory.mktemp("wide"), "-DKVGATE_EMULATE_512", "-O1")


@pytest.fixture(scope="module")
def stage(native: Library, weights: Weights) -> NativeStage:
    return native_stage(native, weights, blocks=160)


@pytest.fixture(scope="module")
def known(native: Library, weights: Weights) -> Known:
    """All rows in one step on one thread, on a stage of its own."""
    alone = native_stage(native, weights, blocks=-(-LONG // 32))
    one = sequence(TOKENS, range(-(-LONG // 32)))
    logits = alone.every_row(one, 0, LONG)
    assert len(set(logits.argmax(-1).tolist())) > 20, "a model that says something"
    return Known(logits, alone.kept(one, LONG))


def scattered(tokens: int, *, of: int = 160, size: int = 32, seed: int = 0) -> list[int]:
    """Blocks for so many tokens, in no order."""
    return random.Random(seed).sample(range(of), -(-tokens // size))


def cut(tokens: int, sizes: tuple[int, ...]) -> list[int]:
    """Where steps of these sizes, again and again, end."""
    cuts, at, turn = [], 0, 0
    while (at := at + sizes[turn % len(sizes)]) < tokens:
        cuts.append(at)
        turn += 1
    return cuts


@pytest.mark.parametrize(
    "sizes",
    [(1,), (2, 3), (7,), (8,), (9,), (32,), (63, 65), (128,), (255, 1), (256,), (511, 513), (700,)],
    ids=str,
)
def test_steps_of_any_size_give_exactly_the_same_rows(
    stage: NativeStage, known: Known, sizes: tuple[int, ...]
) -> None:
    one = sequence(TOKENS, scattered(LONG, seed=sizes[0]))
    found = stage.in_steps(one, cut(LONG, sizes))
    known.assert_same(found, 0, f"steps of {sizes}")
    known.assert_kept(stage, one, LONG, f"steps of {sizes}")


@pytest.mark.parametrize("length", EDGES)
def test_a_prefix_that_ends_anywhere_is_continued_exactly(
    stage: NativeStage, known: Known, length: int
) -> None:
    """A prompt that ends here, answer rows behind it, then the next turn's rows."""
    one = sequence(TOKENS[: length + 40], scattered(length + 40, seed=length))
    cuts = [length, *range(length + 1, length + 10), length + 17]
    known.assert_same(stage.in_steps(one, cuts), 0, f"a prompt of {length}")
    known.assert_kept(stage, one, length + 40, f"a prompt of {length}")


@pytest.mark.parametrize("threads", [2, 3])
def test_more_threads_give_exactly_the_same_rows(
    native: Library, weights: Weights, known: Known, threads: int
) -> None:
    crew = native_stage(native, weights, blocks=160, threads=threads)
    one = sequence(TOKENS[:1100], scattered(1100))
    cuts = [500, *range(501, 540), 545, 600, 608, 1000, *range(1001, 1040)]
    known.assert_same(crew.in_steps(one, cuts), 0, f"{threads} threads")
    known.assert_kept(crew, one, 1100, f"{threads} threads")


def test_a_crowd_that_changes_the_threads_changes_exactly_nothing(
    native: Library, weights: Weights, known: Known
) -> None:
    crew = native_stage(native, weights, blocks=160, threads=3)
    one = sequence(TOKENS[:400], scattered(400))
    found = []
    for turn, (start, stop) in enumerate(
        zip([0, *cut(400, (31, 1))], [*cut(400, (31, 1)), 400], strict=True)
    ):
        crew.runner.crowd.active = 1 + turn % 3
        found.append(crew.every_row(one, start, stop))
    known.assert_same(torch.cat(found), 0, "threads that come and go")


def test_among_eight_of_all_lengths_a_row_is_exactly_the_one_alone(
    native: Library, weights: Weights, known: Known
) -> None:
    """Prompts and answers in one step; rows beyond MOST_ROWS are several calls."""
    stage = native_stage(native, weights, blocks=320, threads=2)
    lengths = [1, 8, 31, 33, 257, 300, 512, 1030]
    free = iter(random.Random(5).sample(range(320), 320))
    many = [
        sequence(TOKENS[: length + 9], [next(free) for _ in range(-(-(length + 9) // 32))])
        for length in lengths
    ]
    logits = stage.forward(*((one, 0, n) for one, n in zip(many, lengths, strict=True)))
    for row, length in enumerate(lengths):
        known.assert_same(logits[row : row + 1], length - 1, f"beside seven, {length} tokens")
    for turn in range(8):  # one is late: its prompt is a row behind, and two rows at last
        spans = [(one, n + turn, n + turn + 1) for one, n in zip(many, lengths, strict=True)]
        random.Random(turn).shuffle(spans)
        for row, (_, start, _) in zip(stage.forward(*spans), spans, strict=True):
            known.assert_same(row[None], start, f"answers of eight, turn {turn}")
    for one, length in zip(many, lengths, strict=True):
        known.assert_kept(stage, one, length + 8, f"beside seven, {length} tokens")


def test_guesses_that_were_wrong_leave_exactly_nothing_behind(
    stage: NativeStage, known: Known
) -> None:
    """Rows of guesses write keys that the right rows overwrite."""
    one = sequence(TOKENS[:600], scattered(600))
    stage.in_steps(sequence(TOKENS[:250], one.blocks))
    for start in range(250, 600, 5):
        guessed = sequence([*TOKENS[: start + 1], *range(3, 11)], one.blocks)
        rows = stage.every_row(guessed, start, min(start + 9, 600))
        known.assert_same(rows[:1], start, "the row before the guesses")
        right = sequence([*TOKENS[: start + 5], 7, 8, 9], one.blocks)
        rows = stage.every_row(right, start + 1, min(start + 8, 600))
        known.assert_same(rows[: min(4, 600 - start - 1)], start + 1, "guesses that were right")
    known.assert_kept(stage, one, 600, "after guesses")


@pytest.mark.parametrize("block_tokens", [16, 32, 64, 128])
def test_blocks_of_any_size_that_were_away_are_exactly_what_they_were(
    native: Library, weights: Weights, known: Known, block_tokens: int
) -> None:
    """Also: the bits do not depend on the size of blocks."""
    count = -(-LONG // block_tokens)
    here, there = (
        native_stage(native, weights, blocks=count + 3, block_tokens=block_tokens) for _ in "ab"
    )
    one = sequence(TOKENS, range(count))
    known.assert_same(here.in_steps(one, cut(LONG, (300, 4))), 0, f"blocks of {block_tokens}")
    known.assert_kept(here, one, LONG, f"blocks of {block_tokens}")
    moved = sequence(TOKENS, scattered(LONG, of=count + 3, size=block_tokens))
    for prefix in (block_tokens, 7 * block_tokens, (count - 1) * block_tokens):
        there.cache.data[:] = 0x4040
        for number in range(prefix // block_tokens):
            there.cache.import_block(moved.blocks[number], bytes(here.cache.export_block(number)))
        stop = min(prefix + 300, LONG)
        rows = there.every_row(moved, prefix, stop)
        known.assert_same(rows, prefix, f"behind {prefix} tokens that were away")


def test_a_machine_with_wider_vectors_computes_exactly_the_same(
    wide: Library, folder: Path, known: Known
) -> None:
    assert wide.lanes == 16
    stage = native_stage(wide, read_weights(wide, folder), blocks=160, threads=2)
    one = sequence(TOKENS[:700], scattered(700))
    known.assert_same(stage.in_steps(one, cut(700, (300, 1, 9))), 0, "16 lanes")
    known.assert_kept(stage, one, 700, "16 lanes")


@st.composite
def histories(draw: st.DrawFn) -> list[list[tuple[int, int]]]:
    """Steps: in each, rows (sequence, count) of up to four sequences of the same tokens."""
    counts = st.sampled_from([1, 1, 2, 5, 8, 9, 32, 65, 200, 300])
    return draw(
        st.lists(
            st.lists(
                st.tuples(st.integers(0, 3), counts),
                min_size=1,
                max_size=4,
                unique_by=lambda p: p[0],
            ),
            min_size=1,
            max_size=12,
        )
    )


@settings(
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=histories(), dice=st.integers(0, 99))
def test_any_history_of_four_gives_exactly_the_same_rows(
    native: Library,
    weights: Weights,
    known: Known,
    steps: list[list[tuple[int, int]]],
    dice: int,
) -> None:
    crew = native_stage(native, weights, blocks=288, threads=1 + dice % 3)
    places = scattered(4 * LONG, of=288, seed=dice)
    each = len(places) // 4
    many = [sequence(TOKENS, places[each * n : each * (n + 1)]) for n in range(4)]
    done = [0] * 4
    for step in steps:
        spans = []
        for number, count in step:
            stop = min(done[number] + count, LONG)
            spans += [(many[number], at, at + 1) for at in range(done[number], stop)]
            done[number] = stop
        for row, (_, start, _) in zip(crew.forward(*spans) if spans else [], spans, strict=True):
            known.assert_same(row[None], start, str(steps))
    for one, tokens in zip(many, done, strict=True):
        if tokens:
            known.assert_kept(crew, one, tokens, str(steps))
    crew.runner.model.close()
