"""How a model assesses answers: whether it scores right ones above wrong ones, and how likely it finds both."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import choice, describe, refuse
from scorecraft.core.list_losses import ordered_pairs
from scorecraft.preference.aft.losses import AFTLoss

TiedPairs: TypeAlias = Literal["half", "wrong"]
"""What a pair of equal scores counts: 1/2 or 0."""


def assessment_accuracy(
    scores: Float[Tensor, "..."],
    relevance: Num[Tensor, "..."] | Bool[Tensor, "..."],
    where: Bool[Tensor, "..."] | None = None,
    *,
    segments: Int[Tensor, " n"] | None = None,
    ties: TiedPairs = "half",
    reduction: Reduction = "mean",
) -> Tensor:
    """`A = 1 / (P N) sum_p sum_n 1[s_p > s_n]`, the AUC of a question, averaged over the questions that have pairs.

    Graded relevances make a pair of every two answers of which one is better.

    Args:
        scores: `[..., c]`, mean log-probabilities, or flat `[n]` with `segments`.
        relevance: of each answer: 1 and 0, or grades.
        where: bool `[..., c]`, the answers there are.
        segments: int `[n]`, the question of each answer.
        ties: what equal scores count.
        reduction: `"mean"` over the questions with a pair; `"sum"`; or `"none"` for each question, NaN without a pair.

    Returns:
        In [0, 1]; NaN where no question has a pair.

    Raises:
        ValueError: one line naming the argument.

    Source: arXiv 2309.02144, section 3.
    """
    choice("ties", ties, ("half", "wrong"))
    choice("reduction", reduction, ("mean", "sum", "none"))
    lists = AFTLoss().lists(scores.detach(), relevance, where, segments=segments)
    pairs = ordered_pairs(lists.relevance, lists.where)
    ahead = lists.scores.unsqueeze(-1) - lists.scores.unsqueeze(-2)
    right = (ahead > 0).to(ahead.dtype)
    if ties == "half":
        right = right + 0.5 * (ahead == 0)
    counted = pairs.sum(dim=(-2, -1))
    found = torch.where(pairs, right, 0.0).sum(dim=(-2, -1)) / counted  # 0 / 0 without a pair
    if reduction == "none":
        return found
    total = torch.where(counted > 0, found, 0.0).sum()
    return total if reduction == "sum" else total / (counted > 0).sum()


def perplexity(scores: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`PPL(c) = exp(-s(c))`, of mean log-probabilities per token."""
    return (-scores).exp()


class GroupPerplexities(NamedTuple):
    """Mean perplexities of the answers of each group; NaN where it is empty."""

    right: Float[Tensor, ""]
    wrong: Float[Tensor, ""]
    """One that leaves the other behind by far says that good text is unlearned."""


def group_perplexities(
    scores: Float[Tensor, "..."],
    relevance: Num[Tensor, "..."] | Bool[Tensor, "..."],
    where: Bool[Tensor, "..."] | None = None,
) -> GroupPerplexities:
    """The mean of `exp(-s)` over right answers (relevance above 0), and over the others.

    Args:
        scores: mean log-probabilities, of any shape.
        relevance: of each answer.
        where: the answers there are.

    Raises:
        ValueError: one line naming the argument.
    """
    lists = AFTLoss().lists(scores.detach(), relevance, where)
    right = lists.where & (lists.relevance > 0)
    each = perplexity(lists.scores)

    def mean(group: Tensor) -> Tensor:
        return torch.where(group, each, 0.0).sum() / group.sum()

    return GroupPerplexities(mean(right), mean(lists.where & ~right))


def pearson_correlation(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Pearson's correlation of two figures of the same models, such as assessment and task accuracy.

    Args:
        first: `[n]`, n >= 2, finite.
        second: `[n]`.

    Returns:
        In [-1, 1]; NaN where either does not vary.

    Raises:
        ValueError: one line naming the argument.
    """
    for name, values in (("first", first), ("second", second)):
        if values.ndim != 1 or len(values) < 2 or not values.is_floating_point() or not bool(values.isfinite().all()):
            refuse(name, "two or more finite numbers [n]", describe(values))
    if len(first) != len(second):
        refuse("second", f"{len(first)} numbers, as many as the first", len(second))
    centred = [values.double() - values.double().mean() for values in (first, second)]
    constant = any(bool((values == values[0]).all()) for values in (first, second))
    if constant:
        return torch.full((), torch.nan, dtype=torch.float64)
    a, b = (values / values.norm() for values in centred)
    return (a @ b).clamp(-1, 1)
