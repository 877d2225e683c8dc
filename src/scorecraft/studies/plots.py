"""Plots of a result, drawn without any global state of matplotlib."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scorecraft.studies import wording
from scorecraft.studies.result import StudyResult
from scorecraft.studies.statistics import mean_interval
from scorecraft.studies.study import Contender


@dataclass(frozen=True)
class Palette:
    """The colours of a plot."""

    background: str
    ink: str
    faint: str
    method: str
    baseline: str
    contender: str
    margin: str


LIGHT = Palette("#ffffff", "#1f2933", "#d5dae1", "#1f6feb", "#c2410c", "#667085", "#15803d")
DARK = Palette("#161b22", "#e6edf3", "#39414d", "#6cb0ff", "#ff9d5c", "#98a2b3", "#5fd38a")


def world_figure(result: StudyResult, world: str, palette: Palette = LIGHT) -> Figure:
    """One world by the claim's metric: every seed of every contender, and the paired improvement over the baseline.

    Left, a dot per seed with the mean and its interval; lines join the seeds of the method and the baseline. Right, the
    mean improvement over the baseline with its interval, zero, and in the world that carries the verdict the margin.
    """
    metric = result.metric(result.claim.metric)
    contenders = result.contenders_in(world)
    figure = Figure(figsize=(9.6, 1.3 + 0.38 * len(contenders)), layout="constrained", facecolor=palette.background)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.35, 1))
    rows = {contender.name: row for row, contender in enumerate(contenders)}

    for seed_values in zip(
        *(result.values(world, one.name, metric.name) for one in contenders if one.role in ("method", "baseline")),
        strict=True,
    ):
        left.plot(seed_values, range(len(seed_values)), color=palette.faint, linewidth=1, zorder=1)
    for contender in contenders:
        row, colour = rows[contender.name], _colour(contender, palette)
        values = result.values(world, contender.name, metric.name)
        mean = mean_interval(values)
        left.scatter(values, [row] * len(values), s=16, color=colour, alpha=0.45, linewidths=0, zorder=2)
        interval_mark(left, row, mean.mean, mean.low, mean.high, colour, hollow=contender.role == "reference")
        compared = result.comparison(world, contender.name, metric.name)
        if compared is not None:
            found = compared.found
            interval_mark(right, row, found.improvement, found.low, found.high, colour)
    left.set_yticks(range(len(contenders)), [contender.title for contender in contenders])
    left.invert_yaxis()
    left.set_xlabel(f"{metric.title} ({wording.direction(metric)})")

    right.axvline(0, color=palette.baseline, linewidth=1, zorder=1)
    baseline = next(one for one in contenders if one.role == "baseline")
    right.set_xlabel(f"improvement over {baseline.title}")
    if world == result.claim.world:
        right.axvline(result.claim.margin, color=palette.margin, linewidth=1.4, linestyle=(0, (4, 3)), zorder=1)
        right.annotate(
            f"margin {wording.margin(result.claim, metric)}",
            (result.claim.margin, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=palette.margin,
            fontsize=8.5,
        )
    if result.claim.relative:
        right.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %".replace("-", wording.MINUS))
    for axes in (left, right):
        dress(axes, palette)
    for label, contender in zip(left.get_yticklabels(), contenders, strict=True):
        label.set_color(_colour(contender, palette))
        label.set_fontweight("bold" if contender.role == "method" else "normal")
    right.tick_params(axis="y", left=False, labelleft=False)
    return figure


def png(figure: Figure, *, dpi: int = 160) -> bytes:
    """A figure as PNG. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """A figure as SVG. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "scorecraft"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _colour(contender: Contender, palette: Palette) -> str:
    return {"method": palette.method, "baseline": palette.baseline}.get(contender.role, palette.contender)


def interval_mark(
    axes: Axes, row: int, mean: float, low: float, high: float, colour: str, *, hollow: bool = False
) -> None:
    """A mean with its interval; an unbounded interval is left out."""
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=3)
    face = axes.figure.get_facecolor() if hollow else colour
    axes.plot([mean], [row], marker="D", markersize=6.5, markerfacecolor=face, markeredgecolor=colour, zorder=4)


def dress(axes: Axes, palette: Palette) -> None:
    """Give axes the look of all plots here."""
    axes.set_facecolor(palette.background)
    axes.grid(axis="x", color=palette.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(y=0.07)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(colors=palette.ink, labelsize=9, length=0)
    axes.xaxis.label.set_color(palette.ink)
    axes.xaxis.label.set_fontsize(9)
    for spine in axes.spines.values():
        spine.set_visible(False)
