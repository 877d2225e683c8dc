"""General Pair Weighting: any pair loss, read as one number per pair."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from scorecraft.core.objective import Objective
from scorecraft.core.wrappers import score_gradients


class PairWeights(NamedTuple):
    """`w_ij = |d loss / d S_ij|`, apart for the two kinds of pairs; 0 elsewhere."""

    positives: Float[Tensor, "n m"]
    negatives: Float[Tensor, "n m"]


def pair_weights(objective: Objective, embeddings: Tensor, labels: Tensor | None = None, **call: Any) -> PairWeights:
    """The weight each pair has in the gradient of a loss, divided by what its reduction divides by.

    Args:
        objective: any pairwise objective with a scalar reduction.
        embeddings: `[n, d]`.
        labels: `[n]`.
        call: further arguments of the objective's call (`reference`, `pairs`, ...).

    Source: Wang et al. 2019, arXiv 1904.06627, section 3.1 (equation 4).
    """
    pull = score_gradients(objective, embeddings, labels, **call)
    return PairWeights((-pull).clamp(min=0), pull.clamp(min=0))


def general_pair_weighting(
    objective: Objective, embeddings: Tensor, labels: Tensor | None = None, **call: Any
) -> Float[Tensor, ""]:
    """The linear form `F = sum_i [ sum_N w_ij S_ij - sum_P w_ij S_ij ]` with `w` held constant.

    One optimiser step on it is the step on the loss itself: `dF / d embeddings = d loss / d embeddings`.

    Source: Wang et al. 2019, arXiv 1904.06627, section 3.1 (equation 5).
    """
    batch = objective.batch(embeddings, labels, **call)
    (scores,) = objective.dense_scores(batch)
    return (score_gradients(objective, embeddings, labels, **call) * scores).sum()
