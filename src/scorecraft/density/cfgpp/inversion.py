"""From a clean sample back to the noise that it comes from."""

from __future__ import annotations

import itertools

from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import natural
from scorecraft.density.denoiser import Variables, VarianceExploding
from scorecraft.density.noise_levels import check_levels
from scorecraft.density.solvers import Estimator


def invert(
    estimate: Estimator,
    x: Float[Tensor, "b *d"],
    levels: Float[Tensor, " n+1"],
    *,
    variables: Variables | None = None,
    refinements: int = 0,
) -> Float[Tensor, "b *d"]:
    """The sample at `levels[0]` from which Euler's steps down the levels come to `x` (DDIM inversion).

    A step down is `x' = x - sigma noise(clean) + sigma' noise(origin)`, with `noise(d) = (x - d) / sigma`. Going up

        x = x' + sigma noise(clean) - sigma' noise(origin)

    takes the noises at level `sigma` from the network input that belongs to `x'`, the usual approximation. A refinement
    takes them anew at the `x` that was found, which converges to the exact inverse where the step contracts.

    Args:
        estimate: of the pair, as for the steps down.
        x: at `levels[-1]`.
        levels: falling. Two equal ones at the end are the last step of Stable Diffusion's schedules, which do not
            reach 0; guidance changes the sample there too.
        variables: of the network, where the input of `x'` depends on them; variance exploding when left out.
        refinements: times that the noises are taken anew at each step.

    Raises:
        ValueError: levels that rise, or refinements below 0.

    Source: Song et al. 2021; arXiv 2406.08070, section 3.3.
    """
    check_levels(levels, strictly=False)
    natural("refinements", refinements)
    variables = VarianceExploding() if variables is None else variables
    rising = list(reversed(levels.to(x).unbind()))
    for target, sigma in itertools.pairwise(rising):
        read = x * (variables.alpha(target) / variables.alpha(sigma))
        for _ in range(1 + refinements):
            pair = estimate(read, sigma)
            read = x + (read - pair.clean) - target / sigma * (read - pair.origin)
        x = read
    return x
