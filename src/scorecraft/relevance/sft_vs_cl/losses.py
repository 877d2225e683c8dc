"""Supervised fine-tuning, contrast, and the unified loss in which weight and direction are chosen apart."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import choice, positive, probability
from scorecraft.core.list_losses import InfoNCELoss
from scorecraft.core.lists import ListObjective
from scorecraft.relevance.sft_vs_cl.weights import (
    DIRECTIONS,
    WEIGHTS,
    Direction,
    Weight,
    direction_score,
    reranking_weights,
)

Documents: TypeAlias = Literal["mean", "sum"]
"""How the candidates of one query are put together."""


class SupervisedRerankingLoss(ListObjective):
    """Two-token supervised fine-tuning: the answer "yes" to relevant candidates, "no" to the others.

        L = 1/C [ sum_{p relevant} softplus(z_n - z_y) + sum_{j irrelevant} softplus(z_y - z_n) ]

    over the `C` candidates of a query, `z_y, z_n` being their logits of yes and no; the probability is over these two
    tokens alone. Its weights are `1 - sigmoid(z_y - z_n)` and `sigmoid(z_y - z_n)`, of each candidate on its own, and
    its direction is `M_y - M_n` of the head's two rows. Every query with a candidate counts, also one that has only
    relevant or only irrelevant ones. Scores are `[2, ..., c]`: yes, then no.

    Args:
        documents: `"mean"` or `"sum"` over the candidates of a query; over queries `reduction` decides.
        pos_weight: factor of the relevant candidates, > 0; the number of irrelevant ones per relevant one balances the
            two classes, the paper has 1.
        reduction: over queries.
        validate: read input values.

    Raises:
        ValueError: an unknown `documents`, or a `pos_weight` not above zero.

    Source: arXiv 2510.14824, the SFT objective.
    """

    channels: ClassVar[int] = 2

    def __init__(
        self,
        *,
        documents: Documents = "mean",
        pos_weight: float = 1.0,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.documents = choice("documents", documents, ("mean", "sum"))
        self.pos_weight = positive("pos_weight", pos_weight)

    def list_loss(
        self, scores: Float[Tensor, "2 ... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        yes, no = scores
        relevant = relevance > 0
        losses = -F.logsigmoid(torch.where(relevant, yes - no, no - yes))
        losses = torch.where(relevant, self.pos_weight * losses, losses)
        return _over_documents(torch.where(where, losses, 0.0), where, self.documents)

    def counts(self, relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "..."]:
        return where.any(dim=-1)

    def extra_repr(self) -> str:
        return f"documents={self.documents!r}, pos_weight={self.pos_weight}, {super().extra_repr()}"


class ContrastiveRerankingLoss(ListObjective):
    """Contrast: a softmax over the logits of "yes" of one relevant candidate and all irrelevant ones.

        L = mean_{p relevant} -log [ e^{z_y(p) / T} / (e^{z_y(p) / T} + sum_{j irrelevant} e^{z_y(j) / T}) ]

    The logits of "no" take no part. Its weights are the softmax, coupled over the candidates of a query (where all
    irrelevant ones are easy, all are small), and its direction is the head's row `M_y`. A query without an irrelevant
    candidate has loss and gradient zero; one without a relevant one is left out of the mean. Scores are `[2, ..., c]`:
    yes, then no.

    Args:
        temperature: `T` > 0; 1 as in the paper, smaller for scores that are normalised (sensible 0.01 to 1).
        reduction: over queries.
        validate: read input values.

    Raises:
        ValueError: a temperature not above zero.

    Source: arXiv 2510.14824, the CL objective.
    """

    channels: ClassVar[int] = 2

    def __init__(self, *, temperature: float = 1.0, reduction: Reduction = "mean", validate: bool = True) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.contrast = InfoNCELoss(temperature=temperature)

    def list_loss(
        self, scores: Float[Tensor, "2 ... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        return self.contrast.list_loss(scores[0], relevance, where)


class UnifiedRerankingLoss(ListObjective):
    """The unified re-ranking loss: weight and direction of the gradient chosen independently.

        L = - sum_{p relevant} sg(W+_p) t_p + sum_{j irrelevant} sg(W-_j) t_j

    with `t = z_y` (direction `"cl"`, along `M_y`) or `t = z_y - z_n` (direction `"sft"`, along `M_y - M_n`), the
    weights of `reranking_weights`, and `sg` stopping the gradient. It exists for its gradient, which for (cl, cl) is
    that of `ContrastiveRerankingLoss` and for (sft, sft) that of `SupervisedRerankingLoss(documents="sum")`; its value
    is no loss to watch, and the derivative of that value is not what is followed. Rank by `t` (`direction_score`).
    Scores are `[2, ..., c]`: yes, then no.

    Args:
        weight: `"sft"`, `"cl"`, or a probe: `"one"` (collapses) and `"masked"` (0 for what is right by a margin).
        direction: `"sft"` or `"cl"`.
        mask_threshold: of the masked constant, in [0, 1] (the paper names none; sensible 0.02 to 0.3).
        documents: `"sum"` as in the paper, or `"mean"`, over the candidates of a query.
        reduction: over queries.
        validate: read input values.

    Raises:
        ValueError: an unknown weight, direction or `documents`, or a threshold outside of [0, 1].

    Source: arXiv 2510.14824, the unified re-ranking loss and its probes.
    """

    channels: ClassVar[int] = 2
    value_is_the_loss: ClassVar[bool] = False

    def __init__(
        self,
        *,
        weight: Weight = "sft",
        direction: Direction = "sft",
        mask_threshold: float = 0.1,
        documents: Documents = "sum",
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.weight: Weight = choice("weight", weight, WEIGHTS)  # type: ignore[assignment]
        self.direction: Direction = choice("direction", direction, DIRECTIONS)  # type: ignore[assignment]
        self.mask_threshold = probability("mask_threshold", mask_threshold)
        self.documents = choice("documents", documents, ("mean", "sum"))

    def list_loss(
        self, scores: Float[Tensor, "2 ... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        weights = reranking_weights(scores, relevance, where, weight=self.weight, mask_threshold=self.mask_threshold)
        signed = torch.where(relevance > 0, -weights, weights)
        return _over_documents(signed * direction_score(scores, self.direction), where, self.documents)

    def counts(self, relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "..."]:
        return super().counts(relevance, where) if self.weight == "cl" else where.any(dim=-1)

    def extra_repr(self) -> str:
        threshold = f", mask_threshold={self.mask_threshold}" if self.weight == "masked" else ""
        parts = f"weight={self.weight!r}, direction={self.direction!r}{threshold}, documents={self.documents!r}"
        return f"{parts}, {super().extra_repr()}"


def _over_documents(
    values: Float[Tensor, "... c"], where: Bool[Tensor, "... c"], documents: str
) -> Float[Tensor, "..."]:
    """The sum or the mean over the candidates there are; values are zero elsewhere."""
    total = values.sum(dim=-1)
    return total if documents == "sum" else total / where.sum(dim=-1).clamp(min=1)
