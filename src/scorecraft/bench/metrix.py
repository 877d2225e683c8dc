"""Metrix on embeddings: the mixed loss through the Gram matrix, against mixtures that are made.

Inputs: float32 unit embeddings, classes of five in random order, Gaussian without regard to the classes. Every positive
of every anchor is mixed with every negative (n = 100, 20 classes: 38,000 mixtures of 512 numbers), lam = 0.3, the
multi-similarity form. The peer is the plain form a user would write: it makes the mixtures, normalises and scores them,
and sums the exponentials of each anchor. The normalised and the unnormalised mixture are two cases; the second one
needs no similarity of a mixture at all. Time is reported without a bound.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.bench.harness import Call, Case, Entry, Figure, Shape, below_peer
from scorecraft.bench.inputs import FLOOR, classes_of, forward_backward, unit_gaussian
from scorecraft.similarity.metrix import MetrixLoss
from scorecraft.similarity.multi_similarity import MultiSimilarityLoss

POSITIVE_SCALE, NEGATIVE_SCALE, THRESHOLD, LAM = 2.0, 50.0, 0.5, 0.3
PER_CLASS = 5

Build = Callable[[Shape, torch.device], Call]


def _inputs(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    return unit_gaussian(shape["n"], shape["d"], device).requires_grad_(), classes_of(PER_CLASS, shape["n"], device)


def _ours(normalised: bool) -> Build:
    def build(shape: Shape, device: torch.device) -> Call:
        x, labels = _inputs(shape, device)
        base = MultiSimilarityLoss(alpha=POSITIVE_SCALE, beta=NEGATIVE_SCALE, threshold=THRESHOLD)
        loss = MetrixLoss(base, normalised=normalised)
        return forward_backward(lambda: loss.mixed_loss(x, labels, lam=LAM, kind="positive_negative"), x)

    return build


def made_mixtures_loss(
    x: Float[Tensor, "n d"], labels: Int[Tensor, " n"], lam: float, *, normalised: bool
) -> Float[Tensor, ""]:
    """The mean over anchors of the mixed multi-similarity loss, from mixtures that are made one by one."""
    unit = F.normalize(x, dim=1)
    same = labels[:, None] == labels
    positives = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    anchors, first, second = (positives[:, :, None] & ~same[:, None, :]).nonzero(as_tuple=True)
    mixtures = lam * unit[first] + (1 - lam) * unit[second]
    mixtures = F.normalize(mixtures, dim=1) if normalised else mixtures
    excess = (unit[anchors] * mixtures).sum(dim=1) - THRESHOLD
    zeros = torch.zeros_like(excess[: len(x)])
    pull = zeros.index_add(0, anchors, lam * (-POSITIVE_SCALE * excess).exp()).log1p() / POSITIVE_SCALE
    push = zeros.index_add(0, anchors, (1 - lam) * (NEGATIVE_SCALE * excess).exp()).log1p() / NEGATIVE_SCALE
    return (pull + push).mean()


def _peer(normalised: bool) -> Build:
    def build(shape: Shape, device: torch.device) -> Call:
        x, labels = _inputs(shape, device)
        return forward_backward(lambda: made_mixtures_loss(x, labels, LAM, normalised=normalised), x)

    return build


def _case(name: str, *, normalised: bool) -> Case:
    return Case(
        name=f"{name}, n=100, d=512",
        shape={"n": 100, "d": 512},
        small={"n": 20, "d": 8},
        entries={
            "ours": Entry("MetrixLoss().mixed_loss", _ours(normalised)),
            "peer": Entry("mixtures made in plain torch", _peer(normalised)),
            "floor": FLOOR,
        },
        figures=(Figure("time"), Figure("memory", (below_peer(10),))),
        agreement=1e-4,
    )


CASES = (_case("normalised mixtures", normalised=True), _case("unnormalised mixtures", normalised=False))
