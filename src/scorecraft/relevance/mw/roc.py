"""How well one common threshold separates positives from negatives: ROC curve, its area, and what is read off it.

`pooled` throughout means all scores of all queries together, as one threshold for all of them sees them; `per query`
means each query on its own, blind to a shift of all its scores as a softmax is. Ties count one half, counts are exact
integers and results are float64. Without a positive or without a negative there is no curve: its numbers are NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from scorecraft.core.checks import choice, probability, refuse
from scorecraft.relevance.mw.labelled import check_labelled_scores

_AT_ONCE = 1 << 20
"""Scores placed among the sorted ones together."""


def pooled_auc(
    scores: Float[Tensor, "..."],
    relevance: Num[Tensor, "..."] | Bool[Tensor, "..."],
    where: Bool[Tensor, "..."] | None = None,
    *,
    validate: bool = True,
) -> Float[Tensor, ""]:
    """Area under the ROC curve of all scores together: the chance that a positive stands above a negative.

        AUC = (#{(a, b): a > b} + 1/2 #{(a, b): a = b}) / (n_P n_N)

    Args:
        scores: any shape; `-inf` is padding.
        relevance: 1 or 0, of the same shape.
        where: bool, the scores there are.
        validate: read the values of the input.

    Returns:
        In [0, 1], float64; NaN without a positive or without a negative.

    Source: arXiv 2510.00137; Mann and Whitney 1947.
    """
    positives, negatives = check_labelled_scores(scores, relevance, where, validate=validate)
    return _share_won(scores[positives], scores[negatives])


def pooled_aoc(
    scores: Float[Tensor, "..."],
    relevance: Num[Tensor, "..."] | Bool[Tensor, "..."],
    where: Bool[Tensor, "..."] | None = None,
    *,
    validate: bool = True,
) -> Float[Tensor, ""]:
    """Area over the ROC curve, `1 - AUC`, counted itself so that nothing cancels where the AUC is near 1.

    Arguments as of `pooled_auc`. At most `mann_whitney_loss / ln 2`.

    Source: arXiv 2510.00137.
    """
    positives, negatives = check_labelled_scores(scores, relevance, where, validate=validate)
    return _share_won(scores[negatives], scores[positives])


def per_query_auc(
    scores: Float[Tensor, "... c"],
    relevance: Num[Tensor, "... c"] | Bool[Tensor, "... c"],
    where: Bool[Tensor, "... c"] | None = None,
    *,
    reduction: Literal["mean", "none"] = "mean",
    validate: bool = True,
) -> Float[Tensor, "..."]:
    """The AUC of each query's own candidates, or its mean over queries.

    Args:
        scores: `[..., c]`, the candidates of a query on the last axis; `-inf` is padding.
        relevance: 1 or 0, of the same shape.
        where: bool, the candidates there are.
        reduction: `"mean"` over the queries with a positive and a negative, or `"none"`.
        validate: read the values of the input.

    Returns:
        0-d, or `[...]` with NaN for a query without a positive or without a negative; float64.
    """
    choice("reduction", reduction, ("mean", "none"))
    positives, negatives = check_labelled_scores(scores, relevance, where, validate=validate)
    if scores.ndim == 0:
        refuse("scores", "candidates on the last axis", "a 0-d tensor")
    values = scores.detach()
    # Sorted behind all of them, what is no negative is never counted.
    sorted_negatives = torch.where(negatives, values, torch.inf).sort(dim=-1).values
    values = torch.where(positives, values, 0.0).contiguous()
    below = torch.searchsorted(sorted_negatives, values) + torch.searchsorted(sorted_negatives, values, right=True)
    twice_won = torch.where(positives, below, 0).sum(dim=-1)
    found = twice_won.double() / (2 * positives.sum(dim=-1) * negatives.sum(dim=-1)).double()
    return found if reduction == "none" else found.nanmean()


@dataclass(frozen=True, slots=True, eq=False)
class RocCurve:
    """The ROC curve: what share of negatives and of positives is accepted when every score >= a threshold is."""

    false_positive_rate: Float[Tensor, " k"]
    true_positive_rate: Float[Tensor, " k"]
    thresholds: Float[Tensor, " k"]
    """Decreasing: +inf, which accepts nothing, and then every distinct score."""

    @property
    def auc(self) -> Float[Tensor, ""]:
        """The area under the curve."""
        return torch.trapezoid(self.true_positive_rate, self.false_positive_rate)

    def partial_auc(self, max_false_positive_rate: float) -> Float[Tensor, ""]:
        """The area up to a false-positive rate `f` in (0, 1], standardised: 1/2 by chance, 1 at best.

            1/2 (1 + (A - f^2 / 2) / (f - f^2 / 2)),   A = area under the polygon on [0, f]

        Source: McClish 1989, "Analyzing a Portion of the ROC Curve".
        """
        f = _positive_rate("max_false_positive_rate", max_false_positive_rate)
        x, y = self.false_positive_rate, self.true_positive_rate
        width, left = x.diff(), x[:-1]
        inside = ((f - left).clamp(min=0) / torch.where(width > 0, width, 1)).clamp(max=1)  # share of each piece
        area = (width * inside * (y[:-1] + inside * y.diff() / 2)).sum()
        return (1 + (area - f * f / 2) / (f - f * f / 2)) / 2

    def threshold_at(self, false_positive_rate: float) -> Float[Tensor, ""]:
        """The smallest score with at most this share of the negatives at or above it; +inf when there is none.

        Where several scores have none of the negatives above them, that is the lowest of them.
        """
        f = probability("false_positive_rate", false_positive_rate)
        return self.thresholds[(self.false_positive_rate <= f).sum().clamp(min=1) - 1]

    def true_positive_rate_at(self, false_positive_rate: float) -> Float[Tensor, ""]:
        """The share of positives that `threshold_at` accepts."""
        f = probability("false_positive_rate", false_positive_rate)
        return self.true_positive_rate[(self.false_positive_rate <= f).sum().clamp(min=1) - 1]


def roc_curve(
    scores: Float[Tensor, "..."],
    relevance: Num[Tensor, "..."] | Bool[Tensor, "..."],
    where: Bool[Tensor, "..."] | None = None,
    *,
    validate: bool = True,
) -> RocCurve:
    """The ROC curve of all scores together: (0, 0), then one point per distinct score, collinear ones too.

    Arguments as of `pooled_auc`. Without a positive or without a negative that rate is NaN throughout.
    """
    positives, negatives = check_labelled_scores(scores, relevance, where, validate=validate)
    values = scores.detach()
    values = torch.cat([values[positives], values[negatives]])
    order = values.argsort(descending=True)
    distinct, counts = values[order].unique_consecutive(return_counts=True)
    last = counts.cumsum(0) - 1
    number = int(positives.sum())
    accepted = (order < number).cumsum(0)[last]
    nothing = accepted.new_zeros(1)
    true = (
        torch.cat([nothing, accepted]).double() / number if number else distinct.new_full((len(last) + 1,), torch.nan)
    )
    others = len(values) - number
    false = torch.cat([nothing, last + 1 - accepted]).double()
    false = false / others if others else torch.full_like(false, torch.nan)
    return RocCurve(false, true.double(), torch.cat([distinct.new_full((1,), torch.inf), distinct]))


def twice_wins(winners: Float[Tensor, " p"], losers: Float[Tensor, " n"]) -> Int[Tensor, ""]:
    """`2 #{(a, b): a > b} + #{(a, b): a = b}` for `a` of the first and `b` of the second, by sorting the fewer."""
    if len(winners) > len(losers):
        return 2 * len(winners) * len(losers) - twice_wins(losers, winners)
    ordered = winners.sort().values
    won = torch.full((), 2 * len(winners) * len(losers), dtype=torch.int64, device=losers.device)
    for part in losers.split(_AT_ONCE):
        won -= (torch.searchsorted(ordered, part) + torch.searchsorted(ordered, part, right=True)).sum()
    return won


def _share_won(winners: Tensor, losers: Tensor) -> Float[Tensor, ""]:
    pairs = 2 * len(winners) * len(losers)
    won = twice_wins(winners.detach(), losers.detach()).double()
    return won / pairs if pairs else torch.full_like(won, torch.nan)


def _positive_rate(name: str, value: float) -> float:
    if probability(name, value) == 0:
        refuse(name, "a number in (0, 1]", value)
    return value
