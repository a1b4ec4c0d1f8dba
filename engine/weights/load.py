"""Loads a model: file or folder in, network, tokenizer and fingerprint out."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import ModelLoadError
from engine.models.config import ModelConfig
from engine.models.llama import LlamaLayer, LlamaModel
from engine.text.tokenizer import Tokenizer, from_folder, from_gguf
from engine.weights.gguf import GgufFile
from engine.weights.linear import Linear, native_bfloat16
from engine.weights.safetensors import SafetensorsFolder

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a model's files hold, in memory.

    `fingerprint` is a hash of the weights' files and the dtype: keys and values of two models with one
    fingerprint are the same.
    """

    model: LlamaModel
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


def load(path: Path, *, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Load a `.gguf` file, or a folder of config.json, *.safetensors and tokenizer.json.

    Raises `ModelLoadError`, naming the file and where possible the tensor.
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
        digest = pool.submit(_fingerprint, files, dtype)
        model = _build(source, device=device, dtype=dtype)
        words = tokenizer.result()
        if words.vocab > source.config.vocab:
            raise ModelLoadError(
                f"{path}: the tokenizer has {words.vocab} tokens, the model {source.config.vocab}"
            )
        return LoadedModel(model, source.config, words, digest.result())


def _build(
    source: GgufFile | SafetensorsFolder, *, device: torch.device, dtype: torch.dtype
) -> LlamaModel:
    config = source.config
    shapes = _shapes(config)
    surplus = sorted(source.names - shapes.keys())
    if surplus:
        raise ModelLoadError(f"{source.path}: tensor {surplus[0]!r} is not part of a Llama")

    def tensor(name: str) -> Tensor:
        found = source.tensor(name)
        if tuple(found.shape) != shapes[name]:
            raise ModelLoadError(
                f"{source.path}: tensor {name!r} has shape {tuple(found.shape)}, not {shapes[name]}"
            )
        return found.to(device, dtype)

    def fused(*names: str) -> Linear:
        return Linear(torch.cat([tensor(name) for name in names]))

    def layer(number: int) -> LlamaLayer:
        def name(part: str) -> str:
            return f"model.layers.{number}.{part}.weight"

        return LlamaLayer(
            attention_norm=tensor(name("input_layernorm")),
            qkv=fused(*(name(f"self_attn.{part}_proj") for part in "qkv")),
            out=fused(name("self_attn.o_proj")),
            mlp_norm=tensor(name("post_attention_layernorm")),
            gate_up=fused(name("mlp.gate_proj"), name("mlp.up_proj")),
            down=fused(name("mlp.down_proj")),
        )

    with torch.inference_mode():
        embedding = tensor("model.embed_tokens.weight")
        head = Linear(embedding) if config.tied else fused("lm_head.weight")
        return LlamaModel(
            config,
            embedding=embedding,
            layers=[layer(number) for number in range(config.layers)],
            final_norm=tensor("model.norm.weight"),
            head=head,
        )


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model and its shape."""
    hidden, mlp = config.hidden, config.intermediate
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab, hidden)
    for number in range(config.layers):
        for part, shape in (
            ("input_layernorm", (hidden,)),
            ("self_attn.q_proj", (queries, hidden)),
            ("self_attn.k_proj", (keys, hidden)),
            ("self_attn.v_proj", (keys, hidden)),
            ("self_attn.o_proj", (hidden, queries)),
            ("post_attention_layernorm", (hidden,)),
            ("mlp.gate_proj", (mlp, hidden)),
            ("mlp.up_proj", (mlp, hidden)),
            ("mlp.down_proj", (hidden, mlp)),
        ):
            shapes[f"model.layers.{number}.{part}.weight"] = shape
    return shapes


def _fingerprint(files: list[Path], dtype: torch.dtype) -> str:
    digest = hashlib.sha256(str(dtype).encode())
    for path in files:
        digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while part := file.read(_READ_BYTES):
                digest.update(part)
    return digest.hexdigest()
