"""SteerLM regression: a head with an output per attribute, trained on the ratings there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import check_values, describe, finite, natural, refuse
from scorecraft.core.reductions import Merge
from scorecraft.core.separable import Items, OfRanks, SeparableObjective, Summed, in_working_precision, same_reduction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ATTRIBUTES = (
    "quality",
    "toxicity",
    "humor",
    "creativity",
    "helpfulness",
    "correctness",
    "coherence",
    "complexity",
    "verbosity",
)
"""The outputs of the released heads; HelpSteer2 has ratings, 0 to 4, of the last five."""
HELPFULNESS = ATTRIBUTES.index("helpfulness")
MASKED = -100.0


@dataclass(frozen=True, slots=True)
class RatedAnswers(Items):
    """What a regression is evaluated on."""

    predictions: Float[Tensor, "n a"]
    targets: Float[Tensor, "n a"]
    """0 where there is no rating."""
    rated: Bool[Tensor, "n a"]


class MaskedRegressionLoss(SeparableObjective[RatedAnswers]):
    """`sum_{b,a} rated_ba (r_ba - t_ba)^2 / sum_{b,a} rated_ba`: squared error over the ratings there are.

    The mean runs over ratings and not over answers. Of a batch in parts (gradient accumulation, ranks) the mean of
    means is another number wherever the parts have unequal numbers of ratings: `across_ranks(loss)` counts on all
    ranks, and `reduction="sum"` over `loss.rated(targets).sum()` of all parts is the loss of the whole.

    Args:
        attributes: the outputs that count, such as `(4,)` for helpfulness alone; all of them when left out.
        mask_value: the target that means "no rating".
        reduction: `"mean"` or `"sum"` over ratings, or `"none"` for `[n, a]`.
        validate: read input values.

    Raises:
        ValueError: no such attribute; when called, predictions and targets that are not both `[n, a]`, values that are
            not finite, or a batch without a single rating.

    Source: Wang et al. 2024, arXiv 2410.01257, section 3; Dong et al. 2023, "SteerLM".
    """

    def __init__(
        self,
        *,
        attributes: Sequence[int] | None = None,
        mask_value: float = MASKED,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.attributes = None if attributes is None else tuple(natural("attributes", one) for one in attributes)
        if self.attributes is not None and not 0 < len(set(self.attributes)) == len(self.attributes):
            refuse("attributes", "different outputs, at least one", attributes)
        self.mask_value = finite("mask_value", mask_value)

    def forward(
        self,
        predictions: Float[Tensor, "n a"],
        targets: Num[Tensor, "n a"],
        *,
        weights: Float[Tensor, " n"] | None = None,
    ) -> Tensor:
        """The loss of rated answers.

        Args:
            predictions: `[n, a]`, one output per attribute.
            targets: `[n, a]`, ratings, with the mask value where there is none.
            weights: non-negative weights of the answers `[n]`; the mean is the weighted mean.

        Returns:
            A scalar, or `[n, a]` with `reduction="none"`.

        Raises:
            ValueError: one line naming the argument, what was expected and what came.
        """
        if predictions.ndim != 2 or not predictions.is_floating_point() or predictions.numel() == 0:
            refuse("predictions", "floating-point predictions of shape [n, a]", describe(predictions))
        if targets.shape != predictions.shape or targets.dtype == torch.bool or targets.is_complex():
            refuse("targets", f"ratings of shape {tuple(predictions.shape)}", describe(targets))
        self.check_weights(weights, predictions.shape[:1])
        predictions, rated = in_working_precision(predictions), self.rated(targets)
        if self.validate:
            check_values("predictions", "finite predictions", predictions.isfinite, predictions)
            check_values("targets", f"finite ratings, or {self.mask_value:g}", targets.isfinite, targets)
        known = torch.where(rated, targets.to(predictions.dtype), 0.0)
        return self.evaluate(RatedAnswers(predictions, known, rated, weights=weights))

    def rated(self, targets: Num[Tensor, "n a"]) -> Bool[Tensor, "n a"]:
        """The targets that count.

        Raises:
            ValueError: an attribute that the targets do not have.
        """
        rated = targets != self.mask_value
        if self.attributes is None:
            return rated
        if max(self.attributes) >= targets.shape[1]:
            refuse("attributes", f"outputs below {targets.shape[1]}", self.attributes)
        chosen = torch.zeros(targets.shape[1], dtype=torch.bool, device=targets.device)
        chosen[list(self.attributes)] = True
        return rated & chosen

    def evaluate(self, items: RatedAnswers) -> Tensor:
        """The reduced loss of checked answers."""
        if self.validate:
            count = items.rated.sum()
            count = count if items.ranks == 1 else Merge.SUM.all_reduce(count, items.group)
            check_values("targets", "a rating that counts, at least one in the batch", lambda: count > 0, items.targets)
        losses = torch.where(items.rated, items.predictions - items.targets, 0.0).square()
        if items.weights is not None:
            items = replace(items, weights=items.weights[:, None].expand_as(losses))
        return self.reduce(losses, items, items.rated)

    def extra_repr(self) -> str:
        of = "" if self.attributes is None else f"attributes={self.attributes}, "
        return of + super().extra_repr()


class RegressionSum(Summed, MaskedRegressionLoss):
    """`sum_k weight_k * objective_k`, each with its own reduction; made by `+` and `*`."""

    def __init__(self, terms: list[tuple[float, MaskedRegressionLoss]]) -> None:
        super().__init__(reduction=same_reduction(terms))
        self.hold(terms)


class RegressionAcrossRanks(OfRanks, MaskedRegressionLoss):
    """See `across_ranks`."""

    def __init__(self, objective: MaskedRegressionLoss, group: ProcessGroup | None = None) -> None:
        super().__init__(reduction=objective.reduction, validate=objective.validate)
        self.objective = objective
        self.group = group


MaskedRegressionLoss.sums, MaskedRegressionLoss.of_ranks = RegressionSum, RegressionAcrossRanks


def attribute_rewards(
    predictions: Float[Tensor, "n a"], *, slot: int = HELPFULNESS, weights: Sequence[float] | None = None
) -> Float[Tensor, " n"]:
    """The reward that answers are ranked by: one output, or a weighted sum of all.

    Args:
        predictions: `[n, a]`.
        slot: the output, counted from 0.
        weights: one per output, instead of a slot.

    Raises:
        ValueError: no such output, or another number of weights.
    """
    if predictions.ndim != 2:
        refuse("predictions", "predictions of shape [n, a]", describe(predictions))
    return predictions @ mixture(predictions.shape[1], slot, weights).to(predictions)


def mixture(outputs: int, slot: int, weights: Sequence[float] | None) -> Float[Tensor, " a"]:
    """The weights that make one reward of several outputs."""
    if weights is not None:
        if len(weights) != outputs:
            refuse("weights", f"{outputs} numbers, one per output", f"{len(weights)}")
        return torch.tensor([finite("weights", weight) for weight in weights], dtype=torch.float64)
    if natural("slot", slot) >= outputs:
        refuse("slot", f"an output below {outputs}", slot)
    chosen = torch.zeros(outputs, dtype=torch.float64)
    chosen[slot] = 1
    return chosen
