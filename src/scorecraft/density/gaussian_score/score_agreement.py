"""How far two denoisers agree, level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import describe, refuse
from scorecraft.density.denoiser import Denoiser

LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 80.0)
"""The paper's noise levels."""


class Agreement(NamedTuple):
    """Explained variances of one approximation, a mean over samples at each level."""

    score: Float[Tensor, " t"]
    clean: Float[Tensor, " t"]
    """Of the clean estimate. At high noise the score flatters, as every score is nearly `-x / sigma^2` there."""


def explained_variance(reference: Float[Tensor, "b *d"], approximation: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """`1 - |reference - approximation|^2 / |reference|^2` of each sample; at most 1, and negative without bound.

    Raises:
        ValueError: shapes that differ, or a reference that is 0.

    Source: Wang and Vastola 2024, arXiv 2412.09726, section 4.
    """
    if reference.shape != approximation.shape:
        refuse("approximation", f"the shape of the reference, {tuple(reference.shape)}", describe(approximation))
    size = reference.flatten(1).square().sum(dim=1)
    if not bool((size > 0).all()):
        refuse("reference", "vectors that are not 0", "one that is")
    return 1 - (reference - approximation).flatten(1).square().sum(dim=1) / size


@torch.no_grad()
def agreement(
    reference: Denoiser,
    approximations: Mapping[str, Denoiser],
    data: Float[Tensor, "n *d"],
    generator: torch.Generator,
    *,
    levels: Sequence[float] = LEVELS,
    repeats: int = 4,
    block: int = 256,
) -> dict[str, Agreement]:
    """Explained variance of the reference's score and clean estimate, at noised data.

    Args:
        reference: such as a network's denoiser.
        approximations: by name, such as a `Gaussian`.
        data: clean samples; each is noised `repeats` times at each level.
        generator: of the noise.
        levels: above 0.
        repeats: noises of a sample.
        block: samples at a time.
    """
    sums = {name: torch.zeros(2, len(levels), dtype=torch.float64) for name in approximations}
    for index, sigma in enumerate(levels):
        level = torch.tensor(sigma, dtype=data.dtype, device=data.device)
        for clean in data.repeat(repeats, *[1] * (data.ndim - 1)).split(block):
            noise = torch.randn(clean.shape, generator=generator, device=generator.device, dtype=clean.dtype)
            x = clean + level * noise.to(clean.device)
            truth = reference(x, level)
            for name, denoiser in approximations.items():
                found = denoiser(x, level)
                # The factor 1 / sigma^2 of the score drops out.
                sums[name][0, index] += explained_variance(truth - x, found - x).double().sum().cpu()
                sums[name][1, index] += explained_variance(truth, found).double().sum().cpu()
    return {name: Agreement(*(total / (len(data) * repeats))) for name, total in sums.items()}
