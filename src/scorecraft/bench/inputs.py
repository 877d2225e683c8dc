"""What the benches share: generated inputs, the forward-and-backward call, and the floor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.bench.harness import Call, Entry, Shape

SEED = 0


def unit_gaussian(n: int, d: int, device: torch.device) -> Float[Tensor, "n d"]:
    """Gaussian rows scaled to length 1, float32: cosines of about N(0, 1/d), whatever the labels say."""
    generator = torch.Generator().manual_seed(SEED)
    return F.normalize(torch.randn(n, d, generator=generator), dim=1).to(device)


def classes_of(per_class: int, n: int, device: torch.device) -> Int[Tensor, " n"]:
    """`n / per_class` classes of `per_class` items each (the last one may be smaller), in random order."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return (torch.randperm(n, generator=generator) // per_class).to(device)


def clustered(labels: Int[Tensor, " n"], d: int, spread: float) -> Float[Tensor, "n d"]:
    """Unit rows around random unit centres, one per class, the noise `spread` times as long as the centre.

    Cosines within a class are about `1 / (1 + spread^2)`, those between classes about N(0, 1/d).
    """
    generator = torch.Generator().manual_seed(SEED + 2)
    count = int(labels.max()) + 1
    centres = F.normalize(torch.randn(count, d, generator=generator), dim=1)
    noise = torch.randn(len(labels), d, generator=generator) / d**0.5
    return F.normalize(centres[labels.cpu()] + spread * noise, dim=1).to(labels.device)


def forward_backward(function: Callable[[], Tensor], *leaves: Tensor) -> Call:
    """The call that computes a scalar and the gradients of the leaves, all gradients made afresh."""

    def call() -> float:
        for leaf in leaves:
            leaf.grad = None
        value = function()
        value.backward()
        return value.item()

    return call


def _floor(shape: Shape, device: torch.device) -> Call:
    x = unit_gaussian(shape["n"], shape["d"], device).requires_grad_()

    def gram() -> Tensor:
        scores = x @ x.T
        return scores.sum()

    return forward_backward(gram, x)


FLOOR = Entry("x @ x.T with autograd", _floor)
"""One Gram matrix and its backward: what a loss on all pairs costs before it has done anything."""
