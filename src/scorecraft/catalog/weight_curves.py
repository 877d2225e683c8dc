"""How much a pair counts as a function of its score: the picture of an objective."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import Cosine, Objective

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES, PER_CLASS, DIMENSION = 16, 4, 32
"""The batch around the pair: 64 items. `DIMENSION` is what an objective for it has to expect."""
_SPREAD = 1.2


@dataclass(frozen=True)
class WeightCurve:
    """The pull on one pair while its score moves and the rest of the batch stays as it is.

    The pull is `n d loss / d s`, with `n` the number of anchors: what the pair weighs in its own anchor's loss, where a
    loss is a mean over anchors. Above zero the pair is pushed apart, below it is pulled together.
    """

    scores: tuple[float, ...]
    positive: tuple[float, ...]
    """The pull, were it a positive pair."""
    negative: tuple[float, ...]
    """The pull, were it a negative pair."""
    positives_around: float
    """The mean score of the other positive pairs."""
    negatives_around: float
    """The mean score of the other negative pairs."""


def weight_curve(objective: Objective, points: int = 81) -> WeightCurve:
    """The weight curve of an objective for 64 items in 16 classes, of mean cosine about 0.4 within and 0 between them.

    Args:
        objective: any objective for embeddings `[64, 32]` and 16 classes (`make_objective(name, classes=CLASSES,
            dimension=DIMENSION)`); of several score channels the first one is moved.
        points: of the curve. Cosines run from -1 to 1, other scores over what the batch holds.

    Raises:
        ValueError: the objective does not take such a batch.
    """
    labels = torch.arange(CLASSES * PER_CLASS) // PER_CLASS
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(CLASSES, DIMENSION, generator=generator, dtype=torch.float64))
    noise = torch.randn(len(labels), DIMENSION, generator=generator, dtype=torch.float64) / math.sqrt(DIMENSION)
    objective = objective.double().eval()
    batch = objective.batch(centres[labels] + _SPREAD * noise, labels)
    with torch.no_grad():
        scores, *further = objective.dense_scores(batch)
    positives, negatives = batch.pairs.masks()
    low, high = (-1.0, 1.0) if isinstance(objective.score, Cosine) else (float(scores.min()), float(scores.max()))
    grid = torch.linspace(low, high, points, dtype=torch.float64)

    def pull(row: int, column: int) -> tuple[float, ...]:
        found = []
        for score in grid:
            moved = scores.clone()
            moved[row, column] = score
            leaf = moved.requires_grad_()
            value = objective.evaluate_scores((leaf, *further), batch)
            gradient: Tensor = torch.autograd.grad(value, leaf, materialize_grads=True, allow_unused=True)[0]
            found.append(float(gradient[row, column]) * len(labels))
        return tuple(found)

    return WeightCurve(
        scores=tuple(grid.tolist()),
        positive=pull(0, 1),
        negative=pull(0, PER_CLASS),
        positives_around=float(scores[positives].mean()),
        negatives_around=float(scores[negatives].mean()),
    )


def weight_figure(curve: WeightCurve, title: str) -> Figure:
    """The two pulls over the score, with the mean scores of the batch around the pair marked on the axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from scorecraft.studies.plots import LIGHT, dress

    figure = Figure(figsize=(6.4, 3.4), layout="constrained", facecolor=LIGHT.background)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    dress(axes, LIGHT)
    axes.axhline(0, color=LIGHT.faint, linewidth=1)
    for pull, around, colour, name in (
        (curve.positive, curve.positives_around, LIGHT.method, "positive pair"),
        (curve.negative, curve.negatives_around, LIGHT.baseline, "negative pair"),
    ):
        axes.plot(curve.scores, pull, color=colour, linewidth=2, label=name)
        axes.plot([around], [0], marker="^", color=colour, markersize=7, linestyle="")
    axes.set_title(title, color=LIGHT.ink, fontsize=10, loc="left")
    axes.set_xlabel("score of the pair (triangles: mean scores of the other pairs)")
    axes.set_ylabel("pull: above 0 apart, below 0 together", color=LIGHT.ink, fontsize=9)
    axes.legend(frameon=False, fontsize=9, labelcolor=LIGHT.ink)
    return figure
