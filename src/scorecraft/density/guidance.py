"""Classifier-free guidance: from two clean estimates, with the condition and without it, to the pair a step reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from scorecraft.core.checks import describe, finite, refuse
from scorecraft.density.denoiser import Denoiser
from scorecraft.density.solvers import Estimate

Condition: TypeAlias = Mapping[str, Any]
"""Keyword arguments of the denoiser."""


class TwoEstimates:
    """The clean estimates without and with the condition, from one call of the denoiser on a doubled batch.

    Args:
        denoiser: takes the condition's values as keyword arguments.
        condition: what guides, a tensor `[b, ...]` per keyword, or anything else where it is one for the whole batch.
        unconditional: the same keywords for the unconditional, or negative, branch.

    Raises:
        ValueError: keywords or shapes of the two that differ.
    """

    def __init__(self, denoiser: Denoiser, condition: Condition, unconditional: Condition) -> None:
        if condition.keys() != unconditional.keys():
            refuse("unconditional", f"the keywords of the condition, {sorted(condition)}", sorted(unconditional))
        self.denoiser = denoiser
        self.both: dict[str, Any] = {}
        for name, given in condition.items():
            other = unconditional[name]
            if isinstance(given, Tensor) != isinstance(other, Tensor):
                refuse("unconditional", f"{name} like that of the condition, {describe(given)}", describe(other))
            if isinstance(given, Tensor):
                if given.shape != other.shape:
                    refuse("unconditional", f"{name} of shape {tuple(given.shape)}", describe(other))
                self.both[name] = torch.cat([other, given])
            elif given is other or given == other:
                self.both[name] = given
            else:
                refuse("condition", f"a tensor for `{name}`, which differs between the branches", describe(given))

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Without, and with."""
        found = self.denoiser(torch.cat([x, x]), sigma, **self.both)
        without, with_condition = found.chunk(2)
        return without, with_condition


class ClassifierFreeGuidance:
    """`D_u + scale (D_c - D_u)`, everywhere in the step (CFG).

    Args:
        denoiser, condition, unconditional: see `TwoEstimates`.
        scale: 1 is the conditional model, above it the estimate leaves the segment between the two.

    Source: Ho and Salimans 2022, equation 6.
    """

    def __init__(
        self, denoiser: Denoiser, *, condition: Condition, unconditional: Condition, scale: float = 7.5
    ) -> None:
        self.estimates = TwoEstimates(denoiser, condition, unconditional)
        self.scale = finite("scale", scale)

    def __call__(self, x: Tensor, sigma: Tensor) -> Estimate:
        """The guided estimate, twice."""
        without, with_condition = self.estimates(x, sigma)
        guided = torch.lerp(without, with_condition, self.scale)
        return Estimate(guided, guided)
