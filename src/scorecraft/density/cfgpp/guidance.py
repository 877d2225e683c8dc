"""The guided pair of CFG++."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import non_negative
from scorecraft.density.denoiser import Denoiser
from scorecraft.density.guidance import Condition, TwoEstimates
from scorecraft.density.noise_levels import check_levels
from scorecraft.density.solvers import Estimate


class CFGPlusPlus:
    """Aims at `D_u + scale (D_c - D_u)`, and measures the noise from `D_u`.

    The loss of the condition at a clean sample, `|noise_theta(alpha x + sigma_t noise, c) - noise|^2`, is
    `|x - D_c|^2` times a number, so that one gradient step on it from `D_u` is the guided estimate, `scale` being the
    step. A diffusion solver of inverse problems then re-noises along the unconditional trajectory. With a scale in
    [0, 1] the estimate lies on the segment between the two. Both estimates are needed at every scale, also at 0 and 1.

    Args:
        denoiser, condition, unconditional: see `TwoEstimates`.
        scale: >= 0; the paper's 0.2, 0.4, 0.6, 0.8 and 1 at 50 DDIM steps are as strong as CFG's 2, 5, 7.5, 9 and 12.5.
            Warns above 1, where the estimate leaves the segment.

    Raises:
        ValueError: a scale below 0 or not finite.

    Source: Chung et al. 2024, arXiv 2406.08070, section 3 and algorithm 2.
    """

    def __init__(
        self, denoiser: Denoiser, *, condition: Condition, unconditional: Condition, scale: float = 0.6
    ) -> None:
        self.estimates = TwoEstimates(denoiser, condition, unconditional)
        self.scale = non_negative("scale", scale)
        if scale > 1:
            warnings.warn(
                f"CFG++ with scale = {scale:g}: scales are in [0, 1], 0.6 is as strong as CFG's 7.5", stacklevel=2
            )

    def __call__(self, x: Tensor, sigma: Tensor) -> Estimate:
        """The guided estimate and the unconditional one."""
        without, with_condition = self.estimates(x, sigma)
        return Estimate(torch.lerp(without, with_condition, self.scale), without)


def equivalent_scales(levels: Float[Tensor, " n+1"], scale: float) -> Float[Tensor, " n"]:
    """The scales with which ordinary guidance takes the steps of CFG++: `scale sigma / (sigma - sigma')`.

    Exact for Euler's method (DDIM); at the last step, to level 0, it is `scale` itself.

    Args:
        levels: strictly falling; the last one may be 0. For ancestral steps the lower levels that they go down to.
        scale: of CFG++.

    Source: derived; arXiv 2406.08070 gives the pairs of scales at 50 steps.
    """
    check_levels(levels)
    return non_negative("scale", scale) * levels[:-1] / (levels[:-1] - levels[1:])
