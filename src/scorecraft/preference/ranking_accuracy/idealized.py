"""What a perfectly optimized DPO or RLHF model would rank right: a closed form in the reference and the raters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import choice, describe, positive, refuse
from scorecraft.preference.ranking_accuracy.accuracy import Ties, above_zero, checked_alpha
from scorecraft.preference.ranking_accuracy.log_ratios import checked_log_ratio

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)
"""The betas over which the paper takes minimum, median and maximum, since those of released models are not known."""
UNANIMOUS = 0.001

UnanimousOdds: TypeAlias = Literal["inverse", "complement"]


class IdealizedAccuracy(NamedTuple):
    """The idealized ranking accuracy at some betas, in [0, 1]."""

    betas: Float[Tensor, " k"]
    accuracies: Float[Tensor, " k"]
    minimum: Float[Tensor, ""]
    median: Float[Tensor, ""]
    maximum: Float[Tensor, ""]


def preference_logit(
    alpha: Float[Tensor, " n"], *, unanimous: float = UNANIMOUS, unanimous_odds: UnanimousOdds = "inverse"
) -> Float[Tensor, " n"]:
    """`log(alpha / (1 - alpha))`, finite also where the raters agree.

    Args:
        alpha: `[n]` in [0, 1], the share of raters who prefer the chosen answer. Exactly 0 and 1 are replaced.
        unanimous: in (0, 1/2), the share `eps` left to the minority of unanimous raters.
        unanimous_odds: `1 / eps` ("inverse", as the official code has it) or `(1 - eps) / eps` ("complement").

    Raises:
        ValueError: shares outside [0, 1], or bad options.

    Source: arXiv 2405.19534, section 3 and its footnote.
    """
    alpha = checked_alpha(alpha)
    if positive("unanimous", unanimous) >= 0.5:
        refuse("unanimous", "a share in (0, 0.5)", unanimous)
    choice("unanimous_odds", unanimous_odds, ("inverse", "complement"))
    bound = -math.log(unanimous) + (math.log1p(-unanimous) if unanimous_odds == "complement" else 0.0)
    inside = (alpha > 0) & (alpha < 1)
    kept = torch.where(inside, alpha, 0.5)
    return torch.where(inside, kept.log() - (-kept).log1p(), bound * (2 * alpha - 1))  # alpha is 0 or 1 there


def idealized_log_ratio(
    reference_log_ratio: Float[Tensor, " n"],
    alpha: Float[Tensor, " n"],
    *,
    beta: float = 0.1,
    unanimous: float = UNANIMOUS,
    unanimous_odds: UnanimousOdds = "inverse",
) -> Float[Tensor, " n"]:
    """`m* = m_ref + logit(alpha) / beta`: the log-ratio of the optimum of DPO, and of RLHF on Bradley-Terry rewards.

    Args:
        reference_log_ratio: `[n]`, plain or per token.
        alpha: `[n]` in [0, 1], the share of raters who prefer the chosen answer.
        beta: > 0, the weight of the KL term.
        unanimous: see `preference_logit`.
        unanimous_odds: see `preference_logit`.

    Raises:
        ValueError: bad arguments.

    Source: arXiv 2405.19534, theorem 3.1.
    """
    reference = checked_log_ratio("reference_log_ratio", reference_log_ratio)
    logit = preference_logit(checked_alpha(alpha, reference), unanimous=unanimous, unanimous_odds=unanimous_odds)
    return reference + logit / positive("beta", beta)


def idealized_ranking_accuracy(
    reference_log_ratio: Float[Tensor, " n"],
    alpha: Float[Tensor, " n"],
    *,
    betas: Sequence[float] = BETAS,
    ties: Ties = "wrong",
    dead_zone: float | None = None,
    unanimous: float = UNANIMOUS,
    unanimous_odds: UnanimousOdds = "inverse",
) -> IdealizedAccuracy:
    """`R* = mean 1[m* > 0]` at each beta, and minimum, median and maximum over them.

    Args:
        reference_log_ratio: `[n]`, plain or per token.
        alpha: `[n]` in [0, 1], the share of raters who prefer the chosen answer.
        betas: each > 0, at least one.
        ties: what `m* = 0` counts.
        dead_zone: the official code's comparison instead of the paper's: ratios within this of 1 are ties, of the
            raters' odds and of the optimum alike (0.05 there), and a pair is right where both rank it the same way.
        unanimous: see `preference_logit`.
        unanimous_odds: see `preference_logit`.

    Raises:
        ValueError: bad arguments.

    Source: arXiv 2405.19534, corollary 3.3.
    """
    if not len(betas):
        refuse("betas", "at least one beta", repr(betas))
    call = {"unanimous": unanimous, "unanimous_odds": unanimous_odds}
    found = [
        idealized_right(idealized_log_ratio(reference_log_ratio, alpha, beta=beta, **call), alpha, ties=ties,
                        dead_zone=dead_zone, **call).mean()
        for beta in betas
    ]  # fmt: skip
    return summarized(torch.stack(found), betas)


def idealized_right(
    optimum: Float[Tensor, " n"],
    alpha: Float[Tensor, " n"],
    *,
    ties: Ties,
    dead_zone: float | None,
    unanimous: float,
    unanimous_odds: UnanimousOdds,
) -> Float[Tensor, " n"]:
    """Which pairs the optimum ranks right: 1, 0, or what a tie counts."""
    if dead_zone is None:
        return above_zero(optimum, ties)
    if not 0 < positive("dead_zone", dead_zone) < 1:
        refuse("dead_zone", "a number in (0, 1)", dead_zone)
    low, high = math.log1p(-dead_zone), math.log1p(dead_zone)
    expected = preference_logit(alpha, unanimous=unanimous, unanimous_odds=unanimous_odds)
    sides = [(one > high).long() - (one < low).long() for one in (optimum, expected)]
    return (sides[0] == sides[1]).to(optimum.dtype)


def summarized(accuracies: Float[Tensor, " k"], betas: Sequence[float]) -> IdealizedAccuracy:
    """Accuracies at some betas with their minimum, median and maximum."""
    return IdealizedAccuracy(
        accuracies.new_tensor(list(betas)),
        accuracies,
        accuracies.amin(),
        accuracies.quantile(0.5),
        accuracies.amax(),
    )


def alignment_gap(idealized: IdealizedAccuracy, accuracy: Float[Tensor, ""] | float) -> Float[Tensor, ""]:
    """`100 (R* - R)`, in points: how much better the optimum of the median beta would rank than the model does.

    Args:
        idealized: the idealized accuracy.
        accuracy: the ranking accuracy of the model, in [0, 1].

    Raises:
        ValueError: an accuracy outside [0, 1].

    Source: arXiv 2405.19534, section 3.
    """
    if isinstance(accuracy, Tensor) and accuracy.ndim:
        refuse("accuracy", "one number in [0, 1]", describe(accuracy))
    value = torch.as_tensor(accuracy, dtype=idealized.median.dtype, device=idealized.median.device)
    if not 0 <= float(value) <= 1:
        refuse("accuracy", "a number in [0, 1]", float(value))
    return 100 * (idealized.median - value)
