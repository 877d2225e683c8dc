"""What an objective is evaluated on, and how its row losses become one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Shaped
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
        return reduce_losses(row_losses, reduction, weights, ranks=self.ranks, group=self.group)


def reduce_losses(
    losses: Float[Tensor, "..."],
    reduction: Reduction,
    weights: Shaped[Tensor, "..."] | None = None,
    *,
    ranks: int = 1,
    group: ProcessGroup | None = None,
) -> Tensor:
    """See `Batch.reduce`."""
    weighted = losses if weights is None else losses * weights
    if reduction == "none":
        return weighted
    total = weighted.sum() * ranks
    if reduction == "sum":
        return total
    if weights is None and ranks == 1:
        return total / losses.numel()
    count = losses.new_tensor(losses.numel()) if weights is None else weights.sum(dtype=losses.dtype)
    count = count if ranks == 1 else Merge.SUM.all_reduce(count.detach(), group)
    return total / torch.where(count > 0, count, 1)
