"""Threshold-consistent margin, forward and backward, and its metric OPIS.

TCM inputs: float32 unit embeddings, d = 256, four items per class in random order, sixteen neighbouring classes
sharing a centre: cosines of about 0.55 among those, 0 otherwise, so that both margins meet hard pairs. The peer
(pytorch-metric-learning) copies both embeddings of every pair, 2 x 256 numbers, and so is met at n = 512 only.

OPIS inputs: 20,000 embeddings, d = 128, 1,000 classes of 20 around random centres (cosines about 0.25 within a class,
0 between classes). The range of thresholds is that of pooled false-accept rates 0.01 to 0.1, found beforehand and
given to both sides; 101 thresholds. The peers loop over classes with whole-class tensor operations. "Comparing" reads
off the definition: all positive and negative distances of a class against each threshold in turn. "Histogram" is the
better loop of someone who knows the trick of binning the distances once, reported without a bound. The last case is
the whole metric, the range found by it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.bench.harness import (
    Bound,
    Call,
    Case,
    Entry,
    EntryName,
    Figure,
    Shape,
    below_peer,
    times_floor,
)
from scorecraft.bench.inputs import FLOOR, classes_of, clustered, forward_backward
from scorecraft.core import tiled
from scorecraft.similarity.tcm import ThresholdConsistentMarginLoss
from scorecraft.similarity.tcm.consistency import calibrated_range, opis

PER_CLASS, CLASSES_PER_CENTRE, SPREAD = 4, 16, 0.9
OPIS_PER_CLASS, OPIS_SPREAD, THRESHOLDS, FAR_RANGE = 20, 1.7, 101, (0.01, 0.1)


def _inputs(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    labels = classes_of(PER_CLASS, shape["n"], device)
    return clustered(labels // CLASSES_PER_CENTRE, shape["d"], SPREAD).requires_grad_(), labels


def _ours(shape: Shape, device: torch.device) -> Call:
    x, labels = _inputs(shape, device)
    loss = tiled(ThresholdConsistentMarginLoss())
    return forward_backward(lambda: loss(x, labels), x)


def _peer(shape: Shape, device: torch.device) -> Call:
    from pytorch_metric_learning.losses import ThresholdConsistentMarginLoss as Peer

    x, labels = _inputs(shape, device)
    loss = Peer()
    return forward_backward(lambda: loss(x, labels), x)


def above_each_threshold(distances: Float[Tensor, " pairs"], thresholds: Float[Tensor, " g"]) -> Int[Tensor, " g"]:
    """How many distances exceed each threshold, by comparing them with one threshold after the other."""
    return torch.stack([(distances > threshold).sum() for threshold in thresholds])


def above_by_histogram(distances: Float[Tensor, " pairs"], thresholds: Float[Tensor, " g"]) -> Int[Tensor, " g"]:
    """The same counts from one histogram over the intervals between thresholds."""
    intervals = torch.bincount(torch.bucketize(distances, thresholds), minlength=len(thresholds) + 1)
    return intervals.flip(0).cumsum(0).flip(0)[1:]


def opis_by_class(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    thresholds: Float[Tensor, " g"],
    count_above: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, ""]:
    """OPIS by a loop over classes: distances of each class to itself and to everyone else, counted on the grid."""
    utilities = []
    for label in labels.unique():
        inside = labels == label
        members = x[inside]
        upper = torch.ones(len(members), len(members), dtype=torch.bool, device=x.device).triu(diagonal=1)
        positives = torch.cdist(members, members)[upper]
        negatives = torch.cdist(members, x[~inside]).flatten()
        sensitivity = 1 - count_above(positives, thresholds) / len(positives)
        specificity = count_above(negatives, thresholds) / len(negatives)
        both = sensitivity + specificity
        utilities.append(torch.where(both > 0, 2 * sensitivity * specificity / both.clamp(min=1e-30), 0.0))
    curves = torch.stack(utilities)
    variance = (curves - curves.mean(dim=0)).square().mean(dim=0)
    return torch.trapezoid(variance, thresholds) / (thresholds[-1] - thresholds[0])


def _population(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    labels = classes_of(OPIS_PER_CLASS, shape["n"], device)
    return clustered(labels, shape["d"], OPIS_SPREAD), labels


def _thresholds(x: Tensor, labels: Tensor) -> Float[Tensor, " g"]:
    low, high = calibrated_range(x, labels, far_range=FAR_RANGE)
    return torch.linspace(low, high, THRESHOLDS, dtype=torch.float64, device=x.device)  # as `opis` makes its own


def _opis(shape: Shape, device: torch.device) -> Call:
    x, labels = _population(shape, device)
    thresholds = _thresholds(x, labels)
    return lambda: opis(x, labels, thresholds=thresholds).opis


def _opis_with_range(shape: Shape, device: torch.device) -> Call:
    x, labels = _population(shape, device)
    return lambda: opis(x, labels, far_range=FAR_RANGE, thresholds=THRESHOLDS).opis


def _loop(count_above: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Shape, torch.device], Call]:
    def build(shape: Shape, device: torch.device) -> Call:
        x, labels = _population(shape, device)
        thresholds = _thresholds(x, labels).to(x.dtype)
        return lambda: opis_by_class(x, labels, thresholds, count_above).item()

    return build


def _opis_case(name: str, entries: Mapping[EntryName, Entry], *bounds: Bound) -> Case:
    return Case(
        name=f"{name}, n=20000",
        shape={"n": 20_000, "d": 128},
        small={"n": 80, "d": 16},
        entries=entries,
        figures=(Figure("time", bounds), Figure("memory")),
        agreement=1e-3,
    )


OURS = Entry("tiled(ThresholdConsistentMarginLoss())", _ours)
SMALL = {"n": 96, "d": 16}

CASES = (
    Case(
        name="TCM, n=16384",
        shape={"n": 16384, "d": 256},
        small=SMALL,
        entries={"ours": OURS, "floor": FLOOR},
        figures=(Figure("time", (times_floor(1.0),)), Figure("memory")),
    ),
    Case(
        name="TCM, n=512",
        shape={"n": 512, "d": 256},
        small=SMALL,
        entries={
            "ours": OURS,
            "peer": Entry(
                "pytorch-metric-learning ThresholdConsistentMarginLoss", _peer, needs=("pytorch_metric_learning",)
            ),
            "floor": FLOOR,
        },
        figures=(Figure("time"), Figure("memory")),
        agreement=1e-4,
    ),
    _opis_case(
        "OPIS against comparing",
        {
            "ours": Entry("opis(thresholds=grid)", _opis),
            "peer": Entry("loop over classes, comparing with each threshold", _loop(above_each_threshold)),
        },
        below_peer(20),
    ),
    _opis_case(
        "OPIS against histogram",
        {
            "ours": Entry("opis(thresholds=grid)", _opis),
            "peer": Entry("loop over classes, histogram of distances", _loop(above_by_histogram)),
        },
    ),
    _opis_case("OPIS with its range", {"ours": Entry("opis()", _opis_with_range)}),
)
