"""The first steps in closed form."""

from __future__ import annotations

import pytest
import torch
from tests.density.mixtures import EVERY, MEANS, START, STD, denoiser

from scorecraft.density.gaussian_score import Gaussian, GaussianMixture, agreement, explained_variance, teleport
from scorecraft.density.noise_levels import karras_levels
from scorecraft.density.solvers import DPMSolver2M, Heun, Solver, solve, unguided

LEVELS = karras_levels(18)
GAUSSIAN = Gaussian.of_covariance(torch.zeros(2).double(), torch.tensor([[2, 0.6], [0.6, 0.5]]).double())
X = START * 80


def test_no_step_is_no_change() -> None:
    found = teleport(GAUSSIAN, X, LEVELS, steps=0)
    assert found.x is X
    assert found.levels is LEVELS


@pytest.mark.parametrize("solver", [Heun(), DPMSolver2M()], ids=repr)
def test_a_gaussian_is_where_the_solver_would_come(solver: Solver) -> None:
    fine = karras_levels(400)
    plain = solve(unguided(GAUSSIAN), X, fine, solver=solver)
    start = teleport(GAUSSIAN, X, fine, steps=150)
    assert len(start.levels) == len(fine) - 150
    torch.testing.assert_close(
        solve(unguided(GAUSSIAN), start.x, start.levels, solver=solver), plain, rtol=0, atol=2e-3
    )
    exact = GAUSSIAN.trajectory(X, 80, [0])[0]
    torch.testing.assert_close(plain, exact, rtol=0, atol=2e-3)


def test_a_level_is_the_first_one_below() -> None:
    found = teleport(GAUSSIAN, X, LEVELS, sigma=4.0)
    assert found.skipped == 8
    assert found.levels[0].item() == pytest.approx(3.2568215198)
    at = teleport(GAUSSIAN, X, LEVELS, sigma=float(LEVELS[8]))
    assert at.skipped == 8
    torch.testing.assert_close(found.x, GAUSSIAN.trajectory(X, 80, [float(LEVELS[8])])[0], rtol=0, atol=0)


def test_a_mixture_ends_where_it_would_have() -> None:
    """With its own mean and covariance, from a level well above its spread."""
    mixture = GaussianMixture([Gaussian.isotropic(mean, STD**2) for mean in MEANS])
    sigma = torch.tensor(1.3, dtype=torch.float64)
    torch.testing.assert_close(mixture(START, sigma), denoiser(START, sigma, parts=EVERY), rtol=0, atol=1e-12)
    start = torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 80
    truth = solve(unguided(mixture), start, karras_levels(200), solver=Heun())
    plain = solve(unguided(mixture), start, LEVELS, solver=Heun())
    skipped = teleport(mixture.matched(), start, LEVELS, sigma=8)
    rescaled = start * (skipped.levels[0] / 80)
    found = solve(unguided(mixture), skipped.x, skipped.levels, solver=Heun())
    naive = solve(unguided(mixture), rescaled, skipped.levels, solver=Heun())

    def error(x: torch.Tensor) -> float:
        return float((x - truth).norm(dim=1).mean())

    assert error(found) < 1.5 * error(plain)
    assert error(found) < error(naive) / 2


def test_explained_variance() -> None:
    reference = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    found = explained_variance(reference, torch.tensor([[3.0, 4.0], [2.0, 2.0]]))
    assert found.tolist() == [1, -4]
    with pytest.raises(ValueError, match="argument `approximation`"):
        explained_variance(reference, reference[:1])
    with pytest.raises(ValueError, match="argument `reference`"):
        explained_variance(0 * reference, reference)


def test_agreement_rises_with_noise_and_is_one_for_itself() -> None:
    near_zero = Gaussian.isotropic(torch.zeros(2).double(), 1.0)
    generator = torch.Generator().manual_seed(0)
    data = GAUSSIAN.sample(400, generator)
    found = agreement(GAUSSIAN, {"itself": GAUSSIAN, "isotropic": near_zero}, data, generator, levels=(0.5, 2, 10))
    assert found["itself"].score.tolist() == [1, 1, 1]
    assert found["itself"].clean.tolist() == [1, 1, 1]
    score, clean = found["isotropic"]
    assert (score.diff() > 0).all()
    assert score[-1] > 0.99 > clean[-1]


@pytest.mark.parametrize(
    ("options", "argument"),
    [({}, "steps"), ({"steps": 1, "sigma": 2.0}, "steps"), ({"steps": 18}, "steps"), ({"steps": -1}, "steps"),
     ({"sigma": 0.001}, "sigma"), ({"sigma": 0.0}, "sigma")],
)  # fmt: skip
def test_what_is_refused(options: dict[str, float], argument: str) -> None:
    with pytest.raises(ValueError, match=f"argument `{argument}`"):
        teleport(GAUSSIAN, X, LEVELS, **options)  # type: ignore[arg-type]
