"""The numbers of a model."""

from dataclasses import replace
from typing import Any

import pytest

from engine.errors import ModelLoadError
from engine.models.config import ModelConfig

GOOD = ModelConfig(
    architecture="llama",
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate=128,
    vocab=300,
    context_tokens=2048,
    rope_theta=10000.0,
    rms_eps=1e-5,
    tied=True,
)


def test_numbers_that_make_a_model_pass() -> None:
    GOOD.check("here")
    replace(GOOD, rope_factors=(1.0,) * 8).check("here")


@pytest.mark.parametrize("name", ["layers", "hidden", "heads", "kv_heads", "head_dim", "vocab"])
def test_a_number_below_one_is_named_with_its_file(name: str) -> None:
    changes: dict[str, Any] = {name: 0}
    with pytest.raises(ModelLoadError, match=f"here: {name} is 0"):
        replace(GOOD, **changes).check("here")


def test_heads_that_do_not_divide_odd_heads_and_stray_factors_are_refused() -> None:
    for changed, message in (
        (replace(GOOD, kv_heads=3), "do not divide into 3 groups"),
        (replace(GOOD, head_dim=17), "head dimension 17 is odd"),
        (replace(GOOD, rope_factors=(1.0,)), "1 rotary factors for 8 pairs"),
    ):
        with pytest.raises(ModelLoadError, match=message):
            changed.check("here")
