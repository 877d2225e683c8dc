"""Signed strengths become pairs; and how often the order is right, by strength."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from scorecraft.core.checks import check_values, describe, refuse


class OrderedPairs(NamedTuple):
    """Pairs in order of preference."""

    chosen: Num[Tensor, "n ..."]
    rejected: Num[Tensor, "n ..."]
    strength: Num[Tensor, " n"]
    """`m = |s|`, at least 0."""

    @property
    def tied(self) -> Bool[Tensor, " n"]:
        """Pairs without a preference; response 2 stands as chosen."""
        return self.strength == 0


def by_signed_strength(
    response_1: Num[Tensor, "n ..."], response_2: Num[Tensor, "n ..."], strength: Num[Tensor, " n"]
) -> OrderedPairs:
    """Put what belongs to two responses into the order of a signed strength `s`.

    `s < 0` means that response 1 is better, `s > 0` that response 2 is; `m = |s|`. At `s = 0` response 2 comes out as
    chosen with strength 0, and the loss's option `ties` says what that is worth; for a loss that reads no strengths
    leave these out with `weights=(~pairs.tied).float()`.

    Args:
        response_1: `[n, ...]`: rewards, log-probabilities, token ids.
        response_2: the same of the other response.
        strength: `[n]`, such as -3 to 3.

    Raises:
        ValueError: shapes that do not fit, or strengths that are not finite.
    """
    if response_1.shape != response_2.shape or response_1.ndim < 1:
        refuse("response_2", f"a tensor of shape {tuple(response_1.shape)}", describe(response_2))
    if strength.shape != response_1.shape[:1] or strength.dtype == torch.bool or strength.is_complex():
        refuse("strength", f"one signed number per pair, shape {tuple(response_1.shape[:1])}", describe(strength))
    check_values("strength", "finite numbers", strength.isfinite, strength)
    first = (strength < 0).view(-1, *[1] * (response_1.ndim - 1))
    return OrderedPairs(
        torch.where(first, response_1, response_2), torch.where(first, response_2, response_1), strength.abs()
    )


class PairAccuracy(NamedTuple):
    """How many pairs are in the right order, `z > 0`."""

    right: int
    pairs: int

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.right / self.pairs


def pair_accuracy(chosen: Float[Tensor, " n"], rejected: Float[Tensor, " n"]) -> PairAccuracy:
    """Pairs whose chosen answer has the higher reward; equal rewards are not right.

    Args:
        chosen: `[n]`, rewards of the preferred answers.
        rejected: `[n]`.

    Raises:
        ValueError: no pairs, or shapes that do not fit.
    """
    if chosen.shape != rejected.shape or chosen.ndim != 1 or len(chosen) == 0:
        refuse("rejected", f"one reward per chosen answer, {describe(chosen)}", describe(rejected))
    return PairAccuracy(int((chosen > rejected).sum()), len(chosen))


def accuracy_by_strength(
    chosen: Float[Tensor, " n"], rejected: Float[Tensor, " n"], strength: Num[Tensor, " n"]
) -> dict[int, PairAccuracy]:
    """`pair_accuracy` of the pairs of each strength, rounded to whole numbers, in ascending order.

    Args:
        chosen: `[n]`, rewards of the preferred answers.
        rejected: `[n]`.
        strength: `[n]`.

    Raises:
        ValueError: no pairs, or shapes that do not fit.
    """
    pair_accuracy(chosen, rejected)
    if strength.shape != chosen.shape:
        refuse("strength", f"one number per pair, shape {tuple(chosen.shape)}", describe(strength))
    level: Int[Tensor, " n"] = strength.round().long()
    return {
        int(value): pair_accuracy(chosen[level == value], rejected[level == value]) for value in level.unique().tolist()
    }
