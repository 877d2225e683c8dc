"""`explain`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from scorecraft.catalog.objectives import UnknownObjective, make_pictured
from scorecraft.catalog.weight_curves import CLASSES, DIMENSION, WeightCurve, weight_curve, weight_figure
from scorecraft.cli import UsageError
from scorecraft.cli.terminal import print_json, stdout
from scorecraft.core import InBatch
from scorecraft.core.paper import papers_of

_HEIGHT = 7
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def explain(text: str, plot: Path | None, as_json: bool) -> None:
    """Print an objective's weight curve, and draw it into a file when asked to."""
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot: expected a file name that ends in .png or .svg, got {plot}")
    try:
        objective = make_pictured(text, classes=CLASSES, dimension=DIMENSION)
    except UnknownObjective as error:
        raise UsageError(str(error)) from error
    title = " ".join(repr(objective).split())
    curve = weight_curve(objective)
    if plot is not None:
        from scorecraft.studies.plots import png, svg
        from scorecraft.studies.run_folder import write_atomically

        figure = weight_figure(curve, title if len(title) < 90 else type(objective).__name__)
        write_atomically(plot, svg(figure) if plot.suffix == ".svg" else png(figure))
    if as_json:
        papers = [paper.slug for paper in papers_of(objective)]
        print_json({"objective": title, "papers": papers, **asdict(curve)})
        return
    out = stdout()
    out.print(Text(title, "bold"))
    for paper in papers_of(objective):
        out.print(Text(f"{paper.title} ({paper.url})", "dim"))
    stated = objective.objective if isinstance(objective, InBatch) else objective
    summary = (type(stated).__doc__ or "").strip().partition("\n")[0]
    out.print(Text(summary))
    out.print()
    for name, pull, style in (("positive", curve.positive, "blue"), ("negative", curve.negative, "dark_orange")):
        for line in _chart(name, pull):
            out.print(Text(line, style), soft_wrap=True)
        out.print(Text(_axis(curve), "dim"), soft_wrap=True)
        out.print()
    out.print(
        Text(
            "The pull on one pair of a batch of 64 while its score moves, n dL/ds; the other positive pairs score "
            f"{curve.positives_around:.2f} on average, the other negative pairs {curve.negatives_around:.2f}.",
            "dim",
        )
    )
    if plot is not None:
        out.print(Text(f"Drawn into {plot}", "dim"))


def _chart(name: str, pull: Sequence[float]) -> list[str]:
    """Bars of the pull's size, eight levels to a line; a pull in both directions is named, not drawn apart."""
    top = max(map(abs, pull))
    if top == 0:
        return [f"a {name} pair is left alone whatever its score"]
    directions = {math.copysign(1, value) for value in pull if value}
    words = {frozenset({1.0}): "pushed apart", frozenset({-1.0}): "pulled together"}
    what = words.get(frozenset(directions), "pulled together or pushed apart (size of the pull)")
    levels = [round(abs(value) / top * _HEIGHT * 8) for value in pull]
    rows = ("".join(_EIGHTHS[min(8, max(0, level - 8 * row))] for level in levels) for row in reversed(range(_HEIGHT)))
    return [f"a {name} pair is {what}, at most by {top:.3g}", *rows]


def _axis(curve: WeightCurve) -> str:
    middle_score = round(curve.scores[len(curve.scores) // 2], 2) + 0.0  # no minus before a zero
    low, middle, high = (f"{score:.2f}" for score in (curve.scores[0], middle_score, curve.scores[-1]))
    width = len(curve.scores)
    left = f"{low}{middle:>{width // 2 - len(low) + (len(middle) + 1) // 2}}"
    return f"{left}{high:>{width - len(left)}}"
