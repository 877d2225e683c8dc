"""A Bradley-Terry model that starts from a regression model: the same body, and one of its outputs as the reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scorecraft.core.checks import describe, refuse
from scorecraft.preference.helpsteer2_preference.regression import HELPFULNESS, mixture


def reward_head(head: nn.Linear, *, slot: int = HELPFULNESS, weights: Sequence[float] | None = None) -> nn.Linear:
    """A head of one output that gives the reward of a regression head.

    The first stage's head is part of what the second one starts from: a new one would throw the ratings away.

    Args:
        head: of the regression model, `[d] -> [a]`.
        slot: the output that becomes the reward, counted from 0 (helpfulness is 4 of 9).
        weights: one per output, for a weighted sum instead of a slot.

    Raises:
        ValueError: no such output, or another number of weights.
    """
    taken = nn.Linear(
        head.in_features, 1, bias=head.bias is not None, device=head.weight.device, dtype=head.weight.dtype
    )
    with torch.no_grad():
        taken.weight.copy_(_mixed(head.weight, slot, weights))
        if head.bias is not None:
            taken.bias.copy_(_mixed(head.bias, slot, weights))
    for ours, theirs in zip(taken.parameters(), head.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    return taken


def reward_head_state(
    state: Mapping[str, Tensor],
    *,
    head: str = "score",
    slot: int = HELPFULNESS,
    weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """A state dict of a regression model with its head made a head of one output.

    Args:
        state: of the regression model.
        head: the name of its head: `head.weight` and, where there is one, `head.bias`.
        slot: the output that becomes the reward.
        weights: one per output, for a weighted sum instead of a slot.

    Raises:
        ValueError: no such head or output, or another number of weights.
    """
    if f"{head}.weight" not in state:
        refuse("head", f"a name with `{head}.weight` in the state", "none")
    if state[f"{head}.weight"].ndim != 2:
        refuse("head", "a head with a weight [a, d]", describe(state[f"{head}.weight"]))
    names = [name for name in (f"{head}.weight", f"{head}.bias") if name in state]
    return {**state, **{name: _mixed(state[name], slot, weights) for name in names}}


def _mixed(values: Float[Tensor, "a ..."], slot: int, weights: Sequence[float] | None) -> Float[Tensor, "1 ..."]:
    chosen = mixture(len(values), slot, weights)
    if weights is None:
        return values[slot : slot + 1].clone()
    precise = values.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
    return torch.einsum("a,a...->...", chosen.to(precise), precise)[None].to(values.dtype)
