"""The group ordering loss of a labelled batch."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import positive, positive_integer
from scorecraft.core.objective import RowObjective
from scorecraft.core.pairs import Tile
from scorecraft.core.reductions import Mask, mask_out
from scorecraft.core.scores import ScoreMap
from scorecraft.similarity.groco.groups import group_cross_entropy
from scorecraft.similarity.groco.sorting import reach_group


class GroupOrderingLoss(RowObjective):
    """Group ordering loss over labels: every anchor's class above the most similar items of other classes.

    Anchor `i` has one list: the scores of its `P_i` positives, and the `K` largest of its negatives,

        L_i = group_ordering_loss(K hardest { S_ij : j negative }, { S_ij : j positive }),

    and the mean runs over the anchors with at least one positive. An anchor with fewer than `K` negatives uses those it
    has; one without any contributes zero. There is no temperature: relaxed comparators concentrate the gradient near
    the border between the groups.

    With both sides from one batch the gradient reaches anchors and others. To move anchors alone, as in the
    self-supervised form (`GroCoLoss`), detach the others:

        loss(x, labels, reference=x.detach(), reference_labels=labels, ids=ids, reference_ids=ids)

    with `ids = torch.arange(len(x))`, which leave out the self pairs.

    Lists of different lengths run through one network at once, in time `O(anchors * (K + P)^2)` with `P` the most
    positives of any anchor. Without `max_positives` that number is read from the data, for which the host waits on a
    GPU; and as compiled code cannot look, the number of columns stands in for it there.

    Args:
        negatives: `K`, how many of an anchor's negatives take part, at least 1 (sensible 5 to 50).
        steepness: of the comparators, > 0 (sensible 1 to 10 for cosines).
        max_positives: a bound on `P`, such as the items per class in a batch less one. An anchor with more positives
            keeps its least similar ones.
        score: score map, cosine by default.
        reduction: over anchors.
        validate: read input values.

    Raises:
        ValueError: `negatives` or `max_positives` below 1, or a steepness not above zero.

    Source: Shvetsova et al. 2023, arXiv 2301.02009, section 3, with labels in the place of views.
    """

    mean_over_anchors_with_positives: ClassVar[bool] = True

    def __init__(
        self,
        *,
        negatives: int = 10,
        steepness: float = 1.0,
        max_positives: int | None = None,
        score: ScoreMap | None = None,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(score=score, reduction=reduction, validate=validate)
        self.negatives = positive_integer("negatives", negatives)
        self.steepness = positive("steepness", steepness)
        self.max_positives = None if max_positives is None else positive_integer("max_positives", max_positives)

    def row_loss(self, tile: Tile) -> Float[Tensor, " r"]:
        scores = tile.score
        columns = scores.shape[1]
        positive_count = _count(tile.positives, scores)
        k, p = min(self.negatives, columns), self._most_positives(positive_count, columns)
        # Both ascending; what a row lacks stands at the outer ends, as -inf and inf.
        hardest = mask_out(scores, tile.negatives, -math.inf).topk(k, dim=1).values.flip(1)
        positives = mask_out(scores, tile.positives, math.inf).topk(p, dim=1, largest=False).values
        negative_count, positive_count = _count(tile.negatives, scores).clamp(max=k), positive_count.clamp(max=p)
        lengths = torch.where((negative_count > 0) & (positive_count > 0), negative_count + positive_count, 0)
        # The true list of every row, moved to the front: position first, then rows.
        place = torch.arange(k + p, device=scores.device)[:, None]
        source = (place + k - negative_count).clamp(max=k + p - 1)
        lists = torch.cat([hardest, positives], dim=1).T.gather(0, source)
        values = torch.where(place < lengths, lists, 0)
        is_positive = (place >= negative_count) & (place < lengths)
        chances = reach_group(values, is_positive.to(values.dtype), steepness=self.steepness, lengths=lengths)
        return group_cross_entropy(chances, is_positive, lengths)

    def _most_positives(self, positive_count: Int[Tensor, " r"], columns: int) -> int:
        """How many positives the lists have room for."""
        if self.max_positives is not None:
            return min(self.max_positives, columns)
        return columns if torch.compiler.is_compiling() else int(positive_count.max())

    def extra_repr(self) -> str:
        bound = "" if self.max_positives is None else f", max_positives={self.max_positives}"
        return f"negatives={self.negatives}, steepness={self.steepness}{bound}, {super().extra_repr()}"


def _count(where: Mask, scores: Float[Tensor, "r c"]) -> Int[Tensor, " r"]:
    """How many entries of each row are inside the mask."""
    if isinstance(where, bool):
        return torch.full((len(scores),), scores.shape[1] * where, device=scores.device)
    return where.sum(dim=1)
