"""The loss of coverage and its own gradient, against autograd through the formula as it is written.

A million log-probabilities between -6 and 0, float64, N = 64: forward and backward. The peer is the plain form,
`-log(1 - (1 - e^lp)^N)`, which is right in this range; at `lp = -1000` or at 0 it is infinite or not a number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scorecraft.bench.harness import Bound, Call, Case, Entry, Figure, Shape
from scorecraft.bench.inputs import SEED, forward_backward
from scorecraft.preference.dco import DirectCoverageLoss

BUDGET = 64


def _log_probabilities(shape: Shape, device: torch.device) -> Tensor:
    values = torch.rand(shape["answers"], generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    return (-6 * values - 1e-3).to(device).requires_grad_()


def _ours(shape: Shape, device: torch.device) -> Call:
    log_p = _log_probabilities(shape, device)
    loss = DirectCoverageLoss(n=BUDGET)
    return forward_backward(lambda: loss(log_p), log_p)


def _plain(shape: Shape, device: torch.device) -> Call:
    log_p = _log_probabilities(shape, device)
    return forward_backward(lambda: -(1 - (1 - log_p.exp()) ** BUDGET).log().mean(), log_p)


CASES = (
    Case(
        name="a million answers",
        shape={"answers": 1_000_000},
        small={"answers": 100},
        entries={"ours": Entry("DirectCoverageLoss()", _ours), "peer": Entry("the formula, autograd", _plain)},
        figures=(Figure("time", (Bound("ratio_to_peer", 5.0, "<= 5 x peer"),)), Figure("memory")),
        agreement=1e-9,
    ),
)
