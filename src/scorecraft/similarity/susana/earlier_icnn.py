"""The ICNN score in its earlier form, a measure of a labelled set without gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core.checks import describe, positive, positive_integer, refuse
from scorecraft.similarity.susana.distances import full_precision, nearest, pair_distances
from scorecraft.similarity.susana.icnn import check_points

_EPSILON = 1e-6


class EarlierICNNScore(NamedTuple):
    """The earlier ICNN score with its parts, each a scalar in [0, 1]."""

    score: Float[Tensor, ""]
    """`(lambda_mean + gamma) / 2`."""
    lambda_mean: Float[Tensor, ""]
    """Near neighbours of the same class and far ones of other classes."""
    omega: Float[Tensor, ""]
    """Evenness of the scaled distances; no part of the score."""
    gamma: Float[Tensor, ""]
    """Purity of the neighbourhoods."""


@torch.no_grad()
def earlier_icnn_score(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    neighbours: int = 5,
    lambda_power: float = 2.0,
    omega_power: float = 2.0,
    gamma_power: float = 2.0,
    validate: bool = True,
) -> EarlierICNNScore:
    """The ICNN score with distances scaled within each neighbourhood, and powers `p, q, r` on its parts.

    Over the `k = neighbours` nearest of each point, itself left out by index, with `D_ij` as in `icnn_score`,

        s_ij   = (D_ij - min_j D_ij) / (max_j D_ij - min_j D_ij + 1e-6)
        l_i    = sum_j { 1 - s_ij : same class } + sum_j { s_ij : other class }
        lambda = mean_i ( l_i / (max_i l_i + 1e-6) )^(1/p)
        omega  = ( 1 - Var{ s_ij : same class } - Var{ s_ij : other class } )^(1/q)
        gamma  = mean_i ( share of the same class among the k )^(1/r)
        score  = (lambda + gamma) / 2

    `omega` is reported beside the score, as the official code has it switched off. A variance over no distance is 0.

    Args:
        embeddings: `[n, d]`, `n >= 2`; half precision is taken as float32.
        labels: int `[n]`.
        neighbours: `k >= 1`; `n - 1` where there are fewer.
        lambda_power: `p > 0`.
        omega_power: `q > 0`.
        gamma_power: `r > 0`.
        validate: read input values.

    Raises:
        ValueError: one line naming the argument, what was expected and what came.

    Source: Mendez-Ruiz et al. 2023, arXiv 2305.09062, after the authors' earlier arXiv 2107.06992.
    """
    positive_integer("neighbours", neighbours)
    p, q = positive("lambda_power", lambda_power), positive("omega_power", omega_power)
    r = positive("gamma_power", gamma_power)
    check_points("embeddings", embeddings, "labels", labels, validate=validate)
    if len(embeddings) < 2:
        refuse("embeddings", "at least two points", describe(embeddings))
    with torch.autocast(embeddings.device.type, enabled=False):
        x = full_precision(embeddings)
        index = nearest(x, x, min(neighbours, len(x) - 1), own=True)
        distances, same = pair_distances(x, x, index), labels[index] == labels[:, None]
        low, high = distances.aminmax(dim=1, keepdim=True)
        scaled = (distances - low) / (high - low + _EPSILON)
        sums = torch.where(same, 1 - scaled, scaled).sum(dim=1)
        lambda_mean = (sums / (sums.max() + _EPSILON)).pow(1 / p).mean()
        omega = (1 - _variance(scaled, same) - _variance(scaled, ~same)).pow(1 / q)
        gamma = same.to(x.dtype).mean(dim=1).pow(1 / r).mean()
        return EarlierICNNScore((lambda_mean + gamma) / 2, lambda_mean, omega, gamma)


def _variance(values: Float[Tensor, "n k"], where: Bool[Tensor, "n k"]) -> Float[Tensor, ""]:
    """The variance over a mask; 0 where it is empty."""
    count = where.sum().clamp(min=1)
    mean = torch.where(where, values, 0.0).sum() / count
    return torch.where(where, (values - mean).square(), 0.0).sum() / count
