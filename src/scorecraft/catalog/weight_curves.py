"""How much a pair counts as a function of its score, or of its margin: the picture of an objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import Cosine, Objective, PreferenceObjective, preference_gradients

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASSES, PER_CLASS, DIMENSION = 16, 4, 32
"""The batch around the pair: 64 items. `DIMENSION` is what an objective for it has to expect."""
_SPREAD = 1.2
TOKENS, ANSWER_LOG_PROBABILITY = 40, -60.0
"""The two answers around a margin of 0: as long and as likely as each other, and as under the reference."""
_MARGINS = {"log_probabilities": 40.0, "rewards": 6.0}


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


@dataclass(frozen=True)
class MarginCurve:
    """The pull on the two answers of a pair while the margin between them moves.

    The margin is `log p/p_ref (chosen) - log p/p_ref (rejected)`, or the difference of the rewards; half of it is the
    chosen answer's and half the other's. The pull is `d loss / d log p` (or `d reward`) of that answer: above zero it
    is pushed down, below zero up.
    """

    margins: tuple[float, ...]
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]


def margin_curve(objective: PreferenceObjective, points: int = 81) -> MarginCurve:
    """The pulls of a preference objective on one pair of answers.

    At margin 0 both answers have 40 tokens and a log-probability of -60, under the model and under the reference; a
    strength, where one is read, is 1. Log-ratios run from -40 to 40, rewards from -6 to 6.

    Args:
        objective: any preference objective.
        points: of the curve.
    """
    rewards = objective.reads == "rewards"
    span = _MARGINS[objective.reads]
    margins = torch.linspace(-span, span, points, dtype=torch.float64)
    base = torch.full_like(margins, 0.0 if rewards else ANSWER_LOG_PROBABILITY)
    tokens = torch.full((points,), TOKENS)
    # Pairs own their answers, so that all points are one batch; its mean is undone.
    chosen, rejected = preference_gradients(
        objective.double(),
        base + margins / 2,
        base - margins / 2,
        reference_chosen=base if objective.needs_reference else None,
        reference_rejected=base if objective.needs_reference else None,
        chosen_tokens=tokens if objective.needs_tokens else None,
        rejected_tokens=tokens if objective.needs_tokens else None,
        strength=torch.ones_like(margins) if objective.needs_strength else None,
    )
    return MarginCurve(
        margins=tuple(margins.tolist()),
        chosen=tuple((chosen * points).tolist()),
        rejected=tuple((rejected * points).tolist()),
    )


def weight_figure(curve: WeightCurve, title: str) -> Figure:
    """The two pulls over the score, with the mean scores of the batch around the pair marked on the axis."""
    figure, axes = _drawn(curve.scores, {"positive pair": curve.positive, "negative pair": curve.negative}, title)
    for line, around in zip(axes.lines[1:], (curve.positives_around, curve.negatives_around), strict=True):
        axes.plot([around], [0], marker="^", color=line.get_color(), markersize=7, linestyle="")
    axes.set_xlabel("score of the pair (triangles: mean scores of the other pairs)")
    axes.set_ylabel("pull: above 0 apart, below 0 together", fontsize=9)
    return figure


def margin_figure(curve: MarginCurve, title: str) -> Figure:
    """The two pulls over the margin."""
    figure, axes = _drawn(curve.margins, {"chosen answer": curve.chosen, "rejected answer": curve.rejected}, title)
    axes.set_xlabel("margin of the chosen answer over the rejected one")
    axes.set_ylabel("pull: above 0 down, below 0 up", fontsize=9)
    return figure


def _drawn(at: Sequence[float], pulls: Mapping[str, Sequence[float]], title: str) -> tuple[Figure, Axes]:
    """A line at 0, and one per pull."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from scorecraft.studies.plots import LIGHT, dress

    figure = Figure(figsize=(6.4, 3.4), layout="constrained", facecolor=LIGHT.background)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    dress(axes, LIGHT)
    axes.axhline(0, color=LIGHT.faint, linewidth=1)
    for (name, pull), colour in zip(pulls.items(), (LIGHT.method, LIGHT.baseline), strict=True):
        axes.plot(at, pull, color=colour, linewidth=2, label=name)
    axes.set_title(title, color=LIGHT.ink, fontsize=10, loc="left")
    axes.yaxis.label.set_color(LIGHT.ink)
    axes.legend(frameon=False, fontsize=9, labelcolor=LIGHT.ink)
    return figure, axes
