"""Solvers on pairs of estimates."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from tests.density.mixtures import EVERY, START, denoiser
from torch import Tensor

from scorecraft.density.noise_levels import karras_levels, with_zero
from scorecraft.density.solvers import (
    DPMSolver2M,
    DPMSolver2SAncestral,
    Estimate,
    Euler,
    EulerAncestral,
    Heun,
    Solver,
    ancestral_levels,
    solve,
    trajectory,
    unguided,
)

ESTIMATE = unguided(denoiser, parts=EVERY)
ORDERS = [(Euler(), 1), (EulerAncestral(eta=0), 1), (Heun(), 2), (DPMSolver2M(), 2), (DPMSolver2SAncestral(eta=0), 2)]


def exact(levels: Tensor) -> Tensor:
    """By a thousand steps of Heun's method."""
    fine = torch.logspace(math.log10(levels[0]), math.log10(levels[-1]), 1001, dtype=torch.float64)
    return solve(ESTIMATE, START * levels[0], fine, solver=Heun())


@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=lambda one: repr(one))
def test_the_error_falls_with_the_order(solver: Solver, order: int) -> None:
    errors = []
    for steps in (32, 64):
        levels = torch.logspace(0.5, -0.5, steps + 1, dtype=torch.float64)
        found = solve(ESTIMATE, START * levels[0], levels, solver=solver, generator=torch.Generator())
        errors.append((found - exact(levels)).norm().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("solver", [one for one, _ in ORDERS], ids=lambda one: repr(one))
def test_a_pair_moves_the_end_of_the_step_by_what_sets_it_apart(solver: Solver) -> None:
    """`S(x; origin) + (clean - origin)` at the last evaluation."""
    levels = torch.tensor([3.0, 1.0], dtype=torch.float64)
    seen: list[Tensor] = []

    def apart(x: Tensor, sigma: Tensor) -> Estimate:
        origin = ESTIMATE(x, sigma).origin
        seen.append(torch.full_like(x, len(seen) + 1.0))
        return Estimate(origin + seen[-1], origin)

    plain = solve(ESTIMATE, START, levels, solver=solver, generator=torch.Generator())
    found = solve(apart, START, levels, solver=solver, generator=torch.Generator())
    torch.testing.assert_close(found, plain + seen[-1], rtol=0, atol=1e-14)


def test_two_points_of_a_line_are_met_exactly_by_2m() -> None:
    """A denoised path that is linear in log sigma, which the extrapolation continues."""
    levels = torch.tensor([8.0, 4.0, 1.0], dtype=torch.float64)

    def linear(x: Tensor, sigma: Tensor) -> Estimate:
        clean = torch.ones_like(x) * sigma.log()
        return Estimate(clean, clean)

    first, second = trajectory(linear, START, levels, solver=DPMSolver2M())
    slope = (math.log(4) - math.log(8)) / math.log(2)  # per unit of -log sigma
    midpoint = math.log(4) + slope * math.log(4) / 2
    expected = first.x / 4 + (1 - 1 / 4) * midpoint
    torch.testing.assert_close(second.x, expected, rtol=1e-14, atol=0)


def test_ancestral_levels_keep_the_variance() -> None:
    for eta in (0.0, 0.3, 1.0):
        down, up = ancestral_levels(3.0, 1.0, eta)
        assert down**2 + up**2 == pytest.approx(1)
    assert ancestral_levels(3.0, 1.0, 0.0) == (1.0, 0.0)
    assert ancestral_levels(3.0, 0.0, 1.0) == (0.0, 0.0)


@pytest.mark.parametrize("solver", [EulerAncestral(), DPMSolver2SAncestral()], ids=repr)
def test_ancestral_steps_keep_the_distribution(solver: Solver) -> None:
    """On one standard Gaussian, whose denoiser is `x / (1 + sigma^2)`."""

    def gaussian(x: Tensor, sigma: Tensor) -> Estimate:
        clean = x / (1 + sigma**2)
        return Estimate(clean, clean)

    generator = torch.Generator().manual_seed(0)
    levels = karras_levels(400, sigma_min=0.02, sigma_max=20)
    start = levels[0] * torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    found = solve(gaussian, start, levels, solver=solver, generator=generator)
    assert found.std().item() == pytest.approx(1, abs=0.02)


def test_moments_tell_where_the_trajectory_is() -> None:
    levels = karras_levels(5, sigma_max=10)
    moments = list(trajectory(ESTIMATE, START, levels, solver=Euler()))
    assert [one.step for one in moments] == [0, 1, 2, 3, 4]
    assert [one.sigma for one in moments] == levels[1:].tolist()
    assert torch.equal(moments[-1].x, moments[-1].estimate.clean)


@pytest.mark.parametrize("solver", [*(one for one, _ in ORDERS), EulerAncestral(), DPMSolver2SAncestral()], ids=repr)
def test_rows_do_not_touch_and_the_seed_decides(solver: Solver) -> None:
    levels = karras_levels(6, sigma_max=10)

    def run(rows: slice, seed: int) -> Tensor:
        noise = torch.Generator().manual_seed(seed)
        return solve(unguided(denoiser, parts=EVERY[rows]), START[rows], levels, solver=solver, generator=noise)

    assert torch.equal(run(slice(None), 3), run(slice(None), 3))
    if solver.stochastic and solver.eta > 0:  # type: ignore[attr-defined]
        assert not torch.equal(run(slice(None), 3), run(slice(None), 4))
    else:
        torch.testing.assert_close(run(slice(None), 3)[1:2], run(slice(1, 2), 3), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    for solver, _ in ORDERS:
        found = solve(ESTIMATE, START.to(dtype), karras_levels(4), solver=solver, generator=torch.Generator())
        assert found.dtype == dtype
        assert found.isfinite().all()


def refused() -> Iterator[tuple[str, Tensor, Tensor, Solver]]:
    levels = karras_levels(3)
    yield "argument `levels`: expected finite noise levels >= 0 that fall strictly", START, levels.flip(0), Euler()
    yield "argument `levels`: expected finite noise levels >= 0", START, torch.tensor([1.0, -1.0]), Euler()
    yield "argument `levels`: expected a row of at least two noise levels", START, levels[:1], Euler()
    yield "argument `x`: expected a floating-point sample", START.long(), levels, Euler()
    yield "argument `generator`: expected a torch.Generator beside EulerAncestral", START, levels, EulerAncestral()


@pytest.mark.parametrize(("line", "x", "levels", "solver"), list(refused()), ids=lambda one: None)
def test_what_is_refused(line: str, x: Tensor, levels: Tensor, solver: Solver) -> None:
    with pytest.raises(ValueError, match="^" + line.replace("(", r"\(")) as caught:
        solve(ESTIMATE, x, levels, solver=solver)
    assert "\n" not in str(caught.value)


def test_refused_eta() -> None:
    with pytest.raises(ValueError, match="argument `eta`"):
        EulerAncestral(eta=1.5)
    with pytest.raises(ValueError, match="argument `levels`"):
        solve(ESTIMATE, START, with_zero(torch.tensor([2.0, 2.0])), solver=Euler())
