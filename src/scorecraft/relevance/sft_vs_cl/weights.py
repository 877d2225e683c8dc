"""How much each candidate counts: the weights of supervised fine-tuning, of contrast, and two probes."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from scorecraft.core.checks import check_values, choice, describe, probability, refuse
from scorecraft.core.reductions import masked_logsumexp

Weight: TypeAlias = Literal["sft", "cl", "one", "masked"]
Direction: TypeAlias = Literal["sft", "cl"]
WEIGHTS = ("sft", "cl", "one", "masked")
DIRECTIONS = ("sft", "cl")


@torch.no_grad()
def reranking_weights(
    scores: Float[Tensor, "2 ... c"],
    relevance: Num[Tensor, "... c"] | Bool[Tensor, "... c"],
    where: Bool[Tensor, "... c"] | None = None,
    *,
    weight: Weight = "sft",
    mask_threshold: float = 0.1,
) -> Float[Tensor, "... c"]:
    """The weights `W+` of relevant and `W-` of irrelevant candidates, outside of the graph; 0 where there is none.

    Both objectives move the hidden state of a candidate by `weight x direction`, along `+D` if it is relevant and along
    `-D` if not. With `z_y, z_n` the logits of yes and no:

    | `weight` | `W+` of a relevant candidate | `W-` of an irrelevant one |
    |---|---|---|
    | `"sft"` | `1 - sigmoid(z_y - z_n)` | `sigmoid(z_y - z_n)` |
    | `"cl"` | `sum_n softmax(z_y)_n` over the irrelevant ones | `softmax(z_y)_n` |
    | `"one"` | 1 | 1 |
    | `"masked"` | 0 if `s > 1 - mask_threshold`, else 1 | 0 if `s < mask_threshold`, else 1; `s = sigmoid(z_y - z_n)` |

    With several relevant candidates the contrastive weights are those of the mean over them, each softmax with the
    other relevant candidates left out. Every weight lies in [0, 1]; those of SFT depend on one candidate each, those of
    contrast balance, with the same sum over relevant and over irrelevant ones.

    Args:
        scores: `[2, ..., c]`, the logits of yes and of no, finite inside `where`.
        relevance: `[..., c]`, relevant where above 0.
        where: bool `[..., c]`, the candidates there are.
        weight: which.
        mask_threshold: of the masked constant, in [0, 1] (sensible 0.02 to 0.3).

    Raises:
        ValueError: an unknown weight, a threshold outside of [0, 1], or shapes that do not fit.

    Source: arXiv 2510.14824, the decomposition of both gradients and the weight probes.
    """
    choice("weight", weight, WEIGHTS)
    probability("mask_threshold", mask_threshold)
    if scores.ndim < 2 or len(scores) != 2 or not scores.is_floating_point():
        refuse("scores", "floating-point logits [2, ..., candidates]: yes, then no", describe(scores))
    if relevance.shape != scores.shape[1:]:
        refuse("relevance", f"one per candidate, shape {tuple(scores.shape[1:])}", describe(relevance))
    where = torch.ones_like(relevance, dtype=torch.bool) if where is None else where
    relevant = (relevance > 0) & where
    scores = scores if scores.dtype == torch.float64 else scores.float()
    yes, no = torch.where(where, scores, 0.0)
    if weight == "cl":
        return contrastive_weights(yes, relevant, where & ~relevant)
    if weight == "one":
        return where.to(yes.dtype)
    # sigmoid(-x) and not 1 - sigmoid(x): the small weights are the ones to keep exact.
    wrong = torch.where(relevant, no - yes, yes - no).sigmoid()
    weights = wrong if weight == "sft" else (wrong >= mask_threshold).to(yes.dtype)
    return torch.where(where, weights, 0.0)


def contrastive_weights(
    scores: Float[Tensor, "... c"], relevant: Bool[Tensor, "... c"], irrelevant: Bool[Tensor, "... c"]
) -> Float[Tensor, "... c"]:
    """The weights of a softmax over one relevant candidate and all irrelevant ones, averaged over the relevant ones.

    `W+_p = e^N / (e^{s_p} + e^N) / P` and `W-_n = mean_p e^{s_n} / (e^{s_p} + e^N)`, with `N` the log-sum-exp of the
    irrelevant scores; 0 where one of the two groups is empty.
    """
    mass = masked_logsumexp(scores, irrelevant).unsqueeze(-1)
    count = relevant.sum(dim=-1, keepdim=True).clamp(min=1)
    total = torch.logaddexp(scores, mass)  # of the softmax in which a candidate is the relevant one
    pull = torch.where(relevant, (mass - total).exp() / count, 0.0)
    inverse = masked_logsumexp(-total, relevant).unsqueeze(-1)
    push = torch.where(irrelevant, (scores + inverse).exp() / count, 0.0)
    return pull + push


def first_is_relevant(
    scores: Float[Tensor, "... c"], where: Bool[Tensor, "... c"] | None = None
) -> Bool[Tensor, "... c"]:
    """The relevance of lists whose one relevant candidate stands in column 0, as in (query, positive, negatives...).

    Args:
        scores: `[..., c]`, one score channel (of the two logits either one: `scores[0]`); `-inf` is padding.
        where: bool `[..., c]`, the candidates there are.

    Raises:
        ValueError: column 0 of some list is padding, so that the list has no positive.
    """
    first = scores[..., 0] != -torch.inf
    first = first if where is None else first & where[..., 0]
    check_values("scores", "a positive in column 0 of every list (not padding)", first.all, first)
    return (torch.arange(scores.shape[-1], device=scores.device) == 0).expand(scores.shape)


def direction_score(scores: Float[Tensor, "2 ... c"], direction: Direction) -> Float[Tensor, "... c"]:
    """The score `t` whose gradient is the direction: `z_y` for contrast, `z_y - z_n` for SFT; rank by it, too.

    Args:
        scores: `[2, ..., c]`, the logits of yes and of no.
        direction: `"sft"` or `"cl"`.

    Source: arXiv 2510.14824, the unified re-ranking loss.
    """
    choice("direction", direction, DIRECTIONS)
    return scores[0] if direction == "cl" else scores[0] - scores[1]
