"""A comparison for people: a page of HTML that needs nothing beside it, a plot, JSON, and a table for the terminal."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from scorecraft.comparisons.comparison import AgainstBest, ComparisonResult
from scorecraft.studies import wording
from scorecraft.studies.plots import DARK, LIGHT, Palette, dress, interval_mark, png
from scorecraft.studies.report import html_page, html_table, provenance_section
from scorecraft.studies.run_folder import write_atomically
from scorecraft.studies.statistics import mean_interval
from scorecraft.studies.study import Contender

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

METHOD = (
    "Every seed splits the data anew. Each contender had the same budget and the same tuning on the validation part; "
    "the test part was looked at once. The best contender is compared with each other one seed by seed, with a "
    "standard error for repeated splits of the same data; intervals are simultaneous at 95 %, p-values carry Holm's "
    "correction."
)


@dataclass(frozen=True)
class ReportFiles:
    """What was written."""

    json: Path
    html: Path
    plot: Path


def write_report(result: ComparisonResult, folder: Path) -> ReportFiles:
    """Write `result.json`, `report.html` and `plot.png` into a folder, each atomically.

    Raises:
        RunFolderUnwritable: in one line.
    """
    files = ReportFiles(folder / "result.json", folder / "report.html", folder / "plot.png")
    write_atomically(files.plot, png(figure(result)))
    write_atomically(files.html, html_report(result))
    text = json.dumps(result.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(files.json, text + "\n")
    return files


def terminal_table(result: ComparisonResult) -> RenderableType:
    """The ranking and the answer, for a rich console."""
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(f"{result.world.title}: {result.world.description}"),
                  title_justify="left")  # fmt: skip
    table.add_column("contender")
    for heading in _header(result)[1:]:
        table.add_column(heading, justify="right")
    for contender in result.contenders:
        style = "bold" if contender == result.best else "" if contender in result.equals else "dim"
        table.add_row(*(Text(cell.replace(" ", "\N{NO-BREAK SPACE}")) for cell in _row(result, contender)), style=style)
    told = len(result.equals) < len(result.against_best)
    return Group(table, Panel(Text(result.answer), title="answer", title_align="left",
                              border_style="green" if told else "yellow"))  # fmt: skip


def html_report(result: ComparisonResult) -> str:
    """The whole report as one HTML page."""
    light, dark = (
        "data:image/png;base64," + base64.b64encode(png(figure(result, palette), dpi=120)).decode()
        for palette in (LIGHT, DARK)
    )
    told = len(result.equals) < len(result.against_best)
    rows = [_row(result, contender) for contender in result.contenders]
    classes = ["method" if one == result.best else "" if one in result.equals else "reference"
               for one in result.contenders]  # fmt: skip
    settings = [[name.replace("_", " "), str(value)] for name, value in result.scale.settings.items()]
    seeds = [
        [contender.title, *(wording.number(value, metric) for value in result.values(contender.name, metric.name))]
        for metric in result.metrics[:1]
        for contender in result.contenders
    ]
    sections = [
        f"<header><p class=quiet>comparison: {escape(result.task)}</p><h1>{escape(result.world.title)}</h1></header>",
        f"<section class='verdict {'holds' if told else 'inconclusive'}'><p class=claim>{escape(result.answer)}</p>"
        f"<p>{escape(result.world.description)}</p><p class=quiet>{escape(METHOD)}</p></section>",
        f"<section><h2>Ranking</h2><picture><source media='(prefers-color-scheme: dark)' srcset='{dark}'>"
        f"<img src='{light}' alt='every seed of every contender'></picture>"
        f"{html_table(_header(result), rows, classes)}</section>",
        f"<section><details><summary>Budget</summary>{html_table(['what', 'value'], settings)}</details></section>",
        f"<section><details><summary>Every seed</summary>"
        f"{html_table(['contender', *(f'seed {seed}' for seed in result.seeds)], seeds)}</details></section>",
        provenance_section(result.provenance),
    ]
    return html_page(f"comparison of {result.task}", sections)


def figure(result: ComparisonResult, palette: Palette = LIGHT) -> Figure:
    """Left every seed of every contender with the mean; right how far each is behind the best, with its interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    deciding = result.metrics[0]
    drawn = Figure(figsize=(9.6, 1.3 + 0.34 * len(result.contenders)), layout="constrained",
                   facecolor=palette.background)  # fmt: skip
    FigureCanvasAgg(drawn)
    left, right = drawn.subplots(1, 2, sharey=True, width_ratios=(1.35, 1))
    behind = {one.contender: one for one in result.against_best}
    for row, contender in enumerate(result.contenders):
        one = behind.get(contender.name)
        colour = palette.method if one is None else palette.baseline if one.beaten else palette.contender
        values = result.values(contender.name, deciding.name)
        mean = mean_interval(values)
        left.scatter(values, [row] * len(values), s=16, color=colour, alpha=0.45, linewidths=0)
        interval_mark(left, row, mean.mean, mean.low, mean.high, colour)
        if one is not None:
            interval_mark(right, row, -one.found.improvement, -one.found.high, -one.found.low, colour)
    left.set_yticks(range(len(result.contenders)), [contender.title for contender in result.contenders])
    left.invert_yaxis()
    left.set_xlabel(f"{deciding.title} ({wording.direction(deciding)})")
    right.axvline(0, color=palette.method, linewidth=1)
    right.set_xlabel(f"against {result.best.title}\n(simultaneous {wording.CONFIDENCE_TEXT} intervals)")
    for axes in (left, right):
        dress(axes, palette)
    right.tick_params(axis="y", left=False, labelleft=False)
    return drawn


def _header(result: ComparisonResult) -> list[str]:
    return ["contender", *(metric.title for metric in result.metrics), "against the best", "interval", "p (Holm)"]


def _row(result: ComparisonResult, contender: Contender) -> list[str]:
    means = [
        wording.number(mean_interval(result.values(contender.name, metric.name)).mean, metric)
        for metric in result.metrics
    ]
    one = next((one for one in result.against_best if one.contender == contender.name), None)
    return [contender.title, *means, *(("best", "", "") if one is None else _behind(result, one))]


def _behind(result: ComparisonResult, one: AgainstBest) -> tuple[str, str, str]:
    deciding = result.metrics[0]
    behind, low, high = (
        wording.change(-value, deciding, relative=False)
        for value in (one.found.improvement, one.found.high, one.found.low)
    )
    return behind, f"[{low}, {high}]", wording.p_value(one.p_holm)
