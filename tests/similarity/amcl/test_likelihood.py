"""The likelihood of one pair: its regulariser, its slopes, and the temperatures that are best for it."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.distributions import Independent, Normal
from torch.nn import functional as F

from scorecraft.similarity.amcl import (
    PairLikelihood,
    omega,
    optimal_negative_temperature,
    optimal_positive_temperature,
)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_check_value_of_omega() -> None:
    assert omega(number(0.5), 8).item() == pytest.approx(-0.7725887222, abs=1e-9)


def test_omega_is_least_at_two_over_the_width() -> None:
    tau = number(2 / 8).requires_grad_()
    (slope,) = torch.autograd.grad(omega(tau, 8), tau)
    assert slope.abs() < 1e-12
    assert omega(tau, 8) < min(omega(0.9 * tau, 8), omega(1.1 * tau, 8))


def test_with_full_regulariser_differences_are_ratios_of_gaussian_densities() -> None:
    generator = torch.Generator().manual_seed(0)
    anchor, *others = F.normalize(torch.randn(3, 8, generator=generator, dtype=torch.float64), dim=1)
    pair = PairLikelihood(8, 1.0, 0.01, 2.0)
    exponents, densities = [], []
    for other, tau in zip(others, (0.3, 0.7), strict=True):
        exponents.append(pair.exponent(anchor @ other, number(tau)))
        densities.append(Independent(Normal(anchor, math.sqrt(tau)), 1).log_prob(other))
    torch.testing.assert_close(exponents[0] - exponents[1], densities[0] - densities[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_slopes_are_the_derivatives(beta: float) -> None:
    generator = torch.Generator().manual_seed(1)
    similarity, product = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64).unbind()
    pair = PairLikelihood(8, beta, 0.05, 1.05)
    similarity.requires_grad_()
    product.requires_grad_()
    exponent = pair.exponent(similarity, pair.temperature(product))
    expected = torch.autograd.grad(exponent.sum(), (similarity, product))
    with torch.no_grad():
        found = pair.slopes(similarity, pair.temperature(product))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_check_value_of_the_best_temperature() -> None:
    found = optimal_positive_temperature(number(0.8), beta=1.0, width=8, low=0.01, high=1.0)
    assert found.item() == pytest.approx(0.05, abs=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("similarity", [-0.9, -0.1, 0.05, 0.3, 0.99])
def test_best_temperatures_are_those_a_search_finds(similarity: float, beta: float) -> None:
    low, high, width = 0.05, 1.05, 8
    pair = PairLikelihood(width, beta, low, high)

    def exponent(tau: float) -> float:
        return pair.exponent(number(similarity), number(tau)).item()

    bounds = {"beta": beta, "width": width, "low": low, "high": high}
    positive = optimal_positive_temperature(number(similarity), **bounds).item()
    negative = optimal_negative_temperature(number(similarity), **bounds).item()
    inside = minimize_scalar(lambda tau: -exponent(tau), bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    best = min((inside.x, low, high), key=lambda tau: -exponent(tau))
    assert positive == pytest.approx(best, abs=1e-5)
    assert negative == min((low, high, inside.x), key=exponent)


@pytest.mark.parametrize("similarity", [-0.5, 0.0, 0.6])
def test_the_gradient_vanishes_at_the_best_temperature(similarity: float) -> None:
    pair = PairLikelihood(8, 1.0, 0.01, 2.0)
    tau = optimal_positive_temperature(number(similarity), beta=1.0, width=8, low=0.01, high=2.0).requires_grad_()
    (slope,) = torch.autograd.grad(pair.exponent(number(similarity), tau), tau)
    assert slope.abs() < 1e-10


def test_without_the_interval_both_losses_fall_for_ever() -> None:
    lows = torch.tensor([1e-1, 1e-2, 1e-3, 1e-4], dtype=torch.float64)
    pair = PairLikelihood(8, 0.1, 1e-5, 1.0)
    for loss in (-pair.exponent(number(0.99), lows), pair.exponent(number(-0.2), lows)):
        assert (loss.diff() < 0).all()
        assert loss[-1] < -500
    assert optimal_positive_temperature(number(0.99), beta=0.1, width=8, low=0.02, high=1.0) == 0.02
    assert optimal_negative_temperature(number(-0.2), beta=0.1, width=8, low=0.02, high=1.0) == 0.02


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"beta": -0.1}, "argument `beta`: expected a finite number >= 0, got -0.1"),
        ({"low": 0.0}, "argument `low`: expected a finite number > 0, got 0.0"),
        ({"high": 0.05}, "argument `high`: expected a number above low = 0.05, got 0.05"),
        ({"high": math.inf}, "argument `high`: expected a finite number > 0"),
    ],
)
def test_bad_constants_are_refused(arguments: dict[str, float], message: str) -> None:
    constants = {"beta": 0.1, "width": 8, "low": 0.05, "high": 1.05, **arguments}
    with pytest.raises(ValueError, match=message):
        PairLikelihood(**constants)  # type: ignore[arg-type]
    for function in (optimal_positive_temperature, optimal_negative_temperature):
        with pytest.raises(ValueError, match=message):
            function(number(0.5), **constants)
