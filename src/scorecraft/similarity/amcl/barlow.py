"""Barlow Twins with a temperature for every entry of the cross-correlation matrix."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.similarity.amcl.likelihood import omega


def cross_correlation(
    first: Float[Tensor, "n heads d"], second: Float[Tensor, "n heads d"]
) -> Float[Tensor, "heads d d"]:
    """`C_lm = 1/B sum_i x_il y_im` of each head, columns standardised by batch mean and biased deviation.

    A column that is constant over the batch correlates with nothing, and gets no gradient.

    Args:
        first: outputs of the heads for one view, not normalised, `B >= 2` items.
        second: those for the other view.
    """
    x, y = (_standardised(view).transpose(0, 1) for view in (first, second))
    return x.mT @ y / len(first)


def barlow_loss(
    correlation: Float[Tensor, "heads d d"],
    temperatures: Float[Tensor, "heads d d"],
    *,
    beta: float,
    off_diagonal_weight: float,
) -> Float[Tensor, ""]:
    """AMCL's form of Barlow Twins, `tau = 1` and `beta = 0` being the plain one.

        L = sum_c [ sum_l (1 - C_ll / tau_ll)^2 + lambda sum_{l != m} C_lm^2 / tau_lm
                    + beta sum_l Omega(tau_ll) - beta sum_{l != m} Omega(tau_lm) ]

    Args:
        correlation: of each head, in [-1, 1].
        temperatures: of its entries, > 0.
        beta: strength of the regulariser, >= 0.
        off_diagonal_weight: `lambda >= 0`.

    Source: AMCL (arXiv 2310.05615), the table of losses.
    """
    width = correlation.shape[-1]
    regulariser = beta * omega(temperatures, width)
    same = (1 - correlation / temperatures).square() + regulariser
    other = off_diagonal_weight * correlation.square() / temperatures - regulariser
    own = torch.eye(width, dtype=torch.bool, device=correlation.device)
    return torch.where(own, same, other).sum()


def _standardised(view: Float[Tensor, "n heads d"]) -> Float[Tensor, "n heads d"]:
    centred = view - view.mean(dim=0)
    variance = centred.square().mean(dim=0)
    # The mean of equal numbers may miss them by some roundings: what is left of such a column is noise.
    rounding = (8 * torch.finfo(view.dtype).eps) ** 2 * view.detach().square().mean(dim=0)
    varies = variance.detach() > rounding
    return torch.where(varies, centred * torch.where(varies, variance, 1.0).rsqrt(), 0.0)
