"""Which experts a row goes to, and that nobody beside it matters."""

from dataclasses import replace

import torch

from engine.models.config import MoeConfig
from engine.models.moe import Moe, Router
from engine.models.network import Swiglu
from engine.weights.linear import Linear

HIDDEN = 16
PLAIN = MoeConfig(experts=8, chosen=2, intermediate=8, shared=1, first_layer=0, scaling=1.0)
dice = torch.Generator().manual_seed(3)


def router(config: MoeConfig, correction: list[float] | None = None) -> Router:
    weight = torch.randn(config.experts, HIDDEN, generator=torch.Generator().manual_seed(1))
    return Router(config, weight, None if correction is None else torch.tensor(correction))


def swiglu() -> Swiglu:
    return Swiglu(
        Linear(torch.randn(16, HIDDEN, generator=dice)),
        Linear(torch.randn(HIDDEN, 8, generator=dice)),
    )


def test_softmax_scores_are_the_weights_of_the_best_experts() -> None:
    scores = torch.tensor([[0.1, 0.3, 0.05, 0.2, 0.05, 0.1, 0.1, 0.1]])
    chosen, weights = router(replace(PLAIN, scaling=2.0)).choose(scores)
    assert chosen.tolist() == [[1, 3]]
    torch.testing.assert_close(weights, torch.tensor([[0.6, 0.4]]))


def test_groups_are_ranked_by_their_best_expert_in_v2() -> None:
    config = replace(PLAIN, groups=4, top_groups=1)
    scores = torch.tensor([[0.30, 0.0, 0.25, 0.20, 0.1, 0.05, 0.05, 0.05]])
    assert router(config).choose(scores)[0].tolist() == [[0, 1]]


def test_groups_are_ranked_by_their_two_best_in_v3_and_weights_sum_to_the_scaling() -> None:
    config = replace(PLAIN, groups=4, top_groups=1, sigmoid=True, normalised=True, scaling=2.5)
    scores = torch.tensor([[0.9, 0.0, 0.8, 0.7, 0.1, 0.1, 0.1, 0.1]])
    chosen, weights = router(config, [0.0] * 8).choose(scores)
    assert chosen.tolist() == [[2, 3]]
    torch.testing.assert_close(weights, torch.tensor([[0.8, 0.7]]) / 1.5 * 2.5)


def test_a_correction_changes_the_choice_and_not_the_weight() -> None:
    config = replace(PLAIN, sigmoid=True)
    scores = torch.tensor([[0.9, 0.8, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1]])
    chosen, weights = router(config, [0, 0, 1.0, 0, 0, 0, 0, 0]).choose(scores)
    assert chosen.tolist() == [[0, 2]]
    torch.testing.assert_close(weights, torch.tensor([[0.9, 0.3]]))


def test_a_row_has_the_same_bits_whoever_is_beside_it() -> None:
    moe = Moe(router(PLAIN), [swiglu() for _ in range(8)], swiglu())
    moe.use((8, 16, 32))
    rows = torch.randn(32, HIDDEN, generator=dice)
    together = moe(rows, 32)
    for one in (0, 5, 31):
        alone = torch.zeros(32, HIDDEN)
        alone[0] = rows[one]
        assert torch.equal(moe(alone, 1)[0], together[one])


def test_padding_goes_to_no_expert_and_shared_experts_may_be_missing() -> None:
    moe = Moe(router(PLAIN), [swiglu() for _ in range(8)], None)
    rows = torch.randn(8, HIDDEN, generator=dice)
    out = moe(rows, 3)
    assert out[:3].all()
    assert not out[3:].any()
    assert moe.rowwise(rows).shape == (8, 8 + HIDDEN)
