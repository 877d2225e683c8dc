"""One Gaussian: its score at every noise level, and the closed form of the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import describe, non_negative, refuse

_ORTHONORMAL = 1e-5


class Gaussian:
    """`N(mean, U diag(variances) U^T + floor (I - U U^T))` of flat samples, smoothed by noise of any level.

    A denoiser: called with `(x, sigma)` it gives `E[x_0 | x]`. Everything is computed in the eigenbasis, at the cost of
    reading `U` once, in the dtype of `x` or of the parameters, whichever is the more precise. Samples of any shape are
    flattened in their own order.

    Args:
        mean: `[d]`.
        variances: `[r]`, of the kept modes, `r <= d`; at least 0.
        modes: `[d, r]`, orthonormal columns `U`.
        floor: the variance of every direction that is not kept; 0 is the paper's low-rank form.

    Raises:
        ValueError: shapes that do not fit, negative variances, or columns that are not orthonormal.

    Source: Wang and Vastola 2024, arXiv 2412.09726, section 3.
    """

    def __init__(
        self,
        mean: Float[Tensor, " d"],
        variances: Float[Tensor, " r"],
        modes: Float[Tensor, "d r"],
        *,
        floor: float = 0.0,
    ) -> None:
        if mean.ndim != 1 or not mean.is_floating_point():
            refuse("mean", "a floating-point vector [d]", describe(mean))
        if modes.ndim != 2 or len(modes) != len(mean):
            refuse("modes", f"eigenvectors [{len(mean)}, r]", describe(modes))
        if variances.shape != modes.shape[1:] or not bool((variances >= 0).all()):
            refuse("variances", f"{modes.shape[1]} numbers >= 0, one per mode", describe(variances))
        gram = modes.T @ modes
        if bool(((gram - torch.eye(len(gram)).to(gram)).abs() > _ORTHONORMAL).any()):
            refuse("modes", f"orthonormal columns (to {_ORTHONORMAL:g})", "columns that are not")
        self.mean = mean
        self.variances = variances
        self.modes = modes
        self.floor = non_negative("floor", floor)

    @classmethod
    def of_covariance(
        cls, mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"], *, rank: int | None = None, floor: bool = True
    ) -> Gaussian:
        """From a covariance: its `rank` largest modes, all when left out.

        Args:
            mean: `[d]`.
            covariance: symmetric, positive semi-definite; eigenvalues below 0 are taken as 0.
            rank: modes to keep.
            floor: give the dropped directions their mean variance, `(tr - sum kept) / (d - r)`, instead of none.

        Raises:
            ValueError: another shape, or a rank out of 1 to d.
        """
        size = len(mean)
        if covariance.shape != (size, size):
            refuse("covariance", f"a matrix [{size}, {size}]", describe(covariance))
        rank = size if rank is None else rank
        if not 1 <= rank <= size:
            refuse("rank", f"from 1 to {size}", rank)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        rest = float(values[rank:].mean()) if floor and rank < size else 0.0
        return cls(mean, values[:rank], vectors[:, :rank], floor=rest)

    @classmethod
    def isotropic(cls, mean: Float[Tensor, " d"], variance: float = 0.0) -> Gaussian:
        """One variance for every direction; 0 is the score of the mean alone, `(mean - x) / sigma^2`."""
        return cls(mean, mean.new_empty(0), mean.new_empty(len(mean), 0), floor=variance)

    @property
    def dimension(self) -> int:
        """Of a flat sample."""
        return len(self.mean)

    @property
    def is_full(self) -> bool:
        """Whether every direction is kept."""
        return len(self.variances) == self.dimension

    def __call__(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, ""] | Float[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """`mean + U diag(l / (l + sigma^2)) U^T (x - mean)`, and the floor's share of the rest; sigma 0 is allowed."""
        apart, parts, rest = self._split(x)
        level = self._level(sigma, apart)
        found = (parts * _share(self.variances.to(parts), level)) @ self.modes.to(parts).T
        found = found + rest * _share(torch.full_like(level, self.floor), level)
        return (self.mean.to(found) + found).reshape(x.shape).to(torch.promote_types(x.dtype, self.mean.dtype))

    def score(self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, ""] | Float[Tensor, " b"]) -> Float[Tensor, "b *d"]:
        """`grad log p_sigma(x)`.

        Raises:
            ValueError: sigma 0 where a direction has no variance: the score is infinite there.
        """
        apart, parts, rest = self._split(x)
        level = self._level(sigma, apart)
        flat = not self.is_full and self.floor == 0
        if (flat or bool((self.variances == 0).any())) and not bool((level > 0).all()):
            refuse("sigma", "a noise level above 0, as a direction has no variance", 0)
        found = (parts / (self.variances.to(parts) + level.square())) @ self.modes.to(parts).T
        if not self.is_full:
            found = found + rest / (self.floor + level.square())
        return -found.reshape(x.shape).to(torch.promote_types(x.dtype, self.mean.dtype))

    def log_density(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, ""] | Float[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """`log p_sigma(x)`, in nats."""
        apart, parts, rest = self._split(x)
        level = self._level(sigma, apart)
        total = self.variances.to(parts) + level.square()
        found = total.log().sum(dim=1) + (parts.square() / total).sum(dim=1)
        if not self.is_full:
            outside = self.floor + level.square().squeeze(1)
            count = self.dimension - len(self.variances)
            found = found + count * outside.log() + rest.square().sum(dim=1) / outside
        return -0.5 * (found + self.dimension * math.log(2 * math.pi))

    def trajectory(
        self, x: Float[Tensor, "b *d"], sigma: float, levels: Sequence[float] | Float[Tensor, " t"]
    ) -> Float[Tensor, "t b *d"]:
        """The exact solution of the probability-flow ODE through `x` at `sigma`, at other levels.

            mean + sum_k sqrt((l_k + s^2) / (l_k + sigma^2)) u_k u_k^T (x - mean), and likewise outside with the floor

        In float64: at a high level the mean is a small part of `x`.

        Args:
            x: at `sigma`.
            sigma: above 0.
            levels: `[t]`, at least 0, in any order.

        Returns:
            `[t, b, ...]`, in the dtype of `x`.
        """
        apart, parts, rest = self._split(x.double())
        start, at = self._levels(sigma, levels, apart)
        kept = self.variances.to(parts)
        inside = ((kept + at.square()) / (kept + start**2)).sqrt()[:, None] * parts
        outside = ((self.floor + at.square()) / (self.floor + start**2)).sqrt()[:, None] * rest
        found = self.mean.to(parts) + inside @ self.modes.to(parts).T + outside
        return found.reshape(len(at), *x.shape).to(x.dtype)

    def denoised_trajectory(
        self, x: Float[Tensor, "b *d"], sigma: float, levels: Sequence[float] | Float[Tensor, " t"]
    ) -> Float[Tensor, "t b *d"]:
        """The clean estimates along `trajectory`.

            mean + sum_k l_k / sqrt((l_k + s^2) (l_k + sigma^2)) u_k u_k^T (x - mean), likewise outside with the floor

        A mode appears at `s = sqrt(l_k)`: its part has reached `1 / sqrt(2)` of its final size there.
        """
        apart, parts, rest = self._split(x.double())
        start, at = self._levels(sigma, levels, apart)
        kept = self.variances.to(parts)

        def factor(variance: Tensor) -> Tensor:
            total = (variance + at.square()) * (variance + start**2)
            return torch.where(variance > 0, variance / total.sqrt(), 0.0)[:, None]

        found = (factor(kept) * parts) @ self.modes.to(parts).T + factor(torch.full_like(at, self.floor)) * rest
        return (self.mean.to(parts) + found).reshape(len(at), *x.shape).to(x.dtype)

    def sensitivity(self, sigma: float) -> Float[Tensor, " r"]:
        """What a perturbation along each mode at a level is multiplied by in the sample: `sqrt(l / (sigma^2 + l))`."""
        return (self.variances / (self.variances + non_negative("sigma", sigma) ** 2)).nan_to_num(1.0).sqrt()

    def sample(self, count: int, generator: torch.Generator, *, sigma: float = 0.0) -> Float[Tensor, "n d"]:
        """Exact samples at a noise level."""
        like = self.modes
        draw = torch.randn(count, self.dimension, generator=generator, dtype=like.dtype).to(like)
        parts = draw @ self.modes
        inside = (parts * (self.variances + sigma**2).sqrt()) @ self.modes.T
        return self.mean + inside + math.sqrt(self.floor + sigma**2) * (draw - parts @ self.modes.T)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distance from the mean, its parts along the modes, and what is outside them."""
        flat = x.flatten(1)
        if flat.shape[1] != self.dimension or not x.is_floating_point():
            refuse("x", f"floating-point samples of {self.dimension} numbers", describe(x))
        apart = flat.to(torch.promote_types(x.dtype, self.mean.dtype)) - self.mean.to(x.device)
        modes = self.modes.to(apart)
        parts = apart @ modes
        return apart, parts, apart - parts @ modes.T

    def _level(self, sigma: Tensor, apart: Tensor) -> Float[Tensor, "b 1"]:
        return torch.as_tensor(sigma).to(apart).expand(len(apart))[:, None]

    def _levels(
        self, sigma: float, levels: Sequence[float] | Tensor, like: Tensor
    ) -> tuple[float, Float[Tensor, "t 1"]]:
        at = torch.as_tensor(levels, dtype=like.dtype, device=like.device)
        if at.ndim != 1 or not bool((at >= 0).all()):
            refuse("levels", "a row of noise levels >= 0", describe(at))
        if not sigma > 0:
            refuse("sigma", "a noise level above 0", sigma)
        return float(sigma), at[:, None]


def _share(variance: Tensor, level: Tensor) -> Tensor:
    """`l / (l + sigma^2)`; a direction without variance has no share, also without noise."""
    return torch.where(variance > 0, variance / (variance + level.square()), 0.0)
