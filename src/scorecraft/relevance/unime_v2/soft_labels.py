"""The soft-label loss: the candidates of a query distributed as a judge distributes them."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import choice, positive
from scorecraft.core.list_losses import masked_log_softmax
from scorecraft.core.lists import ListObjective

Form = Literal["exact", "released"]

_RELEASED_FLOOR = 1e-8


class SoftLabelAlignmentLoss(ListObjective):
    """Symmetric KL divergence between the softmax of the scores and the softmax of a judge's scores.

    With `P = softmax(u / T)` over the scores `u` of a query's candidates and `Q = softmax(s / T)` over their judge
    scores `s` (the relevance of the list contract, and a constant to the gradient),

        L = 1/2 [ KL(P||Q) + KL(Q||P) ] = 1/2 sum_j (P_j - Q_j) (ln P_j - ln Q_j)

    which is zero exactly where `u - s` is the same for all candidates, and is symmetric in `u` and `s`. The weights
    are `soft_label_weights`. Scores are meant to be cosines in [-1, 1] and judge scores probabilities in [0, 1]; one
    temperature serves both. Every list with a candidate counts in the mean; one with a single candidate is at zero.

    There are no negatives but a query's own: each list is alone, the mean of the losses of micro-batches (or of ranks)
    is the loss of the batch, and nothing holds the geometry between queries. Where long training must not forget it,
    add a term that compares queries with each other's passages, such as `in_batch(InfoNCELoss(), score=...)`.

    The loss grows as `1 / T` without bound where scores and judge disagree (75 nats at the default temperature for a
    list turned upside down): clip gradients.

    Args:
        temperature: `T` > 0 of both softmaxes (sensible 0.02 to 0.1); at 0.02 judge scores 0.05 apart differ by a
            factor of twelve.
        form: `"exact"`, or `"released"` for the official code, which adds 1e-8 inside two of the four logarithms:
            its loss cannot exceed about 18.4, and it has almost no gradient where `P` is below that floor.
        reduction: over lists.
        validate: read input values.

    Raises:
        ValueError: a temperature not above zero, or another form.

    Source: Gu et al. 2025, arXiv 2510.13515, section 3 (equations 4 and 5; the paper calls it JS divergence).
    """

    def __init__(
        self,
        *,
        temperature: float = 0.02,
        form: Form = "exact",
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.temperature = positive("temperature", temperature)
        self.form: Form = choice("form", form, ("exact", "released"))  # type: ignore[assignment]

    def list_loss(
        self, scores: Float[Tensor, "... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        log_p, log_q = _log_distributions(scores, relevance.detach(), where, self.temperature)
        p, q = _chances(log_p, where), _chances(log_q, where)
        if self.form == "exact":
            return ((p - q) * (log_p - log_q)).sum(dim=-1) / 2
        of_judge = q * (log_q - (p + _RELEASED_FLOOR).log())
        of_scores = p * (log_p - (q + _RELEASED_FLOOR).log())
        return (of_judge + of_scores).sum(dim=-1) / 2

    def counts(self, relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "..."]:
        return where.any(dim=-1)

    def extra_repr(self) -> str:
        form = "" if self.form == "exact" else f", form={self.form!r}"
        return f"temperature={self.temperature}{form}, {super().extra_repr()}"


def soft_label_weights(
    scores: Float[Tensor, "... c"],
    judge_scores: Float[Tensor, "... c"],
    where: Bool[Tensor, "... c"] | None = None,
    *,
    temperature: float = 0.02,
) -> Float[Tensor, "... c"]:
    """The weight of each candidate in the exact soft-label loss of its list, in closed form:

        d L / d u_j = 1 / (2 T) [ P_j (ln(P_j / Q_j) - KL(P||Q)) + (P_j - Q_j) ]

    The weights of a list sum to zero.

    Args:
        scores: `[..., c]`, `u`, any finite values.
        judge_scores: `[..., c]`, `s`, finite.
        where: bool `[..., c]`, the candidates there are; the weight of the others is zero.
        temperature: `T` > 0.

    Raises:
        ValueError: a temperature not above zero.
    """
    temperature = positive("temperature", temperature)
    where = torch.ones_like(scores, dtype=torch.bool) if where is None else where
    log_p, log_q = _log_distributions(scores, judge_scores, where, temperature)
    p, q = _chances(log_p, where), _chances(log_q, where)
    ratio = log_p - log_q
    divergence = (p * ratio).sum(dim=-1, keepdim=True)
    return (p * (ratio - divergence) + p - q) / (2 * temperature)


def _log_distributions(
    scores: Tensor, judge_scores: Tensor, where: Bool[Tensor, "... c"], temperature: float
) -> tuple[Float[Tensor, "... c"], Float[Tensor, "... c"]]:
    """`ln P` and `ln Q`; 0 outside `where`, where `-inf` would make `0 * inf` of a probability of zero."""
    log_p = masked_log_softmax(scores / temperature, where)
    log_q = masked_log_softmax(judge_scores / temperature, where)
    return torch.where(where, log_p, 0.0), torch.where(where, log_q, 0.0)


def _chances(logarithms: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Float[Tensor, "... c"]:
    return torch.where(where, logarithms.exp(), 0.0)
