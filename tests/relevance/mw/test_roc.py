"""ROC curve and its area: closed form, scikit-learn, ties, streams, and what has no curve."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_curve
from torch import Tensor

from scorecraft.relevance.mw import AUCHistogram, per_query_auc, pooled_aoc, pooled_auc, roc_curve
from scorecraft.relevance.mw.streaming import bin_of


def sample(n: int = 500, *, ties: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    relevance = torch.rand(n, generator=generator) < 0.2
    scores = torch.randn(n, generator=generator, dtype=torch.float64) + relevance
    return (2 * scores).round() / 2 if ties else scores, relevance


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_area_equals_scikit_learn(ties: bool, share: float) -> None:
    scores, relevance = sample(ties=ties)
    if share > 0.5:
        scores, relevance = -scores, ~relevance
    expected = roc_auc_score(relevance, scores)
    assert pooled_auc(scores, relevance).item() == pytest.approx(expected, abs=1e-14)
    assert pooled_aoc(scores, relevance).item() == pytest.approx(1 - expected, abs=1e-14)
    curve = roc_curve(scores, relevance)
    assert curve.auc.item() == pytest.approx(expected, abs=1e-14)
    for rate in (0.05, 0.3, 0.5, 1.0):
        partial = roc_auc_score(relevance, scores, max_fpr=rate) if rate < 1 else expected
        assert curve.partial_auc(rate).item() == pytest.approx(partial, abs=1e-13)
    false, true, thresholds = sklearn_curve(relevance, scores, drop_intermediate=False)
    torch.testing.assert_close(curve.false_positive_rate, torch.from_numpy(false))
    torch.testing.assert_close(curve.true_positive_rate, torch.from_numpy(true))
    torch.testing.assert_close(curve.thresholds, torch.from_numpy(thresholds))


@pytest.mark.parametrize(
    "positives, negatives, auc",
    [((1, 0), (0.5, -1), 0.75), ((1, 1), (1, 0), 0.75), ((0.8, 0.3), (0.5, 0.1, -0.2), 5 / 6), ((-400,), (400,), 0.0)],
)
def test_check_values(positives: tuple[float, ...], negatives: tuple[float, ...], auc: float) -> None:
    scores = torch.tensor([*positives, *negatives], dtype=torch.float64)
    relevance = torch.arange(len(scores)) < len(positives)
    assert pooled_auc(scores, relevance).item() == pytest.approx(auc, abs=1e-15)
    assert pooled_auc(scores, ~relevance).item() == pytest.approx(1 - auc, abs=1e-15)  # with the roles exchanged


def test_check_values_of_the_curve() -> None:
    scores, relevance = torch.tensor([0.9, 0.4, 0.6, 0.1]), torch.tensor([1, 1, 0, 0])
    curve = roc_curve(scores, relevance)
    points = list(zip(curve.false_positive_rate.tolist(), curve.true_positive_rate.tolist(), strict=True))
    assert points == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    torch.testing.assert_close(curve.thresholds, torch.tensor([math.inf, 0.9, 0.6, 0.4, 0.1]))
    assert curve.auc.item() == 0.75
    assert curve.partial_auc(0.5).item() == pytest.approx(0.6666666667, abs=1e-9)
    assert curve.partial_auc(1.0).item() == 0.75


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_threshold_is_the_smallest_score_within_the_rate(ties: bool, rate: float) -> None:
    scores, relevance = sample(200, ties=ties)
    negatives = scores[~relevance]
    allowed = [float(t) for t in scores if (negatives >= t).double().mean() <= rate]
    curve = roc_curve(scores, relevance)
    threshold = curve.threshold_at(rate).item()
    assert threshold == min(allowed, default=math.inf)
    accepted = (scores[relevance] >= threshold).double().mean()
    assert curve.true_positive_rate_at(rate).item() == pytest.approx(accepted.item())


def test_no_score_is_strict_enough() -> None:
    curve = roc_curve(torch.tensor([1.0, 0.5, 2.0]), torch.tensor([1, 1, 0]))
    assert curve.threshold_at(0).item() == math.inf
    assert curve.true_positive_rate_at(0).item() == 0


@pytest.mark.parametrize("ties", [False, True])
def test_per_query_equals_each_query_alone(ties: bool) -> None:
    scores, relevance = sample(12 * 20, ties=ties)
    scores, relevance = scores.view(3, 4, 20), relevance.view(3, 4, 20).clone()
    where = torch.rand(3, 4, 20, generator=torch.Generator().manual_seed(2)) < 0.9
    relevance[0, 0] = False
    relevance[1, 2] = True
    found = per_query_auc(scores, relevance, where, reduction="none")
    assert found.shape == (3, 4)
    each = []
    for s, r, w, auc in zip(*(x.flatten(0, 1) for x in (scores, relevance, where)), found.flatten(), strict=True):
        alone = pooled_auc(s, r, w)
        torch.testing.assert_close(auc, alone, rtol=0, atol=1e-15, equal_nan=True)
        each.append(alone)
    assert found[0, 0].isnan()
    assert found[1, 2].isnan()
    torch.testing.assert_close(per_query_auc(scores, relevance, where), torch.stack(each).nanmean())
    shift = torch.randn(3, 4, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shifted = scores + 100 * shift
    torch.testing.assert_close(per_query_auc(shifted, relevance, where), per_query_auc(scores, relevance, where),
                               rtol=0, atol=1e-3 if ties else 1e-12)  # fmt: skip
    assert (pooled_auc(shifted, relevance, where) - pooled_auc(scores, relevance, where)).abs() > 0.01


@pytest.mark.parametrize("relevance", [[1, 1, 1], [0, 0, 0]])
def test_one_class_has_no_area(relevance: list[int]) -> None:
    scores, labels = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(relevance)
    histogram = AUCHistogram().update(scores, labels).result()
    curve = roc_curve(scores, labels)
    for value in (pooled_auc(scores, labels), pooled_aoc(scores, labels), per_query_auc(scores, labels), *histogram,
                  curve.auc, curve.partial_auc(0.5)):  # fmt: skip
        assert value.isnan()


def test_what_is_left_out_takes_no_part() -> None:
    scores, relevance = sample(60)
    spoilt = torch.cat([scores, torch.tensor([-math.inf, math.nan, 3.0], dtype=torch.float64)])
    labels = torch.cat([relevance, torch.tensor([True, True, False])])
    where = torch.arange(63) < 61
    expected = pooled_auc(scores, relevance)
    assert pooled_auc(spoilt, labels, where) == expected
    assert roc_curve(spoilt, labels, where).auc.item() == pytest.approx(expected.item())
    assert per_query_auc(spoilt, labels, where) == expected
    counted = AUCHistogram(bits=20).update(spoilt, labels, where).result()
    assert (counted.auc - expected).abs() <= counted.error


@pytest.mark.parametrize("bits", [8, 12, 16, 20])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_a_stream_is_bounded(bits: int, scale: float) -> None:
    scores, relevance = sample(4000)
    scores = scale * scores
    histogram = AUCHistogram(bits=bits)
    other = AUCHistogram(bits=bits)
    for index, part in enumerate(range(0, 4000, 500)):
        (histogram if index % 2 else other).update(scores[part : part + 500], relevance[part : part + 500])
    found = histogram.merge(other).result()
    exact = pooled_auc(scores, relevance)
    assert (found.auc - exact).abs() <= found.error + 1e-15
    assert found.auc + found.aoc == pytest.approx(1.0, abs=1e-15)
    assert found.error < {8: 1, 12: 0.1, 16: 0.01, 20: 1e-3}[bits]


def test_bins_are_in_the_order_of_numbers() -> None:
    values = torch.cat([-torch.logspace(30, -30, 61), torch.zeros(1), torch.logspace(-30, 30, 61)])
    bins = bin_of(values, 16)
    assert (bins.diff() > 0).all()
    assert bins.min() >= 0
    assert bins.max() < 1 << 16
    assert bin_of(torch.tensor([-0.0]), 24) == bin_of(torch.tensor([0.0]), 24)


def test_bad_input_is_refused_in_one_line() -> None:
    scores, relevance = sample(10)
    for function in (pooled_auc, pooled_aoc, per_query_auc, roc_curve, AUCHistogram().update):
        with pytest.raises(ValueError, match="argument `scores`: expected finite values"):
            function(scores * math.nan, relevance)
        with pytest.raises(ValueError, match="argument `relevance`: expected one label per score"):
            function(scores, relevance[1:])
        with pytest.raises(ValueError, match="argument `relevance`: expected 0 or 1"):
            function(scores, relevance * 2)
        with pytest.raises(ValueError, match="argument `where`"):
            function(scores, relevance, torch.ones(10))
    with pytest.raises(ValueError, match="argument `reduction`"):
        per_query_auc(scores, relevance, reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"argument `max_false_positive_rate`: expected a number in \(0, 1\]"):
        roc_curve(scores, relevance).partial_auc(0)
    with pytest.raises(ValueError, match="argument `false_positive_rate`"):
        roc_curve(scores, relevance).threshold_at(1.5)
    with pytest.raises(ValueError, match="argument `bits`"):
        AUCHistogram(bits=4)
    with pytest.raises(ValueError, match="argument `other`: expected a histogram of 16 bits"):
        AUCHistogram().merge(AUCHistogram(bits=17))
