"""The Multi-Similarity loss: mining by relative similarity, then soft weights by self and relative similarity."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import finite, positive
from scorecraft.core.objective import RowObjective
from scorecraft.core.pairs import Tile
from scorecraft.core.reductions import (
    Merge,
    excess_over,
    finite_floor,
    mask_out,
    masked_logsumexp,
    masked_max,
    masked_min,
    scaled_exp,
    softplus_of,
)
from scorecraft.core.scores import ScoreMap
from scorecraft.core.sweep import Context, Sweep


class MultiSimilarityLoss(RowObjective):
    """Multi-Similarity loss with its mining.

    For anchor `i` the miner keeps a pair only if it is hard relative to the opposite group (strictly):

        negative j:  S_ij + margin > min_{k in P(i)} S_ik
        positive j:  S_ij - margin < max_{k in N(i)} S_ik

    and the loss over the kept sets `P', N'` is

        L = 1/m sum_i { 1/alpha log[1 + sum_{P'} exp(-alpha (S_ik - threshold))]
                      + 1/beta  log[1 + sum_{N'} exp( beta  (S_ik - threshold))] },

    whose gradient is exactly the pair weighting `w-_ij = exp(beta (S_ij - threshold)) / (1 + sum_{N'} exp(...))` and
    its positive counterpart. Anchors that keep only one group contribute zero, and stay in the mean.

    Args:
        alpha: scale of the positives, > 0 (sensible 1 to 10).
        beta: scale of the negatives, > 0 (sensible 20 to 100).
        threshold: the similarity `lambda` around which pairs are weighed (sensible 0.3 to 1 for cosines).
        mining_margin: `epsilon` of the miner; negative is stricter (sensible 0 to 0.3).
        mining: whether to mine at all; without it every pair is kept.
        skip_one_sided: whether an anchor that keeps only positives or only negatives contributes nothing (as the
            official code does) or its one side (as the formula reads).
        score: score map, cosine by default.
        reduction: over anchors.
        validate: read input values.

    Raises:
        ValueError: for `alpha` or `beta` not above zero, or a threshold or margin that is not finite.

    Source: Wang et al. 2019, arXiv 1904.06627, section 4 (equations 10 to 15).
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        beta: float = 50.0,
        threshold: float = 0.5,
        mining_margin: float = 0.1,
        mining: bool = True,
        skip_one_sided: bool = True,
        score: ScoreMap | None = None,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(score=score, reduction=reduction, validate=validate)
        self.alpha = positive("alpha", alpha)
        self.beta = positive("beta", beta)
        self.threshold = finite("threshold", threshold)
        self.mining_margin = finite("mining_margin", mining_margin)
        self.mining = mining
        self.skip_one_sided = skip_one_sided

    @classmethod
    def paper(cls, **options: object) -> MultiSimilarityLoss:
        """The constants the paper states: alpha 2, beta 50, threshold 1, margin 0.1."""
        return cls(alpha=2.0, beta=50.0, threshold=1.0, mining_margin=0.1, **options)  # type: ignore[arg-type]

    @classmethod
    def code(cls, **options: object) -> MultiSimilarityLoss:
        """The constants of the official code: alpha 2, beta 40, threshold 0.5, margin 0.1."""
        return cls(alpha=2.0, beta=40.0, threshold=0.5, mining_margin=0.1, **options)  # type: ignore[arg-type]

    def survey(self, sweep: Sweep) -> Context:
        """The hardest pair of each group, then the log-mass `log sum exp` of what the miner keeps of each group."""
        hardest = (
            sweep.rows(hardest_pairs, hardest_positive=Merge.MIN, hardest_negative=Merge.MAX) if self.mining else {}
        )
        masses = sweep.rows(self._masses, hardest, positive_mass=Merge.LOGSUMEXP, negative_mass=Merge.LOGSUMEXP)
        return {**hardest, **masses}

    def row_values(self, context: Context) -> Float[Tensor, " r"]:
        loss = softplus_of(context["positive_mass"]) / self.alpha + softplus_of(context["negative_mass"]) / self.beta
        return torch.where(self._counted(context), loss, 0.0)

    def pair_weights(self, tile: Tile, context: Context) -> Float[Tensor, "r c"]:
        """`w-` on kept negatives, `-w+` on kept positives, 0 elsewhere."""
        negatives, offset = self._kept_negatives(tile, context)
        push = scaled_exp(negatives, self.beta, self._log_scale(offset, self.beta, "negative_mass", context))
        if tile.positives is False:
            return push
        positives, offset = self._kept_positives(tile, context)
        return push - scaled_exp(positives, self.alpha, self._log_scale(offset, self.alpha, "positive_mass", context))

    def _masses(self, tile: Tile, context: Context) -> dict[str, Tensor]:
        """`log sum exp` of the exponents of each group."""
        negatives, offset = self._kept_negatives(tile, context)
        found = {"negative_mass": masked_logsumexp(negatives, scale=self.beta) + self.beta * offset}
        if tile.positives is not False:
            positives, offset = self._kept_positives(tile, context)
            found["positive_mass"] = masked_logsumexp(positives, scale=self.alpha) + self.alpha * offset
        return found

    def _kept_negatives(self, tile: Tile, context: Context) -> tuple[Float[Tensor, "r c"], Float[Tensor, " r"]]:
        """Kept negatives (`-inf` elsewhere) and an offset per row; their sum is `S - threshold`."""
        return self._kept(mask_out(tile.score, tile.negatives, -math.inf), -self.threshold, context, "hardest_positive")

    def _kept_positives(self, tile: Tile, context: Context) -> tuple[Float[Tensor, "r c"], Float[Tensor, " r"]]:
        """Kept positives (`-inf` elsewhere) and an offset per row; their sum is `threshold - S`."""
        return self._kept(mask_out(-tile.score, tile.positives, -math.inf), self.threshold, context, "hardest_negative")

    def _kept(
        self, scores: Float[Tensor, "r c"], offset: float, context: Context, opposite: str
    ) -> tuple[Float[Tensor, "r c"], Float[Tensor, " r"]]:
        """The miner: pairs closer than the margin to the hardest pair of the opposite group."""
        if not self.mining:
            return scores, scores.new_full((len(scores),), offset)
        hardest = context[opposite] if opposite == "hardest_positive" else -context[opposite]
        floor = finite_floor(hardest - self.mining_margin)
        return excess_over(scores, floor), floor + offset

    def _log_scale(self, offset: Tensor, scale: float, mass: str, context: Context) -> Tensor:
        """What turns exponents into weights: the offset, over `1 + mass`; `-inf` for anchors that do not count."""
        return torch.where(self._counted(context), scale * offset - softplus_of(context[mass]), -math.inf)

    def _counted(self, context: Context) -> Tensor:
        """Anchors that contribute."""
        positives, negatives = context["positive_mass"] > -math.inf, context["negative_mass"] > -math.inf
        return positives & negatives if self.skip_one_sided else positives | negatives

    def extra_repr(self) -> str:
        mining = f"mining_margin={self.mining_margin}" if self.mining else "mining=False"
        return f"alpha={self.alpha}, beta={self.beta}, threshold={self.threshold}, {mining}, {super().extra_repr()}"


def hardest_pairs(tile: Tile, context: Context) -> dict[str, Tensor]:
    """The least similar positive and the most similar negative of every anchor, outside the graph."""
    del context
    scores = tile.score.detach()
    return {
        "hardest_positive": masked_min(scores, tile.positives),
        "hardest_negative": masked_max(scores, tile.negatives),
    }
