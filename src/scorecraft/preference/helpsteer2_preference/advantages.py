"""What becomes of rewards after training: advantages of sampled answers, and a common scale."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scorecraft.core.checks import check_values, describe, refuse
from scorecraft.core.separable import in_working_precision


def leave_one_out_advantages(
    rewards: Float[Tensor, "... k"], where: Bool[Tensor, "... k"] | None = None
) -> Float[Tensor, "... k"]:
    """`r_i - mean_{j != i} r_j` among the `k` answers to a prompt: REINFORCE with a leave-one-out baseline.

    Args:
        rewards: `[..., k]`, `k >= 2`; finite inside `where`.
        where: bool `[..., k]`, the answers there are; the advantage of the others is 0, and so is that of an answer
            that is alone.

    Raises:
        ValueError: fewer than two answers, or rewards that are not finite.

    Source: Wang et al. 2024, arXiv 2410.01257, section 5; Ahmadian et al. 2024, "Back to Basics".
    """
    if rewards.ndim < 1 or rewards.shape[-1] < 2 or not rewards.is_floating_point():
        refuse("rewards", "floating-point rewards of shape [..., k], k >= 2", describe(rewards))
    if where is None:
        where = torch.ones_like(rewards, dtype=torch.bool)
    elif where.shape != rewards.shape or where.dtype != torch.bool:
        refuse("where", f"a bool tensor of shape {tuple(rewards.shape)}", describe(where))
    check_values("rewards", "finite rewards", lambda: rewards.isfinite() | ~where, rewards)
    rewards = torch.where(where, in_working_precision(rewards), 0.0)
    answers = where.sum(dim=-1, keepdim=True)
    # r_i - (sum - r_i) / (k - 1), written around the mean so that a common offset costs no digits.
    centred = rewards - rewards.sum(dim=-1, keepdim=True) / answers.clamp(min=1)
    return torch.where(where, centred * answers / (answers - 1).clamp(min=1), 0.0)


def standardised_rewards(
    rewards: Float[Tensor, " n"], reference: Float[Tensor, " m"] | None = None
) -> Float[Tensor, " n"]:
    """`(r - mean) / std` with mean and (population) standard deviation of reference rewards.

    Args:
        rewards: `[n]`.
        reference: `[m]`, rewards of a fixed set of answers; the rewards themselves when left out.

    Raises:
        ValueError: rewards of a reference that are not finite, or all the same.
    """
    reference = rewards if reference is None else reference
    if reference.ndim != 1 or len(reference) == 0 or not reference.is_floating_point():
        refuse("reference", "floating-point rewards [m]", describe(reference))
    reference = in_working_precision(reference)
    spread = reference.std(correction=0)
    check_values(
        "reference",
        "finite rewards that differ",
        lambda: (reference.min() < reference.max()) & spread.isfinite(),
        reference,
    )
    return (in_working_precision(rewards) - reference.mean()) / spread
