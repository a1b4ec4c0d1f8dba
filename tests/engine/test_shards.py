"""One model on two ranks: the same answers, half of the keys and values on each."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import FileStore

from engine.config import EngineConfig, as_flags, parse_config
from engine.errors import ConfigError, ModelLoadError
from engine.models.attention import Group, causal_mask
from engine.models.network import Tile
from engine.ranks import Ranks
from engine.shards import Shard, _as_numbers, _as_tile, lead, main
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
    with pytest.raises(ConfigError, match=r"did not come \(rank 1 has ended, with 1"):
        lead(EngineConfig(model=str(tmp_path), tensor_parallel=2), CPU)


def test_a_rank_takes_the_flags_alone_and_says_why_it_cannot_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def load_part(config: EngineConfig, *, rank: int, meeting: str) -> None:
        seen.append((config, rank, meeting))
        raise ModelLoadError("the file is cut short")

    monkeypatch.setattr("engine.kernels.load_part", load_part)
    monkeypatch.setenv("KVGATE_ENGINE__PREFIX_CACHE", "0")
    config = parse_config(["--prefix-cache=1", "--tensor-parallel=2"], os.environ)
    assert main(["1", "/meeting", str(os.getppid()), *as_flags(config)]) == 78
    assert seen == [(config, 1, "/meeting")]
    assert capsys.readouterr().err == "kvgate engine, rank 1: the file is cut short\n"


def ranks_in(folder: Path) -> list[int]:
    """Processes of ranks that meet below this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = (process / "cmdline").read_bytes().decode().split("\0")
            if "engine.shards" in words and f"{folder}/kvgate-ranks-" in "".join(words):
                found.append(int(process.name))
    return found


@pytest.mark.parametrize("end", ["rank 1 is killed", "rank 0 is told to stop", "rank 0 is killed"])
def test_no_rank_outlives_the_others(end: str, tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    flags = ["--tensor-parallel", "2", "--threads", "1", "--kv-memory", "4MiB", "--port", "0"]
    flags += ["--model", str(TinyLlama().write(tmp_path / "tiny")), "--dtype", "float32"]
    engine = subprocess.Popen(
        [sys.executable, "-m", "engine", *flags, "--port-file", str(port_file)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert engine.stderr is not None
    if end == "rank 1 is killed":
        said = ""
        while "ready" not in said:
            said = engine.stderr.readline()
            assert said
        (rank,) = ranks_in(tmp_path)
        os.kill(rank, signal.SIGKILL)
    else:  # while they meet
        while not ranks_in(tmp_path):
            assert engine.poll() is None
            time.sleep(0.01)
        engine.send_signal(signal.SIGTERM if "stop" in end else signal.SIGKILL)
    _, said = engine.communicate(timeout=60)  # to the pipe's end: that of all who hold it
    assert engine.returncode == {"rank 1 is killed": 70, "rank 0 is told to stop": 0}.get(end, -9)
    assert ("rank 1 has ended, with -9" in said) == (end == "rank 1 is killed")
    assert list(tmp_path.glob("kvgate-ranks-*")) == []


def test_a_rank_that_waits_in_the_meeting_ends_with_its_parent(tmp_path: Path) -> None:
    meeting = tmp_path / "ranks" / "meeting"
    meeting.parent.mkdir()
    store = FileStore(str(meeting), 2)
    store.set("here-0", "yes")  # who then never comes
    script = (
        "import os, subprocess, sys\n"
        "words = [sys.executable, '-m', 'engine.shards', '1', sys.argv[1], str(os.getpid())]\n"
        "subprocess.Popen([*words, '--tensor-parallel=2', '--device=cpu']).wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(meeting)], cwd=ROOT, stderr=subprocess.PIPE
    )
    while not store.check(["here-1"]):
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    _, said = parent.communicate(timeout=60)  # to the end of the pipe, which both hold
    assert b"Traceback" not in said
    assert not meeting.parent.exists()


def test_rank_0_ends_with_one_line_when_another_cannot_load() -> None:
    others = Ranks()
    others.start([sys.executable, "-S", "-c", "raise SystemExit(78)"], path="")
    shard = Shard(0, 2, CPU, others)
    shard._store = FileStore(str(others.folder / "meeting"), 2)
    with pytest.raises(
        ConfigError, match=r"^tensor_parallel: rank 1 cannot start, and has said why$"
    ):
        shard.await_loaded(pytest.fail)
    shard.end_others()
