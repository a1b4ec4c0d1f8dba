"""A linear layer in the machine's own layout."""

import pytest
import torch
from torch.nn import functional

from engine.weights import linear
from engine.weights.linear import Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 33])
def test_packed_and_plain_weights_give_the_same_product(dtype: torch.dtype, rows: int) -> None:
    dice = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=dice).to(dtype)
    x = torch.randn(rows, 64, generator=dice).to(dtype)
    with torch.inference_mode():
        out = Linear(weight.clone())(x)
    torch.testing.assert_close(out, functional.linear(x, weight))
    assert out.dtype == dtype


def test_where_weights_cannot_be_packed_they_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "_can_pack", lambda weight: False)
    weight, x = torch.randn(4, 3), torch.randn(2, 3)
    layer = Linear(weight)
    assert torch.equal(layer(x), functional.linear(x, weight))
    assert (layer.inputs, layer.outputs) == (3, 4)


def test_bfloat16_is_packed_only_where_the_machine_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.zeros(4, 4, dtype=torch.bfloat16)
    monkeypatch.setattr(linear, "native_bfloat16", lambda: False)
    assert not linear._can_pack(weight)
    assert not linear._can_pack(torch.zeros(4, 4, dtype=torch.float16))
    assert not linear._can_pack(torch.zeros(4, 4, device="meta"))
