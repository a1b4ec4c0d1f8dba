"""One model on two ranks: the same answers, half of the keys and values on each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig, as_flags, parse_config
from engine.errors import ConfigError
from engine.models.attention import Group, causal_mask
from engine.models.network import Tile
from engine.shards import Shard, _as_numbers, _as_tile, lead
from engine.weights.load import load
from tests.kit.hf_model import deepseek_v2, deepseek_v3, write_hf
from tests.kit.stage import CPU, make_stage
from tests.kit.tiny_model import TinyLlama

ROOT = Path(__file__).parent.parent.parent


def answered(folder: Path, ranks: int, mla: str = "auto") -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kit.ranks", str(folder), str(ranks), mla],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", ["llama", "naive", "absorb"])
def test_two_ranks_give_the_tokens_of_one_and_share_the_keys_and_values(
    kind: str, tmp_path: Path
) -> None:
    if kind == "llama":
        folder, mla = TinyLlama().write(tmp_path / "tiny"), "auto"
    else:
        folder, mla = write_hf(deepseek_v3(), tmp_path / "v3").folder, kind
    one, two = (answered(folder, ranks, mla) for ranks in (1, 2))
    assert two["tokens"] == one["tokens"]
    assert two["tokens"]["again"] == two["tokens"]["a"]
    assert two["hit_tokens"] == one["hit_tokens"] == 128
    stats = two["stats"]
    assert stats["tensor_parallel"] == 2
    assert stats["exact_decode"]
    assert stats["kv_replicated"] == (kind == "absorb")
    parts = 1 if kind == "absorb" else 2
    assert stats["kv_token_bytes"] * parts == one["stats"]["kv_token_bytes"]


def test_heads_that_do_not_divide_are_refused_by_name(tmp_path: Path) -> None:
    folder = TinyLlama(heads=4, kv_heads=1).write(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="tensor_parallel: 1 key-value heads do not divide by 2"):
        load(folder, device=CPU, dtype=torch.float32, sharding=Shard(0, 2, CPU))


def test_each_rank_holds_its_part_and_the_bias_of_the_output_is_added_once(tmp_path: Path) -> None:
    folder = write_hf(deepseek_v2(), tmp_path / "v2").folder
    whole = load(folder, device=CPU, dtype=torch.float32, mla="absorb").model
    parts = [
        load(folder, device=CPU, dtype=torch.float32, mla="absorb", sharding=Shard(n, 2, CPU)).model
        for n in (0, 1)
    ]
    keys = [part.layers[0].attention.key for part in parts]  # type: ignore[attr-defined]  # absorbed
    assert torch.equal(torch.cat(keys), whole.layers[0].attention.key)  # type: ignore[attr-defined]  # same
    rows = torch.randn(8, 64)
    added = sum(part.layers[2].mlp.rowwise(rows)[:, 8:72] for part in parts)  # the first expert
    torch.testing.assert_close(added, whole.layers[2].mlp.rowwise(rows)[:, 8:72])
    bias = torch.ones(3)
    assert [float(Shard(n, 2, CPU).once(bias).sum()) for n in (0, 1)] == [3.0, 0.0]


def test_a_tile_is_the_same_on_the_other_side(tmp_path: Path) -> None:
    stage = make_stage(TinyLlama().write(tmp_path / "tiny"), dtype=torch.float32)
    model, cache = stage.loaded.model, stage.cache
    positions = torch.tensor([5, 6, 130, 131, 7, 0, 0, 0])

    def group(start: int, stop: int, sequences: int, keys: int) -> Group:
        mask = causal_mask(
            positions[start:stop].view(sequences, -1), keys,
            groups=model.query_heads_per_kv_head, query_rows=4, dtype=torch.float32,
        )  # fmt: skip
        return Group(start, stop, sequences, torch.arange(sequences * keys // 32), mask)

    groups = (group(0, 2, 1, 128), group(2, 4, 2, 256), group(4, 5, 1, 128))
    tile = Tile(torch.arange(8), positions, torch.arange(5) + 40, groups)
    back = _as_tile(_as_numbers(tile), model, cache, query_rows=4)
    for name in ("tokens", "positions", "slots"):
        assert torch.equal(getattr(back, name), getattr(tile, name))
    for one, other in zip(back.groups, tile.groups, strict=True):
        assert (one.start, one.stop, one.sequences) == (other.start, other.stop, other.sequences)
        assert torch.equal(one.tables, other.tables)
        assert torch.equal(one.mask, other.mask)


def test_flags_give_the_same_configuration_again() -> None:
    config = EngineConfig(
        model="/a b", prefix_cache=False, kv_memory=5, tensor_parallel=2, threads=3
    )
    assert parse_config(as_flags(config), {}) == config
    assert as_flags(EngineConfig()) == []


def test_a_rank_that_cannot_start_is_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.shards.sys.executable", "/bin/false")
    with pytest.raises(ConfigError, match=r"did not come \(one of them ended at once"):
        lead(EngineConfig(model=str(tmp_path), tensor_parallel=2), CPU)
