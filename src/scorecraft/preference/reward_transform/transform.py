"""From a Bradley-Terry reward to the log-probability of being good, and what the paper compares it with."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.checks import check_values, describe, positive, refuse
from scorecraft.core.separable import in_working_precision


def log_sigmoid_centred(
    rewards: Float[Tensor, "*shape"], reference: Tensor | float, *, scale: float = 1.0
) -> Float[Tensor, "*shape"]:
    """`u = log sigmoid(scale (r - r_ref))`: the log-probability that an answer beats the reference.

    It lies below 0 and below `scale (r - r_ref)`, is increasing and concave, as good as linear for bad answers and flat
    for good ones. Of all utilities it is the one, up to a constant per prompt, whose KL-regularised optimum is the base
    policy conditioned on the answer being good.

    Args:
        rewards: of any shape, finite; half precision is computed in float32. Log-odds of a Bradley-Terry model: not
            normalised, not clipped.
        reference: `r_ref` of each, broadcast against the rewards; data, so no gradient passes through it.
        scale: of the log-odds, where the reward model was trained with scaled rewards.

    Raises:
        ValueError: values that are not finite, shapes that do not broadcast, or a scale of 0 or below.

    Source: arXiv 2402.00742, the pointwise theorem.
    """
    return F.logsigmoid(centred(rewards, reference, scale=scale))


def log_sigmoid_slope(
    rewards: Float[Tensor, "*shape"], reference: Tensor | float, *, scale: float = 1.0
) -> Float[Tensor, "*shape"]:
    """`du/dr = scale sigmoid(scale (r_ref - r))`: how much a reward still counts; `scale` when bad, to 0 when good.

    Args:
        rewards, reference, scale: see `log_sigmoid_centred`.
    """
    return scale * (-centred(rewards, reference, scale=scale)).sigmoid()


def truncated(rewards: Float[Tensor, "*shape"], reference: Tensor | float) -> Float[Tensor, "*shape"]:
    """`min(r - r_ref, 0)`: the raw reward up to the reference and nothing beyond it.

    A baseline, and the limit of `log_sigmoid_centred(..., scale=a) / a` for large `a`.

    Args:
        rewards, reference: see `log_sigmoid_centred`.
    """
    return centred(rewards, reference).clamp(max=0)


def thresholded(rewards: Float[Tensor, "*shape"], reference: Tensor | float) -> Float[Tensor, "*shape"]:
    """`1[r > r_ref]`: good or not, a baseline without a slope.

    Args:
        rewards, reference: see `log_sigmoid_centred`.
    """
    return (centred(rewards, reference) > 0).to(in_working_precision(rewards).dtype)


def centred(
    rewards: Float[Tensor, "*shape"],
    reference: Tensor | float,
    *,
    scale: Tensor | float = 1.0,
    where: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """`scale (r - r_ref)` in float32 at least: log-odds of being good; 0 outside of `where`, whatever stands there.

    Args:
        rewards, reference, scale: see `log_sigmoid_centred`; `scale` may also be one per reward.
        where: bool, the rewards there are.

    Raises:
        ValueError: see `log_sigmoid_centred`.
    """
    if not isinstance(rewards, Tensor) or not rewards.is_floating_point():
        refuse("rewards", "a floating-point tensor", describe(rewards))
    rewards = in_working_precision(rewards)
    against = torch.as_tensor(reference, dtype=rewards.dtype, device=rewards.device).detach()
    if isinstance(scale, Tensor):
        scales = scale = scale.to(rewards)
        check_values("scale", "finite numbers > 0", lambda: torch.isfinite(scales) & (scales > 0), scales)
    else:
        scale = positive("scale", scale)
    for name, value in (("reference", against), ("scale", scale), ("where", where)):
        if isinstance(value, Tensor) and not _broadcasts(value.shape, rewards.shape):
            refuse(name, f"a shape that broadcasts to {tuple(rewards.shape)}", tuple(value.shape))
    if where is not None:
        if where.dtype != torch.bool:
            refuse("where", "a bool tensor", describe(where))
        rewards, against = torch.where(where, rewards, 0.0), torch.where(where, against, 0.0)
    check_values("rewards", "finite values only", lambda: torch.isfinite(rewards), rewards)
    check_values("reference", "finite values only", lambda: torch.isfinite(against), against)
    return scale * (rewards - against)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, to) == to
    except RuntimeError:
        return False
