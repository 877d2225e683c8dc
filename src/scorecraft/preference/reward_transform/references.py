"""What "good" means for a prompt: a quantile of the rewards that the base policy earns on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import check_values, choice, describe, finite, probability, refuse
from scorecraft.core.separable import in_working_precision

QUANTILE = 0.85
"""The paper's: an answer is good when it beats 85 in 100 of the base policy's."""
Estimator: TypeAlias = Literal["empirical", "gaussian"]
ESTIMATORS = ("empirical", "gaussian")


class Moments(NamedTuple):
    """Of the rewards of a prompt's answers."""

    mean: Float[Tensor, "*shape"]
    std: Float[Tensor, "*shape"]


def reference_reward(
    samples: Float[Tensor, "*shape k"],
    *,
    quantile: float = QUANTILE,
    estimator: Estimator = "empirical",
    ddof: int = 0,
) -> Float[Tensor, "*shape"]:
    """The `quantile` of a prompt's rewards, of the samples themselves or of a Gaussian with their moments.

    Args:
        samples: `[..., k]`, rewards of `k >= 1` answers of the base policy.
        quantile: in [0, 1]; inside of it for `"gaussian"`. The larger, the stricter.
        estimator: `"empirical"` (`sample_quantile`) or `"gaussian"` (`gaussian_quantile`).
        ddof: of the standard deviation, 0 (as the public ports) or 1.

    Raises:
        ValueError: no samples, samples that are not finite, or options outside of their ranges.

    Source: arXiv 2402.00742, the choice of the reference value; 0.85 for helpfulness.
    """
    if choice("estimator", estimator, ESTIMATORS) == "empirical":
        return sample_quantile(samples, quantile)
    return gaussian_quantile(*sample_moments(samples, ddof=ddof), quantile)


def sample_quantile(samples: Float[Tensor, "*shape k"], quantile: float = QUANTILE) -> Float[Tensor, "*shape"]:
    """Linear interpolation between order statistics, at position `q (k - 1)` counted from 0."""
    samples = _checked(samples)
    place = probability("quantile", quantile) * (samples.shape[-1] - 1)
    below = math.floor(place)
    ordered = samples.sort(dim=-1).values
    lower, upper = ordered[..., below], ordered[..., math.ceil(place)]
    return lower + (place - below) * (upper - lower)


def sample_moments(samples: Float[Tensor, "*shape k"], *, ddof: int = 0) -> Moments:
    """Mean and standard deviation of `k` rewards; the latter is 0 for a single one.

    Args:
        samples: `[..., k]`.
        ddof: 0 divides by `k`, 1 by `k - 1`.
    """
    samples = _checked(samples)
    if ddof not in (0, 1):
        refuse("ddof", "0 or 1", ddof)
    mean = samples.mean(dim=-1)
    if samples.shape[-1] == 1:
        return Moments(mean, torch.zeros_like(mean))
    return Moments(mean, samples.std(dim=-1, correction=ddof))


def gaussian_quantile(mean: Tensor | float, std: Tensor | float, quantile: float = QUANTILE) -> Tensor:
    """`mean + z_q std`, with `z_q` the quantile of a standard normal; `z_0.85 = 1.0364333894937898`.

    Args:
        mean: of any shape, finite.
        std: at least 0, finite.
        quantile: inside of (0, 1).

    Raises:
        ValueError: values outside of these ranges.
    """
    if not 0 < probability("quantile", quantile) < 1:
        refuse("quantile", "a number inside of (0, 1)", quantile)
    mean, std = (value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64) for value in
                 (mean, std))  # fmt: skip
    check_values("mean", "finite values only", lambda: torch.isfinite(mean), mean)
    check_values("std", "finite values >= 0", lambda: torch.isfinite(std) & (std >= 0), std)
    return mean + NormalDist().inv_cdf(quantile) * std


class StreamingQuantile:
    """A quantile of a stream in constant memory: the P-square algorithm, five markers moved along parabolas.

        running = StreamingQuantile(0.85)
        running.add(rewards)
        running.value

    Exact up to five values (as `sample_quantile`), an estimate beyond; for a prompt with thousands of samples, in the
    order in which they are drawn: a sorted stream misleads it.

    Args:
        quantile: inside of (0, 1).

    Source: Jain and Chlamtac 1985, "The P² algorithm for dynamic calculation of quantiles and histograms".
    """

    def __init__(self, quantile: float = QUANTILE) -> None:
        if not 0 < probability("quantile", quantile) < 1:
            refuse("quantile", "a number inside of (0, 1)", quantile)
        self.quantile = quantile
        self.count = 0
        """Values seen."""
        self._heights: list[float] = []
        self._places = [0, 1, 2, 3, 4]
        self._steps = (0.0, quantile / 2, quantile, (1 + quantile) / 2, 1.0)

    def add(self, values: float | Iterable[float] | Tensor) -> None:
        """Take in one value or several, finite."""
        if isinstance(values, Tensor):
            values = values.flatten().tolist()
        for value in [values] if isinstance(values, (int, float)) else values:
            self._add(finite("values", value))

    @property
    def value(self) -> float:
        """The quantile of what was seen.

        Raises:
            ValueError: nothing was.
        """
        if not self.count:
            refuse("values", "at least one value", "none")
        if self.count <= 5:
            return sample_quantile(torch.tensor(self._heights, dtype=torch.float64), self.quantile).item()
        return self._heights[2]

    def _add(self, value: float) -> None:
        heights, places = self._heights, self._places
        self.count += 1
        if self.count <= 5:
            heights.append(value)
            heights.sort()
            return
        heights[0], heights[4] = min(heights[0], value), max(heights[4], value)
        cell = sum(value >= height for height in heights[1:4])
        for marker in range(cell + 1, 5):
            places[marker] += 1
        for marker in (1, 2, 3):
            off = self._steps[marker] * (self.count - 1) - places[marker]
            if (off >= 1 and places[marker + 1] - places[marker] > 1) or (
                off <= -1 and places[marker - 1] - places[marker] < -1
            ):
                self._move(marker, 1 if off > 0 else -1)

    def _move(self, marker: int, step: int) -> None:
        """One place up or down, along the parabola through three markers, or straight where that leaves the order."""
        h, n = self._heights, self._places
        before, here, behind = n[marker - 1], n[marker], n[marker + 1]
        up = (here - before + step) * (h[marker + 1] - h[marker]) / (behind - here)
        down = (behind - here - step) * (h[marker] - h[marker - 1]) / (here - before)
        height = h[marker] + step * (up + down) / (behind - before)
        if not h[marker - 1] < height < h[marker + 1]:
            height = h[marker] + step * (h[marker + step] - h[marker]) / (n[marker + step] - here)
        h[marker] = height
        n[marker] += step


def pinball_loss(
    predictions: Float[Tensor, "n"], rewards: Float[Tensor, "n k"], quantile: float = QUANTILE
) -> Float[Tensor, ""]:
    """`mean max(q (r - p), (q - 1) (r - p))`, least where `p` is the `quantile` of a prompt's rewards.

    Args:
        predictions: `[n]`, one per prompt.
        rewards: `[n, k]`, of its answers.
        quantile: in [0, 1].
    """
    error = rewards - predictions[:, None]
    return torch.maximum(probability("quantile", quantile) * error, (quantile - 1) * error).mean()


def gaussian_negative_log_likelihood(
    mean: Float[Tensor, "n"], std: Float[Tensor, "n"], rewards: Float[Tensor, "n k"]
) -> Float[Tensor, ""]:
    """`mean ln std + (r - mean)² / (2 std²)`, up to a constant.

    Args:
        mean: `[n]`, one per prompt.
        std: `[n]`, above 0.
        rewards: `[n, k]`, of its answers.
    """
    return (std.log()[:, None] + ((rewards - mean[:, None]) / std[:, None]).square() / 2).mean()


def _checked(samples: Tensor) -> Tensor:
    if not isinstance(samples, Tensor) or not samples.is_floating_point() or samples.ndim < 1:
        refuse("samples", "floating-point rewards [..., k]", describe(samples))
    if samples.shape[-1] == 0:
        refuse("samples", "at least one reward per prompt", describe(samples))
    check_values("samples", "finite values only", lambda: torch.isfinite(samples), samples)
    return in_working_precision(samples)
