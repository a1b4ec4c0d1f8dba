"""Loads a model: file or folder in, network, tokenizer and fingerprint out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from engine.errors import ModelLoadError
from engine.models.config import ModelConfig
from engine.models.network import Network, Sharding
from engine.text.tokenizer import Tokenizer, from_folder, from_gguf
from engine.weights.build import Source, build
from engine.weights.gguf import GgufFile
from engine.weights.linear import native_bfloat16
from engine.weights.safetensors import SafetensorsFolder

_READ_BYTES = 1 << 20


ModelT = TypeVar("ModelT")


@dataclass(frozen=True, slots=True)
class LoadedModel(Generic[ModelT]):
    """What a model's files hold, in memory.

    `fingerprint` is a hash of the weights' files and of how they are computed with: keys and values of
    two models with one fingerprint are the same.
    """

    model: ModelT
    config: ModelConfig
    tokenizer: Tokenizer
    fingerprint: str


def choose_device(name: str) -> torch.device:
    """`auto` is a CUDA device if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it natively, otherwise float32."""
    if name == "float32":
        return torch.float32
    if name == "bfloat16":
        return torch.bfloat16
    assert name == "auto", name
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else native_bfloat16()
    return torch.bfloat16 if native else torch.float32


def load(
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    mla: str = "auto",
    sharding: Sharding | None = None,
) -> LoadedModel[Network]:
    """Load a `.gguf` file, or a folder of config.json, *.safetensors and tokenizer.json, for torch.

    `mla` says what a model with latent attention keeps: `naive`, `absorb` or `auto`; `sharding` which
    part of it this rank holds.

    Raises `ModelLoadError`, naming the file and where possible the tensor.
    """

    def make(source: Source) -> Network:
        mode = source.config.mla_mode(mla)
        return build(source, device=device, dtype=dtype, mla=mode, sharding=sharding)

    return load_with(path, make, words=str(dtype))


def load_with(path: Path, make: Callable[[Source], ModelT], *, words: str) -> LoadedModel[ModelT]:
    """Load a model's files, its weights by `make`; `words` say how they are computed with.

    Raises `ModelLoadError`, and what `make` raises.
    """
    if not path.exists():
        raise ModelLoadError(f"{path}: no such file or folder")
    with ThreadPoolExecutor(max_workers=2) as pool:  # beside the weights, which hold the GIL
        source: GgufFile | SafetensorsFolder
        if path.is_dir():
            source = SafetensorsFolder(path)
            tokenizer = pool.submit(from_folder, path)
            files = [path / "config.json", *source.shards]
        else:
            source = GgufFile(path)
            tokenizer = pool.submit(from_gguf, source.metadata, path)
            files = [path]
        digest = pool.submit(_fingerprint, files, words)
        model = make(source)
        text = tokenizer.result()
        if text.vocab > source.config.vocab:
            raise ModelLoadError(
                f"{path}: the tokenizer has {text.vocab} tokens, the model {source.config.vocab}"
            )
        return LoadedModel(model, source.config, text, digest.result())


def _fingerprint(files: list[Path], words: str) -> str:
    digest = hashlib.sha256(words.encode())
    for path in files:
        digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while part := file.read(_READ_BYTES):
                digest.update(part)
    return digest.hexdigest()
