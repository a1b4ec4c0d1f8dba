"""Tensor names."""

import pytest

from engine.errors import ModelLoadError
from engine.weights.names import from_gguf
from tests.kit.tiny_gguf import gguf_name
from tests.kit.tiny_model import TinyLlama


def test_every_gguf_name_is_known_and_no_other() -> None:
    for name in TinyLlama(tied=False).weights():
        assert from_gguf(gguf_name(name)) == name
    for name in ("blk.x.attn_q.weight", "blk.0.attn_q.bias", "blk.0.ssm_a", "cls.weight"):
        with pytest.raises(ModelLoadError, match=name):
            from_gguf(name)
