"""Noise levels for solvers: falling sigmas, the last of which is 0."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import describe, positive, positive_integer, refuse
from scorecraft.density.denoiser import VariancePreserving


def karras_levels(
    steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Tensor, " n+1"]:
    """`(sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho`, then 0; float64 `[steps + 1]`.

    Args:
        steps: at least 1; a single step starts at `sigma_max`.
        sigma_min: > 0.
        sigma_max: above `sigma_min`.
        rho: > 0; higher puts more levels at low noise.

    Source: Karras et al. 2022, equation 5.
    """
    if positive("sigma_min", sigma_min) >= positive("sigma_max", sigma_max):
        refuse("sigma_max", f"more than sigma_min = {sigma_min:g}", sigma_max)
    positive("rho", rho)
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return with_zero(torch.linspace(first, last, positive_integer("steps", steps), dtype=torch.float64) ** rho)


def preserving_levels(steps: int, variables: VariancePreserving) -> Float[Tensor, " n+1"]:
    """Those of the labels `0, k, ..., (steps - 1) k` of a discrete schedule of `T` steps, `k = T // steps`, then 0."""
    total = len(variables.sigmas)
    if positive_integer("steps", steps) > total:
        refuse("steps", f"at most {total}, those of the schedule", steps)
    return with_zero(variables.sigmas[torch.arange(steps - 1, -1, -1) * (total // steps)])


def flow_levels(steps: int, *, shift: float = 1.0) -> Float[Tensor, " n+1"]:
    """Equal steps of time from `t = n/(n+1)` down, shifted by `s t / (1 + (s - 1) t)`, as `sigma = t / (1 - t)`.

    The level of `t = 1` is pure noise, an infinite sigma, which a solver in these variables cannot start from.

    Args:
        steps: at least 1.
        shift: > 0; above 1 puts more levels at high noise.

    Source: Esser et al. 2024, section 5.3.2 (shift).
    """
    times = torch.arange(positive_integer("steps", steps), 0, -1, dtype=torch.float64) / (steps + 1)
    shifted = positive("shift", shift) * times / (1 + (shift - 1) * times)
    return with_zero(shifted / (1 - shifted))


def with_zero(levels: Float[Tensor, " n"]) -> Float[Tensor, " n+1"]:
    """The levels, and 0 behind them."""
    return torch.cat([levels, levels.new_zeros(1)])


def check_levels(levels: Tensor, *, strictly: bool = True) -> None:
    """Refuse what no solver can follow.

    Args:
        levels: to follow.
        strictly: whether two in a row may not be equal.

    Raises:
        ValueError: levels that do not fall, or fewer than two, or below 0.
    """
    if levels.ndim != 1 or len(levels) < 2 or not levels.is_floating_point():
        refuse("levels", "a row of at least two noise levels", describe(levels))
    falls = levels[1:] < levels[:-1] if strictly else levels[1:] <= levels[:-1]
    if not bool(falls.all()) or not bool(levels.isfinite().all()) or float(levels[-1]) < 0:
        refuse("levels", f"finite noise levels >= 0 that fall{' strictly' * strictly}", levels.tolist())
