"""Which pairs training flipped: right or wrong under the reference, right or wrong under the model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.checks import non_negative, positive
from scorecraft.preference.ranking_accuracy.log_ratios import checked_log_ratio
from scorecraft.preference.ranking_accuracy.thresholds import log_flip_threshold

CATEGORIES = ("kept", "unlearned", "flipped", "unflipped")
"""Right before and after; right before, wrong after; wrong before, right after; wrong before and after."""


class FlipTable(NamedTuple):
    """The four categories in the order of `CATEGORIES`, and the two rates at which pairs change sides."""

    counts: Int[Tensor, "4"]
    shares: Float[Tensor, "4"]
    """Of all pairs."""
    losses: Float[Tensor, "4"]
    """Mean loss of the pairs of a category; NaN where there are none."""
    margins: Float[Tensor, "4"]
    """Mean reward margin `beta (m + gamma c)`; NaN where there are none."""
    flipped: Float[Tensor, ""]
    """Share of the pairs wrong before that are right now; NaN where there were none."""
    unlearned: Float[Tensor, ""]
    """Share of the pairs right before that are wrong now; NaN where there were none."""


def flip_categories(log_ratio: Float[Tensor, " n"], reference_log_ratio: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The category of each pair, a place in `CATEGORIES`; equal likelihoods are right on both sides.

    Raises:
        ValueError: bad log-ratios.

    Source: arXiv 2405.19534, section 4.
    """
    log_ratio = checked_log_ratio("log_ratio", log_ratio)
    reference = checked_log_ratio("reference_log_ratio", reference_log_ratio, log_ratio)
    return _categories(log_ratio, reference)


def flip_table(
    log_ratio: Float[Tensor, " n"],
    reference_log_ratio: Float[Tensor, " n"],
    *,
    beta: float = 0.1,
    gamma: float = 1.0,
) -> FlipTable:
    """Where the pairs of a checkpoint stand against the reference, with their mean loss and reward margin.

    Args:
        log_ratio: `[n]`, of the checkpoint.
        reference_log_ratio: `[n]`.
        beta: > 0, of the loss.
        gamma: >= 0, of the loss; 1 for DPO.

    Raises:
        ValueError: bad arguments.

    Source: arXiv 2405.19534, section 4.
    """
    return table_of_sums(flip_sums(log_ratio, reference_log_ratio, beta=beta, gamma=gamma))


def flip_sums(
    log_ratio: Float[Tensor, " n"],
    reference_log_ratio: Float[Tensor, " n"],
    *,
    beta: float = 0.1,
    gamma: float = 1.0,
) -> Float[Tensor, "4 3"]:
    """Pairs, loss and reward margin of each category, added up: what batches and processes add (`table_of_sums`).

    Raises:
        ValueError: bad arguments.
    """
    log_ratio = checked_log_ratio("log_ratio", log_ratio)
    reference = checked_log_ratio("reference_log_ratio", reference_log_ratio, log_ratio)
    margins = positive("beta", beta) * (log_ratio - non_negative("gamma", gamma) * reference)
    each = torch.stack([torch.ones_like(margins), -F.logsigmoid(margins), margins], dim=1).double()
    return each.new_zeros(4, 3).index_add(0, _categories(log_ratio, reference), each)


def table_of_sums(sums: Float[Tensor, "4 3"]) -> FlipTable:
    """The table of added sums."""
    counts = sums[:, 0]
    means = sums[:, 1:] / counts[:, None]
    return FlipTable(
        counts.round().long(),
        counts / counts.sum(),
        means[:, 0],
        means[:, 1],
        counts[2] / counts[2:].sum(),
        counts[1] / counts[:2].sum(),
    )


def rule_agreement(
    log_ratio: Float[Tensor, " n"], reference_log_ratio: Float[Tensor, " n"], *, beta: float = 0.1, gamma: float = 1.0
) -> Float[Tensor, ""]:
    """Share of pairs on which `loss <= tau` and `p(chosen) >= p(rejected)` say the same: 1 but for rounding.

    Losses are compared by their logarithms, so that neither underflows.

    Raises:
        ValueError: bad arguments.

    Source: arXiv 2405.19534, theorem 4.1.
    """
    log_ratio = checked_log_ratio("log_ratio", log_ratio).double()
    reference = checked_log_ratio("reference_log_ratio", reference_log_ratio, log_ratio).double()
    scale = positive("beta", beta)
    shift = non_negative("gamma", gamma) * reference
    below = log_flip_threshold(scale * (log_ratio - shift)) <= log_flip_threshold(-scale * shift)
    return (below == (log_ratio >= 0)).double().mean()


def _categories(log_ratio: Tensor, reference: Tensor) -> Tensor:
    return 2 * (reference < 0).long() + (log_ratio < 0).long()
