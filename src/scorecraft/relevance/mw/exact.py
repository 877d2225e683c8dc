"""The sum over all pairs of a positive and a negative score, pair by pair in tiles."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_COLUMNS = 2048
"""Negatives of a tile."""
_IN_CACHE, _ON_DEVICE = 16, 4096
"""Positives of a tile on a CPU, where it stays in the cache with its temporaries, and elsewhere."""


def pair_sum_and_gradients(
    positives: Float[Tensor, " p"],
    negatives: Float[Tensor, " n"],
    positive_weights: Float[Tensor, " p"] | None = None,
    negative_weights: Float[Tensor, " n"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " p"], Float[Tensor, " n"]]:
    """`sum_ab u_a v_b softplus(b - a)` and its gradients, in float64: time `O(p n)`, memory `O(p + n)`."""
    a, b = positives.double(), negatives.double()
    u = torch.ones_like(a) if positive_weights is None else positive_weights.double()
    v = torch.ones_like(b) if negative_weights is None else negative_weights.double()
    total, of_a, of_b = a.new_zeros(()), torch.zeros_like(a), torch.zeros_like(b)
    step = _IN_CACHE if a.device.type == "cpu" else _ON_DEVICE
    for row in range(0, len(a), step):
        rows = slice(row, row + step)
        for column in range(0, len(b), _COLUMNS):
            columns = slice(column, column + _COLUMNS)
            gap = a[rows, None] - b[columns]
            total -= u[rows] @ (F.logsigmoid(gap) @ v[columns])
            slope = torch.sigmoid(gap.neg_())
            of_a[rows] -= slope @ v[columns]
            of_b[columns] += u[rows] @ slope
    return total, of_a * u, of_b * v
