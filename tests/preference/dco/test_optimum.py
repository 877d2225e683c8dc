"""The distribution over answers that covers best."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from scorecraft.preference.dco import optimal_coverage_distribution

POSTERIOR = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


def coverage(weights: Tensor, q: Tensor, n: float) -> Tensor:
    return (weights * (1 - (1 - q) ** n)).sum(dim=-1)


@pytest.mark.parametrize(
    "n, wanted",
    [
        (1, (1.0, 0.0, 0.0)),
        (2, (0.666667, 0.333333, 0.0)),
        (3, (0.585786, 0.414214, 0.0)),
        (8, (0.411037, 0.349732, 0.239231)),
        (64, (0.342086, 0.334808, 0.323106)),
    ],
)
def test_closed_form(n: float, wanted: tuple[float, ...]) -> None:
    assert optimal_coverage_distribution(POSTERIOR, n).tolist() == pytest.approx(wanted, abs=6e-7)


def test_exact_for_two_and_three_samples() -> None:
    assert optimal_coverage_distribution(POSTERIOR, 2).tolist() == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-14)
    root = 2**0.5  # the third answer has no share: (1 - q_1) / (1 - q_2) = sqrt(w_2 / w_1)
    assert optimal_coverage_distribution(POSTERIOR, 3).tolist() == pytest.approx([2 - root, root - 1, 0], abs=1e-14)


@pytest.mark.parametrize("n", [1.5, 2, 4, 32, 1000, 1e6])
def test_conditions_of_the_optimum(n: float) -> None:
    weights = torch.rand(50, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights[:, 3] = 0
    q = optimal_coverage_distribution(weights, n)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (q >= 0).all()
    assert (q[:, 3] == 0).all()
    # One more bit of mass is worth the same wherever there is some, and no more elsewhere.
    worth = weights.log() + (n - 1) * torch.log1p(-q)
    inside = torch.where(q > 0, worth, torch.nan)
    most, least = inside.nan_to_num(-torch.inf).amax(dim=1), inside.nan_to_num(torch.inf).amin(dim=1)
    assert ((most - least).abs() < 1e-9 * max(1, n * 1e-3)).all()
    assert (torch.where(q > 0, -torch.inf, worth).amax(dim=1) <= least + 1e-12).all()


@pytest.mark.parametrize("n", [2, 5])
def test_nothing_covers_better(n: int) -> None:
    q = optimal_coverage_distribution(POSTERIOR, n)
    best = minimize(
        lambda x: -float(coverage(POSTERIOR, torch.from_numpy(x), n)), np.full(3, 1 / 3), bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1}, method="SLSQP", options={"ftol": 1e-14},
    )  # fmt: skip
    assert coverage(POSTERIOR, q, n).item() == pytest.approx(-best.fun, abs=1e-9)
    assert q.tolist() == pytest.approx(best.x.tolist(), abs=1e-4)


def test_confidence_falls_with_the_budget_to_equal_shares() -> None:
    peaks = torch.stack([optimal_coverage_distribution(POSTERIOR, n).max() for n in (1, 1.2, 2, 3, 8, 64, 1e5)])
    assert (peaks.diff() < 0).all()
    assert optimal_coverage_distribution(POSTERIOR, 1e7).tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_degenerate_posteriors() -> None:
    for n in (1, 2, 50):
        assert optimal_coverage_distribution(torch.tensor([0.0, 0.4, 0.0]), n).tolist() == [0, 1, 0]
        assert optimal_coverage_distribution(torch.tensor([3.0]), n).tolist() == [1]
    assert optimal_coverage_distribution(torch.tensor([0.5, 0.5]), 1).tolist() == [1, 0]
    assert optimal_coverage_distribution(torch.ones(4), 9).tolist() == pytest.approx([0.25] * 4, abs=1e-14)
    scaled = optimal_coverage_distribution(100 * POSTERIOR, 8)
    torch.testing.assert_close(scaled, optimal_coverage_distribution(POSTERIOR, 8), rtol=1e-13, atol=0)


def test_what_is_refused() -> None:
    calls = [
        (lambda: optimal_coverage_distribution(POSTERIOR, 0.5), "argument `n`"),
        (lambda: optimal_coverage_distribution(-POSTERIOR, 2), "argument `weights`: expected finite weights >= 0"),
        (lambda: optimal_coverage_distribution(torch.zeros(3), 2), "argument `weights`: expected a weight above 0"),
        (lambda: optimal_coverage_distribution(torch.zeros(2, 0), 2), "argument `weights`"),
        (lambda: optimal_coverage_distribution(torch.tensor([1, 2]), 2), "argument `weights`"),
    ]
    for call, line in calls:
        with pytest.raises(ValueError, match=r"^argument") as caught:
            call()
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)
