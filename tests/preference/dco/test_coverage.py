"""Coverage, its loss and its weight in the log domain."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from scorecraft.preference.dco import coverage_loss, coverage_weight, log_coverage_weight, pass_at_n

DOUBLE = torch.float64
BUDGETS = [1, 1.5, 2, 3, 16, 64.5, 4096]


def log_p(p: float) -> Tensor:
    return torch.tensor(p, dtype=DOUBLE).log()


@pytest.mark.parametrize(
    "n, p, loss, weight",
    [
        (1, 0.3, 1.20397280433, 1.0),
        (4, 0.25, 0.380391470556, 0.617142857143),
        (16, 0.05, 0.580044714860, 0.661994353679),
        (256, 1e-6, 8.27046061082, 0.999872505334),
        (256, 0.01, 0.079384157131, 0.213643994356),
        (64, 0.9, 1.0e-64, 5.76e-62),
    ],
)
def test_check_values(n: float, p: float, loss: float, weight: float) -> None:
    assert coverage_loss(n, log_p(p)).item() == pytest.approx(loss, rel=1e-10)
    assert coverage_weight(n, log_p(p)).item() == pytest.approx(weight, rel=1e-11)
    assert log_coverage_weight(n, log_p(p)).item() == pytest.approx(math.log(weight), rel=1e-9, abs=1e-11)
    assert pass_at_n(n, log_p(p)).item() == pytest.approx(1 - (1 - p) ** n, rel=1e-10)


def test_a_probability_that_underflows() -> None:
    far = torch.tensor([-800.0, -1000.0, -1e5], dtype=DOUBLE)
    assert coverage_loss(256, far)[0].item() == pytest.approx(794.454822555520, rel=1e-14)
    for dtype in (torch.float32, DOUBLE):
        values = far.to(dtype).requires_grad_()
        losses = coverage_loss(256, values)
        assert torch.equal(losses.detach(), -(values.detach() + math.log(256)))
        (pull,) = torch.autograd.grad(losses.sum(), values)
        assert torch.equal(pull, -torch.ones_like(pull))
        assert torch.equal(coverage_weight(256, values.detach()), torch.ones_like(pull))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("n", [1, 2, 16, 4096])
def test_exact_at_both_ends(n: int, dtype: torch.dtype) -> None:
    """Against 500 digits of Python's decimals: a few roundings of the logarithms that the value is made of."""
    tiny, rounding = torch.finfo(dtype).tiny, torch.finfo(dtype).eps
    with localcontext() as context:
        context.prec = 500
        for given in (-1000.0, -30.0, -17.0, -9.0, -2.5, -0.7, -0.69, -0.01, -1e-5, -1e-12):
            value = torch.tensor(given, dtype=dtype)
            p = Decimal(value.item()).exp()
            missed = (1 - p) ** n
            loss, weight = -(1 - missed).ln(), n * p * (1 - p) ** (n - 1) / (1 - missed)
            logarithms = max(1.0, abs(given), abs(float(missed.ln())))
            near = 4 * rounding * logarithms
            assert coverage_loss(n, value).item() == pytest.approx(float(loss), rel=near, abs=tiny)
            assert coverage_weight(n, value).item() == pytest.approx(float(weight), rel=near, abs=tiny)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("n", BUDGETS)
def test_certainty(n: float, dtype: torch.dtype) -> None:
    certain = torch.zeros(1, dtype=dtype, requires_grad=True)
    loss = coverage_loss(n, certain)
    (pull,) = torch.autograd.grad(loss.sum(), certain)
    assert loss.item() == 0
    assert pull.item() == (-1 if n == 1 else 0)
    assert log_coverage_weight(n, certain).item() == (0 if n == 1 else -math.inf)
    assert pass_at_n(n, certain).item() == 1


def test_one_sample_is_cross_entropy_to_the_bit() -> None:
    values = -torch.logspace(-12, 3, 200, dtype=DOUBLE)
    values.requires_grad_()
    losses = coverage_loss(1, values)
    assert torch.equal(losses.detach(), -values.detach())
    (pull,) = torch.autograd.grad(losses.sum(), values)
    assert torch.equal(pull, -torch.ones_like(pull))


@pytest.mark.parametrize("n", BUDGETS)
def test_the_gradient_is_the_weight_and_the_weight_has_one(n: float) -> None:
    values = -torch.logspace(-2, 1, 30, dtype=DOUBLE)
    values.requires_grad_()
    (pull,) = torch.autograd.grad(coverage_loss(n, values).sum(), values)
    assert torch.equal(-pull, coverage_weight(n, values).detach())
    assert torch.autograd.gradcheck(lambda x: coverage_loss(n, x), values)
    assert torch.autograd.gradgradcheck(lambda x: coverage_loss(n, x), values)
    assert torch.autograd.gradcheck(lambda x: coverage_weight(n, x), values)


@pytest.mark.parametrize("n", [1, 2, 3, 4096])
def test_the_second_derivative_is_finite_at_both_ends(n: float) -> None:
    ends = torch.tensor([0.0, -1e-300, -1e-30, -700.0, -1e4], dtype=DOUBLE, requires_grad=True)
    (pull,) = torch.autograd.grad(coverage_loss(n, ends).sum(), ends, create_graph=True)
    (second,) = torch.autograd.grad(pull.sum(), ends)
    wanted = {1: 0.0, 2: 2.0, 3: 0.0, 4096: 0.0}[n]  # of loss ~ log(1 - (1 - p)^n) at p = 1
    assert second.tolist() == pytest.approx([wanted, wanted, wanted, 0.0, 0.0], abs=1e-12)


def test_the_weight_falls_with_p_and_with_n() -> None:
    values = -torch.logspace(-6, 2, 400, dtype=DOUBLE)  # p from 1 down to 0
    rows = torch.stack([coverage_weight(n, values) for n in BUDGETS])
    assert ((rows >= 0) & (rows <= 1)).all()
    assert (rows.diff(dim=1) >= -1e-15).all()
    assert (rows.diff(dim=0) <= 1e-15).all()
    at_share = coverage_weight(1e6, -torch.tensor(1e6, dtype=DOUBLE).log()).item()
    assert at_share == pytest.approx(1 / (math.e - 1), rel=1e-5)  # about 0.58 at p = 1 / N


def test_bounds_by_cross_entropy() -> None:
    values = -torch.logspace(-6, 3, 300, dtype=DOUBLE)
    for n in BUDGETS:
        losses = coverage_loss(n, values)
        assert (losses <= -values + 1e-15).all()
        assert (losses >= -values - math.log(n) - 1e-12).all()


def test_each_example_may_have_its_own_budget() -> None:
    values = torch.tensor([-0.3, -2.0, -7.0], dtype=DOUBLE, requires_grad=True)
    budgets = torch.tensor([1, 8, 32])
    together = coverage_loss(budgets, values)
    for index, n in enumerate((1, 8, 32)):
        assert together[index].item() == coverage_loss(n, values)[index].item()
    (pull,) = torch.autograd.grad(together.sum(), values)
    assert torch.equal(-pull, coverage_weight(budgets, values).detach())
    table = coverage_loss(budgets[:, None], values)
    assert table.shape == (3, 3)
    (summed,) = torch.autograd.grad(table.sum(), values)
    weights = coverage_weight(budgets[:, None].double(), values.detach().expand(3, 3))
    torch.testing.assert_close(-summed, weights.sum(dim=0))
    assert torch.autograd.gradgradcheck(lambda x: coverage_loss(budgets[:, None], x), values)


def test_half_precision_is_computed_in_float32() -> None:
    values = torch.tensor([-3.0, -0.25], dtype=torch.bfloat16, requires_grad=True)
    losses = coverage_loss(16, values)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.detach(), coverage_loss(16, values.detach().float()))
    losses.sum().backward()
    assert values.grad is not None
    assert values.grad.dtype == torch.bfloat16


def test_what_is_refused() -> None:
    fine = torch.tensor([-1.0, -2.0])
    calls = [
        (lambda: coverage_loss(0.5, fine), "argument `n`: expected a number of samples >= 1, got 0.5"),
        (lambda: coverage_weight(math.inf, fine), "argument `n`: expected a number of samples >= 1"),
        (lambda: coverage_weight(True, fine), "argument `n`"),
        (
            lambda: coverage_weight(torch.tensor([1.0, 0.0]), fine),
            "argument `n`: expected numbers of samples >= 1, got 0",
        ),
        (lambda: coverage_weight(torch.ones(3), fine), "argument `n`: expected a shape that broadcasts with (2,)"),
        (lambda: coverage_loss(2, torch.tensor([0.1, -1])), "argument `log_probabilities`: expected finite log-prob"),
        (lambda: pass_at_n(2, torch.tensor([math.nan])), "argument `log_probabilities`: expected finite log-prob"),
        (lambda: log_coverage_weight(2, torch.tensor([1])), "argument `log_probabilities`: expected a floating-point"),
    ]
    for call, line in calls:
        with pytest.raises(ValueError, match=r"^argument") as caught:
            call()
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)
