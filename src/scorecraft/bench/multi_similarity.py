"""Multi-similarity, forward and backward, against pytorch-metric-learning and one `x @ x.T` with its backward.

Inputs: float32 unit embeddings, d = 256, four items per class in random order (n = 4,096: 1,024 classes). Unless a
case says otherwise they are Gaussian and know nothing of the classes, so that nearly every pair survives the mining:
the most work for a miner that lists the pairs it keeps. In the clustered case cosines are about 0.3 within a class
and 0 between classes (a model half trained) and about one negative in a hundred survives: the least favourable case
for us, reported without a bound.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scorecraft.bench.harness import (
    Call,
    Case,
    Entry,
    EntryName,
    Figure,
    Shape,
    below_peer,
    megabytes,
    times_floor,
)
from scorecraft.bench.inputs import FLOOR, classes_of, clustered, forward_backward, unit_gaussian
from scorecraft.core import tiled
from scorecraft.similarity.multi_similarity import MultiSimilarityLoss

ALPHA, BETA, THRESHOLD, MINING_MARGIN = 2, 50, 0.5, 0.1
PER_CLASS = 4
SPREAD = 1.5

Build = Callable[[Shape, torch.device], Call]


def _inputs(shape: Shape, device: torch.device, in_clusters: bool) -> tuple[Tensor, Tensor]:
    labels = classes_of(PER_CLASS, shape["n"], device)
    x = clustered(labels, shape["d"], SPREAD) if in_clusters else unit_gaussian(shape["n"], shape["d"], device)
    return x.requires_grad_(), labels


def _ours(mining: bool, in_clusters: bool) -> Build:
    def build(shape: Shape, device: torch.device) -> Call:
        x, labels = _inputs(shape, device, in_clusters)
        loss = tiled(
            MultiSimilarityLoss(alpha=ALPHA, beta=BETA, threshold=THRESHOLD, mining_margin=MINING_MARGIN, mining=mining)
        )
        return forward_backward(lambda: loss(x, labels), x)

    return build


def _peer(mining: bool, in_clusters: bool) -> Build:
    def build(shape: Shape, device: torch.device) -> Call:
        from pytorch_metric_learning.losses import MultiSimilarityLoss as Peer
        from pytorch_metric_learning.miners import MultiSimilarityMiner

        x, labels = _inputs(shape, device, in_clusters)
        loss = Peer(alpha=ALPHA, beta=BETA, base=THRESHOLD)
        miner = MultiSimilarityMiner(epsilon=MINING_MARGIN)
        if mining:
            return forward_backward(lambda: loss(x, labels, miner(x, labels)), x)
        return forward_backward(lambda: loss(x, labels), x)

    return build


def _case(name: str, n: int, figures: tuple[Figure, ...], *, mining: bool, against: tuple[EntryName, ...] = (),
          in_clusters: bool = False) -> Case:  # fmt: skip
    peer = "pytorch-metric-learning MultiSimilarityLoss" + (" + MultiSimilarityMiner" if mining else "")
    entries: dict[EntryName, Entry] = {
        "ours": Entry("tiled(MultiSimilarityLoss())", _ours(mining, in_clusters)),
        "peer": Entry(peer, _peer(mining, in_clusters), needs=("pytorch_metric_learning",)),
        "floor": FLOOR,
    }
    return Case(
        name=f"{name}, n={n}",
        shape={"n": n, "d": 256},
        small={"n": 96, "d": 16},
        entries={key: entries[key] for key in ("ours", *against)},
        figures=figures,
        agreement=1e-4,
    )


CASES = (
    _case("no mining", 4096, (Figure("time", (times_floor(1.0), below_peer(6))), Figure("memory", (below_peer(20),))),
          mining=False, against=("peer", "floor")),
    _case("mining", 4096, (Figure("time", (times_floor(1.3), below_peer(8))), Figure("memory")),
          mining=True, against=("peer", "floor")),
    _case("mining, clustered", 4096, (Figure("time"), Figure("memory")),
          mining=True, against=("peer", "floor"), in_clusters=True),
    _case("no mining", 16384, (Figure("time", (times_floor(0.8),)), Figure("memory")), mining=False,
    against=("floor",)), _case("mining", 16384, (Figure("time", (times_floor(1.0),)), Figure("memory")), mining=True,
    against=("floor",)), _case("no mining", 65536, (Figure("memory", (megabytes(512),)), Figure("process memory")),
    mining=False), _case("mining", 65536, (Figure("memory", (megabytes(512),)), Figure("process memory")),
    mining=True),
)  # fmt: skip
