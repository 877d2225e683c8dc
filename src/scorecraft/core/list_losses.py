"""Three classical list losses, the baselines of relevance: InfoNCE, ListNet and the pairwise logistic loss."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import positive
from scorecraft.core.lists import ListObjective
from scorecraft.core.reductions import masked_logsumexp


class InfoNCELoss(ListObjective):
    """`mean_{p relevant} -log [ e^{s_p / T} / (e^{s_p / T} + sum_{n irrelevant} e^{s_n / T}) ]`.

    The weights are `w_n = softmax` of the negatives against the positive and `w_p = -sum_n w_n`. Other relevant
    candidates of the list are no negatives of `p`. Lists without a relevant candidate are left out of the mean.

    Args:
        temperature: `T` > 0; 1 for logits and for scores that are scaled already.
        reduction: over lists.
        validate: read input values.

    Source: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding", equation 4.
    """

    def __init__(self, *, temperature: float = 1.0, reduction: Reduction = "mean", validate: bool = True) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.temperature = positive("temperature", temperature)

    def list_loss(
        self, scores: Float[Tensor, "... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        relevant = (relevance > 0) & where
        logits = scores / self.temperature
        negatives = masked_logsumexp(logits, where & ~relevant)
        losses = torch.logaddexp(negatives.unsqueeze(-1), logits) - logits
        return mean_where(losses, relevant)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, {super().extra_repr()}"


class ListNetLoss(ListObjective):
    """`-sum_j softmax(relevance)_j log softmax(s)_j`: the cross entropy of the two top-one distributions.

    The weights are `softmax(s)_j - softmax(relevance)_j`. Every list with a candidate counts.

    Args:
        reduction: over lists.
        validate: read input values.

    Source: Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach", section 4.
    """

    def list_loss(
        self, scores: Float[Tensor, "... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        targets = masked_log_softmax(relevance, where).exp()
        return -(targets * torch.where(where, masked_log_softmax(scores, where), 0.0)).sum(dim=-1)

    def counts(self, relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "..."]:
        return where.any(dim=-1)


class PairwiseLogisticLoss(ListObjective):
    """`mean_{(i, j): relevance_i > relevance_j} log(1 + exp(s_j - s_i))`, RankNet's loss; memory `O(c^2)` per list.

    The weight of a pair is `sigmoid(s_j - s_i)`, on `j` with a plus and on `i` with a minus. Lists without two
    different relevances are left out of the mean.

    Args:
        reduction: over lists.
        validate: read input values.

    Source: Burges et al. 2005, "Learning to Rank using Gradient Descent".
    """

    def list_loss(
        self, scores: Float[Tensor, "... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        better = ordered_pairs(relevance, where)
        losses = F.softplus(scores.unsqueeze(-2) - scores.unsqueeze(-1), threshold=40)
        return mean_where(losses.flatten(-2), better.flatten(-2))

    def counts(self, relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "..."]:
        highest = torch.where(where, relevance, -torch.inf).amax(dim=-1)
        return highest > torch.where(where, relevance, torch.inf).amin(dim=-1)


def ordered_pairs(relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "... c c"]:
    """Entry `(i, j)`: candidate `i` is there, `j` is there, and `i` is the more relevant one."""
    both = where.unsqueeze(-1) & where.unsqueeze(-2)
    return both & (relevance.unsqueeze(-1) > relevance.unsqueeze(-2))


def masked_log_softmax(values: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Float[Tensor, "... c"]:
    """`log softmax` over the candidates there are; `-inf` elsewhere."""
    lowest = torch.finfo(values.dtype).min
    kept = torch.where(where, values, lowest)  # a list without candidates has a finite softmax, and is masked next
    return torch.where(where, kept.log_softmax(dim=-1), -torch.inf)


def mean_where(values: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Float[Tensor, "..."]:
    """The mean over the mask; 0, with a zero gradient, where it is empty."""
    return torch.where(where, values, 0.0).sum(dim=-1) / where.sum(dim=-1).clamp(min=1)
