"""The exact denoiser of a mixture of equal Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

MEANS = torch.tensor(
    [[0.505035, 0.193214], [0.351693, 0.3455], [-1.684284, -0.279492], [3.312301, -0.956996], [0.692485, 0.401027]],
    dtype=torch.float64,
)
STD = 0.3
START = torch.tensor([[0.534905, 0.809357], [1.11029, -1.689799], [-0.98896, 0.957972]], dtype=torch.float64)
EVERY = torch.ones(1, len(MEANS), dtype=torch.bool).expand(3, -1)
SOME = torch.tensor([[False, True, False, True, False]]).expand(3, -1)
"""The condition: two of the components."""


def denoiser(x: Tensor, sigma: Tensor, *, parts: Tensor) -> Tensor:
    """`E[x_0 | x]` of the components of each sample."""
    variance = STD**2 + sigma.reshape(-1, 1) ** 2
    apart = (x[:, None] - MEANS.to(x)).square().sum(dim=2)
    share = (-apart / (2 * variance)).masked_fill(~parts, -torch.inf).softmax(dim=1)
    near = share @ MEANS.to(x)
    return near + STD**2 / variance * (x - near)
