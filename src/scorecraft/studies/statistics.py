"""Paired comparisons over seeds, Holm's correction, and the rule by which a claim is judged.

Two contenders that met the same seeds are compared through the differences seed by seed, `d_1 .. d_n`, of which the
two-sided interval of Student's t is taken: `mean(d) +- t_{n-1, 0.975} sd(d) / sqrt(n)`.

The rule, fixed before any run, for the claim "the method improves the metric by at least the margin":

- *holds*: the whole interval lies above zero, and the mean improvement is at least the margin;
- *fails*: the whole interval lies below the margin;
- *inconclusive*: anything else, and always with fewer than two pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from scorecraft.studies.study import Verdict

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided interval of Student's t; unbounded below two values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedComparison:
    """The improvement of one contender over another on the same seeds (positive is better)."""

    pairs: int
    improvement: float
    """Mean improvement: in units of the metric, or as a fraction of the baseline's mean where `relative`."""
    low: float
    """Lower end of the interval; -inf with fewer than two pairs."""
    high: float
    """Upper end of the interval; +inf with fewer than two pairs."""
    effect_size: float | None
    """Cohen's d_z, mean over standard deviation of the differences; None where it is not defined."""
    p_value: float
    """Two-sided; 1 with fewer than two pairs."""
    relative: bool = False


def mean_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent values and its interval, `mean +- t_{n-1} sd / sqrt(n)`."""
    x = _finite("values", values)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1)) * _deviation(x) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half)


def paired_comparison(
    method: Sequence[float],
    baseline: Sequence[float],
    *,
    better: Literal["higher", "lower"] = "higher",
    relative: bool = False,
    confidence: float = CONFIDENCE,
    resampled: float = 0.0,
) -> PairedComparison:
    """Compare two contenders seed by seed: `d_i = +-(method_i - baseline_i)`, over `|mean(baseline)|` if `relative`.

    Where all differences are equal up to rounding there is no spread to measure: the interval is the point itself, the
    p-value 0 (1 if that point is 0) and the effect size undefined.

    Args:
        method: one finite value per seed.
        baseline: the values of the same seeds, in the same order.
        better: the direction of the metric.
        relative: count improvements as a fraction of the baseline's mean.
        confidence: of the interval, in (0, 1).
        resampled: where every seed splits the same finite data anew, the ratio of test to training items, >= 0. Such
            differences are not independent, and the standard error is `sd sqrt(1/n + resampled)` instead of
            `sd / sqrt(n)` (Nadeau and Bengio 2003, Inference for the generalization error).

    Raises:
        ValueError: lists of different length, empty or non-finite; a relative comparison with a baseline of mean zero.
    """
    ours, theirs = _finite("method", method), _finite("baseline", baseline)
    if len(ours) != len(theirs):
        raise ValueError(f"argument `method`: expected {len(theirs)} values, one per baseline value, got {len(ours)}")
    differences = ours - theirs if better == "higher" else theirs - ours
    resolution = 8 * np.finfo(float).eps * float(np.abs([ours, theirs]).max())
    if relative:
        unit = abs(float(theirs.mean()))
        if unit == 0:
            raise ValueError("argument `baseline`: expected a mean other than zero for a relative comparison, got 0")
        differences, resolution = differences / unit, resolution / unit
    mean, n = float(differences.mean()), len(differences)
    if n < 2:
        return PairedComparison(n, mean, -math.inf, math.inf, None, 1.0, relative)
    deviation = float(differences.std(ddof=1))
    if deviation <= resolution:
        return PairedComparison(n, mean, mean, mean, None, 1.0 if abs(mean) <= resolution else 0.0, relative)
    error = deviation * math.sqrt(1 / n + resampled)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return PairedComparison(n, mean, mean - half, mean + half, mean / deviation, p_value, relative)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for `m` comparisons: `max_{j <= i} min(1, (m - j) p_(j))`, j from 0, p ascending.

    Given back in the order received.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).

    Raises:
        ValueError: a value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    if p.size and not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"argument `p_values`: expected numbers in [0, 1], got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(p.size, 0, -1)))
    return adjusted.tolist()


def judge(comparison: PairedComparison, margin: float) -> Verdict:
    """Apply the rule of this module to one comparison. `margin` is an improvement in the units of the comparison."""
    if comparison.pairs < 2:
        return "inconclusive"
    if comparison.low > 0 and comparison.improvement >= margin:
        return "holds"
    if comparison.high < margin:
        return "fails"
    return "inconclusive"


def _finite(name: str, values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or x.size == 0 or not bool(np.isfinite(x).all()):
        raise ValueError(f"argument `{name}`: expected one finite value or more, got {x.tolist()}")
    return x


def _deviation(x: np.ndarray) -> float:
    """Standard deviation, exactly 0 where the values differ by rounding alone."""
    deviation = float(x.std(ddof=1))
    return 0.0 if deviation <= 8 * np.finfo(float).eps * float(np.abs(x).max()) else deviation
