"""How numbers of a result are written for people: the same in the terminal, in the report and in plots."""

from __future__ import annotations

import math

from scorecraft.studies.result import JudgedClaim
from scorecraft.studies.statistics import CONFIDENCE, Interval, PairedComparison
from scorecraft.studies.study import Metric, Verdict

MINUS = "\N{MINUS SIGN}"
CONFIDENCE_TEXT = f"{100 * CONFIDENCE:.0f} %"
VERDICT_SYMBOL: dict[Verdict, str] = {"holds": "\N{CHECK MARK}", "fails": "\N{BALLOT X}", "inconclusive": "?"}
RULE = (
    f"A claim holds when the whole {CONFIDENCE_TEXT} interval of the improvement lies above zero and its mean reaches "
    "the margin; it fails when the whole interval lies below the margin; anything else is inconclusive."
)


def number(value: float, metric: Metric) -> str:
    """A value of a metric."""
    return f"{value:.{metric.decimals}f}".replace("-", MINUS)


def interval(value: Interval, metric: Metric) -> str:
    """A mean with half the width of its interval."""
    if not math.isfinite(value.high):
        return number(value.mean, metric)
    return f"{number(value.mean, metric)} ± {number(value.high - value.mean, metric)}"


def change(value: float, metric: Metric, *, relative: bool) -> str:
    """A signed improvement, in per cent where it is relative."""
    if not math.isfinite(value):
        return "+∞" if value > 0 else f"{MINUS}∞"
    text = f"{100 * value:+.1f} %" if relative else f"{value:+.{metric.decimals}f}"
    return text.replace("-", MINUS)


def improvement(found: PairedComparison, metric: Metric) -> str:
    """The mean improvement."""
    return change(found.improvement, metric, relative=found.relative)


def improvement_interval(found: PairedComparison, metric: Metric) -> str:
    """The interval of the improvement."""
    ends = (change(end, metric, relative=found.relative) for end in (found.low, found.high))
    return f"[{', '.join(ends)}]"


def margin(claim: JudgedClaim, metric: Metric) -> str:
    """The margin of a claim."""
    return change(claim.margin, metric, relative=claim.relative)


def p_value(p: float) -> str:
    """A p-value, never as zero."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def effect_size(found: PairedComparison) -> str:
    """Cohen's d_z, or a dash."""
    return "–" if found.effect_size is None else f"{found.effect_size:+.2f}".replace("-", MINUS)


def direction(metric: Metric) -> str:
    """Which way is better."""
    return f"{metric.better} is better"


def duration(seconds: float) -> str:
    """A time span."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
