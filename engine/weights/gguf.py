"""Reads a GGUF file: numbers, tensors in Hugging Face's layout, and the vocabulary.

The `gguf` library does the reading and the dequantising; here are llama.cpp's names and its order of
the rotary rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, quants
from torch import Tensor

from engine.errors import ModelLoadError
from engine.models.config import ModelConfig
from engine.weights.names import from_gguf

_ROPE_FACTORS = "rope_freqs.weight"


class GgufFile:
    """An open GGUF file. Raises `ModelLoadError` for what is not a whole Llama-family GGUF."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _open(path)
        self.metadata: dict[str, Any] = _metadata(self._reader, path)
        found = {tensor.name: tensor for tensor in self._reader.tensors}
        self._rope_factors = found.pop(_ROPE_FACTORS, None)
        self._tensors = {self._renamed(name): tensor for name, tensor in found.items()}
        self.config = self._config()

    @property
    def names(self) -> frozenset[str]:
        """Hugging Face's names of the tensors there are."""
        return frozenset(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """A tensor by Hugging Face's name, dequantised to fp32. Raises `ModelLoadError` if missing."""
        try:
            found = self._tensors[name]
        except KeyError:
            raise ModelLoadError(f"{self.path}: tensor {name!r} is missing") from None
        weight = self._dequantised(found)
        if name.endswith("q_proj.weight"):
            return _rotary_rows(weight, self.config.heads)
        if name.endswith("k_proj.weight"):
            return _rotary_rows(weight, self.config.kv_heads)
        return weight

    def stored(self, name: str) -> tuple[int, np.ndarray[Any, np.dtype[np.uint8]]] | None:
        """(GGML type, blocks of each row (outputs, bytes)) of a quantised matrix, or None."""
        found = self._tensors.get(name)
        if found is None or len(found.shape) != 2 or found.data.dtype != np.uint8:
            return None
        blocks = found.data.view(np.ndarray).reshape(int(found.shape[1]), -1)
        for part, heads in (("q_proj", self.config.heads), ("k_proj", self.config.kv_heads)):
            if name.endswith(f"{part}.weight"):
                blocks = _rotary_rows(torch.from_numpy(blocks.copy()), heads).numpy()
        return int(found.tensor_type), blocks

    def _renamed(self, name: str) -> str:
        try:
            return from_gguf(name)
        except ModelLoadError as error:
            raise ModelLoadError(f"{self.path}: {error}") from None

    def _dequantised(self, found: Any) -> Tensor:
        data = found.data.view(np.ndarray)  # a memmap slows each of the many small steps
        try:
            values = quants.dequantize(data, found.tensor_type)
        except NotImplementedError:
            kind = GGMLQuantizationType(found.tensor_type).name
            raise ModelLoadError(f"{self.path}: tensor {found.name!r} is {kind}, unknown") from None
        # fp32 tensors come back as a read-only view of the file
        return torch.from_numpy(values if values.flags.writeable else values.copy())

    def _number(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(f"llama.{key}", default)
        if not isinstance(value, int | float):
            raise ModelLoadError(f"{self.path}: metadata llama.{key} is missing or no number")
        return value

    def _config(self) -> ModelConfig:
        architecture = self.metadata.get("general.architecture")
        if architecture != "llama":
            raise ModelLoadError(
                f"{self.path}: architecture {architecture!r} is not known here (llama is)"
            )
        if self._number("expert_count", 0):
            raise ModelLoadError(f"{self.path}: mixtures of experts are not known here")
        scaling = self.metadata.get("llama.rope.scaling.type", "none")
        if scaling != "none":
            raise ModelLoadError(f"{self.path}: rope scaling {scaling!r} is not known here")
        embedding = self._tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise ModelLoadError(f"{self.path}: tensor 'token_embd.weight' is missing")
        heads = int(self._number("attention.head_count"))
        hidden = int(self._number("embedding_length"))
        head_dim = int(self._number("attention.key_length", hidden // max(heads, 1)))
        rotary = int(self._number("rope.dimension_count", head_dim))
        if rotary != head_dim:
            raise ModelLoadError(f"{self.path}: {rotary} of {head_dim} rotary dimensions")
        config = ModelConfig(
            architecture="llama",
            layers=int(self._number("block_count")),
            hidden=hidden,
            heads=heads,
            kv_heads=int(self._number("attention.head_count_kv", heads)),
            head_dim=head_dim,
            intermediate=int(self._number("feed_forward_length")),
            vocab=int(embedding.shape[1]),
            context_tokens=int(self._number("context_length")),
            rope_theta=self._number("rope.freq_base", 10000.0),
            rms_eps=self._number("attention.layer_norm_rms_epsilon"),
            tied="lm_head.weight" not in self._tensors,
            rope_factors=self._factors(),
        )
        config.check(str(self.path))
        return config

    def _factors(self) -> tuple[float, ...] | None:
        if self._rope_factors is None:
            return None
        return tuple(self._dequantised(self._rope_factors).flatten().tolist())


def _rotary_rows(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp keeps the two rows of a rotary pair side by side; Hugging Face half a head apart."""
    rows, inputs = weight.shape
    if rows % (2 * heads):
        return weight  # the shape check that follows will name the tensor
    pairs = weight.view(heads, rows // heads // 2, 2, inputs)
    return pairs.transpose(1, 2).reshape(rows, inputs)


def _open(path: Path) -> GGUFReader:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelLoadError(f"{path}: not a GGUF file (it begins with {magic!r})")
    try:
        return _Reader(path)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, OSError) as error:
        raise ModelLoadError(f"{path}: damaged or cut short ({error})") from error


def _metadata(reader: GGUFReader, path: Path) -> dict[str, Any]:
    values = {}
    for name, field in reader.fields.items():
        try:
            values[name] = field.contents()
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise ModelLoadError(f"{path}: metadata {name} is damaged ({error})") from error
    return values


class _Reader(GGUFReader):  # type: ignore[misc]  # gguf carries no types
    """The library's reader, which takes 4 s for a vocabulary of 49k; arrays are read whole here."""

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Any], list[int], list[Any]]:
        native = self.byte_order == "I" and np.little_endian
        if GGUFValueType(raw_type) is not GGUFValueType.ARRAY or not native:
            parts: tuple[int, list[Any], list[int], list[Any]] = super()._get_field_parts(
                orig_offs, raw_type
            )
            return parts
        item = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        start = orig_offs + 12
        types = [GGUFValueType.ARRAY, item]
        if item is GGUFValueType.STRING:
            strings, size = _strings(memoryview(self.data), start, count)
            return 12 + size, strings, list(range(count)), types
        values = self._get(start, self.gguf_scalar_to_np[item], count)
        if len(values) != count:
            raise ValueError("an array runs over the end of the file")
        return 12 + int(values.nbytes), [values], [0], types


def _strings(data: memoryview, start: int, count: int) -> tuple[list[memoryview], int]:
    """`count` strings with 8-byte lengths, and how many bytes they took. Raises `ValueError`."""
    strings = []
    at = start
    for _ in range(count):
        begin = at + 8
        at = begin + int.from_bytes(data[at:begin], "little")
        if at > len(data) or begin > len(data):
            raise ValueError("a string runs over the end of the file")
        strings.append(data[begin:at])
    return strings, at - start
