"""The whole objective: fine-tuning on the reference answer, and the alignment of the sampled ones beside it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from scorecraft.core.checks import choice, non_negative, refuse
from scorecraft.core.likelihoods import LikelihoodObjective, NegativeLogLikelihoodLoss
from scorecraft.core.lists import ListObjective
from scorecraft.preference.aft.losses import mean_log_probabilities

ReferenceLoss: TypeAlias = Literal["sum", "mean"]
REFERENCE_LOSSES = ("sum", "mean")


class AlignmentFineTuning(nn.Module):
    """`L = L_VFT + lambda * L_align`, averaged over questions, with `L_VFT = -sum_t log p(c_t | q, c_{<t})`.

    `L_VFT` (vanilla fine-tuning) is of the reference answer, which may itself be one of the answers. A question without
    a right or without a wrong answer contributes `L_VFT` alone.

    Args:
        alignment: any list objective reduced to one number.
        weight: lambda >= 0 (sensible 0.1 to 2).
        reference: `"sum"` over the reference's tokens, as in the paper, or their `"mean"`, the loss of most trainers.
        likelihood: what is taken of the log-probability of the reference; with uneven batches on several ranks,
            `across_ranks(NegativeLogLikelihoodLoss())`, and `alignment` likewise.

    Raises:
        ValueError: a weight below zero, an objective that is not reduced.

    Source: Wang et al. 2023, arXiv 2309.02144, section 4.
    """

    def __init__(
        self,
        alignment: ListObjective,
        *,
        weight: float = 1.0,
        reference: ReferenceLoss = "sum",
        likelihood: LikelihoodObjective | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(alignment, ListObjective):
            got = type(alignment).__name__
            raise TypeError(f"argument `alignment`: expected a list objective, got {got}")
        likelihood = NegativeLogLikelihoodLoss() if likelihood is None else likelihood
        for name, objective in (("alignment", alignment), ("likelihood", likelihood)):
            if objective.reduction == "none":
                refuse(name, "an objective reduced to one number", repr(objective))
        self.alignment = alignment
        self.likelihood = likelihood
        self.weight = non_negative("weight", weight)
        self.reference: ReferenceLoss = choice("reference", reference, REFERENCE_LOSSES)  # type: ignore[assignment]

    @property
    def objectives(self) -> list[nn.Module]:
        """The two terms."""
        return [self.alignment, self.likelihood]

    def forward(
        self,
        scores: Float[Tensor, "..."],
        relevance: Num[Tensor, "..."] | Bool[Tensor, "..."],
        where: Bool[Tensor, "..."] | None = None,
        *,
        reference_log_probabilities: Float[Tensor, " q"],
        reference_tokens: Int[Tensor, " q"] | None = None,
        segments: Int[Tensor, " n"] | None = None,
    ) -> Tensor:
        """The objective of a batch of questions.

        Args:
            scores: `[q, c]`, mean log-probabilities of the answers, or flat `[n]` with `segments`.
            relevance: of each answer: 1 and 0, or grades.
            where: bool `[q, c]`, the answers there are.
            reference_log_probabilities: `[q]`, of the whole reference answers, at most 0.
            reference_tokens: int `[q]`, their lengths; with `reference="mean"`.
            segments: the question of each answer, see `ListObjective`.

        Raises:
            ValueError: one line naming the argument, what was expected and what came.
        """
        if self.reference == "mean":
            if reference_tokens is None:
                refuse("reference_tokens", "the number of tokens of each reference", "none")
            reference_log_probabilities = mean_log_probabilities(reference_log_probabilities, reference_tokens)
        fine_tuning = self.likelihood(reference_log_probabilities, tokens=reference_tokens)
        return fine_tuning + self.weight * self.alignment(scores, relevance, where, segments=segments)

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}, reference={self.reference!r}"
