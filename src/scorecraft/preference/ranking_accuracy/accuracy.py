"""Does the model itself give the preferred answer the higher likelihood? And what trainers usually log instead."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import check_values, choice, describe, positive, refuse
from scorecraft.core.likelihoods import checked_log_probabilities, checked_tokens
from scorecraft.core.separable import in_working_precision
from scorecraft.preference.ranking_accuracy.log_ratios import checked_log_ratio, reduced

Ties: TypeAlias = Literal["correct", "wrong", "half"]
"""What a difference of exactly zero counts: 1, 0 or 1/2."""

TIE_TOLERANCE = 0.01


def ranking_accuracy(
    log_ratio: Float[Tensor, " n"], *, ties: Ties = "correct", reduction: Reduction = "mean"
) -> Tensor:
    """`1[p(chosen) >= p(rejected)]`: how often the model ranks a pair as it is preferred.

    Args:
        log_ratio: `[n]`, of the model (`log_ratio`), per token for the normalized form.
        ties: what equal likelihoods count; the definition says correct, the official code wrong.
        reduction: over pairs.

    Returns:
        The share in [0, 1], the number of pairs, or 0, 1/2 and 1 each.

    Raises:
        ValueError: bad log-ratios or options.

    Source: arXiv 2405.19534, definition 2.3.
    """
    return reduced(above_zero(checked_log_ratio("log_ratio", log_ratio), ties), reduction)


def reward_accuracy(
    log_ratio: Float[Tensor, " n"],
    reference_log_ratio: Float[Tensor, " n"],
    *,
    ties: Ties = "wrong",
    reduction: Reduction = "mean",
) -> Tensor:
    """`1[m - m_ref > 0]`: how often training moved a pair the right way, whatever the model now ranks first.

    Args:
        log_ratio: `[n]`, of the model.
        reference_log_ratio: `[n]`, of the reference.
        ties: what no movement counts; trainers say wrong.
        reduction: over pairs.

    Raises:
        ValueError: bad log-ratios or options.

    Source: arXiv 2405.19534, section 2.
    """
    log_ratio = checked_log_ratio("log_ratio", log_ratio)
    reference = checked_log_ratio("reference_log_ratio", reference_log_ratio, log_ratio)
    return reduced(above_zero(log_ratio - reference, ties), reduction)


def rated_ranking_accuracy(
    first: Float[Tensor, " n"],
    second: Float[Tensor, " n"],
    alpha: Float[Tensor, " n"],
    *,
    first_tokens: Int[Tensor, " n"] | None = None,
    second_tokens: Int[Tensor, " n"] | None = None,
    tolerance: float = TIE_TOLERANCE,
    reduction: Reduction = "mean",
) -> Tensor:
    """Ranking accuracy against raters who may be split.

    Where half of them prefer either answer the model is right if its two probabilities are less than `tolerance` apart;
    else it has to rank strictly with the majority. Give token counts: the probability of a whole answer is all but
    zero, and any two of them are closer than any tolerance.

    Args:
        first: `[n]`, log-probabilities of the first answers, at most 0.
        second: `[n]`, of the second ones.
        alpha: `[n]` in [0, 1], the share of raters who prefer the first.
        first_tokens: int `[n]`, tokens of each answer; probabilities are then geometric means over tokens.
        second_tokens: int `[n]`.
        tolerance: > 0, of the difference of probabilities.
        reduction: over pairs.

    Raises:
        ValueError: bad arguments.

    Source: arXiv 2405.19534, definition C.1.
    """
    first = checked_log_probabilities("first", first, None, validate=True)
    second = checked_log_probabilities("second", second, first, validate=True)
    share = checked_alpha(alpha, first)
    for name, counts in (("first_tokens", first_tokens), ("second_tokens", second_tokens)):
        if (counts is None) != (first_tokens is None and second_tokens is None):
            refuse(name, "the number of tokens of each answer, as for the other answer", "none")
    if first_tokens is not None and second_tokens is not None:
        first = first / checked_tokens("first_tokens", first_tokens, first, validate=True)
        second = second / checked_tokens("second_tokens", second_tokens, second, validate=True)
    close = (first.exp() - second.exp()).abs() < positive("tolerance", tolerance)
    right = torch.where(share > 0.5, first > second, torch.where(share < 0.5, second > first, close))
    return reduced(right.to(first.dtype), reduction)


def competition_ranks(scores: Float[Tensor, "n k"]) -> Int[Tensor, "n k"]:
    """Ranks of the scores of each row: 1 and the number of higher ones, so that ties share the smaller rank (1, 1, 3).

    Raises:
        ValueError: not `[n, k]` finite scores.
    """
    if scores.ndim != 2 or scores.shape[1] < 1 or not scores.is_floating_point():
        refuse("scores", "floating-point scores of shape [n, k]", describe(scores))
    check_values("scores", "finite scores", scores.isfinite, scores)
    ascending = (-scores).sort(dim=1).values
    return 1 + torch.searchsorted(ascending, (-scores).contiguous(), right=False)


def whole_ranking_accuracy(
    log_probabilities: Float[Tensor, "n k"],
    ranks: Int[Tensor, "n k"],
    *,
    tokens: Int[Tensor, "n k"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """How often the model's ranking of `k` answers is the human one in every position.

    Ranks are `competition_ranks` on both sides: a human tie is matched only by equal likelihoods. By chance `1 / k!`.

    Args:
        log_probabilities: `[n, k]`, sums over the tokens of each answer, at most 0.
        ranks: int `[n, k]`, the human ranks, 1 the best, ties 1, 1, 3.
        tokens: int `[n, k]`, tokens of each answer, at least 1, for the normalized form.
        reduction: over lists.

    Raises:
        ValueError: bad arguments; ranks that are counted in another way (1, 1, 2).

    Source: arXiv 2405.19534, definition A.8.
    """
    if log_probabilities.ndim != 2 or log_probabilities.shape[1] < 2 or not log_probabilities.is_floating_point():
        expected = "floating-point log-probabilities of shape [n, k], k >= 2"
        refuse("log_probabilities", expected, describe(log_probabilities))
    flat = checked_log_probabilities("log_probabilities", log_probabilities.flatten(), None, validate=True)
    if ranks.shape != log_probabilities.shape or ranks.is_floating_point() or ranks.dtype == torch.bool:
        refuse("ranks", f"integer ranks of shape {tuple(log_probabilities.shape)}", describe(ranks))
    again = competition_ranks(-ranks.double())
    check_values("ranks", "ranks of which ties share the smallest (1, 1, 3)", lambda: ranks == again, ranks)
    if tokens is not None:
        if tokens.shape != ranks.shape:
            refuse("tokens", f"token counts of shape {tuple(ranks.shape)}", describe(tokens))
        flat = flat / checked_tokens("tokens", tokens.flatten(), flat, validate=True)
    same = (competition_ranks(flat.view_as(log_probabilities)) == ranks).all(dim=1)
    return reduced(same.to(flat.dtype), reduction)


def above_zero(values: Float[Tensor, "..."], ties: Ties) -> Float[Tensor, "..."]:
    """1 above zero, 0 below, and what a tie counts in between."""
    choice("ties", ties, ("correct", "wrong", "half"))
    above: Bool[Tensor, "..."] = values >= 0 if ties == "correct" else values > 0
    found = above.to(values.dtype)
    return found + 0.5 * (values == 0) if ties == "half" else found


def checked_alpha(alpha: Tensor, like: Tensor | None = None) -> Tensor:
    """Shares in [0, 1], as many as `like` has, in float32 at least."""
    if not isinstance(alpha, Tensor):
        raise TypeError(f"argument `alpha`: expected a tensor, got {type(alpha).__name__}")
    shape = alpha.shape if like is None else like.shape
    if alpha.ndim != 1 or alpha.shape != shape or not alpha.is_floating_point():
        refuse("alpha", f"floating-point shares of shape {'[n]' if like is None else tuple(shape)}", describe(alpha))
    check_values("alpha", "shares in [0, 1]", lambda: (alpha >= 0) & (alpha <= 1), alpha)
    return in_working_precision(alpha)
