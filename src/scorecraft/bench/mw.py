"""The Mann-Whitney loss of given scores, forward and backward, against all pairs one by one and against InfoNCE.

2,000 x 20,000: float64 scores, positives N(3, 2^2) and negatives N(0, 2^2), 4 x 10^7 pairs. The peer is the exact form
of the same loss: every pair in cache-sized tiles, value and both gradients in one pass.

In batch: the score matrix of 4,096 queries against 4,096 passages, N(0, 3^2), positives on the diagonal 6 higher;
1.7 x 10^7 scores, 6.9 x 10^10 pairs. The peer is InfoNCE on the same matrix, which compares 1.7 x 10^7 pairs and
computes another value. With 4 nodes the gradient is off by less than 1e-5 of its largest entry (float32 scores), with 8
by less than 1e-9 (float64 scores, for both).
"""

from __future__ import annotations

import torch
from torch import Tensor

from scorecraft.bench.harness import Bound, Call, Case, Entry, Figure, Shape, below_peer
from scorecraft.bench.inputs import SEED, forward_backward
from scorecraft.core import InfoNCELoss
from scorecraft.relevance.mw import mann_whitney_loss
from scorecraft.relevance.mw.loss import Method


def _two_samples(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    positives = 2 * torch.randn(shape["positives"], generator=generator, dtype=torch.float64) + 3
    negatives = 2 * torch.randn(shape["negatives"], generator=generator, dtype=torch.float64)
    scores = torch.cat([positives, negatives]).to(device)
    return scores.requires_grad_(), torch.arange(len(scores), device=device) < shape["positives"]


def _of_two_samples(method: Method) -> Entry:
    def build(shape: Shape, device: torch.device) -> Call:
        scores, relevance = _two_samples(shape, device)
        return forward_backward(lambda: mann_whitney_loss(scores, relevance, method=method), scores)

    return Entry(f'mann_whitney_loss(method="{method}")', build)


def _matrix(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    scores = 3 * torch.randn(shape["n"], shape["n"], generator=generator)
    scores.diagonal().add_(6)
    return scores.to(device, dtype).requires_grad_(), torch.eye(shape["n"], dtype=torch.bool, device=device)


def _in_batch(nodes: int, dtype: torch.dtype, times: float) -> Case:
    def ours(shape: Shape, device: torch.device) -> Call:
        scores, relevance = _matrix(shape, device, dtype)
        return forward_backward(lambda: mann_whitney_loss(scores, relevance, method="chebyshev", nodes=nodes), scores)

    def peer(shape: Shape, device: torch.device) -> Call:
        scores, relevance = _matrix(shape, device, dtype)
        loss = InfoNCELoss()
        return forward_backward(lambda: loss(scores, relevance), scores)

    name = str(dtype).removeprefix("torch.")
    return Case(
        name=f"in batch, B=4096, {nodes} nodes, {name}",
        shape={"n": 4096},
        small={"n": 32},
        entries={
            "ours": Entry(f"mann_whitney_loss(nodes={nodes})", ours),
            "peer": Entry("InfoNCELoss() on the same matrix", peer),
        },
        figures=(Figure("time", (Bound("ratio_to_peer", times, f"<= {times:g} x peer"),)), Figure("memory")),
    )


CASES = (
    Case(
        name="2000 x 20000 scores",
        shape={"positives": 2000, "negatives": 20_000},
        small={"positives": 20, "negatives": 200},
        entries={"ours": _of_two_samples("chebyshev"), "peer": _of_two_samples("exact")},
        figures=(Figure("time", (below_peer(150),)), Figure("memory")),
        agreement=1e-12,
    ),
    _in_batch(4, torch.float32, 1.5),
    _in_batch(8, torch.float64, 5.0),
)
