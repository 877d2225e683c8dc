"""One Gaussian at every noise level."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scorecraft.density.gaussian_score import Gaussian

MEAN = torch.tensor([1, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[2, 0.6], [0.6, 0.5]], dtype=torch.float64)
FULL = Gaussian.of_covariance(MEAN, COVARIANCE)


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64)


def near(found: Tensor, expected: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def low_rank(floor: float = 0.3) -> Gaussian:
    generator = torch.Generator().manual_seed(0)
    modes = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64)).Q
    return Gaussian(torch.arange(6, dtype=torch.float64), torch.tensor([4.0, 0.5]).double(), modes, floor=floor)


SAMPLES = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3


def test_check_values() -> None:
    near(FULL.variances, torch.tensor([2.2104686356, 0.2895313644], dtype=torch.float64))
    near(FULL.score(rows((3, 1)), level(0.5)), rows((-0.4519774011, -1.6384180791)))
    near(FULL.score(rows((0, 0)), level(0.5)), rows((0.7909604520, -1.2994350282)))
    near(FULL(rows((3, 1)), level(0.5)), rows((2.8870056497, 0.5903954802)))


def test_check_values_of_the_trajectory() -> None:
    found = FULL.trajectory(rows((60, -100)), 80, [10, 1, 0])
    expected = [(8.4106961027, -12.9463727683), (2.0133939848, -1.8506283417), (1.6512096443, -1.0799903402)]
    near(found[:, 0], rows(*expected))


@pytest.mark.parametrize("gaussian", [FULL, low_rank(), low_rank(0)], ids=["full", "floor", "low rank"])
def test_the_score_is_the_gradient_and_tweedie_holds(gaussian: Gaussian) -> None:
    x = SAMPLES[:, : gaussian.dimension].clone().requires_grad_()
    sigma = torch.tensor([0.3, 1, 2, 5], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(gaussian.log_density(x, sigma).sum(), x)
    near(gaussian.score(x, sigma).detach(), gradient, 1e-11)
    near(gaussian(x, sigma), x + sigma[:, None] ** 2 * gaussian.score(x, sigma), 1e-10)


def test_a_low_rank_is_the_full_covariance() -> None:
    gaussian = low_rank()
    inside = gaussian.modes @ gaussian.modes.T
    covariance = (gaussian.modes * gaussian.variances) @ gaussian.modes.T + 0.3 * (torch.eye(6) - inside)
    full = Gaussian.of_covariance(gaussian.mean, covariance)
    sigma = level(0.7)
    near(gaussian(SAMPLES, sigma), full(SAMPLES, sigma), 1e-12)
    near(gaussian.score(SAMPLES, sigma), full.score(SAMPLES, sigma), 1e-12)
    near(gaussian.log_density(SAMPLES, sigma), full.log_density(SAMPLES, sigma), 1e-11)
    near(gaussian.trajectory(SAMPLES, 9, [2, 0]), full.trajectory(SAMPLES, 9, [2, 0]), 1e-12)
    again = Gaussian.of_covariance(gaussian.mean, covariance, rank=2)
    assert again.floor == pytest.approx(0.3)
    near(again(SAMPLES, sigma), full(SAMPLES, sigma), 1e-12)
    assert Gaussian.of_covariance(gaussian.mean, covariance, rank=2, floor=False).floor == 0


def test_the_density_is_the_textbooks() -> None:
    smoothed = torch.distributions.MultivariateNormal(MEAN, COVARIANCE + 0.25 * torch.eye(2))
    near(FULL.log_density(SAMPLES[:, :2], level(0.5)), smoothed.log_prob(SAMPLES[:, :2]), 1e-12)


@pytest.mark.parametrize("gaussian", [FULL, low_rank(), low_rank(0)], ids=["full", "floor", "low rank"])
def test_trajectories_solve_the_equation_and_compose(gaussian: Gaussian) -> None:
    x = SAMPLES[:, : gaussian.dimension] * 20
    near(gaussian.trajectory(x, 80, [80])[0], x, 1e-12)
    middle = gaussian.trajectory(x, 80, [7])[0]
    near(gaussian.trajectory(middle, 7, [0.4, 0]), gaussian.trajectory(x, 80, [0.4, 0]), 1e-12)
    step = 1e-5
    low, at, high = gaussian.trajectory(x, 80, [2 - step, 2, 2 + step])
    near((high - low) / (2 * step), -2 * gaussian.score(at, level(2)), 1e-6)
    near(gaussian.denoised_trajectory(x, 80, [2])[0], gaussian(at, level(2)), 1e-11)
    near(gaussian.denoised_trajectory(x, 80, [0])[0], gaussian(gaussian.trajectory(x, 80, [0])[0], level(0)), 1e-11)


def test_the_prior_becomes_the_data() -> None:
    """The linear map of the trajectory takes the covariance at the start to that of the data."""
    basis = torch.eye(2, dtype=torch.float64)
    matrix = (FULL.trajectory(MEAN + basis, 80, [0])[0] - MEAN).T
    start = COVARIANCE + 80**2 * torch.eye(2)
    near(matrix @ start @ matrix.T, COVARIANCE, 1e-10)


def test_samples_have_the_moments() -> None:
    gaussian = low_rank()
    found = gaussian.sample(200_000, torch.Generator().manual_seed(0), sigma=0.5)
    assert (found.mean(dim=0) - gaussian.mean).abs().max() < 0.02
    near(((found - gaussian.mean) @ gaussian.modes).var(dim=0), gaussian.variances + 0.25, 0.05)


def test_sensitivity() -> None:
    near(FULL.sensitivity(2), (FULL.variances / (4 + FULL.variances)).sqrt())
    point = Gaussian(MEAN, torch.zeros(2).double(), torch.eye(2).double())
    assert point.sensitivity(0).tolist() == [1, 1]


def test_images_keep_their_shape_and_dtype() -> None:
    gaussian = low_rank()
    images = SAMPLES.reshape(4, 1, 2, 3).float()
    assert gaussian(images, torch.tensor(1.0)).shape == images.shape
    assert gaussian.trajectory(images, 80, [1, 0]).shape == (2, 4, 1, 2, 3)
    assert gaussian.trajectory(images, 80, [1]).dtype == torch.float32
    near(gaussian(images, torch.tensor(1.0)).flatten(1), gaussian(images.double().flatten(1), level(1)), 1e-5)


def test_without_noise() -> None:
    gaussian = low_rank(0)
    projected = gaussian.mean + (SAMPLES - gaussian.mean) @ gaussian.modes @ gaussian.modes.T
    near(gaussian(SAMPLES, level(0)), projected, 1e-12)
    with pytest.raises(ValueError, match="argument `sigma`: expected a noise level above 0"):
        gaussian.score(SAMPLES, level(0))
    assert FULL.score(rows((1, 2)), level(0)).isfinite().all()
    assert math.isfinite(float(FULL.log_density(rows((1, 2)), level(0))))


def test_isotropic() -> None:
    sigma = level(0.5)
    near(Gaussian.isotropic(MEAN).score(rows((3, 1)), sigma), (MEAN - rows((3, 1))) / 0.25)
    near(Gaussian.isotropic(MEAN, 2.0).score(rows((3, 1)), sigma), (MEAN - rows((3, 1))) / 2.25)
    near(Gaussian.isotropic(MEAN)(rows((3, 1)), sigma), MEAN[None])


def test_what_is_refused() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    for call, argument in (
        (lambda: Gaussian(MEAN, torch.ones(2).double(), 2 * eye), "modes"),
        (lambda: Gaussian(MEAN, -torch.ones(2).double(), eye), "variances"),
        (lambda: Gaussian(MEAN, torch.ones(3).double(), eye), "variances"),
        (lambda: Gaussian(MEAN[None], torch.ones(2).double(), eye), "mean"),
        (lambda: Gaussian(MEAN, torch.ones(2).double(), eye, floor=-1), "floor"),
        (lambda: Gaussian.of_covariance(MEAN, eye, rank=3), "rank"),
        (lambda: Gaussian.of_covariance(MEAN, torch.eye(3)), "covariance"),
        (lambda: FULL(SAMPLES, level(1)), "x"),
        (lambda: FULL.trajectory(rows((1, 2)), 0, [0]), "sigma"),
        (lambda: FULL.trajectory(rows((1, 2)), 1, [-1]), "levels"),
    ):
        with pytest.raises(ValueError, match=f"^argument `{argument}`: expected") as caught:
            call()
        assert "\n" not in str(caught.value)
