"""Bradley-Terry losses that read how strongly an answer is preferred, on rewards and on log-ratios."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import choice, positive
from scorecraft.core.preferences import AnswerPairs, PreferenceObjective, Reads

Ties = Literal["drop", "half", "response_2"]
Normalize = Literal["pairs", "weights"]
_TIES = ("drop", "half", "response_2")


class MarginBradleyTerryLoss(PreferenceObjective):
    """`-log sigmoid(z - m)` with `z = r(chosen) - r(rejected)`: the rewards have to differ by the strength `m`.

    `d loss / d z = -sigmoid(m - z)`. Rewards that differ by less than the strength are pulled apart however sure the
    order is, so the strengths set the scale of the rewards.

    Args:
        ties: what a pair of strength 0 is worth: `"drop"` removes it, also from the mean; `"half"` gives it the label
            1/2, `(softplus(z) + softplus(-z)) / 2`; `"response_2"` takes what is called chosen for preferred, at
            margin 0 (the public code, where that is the second response).
        reduction: over pairs.
        validate: read input values.

    Raises:
        ValueError: another option for ties; when called, strengths that are missing, negative or not finite.

    Source: Wang et al. 2024, arXiv 2410.01257, section 3; the margin is that of Llama 2.
    """

    reads: ClassVar[Reads] = "rewards"
    needs_strength = True

    def __init__(self, *, ties: Ties = "drop", reduction: Reduction = "mean", validate: bool = True) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.ties: Ties = choice("ties", ties, _TIES)  # type: ignore[assignment]

    def difference(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        """`z`, what the loss is a function of."""
        return pairs.log_ratio

    def pair_loss(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        z, strength = self.difference(pairs), _strength(pairs)
        return _with_ties(-F.logsigmoid(z - strength), z, strength == 0, self.ties)

    def counted(self, strength: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What the mean over pairs divides by, pair by pair: 1, and 0 for a tie that is dropped."""
        return (strength > 0).to(strength.dtype) if self.ties == "drop" else torch.ones_like(strength)

    def evaluate(self, items: AnswerPairs) -> Tensor:
        """The reduced loss of checked pairs."""
        items = items.per_token() if self.average_log_probabilities else items
        return self.reduce(self.pair_loss(items), items, self.counted(_strength(items)))

    def extra_repr(self) -> str:
        return f"ties={self.ties!r}, {super().extra_repr()}"


class ScaledBradleyTerryLoss(PreferenceObjective):
    """`-m log sigmoid(z)` with `z = r(chosen) - r(rejected)`: a pair counts as if it were drawn `m` times.

    `d loss / d z = -m sigmoid(-z)`. Unlike a margin it asks for no distance, only for more certainty.

    Args:
        ties: what a pair of strength 0 is worth: `"drop"` removes it, also from the mean; `"half"` gives it the label
            1/2 at strength 1, `(softplus(z) + softplus(-z)) / 2`; `"response_2"` leaves it in the mean with a loss of 0
            (the public code).
        normalize: what the mean divides by: `"pairs"`, their number (the paper; the step grows with the mean strength,
            about 1.7 in its data), or `"weights"`, the sum of the strengths.
        reduction: over pairs.
        validate: read input values.

    Raises:
        ValueError: another option; when called, strengths that are missing, negative or not finite.

    Source: Wang et al. 2024, arXiv 2410.01257, section 3.
    """

    reads: ClassVar[Reads] = "rewards"
    needs_strength = True

    def __init__(
        self,
        *,
        ties: Ties = "drop",
        normalize: Normalize = "pairs",
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.ties: Ties = choice("ties", ties, _TIES)  # type: ignore[assignment]
        self.normalize: Normalize = choice("normalize", normalize, ("pairs", "weights"))  # type: ignore[assignment]

    def difference(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        """`z`, what the loss is a function of."""
        return pairs.log_ratio

    def pair_loss(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        z, strength = self.difference(pairs), _strength(pairs)
        return _with_ties(-strength * F.logsigmoid(z), z, strength == 0, self.ties)

    def counted(self, strength: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What the mean over pairs divides by, pair by pair: 1, or the strength; 0 for a tie that is dropped."""
        tied = strength == 0
        if self.normalize == "pairs":
            return (~tied).to(strength.dtype) if self.ties == "drop" else torch.ones_like(strength)
        return torch.where(tied, 1.0, strength) if self.ties == "half" else strength

    def evaluate(self, items: AnswerPairs) -> Tensor:
        """The reduced loss of checked pairs."""
        items = items.per_token() if self.average_log_probabilities else items
        losses, counted = self.pair_loss(items), self.counted(_strength(items))
        if self.normalize == "weights":
            # The mean weighs by what it divides by: the loss of a pair per unit of its strength.
            losses = losses / torch.where(counted > 0, counted, 1.0)
        return self.reduce(losses, items, counted)

    def extra_repr(self) -> str:
        return f"ties={self.ties!r}, normalize={self.normalize!r}, {super().extra_repr()}"


class MarginDPOLoss(MarginBradleyTerryLoss):
    """`-log sigmoid(z - m)` on log-ratios: `z = beta (log p/p_ref (chosen) - log p/p_ref (rejected))`.

    Args:
        beta: > 0, as in DPO; the margin is on the scale of `z`.
        average_log_probabilities: per token instead of sums.
        ties: as in `MarginBradleyTerryLoss`.
        reduction: over pairs.
        validate: read input values.

    Source: Wang et al. 2024, arXiv 2410.01257, section 5.
    """

    reads: ClassVar[Reads] = "log_probabilities"
    needs_reference = True

    def __init__(
        self,
        *,
        beta: float = 0.1,
        average_log_probabilities: bool = False,
        ties: Ties = "drop",
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(ties=ties, reduction=reduction, validate=validate)
        self.average_log_probabilities = average_log_probabilities
        self.beta = positive("beta", beta)

    def difference(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        return self.beta * (pairs.log_ratio - pairs.reference_log_ratio)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, {super().extra_repr()}"


class ScaledDPOLoss(ScaledBradleyTerryLoss):
    """`-m log sigmoid(z)` on log-ratios: `z = beta (log p/p_ref (chosen) - log p/p_ref (rejected))`.

    Args:
        beta: > 0, as in DPO.
        average_log_probabilities: per token instead of sums.
        ties: as in `ScaledBradleyTerryLoss`.
        normalize: likewise.
        reduction: over pairs.
        validate: read input values.

    Source: Wang et al. 2024, arXiv 2410.01257, section 5.
    """

    reads: ClassVar[Reads] = "log_probabilities"
    needs_reference = True

    def __init__(
        self,
        *,
        beta: float = 0.1,
        average_log_probabilities: bool = False,
        ties: Ties = "drop",
        normalize: Normalize = "pairs",
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(ties=ties, normalize=normalize, reduction=reduction, validate=validate)
        self.average_log_probabilities = average_log_probabilities
        self.beta = positive("beta", beta)

    def difference(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        return self.beta * (pairs.log_ratio - pairs.reference_log_ratio)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, {super().extra_repr()}"


def _strength(pairs: AnswerPairs) -> Float[Tensor, " n"]:
    assert pairs.strength is not None
    return pairs.strength


def _with_ties(
    losses: Float[Tensor, " n"], z: Float[Tensor, " n"], tied: Bool[Tensor, " n"], ties: Ties
) -> Float[Tensor, " n"]:
    if ties == "response_2":
        return losses
    of_ties = -(F.logsigmoid(z) + F.logsigmoid(-z)) / 2 if ties == "half" else torch.zeros_like(losses)
    return torch.where(tied, of_ties, losses)
