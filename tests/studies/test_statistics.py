import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scorecraft.studies.statistics import PairedComparison, holm, judge, mean_interval, paired_comparison

numbers = st.floats(-100, 100).map(lambda value: round(value, 6))
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12).filter(
    lambda drawn: len({round(a - b, 3) for a, b in drawn}) > 1
)


def found(mean, low, high, n=8):
    return PairedComparison(n, mean, low, high, None, 0.5)


@given(pairs)
def test_equals_the_paired_t_test_of_scipy(drawn):
    method, baseline = map(list, zip(*drawn, strict=True))
    ours = paired_comparison(method, baseline)
    theirs = stats.ttest_rel(method, baseline)
    interval = theirs.confidence_interval(0.95)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    difference = np.subtract(method, baseline)
    assert ours.effect_size == pytest.approx(difference.mean() / difference.std(ddof=1), rel=1e-6, abs=1e-9)


@given(pairs)
def test_lower_is_better_mirrors_higher_is_better(drawn):
    method, baseline = map(list, zip(*drawn, strict=True))
    up, down = (paired_comparison(method, baseline, better=better) for better in ("higher", "lower"))
    assert (down.improvement, down.low, down.high) == pytest.approx((-up.improvement, -up.high, -up.low))
    assert down.p_value == pytest.approx(up.p_value)


def test_known_t_value():
    # differences 1, 2, 3, 4: mean 2.5, sd 1.290994, t_3 at 97.5 % is 3.182446
    ours = paired_comparison([2.0, 4.0, 6.0, 8.0], [1.0, 2.0, 3.0, 4.0])
    half = 3.182446305 * 1.290994449 / 2
    assert (ours.improvement, ours.low, ours.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert ours.effect_size == pytest.approx(2.5 / 1.290994449)


def test_relative_improvement_is_a_share_of_the_baselines_mean():
    ours = paired_comparison([8.0, 6.0], [10.0, 10.0], better="lower", relative=True)
    assert ours.improvement == pytest.approx(0.3)
    assert ours.relative
    with pytest.raises(ValueError, match="argument `baseline`: expected a mean other than zero"):
        paired_comparison([1.0, 2.0], [1.0, -1.0], relative=True)


def test_one_pair_says_nothing():
    ours = paired_comparison([2.0], [1.0])
    assert (ours.improvement, ours.low, ours.high, ours.p_value, ours.effect_size) == (1, -math.inf, math.inf, 1, None)
    assert judge(ours, 0.1) == "inconclusive"


def test_no_spread_leaves_the_point():
    ours = paired_comparison([0.1 + 0.3, 0.2 + 0.3, 0.7 + 0.3], [0.1, 0.2, 0.7])  # equal up to rounding
    assert ours.low == ours.high == ours.improvement == pytest.approx(0.3)
    assert (ours.p_value, ours.effect_size) == (0.0, None)
    assert judge(ours, 0.2) == "holds"
    assert judge(ours, 0.4) == "fails"
    same = paired_comparison([0.5, 0.6], [0.5, 0.6])
    assert (same.improvement, same.p_value) == (0, 1)


@pytest.mark.parametrize(
    ("method", "baseline", "name"),
    [([1.0, 2.0], [1.0], "method"), ([], [], "method"), ([1.0, math.nan], [1.0, 1.0], "method")],
)
def test_refuses_what_cannot_be_paired(method, baseline, name):
    with pytest.raises(ValueError, match=f"argument `{name}`: expected"):
        paired_comparison(method, baseline)


@pytest.mark.parametrize(
    ("comparison", "verdict"),
    [
        (found(0.03, 0.01, 0.05), "holds"),
        (found(0.02, 0.001, 0.04), "holds"),
        (found(0.02, 0.0, 0.04), "inconclusive"),  # zero is not excluded
        (found(0.03, -0.01, 0.07), "inconclusive"),
        (found(0.019, 0.01, 0.03), "inconclusive"),  # real, but perhaps short of the margin
        (found(0.01, 0.005, 0.015), "fails"),  # real, and certainly short of it
        (found(-0.03, -0.05, -0.01), "fails"),
        (found(-0.03, -0.08, 0.02), "inconclusive"),  # the interval reaches the margin
        (found(0.03, 0.01, 0.05, n=1), "inconclusive"),
    ],
)
def test_verdict(comparison, verdict):
    assert judge(comparison, 0.02) == verdict


def test_holm_on_a_worked_example():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04, then never decreasing
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with pytest.raises(ValueError, match="argument `p_values`"):
        holm([0.1, 1.5])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_nothing_and_bonferroni(p):
    corrected = holm(p)
    for raw, adjusted in zip(p, corrected, strict=True):
        assert raw <= adjusted <= min(1.0, len(p) * raw) + 1e-12
    order = np.argsort(p, kind="stable")
    assert np.all(np.diff(np.asarray(corrected)[order]) >= 0)


def test_mean_interval():
    one = mean_interval([1.0, 2.0, 3.0])
    assert (one.mean, one.high - one.mean) == pytest.approx((2.0, 4.302652730 / math.sqrt(3)))
    assert mean_interval([2.0]).high == math.inf
    assert mean_interval([0.1, 0.1, 0.1]).high == pytest.approx(0.1)
