"""Utilization, alignment, uniformity, and when a mixture acts as a positive."""

from __future__ import annotations

import math

import pytest
import torch
from tests.similarity.metrix.explicit import FORMS, MOVED, batch, masks
from torch.nn import functional as F

from scorecraft.similarity.metrix import (
    PairForm,
    acts_as_positive,
    alignment,
    diagnostics,
    positivity_probability,
    positivity_threshold,
    uniformity,
    utilization,
)


@pytest.fixture(params=["whole", "tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "tiles":
        monkeypatch.setattr(diagnostics, "TILE_ROWS", 7)
        monkeypatch.setattr(diagnostics, "TILE_COLUMNS", 5)


@pytest.mark.usefixtures("tiles")
def test_utilization_by_hand() -> None:
    x, _ = batch(23)
    y, _ = batch(31, seed=1)
    distances = torch.cdist(F.normalize(x, dim=1), F.normalize(y, dim=1)).square()
    assert utilization(x, y).item() == pytest.approx(distances.amin(1).mean().item(), abs=1e-12)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_utilization_of_a_subset_is_zero(dtype: torch.dtype) -> None:
    """Property (d)."""
    y = batch(31)[0].detach().to(dtype)
    assert utilization(y[::3], y).item() < 1e-12
    x = batch(20, seed=1)[0].detach().to(dtype)
    covered = [utilization(x, y[:count]).item() for count in (1, 5, 20, 31)]
    assert covered == sorted(covered, reverse=True)
    assert utilization(x, -x[:1]).item() <= 4 + 1e-9
    assert utilization(x[:1], -x[:1]).item() == pytest.approx(4)


@pytest.mark.usefixtures("tiles")
def test_alignment_and_uniformity_by_hand() -> None:
    x, labels = batch(23)
    squared = torch.cdist(F.normalize(x, dim=1), F.normalize(x, dim=1)).square()
    positives, _ = masks(labels)
    assert alignment(x, labels).item() == pytest.approx(squared[positives].mean().item(), abs=1e-9)
    others = ~torch.eye(23, dtype=torch.bool)
    expected = (-2 * squared[others]).exp().mean().log().item()
    assert uniformity(x).item() == pytest.approx(expected, abs=1e-9)


def test_nothing_to_average_over() -> None:
    x, _ = batch(5)
    assert math.isnan(alignment(x, torch.arange(5)))
    assert math.isnan(uniformity(x[:1]))


def test_check_value_of_the_threshold() -> None:
    form = PairForm.multi_similarity(positive_scale=2, negative_scale=50, threshold=0.5)
    assert positivity_threshold(form, 0.7) == pytest.approx(0.5162941896, abs=1e-9)
    assert positivity_threshold(form, 0.5) == pytest.approx(0.5)
    assert (positivity_threshold(form, 0.0), positivity_threshold(form, 1.0)) == (-math.inf, math.inf)


@pytest.mark.parametrize("lam", [0.05, 0.4, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("form", MOVED.values(), ids=MOVED)
def test_the_sign_of_the_pull_is_that_of_the_derivative(form: PairForm, lam: float) -> None:
    """Of `sum_u lam rho+(s_u) + (1 - lam) rho-(s_u)`, the functions written out by hand."""
    scores = torch.linspace(-1, 1, 400, dtype=torch.float64, requires_grad=True)
    inside = {
        "contrastive": lambda s: -lam * s + (1 - lam) * (s - 0.5).clamp(min=0),
        "binomial_deviance": lambda s: (
            lam * F.softplus(-2 * (s - 0.5), threshold=90) + (1 - lam) * F.softplus(50 * (s - 0.5), threshold=90)
        ),
        "lifted_structure": lambda s: lam * (-s).exp() + (1 - lam) * (s + 2).exp(),
        "multi_similarity": lambda s: lam * (-2 * (s - 0.5)).exp() / 2 + (1 - lam) * (50 * (s - 0.5)).exp() / 50,
        "proxy_anchor": lambda s: lam * (-32 * (s - 0.1)).exp() / 32 + (1 - lam) * (32 * (s + 0.1)).exp() / 32,
    }[form.name](scores)
    (slope,) = torch.autograd.grad(inside.sum(), scores)
    clear = slope.abs() > 1e-9
    assert clear.sum() > 150
    assert torch.equal(acts_as_positive(form, scores, lam)[clear], (slope < 0)[clear])


def test_contrastive_mixtures_of_one_half_above_the_threshold_feel_no_force() -> None:
    form = PairForm.contrastive(threshold=0.5)
    scores = torch.tensor([[0.4, 0.6]])
    assert acts_as_positive(form, scores, 0.5).tolist() == [[True, False]]
    assert acts_as_positive(form, scores, 0.51).tolist() == [[True, True]]


def test_probability_is_the_distribution_function_at_the_threshold() -> None:
    form = FORMS["multi_similarity"]
    scores = torch.tensor([0.1, 0.4, 0.5, 0.51, 0.53, 0.9])
    assert positivity_probability(form, scores, 0.7).item() == pytest.approx(4 / 6)
    assert positivity_probability(form, scores, 1.0).item() == 1
    assert positivity_probability(form, scores, 0.0).item() == 0


def test_bad_input_is_refused_in_one_line() -> None:
    x, labels = batch()
    with pytest.raises(ValueError, match="argument `queries`: expected rows of non-zero norm"):
        utilization(torch.zeros(2, 3), x)
    with pytest.raises(ValueError, match="argument `reference`: expected embeddings of dimension 6"):
        utilization(x, x[:, :4])
    with pytest.raises(ValueError, match="argument `labels`: expected 20 labels"):
        alignment(x, labels[:-1])
    with pytest.raises(ValueError, match="argument `form`: expected one of exponentials"):
        positivity_threshold(FORMS["contrastive"], 0.5)
    with pytest.raises(ValueError, match="argument `form`: expected one of exponentials"):
        positivity_threshold(FORMS["nca"], 0.5)
    with pytest.raises(ValueError, match="argument `lam`"):
        acts_as_positive(FORMS["contrastive"], torch.rand(3), 1.5)
