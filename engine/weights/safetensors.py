"""Reads a folder as Hugging Face writes it: config.json and one or more *.safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import ModelLoadError
from engine.models.config import ModelConfig

_INDEX = "model.safetensors.index.json"
_BUFFERS = ("rotary_emb.inv_freq",)  # derived numbers that old checkpoints carry along


class SafetensorsFolder:
    """An opened folder. Raises `ModelLoadError` for what is not a whole Llama-family checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = {
            name: file for name, file in self._locate().items() if not name.endswith(_BUFFERS)
        }
        self._open: dict[Path, Any] = {}
        self.config = read_config(path / "config.json")
        if self.config.tied:
            self._files.pop("lm_head.weight", None)  # some checkpoints store the table twice

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    @property
    def shards(self) -> list[Path]:
        return sorted(set(self._files.values()))

    def tensor(self, name: str) -> Tensor:
        """A tensor as stored. Raises `ModelLoadError` if it is missing or its file is damaged."""
        try:
            file = self._files[name]
        except KeyError:
            raise ModelLoadError(f"{self.path}: tensor {name!r} is missing") from None
        try:
            found: Tensor = self._shard(file).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{file}: tensor {name!r} cannot be read ({error})") from error
        return found

    def _shard(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelLoadError(f"{file}: damaged or cut short ({error})") from error
        return self._open[file]

    def _locate(self) -> dict[str, Path]:
        index = self.path / _INDEX
        if index.exists():
            by_name = read_json(index).get("weight_map")
            if not isinstance(by_name, dict):
                raise ModelLoadError(f"{index}: no weight_map")
            return {name: self._inside(file) for name, file in by_name.items()}
        files = sorted(self.path.glob("*.safetensors"))
        if not files:
            raise ModelLoadError(f"{self.path}: no *.safetensors file")
        self._open = {}
        return {name: file for file in files for name in self._shard(file).keys()}  # noqa: SIM118 -- not a dict

    def _inside(self, file: object) -> Path:
        if not isinstance(file, str) or Path(file).name != file:
            raise ModelLoadError(f"{self.path / _INDEX}: {file!r} is not a file of this folder")
        return self.path / file


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `ModelLoadError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelLoadError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: not a JSON object")
    return value


def read_config(path: Path) -> ModelConfig:
    """A Llama's config.json, of transformers 4 or 5. Raises `ModelLoadError`."""
    raw = read_json(path)
    if raw.get("model_type") != "llama":
        raise ModelLoadError(
            f"{path}: model_type {raw.get('model_type')!r} is not known here (llama is)"
        )
    for key, plain in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if raw.get(key, plain) != plain:
            raise ModelLoadError(f"{path}: {key} {raw[key]!r} is not known here")
    try:
        heads = int(raw["num_attention_heads"])
        hidden = int(raw["hidden_size"])
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0)
        head_dim = int(raw.get("head_dim") or hidden // heads)
        config = ModelConfig(
            architecture="llama",
            layers=int(raw["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            intermediate=int(raw["intermediate_size"]),
            vocab=int(raw["vocab_size"]),
            context_tokens=int(raw["max_position_embeddings"]),
            rope_theta=theta,
            rms_eps=float(raw["rms_norm_eps"]),
            tied=bool(raw.get("tie_word_embeddings", False)),
            rope_factors=_rope_factors(path, rope, theta, head_dim),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise ModelLoadError(f"{path}: {type(error).__name__} {error}") from error
    config.check(str(path))
    return config


def _rope_factors(
    path: Path, rope: Mapping[str, Any], theta: float, head_dim: int
) -> tuple[float, ...] | None:
    """Llama 3's rule: fast rotations stay, slow ones are divided by `factor`, between them a ramp."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ModelLoadError(f"{path}: rope scaling {kind!r} is not known here")
    factor, low = float(rope["factor"]), float(rope["low_freq_factor"])
    high, original = (
        float(rope["high_freq_factor"]),
        float(rope["original_max_position_embeddings"]),
    )
    factors = []
    for pair in range(head_dim // 2):
        turns = original * theta ** (-2 * pair / head_dim) / (2 * math.pi)
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / (keep + (1 - keep) / factor))
    return tuple(factors)
