"""How hard a pair is before training: the margin and the loss at which its ranking becomes right.

With `c = -m_ref` (above zero where the reference ranks the pair wrong), a loss of the scaled margin,
`f(beta (m + gamma c))` with `f` decreasing, ranks the pair right exactly when it is at most `f(beta gamma c)`. The
argument `d = beta gamma c` is the difficulty of the pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.checks import check_values, describe, non_negative, positive, probability, refuse
from scorecraft.preference.ranking_accuracy.log_ratios import checked_log_ratio

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def pair_difficulty(
    reference_log_ratio: Float[Tensor, " n"], *, beta: float = 0.1, gamma: float = 1.0
) -> Float[Tensor, " n"]:
    """`d = beta gamma c`: the reward margin a pair has to reach before its ranking is right; at most 0, it already is.

    Args:
        reference_log_ratio: `[n]`, `m_ref = -c`.
        beta: > 0.
        gamma: >= 0, the weight of the reference in the loss; 1 for DPO.

    Raises:
        ValueError: bad arguments.

    Source: arXiv 2405.19534, theorem 4.1.
    """
    reference = checked_log_ratio("reference_log_ratio", reference_log_ratio)
    return -positive("beta", beta) * non_negative("gamma", gamma) * reference


def flip_threshold(difficulty: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`tau = -log sigmoid(d)`: a pair is ranked right exactly when its loss is at most this.

    Of DPO without label smoothing. About `e^-d` for hard pairs, `log 2` at `d = 0`, about `-d` for easy ones. It is 0
    in floating point where `d` is above 745 (104 in float32): decide by `m >= 0` and not by losses.

    Raises:
        ValueError: not finite numbers `[n]`.

    Source: arXiv 2405.19534, theorem 4.1.
    """
    return -F.logsigmoid(checked_log_ratio("difficulty", difficulty))


def log_flip_threshold(difficulty: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`log tau`, which does not underflow.

    Raises:
        ValueError: not finite numbers `[n]`.
    """
    d = checked_log_ratio("difficulty", difficulty)
    # log log(1 + e^-d) = -d - e^-d / 2 + ..., and e^-30 is 1e-13.
    return torch.where(d > 30, -d - 0.5 * (-d.clamp(min=30)).exp(), (-F.logsigmoid(d.clamp(max=30))).log())


def margin_threshold(
    loss: Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]], difficulty: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """`f(d)`, the threshold of any loss `f` of the scaled margin that decreases; for DPO, `flip_threshold`.

    Where `f` is flat (the hinge beyond its margin) a loss at the threshold does not yet say that the pair is right.

    Args:
        loss: `f`, of each margin by itself.
        difficulty: `[n]`.

    Raises:
        ValueError: bad arguments, or a loss that increases between two of the difficulties.

    Source: arXiv 2405.19534, theorem 4.1; the general form follows from its proof.
    """
    ordered, order = checked_log_ratio("difficulty", difficulty).sort()
    values = loss(ordered)
    if not isinstance(values, Tensor) or values.shape != ordered.shape:
        refuse("loss", f"a function that gives {tuple(ordered.shape)} losses", describe(values))
    check_values("loss", "a decreasing function of the margin", lambda: (values.diff() <= 0).all(), values)
    return torch.empty_like(values).scatter(0, order, values)


def log_ratio_of_loss(
    loss: Float[Tensor, " n"], reference_log_ratio: Float[Tensor, " n"], *, beta: float = 0.1, gamma: float = 1.0
) -> Float[Tensor, " n"]:
    """`m = logit(e^-L) / beta + gamma m_ref`: the log-ratio of the model, read off its loss on the pair.

    Args:
        loss: `[n]`, > 0, of DPO without label smoothing, each pair's own.
        reference_log_ratio: `[n]`.
        beta: > 0, of the loss.
        gamma: >= 0, of the loss.

    Raises:
        ValueError: bad arguments.

    Source: arXiv 2405.19534, theorem 4.1.
    """
    loss = checked_log_ratio("loss", loss)
    reference = checked_log_ratio("reference_log_ratio", reference_log_ratio, loss)
    check_values("loss", "losses > 0", lambda: loss > 0, loss)
    return margin_of_loss(loss) / positive("beta", beta) + non_negative("gamma", gamma) * reference


def right_by_small_loss(
    loss: Float[Tensor, " n"], reference_log_ratio: Float[Tensor, " n"], *, bound: float = 0.6
) -> Bool[Tensor, " n"]:
    """Pairs that are ranked right for certain: the reference ranks them right, and their loss is small.

    Args:
        loss: `[n]`, of DPO.
        reference_log_ratio: `[n]`.
        bound: in (0, log 2].

    Raises:
        ValueError: bad arguments.

    Source: arXiv 2405.19534, proposition 2.6.
    """
    if positive("bound", bound) > math.log(2):
        refuse("bound", "a number in (0, log 2]", bound)
    loss = checked_log_ratio("loss", loss)
    reference = checked_log_ratio("reference_log_ratio", reference_log_ratio, loss)
    return (reference >= 0) & (loss <= bound)


def smoothed_optimum(
    reference_log_ratio: Float[Tensor, " n"], *, label_smoothing: float, beta: float = 0.1, gamma: float = 1.0
) -> Float[Tensor, " n"]:
    """`m* = gamma m_ref + logit(1 - s) / beta`: where the label-smoothed loss of a pair is smallest.

    The pair is ranked right there exactly when `logit(1 - s) >= d`. With smoothing the loss is not monotone in `m`, so
    there is no threshold of the loss: decide by `m >= 0`.

    Args:
        reference_log_ratio: `[n]`.
        label_smoothing: `s` in (0, 1/2).
        beta: > 0.
        gamma: >= 0.

    Raises:
        ValueError: bad arguments.

    Source: derived here from the loss, with arXiv 2405.19534, theorem 4.1.
    """
    if not 0 < probability("label_smoothing", label_smoothing) < 0.5:
        refuse("label_smoothing", "a number in (0, 0.5)", label_smoothing)
    reference = checked_log_ratio("reference_log_ratio", reference_log_ratio)
    reach = math.log1p(-label_smoothing) - math.log(label_smoothing)
    return non_negative("gamma", gamma) * reference + reach / positive("beta", beta)


class IPOThreshold(NamedTuple):
    """What the loss of IPO says about the ranking of a pair."""

    zero_loss_ranks_right: Bool[Tensor, " n"]
    """False where no loss at all would be too much: at zero loss the ranking is wrong."""
    sufficient_loss: Float[Tensor, " n"]
    """A loss of at most this guarantees the right ranking; 0 where no loss does."""


def ipo_threshold(reference_log_ratio: Float[Tensor, " n"], *, beta: float = 0.1) -> IPOThreshold:
    """The thresholds of `L = (m - m_ref - 1 / (2 beta))^2`.

    Zero loss ranks right exactly when `m_ref >= -1 / (2 beta)`; then `L <= (m_ref + 1 / (2 beta))^2` suffices.

    Args:
        reference_log_ratio: `[n]`; per token where the loss reads log-probabilities per token, as TRL's does.
        beta: > 0, the paper's regularizer tau.

    Raises:
        ValueError: bad arguments.

    Source: arXiv 2405.19534, proposition A.7.
    """
    slack = checked_log_ratio("reference_log_ratio", reference_log_ratio) + 1 / (2 * positive("beta", beta))
    return IPOThreshold(slack >= 0, slack.clamp(min=0).square())


class DifficultySummary(NamedTuple):
    """The difficulties of a data set before training."""

    quantiles: tuple[float, ...]
    values: Float[Tensor, " q"]
    """Difficulties at the quantiles."""
    wrong: Float[Tensor, ""]
    """Share of pairs that the reference ranks wrong."""
    out_of_reach: Float[Tensor, ""] | None
    """Share of pairs whose threshold is below the reachable loss."""


def difficulty_summary(
    difficulty: Float[Tensor, " n"],
    *,
    quantiles: Sequence[float] = QUANTILES,
    reachable_loss: float | None = None,
) -> DifficultySummary:
    """Quantiles of the difficulty, and how many pairs a training that reaches some loss would leave wrong.

    Args:
        difficulty: `[n]`.
        quantiles: each in [0, 1].
        reachable_loss: > 0, a loss per pair that training is expected to reach.

    Raises:
        ValueError: bad arguments.
    """
    difficulty = checked_log_ratio("difficulty", difficulty)
    places = tuple(probability("quantiles", one) for one in quantiles)
    ordered = difficulty.sort().values  # torch.quantile refuses more than 16 million numbers
    positions = [place * (len(ordered) - 1) for place in places]
    values = [ordered[math.floor(at)].lerp(ordered[math.ceil(at)], at % 1) for at in positions]
    out_of_reach = None
    if reachable_loss is not None:
        reached = margin_of_loss(torch.tensor(positive("reachable_loss", reachable_loss), dtype=torch.float64))
        out_of_reach = (difficulty > reached).to(difficulty.dtype).mean()
    wrong = (difficulty > 0).to(difficulty.dtype).mean()
    return DifficultySummary(places, torch.stack(values) if values else ordered[:0], wrong, out_of_reach)


def margin_of_loss(loss: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`logit(e^-L)`, the scaled margin at which `-log sigmoid` is `L`."""
    return -loss - (-torch.expm1(-loss)).log()
