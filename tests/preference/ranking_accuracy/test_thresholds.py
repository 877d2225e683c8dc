"""The difficulty of a pair, the loss at which its ranking becomes right, and what other losses say."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from scorecraft.preference.ranking_accuracy import (
    difficulty_summary,
    flip_threshold,
    ipo_threshold,
    log_flip_threshold,
    log_ratio_of_loss,
    margin_threshold,
    pair_difficulty,
    right_by_small_loss,
    rule_agreement,
    smoothed_optimum,
)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, *values: float) -> None:
    torch.testing.assert_close(found, vector(*values), rtol=0, atol=1e-12)


def dpo(gap: Tensor, reference: Tensor, beta: float = 0.1, gamma: float = 1.0) -> Tensor:
    return -F.logsigmoid(beta * (gap - gamma * reference))


def test_check_values() -> None:
    close(flip_threshold(pair_difficulty(vector(-5), beta=0.1)), 0.4740769841801067)
    close(dpo(vector(-1), vector(-5)), 0.5130152523999526)  # above the threshold: ranked wrong
    close(
        flip_threshold(pair_difficulty(vector(-20, 5, 0), beta=0.1)),
        0.1269280110429725, 0.9740769841801067, 0.6931471805599453,
    )  # fmt: skip
    close(pair_difficulty(vector(-5), beta=0.1, gamma=0.5), 0.25)


@given(
    gap=st.floats(-400, 400).filter(lambda m: abs(m) > 1e-6),
    c=st.floats(-400, 400),
    beta=st.floats(0.01, 10),
    gamma=st.floats(0, 2),
)
def test_ranked_right_exactly_at_or_below_the_threshold(gap: float, c: float, beta: float, gamma: float) -> None:
    """Theorem 4.1, in the logarithms of the losses, which do not underflow."""
    gap_, reference = vector(gap), vector(-c)
    threshold = log_flip_threshold(pair_difficulty(reference, beta=beta, gamma=gamma))
    loss = log_flip_threshold(beta * (gap_ - gamma * reference))
    assert (float(loss) <= float(threshold)) == (gap >= 0)
    assert rule_agreement(gap_, reference, beta=beta, gamma=gamma) == 1
    if abs(beta * gap) > 1e-9 and max(beta * gamma * c, beta * (gap + gamma * c)) < 30:
        plain = float(
            flip_threshold(pair_difficulty(reference, beta=beta, gamma=gamma)) - dpo(gap_, reference, beta, gamma)
        )
        assert math.copysign(1, plain) == math.copysign(1, gap)


def test_underflow() -> None:
    """At difficulties above 745 loss and threshold are both 0 and say nothing; logarithms and margins do."""
    difficulty = vector(800.0, 2000.0)
    assert flip_threshold(difficulty).tolist() == [0, 0]
    close(log_flip_threshold(difficulty), -800.0, -2000.0)
    gap, reference = vector(-1.0, 1.0), vector(-8000.0, -8000.0)
    loss, threshold = dpo(gap, reference), flip_threshold(pair_difficulty(reference))
    assert (loss <= threshold).tolist() == [True, True]  # the losses call both right
    assert rule_agreement(gap, reference) == 1


def test_log_threshold_is_continuous() -> None:
    difficulty = torch.linspace(-50, 60, 2001, dtype=torch.float64)
    found = log_flip_threshold(difficulty)
    torch.testing.assert_close(found.exp(), flip_threshold(difficulty), rtol=1e-12, atol=0)
    assert bool((found.diff() < 0).all())
    assert log_flip_threshold(difficulty.float()).dtype == torch.float32


def test_asymptotes() -> None:
    assert float(flip_threshold(vector(30.0))) == pytest.approx(math.exp(-30), rel=1e-12)
    assert float(flip_threshold(vector(-40.0))) == pytest.approx(40.0, rel=1e-12)


@given(gap=st.floats(-100, 100), c=st.floats(-100, 100), gamma=st.floats(0, 2))
def test_a_loss_determines_the_ranking(gap: float, c: float, gamma: float) -> None:
    loss = dpo(vector(gap), vector(-c), gamma=gamma)
    found = log_ratio_of_loss(loss, vector(-c), gamma=gamma)
    assert float(found) == pytest.approx(gap, abs=1e-6)


def test_any_decreasing_loss_of_the_margin() -> None:
    reference = 5 * torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gap = reference + torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    difficulty = pair_difficulty(reference, beta=0.7)
    for loss in (lambda u: -F.logsigmoid(u), lambda u: (-u).exp(), lambda u: -u, lambda u: (1 - u.tanh()) ** 2):
        threshold = margin_threshold(loss, difficulty)
        torch.testing.assert_close(threshold, loss(difficulty))
        assert torch.equal(loss(0.7 * (gap - reference)) <= threshold, gap >= 0)
    torch.testing.assert_close(margin_threshold(lambda u: -F.logsigmoid(u), difficulty), flip_threshold(difficulty))
    hinge = margin_threshold(lambda u: F.relu(1 - u), vector(0.5, 2.0))
    close(hinge, 0.5, 0.0)  # flat beyond its margin: a loss of 0 does not yet say that the second pair is right


@pytest.mark.parametrize("smoothing", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_label_smoothing(smoothing: float, gamma: float) -> None:
    """The optimum is where the gradient of the smoothed loss vanishes, and right exactly when d is within its reach."""
    reference = vector(-120, -20, -5, 0, 20)
    optimum = smoothed_optimum(reference, label_smoothing=smoothing, gamma=gamma)
    gap = optimum.clone().requires_grad_()
    margin = 0.1 * (gap - gamma * reference)
    loss = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
    (slope,) = torch.autograd.grad(loss.sum(), gap)
    torch.testing.assert_close(slope, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-15)
    reach = math.log((1 - smoothing) / smoothing)
    difficulty = pair_difficulty(reference, gamma=gamma)
    assert torch.equal(optimum >= 0, reach >= difficulty)
    assert 0 < int((optimum >= 0).sum()) < 5
    # Not monotone: beyond the optimum the loss grows again, so that no loss tells the ranking.
    worse = 0.1 * (optimum + 50 - gamma * reference)
    assert bool(((-(1 - smoothing) * F.logsigmoid(worse) - smoothing * F.logsigmoid(-worse)) > loss.detach()).all())


def test_ipo() -> None:
    right, sufficient = ipo_threshold(vector(-6, -4, -5, 3), beta=0.1)
    assert right.tolist() == [False, True, True, True]
    close(sufficient, 0.0, 1.0, 0.0, 64.0)


@given(gap=st.floats(-50, 50), reference=st.floats(-50, 50), beta=st.floats(0.05, 5))
def test_what_the_loss_of_ipo_guarantees(gap: float, reference: float, beta: float) -> None:
    right, sufficient = ipo_threshold(vector(reference), beta=beta)
    loss = (gap - reference - 1 / (2 * beta)) ** 2
    optimum = reference + 1 / (2 * beta)
    assert bool(right) == (optimum >= 0)
    if bool(right) and loss <= float(sufficient) * (1 - 1e-12):
        assert gap >= 0
    if not bool(right):
        assert float(sufficient) == 0


def test_a_small_loss_is_enough_where_the_reference_is_right() -> None:
    reference, gap = vector(5, 5, -5, 0), vector(4, -1, 1, 0)
    loss = dpo(gap, reference, beta=0.1)
    found = right_by_small_loss(loss, reference, bound=math.log(2))
    assert found.tolist() == [False, False, False, True]
    generator = torch.Generator().manual_seed(0)
    reference = 10 * torch.randn(2000, generator=generator, dtype=torch.float64)
    gap = reference + 10 * torch.randn(2000, generator=generator, dtype=torch.float64)
    found = right_by_small_loss(dpo(gap, reference), reference)
    assert found.any()
    assert bool((gap[found] >= 0).all())


def test_summary() -> None:
    reference = 30 * torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    difficulty = pair_difficulty(reference)
    found = difficulty_summary(difficulty, reachable_loss=0.3)
    wanted = difficulty.quantile(vector(0, 0.1, 0.25, 0.5, 0.75, 0.9, 1))
    torch.testing.assert_close(found.values, wanted, rtol=0, atol=1e-12)
    assert float(found.wrong) == float((reference < 0).double().mean())
    assert found.out_of_reach is not None
    assert float(found.out_of_reach) == float((flip_threshold(difficulty) < 0.3).double().mean())
    assert difficulty_summary(difficulty).out_of_reach is None
    one = difficulty_summary(vector(2.0), quantiles=(0.0, 0.3, 1.0), reachable_loss=1e-300)
    close(one.values, 2.0, 2.0, 2.0)
    assert one.out_of_reach == 0


@pytest.mark.parametrize(
    "call, line",
    [
        (lambda: pair_difficulty(vector(1), beta=-1), "argument `beta`: expected a finite number > 0"),
        (lambda: pair_difficulty(vector(1), gamma=-1), "argument `gamma`: expected a finite number >= 0"),
        (lambda: flip_threshold(vector(math.nan)), "argument `difficulty`: expected finite numbers"),
        (lambda: margin_threshold(lambda u: u, vector(0, 1)), "argument `loss`: expected a decreasing function"),
        (lambda: margin_threshold(lambda u: u.mean(), vector(0, 1)), "argument `loss`: expected a function that gives"),
        (lambda: log_ratio_of_loss(vector(0), vector(1)), "argument `loss`: expected losses > 0, got 0.0"),
        (lambda: log_ratio_of_loss(vector(1), vector(1, 2)), "argument `reference_log_ratio`: expected"),
        (lambda: right_by_small_loss(vector(1), vector(1), bound=0.7), "argument `bound`: expected a number in (0, "),
        (lambda: smoothed_optimum(vector(1), label_smoothing=0.0), "argument `label_smoothing`: expected a number in"),
        (lambda: smoothed_optimum(vector(1), label_smoothing=0.5), "argument `label_smoothing`: expected a number in"),
        (lambda: ipo_threshold(vector(1), beta=0), "argument `beta`: expected a finite number > 0"),
        (lambda: difficulty_summary(vector(1), quantiles=(2,)), "argument `quantiles`: expected a number in [0, 1]"),
        (lambda: difficulty_summary(vector(1), reachable_loss=0), "argument `reachable_loss`: expected"),
    ],
)  # fmt: skip
def test_refusals(call: Any, line: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(line)):
        call()
