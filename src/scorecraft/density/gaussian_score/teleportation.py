"""The first steps of a sampler in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import natural, positive, refuse
from scorecraft.density.gaussian_score.gaussian import Gaussian
from scorecraft.density.noise_levels import check_levels


class Teleported(NamedTuple):
    """Where a solver takes over."""

    x: Float[Tensor, "b *d"]
    """At `levels[0]`."""
    levels: Float[Tensor, " n"]
    """Those that are left, the same as before."""
    skipped: int
    """Steps that were replaced."""


def teleport(
    gaussian: Gaussian,
    x: Float[Tensor, "b *d"],
    levels: Float[Tensor, " n+1"],
    *,
    steps: int | None = None,
    sigma: float | None = None,
) -> Teleported:
    """Replace the first steps by the exact trajectory of a Gaussian.

        start = teleport(gaussian, x, levels, sigma=5.0)
        solve(estimate, start.x, start.levels, solver=Heun())

    The sampler's own start is taken, so that runs with and without skipped steps are of the same sample. A multistep
    solver begins anew after it. Heun's method saves two evaluations a step, the others one.

    Args:
        gaussian: of the data, in the model's own scaling.
        x: at `levels[0]`.
        levels: of the sampler, strictly falling.
        steps: to replace, at least 0 and fewer than there are; or
        sigma: go to the first level at or below it, above 0.

    Raises:
        ValueError: both or none of the two, or no level that fits.

    Source: Wang and Vastola 2024, arXiv 2412.09726, "analytical teleportation".
    """
    check_levels(levels)
    if (steps is None) == (sigma is None):
        refuse("steps", "either steps or sigma", {"steps": steps, "sigma": sigma})
    if sigma is not None:
        positive("sigma", sigma)
        below = (levels <= sigma).nonzero().flatten()
        if not len(below) or float(levels[below[0]]) == 0:
            refuse("sigma", f"at least the last level above 0, {float(levels[levels > 0][-1]):g}", sigma)
        steps = int(below[0])
    assert steps is not None
    if natural("steps", steps) > len(levels) - 2:
        refuse("steps", f"at most {len(levels) - 2}, which leaves one to the solver", steps)
    if steps == 0:
        return Teleported(x, levels, 0)
    (found,) = gaussian.trajectory(x, float(levels[0]), levels[steps : steps + 1].to(torch.float64))
    return Teleported(found, levels[steps:], steps)
