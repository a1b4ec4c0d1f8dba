"""How much context a model takes in so much memory: `python -m engine plan --model PATH --memory 24GiB`.

Arithmetic over a config.json (a path, or a folder with one) or a GGUF file's head; no weight is read, and
only a GGUF file needs torch. For each way of keeping keys and values: bytes a token, tokens that fit, and
how many sequences of each usual length. The memory is that of the KV pool alone (`engine.kv_memory`):
weights and activations come on top.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from engine.config import PRESETS, size_bytes
from engine.errors import ConfigError, ModelLoadError, StartError
from engine.kv.layout import Element, KvLayout
from engine.models.config import MlaMode, ModelConfig
from engine.weights.config_json import read_config

CANNOT_START: Final = 78
BLOCK_TOKENS: Final = 32
ELEMENTS: Final[tuple[tuple[str, Element], ...]] = (
    ("float32", "float32"),
    ("bf16", "bfloat16"),
    ("fp8", "float8"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One way of keeping keys and values. `sequences` of each preset fit at once, in whole blocks."""

    mla: MlaMode | None
    kv_dtype: str
    token_bytes: int
    tokens: int
    sequences: dict[str, int]


def plan(config: ModelConfig, memory_bytes: int, *, block_tokens: int = BLOCK_TOKENS) -> list[Row]:
    """All ways in which this model's keys and values can be kept in so much memory."""
    modes: tuple[MlaMode | None, ...] = ("absorb", "naive") if config.latent else (None,)
    rows = []
    for mode in modes:
        for name, element in ELEMENTS:
            layout = KvLayout(
                layers=config.layers,
                shape=config.kv_shape(mode),
                block_tokens=block_tokens,
                element=element,
            )
            blocks = layout.blocks_in(memory_bytes)
            sequences = {
                preset: blocks // -(-tokens // block_tokens) for preset, tokens in PRESETS.items()
            }
            tokens = blocks * block_tokens
            rows.append(Row(mode, name, layout.token_bytes, tokens, sequences))
    return rows


def config_of(path: Path) -> ModelConfig:
    """The numbers of a config.json, a folder with one, or a GGUF file. Raises `ModelLoadError`."""
    if path.suffix == ".gguf":
        from engine.weights.gguf import GgufFile  # noqa: PLC0415 -- needs torch, the others do not

        return GgufFile(path).config
    return read_config(path / "config.json" if path.is_dir() else path)


def table(config: ModelConfig, memory_bytes: int, rows: Sequence[Row]) -> str:
    """What people read."""
    head = ("mla", "kv_dtype", "bytes/token", "tokens", *(f"x{n}" for n in PRESETS.values()))
    lines = [head]
    for row in rows:
        counts = (row.token_bytes, row.tokens, *row.sequences.values())
        lines.append((row.mla or "-", row.kv_dtype, *(f"{count:,}" for count in counts)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    presets = ", ".join(f"{name} {tokens}" for name, tokens in PRESETS.items())
    size = f"{memory_bytes / 2**30:.4g} GiB for keys and values"
    text = [
        f"{config.architecture}, {config.layers} layers, trained for {config.context_tokens:,} tokens",
        f"{size}; x: sequences at once ({presets})",
        "",
    ]
    for line in lines:
        words = [
            word.ljust(width) if column < 2 else word.rjust(width)
            for column, (word, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(words).rstrip())
    return "\n".join(text)


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine plan", description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="config.json, folder, or .gguf")
    parser.add_argument("--memory", default="1GiB", help="of keys and values, as 24GiB")
    parser.add_argument("--block-tokens", type=int, default=BLOCK_TOKENS)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """The command line: 0, or 78 with one line for a bad model or size."""
    asked = _arguments(arguments)
    try:
        memory_bytes = _memory(asked.memory)
        if asked.block_tokens < 1:
            raise ConfigError(f"--block-tokens: must be at least 1, not {asked.block_tokens}")
        path = asked.model.expanduser()
        if not path.exists():
            raise ModelLoadError(f"{path}: no such file or folder")
        config = config_of(path)
    except StartError as error:
        sys.stderr.write(f"kvgate engine: {error}\n")
        return CANNOT_START
    rows = plan(config, memory_bytes, block_tokens=asked.block_tokens)
    answer = json.dumps([asdict(row) for row in rows], indent=2)
    sys.stdout.write((answer if asked.json else table(config, memory_bytes, rows)) + "\n")
    return 0


def _memory(text: str) -> int:
    try:
        return size_bytes(text)
    except ValueError as error:
        raise ConfigError(f"--memory: {error}, not {text!r}") from None
