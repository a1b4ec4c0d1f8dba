"""Reads a folder as Hugging Face writes it: config.json and one or more *.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import ModelLoadError
from engine.weights.config_json import read_config, read_json, refuse_quantised

_INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_BUFFERS = ("rotary_emb.inv_freq",)  # derived numbers that old checkpoints carry along


class SafetensorsFolder:
    """An opened folder. Raises `ModelLoadError` for what is not a whole checkpoint of a known family."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = {
            name: file for name, file in self._locate().items() if not name.endswith(_BUFFERS)
        }
        self._open: dict[Path, Any] = {}
        self.config = read_config(path / "config.json")
        refuse_quantised(path / "config.json")
        if self.config.tied:
            self._files.pop("lm_head.weight", None)  # some checkpoints store the table twice
        if self.config.architecture == "deepseek_v3":
            # layers behind the last one guess several tokens ahead: for training and speculation
            behind = f"model.layers.{self.config.layers}."
            self._files = {n: f for n, f in self._files.items() if not n.startswith(behind)}

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

    def stored(self, name: str) -> None:
        """None: all tensors are numbers."""

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
            pickled = sorted(file for end in _PICKLED for file in self.path.glob(end))
            if pickled:
                raise ModelLoadError(
                    f"{pickled[0]}: a pickle can run any code when it is read, and is refused;"
                    " convert the model to safetensors"
                )
            raise ModelLoadError(f"{self.path}: no *.safetensors file")
        self._open = {}
        return {name: file for file in files for name in self._shard(file).keys()}  # noqa: SIM118 -- not a dict

    def _inside(self, file: object) -> Path:
        if not isinstance(file, str) or Path(file).name != file:
            raise ModelLoadError(f"{self.path / _INDEX}: {file!r} is not a file of this folder")
        if not file.endswith(".safetensors"):
            raise ModelLoadError(f"{self.path / _INDEX}: {file!r} is not a safetensors file")
        return self.path / file
