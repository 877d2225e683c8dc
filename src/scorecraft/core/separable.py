"""Objectives of separate items (lists, pairs of answers, answers): each item owns its scores, so nothing is tiled and
nothing is gathered, and the mean of local losses is the loss. What the contracts share is here: reduction, sums, ranks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scorecraft.core.batch import Reduction, reduce_losses
from scorecraft.core.checks import check_values, choice, describe, finite, refuse
from scorecraft.core.objective import sum_of
from scorecraft.core.ranks import world_size

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """What a separable objective is evaluated on."""

    weights: Float[Tensor, "..."] | None = None
    ranks: int = 1
    group: ProcessGroup | None = None


ItemsT = TypeVar("ItemsT", bound=Items)


class SeparableObjective(nn.Module, Generic[ItemsT]):
    """`mean_i loss_i`, each loss a function of its own item.

    Args:
        reduction: `"mean"`, `"sum"` or `"none"` over items.
        validate: read the values of the input; shapes and dtypes are always checked.
    """

    value_is_the_loss: ClassVar[bool] = True
    """Whether the gradient is that of the value; an objective whose weights are held constant only states a pull."""
    sums: ClassVar[Any]
    """The type of a sum of objectives of this contract."""
    of_ranks: ClassVar[Any]
    """The type of an objective of this contract across ranks."""

    def __init__(self, *, reduction: Reduction = "mean", validate: bool = True) -> None:
        super().__init__()
        self.reduction: Reduction = choice("reduction", reduction, ("mean", "sum", "none"))  # type: ignore[assignment]
        self.validate = validate

    @classmethod
    def example(cls, **options: Any) -> Any:
        """An instance whose options are the defaults or those given."""
        return cls(**options)

    @abstractmethod
    def evaluate(self, items: ItemsT) -> Tensor:
        """The reduced loss of checked items."""

    def reduce(self, losses: Tensor, items: ItemsT, counted: Tensor | None = None) -> Tensor:
        """Weighted mean or sum of the losses over the items that count, on all ranks."""
        weights = items.weights
        if counted is not None:
            weights = counted.to(losses.dtype) if weights is None else counted * weights
        return reduce_losses(losses, self.reduction, weights, ranks=items.ranks, group=items.group)

    def check_weights(self, weights: Tensor | None, shape: Sequence[int]) -> None:
        """Refuse weights that are not one finite number >= 0 per item."""
        if weights is None:
            return
        if weights.shape != tuple(shape) or not weights.is_floating_point():
            refuse("weights", f"floating-point weights of shape {tuple(shape)}", describe(weights))
        if self.validate:
            check_values("weights", "finite weights >= 0", (weights.isfinite() & (weights >= 0)).all, weights)

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, SeparableObjective) or other.sums is not self.sums:
            return NotImplemented
        return self.sums([*terms_of(self), *terms_of(other)])

    def __mul__(self, factor: float) -> Any:
        if isinstance(factor, (nn.Module, Tensor)):
            return NotImplemented
        return self.sums([(weight * finite("factor", factor), objective) for weight, objective in terms_of(self)])

    __rmul__ = __mul__

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class Summed:
    """`sum_k weight_k * objective_k`, each with its own reduction; made by `+` and `*`."""

    factors: list[float]
    objectives: nn.ModuleList

    def hold(self, terms: Sequence[tuple[float, Any]]) -> None:
        """Keep the terms of the sum."""
        self.factors = [weight for weight, _ in terms]
        self.objectives = nn.ModuleList(objective for _, objective in terms)

    @property
    def parts(self) -> list[tuple[float, Any]]:
        """Factors and objectives."""
        return list(zip(self.factors, self.objectives, strict=True))

    def evaluate(self, items: Items) -> Tensor:
        """The weighted sum of the reduced losses of the terms."""
        return sum_of(factor * objective.evaluate(items) for factor, objective in self.parts)

    def extra_repr(self) -> str:
        return "factors=" + ", ".join(f"{factor:g}" for factor in self.factors)


class OfRanks:
    """An objective whose mean runs over the items of all ranks; see `across_ranks`."""

    objective: Any
    group: ProcessGroup | None

    def evaluate(self, items: Items) -> Tensor:
        """The loss of the global batch."""
        return self.objective.evaluate(replace(items, ranks=world_size(self.group), group=self.group))

    def extra_repr(self) -> str:
        return ""


def terms_of(objective: SeparableObjective) -> list[tuple[float, SeparableObjective]]:
    """The terms of a sum; an objective alone is a sum of one."""
    return objective.parts if isinstance(objective, Summed) else [(1.0, objective)]


def same_reduction(terms: Sequence[tuple[float, Any]]) -> Reduction:
    """The reduction of a sum: 'none' in all terms or in none.

    Raises:
        ValueError: some terms give one loss per item and others a single number.
    """
    if len({objective.reduction == "none" for _, objective in terms}) > 1:
        refuse("terms", "reduction='none' in all or in none", repr([objective for _, objective in terms]))
    return terms[0][1].reduction


def in_working_precision(values: Tensor) -> Tensor:
    """Half precision becomes float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()
