"""The alignment losses: a soft "every better answer above every worse one", with a constraint."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import check_values, describe, non_negative, refuse
from scorecraft.core.lists import ListObjective
from scorecraft.core.reductions import masked_logsumexp
from scorecraft.preference.aft.constraints import Constrained, Constraint


class _Alignment(Constrained):
    """What the losses on two groups and on rankings share: options, the lists that count, and the sum over pairs."""

    beta: float

    def counts(self, relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "..."]:
        """Every question with an answer; one without a pair adds 0 to the mean."""
        return where.any(dim=-1)

    def over_pairs(
        self,
        scores: Float[Tensor, "... c"],
        better: Float[Tensor, "... #c"],
        worst: Float[Tensor, "... #c"],
        worse: Bool[Tensor, "... c"],
    ) -> Float[Tensor, "..."]:
        """`log(1 + sum_j e^{s_j} e^{better_j} [+ sum_j e^{2 B_j - s_j} e^{better_j}])`, `B_j = worst_j - beta`.

        Args:
            scores: `[..., c]`, `s_j`.
            better: `log sum_i e^{-s_i}` over the answers better than `j`, read where `worse`.
            worst: the lowest score of an answer better than `j`, a constant; finite.
            worse: bool `[..., c]`, the answers that another one is better than.
        """
        pushed = scores.detach() if self.constraint == "detach" else scores
        mass = masked_logsumexp(pushed + better, worse)
        if self.constraint != "boundary":
            return torch.logaddexp(mass, torch.zeros_like(mass))
        pulled = masked_logsumexp(2 * (worst - self.beta) + better.detach() - scores, worse)
        return torch.stack([torch.zeros_like(mass), mass, pulled]).logsumexp(dim=0)


class AFTLoss(_Alignment, ListObjective):
    """The alignment loss of right and wrong answers to a question, in `O(P + N)`:

        none      L = log(1 + sum_p sum_n e^{s_n - s_p})
        detach    the same, with s_n held constant: right answers are pulled up, wrong ones are left alone
        boundary  L = log(1 + sum_p sum_n [e^{s_n - s_p} + e^{2 B - s_p - s_n}]),  B = min_p s_p - beta

    over the right answers `p` (relevance above 0) and the wrong ones `n`; `s` is the mean log-probability of an
    answer's tokens. In the added term only `s_n` has a gradient, so that a wrong answer above `B` is pushed down, one
    below `B` is pulled up, and one at `B` is left alone. Without a constraint (`none`) wrong answers, which are mostly
    good text, are pushed down without end. Only differences of scores count.

    The weight of a pair is `e^{s_n - s_p} / (1 + sum ...)`. Every question with an answer counts in the mean; one that
    has only right or only wrong answers has loss and gradient zero.

    Args:
        constraint: `"none"`, `"detach"` or `"boundary"`. With one of the last two the value is not what descends.
        beta: >= 0, in nats per token, how far below the worst right answer the boundary lies (sensible 0.05 to 0.5).
        reduction: over questions.
        validate: read input values.

    Raises:
        ValueError: an unknown constraint, or a `beta` below zero.

    Source: Wang et al. 2023, arXiv 2309.02144, section 4 (DC: 4.3.1, BC: 4.3.2).
    """

    def __init__(
        self,
        *,
        constraint: Constraint = "detach",
        beta: float = 0.15,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.constrain(constraint)
        self.beta = non_negative("beta", beta)

    def list_loss(
        self, scores: Float[Tensor, "... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        right = (relevance > 0) & where
        some = right.any(dim=-1, keepdim=True)
        worst = torch.where(right, scores.detach(), torch.inf).amin(dim=-1, keepdim=True)
        better = masked_logsumexp(-scores, right).unsqueeze(-1)
        return self.over_pairs(scores, better, torch.where(some, worst, 0.0), where & ~right & some)

    def better_than_another(
        self, relevance: Num[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Bool[Tensor, "... c"]:
        return (relevance > 0) & ((relevance <= 0) & where).any(dim=-1, keepdim=True)

    def extra_repr(self) -> str:
        return f"{_repr(self.constraint, self.beta)}, {super().extra_repr()}"


class RankedAFTLoss(_Alignment, ListObjective):
    """The alignment loss of a ranking of answers, in `O(k log k)`:

        none      L = log(1 + sum_{i better than j} e^{s_j - s_i})
        detach    the same, with s_j held constant
        boundary  L = log(1 + sum_{i better than j} [e^{s_j - s_i} + e^{2 B_j - s_i - s_j}]),
                  B_j = min_{i better than j} s_i - beta

    `i` is better than `j` where its relevance is higher; equal ones make no pair (`relevance_of_ranks` reads ranks). In
    the added term only `s_j` has a gradient. With relevances of 0 and 1 it is `AFTLoss`.

    Args:
        constraint: `"none"`, `"detach"` or `"boundary"`. With one of the last two the value is not what descends.
        beta: >= 0, in nats per token, how far below the worst of the better answers a boundary lies.
        reduction: over questions.
        validate: read input values.

    Raises:
        ValueError: an unknown constraint, or a `beta` below zero.

    Source: Wang et al. 2023, arXiv 2309.02144, section 4 (ranking feedback).
    """

    def __init__(
        self,
        *,
        constraint: Constraint = "detach",
        beta: float = 0.15,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.constrain(constraint)
        self.beta = non_negative("beta", beta)

    def list_loss(
        self, scores: Float[Tensor, "... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        # The best ones first and what is not there last; those better than `j` are all that stand before its equals.
        keys, order = torch.where(where, -relevance, torch.inf).sort(dim=-1, stable=True)
        scores, where = scores.gather(-1, order), where.gather(-1, order)
        before = torch.searchsorted(keys, keys)
        worse, last = where & (before > 0), (before - 1).clamp(min=0)
        lowest = torch.finfo(scores.dtype).min  # an empty list would make a cumulated -inf, whose gradient is NaN
        better = torch.where(where, -scores, lowest).logcumsumexp(dim=-1).gather(-1, last)
        worst = torch.where(where, scores.detach(), torch.inf).cummin(dim=-1).values.gather(-1, last)
        return self.over_pairs(scores, better, torch.where(worse, worst, 0.0), worse)

    def extra_repr(self) -> str:
        return f"{_repr(self.constraint, self.beta)}, {super().extra_repr()}"


def aft_losses(
    scores: Float[Tensor, " n"],
    right: Bool[Tensor, " n"] | Num[Tensor, " n"],
    questions: Int[Tensor, " n"],
    *,
    constraint: Constraint = "detach",
    beta: float = 0.15,
) -> Float[Tensor, " q"]:
    """`AFTLoss` of each question, from flat scores and the question each answer belongs to.

    Args:
        scores: `[n]`, mean log-probabilities.
        right: `[n]`, whether each answer is right.
        questions: int `[n]`, numbered from 0; ragged and in any order.
        constraint: as of `AFTLoss`.
        beta: as of `AFTLoss`.
    """
    return AFTLoss(constraint=constraint, beta=beta, reduction="none")(scores, right, segments=questions)


def ranked_aft_losses(
    scores: Float[Tensor, " n"],
    ranks: Int[Tensor, " n"],
    questions: Int[Tensor, " n"],
    *,
    constraint: Constraint = "detach",
    beta: float = 0.15,
) -> Float[Tensor, " q"]:
    """`RankedAFTLoss` of each question, from flat scores, ranks and the question each answer belongs to.

    Args:
        scores: `[n]`, mean log-probabilities.
        ranks: int `[n]`, smaller is better, equal ones make no pair.
        questions: int `[n]`, numbered from 0; ragged and in any order.
        constraint: as of `RankedAFTLoss`.
        beta: as of `RankedAFTLoss`.
    """
    objective = RankedAFTLoss(constraint=constraint, beta=beta, reduction="none")
    return objective(scores, relevance_of_ranks(ranks), segments=questions)


def relevance_of_ranks(ranks: Int[Tensor, "... c"], where: Bool[Tensor, "... c"] | None = None) -> Int[Tensor, "... c"]:
    """Ranks, of which smaller is better, as relevances >= 0, of which higher is better: the last rank less its own.

    The last rank is that of the whole tensor: within a list only the order and the ties count.

    Args:
        ranks: int `[..., c]`.
        where: bool `[..., c]`, the answers there are; the relevance of the others is 0.

    Raises:
        ValueError: ranks that are not integers, or none of them.
    """
    if ranks.is_floating_point() or ranks.is_complex() or ranks.dtype == torch.bool or ranks.numel() == 0:
        refuse("ranks", "integer ranks, at least one", describe(ranks))
    if where is not None:
        if where.shape != ranks.shape or where.dtype != torch.bool:
            refuse("where", f"a bool tensor of shape {tuple(ranks.shape)}", describe(where))
        ranks = torch.where(where, ranks, torch.where(where, ranks, torch.iinfo(ranks.dtype).min).amax())
    return ranks.amax() - ranks


def mean_log_probabilities(
    sums: Float[Tensor, "..."], tokens: Int[Tensor, "..."], *, validate: bool = True
) -> Float[Tensor, "..."]:
    """`s(c) = (1 / |c|) sum_t log p(c_t | q, c_{<t})`, the score of an answer.

    Args:
        sums: of any shape, log-probabilities of whole answers, in float32 at least (differences of 0.15 count).
        tokens: int, of that shape, how many tokens each answer has, its end included and prompt and padding left out.
        validate: read the values.

    Raises:
        ValueError: an answer without a token, or shapes that do not fit.
    """
    if tokens.shape != sums.shape or tokens.dtype == torch.bool or tokens.is_complex():
        refuse("tokens", f"one token count per answer, shape {tuple(sums.shape)}", describe(tokens))
    if validate:
        check_values("tokens", "at least one token per answer", lambda: tokens >= 1, tokens)
    sums = sums if sums.dtype == torch.float64 else sums.float()
    return sums / tokens


def _repr(constraint: Constraint, beta: float) -> str:
    return f"constraint={constraint!r}" + (f", beta={beta:g}" if constraint == "boundary" else "")
