"""Which shapes agree bit for bit, found by measuring."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.kv.cache import KvCache
from engine.models.attention import Group, attend
from engine.models.exact import measure
from engine.models.network import Network
from engine.weights.load import load
from tests.kit.stage import CPU
from tests.kit.tiny_model import TinyLlama


@pytest.fixture
def model(tmp_path: Path) -> Network:
    return load(TinyLlama().write(tmp_path / "t"), device=CPU, dtype=torch.float32).model


def test_the_asked_tile_is_the_largest_count_or_less(model: Network) -> None:
    for tile in (8, 32, 100):
        shapes = measure(model, tile_tokens=tile, element="float32")
        assert shapes.row_counts[-1] <= tile
        assert set(shapes.row_counts) <= {8, 16, 32, 64, tile}


class RowCountMatters:
    """A linear layer whose last digits depend on the number of rows, as some machines' do."""

    def __init__(self, inner: object, unlike: set[int]) -> None:
        self.inner, self.unlike = inner, unlike

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)  # type: ignore[operator]  # a Linear
        return out * (1 + 1e-6) if x.shape[0] in self.unlike else out


def test_counts_whose_rows_differ_are_not_mixed(model: Network) -> None:
    model.head = RowCountMatters(model.head, {8, 128})  # type: ignore[assignment]  # by shape
    assert measure(model, tile_tokens=128, element="float32").row_counts in {(16, 32, 64), (8, 128)}


def test_where_no_two_counts_agree_one_is_used_alone(model: Network) -> None:
    class AllDiffer(RowCountMatters):
        def __call__(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)  # type: ignore[operator]  # a Linear
            return out * (1 + x.shape[0] * 1e-5)

    model.head = AllDiffer(model.head, set())  # type: ignore[assignment]  # by shape
    assert measure(model, tile_tokens=128, element="float32").row_counts == (32,)


def test_keys_and_values_count_as_much_as_what_is_made_of_them(model: Network) -> None:
    class KeysDiffer(RowCountMatters):
        def __call__(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)  # type: ignore[operator]  # a Linear
            out[:, model.config.heads * model.config.head_dim :] *= 1 + x.shape[0] * 1e-5
            return out

    for layer in model.layers:
        layer.attention.qkv = KeysDiffer(layer.attention.qkv, set())  # type: ignore[attr-defined]  # by shape
    assert measure(model, tile_tokens=128, element="float32").row_counts == (32,)


def rows_matter(monkeypatch: pytest.MonkeyPatch, change: Callable[[int], float]) -> None:
    """Attention whose last digits depend on the number of query rows of the call."""

    def changed(
        queries: Tensor, cache: KvCache, layer: int, group: Group, *, scale: float
    ) -> Tensor:
        return attend(queries, cache, layer, group, scale=scale) * change(group.mask.shape[2])

    monkeypatch.setattr("engine.models.exact.attend", changed)


def test_attention_that_differs_for_few_rows_is_padded_further(
    model: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_matter(monkeypatch, lambda rows: 1 + 1e-5 if rows < 16 else 1.0)
    shapes = measure(model, tile_tokens=32, element="float32")
    assert (shapes.query_rows, shapes.attention) == (16, True)


def test_attention_that_differs_for_every_count_of_rows_is_declared(
    model: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_matter(monkeypatch, lambda rows: 1 + rows * 1e-5)
    assert not measure(model, tile_tokens=32, element="float32").attention
