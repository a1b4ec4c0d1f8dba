"""A token's keys, values and logits have the same bits however they were computed.

Cold or after a prefix hit, alone or in a batch, in whatever chunks, as part of a prompt or as part of an
answer. `torch.equal` throughout: no tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.request import Sequence
from tests.kit.stage import Stage, make_stage, sequence
from tests.kit.tiny_model import TinyLlama

BLOCK = 32
TOKENS = [(11 * i * i + 5 * i + i // 7) % 260 for i in range(900)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module", params=list(DTYPES))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = TinyLlama().write(tmp_path_factory.mktemp("tiny"))
    return make_stage(folder, dtype=DTYPES[request.param], blocks=128)


@pytest.fixture(scope="module", params=list(DTYPES))
def real(request: pytest.FixtureRequest, smollm_path: Path) -> Stage:
    return make_stage(smollm_path, dtype=DTYPES[request.param], blocks=96)


def filled_with_rubbish(stage: Stage) -> None:
    """What is left in blocks by others must not matter."""
    dice = torch.Generator().manual_seed(5)
    stage.cache.data.copy_(torch.randn(stage.cache.data.shape[1:], generator=dice))


def sharing(other: Sequence, tokens: list[int], *, shared: int, own: Iterator[int]) -> Sequence:
    """A sequence whose first blocks are those of another."""
    need = -(-len(tokens) // BLOCK)
    return sequence(tokens, [*other.blocks[:shared], *(next(own) for _ in range(need - shared))])


def test_a_prefix_hit_at_every_block_boundary_equals_the_cold_prompt(tiny: Stage) -> None:
    filled_with_rubbish(tiny)
    tokens = TOKENS[:453]
    cold = sequence(tokens, range(15))
    logits = tiny.prefill(cold)
    kept = tiny.kept(cold, len(tokens))
    for shared in range(1, 15):
        warm = sharing(cold, tokens, shared=shared, own=iter(range(20, 40)))
        assert torch.equal(tiny.prefill(warm, start=shared * BLOCK), logits), f"{shared} blocks"
        assert torch.equal(tiny.kept(warm, len(tokens)), kept), f"{shared} blocks"


@pytest.mark.parametrize("length", [1, 31, 32, 33, 127, 128, 129, 255, 256, 257, 600])
def test_prompts_around_block_and_tile_boundaries_hit_exactly(tiny: Stage, length: int) -> None:
    filled_with_rubbish(tiny)
    cold = sequence(TOKENS[:length], range(-(-length // BLOCK)))
    logits = tiny.prefill(cold)
    shared = (length - 1) // BLOCK
    warm = sharing(cold, TOKENS[:length], shared=shared, own=iter(range(40, 41)))
    assert torch.equal(tiny.prefill(warm, start=shared * BLOCK), logits)


@pytest.mark.parametrize(
    "cuts",
    [
        [1],
        [2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377],
        [100, 200, 300, 400, 500, 600],
        [127, 129, 131],
        [128, 256, 384, 512, 640],
        [599],
        list(range(500, 600)),
    ],
    ids=lambda cuts: f"{len(cuts)} cuts to {cuts[-1]}",
)
def test_the_chunks_a_prompt_is_cut_into_do_not_matter(tiny: Stage, cuts: list[int]) -> None:
    filled_with_rubbish(tiny)
    whole, chunked = sequence(TOKENS[:650], range(21)), sequence(TOKENS[:650], range(30, 51))
    logits = tiny.prefill(whole)
    assert torch.equal(tiny.prefill(chunked, cuts), logits)
    assert torch.equal(tiny.kept(chunked, 650), tiny.kept(whole, 650))


def test_alone_equals_in_a_batch_of_eight(tiny: Stage) -> None:
    filled_with_rubbish(tiny)
    lengths = [3, 32, 40, 128, 129, 200, 260, 300]
    ones = [sequence(TOKENS[i : i + n], range(10 * i, 10 * i + 10)) for i, n in enumerate(lengths)]
    alone = torch.cat([tiny.prefill(one) for one in ones])
    kept = [tiny.kept(one, len(one.tokens)) for one in ones]
    filled_with_rubbish(tiny)
    together = tiny.forward(*((one, 0, len(one.tokens)) for one in ones))
    assert torch.equal(together, alone)
    for one, before in zip(ones, kept, strict=True):
        assert torch.equal(tiny.kept(one, len(one.tokens)), before)


def test_decode_writes_the_bits_that_prefill_writes(tiny: Stage) -> None:
    filled_with_rubbish(tiny)
    answered, asked = sequence(TOKENS[:330], range(11)), sequence(TOKENS[:330], range(20, 31))
    rows = tiny.forward(*((asked, at, at + 1) for at in range(330)))  # one prompt, all rows' logits
    tiny.forward((answered, 0, 90))
    for at in range(90, 330):  # a token a step, beyond two block and two key-tile boundaries
        assert torch.equal(tiny.forward((answered, at, at + 1))[0], rows[at]), f"position {at}"
    assert torch.equal(tiny.kept(answered, 330), tiny.kept(asked, 330))


def test_decode_beside_prefill_and_other_decodes_changes_nothing(tiny: Stage) -> None:
    filled_with_rubbish(tiny)
    ones = [sequence(TOKENS[i : i + 250], range(8 * i, 8 * i + 8)) for i in range(8)]
    alone = torch.cat([tiny.prefill(one) for one in ones])
    filled_with_rubbish(tiny)
    for one in ones:
        tiny.forward((one, 0, 249))
    long = sequence(TOKENS[:400], range(70, 83))
    mixed = tiny.forward(*((one, 249, 250) for one in ones), (long, 0, 400))
    assert torch.equal(mixed[:8], alone)


def test_which_blocks_hold_the_keys_does_not_matter(tiny: Stage) -> None:
    filled_with_rubbish(tiny)
    straight, scattered = (
        sequence(TOKENS[:300], range(10)),
        sequence(TOKENS[:300], range(99, 0, -10)),
    )
    assert torch.equal(tiny.prefill(straight), tiny.prefill(scattered))


@pytest.mark.model
def test_the_real_model_hits_exactly_at_block_boundaries(real: Stage) -> None:
    tokens = [(37 * i * i + 11) % 40000 + 100 for i in range(300)]
    filled_with_rubbish(real)
    cold = sequence(tokens, range(10))
    logits, kept = real.prefill(cold), real.kept(cold, 300)
    for shared in (1, 4, 7, 8, 9):
        warm = sharing(cold, tokens, shared=shared, own=iter(range(20, 40)))
        assert torch.equal(real.prefill(warm, start=shared * BLOCK), logits), f"{shared} blocks"
        assert torch.equal(real.kept(warm, 300), kept), f"{shared} blocks"


@pytest.mark.model
def test_the_real_model_in_a_batch_in_chunks_and_in_decode_keeps_its_bits(real: Stage) -> None:
    filled_with_rubbish(real)
    long = [(37 * i * i + 11) % 40000 + 100 for i in range(290)]
    ones = [sequence(long[i:290], range(10 * i, 10 * i + 10)) for i in range(8)]
    alone = torch.cat([real.prefill(one) for one in ones])
    kept = real.kept(ones[0], 290)
    filled_with_rubbish(real)
    real.forward(*((one, 0, 100 + 3 * i) for i, one in enumerate(ones)))
    real.forward(*((one, 100 + 3 * i, len(one.tokens) - 6) for i, one in enumerate(ones)))
    logits = alone
    for back in range(6, 0, -1):
        logits = real.forward(
            *((one, len(one.tokens) - back, len(one.tokens) - back + 1) for one in ones)
        )
    assert torch.equal(logits, alone)
    assert torch.equal(real.kept(ones[0], 290), kept)
