"""What an objective is evaluated on, and how its row losses become one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scorecraft.core.pairs import Pairs
from scorecraft.core.reductions import Merge

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Reduction: TypeAlias = Literal["mean", "sum", "none"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What an objective is evaluated on: this rank's rows, and everything they are compared with."""

    embeddings: Tensor | None
    reference: Tensor | None
    """The columns; `None` means the rows themselves."""
    pairs: Pairs
    labels: Tensor | None = None
    weights: Float[Tensor, " n"] | None = None
    kept: Bool[Tensor, " n"] | None = None
    """Rows that are not ignored; `None` keeps all."""
    met_in_both_orders: bool = True
    """Whether every pair is met twice, as `(i, j)` and as `(j, i)`: a batch against itself, on one rank or on many."""
    ranks: int = 1
    group: ProcessGroup | None = None

    def all_sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, outside the graph."""
        return value if self.ranks == 1 else Merge.SUM.all_reduce(value.detach(), self.group)

    def reduce(self, row_losses: Float[Tensor, " n"], reduction: Reduction) -> Tensor:
        """Weighted mean or sum over the rows of all ranks, so that the mean over ranks is the global value.

        `mean = sum_i w_i loss_i / sum_i w_i`. On one of several ranks the sum runs over its own rows, and is scaled by
        the number of ranks. `none` gives this rank's row losses, times their weights.
        """
        weights = self.weights if self.kept is None else self.kept if self.weights is None else self.weights * self.kept
        weighted = row_losses if weights is None else row_losses * weights
        if reduction == "none":
            return weighted
        total = weighted.sum() * self.ranks
        if reduction == "sum":
            return total
        if weights is None and self.ranks == 1:
            return total / len(row_losses)
        count = row_losses.new_tensor(len(row_losses)) if weights is None else weights.sum(dtype=row_losses.dtype)
        count = self.all_sum(count)
        return total / torch.where(count > 0, count, 1)
