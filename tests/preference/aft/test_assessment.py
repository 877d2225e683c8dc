"""Assessment accuracy, perplexities and correlation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import roc_auc_score

from scorecraft.preference.aft import assessment_accuracy, group_perplexities, pearson_correlation, perplexity


def test_accuracy_by_hand() -> None:
    scores = torch.tensor([[-0.5, -0.8, -0.6, -0.8], [-1.0, -2.0, -3.0, -4.0]])
    labels = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    # -0.5 above both, -0.8 below one and level with the other.
    assert assessment_accuracy(scores, labels).item() == pytest.approx(2.5 / 4)
    assert assessment_accuracy(scores, labels, ties="wrong").item() == pytest.approx(0.5)
    each = assessment_accuracy(scores, labels, reduction="none")
    assert each[0] == pytest.approx(0.625)
    assert each[1].isnan()
    assert assessment_accuracy(scores, labels, reduction="sum").item() == pytest.approx(0.625)
    assert assessment_accuracy(scores[1:], labels[1:]).isnan()
    where = torch.tensor([[True, False, True, True], [True] * 4])
    assert assessment_accuracy(scores, labels, where) == 1
    assert not assessment_accuracy(scores.requires_grad_(), labels).requires_grad


def test_accuracy_is_the_area_under_the_curve_of_each_question() -> None:
    random = torch.Generator().manual_seed(0)
    scores = (8 * torch.rand(20, 12, generator=random)).round() / 4 - 3  # with ties
    labels = (torch.rand(20, 12, generator=random) < 0.4).long()
    labels[:, 0], labels[:, 1] = 1, 0
    wanted = [roc_auc_score(label, score) for label, score in zip(labels.numpy(), scores.numpy(), strict=True)]
    found = assessment_accuracy(scores.double(), labels, reduction="none")
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-12)
    flat = assessment_accuracy(
        scores.double().flatten(), labels.flatten(), segments=torch.arange(20).repeat_interleave(12)
    )
    assert flat.item() == pytest.approx(np.mean(wanted), abs=1e-12)


def test_accuracy_of_a_ranking_counts_every_ordered_pair() -> None:
    scores, grades = torch.tensor([-0.4, -0.7, -0.2, -0.9]), torch.tensor([2, 1, 1, 0])
    assert assessment_accuracy(scores, grades).item() == pytest.approx(4 / 5)


def test_perplexities() -> None:
    scores, labels = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]), torch.tensor([[1, 0], [1, 1]])
    assert perplexity(torch.tensor(-math.log(7.0))).item() == pytest.approx(7)
    found = group_perplexities(scores, labels)
    assert found.right.item() == pytest.approx((math.e + math.e**3 + math.e**4) / 3)
    assert found.wrong.item() == pytest.approx(math.e**2)
    where = torch.tensor([[True, False], [True, True]])
    assert group_perplexities(scores, labels, where).wrong.isnan()


def test_correlation() -> None:
    random = torch.Generator().manual_seed(0)
    first = torch.rand(9, generator=random, dtype=torch.float64)
    second = first + torch.rand(9, generator=random, dtype=torch.float64)
    assert pearson_correlation(first, second).item() == pytest.approx(pearsonr(first, second).statistic, abs=1e-14)
    assert pearson_correlation(first, -3 * first).item() == pytest.approx(-1, abs=1e-14)
    assert pearson_correlation(first, torch.full((9,), 0.1, dtype=torch.float64)).isnan()


def test_what_is_refused() -> None:
    scores, labels = torch.tensor([-1.0, -2.0]), torch.tensor([1, 0])
    for call, message in (
        (lambda: assessment_accuracy(scores, labels, ties="right"), "argument `ties`: expected one of"),
        (lambda: assessment_accuracy(scores, labels, reduction="median"), "argument `reduction`: expected one of"),
        (lambda: assessment_accuracy(scores, labels[:1]), "argument `relevance`: expected one per candidate"),
        (lambda: pearson_correlation(scores[:1], scores[:1]), "argument `first`: expected two or more finite numbers"),
        (lambda: pearson_correlation(scores, torch.rand(3)), "argument `second`: expected 2 numbers, as many"),
    ):
        with pytest.raises(ValueError, match="^" + message):
            call()
