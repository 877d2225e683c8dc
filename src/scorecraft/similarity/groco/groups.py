"""The group ordering loss of given scores: each list has a group of negatives and a group of positives."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import check_values, choice, describe, positive, refuse
from scorecraft.similarity.groco.sorting import Network, reach_group

SMALLEST_LIKELIHOOD = 1e-7
"""Where the likelihood of an element is cut off, and its gradient with it: float32 rounding reaches no further."""


def group_ordering_loss(
    negative_scores: Float[Tensor, "*lists k"],
    positive_scores: Float[Tensor, "*lists p"],
    *,
    steepness: float = 1.0,
    network: Network = "odd_even",
    reduction: Reduction = "mean",
) -> Float[Tensor, "*lists"] | Float[Tensor, ""]:
    """How far the positives of each list are from standing above its negatives.

    The `n = K + P` scores of a list, negatives ascending and then positives ascending, pass a relaxed sorting network.
    With `g_i` the chance that score `i` ends up in the last `P` places (`group_probabilities`),

        L = -1/n [ sum_{negatives} log(1 - g_i) + sum_{positives} log g_i ],

    so the order inside a group is free. Scores enter through their differences alone; both groups receive gradient.
    Likelihoods below 1e-7 are cut off there, with a zero gradient. With one negative `q` and one positive `p` this is
    `-log( arctan(steepness (p - q)) / pi + 1/2 )`.

    The loss of bounded scores has a floor far above zero: with cosines and steepness 1, ten negatives at -1 under a
    positive at 1 still cost 0.147, and the complete inversion 0.264. Watch `ordering_gap` rather than the loss.

    Args:
        negative_scores: `[..., K]`, in any order.
        positive_scores: `[..., P]`, in any order, the same lists.
        steepness: of the comparators, > 0 (sensible 1 to 10 for cosines).
        network: `"odd_even"`, or `"bitonic"` when `K + P` is a power of two.
        reduction: over lists.

    Returns:
        A scalar, or `[...]` with `reduction="none"`. Differentiable once.

    Raises:
        ValueError: scores that are not finite floating-point lists of the same leading shape with at least one score,
            no list at all, a steepness not above zero, or a length the network is not made for.

    Source: Shvetsova et al. 2023, arXiv 2301.02009, section 3.
    """
    choice("reduction", reduction, ("mean", "sum", "none"))
    probabilities = _probabilities(negative_scores, positive_scores, steepness, network)
    is_positive = _is_positive(negative_scores, positive_scores)
    losses = group_cross_entropy(probabilities, is_positive.expand_as(probabilities))
    if reduction == "none":
        return losses.view(negative_scores.shape[:-1])
    return losses.mean() if reduction == "mean" else losses.sum()


def group_probabilities(
    negative_scores: Float[Tensor, "*lists k"],
    positive_scores: Float[Tensor, "*lists p"],
    *,
    steepness: float = 1.0,
    network: Network = "odd_even",
) -> Float[Tensor, "*lists n"]:
    """The chance of every score to end up among the last `P` places of its list; each list's sum to `P`.

    Args and refusals as `group_ordering_loss`.

    Returns:
        `[..., K + P]` in pre-order: negatives ascending, then positives ascending.
    """
    probabilities = _probabilities(negative_scores, positive_scores, steepness, network)
    return probabilities.T.reshape(*negative_scores.shape[:-1], -1)


def ordering_gap(
    negative_scores: Float[Tensor, "*lists k"], positive_scores: Float[Tensor, "*lists p"]
) -> Float[Tensor, "*lists"]:
    """`min positive - max negative` of each list: above zero exactly when its groups are in order."""
    _check(negative_scores, positive_scores)
    return positive_scores.amin(dim=-1) - negative_scores.amax(dim=-1)


def group_cross_entropy(
    probabilities: Float[Tensor, "n b"], is_positive: Bool[Tensor, "n b"], lengths: Int[Tensor, " b"] | None = None
) -> Float[Tensor, " b"]:
    """The mean over each list of `-log g` for positives and `-log(1 - g)` for negatives; 0 for an empty list.

    Args:
        probabilities: `g`, position first.
        is_positive: the group of every element.
        lengths: true lengths of the lists; what follows in a list does not count.
    """
    likelihood = torch.where(is_positive, probabilities, 1 - probabilities).clamp(SMALLEST_LIKELIHOOD, 1)
    if lengths is None:
        return -likelihood.log().mean(dim=0)
    inside = torch.arange(len(likelihood), device=likelihood.device)[:, None] < lengths
    return -torch.where(inside, likelihood, 1).log().sum(dim=0) / lengths.clamp(min=1)


def _probabilities(
    negative_scores: Tensor, positive_scores: Tensor, steepness: float, network: Network
) -> Float[Tensor, "n b"]:
    _check(negative_scores, positive_scores)
    steepness = positive("steepness", steepness)
    # Stable, so that tied scores always receive the same gradients.
    groups = [scores.sort(dim=-1, stable=True).values for scores in (negative_scores, positive_scores)]
    scores = torch.cat(groups, dim=-1)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    values = scores.reshape(-1, scores.shape[-1]).T
    group = _is_positive(negative_scores, positive_scores).to(values.dtype).expand_as(values)
    return reach_group(values, group, steepness=steepness, network=network)


def _is_positive(negative_scores: Tensor, positive_scores: Tensor) -> Bool[Tensor, "n 1"]:
    k, p = negative_scores.shape[-1], positive_scores.shape[-1]
    return torch.arange(k + p, device=negative_scores.device)[:, None] >= k


def _check(negative_scores: Tensor, positive_scores: Tensor) -> None:
    for name, scores in (("negative_scores", negative_scores), ("positive_scores", positive_scores)):
        if not isinstance(scores, Tensor):
            raise TypeError(f"argument `{name}`: expected a tensor, got {type(scores).__name__}")
        if not scores.is_floating_point() or scores.ndim < 1 or scores.numel() == 0:
            refuse(name, "floating-point lists [..., n] of at least one score, and at least one list", describe(scores))
        check_values(name, "finite values only", lambda scores=scores: torch.isfinite(scores).all(), scores)
    if negative_scores.shape[:-1] != positive_scores.shape[:-1]:
        lists = list(negative_scores.shape[:-1])
        refuse("positive_scores", f"the lists of the negatives, [{', '.join(map(str, lists))}, P]",
               describe(positive_scores))  # fmt: skip
