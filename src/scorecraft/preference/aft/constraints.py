"""What keeps a ranking of answers from pushing the worse ones down without bound."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Num
from torch import Tensor

from scorecraft.core.checks import choice

Constraint: TypeAlias = Literal["none", "detach", "boundary"]
"""`none` pushes the worse answers down, `detach` only pulls the better ones up, `boundary` holds the worse ones at a
fixed distance below the better ones."""

CONSTRAINTS = ("none", "detach", "boundary")


class Constrained:
    """A list objective with a constraint on the answers that are worse than others.

    Under `detach` some answers receive no gradient, and the forward pass that scores them needs none: see
    `receives_gradient`.
    """

    constraint: Constraint

    def constrain(self, constraint: Constraint, options: tuple[str, ...] = CONSTRAINTS) -> None:
        """Take on a constraint; with one, part of the value is held constant and its gradient is not the derivative."""
        self.constraint = choice("constraint", constraint, options)  # type: ignore[assignment]
        self.value_is_the_loss = constraint == "none"

    def receives_gradient(self, relevance: Num[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "... c"]:
        """The answers of which the loss may have a gradient; the others can be scored without one.

        Args:
            relevance: `[..., c]`.
            where: bool `[..., c]`, the answers there are.
        """
        if self.constraint != "detach":
            return where
        return where & self.better_than_another(relevance, where)

    def better_than_another(
        self, relevance: Num[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Bool[Tensor, "... c"]:
        """The answers that are strictly better than another one of their list."""
        lowest = torch.where(where, relevance, torch.inf).amin(dim=-1, keepdim=True)
        return relevance > lowest
