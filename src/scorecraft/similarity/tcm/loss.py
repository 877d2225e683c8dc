"""The threshold-consistent margin regulariser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.batch import Batch
from scorecraft.core.checks import finite, non_negative
from scorecraft.core.objective import BatchObjective
from scorecraft.core.pairs import Tile
from scorecraft.core.reductions import Mask, Merge
from scorecraft.core.scores import ScoreMap
from scorecraft.core.sweep import Context


class ThresholdConsistentMarginLoss(BatchObjective):
    """Threshold-Consistent Margin loss, a regulariser to add to any base loss: `base + tcm`.

    Over all positive pairs `S+` and all negative pairs `S-` of the batch (self pairs left out),

        L = positive_weight * mean { m+ - s : s in S+, s <= m+ } + negative_weight * mean { s - m- : s in S-, s >= m- }

    where each mean runs over the hard pairs only (0 when there are none). The margins are absolute cosines, so that one
    threshold serves all classes; every hard pair is pulled with the same strength, `weight / number of hard pairs`.

    Args:
        positive_margin: `m+`, below which a positive is hard (sensible 0.7 to 0.95).
        negative_margin: `m-`, above which a negative is hard (sensible 0.2 to 0.6).
        positive_weight: `lambda+ >= 0`.
        negative_weight: `lambda- >= 0`.
        score: score map, cosine by default; the margins are in its units.
        validate: read input values.

    Raises:
        ValueError: a margin is not finite, or a weight is negative.

    Source: Zhang et al. 2023, arXiv 2307.04047, section 4.
    """

    totals: ClassVar[Mapping[str, Merge]] = {
        "positive_shortfall": Merge.SUM,
        "hard_positives": Merge.SUM,
        "negative_excess": Merge.SUM,
        "hard_negatives": Merge.SUM,
    }

    def __init__(
        self,
        *,
        positive_margin: float = 0.9,
        negative_margin: float = 0.5,
        positive_weight: float = 1.0,
        negative_weight: float = 1.0,
        score: ScoreMap | None = None,
        validate: bool = True,
    ) -> None:
        super().__init__(score=score, validate=validate)
        self.positive_margin = finite("positive_margin", positive_margin)
        self.negative_margin = finite("negative_margin", negative_margin)
        self.positive_weight = non_negative("positive_weight", positive_weight)
        self.negative_weight = non_negative("negative_weight", negative_weight)

    def terms(self, tile: Tile, context: Context) -> dict[str, Tensor]:
        """Sums and counts of the hard pairs of a block."""
        del context
        shortfall, hard_positives = _over(self.positive_margin - tile.score, tile.positives)
        excess, hard_negatives = _over(tile.score - self.negative_margin, tile.negatives)
        return {
            "positive_shortfall": shortfall,
            "hard_positives": hard_positives,
            "negative_excess": excess,
            "hard_negatives": hard_negatives,
        }

    def finish(self, totals: Context, context: Context, batch: Batch) -> Float[Tensor, ""]:
        """The two means; a pair met in both orders stands in its sum and in its count."""
        del context, batch
        positive = totals["positive_shortfall"] / totals["hard_positives"].detach().clamp(min=1)
        negative = totals["negative_excess"] / totals["hard_negatives"].detach().clamp(min=1)
        return self.positive_weight * positive + self.negative_weight * negative

    def pair_weights(
        self, tile: Tile, context: Context, totals: Context, coefficients: Context
    ) -> Float[Tensor, "r c"]:
        """Every hard negative is pushed, every hard positive pulled, with one common strength each."""
        del context, totals
        push, pull = coefficients["negative_excess"], coefficients["positive_shortfall"]
        weights = _hard(tile.score - self.negative_margin, tile.negatives).mul_(push)
        if tile.positives is not False:
            weights.sub_(_hard(self.positive_margin - tile.score, tile.positives).mul_(pull))
        return weights

    def extra_repr(self) -> str:
        return (
            f"positive_margin={self.positive_margin}, negative_margin={self.negative_margin}, "
            f"positive_weight={self.positive_weight}, negative_weight={self.negative_weight}"
        )


def _hard(gap: Float[Tensor, "r c"], where: Mask) -> Float[Tensor, "r c"]:
    """1 where the gap is at least zero inside the mask, else 0."""
    if where is False:
        return torch.zeros_like(gap)
    hard = torch.heaviside(gap.detach(), gap.new_ones(()))
    return hard if where is True else hard * where


def _over(gap: Float[Tensor, "r c"], where: Mask) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum of the gaps of the hard pairs, and how many there are."""
    if where is False:
        return gap.new_zeros(()), gap.new_zeros(())
    hard = _hard(gap, where)
    return (gap * hard).sum(), hard.sum()
