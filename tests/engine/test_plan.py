"""KV arithmetic before anything is loaded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.config import PRESETS
from engine.plan import config_of, main, plan, table
from engine.weights.config_json import read_config
from tests.kit.tiny_gguf import write_gguf
from tests.kit.tiny_model import TinyLlama

DEEPSEEK: dict[str, Any] = {
    "hidden_size": 2048, "intermediate_size": 10944, "num_attention_heads": 16,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "q_lora_rank": None, "vocab_size": 102400, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 163840,
}  # fmt: skip
V2_LITE = DEEPSEEK | {"model_type": "deepseek_v2", "num_hidden_layers": 27}
V3 = DEEPSEEK | {"model_type": "deepseek_v3", "num_hidden_layers": 61, "num_attention_heads": 128}


def written(folder: Path, numbers: dict[str, Any]) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(numbers))
    return file


def token_bytes(file: Path) -> dict[tuple[str | None, str], int]:
    rows = plan(read_config(file), 24 << 30)
    return {(row.mla, row.kv_dtype): row.token_bytes for row in rows}


def test_deepseek_v3_takes_70272_bytes_a_token_absorbed_and_4997120_naive(tmp_path: Path) -> None:
    found = token_bytes(written(tmp_path, V3))
    assert found["absorb", "bf16"] == 70_272
    assert found["naive", "bf16"] == 4_997_120
    assert found["naive", "fp8"] / found["naive", "bf16"] < 0.53
    # the rope part stays bfloat16: 512 + 4 scales + 128 bytes of 1152
    assert found["absorb", "fp8"] == 61 * (512 + 4 * 2 + 64 * 2)


def test_a_config_whose_weights_are_quantised_is_planned_all_the_same(tmp_path: Path) -> None:
    how = {"fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
    published = {"quantization_config": how | {"activation_scheme": "dynamic"}}
    assert main(["--model", str(written(tmp_path, V3 | published))]) == 0
    assert token_bytes(tmp_path / "config.json")["absorb", "bf16"] == 70_272


def test_deepseek_v2_lite_takes_31104_bytes_a_token_absorbed(tmp_path: Path) -> None:
    found = token_bytes(written(tmp_path, V2_LITE))
    assert found["absorb", "bf16"] == 31_104
    assert found["naive", "bf16"] == 276_480
    assert found["absorb", "float32"] == 2 * 31_104


def test_tokens_and_sequences_are_counted_in_whole_blocks(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, V2_LITE))
    block = 31_104 * 32
    rows = {(row.mla, row.kv_dtype): row for row in plan(config, 300 * block + block - 1)}
    row = rows["absorb", "bf16"]
    assert row.tokens == 300 * 32
    assert row.sequences == {"short": 2, "medium": 1, "long": 0}
    assert tuple(row.sequences) == tuple(PRESETS)


def test_a_llama_has_one_mode_from_a_folder_or_a_gguf(tmp_path: Path) -> None:
    folder = TinyLlama().write(tmp_path / "tiny")
    file = write_gguf(TinyLlama(), tmp_path / "tiny.gguf")
    for path in (folder, folder / "config.json", file):
        rows = plan(config_of(path), 1 << 20)
        assert [row.mla for row in rows] == [None] * 3
        assert rows[1].token_bytes == 2 * 2 * 2 * 16 * 2


def test_the_table_names_modes_and_presets(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, V3))
    shown = table(config, 24 << 30, plan(config, 24 << 30))
    assert "deepseek_v3, 61 layers" in shown
    assert "short 4096, medium 8192, long 16384" in shown
    (absorbed,) = [line for line in shown.splitlines() if line.startswith("absorb  bf16")]
    assert absorbed.split()[2:] == ["70,272", "366,688", "89", "44", "22"]


def test_the_command_line_prints_a_table_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(written(tmp_path, V3))
    assert main(["--model", file, "--memory", "24GiB"]) == 0
    assert "70,272" in capsys.readouterr().out
    assert main(["--model", file, "--memory", "24GiB", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["token_bytes"] for row in rows} >= {70_272, 4_997_120}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "nowhere: no such file or folder"),
        (["--model", "config.json", "--memory", "much"], "--memory: must be a size"),
        (["--model", "config.json", "--block-tokens", "0"], "--block-tokens: must be at least 1"),
        (["--model", "config.json"], "model_type 'x' is not known here"),
    ],
)
def test_a_bad_word_ends_with_78_and_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, {"model_type": "x"})
    assert main(arguments) == 78
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_it_runs_as_a_word_of_the_engine_without_torch(tmp_path: Path) -> None:
    file = written(tmp_path, V2_LITE)
    code = (
        "import sys; from engine.plan import main;"
        f"assert main(['--model', {str(file)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    for command in (["-c", code], ["-m", "engine", "plan", "--model", str(file)]):
        done = subprocess.run([sys.executable, *command], capture_output=True, check=True)
        assert b"31,104" in done.stdout
