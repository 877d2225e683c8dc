"""Mixtures: of Gaussians, and of points (the exact score of a training set), in blocks and in the log domain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import describe, positive_integer, refuse
from scorecraft.density.gaussian_score.gaussian import Gaussian

_SUMS_TO_ONE = 1e-4


class GaussianMixture:
    """`sum_i w_i N(mean_i, covariance_i)`, smoothed by noise of any level; a denoiser like `Gaussian`.

    The posterior of the components is a softmax of log-densities that is carried from one component to the next: no
    more than two components' worth of memory is held.

    Args:
        components: at least one, of one dimension.
        weights: `[k]`, at least 0, which sum to 1; equal ones when left out.

    Raises:
        ValueError: one line.

    Source: Wang and Vastola 2024, arXiv 2412.09726, section 3.
    """

    def __init__(self, components: Sequence[Gaussian], weights: Float[Tensor, " k"] | None = None) -> None:
        self.components = list(components)
        if not self.components:
            refuse("components", "at least one Gaussian", "none")
        sizes = {one.dimension for one in self.components}
        if len(sizes) > 1:
            refuse("components", "Gaussians of one dimension", sorted(sizes))
        self.weights = checked_weights(weights, len(self.components)).to(self.components[0].mean.device)

    @property
    def dimension(self) -> int:
        """Of a flat sample."""
        return self.components[0].dimension

    def __call__(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, ""] | Float[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """`E[x_0 | x]`: the components' estimates, weighted by their posterior."""
        return self._weighted((one(x, sigma) for one in self.components), x, sigma)

    def score(self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, ""] | Float[Tensor, " b"]) -> Float[Tensor, "b *d"]:
        """`grad log p_sigma(x) = (D(x, sigma) - x) / sigma^2`, weighted component by component.

        Raises:
            ValueError: sigma 0 where a component has a direction without variance.
        """
        return self._weighted((one.score(x, sigma) for one in self.components), x, sigma)

    def log_density(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, ""] | Float[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """`log p_sigma(x)`, in nats."""
        return torch.stack(list(self._logs(x, sigma))).logsumexp(dim=0)

    def posterior(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, ""] | Float[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """The probability of each component."""
        return torch.stack(list(self._logs(x, sigma)), dim=1).softmax(dim=1)

    def matched(self) -> Gaussian:
        """The one Gaussian with the mixture's mean and covariance; its covariance is formed."""
        weights = self.weights
        means = torch.stack([one.mean for one in self.components])
        mean = weights.to(means) @ means
        apart = means - mean
        covariance = (weights.to(means)[:, None] * apart).T @ apart
        for weight, one in zip(weights.tolist(), self.components, strict=True):
            kept = (one.modes * (one.variances - one.floor)) @ one.modes.T
            covariance = covariance + weight * (kept + one.floor * torch.eye(self.dimension).to(kept))
        return Gaussian.of_covariance(mean, covariance)

    def _logs(self, x: Tensor, sigma: Tensor) -> Iterator[Tensor]:
        for weight, one in zip(self.weights.log().unbind(), self.components, strict=True):
            yield one.log_density(x, sigma) + weight

    def _weighted(self, values: Iterator[Tensor], x: Tensor, sigma: Tensor) -> Tensor:
        """One value per component, by the posterior."""
        mean, _ = weighted_mean(zip(self._logs(x, sigma), values, strict=True), x)
        return mean


class PointMixture:
    """Points of equal weight, smoothed by noise: the exact score of a training set, which memorises it.

    `w_j = softmax_j(-|x - y_j|^2 / (2 sigma^2))`, `D = sum_j w_j y_j`, `score = (D - x) / sigma^2`, in one pass over
    blocks of points.

    Args:
        points: `[n, ...]`; a memory-mapped tensor is read block by block.
        block: points at a time.
        exact_distances: form differences instead of `|x|^2 - 2 x y + |y|^2`, which loses digits for near points at low
            noise; slower.

    Raises:
        ValueError: no points.

    Source: Wang and Vastola 2024, arXiv 2412.09726, section 3.
    """

    def __init__(self, points: Float[Tensor, "n *d"], *, block: int = 1024, exact_distances: bool = False) -> None:
        if points.ndim < 2 or not len(points) or not points.is_floating_point():
            refuse("points", "floating-point points [n, ...]", describe(points))
        self.points = points
        self.block = positive_integer("block", block)
        self.exact_distances = exact_distances

    def __call__(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, ""] | Float[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """`E[x_0 | x]`, a mean of points."""
        mean, _ = self._posterior_mean(x, sigma)
        return mean.reshape(x.shape)

    def score(self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, ""] | Float[Tensor, " b"]) -> Float[Tensor, "b *d"]:
        """`grad log p_sigma(x)`, at a level above 0."""
        level = torch.as_tensor(sigma).to(x).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))
        return (self(x, sigma) - x) / level.square()

    def log_density(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, ""] | Float[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """`log p_sigma(x)`, in nats."""
        _, total = self._posterior_mean(x, sigma)
        level = torch.as_tensor(sigma).to(x).expand(len(x))
        size = x[0].numel()
        return total - math.log(len(self.points)) - size / 2 * (2 * math.pi * level.square()).log()

    def _posterior_mean(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(1)
        if flat.shape[1] != self.points[0].numel() or not x.is_floating_point():
            refuse("x", f"floating-point samples of {self.points[0].numel()} numbers", describe(x))
        level = torch.as_tensor(sigma).to(flat).expand(len(flat))[:, None]
        if not bool((level > 0).all()):
            refuse("sigma", "a noise level above 0", describe(torch.as_tensor(sigma)))

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            for start in range(0, len(self.points), self.block):
                part = self.points[start : start + self.block].flatten(1).to(flat)
                logs = -self._squared(flat, part) / (2 * level.square())
                total = logs.logsumexp(dim=1)
                yield total, (logs - total[:, None]).exp() @ part

        return weighted_mean(blocks(), flat)

    def _squared(self, x: Tensor, part: Tensor) -> Float[Tensor, "b n"]:
        if self.exact_distances:
            return torch.cdist(x, part, compute_mode="donot_use_mm_for_euclid_dist").square()
        # Around a point in their midst the terms of the expansion are as small as they can be.
        centre = part.mean(dim=0)
        x, part = x - centre, part - centre
        return (x.square().sum(dim=1, keepdim=True) - 2 * x @ part.T + part.square().sum(dim=1)).clamp(min=0)


def weighted_mean(
    parts: Iterator[tuple[Float[Tensor, " b"], Float[Tensor, "b *d"]]], like: Float[Tensor, "b *d"]
) -> tuple[Float[Tensor, "b *d"], Float[Tensor, " b"]]:
    """`sum_i softmax_i(log_i) value_i` and `logsumexp_i log_i`, one part at a time.

    Args:
        parts: log-weights, -inf for none, and values.
        like: the shape of a value.
    """
    rows = (-1, *[1] * (like.ndim - 1))
    mean: Tensor | None = None
    total: Tensor | None = None
    for log, value in parts:
        if mean is None or total is None:
            mean, total = value, log
            continue
        both = torch.logaddexp(total, log)
        share = torch.where(log == -math.inf, 0.0, (log - both).exp())
        mean = mean + share.reshape(rows) * (value - mean)
        total = both
    assert mean is not None
    assert total is not None
    return mean, total


def checked_weights(weights: Tensor | None, count: int) -> Float[Tensor, " k"]:
    """In float64, summing to 1 exactly; refused where they are far from it."""
    if weights is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    if weights.shape != (count,) or not bool((weights >= 0).all()):
        refuse("weights", f"{count} numbers >= 0, one per component", describe(weights))
    total = weights.double().sum()
    if abs(float(total) - 1) > _SUMS_TO_ONE:
        refuse("weights", "weights that sum to 1", float(total))
    return weights.double() / total
