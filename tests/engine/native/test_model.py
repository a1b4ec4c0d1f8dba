"""The native network against torch's with the same weights: rows in 8 bits are all that is between them."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from engine.models.config import ModelConfig
from engine.native.build import NoNativeError
from engine.native.library import Library
from engine.native.model import MOST_THREADS, NativeModel, Weights, check
from engine.weights.gguf import GgufFile
from tests.kit.hf_model import VOCAB, YARN, write_hf
from tests.kit.native import native_stage, read_weights
from tests.kit.stage import make_stage, sequence
from tests.kit.tiny_gguf import write_gguf
from tests.kit.tiny_model import TinyLlama

TOKENS = [(13 * i * i + i) % 260 for i in range(300)]
ROWS = [0, 1, 7, 8, 31, 32, 149, 255, 256, *range(290, 300)]
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, PreTrainedConfig] = {
    "qwen2, biases": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3, head norms": Qwen3Config(**SMALL | {"head_dim": 64}),
    "qwen3 with yarn": Qwen3Config(**SMALL, rope_parameters=dict(YARN)),
    "llama with biases, four heads share keys": LlamaConfig(
        **SMALL | {"num_attention_heads": 4, "hidden_size": 128}, attention_bias=True
    ),
    "llama 3, own head": LlamaConfig(
        **SMALL, rope_parameters=dict(LLAMA3), tie_word_embeddings=False
    ),
    "no groups, heads of 96": LlamaConfig(
        **SMALL | {"head_dim": 96, "num_key_value_heads": 2, "intermediate_size": 160}
    ),
}


def in_8_bits(folder: Path) -> Path:
    """The same checkpoint with each matrix at the numbers that its 8 bits stand for."""
    file = folder / "model.safetensors"
    save_file(
        {
            name: one
            if one.ndim == 1
            else torch.from_numpy(
                quants.dequantize(quants.quantize(one.numpy(), Kind.Q8_0), Kind.Q8_0)
            )
            for name, one in load_file(file).items()
        },
        file,
    )
    return folder


def apart(library: Library, path: Path) -> tuple[float, float]:
    """Of the logits of some rows: how far from torch's, in their standard deviations; mean KL."""
    torch_stage = make_stage(path, dtype=torch.float32)
    stage = native_stage(library, read_weights(library, path))
    one = sequence(TOKENS, range(10))
    wanted = torch_stage.forward(*((one, at, at + 1) for at in range(300)))[ROWS]
    found = stage.in_steps(one, cuts=(150, 290))[ROWS]
    kl = (wanted.softmax(-1) * (wanted.log_softmax(-1) - found.log_softmax(-1))).sum(-1)
    return float((found - wanted).std() / wanted.std()), float(kl.mean())


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_the_family_is_near_torch(native: Library, tmp_path: Path, kind: str) -> None:
    folder = in_8_bits(write_hf(KINDS[kind], tmp_path / "model").folder)
    distance, kl = apart(native, folder)
    assert distance < 0.05
    assert kl < 0.01


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0, Kind.F32])
def test_every_kind_of_blocks_is_near_torch(native: Library, tmp_path: Path, kind: Kind) -> None:
    tiny = TinyLlama(heads=2, kv_heads=1, tied=kind == Kind.Q4_0, seed=5)
    distance, kl = apart(native, write_gguf(tiny, tmp_path / "tiny.gguf", kind=kind))
    assert distance < (0.1 if kind == Kind.F32 else 0.05), "F32 is brought into 8 bits"
    assert kl < 0.01


# -- what it is not written for -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return GgufFile(write_gguf(TinyLlama(heads=2, kv_heads=1), path)).config


def test_what_it_serves_passes(config: ModelConfig) -> None:
    for block_tokens in (16, 32, 64, 128):
        check(config, block_tokens=block_tokens)
    check(replace(config, heads=16, kv_heads=1, head_dim=256), block_tokens=32)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"head_dim": 16}, "head_dim is 16, no multiple of 32"),
        ({"hidden": 80}, "hidden is 80, no multiple of 32"),
        ({"intermediate": 100}, "intermediate is 100, no multiple of 32"),
        ({"head_dim": 288}, "heads of 288 in groups of 2"),
        ({"heads": 34, "kv_heads": 2}, "heads of 32 in groups of 17"),
    ],
)
def test_what_it_is_not_written_for_is_said(
    config: ModelConfig, changes: dict[str, int], complaint: str
) -> None:
    with pytest.raises(NoNativeError, match=complaint):
        check(replace(config, **changes), block_tokens=32)  # type: ignore[arg-type]  # whole numbers


def test_blocks_of_eight_tokens_are_not_served(config: ModelConfig) -> None:
    with pytest.raises(NoNativeError, match="block_tokens is 8"):
        check(config, block_tokens=8)


# -- its life -------------------------------------------------------------------------------------------


def threads() -> set[str]:
    """This process's, the system's and not Python's."""
    return {task.name for task in Path("/proc/self/task").iterdir()}


def assert_ended(born: set[str]) -> None:
    """The system forgets a thread a moment after it has ended."""
    deadline = time.monotonic() + 30
    while born & threads():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def weights(native: Library, tmp_path: Path) -> Weights:
    return read_weights(native, TinyLlama(heads=2, kv_heads=1).write(tmp_path / "tiny"))


def test_closing_ends_its_threads_and_may_be_done_twice(native: Library, weights: Weights) -> None:
    before = threads()
    stage = native_stage(native, weights, threads=3)
    model: NativeModel = stage.runner.model
    born = threads() - before
    assert len(born) == 2
    stage.in_steps(sequence(TOKENS[:40], [0, 1]))
    model.close()
    assert_ended(born)
    model.close()
    with pytest.raises(AssertionError):
        stage.in_steps(sequence(TOKENS[:40], [0, 1]))


def test_a_model_that_nobody_holds_ends_its_threads(native: Library, weights: Weights) -> None:
    before = threads()
    stage = native_stage(native, weights, threads=4)
    born = threads() - before
    assert len(born) == 3
    del stage
    assert_ended(born)


FORKED = """
import os, sys
from pathlib import Path
from engine.native.library import Library
from tests.kit.native import native_stage, read_weights
from tests.kit.stage import sequence
from tests.kit.tiny_model import TinyLlama

library = Library(Path(sys.argv[1]))
weights = read_weights(library, TinyLlama(heads=2, kv_heads=1).write(Path(sys.argv[2])))
stage, one = native_stage(library, weights, threads=3), sequence(list(range(40)), [0, 1])
wanted = stage.in_steps(one)
stage.runner.crowd.active = 3
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert stage.in_steps(one).equal(wanted)
    print("parent and child agree")
else:
    assert stage.in_steps(one).equal(wanted)
    stage.runner.close()
"""


def test_a_fork_has_no_crew_and_computes_alone_and_exactly(native: Library, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(native.path), str(tmp_path / "tiny")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "parent and child agree", done.stderr


def test_more_threads_than_it_can_hold_are_as_many_as_it_can(
    native: Library, weights: Weights
) -> None:
    stage = native_stage(native, weights, threads=1000)
    assert stage.runner.model.threads == MOST_THREADS
    one = sequence(TOKENS[:70], range(3))
    assert torch.equal(stage.in_steps(one), native_stage(native, weights).in_steps(one))
