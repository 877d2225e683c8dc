"""The mixed contrastive loss as the official code has it: distances, averaged over what they leave to do."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.checks import choice, finite, probability
from scorecraft.similarity.metrix.embeddings import KINDS, PairKind, mixed_scores


def pooled_distance_contrastive(
    scores: Float[Tensor, "n n"],
    positives: Bool[Tensor, "n n"],
    negatives: Bool[Tensor, "n n"],
    lam: float,
    *,
    kind: PairKind = "positive_negative",
    positive_margin: float = 0.0,
    negative_margin: float = 0.5,
) -> Float[Tensor, ""]:
    """`mean_{>0} lam [d - m+]_+  +  mean_{>0} (1 - lam) [m- - d]_+`, pooled over all mixtures of the batch.

    `d` is the Euclidean distance of a unit anchor and a mixture scaled to length 1; each mean runs over the terms above
    zero, and is 0 where there are none. This is the official code's form of the contrastive loss; the paper's has
    similarities and plain sums (`PairForm.contrastive`). The `[mixtures]` distances of the batch are held at once.

    Args:
        scores: cosines of the batch against itself.
        positives: which others are positives of an anchor.
        negatives: which are negatives.
        lam: weight of the positive, or of the anchor itself, in [0, 1].
        kind: which pairs are mixed; the code takes the first positive of each anchor only, here all count.
        positive_margin: distance up to which a mixture is near enough.
        negative_margin: distance from which it is far enough.
    """
    probability("lam", lam)
    choice("kind", kind, KINDS)
    if kind == "anchor_negative":
        anchors, second = negatives.nonzero(as_tuple=True)
        first = anchors
    else:
        anchors, first, second = (positives[:, :, None] & negatives[:, None, :]).nonzero(as_tuple=True)
    with_second = scores[anchors, second]
    with_first = torch.ones_like(with_second) if kind == "anchor_negative" else scores[anchors, first]
    similarity = mixed_scores(with_first, with_second, scores[first, second], lam)
    squared = (2 - 2 * similarity).clamp(min=torch.finfo(scores.dtype).tiny)
    distance = squared.sqrt()
    pull = F.relu(lam * (distance - finite("positive_margin", positive_margin)))
    push = F.relu((1 - lam) * (finite("negative_margin", negative_margin) - distance))
    return _mean_of_positive(pull) + _mean_of_positive(push)


def _mean_of_positive(values: Float[Tensor, " q"]) -> Float[Tensor, ""]:
    """The mean of the values above zero, 0 where there are none."""
    return values.sum() / (values > 0).sum().clamp(min=1)
