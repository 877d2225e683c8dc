"""The log-sigmoid of a centred reward, its slope, and the baselines."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from scorecraft.core.reductions import log1mexp
from scorecraft.preference.reward_transform import log_sigmoid_centred, log_sigmoid_slope, thresholded, truncated

DOUBLE = torch.float64


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=DOUBLE)


def test_check_values() -> None:
    found = log_sigmoid_centred(values(1, -2, 8), 0.5)
    assert found.tolist() == pytest.approx([-0.474076984, -2.57888973, -5.52931475e-4], rel=2e-9)
    assert log_sigmoid_centred(values(0.5), 0.5).item() == pytest.approx(-0.6931471805599453, rel=1e-15)
    assert log_sigmoid_slope(values(0.5), 0.5).item() == 0.5


def test_against_fifty_digits() -> None:
    rewards = values(-1000, -104, -17, -1.5, 0, 0.3, 17, 40, 700)
    with localcontext() as context:
        context.prec = 400
        for reward, found in zip(rewards.tolist(), log_sigmoid_centred(rewards, 1.0).tolist(), strict=True):
            exact = -(1 + (-(Decimal(reward) - 1)).exp()).ln()
            assert found == pytest.approx(float(exact), rel=1e-14)


def test_moving_rewards_and_reference_together_changes_nothing() -> None:
    rewards, reference = values(1.5, -2.25, 8), values(0.5, 0, 3)
    moved = log_sigmoid_centred(rewards + 64, reference + 64)
    assert torch.equal(moved, log_sigmoid_centred(rewards, reference))
    assert torch.equal(
        log_sigmoid_centred(rewards, reference, scale=2), log_sigmoid_centred(2 * rewards, 2 * reference)
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_increasing_concave_and_below_both_asymptotes(scale: float) -> None:
    rewards = torch.linspace(-8, 8, 161, dtype=DOUBLE)
    found = log_sigmoid_centred(rewards, 0.5, scale=scale)
    rises = found.diff()
    assert (rises > 0).all()
    assert (rises.diff() < 0).all()
    assert (found < 0).all()
    assert (found < scale * (rewards - 0.5)).all()
    assert log_sigmoid_centred(values(-50), 0.0).item() == pytest.approx(-50, abs=1e-15)


def test_slope_is_the_derivative_and_no_gradient_reaches_the_reference() -> None:
    rewards = values(-30, -2, 0.5, 3, 30).requires_grad_()
    reference = values(0.5).requires_grad_()
    (slope,) = torch.autograd.grad(log_sigmoid_centred(rewards, reference, scale=1.7).sum(), rewards)
    torch.testing.assert_close(log_sigmoid_slope(rewards.detach(), 0.5, scale=1.7), slope, rtol=1e-13, atol=0)
    assert slope[2].item() == pytest.approx(0.85, rel=1e-15)
    assert not torch.autograd.grad(log_sigmoid_centred(rewards, reference).sum(), reference, allow_unused=True)[0]
    assert torch.autograd.gradcheck(
        lambda r: log_sigmoid_centred(r, 0.5, scale=1.7), rewards[1:4].detach().requires_grad_()
    )


def test_extremes_in_single_and_half_precision() -> None:
    found = log_sigmoid_centred(torch.tensor([20.0, -1000.0, 1000.0, -104.5]), torch.tensor([0.0, 1.0, 1.0, 0.0]))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([-2.0611537e-9, -1001, 0, -104.5], rel=1e-6)
    for half in (torch.bfloat16, torch.float16):
        # The difference to a reference that half precision cannot hold is taken in float32.
        near = log_sigmoid_centred(torch.tensor([20.0], dtype=half), torch.tensor([20.03125]))
        assert near.dtype == torch.float32
        assert near.item() == pytest.approx(-math.log1p(math.exp(0.03125)), rel=1e-6)


def test_baselines() -> None:
    rewards = values(-3, 0.5, 0.75, 4)
    assert truncated(rewards, 0.5).tolist() == [-3.5, 0, 0, 0]
    assert thresholded(rewards, 0.5).tolist() == [0, 0, 1, 1]
    steep = log_sigmoid_centred(rewards, 0.5, scale=1e4) / 1e4
    torch.testing.assert_close(steep, truncated(rewards, 0.5), rtol=0, atol=1e-4)


def test_log1mexp_at_both_ends() -> None:
    given = values(-1e-300, -1e-20, -1e-9, -0.1, -0.693, -0.694, -5, -40, -800)
    with localcontext() as context:
        context.prec = 700
        wanted = [float((1 - Decimal(one).exp()).ln()) for one in given.tolist()]
    assert log1mexp(given).tolist() == pytest.approx(wanted, rel=1e-14)
    leaf = given[:7].clone().requires_grad_()
    log1mexp(leaf).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 1 / torch.expm1(-given[:7]).neg(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("given", "options", "line"),
    [
        ((values(1, math.nan), 0.0), {}, "argument `rewards`: expected finite values only, got nan at [1]"),
        ((values(1, math.inf), 0.0), {}, "argument `rewards`: expected finite values only, got inf at [1]"),
        ((values(1), math.nan), {}, "argument `reference`: expected finite values only, got"),
        (
            (values(1, 2), values(1, 2, 3)),
            {},
            "argument `reference`: expected a shape that broadcasts to (2,), got (3,)",
        ),
        ((values(1), values(1, 2)), {}, "argument `reference`: expected a shape that broadcasts to (1,), got (2,)"),
        ((torch.tensor([1]), 0.0), {}, "argument `rewards`: expected a floating-point tensor, got int64 tensor"),
        (([1.0], 0.0), {}, "argument `rewards`: expected a floating-point tensor, got [1.0] (list)"),
        ((values(1), 0.0), {"scale": 0}, "argument `scale`: expected a finite number > 0, got 0 (int)"),
        ((values(1), 0.0), {"scale": -1.0}, "argument `scale`: expected a finite number > 0, got -1.0 (float)"),
    ],
)
def test_refusals(given: tuple[Tensor, Tensor], options: dict[str, float], line: str) -> None:
    with pytest.raises(ValueError, match=r"^argument") as caught:
        log_sigmoid_centred(*given, **options)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_nothing_at_all() -> None:
    assert log_sigmoid_centred(torch.empty(0, 3), 0.0).shape == (0, 3)
