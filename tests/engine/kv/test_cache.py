"""The pool of keys and values: written by slot, read by block."""

import pytest
import torch

from engine.kv.cache import KvCache
from tests.kit.kv import layout_of

LAYOUT = layout_of(layers=3, heads=2, dim=4, block_tokens=8)
CPU = torch.device("cpu")


def pool(blocks: int = 6) -> KvCache:
    return KvCache(LAYOUT, blocks, device=CPU, dtype=torch.float32)


def test_it_holds_as_many_bytes_as_the_layout_says() -> None:
    assert pool(6).nbytes == 6 * LAYOUT.block_bytes


def test_what_is_written_by_slot_is_read_by_block() -> None:
    cache = pool()
    rows = torch.randn(8, 4, 4)  # (T, 2*K, D)
    cache.write(1, torch.arange(40, 48), rows.flatten(1))  # block 5
    keys, values = cache.read(1, torch.tensor([0, 5, 5, 0]), 2)
    assert keys.shape == values.shape == (2, 2, 16, 4)  # (S, K, tokens, D)
    assert torch.equal(keys[0, :, 8:], rows[:, :2].transpose(0, 1))
    assert torch.equal(values[1, :, :8], rows[:, 2:].transpose(0, 1))
    assert not keys[0, :, :8].any()
    assert not cache.data[[0, 2]].any(), "other layers"


def test_its_line_for_operators() -> None:
    assert repr(pool()) == "KvCache(6 blocks x 8 tokens, 0 MiB, float32)"
    assert pool().device == CPU
    assert pool().dtype == torch.float32


@pytest.mark.parametrize("what", [float("nan"), float("inf"), float("-inf")])
def test_slots_without_numbers_in_any_layer_are_found_and_cleared(what: float) -> None:
    cache = pool()
    cache.data.fill_(1e30)
    cache.data[2, 4, 3, 10] = what  # slot 35
    cache.data[0, 0, 0, :2] = torch.tensor([what, -what])  # slot 0: their sum is none either
    slots = torch.tensor([34, 35, 0, 36])
    assert cache.finite(slots).tolist() == [True, False, False, True]
    cache.clear(torch.tensor([35, 0]))
    assert cache.finite(slots).all()
    kept = cache.data.view(3, 48, -1)
    assert not kept[:, [0, 35]].any()
    assert (kept[:, [34, 36]] == 1e30).all()
