"""UNPG with a CosFace head, forward and backward, against the broadcast form and one `x @ x.T` with its backward.

Inputs: float32 unit Gaussian embeddings, d = 256, labels spread evenly over C = 1,000 classes and in random order,
and Gaussian class weights; gradients reach both. The peer is the broadcast form, the loss as it is usually written:
the kept pairs of the batch, nearly N^2 / 2 of them, are copied behind the logits of every sample, one `N x (C + K)`
matrix.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.bench.harness import Call, Case, Entry, Figure, Shape, below_peer, times_floor
from scorecraft.bench.inputs import FLOOR, SEED, forward_backward, unit_gaussian
from scorecraft.core import tiled
from scorecraft.similarity.unpg import CosFaceHead, UNPGLoss

SCALE, MARGIN, WHISKER = 64.0, 0.4, 1.5


def broadcast_unpg(
    x: Float[Tensor, "n d"], weight: Float[Tensor, "c d"], labels: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """UNPG by one `N x (C + K)` matrix of logits: cosines with the margin, then every kept pair of the batch."""
    features = F.normalize(x, dim=1)
    cosines = features @ F.normalize(weight, dim=1).T
    target = F.one_hot(labels, len(weight)).bool()
    logits = torch.where(target, cosines - MARGIN, cosines)

    different = (labels[:, None] != labels).triu(diagonal=1)
    negatives = (features @ features.T)[different]
    ordered = negatives.detach().sort().values
    low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    reach = WHISKER * (high - low)
    kept = negatives[(negatives >= low - reach) & (negatives <= high + reach)]

    return F.cross_entropy(SCALE * torch.cat([logits, kept.expand(len(x), -1)], dim=1), labels)


def _inputs(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED + 3)
    x = unit_gaussian(shape["n"], shape["d"], device)
    weight = torch.randn(shape["classes"], shape["d"], generator=generator).to(device)
    labels = (torch.randperm(shape["n"], generator=generator) % shape["classes"]).to(device)
    return x.requires_grad_(), weight.requires_grad_(), labels


def _ours(shape: Shape, device: torch.device) -> Call:
    x, weight, labels = _inputs(shape, device)
    head = CosFaceHead(shape["classes"], shape["d"], scale=SCALE, margin=MARGIN).to(device)
    with torch.no_grad():
        head.weight.copy_(weight)
    loss = tiled(UNPGLoss(head, whisker=WHISKER))
    return forward_backward(lambda: loss(x, labels), x, head.weight)


def _broadcast(shape: Shape, device: torch.device) -> Call:
    x, weight, labels = _inputs(shape, device)
    return forward_backward(lambda: broadcast_unpg(x, weight, labels), x, weight)


OURS = Entry("tiled(UNPGLoss(CosFaceHead()))", _ours)
SMALL = {"n": 96, "d": 16, "classes": 12}

CASES = (
    Case(
        name="N=16384, C=1000",
        shape={"n": 16384, "d": 256, "classes": 1000},
        small=SMALL,
        entries={"ours": OURS, "floor": FLOOR},
        figures=(Figure("time", (times_floor(2.5),)), Figure("memory")),
    ),
    Case(
        name="N=512, C=1000",
        shape={"n": 512, "d": 256, "classes": 1000},
        small=SMALL,
        entries={"ours": OURS, "peer": Entry("broadcast form, N x (C + K) logits", _broadcast), "floor": FLOOR},
        figures=(Figure("time"), Figure("memory", (below_peer(20),))),
        agreement=1e-4,
    ),
)
