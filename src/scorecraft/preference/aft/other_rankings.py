"""The detached constraint on other ranking losses: RRHF, PRO and DPO."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.list_losses import ordered_pairs
from scorecraft.core.lists import ListObjective
from scorecraft.core.preference_losses import DPOLoss
from scorecraft.core.preferences import AnswerPairs
from scorecraft.preference.aft.constraints import Constrained, Constraint

_NONE_OR_DETACH = ("none", "detach")


class RRHFLoss(Constrained, ListObjective):
    """`sum_{i better than j} max(0, s_j - s_i)`; with `constraint="detach"`, `s_j` is held constant.

    The weight of a pair in the wrong order is 1, of any other 0. Every question with an answer counts in the mean.
    Memory is `O(k^2)` per question.

    Args:
        constraint: `"none"` or `"detach"`. With the latter the value is not what descends.
        reduction: over questions.
        validate: read input values.

    Source: Yuan et al. 2023, "RRHF: Rank Responses to Align Language Models with Human Feedback without tears",
    equation 2; the constraint: arXiv 2309.02144.
    """

    def __init__(
        self, *, constraint: Constraint = "none", reduction: Reduction = "mean", validate: bool = True
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.constrain(constraint, _NONE_OR_DETACH)

    def list_loss(
        self, scores: Float[Tensor, "... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        worse = scores.detach() if self.constraint == "detach" else scores
        hinges = F.relu(worse.unsqueeze(-2) - scores.unsqueeze(-1))
        return torch.where(ordered_pairs(relevance, where), hinges, 0.0).sum(dim=(-2, -1))

    def counts(self, relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "..."]:
        return where.any(dim=-1)

    def extra_repr(self) -> str:
        return f"constraint={self.constraint!r}, {super().extra_repr()}"


class PROLoss(Constrained, ListObjective):
    """`-sum_k log [ e^{s_k} / sum_{i >= k} e^{s_i} ]`, the best answer first (Plackett-Luce); with
    `constraint="detach"` all `s_i` but `s_k` are held constant in the denominator.

    Equal relevances stay in the order in which they come; a list of equal relevances alone has loss and gradient zero.
    The weight of answer `i` in the choice of `k` is its softmax over the answers from `k` on. Every question with an
    answer counts in the mean.

    Args:
        constraint: `"none"` or `"detach"`. With the latter the value is not what descends.
        reduction: over questions.
        validate: read input values.

    Source: Song et al. 2023, "Preference Ranking Optimization for Human Alignment", equation 5; the constraint:
    arXiv 2309.02144.
    """

    order_invariant: ClassVar[bool] = False

    def __init__(
        self, *, constraint: Constraint = "none", reduction: Reduction = "mean", validate: bool = True
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.constrain(constraint, _NONE_OR_DETACH)

    def list_loss(
        self, scores: Float[Tensor, "... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        ranked = (where & self.better_than_another(relevance, where)).any(dim=-1)
        order = _best_first(relevance, where)
        scores, where = scores.gather(-1, order), where.gather(-1, order)
        lowest = torch.finfo(scores.dtype).min  # in place of -inf, whose cumulated gradient is NaN
        reversed_scores = torch.where(where, scores, lowest).flip(-1)
        behind = (reversed_scores.detach() if self.constraint == "detach" else reversed_scores).logcumsumexp(dim=-1)
        behind = F.pad(behind.flip(-1)[..., 1:], (0, 1), value=lowest)
        losses = torch.logaddexp(scores, behind) - scores
        return torch.where(ranked, torch.where(where, losses, 0.0).sum(dim=-1), 0.0)

    def counts(self, relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "..."]:
        return where.any(dim=-1)

    def receives_gradient(self, relevance: Num[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "... c"]:
        if self.constraint != "detach":
            return where
        order = _best_first(relevance, where)
        chosen = torch.arange(where.shape[-1], device=where.device) < where.sum(dim=-1, keepdim=True) - 1
        ranked = (where & self.better_than_another(relevance, where)).any(dim=-1, keepdim=True)
        return torch.zeros_like(where).scatter(-1, order, chosen & ranked) & where

    def extra_repr(self) -> str:
        return f"constraint={self.constraint!r}, {super().extra_repr()}"


class DetachedDPOLoss(DPOLoss):
    """`DPOLoss` whose gradient passes through the preferred answer alone: the value is the same.

    The weight of a pair is `beta sigmoid(-beta (m - m_ref))`, with a minus on the chosen answer and none on the other.

    Args:
        beta: > 0; how closely the optimum keeps to the reference.
        average_log_probabilities: per token instead of sums.
        reduction: over pairs.
        validate: read input values.

    Source: Rafailov et al. 2023, equation 7; the constraint: arXiv 2309.02144.
    """

    value_is_the_loss: ClassVar[bool] = False

    def pair_loss(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        return super().pair_loss(replace(pairs, rejected=pairs.rejected.detach()))


def _best_first(relevance: Num[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Tensor:
    """The order of falling relevance, stable, with what is not there last."""
    return torch.where(where, -relevance, torch.inf).argsort(dim=-1, stable=True)
