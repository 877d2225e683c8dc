"""AMCL's soft mode, forward and backward: three heads, a temperature for every pair, on blocks against densely.

Inputs: two views of a batch, Gaussian head outputs of width 128 (so that cosines know nothing of the items), and the
temperature network with 64 features, untrained. The peer is the plain form: the same loss on whole matrices, six of
them (similarities and temperatures of three heads), differentiated by autograd. Gradients go to both views and to the
temperature network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from scorecraft.bench.harness import Bound, Call, Case, Entry, Figure, Shape, below_peer
from scorecraft.bench.inputs import SEED, forward_backward
from scorecraft.core import Objective, tiled
from scorecraft.similarity.amcl import AMCLLoss, PairTemperature

HEADS, FEATURES, BETA = 3, 64, 0.1
BLOCK = 256  # a tile holds six channels of it


def _views(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    first, second = torch.randn(2, shape["batch"], HEADS, shape["d"], generator=generator).to(device)
    return first.requires_grad_(), second.requires_grad_()


def _entry(wrapper: Callable[[Objective], Objective] | None) -> Callable[[Shape, torch.device], Call]:
    def build(shape: Shape, device: torch.device) -> Call:
        first, second = _views(shape, device)
        generator = torch.Generator().manual_seed(SEED)
        temperature = PairTemperature(shape["d"], features=FEATURES, generator=generator)
        loss = AMCLLoss(temperature, heads=HEADS, beta=BETA, wrapper=wrapper).to(device)
        return forward_backward(lambda: loss(first, second), first, second, *loss.parameters())

    return build


CASES = (
    Case(
        name="soft mode, two views of 1024",
        shape={"batch": 1024, "d": 128},
        small={"batch": 24, "d": 16},
        entries={
            "ours": Entry(f"AMCLLoss, tiled in blocks of {BLOCK}", _entry(partial(tiled, block=BLOCK))),
            "peer": Entry("AMCLLoss, dense with autograd", _entry(None)),
        },
        figures=(
            Figure("time", (Bound("ratio_to_peer", 1.2, "<= 1.2 x peer"),)),
            Figure("memory", (below_peer(8),)),
        ),
        agreement=1e-4,
    ),
)
