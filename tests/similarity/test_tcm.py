"""The check values and properties of the threshold-consistent margin loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scorecraft.core import tiled
from scorecraft.similarity.tcm import ThresholdConsistentMarginLoss

SCORES = torch.tensor(
    [[1, 0.8, 0.25, 0.6], [0.8, 1, 0.2, 0.5], [0.25, 0.2, 1, 0.4], [0.6, 0.5, 0.4, 1]], dtype=torch.float64
)
LABELS = torch.tensor([0, 0, 1, 1])


def random_batch(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), torch.randint(0, 7, (n,), generator=generator)


def test_check_values() -> None:
    # A cosine at the margin counts in the denominator: 0.5 is a hard negative of excess 0.
    assert ThresholdConsistentMarginLoss().on_scores(SCORES, LABELS).item() == pytest.approx(0.35, abs=1e-12)
    other = ThresholdConsistentMarginLoss(
        positive_margin=0.7, negative_margin=0.25, positive_weight=2, negative_weight=0.5
    )
    assert other.on_scores(SCORES, LABELS).item() == pytest.approx(0.70, abs=1e-12)


def test_every_hard_pair_is_pulled_alike() -> None:
    from scorecraft.core import score_gradients

    x, labels = random_batch()
    pull = score_gradients(ThresholdConsistentMarginLoss(), x, labels)
    for part in (pull[pull > 0], pull[pull < 0]):
        assert part.unique().numel() == 1
        assert part.sum().abs().item() == pytest.approx(1)


def test_invariances() -> None:
    x, labels = random_batch()
    loss = ThresholdConsistentMarginLoss()
    expected = loss(x, labels)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    torch.testing.assert_close(loss(x @ rotation, labels), expected)
    torch.testing.assert_close(loss(7 * x, labels), expected)
    torch.testing.assert_close(loss(torch.cat([x, x]), torch.cat([labels, labels])), expected)


def test_bounds() -> None:
    x, labels = random_batch()
    value = ThresholdConsistentMarginLoss(positive_weight=2, negative_weight=3)(x, labels).item()
    assert 0 <= value <= 2 * (1 + 0.9) + 3 * (1 - 0.5)


def test_an_empty_group_contributes_zero() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = ThresholdConsistentMarginLoss(positive_margin=-1, negative_margin=1)
    for labels in ([0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1]):
        value = loss(x, torch.tensor(labels))
        assert value.item() == 0
        assert torch.equal(torch.autograd.grad(value, x)[0], torch.zeros_like(x))


def test_a_collapsed_batch() -> None:
    x = torch.ones(6, 3, dtype=torch.float64, requires_grad=True)
    value = ThresholdConsistentMarginLoss()(x, torch.arange(6) % 2)
    assert value.item() == pytest.approx(0.5)


def test_positives_and_negatives_come_from_the_reference() -> None:
    x, labels = random_batch(10)
    reference = torch.nn.functional.normalize(torch.randn(15, 3, dtype=torch.float64), dim=1)
    reference_labels = torch.arange(15) % 7
    scores = torch.nn.functional.normalize(x, dim=1) @ reference.T
    same = labels[:, None] == reference_labels
    short, over = 0.9 - scores[same], scores[~same] - 0.5
    expected = short[short >= 0].mean() + over[over >= 0].mean()
    for way in (ThresholdConsistentMarginLoss(), tiled(ThresholdConsistentMarginLoss(), block=4)):
        torch.testing.assert_close(way(x, labels, reference=reference, reference_labels=reference_labels), expected)


def test_counts_beyond_half_precision() -> None:
    x = torch.ones(
        400, 2, dtype=torch.float16, requires_grad=True
    )  # 80,000 ordered negative pairs, float16 ends at 65,504
    value = ThresholdConsistentMarginLoss()(x, torch.arange(400) % 2)
    assert value.item() == pytest.approx(0.5, abs=1e-6)


def test_refused_hyper_parameters() -> None:
    with pytest.raises(ValueError, match="argument `positive_margin`"):
        ThresholdConsistentMarginLoss(positive_margin=math.nan)
    with pytest.raises(ValueError, match="argument `negative_weight`: expected a finite number >= 0"):
        ThresholdConsistentMarginLoss(negative_weight=-1)
