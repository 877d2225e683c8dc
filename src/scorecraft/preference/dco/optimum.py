"""The distribution over answers that covers best with N samples: why a model for large N must not be confident."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import check_values, describe, refuse
from scorecraft.preference.dco.coverage import checked_budget

_STEPS = 200


def optimal_coverage_distribution(weights: Float[Tensor, "... a"], n: float) -> Float[Tensor, "... a"]:
    """The `q` that maximises `sum_i w_i (1 - (1 - q_i)^N)` over distributions:

        q_i = max(0, 1 - (lambda / (N w_i))^(1 / (N - 1))),   lambda such that sum_i q_i = 1

    `w` is the calibrated posterior over answers. With `N = 1` all mass is on the likeliest answer (the first of
    equals); the more samples, the flatter `q`, down to equal shares of all answers with `w_i > 0`. Answers that are too
    unlikely for `N` get none. The sum falls with `lambda`, which is found by bisection of its logarithm.

    Args:
        weights: `w >= 0` along the last axis, not all zero; they need not sum to 1.
        n: `N >= 1`, real numbers allowed.

    Returns:
        Distributions along the last axis, float64.

    Raises:
        ValueError: one line: a budget below 1, negative weights, none above zero.

    Source: arXiv 2502.07154, section 3 (optimal policies); closed form by the conditions of Karush, Kuhn and Tucker.
    """
    samples = checked_budget("n", n)
    if weights.ndim < 1 or not weights.shape[-1] or not weights.is_floating_point():
        refuse("weights", "floating-point weights of answers on the last axis", describe(weights))
    w = weights.detach().double()
    check_values("weights", "finite weights >= 0", lambda: w.isfinite() & (w >= 0), w)
    check_values("weights", "a weight above 0 on the last axis", (w.sum(dim=-1) > 0).all, w)
    if samples == 1:
        return torch.nn.functional.one_hot(w.argmax(dim=-1), w.shape[-1]).double()
    log_nw = math.log(samples) + w.log()
    possible = w > 0

    def shares(log_lambda: Tensor) -> Tensor:
        exponents = (log_lambda.unsqueeze(-1) - log_nw) / (samples - 1)
        return torch.where(possible, torch.expm1(exponents.clamp(max=0)).abs(), 0.0)

    high = log_nw.amax(dim=-1)
    # Here the least likely of the answers has half of the mass, and the sum is 1 or more: with two answers or more.
    low = torch.where(possible, log_nw, math.inf).amin(dim=-1) - (samples - 1) * math.log(2)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        above = shares(middle).sum(dim=-1) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    alone = possible.sum(dim=-1, keepdim=True) == 1
    return torch.where(alone, possible.double(), shares((low + high) / 2))
