"""Weights that are held constant: of sampled chains of thought (DCO_a), and of proofs made of steps."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.core.checks import check_values, describe, probability, refuse
from scorecraft.preference.dco.coverage import Budget, coverage_weight


def sampled_coverage_weight(
    n: Budget, success_rates: Float[Tensor, "..."], *, threshold: float = 0.1
) -> Float[Tensor, "..."]:
    """`F(N, p_hat)` of a share of right answers among sampled chains of thought, and 0 from `threshold` on (DCO_a).

    The probability of an answer sums over all chains of thought and is estimated by `p_hat`, the share of right answers
    among `N_MC` (64) samples of the model as it is. Where none was right the weight is 1, its limit. With `n = 1` this
    is a filter that keeps hard examples and nothing else.

    Args:
        n: `N >= 1`.
        success_rates: `p_hat` in [0, 1].
        threshold: in [0, 1]; examples of this rate and above get 0 and are to be dropped.

    Returns:
        Weights in [0, 1], outside the graph.

    Raises:
        ValueError: one line: a budget below 1, rates or a threshold outside [0, 1].

    Source: arXiv 2502.07154, section 5.
    """
    probability("threshold", threshold)
    if not isinstance(success_rates, Tensor) or not success_rates.is_floating_point():
        refuse("success_rates", "floating-point rates", describe(success_rates))
    rates = success_rates.detach()
    check_values("success_rates", "rates in [0, 1]", lambda: (rates >= 0) & (rates <= 1), rates)
    tried = rates > 0
    weights = coverage_weight(n, torch.where(tried, rates, 1.0).log())
    return torch.where(rates >= threshold, 0.0, torch.where(tried, weights, 1.0))


def proof_log_probabilities(
    steps: Float[Tensor, " s"], proofs: Int[Tensor, " s"], count: int | None = None
) -> Float[Tensor, " p"]:
    """`sum_i log p(y_i | x_i)` over the steps of each proof; differentiable.

    Args:
        steps: log-probabilities of tactics `[s]`, at most 0.
        proofs: int `[s]`, the proof each step belongs to, from 0.
        count: how many proofs there are; one more than the largest number where left out.

    Raises:
        ValueError: one line: shapes that differ, numbers that are no proof's.
    """
    if proofs.shape != steps.shape or steps.ndim != 1 or proofs.is_floating_point() or proofs.dtype == torch.bool:
        refuse("proofs", f"an integer per step, shape {tuple(steps.shape)}", describe(proofs))
    total = int(proofs.max()) + 1 if count is None else count
    check_values("proofs", f"numbers in [0, {total})", lambda: (proofs >= 0) & (proofs < total), proofs)
    return steps.new_zeros(total).index_add(0, proofs, steps)


def whole_proof_weights(n: Budget, steps: Float[Tensor, " s"], proofs: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
    """`F(N, prod_i p_i)` of the proof that a step belongs to: the weight of each of its steps' cross entropies.

    Where all steps of a proof are in the batch, `DirectCoverageLoss` on `proof_log_probabilities` has the same
    gradient and a value that is the loss. This is for steps that are examples of their own, spread over batches.

    Args:
        n: `N >= 1`.
        steps: log-probabilities of tactics `[s]`, at most 0.
        proofs: int `[s]`, the proof each step belongs to, from 0.

    Returns:
        Weights in [0, 1], outside the graph.

    Raises:
        ValueError: one line naming the argument, what was expected and what came.

    Source: arXiv 2502.07154, section 4.3.
    """
    return coverage_weight(n, proof_log_probabilities(steps.detach(), proofs))[proofs]
