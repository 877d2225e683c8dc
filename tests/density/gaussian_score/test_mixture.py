"""Mixtures of Gaussians and of points."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scorecraft.density.gaussian_score import Gaussian, GaussianMixture, PointMixture

EYE = torch.eye(2, dtype=torch.float64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


MIXTURE = GaussianMixture(
    [Gaussian.of_covariance(vector(-1, 0), 0.25 * EYE), Gaussian.of_covariance(vector(1, 0), vector(0.04, 1).diag())],
    vector(0.25, 0.75),
)
POINTS = torch.stack([vector(0, 0), vector(2, 0), vector(0, 1)])
X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def near(found: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_check_values() -> None:
    x, sigma = vector(0.2, 0.3)[None], vector(0.3)[0]
    near(MIXTURE.log_density(x, sigma), vector(-3.2625610070))
    near(MIXTURE.score(x, sigma), vector(3.0345803736, -0.4708019465)[None])


def test_check_values_of_points() -> None:
    mixture = PointMixture(POINTS)
    found = mixture.score(vector(0.5, 0.5)[None], vector(1.0)[0])
    near(found, vector(-0.1892751930, -0.0776812017)[None])
    weights = vector(0.4223187983, 0.1553624035, 0.4223187983)
    near(mixture(vector(0.5, 0.5)[None], vector(1.0)[0]), (weights @ POINTS)[None], 1e-9)


@pytest.mark.parametrize("mixture", [MIXTURE, PointMixture(POINTS), PointMixture(POINTS, block=1)], ids=repr)
def test_the_score_is_the_gradient_and_tweedie_holds(mixture: GaussianMixture | PointMixture) -> None:
    x = X.clone().requires_grad_()
    sigma = vector(0.3, 0.7, 1, 2, 9)
    (gradient,) = torch.autograd.grad(mixture.log_density(x, sigma).sum(), x)
    near(mixture.score(x, sigma).detach(), gradient)
    near(mixture(x, sigma), x + sigma[:, None] ** 2 * mixture.score(x, sigma), 1e-9)


def test_equal_components_are_one() -> None:
    one = MIXTURE.components[1]
    mixture = GaussianMixture([one, one, one])
    near(mixture(X, vector(0.4)[0]), one(X, vector(0.4)[0]))
    near(mixture.log_density(X, vector(0.4)[0]), one.log_density(X, vector(0.4)[0]))


def test_components_without_variance_are_points() -> None:
    flat = GaussianMixture([Gaussian(point, torch.zeros(2).double(), EYE) for point in POINTS])
    for sigma in (0.01, 0.3, 5):
        near(flat(X, vector(sigma)[0]), PointMixture(POINTS, exact_distances=True)(X, vector(sigma)[0]))
    near(flat.log_density(X, vector(0.3)[0]), PointMixture(POINTS).log_density(X, vector(0.3)[0]))


def test_the_matched_gaussian_has_the_moments() -> None:
    found = MIXTURE.matched()
    near(found.mean, vector(0.5, 0))
    covariance = (found.modes * found.variances) @ found.modes.T
    near(covariance, 0.25 * 0.25 * EYE + 0.75 * vector(0.04, 1).diag() + vector(0.75, 0).diag(), 1e-12)


def test_far_points_and_no_weight_stay_finite() -> None:
    far = torch.full((1, 2), 1e4, dtype=torch.float64)
    assert MIXTURE(far, vector(0.1)[0]).isfinite().all()
    assert PointMixture(POINTS)(far, vector(0.1)[0]).isfinite().all()
    certain = GaussianMixture(MIXTURE.components, vector(1, 0))
    near(certain(X, vector(0.5)[0]), MIXTURE.components[0](X, vector(0.5)[0]))
    reversed_ = GaussianMixture(MIXTURE.components, vector(0, 1))
    near(reversed_(X, vector(0.5)[0]), MIXTURE.components[1](X, vector(0.5)[0]))
    near(certain.posterior(X, vector(0.5)[0]), vector(1, 0).expand(5, 2))


def test_ties_share_the_weight() -> None:
    points = torch.stack([vector(-1, 0), vector(1, 0)])
    near(PointMixture(points)(vector(0, 3)[None], vector(1e-3)[0]), vector(0, 0)[None])


def test_blocks_do_not_change_the_result() -> None:
    points = torch.randn(1000, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = points[:7] + 0.1
    sigma = vector(0.5)[0]
    near(PointMixture(points, block=64)(x, sigma), PointMixture(points, block=1000)(x, sigma), 1e-12)
    assert PointMixture(points)(x, sigma).shape == (7, 3, 4)


def test_what_is_refused() -> None:
    one = MIXTURE.components[0]
    for call, argument in (
        (lambda: GaussianMixture([]), "components"),
        (lambda: GaussianMixture([one, Gaussian.of_covariance(torch.zeros(3), torch.eye(3))]), "components"),
        (lambda: GaussianMixture([one], vector(0.5)), "weights"),
        (lambda: GaussianMixture([one, one], vector(-0.5, 1.5)), "weights"),
        (lambda: GaussianMixture([one, one], vector(0, 0)), "weights"),
        (lambda: PointMixture(POINTS[:0]), "points"),
        (lambda: PointMixture(POINTS)(X, vector(0.0)[0]), "sigma"),
        (lambda: PointMixture(POINTS)(torch.ones(1, 3), vector(1.0)[0]), "x"),
        (lambda: PointMixture(POINTS, block=0), "block"),
    ):
        with pytest.raises(ValueError, match=f"^argument `{argument}`: expected") as caught:
            call()
        assert "\n" not in str(caught.value)
