"""The five classical pair losses that General Pair Weighting explains, each as a weighting of scores.

All sums run per anchor over ordered pairs; the loss of a batch is the mean over anchors. `w_ij` is the weight of pair
`(i, j)`: the loss falls with `S_ij` at rate `w+_ij` on positives and rises at rate `w-_ij` on negatives.

Source: Wang et al. 2019, arXiv 1904.06627, section 3 and table 1.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import finite, positive
from scorecraft.core.objective import RowObjective
from scorecraft.core.pairs import Tile
from scorecraft.core.reductions import (
    Merge,
    mask_out,
    masked_logsumexp,
    masked_min,
    masked_sum,
    scaled_exp,
    softplus_of,
)
from scorecraft.core.scores import ScoreMap
from scorecraft.core.sweep import Context, Sweep


class ContrastiveLoss(RowObjective):
    """`sum_N [S_ij - threshold]_+ - sum_P S_ij`, with weights `w+ = 1` and `w- = 1[S_ij > threshold]`.

    Args:
        threshold: similarity below which a negative is left alone.
        score: score map, cosine by default.
        reduction: over anchors.
        validate: read input values.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.5,
        score: ScoreMap | None = None,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(score=score, reduction=reduction, validate=validate)
        self.threshold = finite("threshold", threshold)

    def survey(self, sweep: Sweep) -> Context:
        return sweep.rows(self._sums, pulled=Merge.SUM, pushed=Merge.SUM)

    def row_values(self, context: Context) -> Float[Tensor, " r"]:
        return context["pushed"] - context["pulled"]

    def pair_weights(self, tile: Tile, context: Context) -> Float[Tensor, "r c"]:
        del context
        push = mask_out((tile.score > self.threshold).to(tile.score.dtype), tile.negatives, 0.0)
        return push if tile.positives is False else push - _indicator(tile)

    def _sums(self, tile: Tile, context: Context) -> dict[str, Tensor]:
        del context
        return {
            "pulled": masked_sum(tile.score, tile.positives),
            "pushed": masked_sum(F.relu(tile.score - self.threshold), tile.negatives),
        }

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, {super().extra_repr()}"


class TripletLoss(RowObjective):
    """`sum_{p in P} sum_{n in N} [S_in - S_ip + margin]_+`, every triplet of an anchor.

    The weight of a pair counts its active triplets: `w+_ij = #{n : S_in - S_ij + margin > 0}`, likewise `w-`.
    Rows are sorted, so the cost is `O(n log n)` per anchor and not `O(|P| |N|)`.

    Args:
        margin: by how much a positive should be more similar than a negative.
        score: score map, cosine by default.
        reduction: over anchors.
        validate: read input values.
    """

    def __init__(
        self,
        *,
        margin: float = 0.1,
        score: ScoreMap | None = None,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(score=score, reduction=reduction, validate=validate)
        self.margin = finite("margin", margin)

    def row_loss(self, tile: Tile) -> Float[Tensor, " r"]:
        hardest_first = mask_out(tile.score, tile.negatives, -math.inf).sort(dim=1, descending=True).values
        prefix = F.pad(mask_out(hardest_first, hardest_first > -math.inf, 0.0).cumsum(dim=1), (1, 0))
        reach = self.margin - tile.score  # a triplet is active when -S_in < margin - S_ip
        active = torch.searchsorted(-hardest_first.detach(), reach.detach().contiguous())
        per_positive = prefix.gather(1, active) + active * reach
        return masked_sum(per_positive, tile.positives)

    def extra_repr(self) -> str:
        return f"margin={self.margin}, {super().extra_repr()}"


class LiftedStructureLoss(RowObjective):
    """`[ log sum_P exp(margin - S_ik) + log sum_N exp(S_ik) ]_+`, the smooth form of lifted structure.

    Weights of an active anchor are the softmax of its own group, `w+_ij = exp(-S_ij) / sum_P exp(-S_ik)` and
    `w-_ij = exp(S_ij) / sum_N exp(S_ik)`; those of an inactive one, or of one with an empty group, are 0.

    Args:
        margin: `lambda`.
        score: score map, cosine by default.
        reduction: over anchors.
        validate: read input values.
    """

    def __init__(
        self,
        *,
        margin: float = 0.5,
        score: ScoreMap | None = None,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(score=score, reduction=reduction, validate=validate)
        self.margin = finite("margin", margin)

    def survey(self, sweep: Sweep) -> Context:
        return sweep.rows(_masses, positive_mass=Merge.LOGSUMEXP, negative_mass=Merge.LOGSUMEXP)

    def row_values(self, context: Context) -> Float[Tensor, " r"]:
        # An empty group leaves -inf, which the hinge turns into 0.
        return F.relu(context["positive_mass"] + self.margin + context["negative_mass"])

    def pair_weights(self, tile: Tile, context: Context) -> Float[Tensor, "r c"]:
        active = self.row_values(context) > 0

        def shares(scores: Tensor, mass: Tensor) -> Tensor:
            return scaled_exp(scores, 1.0, torch.where(active, -mass, -math.inf))

        push = shares(mask_out(tile.score, tile.negatives, -math.inf), context["negative_mass"])
        if tile.positives is False:
            return push
        return push - shares(mask_out(-tile.score, tile.positives, -math.inf), context["positive_mass"])

    def extra_repr(self) -> str:
        return f"margin={self.margin}, {super().extra_repr()}"


class BinomialDevianceLoss(RowObjective):
    """`1/|P| sum_P log(1 + exp(alpha (threshold - S_ij))) + 1/|N| sum_N log(1 + exp(beta (S_ij - threshold)))`.

    Weights `w+ = alpha / |P| sigmoid(alpha (threshold - S_ij))` and `w- = beta / |N| sigmoid(beta (S_ij - threshold))`:
    each depends on its own score alone. An anchor with an empty group keeps its other side.

    Args:
        alpha: scale of the positives, > 0.
        beta: scale of the negatives, > 0.
        threshold: `lambda`.
        score: score map, cosine by default.
        reduction: over anchors.
        validate: read input values.
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        beta: float = 50.0,
        threshold: float = 0.5,
        score: ScoreMap | None = None,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(score=score, reduction=reduction, validate=validate)
        self.alpha = positive("alpha", alpha)
        self.beta = positive("beta", beta)
        self.threshold = finite("threshold", threshold)

    def survey(self, sweep: Sweep) -> Context:
        return sweep.rows(
            self._sums, positives=Merge.SUM, negatives=Merge.SUM, positive_sum=Merge.SUM, negative_sum=Merge.SUM
        )

    def row_values(self, context: Context) -> Float[Tensor, " r"]:
        positives = context["positive_sum"] / context["positives"].clamp(min=1)
        return positives + context["negative_sum"] / context["negatives"].clamp(min=1)

    def pair_weights(self, tile: Tile, context: Context) -> Float[Tensor, "r c"]:
        gap = tile.score - self.threshold
        push = mask_out((self.beta * gap).sigmoid_(), tile.negatives, 0.0)
        push = push * (self.beta / context["negatives"].clamp(min=1))[:, None]
        if tile.positives is False:
            return push
        pull = mask_out((-self.alpha * gap).sigmoid_(), tile.positives, 0.0)
        return push - pull * (self.alpha / context["positives"].clamp(min=1))[:, None]

    def _sums(self, tile: Tile, context: Context) -> dict[str, Tensor]:
        del context
        gap = tile.score - self.threshold
        ones = torch.ones_like(gap)
        return {
            "positives": masked_sum(ones, tile.positives),
            "negatives": masked_sum(ones, tile.negatives),
            "positive_sum": masked_sum(F.softplus(-self.alpha * gap, threshold=40), tile.positives),
            "negative_sum": masked_sum(F.softplus(self.beta * gap, threshold=40), tile.negatives),
        }

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, threshold={self.threshold}, {super().extra_repr()}"


class NPairLoss(RowObjective):
    """`log(1 + sum_N exp(S_in - S_ip))` with one positive `p` per anchor.

    Weights `w+ = 1 - 1 / (1 + sum_N exp(S_in - S_ip))` and `w-_ij = exp(S_ij) / (exp(S_ip) + sum_N exp(S_in))`. The
    positive of an anchor is its first one in the order of the batch; any other choice is made by passing
    `pairs=Pairs.from_masks(...)` with one positive per row. Anchors with an empty group contribute 0.

    Args:
        score: score map, cosine by default (scaled scores, as the original N-pair's dot product, suit it better).
        reduction: over anchors.
        validate: read input values.
    """

    order_invariant = False

    def survey(self, sweep: Sweep) -> Context:
        first = sweep.rows(_first_positive, first_positive=Merge.MIN)
        scores = sweep.rows(_chosen_score, first, chosen_score=Merge.SUM, negative_mass=Merge.LOGSUMEXP)
        return {**first, **scores}

    def row_values(self, context: Context) -> Float[Tensor, " r"]:
        counted = context["first_positive"] < math.inf
        return torch.where(counted, softplus_of(context["negative_mass"] - context["chosen_score"]), 0.0)

    def pair_weights(self, tile: Tile, context: Context) -> Float[Tensor, "r c"]:
        chosen, mass = context["chosen_score"], context["negative_mass"]
        counted = context["first_positive"] < math.inf
        shift = torch.where(counted, -torch.logaddexp(chosen, mass), -math.inf)
        push = scaled_exp(mask_out(tile.score, tile.negatives, -math.inf), 1.0, shift)
        if tile.positives is False:
            return push
        pull = torch.where(counted, torch.sigmoid(mass - chosen), 0.0)
        return push - _is_chosen(tile, context) * pull[:, None]


def _indicator(tile: Tile) -> Tensor:
    """1 on positives."""
    return mask_out(torch.ones_like(tile.score), tile.positives, 0.0)


def _masses(tile: Tile, context: Context) -> dict[str, Tensor]:
    del context
    return {
        "positive_mass": masked_logsumexp(-tile.score, tile.positives),
        "negative_mass": masked_logsumexp(tile.score, tile.negatives),
    }


def _first_positive(tile: Tile, context: Context) -> dict[str, Tensor]:
    del context
    columns = tile.columns.to(tile.score.dtype).expand(tile.score.shape)
    return {"first_positive": masked_min(columns, tile.positives)}


def _is_chosen(tile: Tile, context: Context) -> Tensor:
    return tile.columns.to(tile.score.dtype) == context["first_positive"][:, None]


def _chosen_score(tile: Tile, context: Context) -> dict[str, Tensor]:
    return {
        "chosen_score": masked_sum(tile.score, _is_chosen(tile, context)),
        "negative_mass": masked_logsumexp(tile.score, tile.negatives),
    }
