"""Plain language-model fine-tuning of the answer: the cross entropy over the whole vocabulary, to compare with."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import choice, describe, refuse
from scorecraft.relevance.two_row_scoring import row_logits, token_rows


def full_vocabulary_loss(
    states: Float[Tensor, "n d"],
    head: Float[Tensor, "v d"],
    relevance: Num[Tensor, " n"] | Bool[Tensor, " n"],
    *,
    yes: int,
    no: int,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """The cross entropy of "yes" or "no" among all tokens: what completion-only fine-tuning computes.

        L = -log [ e^{z_label} / sum_{all tokens} e^z ] = two-token SFT - log P(yes or no)

    The second term moves mass from other tokens to the two. It dies out within some hundred steps, after which the two
    objectives are the same; `SupervisedRerankingLoss` has the first term alone, and needs two rows of the head.

    Args:
        states: `[n, d]`, hidden states at the answer positions (`answer_states`).
        head: `[vocabulary, d]`, the weight of the language-model head.
        relevance: `[n]`; the answer is yes where it is above 0.
        yes: token id of the relevant answer.
        no: token id of the other one.
        reduction: `"mean"`, `"sum"` or `"none"` over documents.

    Raises:
        ValueError: shapes that do not fit, or labels that are not two different tokens of the vocabulary.

    Source: arXiv 2510.14824; the objective that two-token SFT is told apart from.
    """
    choice("reduction", reduction, ("mean", "sum", "none"))
    if states.ndim != 2 or not states.is_floating_point():
        refuse("states", "floating-point states [n, d] at the answer positions", describe(states))
    if relevance.shape != states.shape[:1]:
        refuse("relevance", f"one per state, shape ({len(states)},)", describe(relevance))
    token_rows(head, yes, no)  # two different tokens of this vocabulary
    return F.cross_entropy(row_logits(states, head).T, torch.where(relevance > 0, yes, no), reduction=reduction)
