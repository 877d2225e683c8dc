"""Coverage, its loss and its weight as functions of a log-probability, exact from `log p = -1000` to `p = 1`.

With `p` the probability of a whole answer, one of `N` samples is that answer with probability `1 - (1 - p)^N`:

    loss(N, p)   = -log(1 - (1 - p)^N)
    weight(N, p) = -d loss / d log p = N p (1 - p)^(N-1) / (1 - (1 - p)^N)      in [0, 1]

The loss is differentiable as often as its weight, and the weight is differentiable once.

Source: arXiv 2502.07154, section 4.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.autograd.function import once_differentiable

from scorecraft.core.checks import check_values, describe, refuse
from scorecraft.core.reductions import log1mexp
from scorecraft.core.separable import in_working_precision

Budget: TypeAlias = Num[Tensor, "..."] | float
"""A number of samples `N >= 1`, real ones allowed: one for all, or one for each."""

# Below this log(N p) the coverage is N p to the last digit, and its loss -log(N p).
_LINEAR = {torch.float32: -18.0, torch.float64: -36.0}


def coverage_loss(n: Budget, log_probabilities: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`-log(1 - (1 - p)^N)`, the loss of Direct Coverage Optimization; with `N = 1` it is `-log p` itself.

    With one budget per example, the `N_eff` of its step, this is the stepwise form: examples are pairs of a state and
    a tactic. A state then keeps about `N_eff` tactics near probability `1 / N_eff`, and a proof of `k` steps wants
    about `N_eff^k` samples.

    Args:
        n: `N >= 1`, one for all or of a shape that broadcasts.
        log_probabilities: `log p <= 0` of whole answers.

    Returns:
        The losses, in float32 at least, with the gradient `-coverage_weight`. Differentiable twice.

    Raises:
        ValueError: one line: a budget below 1, a log-probability above 0.

    Source: arXiv 2502.07154, section 4.1 (approximate forms: sections 4.3 and 5).
    """
    log_p, samples = _checked(n, log_probabilities)
    return loss_of_checked(log_p, samples)


def coverage_weight(n: Budget, log_probabilities: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`F(N, p) = N p (1 - p)^(N-1) / (1 - (1 - p)^N)`: how much of the gradient of `-log p` is left of an example.

    1 for `N p` far below 1, about 0.58 at `p = 1 / N`, and 0 beyond a few `1 / N`: what is likely enough to be drawn
    once in `N` is left alone. It falls with `N` and with `p`.

    Args:
        n: `N >= 1`, one for all or of a shape that broadcasts.
        log_probabilities: `log p <= 0`.

    Returns:
        Weights in [0, 1], in float32 at least. Differentiable once.

    Raises:
        ValueError: one line: a budget below 1, a log-probability above 0.
    """
    log_p, samples = _checked(n, log_probabilities)
    return _Weight.apply(log_p, samples)  # type: ignore[return-value]


def log_coverage_weight(n: Budget, log_probabilities: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`log F(N, p)`, where `F` itself may be too small for a number; see `coverage_weight`. Not differentiable.

    Args:
        n: `N >= 1`.
        log_probabilities: `log p <= 0`.

    Returns:
        At most 0; `-inf` at `p = 1` for `N > 1`.

    Raises:
        ValueError: one line: a budget below 1, a log-probability above 0.
    """
    log_p, samples = _checked(n, log_probabilities)
    return _log_weight(log_p.detach(), samples)


def pass_at_n(n: Budget, log_probabilities: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`1 - (1 - p)^N`: how likely one of `N` samples is the answer. The mean over a test set is its pass@N.

    Args:
        n: `N >= 1`.
        log_probabilities: `log p <= 0`.

    Returns:
        Probabilities, in float32 at least; outside the graph.

    Raises:
        ValueError: one line: a budget below 1, a log-probability above 0.
    """
    log_p, samples = _checked(n, log_probabilities)
    return -torch.expm1(samples * log1mexp(log_p.detach()))


def loss_of_checked(log_p: Float[Tensor, "..."], samples: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`coverage_loss` of arguments that were looked at before, of one floating-point type."""
    return _Loss.apply(log_p, samples)  # type: ignore[return-value]


def checked_budget(name: str, value: float) -> float:
    """A finite number of samples, at least 1.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 1):
        refuse(name, "a number of samples >= 1", describe(value))
    return float(value)


class _Loss(torch.autograd.Function):
    """`-log(1 - (1 - p)^N)`; its gradient is `-F`."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, samples: Tensor) -> Tensor:
        ctx.save_for_backward(log_p, samples)
        linear = -(log_p + samples.log())
        exact = -log1mexp(samples * log1mexp(log_p))
        return torch.where((samples == 1) | (-linear < _LINEAR[log_p.dtype]), linear, exact)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        log_p, samples = ctx.saved_tensors
        weight: Tensor = _Weight.apply(log_p, samples)  # type: ignore[assignment]
        return _summed_to(-gradients[0] * weight, log_p), None


class _Weight(torch.autograd.Function):
    """`F(N, p)`; its gradient is `F (1 - F) - (N-1) F p / (1 - p)`."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, samples: Tensor) -> Tensor:
        weight = _log_weight(log_p, samples).exp()
        ctx.save_for_backward(log_p, samples, weight)
        return weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        log_p, samples, weight = ctx.saved_tensors
        # F p / (1 - p) as one product of powers: at p = 1 it would be 0 * inf.
        odds = _log_weight(log_p, samples, fewer=2, power=2).exp()
        slope = weight * (1 - weight) - torch.where(samples == 1, 0.0, (samples - 1) * odds)
        # Up to e^-18 (or e^-36) the weight is 1 - (N-1) p / 2, and its slope lost in the rounding of 1 - weight.
        slope = torch.where(log_p + samples.log() < _LINEAR[log_p.dtype], 0.0, slope)
        return _summed_to(gradients[0] * slope, log_p), None


def _log_weight(log_p: Tensor, samples: Tensor, fewer: int = 1, power: int = 1) -> Tensor:
    """`log [N p^power (1 - p)^(N - fewer) / (1 - (1 - p)^N)]`; with ones this is `log F`."""
    log_q = log1mexp(log_p)
    left = samples - fewer
    # (1 - p)^0 is 1 at p = 1 as well, where its logarithm would be 0 * -inf.
    rest = torch.where(left == 0, 0.0, left * torch.where(left == 0, 0.0, log_q))
    exact = samples.log() + power * log_p + rest - log1mexp(samples * log_q)
    if power != 1:
        return exact
    linear = (samples == 1) | (log_p + samples.log() < _LINEAR[log_p.dtype])
    return torch.where(linear, 0.0, exact.clamp(max=0))


def _summed_to(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of what was broadcast."""
    return gradient if gradient.shape == like.shape else gradient.sum_to_size(like.shape)


def _checked(n: Budget, log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(log_probabilities, Tensor) or not log_probabilities.is_floating_point():
        refuse("log_probabilities", "a floating-point tensor", describe(log_probabilities))
    expected = "finite log-probabilities <= 0"
    holds = lambda: log_probabilities.isfinite() & (log_probabilities <= 0)  # noqa: E731
    check_values("log_probabilities", expected, holds, log_probabilities)
    log_p = in_working_precision(log_probabilities)
    if not isinstance(n, Tensor):
        return log_p, log_p.new_full((), checked_budget("n", n))
    if n.dtype == torch.bool or n.is_complex():
        refuse("n", "numbers of samples >= 1", describe(n))
    check_values("n", "numbers of samples >= 1", lambda: n.isfinite() & (n >= 1), n)
    try:
        torch.broadcast_shapes(n.shape, log_p.shape)
    except RuntimeError:
        refuse("n", f"a shape that broadcasts with {tuple(log_p.shape)}", describe(n))
    return log_p, n.to(log_p)
