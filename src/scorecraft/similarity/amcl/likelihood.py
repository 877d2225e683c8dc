"""What one pair says: its Gaussian log-likelihood as a function of similarity and temperature.

Between unit vectors, with variance `tau` and up to a constant,

    log N(z'; z, tau I) = e(s, tau) = s / tau - Omega(tau),    Omega(tau) = (d' / 2) log tau + 1 / tau

with `s` the cosine and `d'` the width of the vectors. AMCL weighs the regulariser by `beta`; `beta = 1` is the
likelihood itself.

Source: AMCL (arXiv 2310.05615), the derivation of its loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import non_negative, positive, positive_integer, refuse


def omega(temperature: Float[Tensor, "..."], width: int) -> Float[Tensor, "..."]:
    """`Omega(tau) = (d' / 2) log tau + 1 / tau`, which keeps a temperature from degenerating; least at `tau = 2 / d'`.

    Args:
        temperature: `tau > 0`.
        width: `d' >= 1`, the width of a head's output.
    """
    return width / 2 * temperature.log() + 1 / temperature


def bounded_temperature(product: Float[Tensor, "..."], low: float, high: float) -> Float[Tensor, "..."]:
    """`tau = low + (high - low) sigmoid(product)`, with `product` the inner product of two temperature features."""
    return low + (high - low) * product.sigmoid()


def check_bounds(low: float, high: float) -> tuple[float, float]:
    """The interval of temperatures, `0 < low < high`: without it the likelihood is unbounded."""
    low, high = positive("low", low), positive("high", high)
    if high <= low:
        refuse("high", f"a number above low = {low}", high)
    return low, high


@dataclass(frozen=True)
class PairLikelihood:
    """`e(s, tau) = s / tau - beta Omega(tau)` and its derivatives in `s` and in the product behind `tau`.

    Args:
        width: `d' >= 1`.
        beta: strength of the regulariser, >= 0.
        low, high: the interval of temperatures, `0 < low < high`.
    """

    width: int
    beta: float
    low: float
    high: float

    def __post_init__(self) -> None:
        positive_integer("width", self.width)
        non_negative("beta", self.beta)
        check_bounds(self.low, self.high)

    def temperature(self, product: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`tau` in `[low, high]`."""
        return bounded_temperature(product, self.low, self.high)

    def exponent(self, similarity: Float[Tensor, "..."], temperature: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`e(s, tau)`; written so that `1 / tau` is met once."""
        fit = (similarity - self.beta) / temperature
        return fit if self.beta == 0 else torch.sub(fit, temperature.log(), alpha=self.beta * self.width / 2)

    def slopes(
        self, similarity: Float[Tensor, "..."], temperature: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """`de / ds = 1 / tau` and `de / dp = -[(s - beta) / tau + beta d' / 2] / tau * dtau / dp`, `p` the product."""
        by_similarity = temperature.reciprocal()
        by_temperature = (similarity - self.beta).mul_(by_similarity).add_(self.beta * self.width / 2)
        by_product = (temperature - self.low).mul_(self.high - temperature).div_(self.low - self.high)
        return by_similarity, by_product.mul_(by_temperature).mul_(by_similarity)


def optimal_positive_temperature(
    similarity: Float[Tensor, "..."], *, beta: float, width: int, low: float, high: float
) -> Float[Tensor, "..."]:
    """The `tau` in `[low, high]` that makes a positive pair's loss `-e(s, tau)` least.

    `tau* = 2 (beta - s) / (beta d')`, clipped, where `s < beta` (`high` for `beta = 0`); elsewhere the loss rises with
    `tau`, and `low` is best: a good positive always pulls its temperature down to the bound.

    Args:
        similarity: `s` in [-1, 1].
        beta: strength of the regulariser, >= 0.
        width: `d'`.
        low, high: the interval, `0 < low < high`.
    """
    non_negative("beta", beta)
    low, high = check_bounds(low, high)
    if beta == 0:
        return torch.where(similarity < 0, high, low).to(similarity.dtype)
    return (2 * (beta - similarity) / (beta * width)).clamp(low, high)


def optimal_negative_temperature(
    similarity: Float[Tensor, "..."], *, beta: float, width: int, low: float, high: float
) -> Float[Tensor, "..."]:
    """The `tau` in `[low, high]` that makes a negative pair's `e(s, tau)` least: always one of the two ends.

    For `s >= beta` it falls with `tau` (`high` is best). For `s < beta` it has a maximum inside and tends to minus
    infinity at `tau = 0`: the better end is the answer, and the lower bound is what keeps the loss bounded.

    Args and errors are those of `optimal_positive_temperature`.
    """
    pair = PairLikelihood(width, beta, low, high)
    ends = (similarity.new_full((), low), similarity.new_full((), high))
    at_low, at_high = (pair.exponent(similarity, end) for end in ends)
    return torch.where(at_low < at_high, *ends)
