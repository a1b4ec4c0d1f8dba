"""A mixture of experts: each row goes through the shared experts and a few of the others.

How many rows an expert gets depends on what else is in the tile, and the last digits of a product on
how many rows it has (`engine.models.exact`). So an expert's rows are padded to the counts that agree, and
a row's experts are added up in the order of their numbers, whoever is beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from engine.models.config import MoeConfig
from engine.models.network import Swiglu


class Router:
    """Which experts a row goes to, and how much each of them counts. In fp32 always."""

    def __init__(self, config: MoeConfig, weight: Tensor, correction: Tensor | None) -> None:
        self.config = config
        self.weight = weight.float()  # (experts, hidden)
        self.correction = None if correction is None else correction.float()  # (experts,)

    def scores(self, x: Tensor) -> Tensor:
        """(M, hidden) to (M, experts)."""
        logits = functional.linear(x.float(), self.weight)
        return logits.sigmoid() if self.config.sigmoid else logits.softmax(-1)

    def choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers and weights of the chosen experts, each (M, chosen), in the order of the numbers."""
        config = self.config
        merit = scores if self.correction is None else scores + self.correction
        if config.groups > 1:
            merit = merit.masked_fill(~self._reachable(merit), float("-inf"))
        chosen = merit.topk(config.chosen, dim=-1).indices.sort(dim=-1).values
        weights = scores.gather(1, chosen)
        if config.normalised:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * config.scaling

    def _reachable(self, merit: Tensor) -> Tensor:
        """Experts of each row's best groups (M, experts).

        V2 ranks groups by their best expert, V3 by the sum of their two best.
        """
        config = self.config
        grouped = merit.view(len(merit), config.groups, -1)
        by_two = config.sigmoid
        rank = grouped.topk(2, dim=-1).values.sum(-1) if by_two else grouped.amax(-1)  # (M, groups)
        best = rank.topk(config.top_groups, dim=-1).indices
        reachable = torch.zeros_like(rank, dtype=torch.bool).scatter_(1, best, value=True)
        return reachable.repeat_interleave(config.experts // config.groups, dim=1)


class Moe:
    """Experts of one layer. `shared` sees every row."""

    def __init__(self, router: Router, experts: Sequence[Swiglu], shared: Swiglu | None) -> None:
        self.router = router
        self.experts = tuple(experts)
        self.shared = shared
        self._row_counts: tuple[int, ...] = ()

    def use(self, row_counts: tuple[int, ...]) -> None:
        """An expert's rows are padded to one of these counts from now on."""
        self._row_counts = row_counts

    def __call__(self, x: Tensor, rows: int) -> Tensor:
        """(M, hidden) to (M, hidden); padding after the first `rows` goes to no expert."""
        out = torch.zeros_like(x) if self.shared is None else self.shared(x, rows)
        chosen, weights = self.router.choose(self.router.scores(x))
        chosen, weights = chosen[:rows], weights[:rows].to(x.dtype)
        routed = torch.zeros_like(x[:rows])
        used = chosen.flatten().bincount(minlength=len(self.experts))
        for number in used.nonzero().flatten().tolist():
            row, place = (chosen == number).nonzero(as_tuple=True)
            answer = self._padded(self.experts[number], x.index_select(0, row))
            # index_add_ over rows that differ: one term a row, in the order of the experts
            routed.index_add_(0, row, answer * weights[row, place].unsqueeze(1))
        out[:rows] += routed
        return out

    def _padded(self, expert: Swiglu, x: Tensor) -> Tensor:
        rows = x.shape[0]
        count = next((count for count in self._row_counts if count >= rows), rows)
        if count > rows:
            x = functional.pad(x, (0, 0, 0, count - rows))
        return expert(x, rows)[:rows]

    def rowwise(self, x: Tensor) -> Tensor:
        """Router, shared experts and one expert, each with all rows: the others have its shape."""
        parts = [self.router.scores(x), self.experts[0].rowwise(x).float()]
        if self.shared is not None:
            parts.append(self.shared.rowwise(x).float())
        return torch.cat(parts, dim=-1)
