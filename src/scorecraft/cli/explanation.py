"""`explain`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from scorecraft.catalog.objectives import UnknownObjective, make_explained
from scorecraft.catalog.weight_curves import (
    ANSWER_LOG_PROBABILITY,
    CLASSES,
    DIMENSION,
    TOKENS,
    MarginCurve,
    margin_curve,
    margin_figure,
    weight_curve,
    weight_figure,
)
from scorecraft.cli import UsageError
from scorecraft.cli.terminal import print_json, stdout
from scorecraft.core import InBatch, PreferenceObjective
from scorecraft.core.paper import papers_of

_HEIGHT = 7
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_APART_TOGETHER = ("pushed apart", "pulled together")
_DOWN_UP = ("pushed down", "pushed up")


def explain(text: str, plot: Path | None, as_json: bool) -> None:
    """Print an objective's weight curve, and draw it into a file when asked to."""
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot: expected a file name that ends in .png or .svg, got {plot}")
    try:
        objective = make_explained(text, classes=CLASSES, dimension=DIMENSION)
    except UnknownObjective as error:
        raise UsageError(str(error)) from error
    title = " ".join(repr(objective).split())
    curve = margin_curve(objective) if isinstance(objective, PreferenceObjective) else weight_curve(objective)
    if plot is not None:
        from scorecraft.studies.plots import png, svg
        from scorecraft.studies.run_folder import write_atomically

        heading = title if len(title) < 90 else type(objective).__name__
        figure = margin_figure(curve, heading) if isinstance(curve, MarginCurve) else weight_figure(curve, heading)
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
    if isinstance(curve, MarginCurve):
        _print_pulls(curve.margins, {"chosen answer": curve.chosen, "rejected answer": curve.rejected}, _DOWN_UP)
        told = f"{TOKENS} tokens and log-probability {ANSWER_LOG_PROBABILITY:g} under model and reference"
        around = "rewards of 0" if objective.reads == "rewards" else told  # type: ignore[union-attr]
        said = (
            "The pull on each answer while the margin of the chosen over the rejected one moves, half by each; "
            f"at margin 0 both have {around}."
        )
    else:
        _print_pulls(curve.scores, {"positive pair": curve.positive, "negative pair": curve.negative}, _APART_TOGETHER)
        said = (
            "The pull on one pair of a batch of 64 while its score moves, n dL/ds; the other positive pairs score "
            f"{curve.positives_around:.2f} on average, the other negative pairs {curve.negatives_around:.2f}."
        )
    out.print(Text(said, "dim"))
    if plot is not None:
        out.print(Text(f"Drawn into {plot}", "dim"))


def _print_pulls(at: Sequence[float], pulls: Mapping[str, Sequence[float]], directions: tuple[str, str]) -> None:
    out = stdout()
    for (name, pull), style in zip(pulls.items(), ("blue", "dark_orange"), strict=True):
        for line in _chart(name, pull, directions):
            out.print(Text(line, style), soft_wrap=True)
        out.print(Text(_axis(at), "dim"), soft_wrap=True)
        out.print()


def _chart(name: str, pull: Sequence[float], directions: tuple[str, str]) -> list[str]:
    """Bars of the pull's size, eight levels to a line; a pull in both directions is named, not drawn apart."""
    top = max(map(abs, pull))
    if top == 0:
        return [f"a {name} is left alone whatever its score"]
    above, below = directions
    signs = {math.copysign(1, value) for value in pull if value}
    words = {frozenset({1.0}): above, frozenset({-1.0}): below}
    what = words.get(frozenset(signs), f"{below} or {above} (size of the pull)")
    levels = [round(abs(value) / top * _HEIGHT * 8) for value in pull]
    rows = ("".join(_EIGHTHS[min(8, max(0, level - 8 * row))] for level in levels) for row in reversed(range(_HEIGHT)))
    return [f"a {name} is {what}, at most by {top:.3g}", *rows]


def _axis(at: Sequence[float]) -> str:
    middle_score = round(at[len(at) // 2], 2) + 0.0  # no minus before a zero
    low, middle, high = (f"{score:.2f}" for score in (at[0], middle_score, at[-1]))
    width = len(at)
    left = f"{low}{middle:>{width // 2 - len(low) + (len(middle) + 1) // 2}}"
    return f"{left}{high:>{width - len(left)}}"
