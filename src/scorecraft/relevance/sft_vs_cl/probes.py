"""What the paper looks at: how large the weights are, how the directions lie, and rows that are trained."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core.checks import check_values, describe, non_negative, positive_integer, refuse
from scorecraft.relevance.sft_vs_cl.weights import Weight, reranking_weights
from scorecraft.relevance.two_row_scoring import Mask, two_row_logits


class WeightSummary(NamedTuple):
    """The weights of one batch under one definition, as 0-d tensors; a mean over nothing is 0."""

    positive_mean: Float[Tensor, ""]
    """Mean of `W+` over the relevant candidates."""
    negative_mean: Float[Tensor, ""]
    """Mean of `W-` over the irrelevant candidates."""
    dead: Float[Tensor, ""]
    """Share of candidates whose weight is below the bound."""
    dead_relative: Float[Tensor, ""]
    """Share of candidates whose weight is below the bound times the mean weight: what is left of a small weight under
    Adam, for which a factor common to all weights cancels."""


@torch.no_grad()
def weight_summary(
    scores: Float[Tensor, "2 ... c"],
    relevance: Num[Tensor, "... c"] | Bool[Tensor, "... c"],
    where: Bool[Tensor, "... c"] | None = None,
    *,
    weight: Weight = "sft",
    mask_threshold: float = 0.1,
    below: float = 0.01,
) -> WeightSummary:
    """How much the candidates of a batch count, under one of the weights: call it for both on the same scores.

    Args:
        scores: `[2, ..., c]`, the logits of yes and of no.
        relevance: `[..., c]`, relevant where above 0.
        where: bool `[..., c]`, the candidates there are.
        weight: which weights.
        mask_threshold: of the masked constant.
        below: the weight under which a candidate is called dead, >= 0.

    Raises:
        ValueError: as `reranking_weights`, or a negative bound.

    Source: arXiv 2510.14824, the analysis of the weights.
    """
    non_negative("below", below)
    weights = reranking_weights(scores, relevance, where, weight=weight, mask_threshold=mask_threshold)
    there = torch.ones_like(weights, dtype=torch.bool) if where is None else where
    relevant = (relevance > 0) & there
    return WeightSummary(
        _mean(weights, relevant),
        _mean(weights, there & ~relevant),
        _mean((weights < below).to(weights.dtype), there),
        _mean((weights < below * _mean(weights, there)).to(weights.dtype), there),
    )


def direction_cosine(rows: Float[Tensor, "2 d"]) -> Float[Tensor, ""]:
    """`cos(M_y, M_y - M_n)`: how far the directions of contrast and of supervised fine-tuning agree.

    Args:
        rows: `[2, d]`, the head's rows of yes and no.

    Raises:
        ValueError: not two rows, or equal ones.

    Source: arXiv 2510.14824, the analysis of the directions.
    """
    if rows.ndim != 2 or len(rows) != 2 or not rows.is_floating_point():
        refuse("rows", "two rows of the head, [2, d]: yes, then no", describe(rows))
    yes, no = rows if rows.dtype == torch.float64 else rows.float()
    check_values("rows", "two different rows", (yes != no).any, rows)
    return F.cosine_similarity(yes, yes - no, dim=0)


class LabelRows(nn.Module):
    """Two rows of one's own in the place of the head's: trained, from the token rows or from random ones.

    `forward(hidden, attention_mask)` are `two_row_logits` of them. Rows that start at random are the paper's learnable
    projection; rows that start as the tokens' train the head.

    Args:
        rows: `[2, d]`, where they start: yes, then no. They are copied.

    Raises:
        ValueError: not two rows.

    Source: arXiv 2510.14824, the direction probes.
    """

    def __init__(self, rows: Float[Tensor, "2 d"]) -> None:
        super().__init__()
        if rows.ndim != 2 or len(rows) != 2 or not rows.is_floating_point():
            refuse("rows", "two rows [2, d]: yes, then no", describe(rows))
        self.rows = nn.Parameter(rows.detach().clone())

    @classmethod
    def random(cls, dimension: int, *, generator: torch.Generator | None = None) -> LabelRows:
        """Rows drawn from `N(0, 1 / dimension)`, so that states of unit variance have logits of unit variance."""
        positive_integer("dimension", dimension)
        return cls(torch.randn(2, dimension, generator=generator) * dimension**-0.5)

    def forward(self, hidden: Float[Tensor, "b t d"], attention_mask: Mask) -> Float[Tensor, "2 b"]:
        """The logits of yes and no at each row's answer position."""
        return two_row_logits(hidden, attention_mask, self.rows)

    def extra_repr(self) -> str:
        return f"dimension={self.rows.shape[1]}"


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean over a mask, over all lists; 0 where it is empty."""
    return torch.where(where, values, 0.0).sum() / where.sum().clamp(min=1)
