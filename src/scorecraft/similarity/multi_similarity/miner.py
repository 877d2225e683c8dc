"""The Multi-Similarity miner on its own, for use in front of other losses."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core.checks import describe, finite, refuse
from scorecraft.core.pairs import Pairs
from scorecraft.core.scores import Cosine, ScoreMap


class MultiSimilarityMiner:
    """Keep pairs that are hard relative to the opposite group of their anchor.

        negative j:  S_ij + margin > min_{k in P(i)} S_ik
        positive j:  S_ij - margin < max_{k in N(i)} S_ik

    over the unmined sets, strictly. An anchor without positives or without negatives keeps nothing. Mining never leaves
    just one group of an anchor empty.

    Args:
        margin: `epsilon`; negative is stricter.
        score: score map, cosine by default.

    Raises:
        ValueError: the margin is not finite.

    Source: Wang et al. 2019, arXiv 1904.06627, section 4.1 (equations 10 and 11).
    """

    def __init__(self, *, margin: float = 0.1, score: ScoreMap | None = None) -> None:
        self.margin = finite("margin", margin)
        self.score = Cosine() if score is None else score

    def __call__(
        self, scores: Float[Tensor, "n m"], positives: Bool[Tensor, "n m"], negatives: Bool[Tensor, "n m"]
    ) -> tuple[Bool[Tensor, "n m"], Bool[Tensor, "n m"]]:
        """The kept positives and the kept negatives of given scores."""
        for name, mask in (("positives", positives), ("negatives", negatives)):
            if mask.dtype != torch.bool or mask.shape != scores.shape:
                refuse(name, f"a bool matrix of shape {tuple(scores.shape)}", describe(mask))
        scores = scores.detach()
        hardest_positive = torch.where(positives, scores, math.inf).amin(dim=1, keepdim=True)
        hardest_negative = torch.where(negatives, scores, -math.inf).amax(dim=1, keepdim=True)
        return (
            positives & (scores - self.margin < hardest_negative),
            negatives & (scores + self.margin > hardest_positive),
        )

    @torch.no_grad()
    def mine(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"] | None = None,
        *,
        reference: Float[Tensor, "m d"] | None = None,
        reference_labels: Int[Tensor, " m"] | None = None,
        pairs: Pairs | None = None,
    ) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"], Int[Tensor, " q"], Int[Tensor, " q"]]:
        """The kept pairs as indices `(anchors, positives, anchors, negatives)`.

        Self pairs are left out by index when there is no reference.
        """
        self.score.check("embeddings", embeddings, validate=True)
        if pairs is None:
            if labels is None:
                refuse("labels", "labels or pairs", "neither")
            pairs = Pairs.from_labels(labels, reference_labels)
        rows = self.score.prepare(embeddings)
        columns = rows if reference is None else self.score.prepare(reference)
        if (pairs.rows, pairs.columns) != (len(rows), len(columns)):
            refuse("labels", f"labels of {len(rows)} x {len(columns)} examples", f"{pairs.rows} x {pairs.columns}")
        positives, negatives = pairs.masks()
        (scores,) = self.score.scores(rows, columns)
        kept_positives, kept_negatives = self(scores, positives, negatives)
        anchors, others = kept_positives.nonzero(as_tuple=True)
        negative_anchors, negative_others = kept_negatives.nonzero(as_tuple=True)
        return anchors, others, negative_anchors, negative_others

    def __repr__(self) -> str:
        return f"MultiSimilarityMiner(margin={self.margin}, score={self.score!r})"
