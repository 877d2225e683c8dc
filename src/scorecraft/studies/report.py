"""A result for people: a page of HTML that needs nothing beside it, plots, JSON, and tables for the terminal."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorecraft.studies import wording
from scorecraft.studies.result import JudgedClaim, StudyResult
from scorecraft.studies.run_folder import write_atomically
from scorecraft.studies.statistics import mean_interval
from scorecraft.studies.study import Contender, Settings, World

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class ReportFiles:
    """What was written."""

    json: Path
    html: Path
    plots: tuple[Path, ...]


def write_report(result: StudyResult, folder: str | os.PathLike[str]) -> ReportFiles:
    """Write `result.json`, `report.html` and one `plot-<world>.png` per world into a folder, each atomically.

    Raises:
        RunFolderUnwritable: in one line.
    """
    from scorecraft.studies.plots import png, world_figure

    place = Path(folder)
    files = ReportFiles(
        json=place / "result.json",
        html=place / "report.html",
        plots=tuple(place / f"plot-{world.name}.png" for world in result.worlds),
    )
    for world, path in zip(result.worlds, files.plots, strict=True):
        write_atomically(path, png(world_figure(result, world.name)))
    write_atomically(files.html, html_report(result))
    write_json(result, files.json)
    return files


def write_json(result: StudyResult, path: str | os.PathLike[str]) -> None:
    """Write a result as JSON, atomically. Nothing that is not a number gets in as one.

    Raises:
        RunFolderUnwritable: in one line.
    """
    text = json.dumps(result.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(Path(path), text + "\n")


def read_json(path: str | os.PathLike[str]) -> StudyResult:
    """Read what `write_json` wrote."""
    return StudyResult.from_json(json.loads(Path(path).read_text(encoding="utf-8")))


def terminal_table(result: StudyResult) -> RenderableType:
    """The contenders of every world, the expectations beside the claim, and the verdict, for a rich console."""
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    style = {"holds": "green", "fails": "red", "inconclusive": "yellow"}
    parts: list[RenderableType] = []
    for world in result.worlds:
        table = Table(
            box=box.SIMPLE_HEAD, title=Text(_world_heading(result, world)), title_justify="left", expand=False
        )
        primary = result.metric(result.claim.metric)
        others = [metric for metric in result.metrics if metric is not primary]
        table.add_column("contender")
        for heading in (primary.title, f"improvement, {wording.CONFIDENCE_TEXT} interval", "p (Holm)"):
            table.add_column(Text(heading), justify="right")
        for metric in others:
            table.add_column(Text(metric.title), justify="right")
        for contender in result.contenders_in(world.name):
            gain, interval, p = _comparison_cells(result, world, contender)
            means = [
                wording.number(mean_interval(result.values(world.name, contender.name, metric.name)).mean, metric)
                for metric in (primary, *others)
            ]
            cells = [means[0], f"{gain} {interval}".strip(), p, *means[1:]]
            emphasis = {"method": "bold", "reference": "dim"}.get(contender.role, "")
            unbroken = (Text(cell.replace(" ", "\N{NO-BREAK SPACE}")) for cell in cells)
            table.add_row(Text(contender.title), *unbroken, style=emphasis)
        parts.append(table)
    if result.further_claims:
        table = Table(box=box.SIMPLE_HEAD, title="Also expected (no say in the verdict)", title_justify="left")
        for name in ("expectation", "found", "margin", ""):
            table.add_column(name)
        for claim in result.further_claims:
            metric = result.metric(claim.metric)
            found = f"{wording.improvement(claim.found, metric)} {wording.improvement_interval(claim.found, metric)}"
            table.add_row(
                Text(claim.sentence),
                Text(found),
                Text(wording.margin(claim, metric)),
                Text(claim.verdict, style[claim.verdict]),
            )
        parts.append(table)
    verdict = Text(f"{wording.VERDICT_SYMBOL[result.verdict]} {result.verdict}", f"bold {style[result.verdict]}")
    finding = f"{_finding(result, result.claim)} Effect size d_z {wording.effect_size(result.claim.found)}."
    summary = Text.assemble(result.claim.sentence, "\n", verdict, "  ", finding)
    parts.append(Panel(summary, title=Text(result.slug), title_align="left", border_style=style[result.verdict]))
    return Group(*parts)


def html_report(result: StudyResult) -> str:
    """The whole report as one HTML page: styles and plots are inside, it follows the reader's light or dark setting."""
    claim, metric = result.claim, result.metric(result.claim.metric)
    found = claim.found
    facts = [
        ("improvement", wording.improvement(found, metric)),
        (f"{wording.CONFIDENCE_TEXT} interval", wording.improvement_interval(found, metric)),
        ("margin", wording.margin(claim, metric)),
        ("effect size d<sub>z</sub>", wording.effect_size(found)),
        ("p", wording.p_value(found.p_value)),
        ("paired seeds", str(found.pairs)),
    ]
    cards = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    arxiv = f'<a href="https://arxiv.org/abs/{escape(result.arxiv)}">arXiv {escape(result.arxiv)}</a>'
    sections = [
        f"<header><p class=quiet>study <b>{escape(result.slug)}</b> · scale {escape(result.scale)} · {arxiv}</p>"
        f"<h1>{escape(result.title)}</h1></header>",
        f"<section class='verdict {result.verdict}'><p class=badge>{wording.VERDICT_SYMBOL[result.verdict]} "
        f"{result.verdict}</p><p class=claim>{escape(claim.sentence)}</p><p>{escape(_finding(result, claim))}</p>"
        f"<dl class=facts>{cards}</dl><p class=quiet>{escape(wording.RULE)} The margin was fixed before any run.</p>"
        "</section>",
        *(_world_section(result, world) for world in result.worlds),
    ]
    if result.further_claims:
        sections.append(_expectations(result))
    if result.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
        sections.append(f"<section><h2>What to keep in mind</h2><ul>{notes}</ul></section>")
    sections += [_settings(result), _seed_values(result), provenance_section(result.provenance)]
    return html_page(f"{result.slug}: {result.verdict}", sections)


def html_page(title: str, sections: Iterable[str]) -> str:
    """A page of sections in the look of all reports."""
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def _finding(result: StudyResult, claim: JudgedClaim) -> str:
    """One sentence: who met whom, and what came out."""
    metric = result.metric(claim.metric)
    return (
        f"{metric.title}, {result.contender(claim.method).title} against {result.contender(claim.baseline).title}: "
        f"improvement {wording.improvement(claim.found, metric)}, {wording.CONFIDENCE_TEXT} interval "
        f"{wording.improvement_interval(claim.found, metric)}, margin {wording.margin(claim, metric)}, "
        f"{claim.found.pairs} paired {'seed' if claim.found.pairs == 1 else 'seeds'}."
    )


def _world_heading(result: StudyResult, world: World) -> str:
    role = "carries the verdict" if world.name == result.claim.world else "reported beside it"
    return f"{world.title} ({role})"


def _row(result: StudyResult, world: World, contender: Contender) -> list[str]:
    """The cells of a contender: its name, every metric, and the comparison with the baseline by the claim's metric."""
    cells = [contender.title]
    for metric in result.metrics:
        cells.append(wording.interval(mean_interval(result.values(world.name, contender.name, metric.name)), metric))
    return cells + _comparison_cells(result, world, contender)


def _comparison_cells(result: StudyResult, world: World, contender: Contender) -> list[str]:
    """Improvement, interval and corrected p-value; the contender's role where nothing is compared."""
    compared = result.comparison(world.name, contender.name, result.claim.metric)
    if compared is None:
        return [contender.role, "", ""]
    metric = result.metric(compared.metric)
    return [
        wording.improvement(compared.found, metric),
        wording.improvement_interval(compared.found, metric),
        wording.p_value(compared.p_holm),
    ]


def _world_section(result: StudyResult, world: World) -> str:
    from scorecraft.studies.plots import DARK, LIGHT, png, world_figure

    light, dark = (
        "data:image/png;base64," + base64.b64encode(png(world_figure(result, world.name, palette), dpi=120)).decode()
        for palette in (LIGHT, DARK)
    )
    alternative = escape(f"{world.title}: every seed of every contender, and improvements over the baseline")
    picture = (
        f"<picture><source media='(prefers-color-scheme: dark)' srcset='{dark}'>"
        f"<img src='{light}' alt='{alternative}'></picture>"
    )
    header = [
        "contender",
        *(f"{metric.title} ({metric.better} is better)" for metric in result.metrics),
        f"improvement in {result.metric(result.claim.metric).title}",
        f"{wording.CONFIDENCE_TEXT} interval",
        "p (Holm)",
    ]
    rows = [(contender.role, _row(result, world, contender)) for contender in result.contenders_in(world.name)]
    return (
        f"<section><h2>{escape(_world_heading(result, world))}</h2><p>{escape(world.description)}</p>{picture}"
        f"{html_table(header, [cells for _, cells in rows], classes=[role for role, _ in rows])}"
        f"<p class=quiet>Means with {wording.CONFIDENCE_TEXT} intervals over {len(result.seeds)} seeds. Improvements "
        "are paired by seed and count in the direction of the metric; p-values carry Holm's correction over the "
        f"contenders of this table.</p>{_every_metric(result, world)}</section>"
    )


def _every_metric(result: StudyResult, world: World) -> str:
    """The method against the baseline by each metric, where there are several."""
    rows = []
    for metric in result.metrics:
        compared = result.comparison(world.name, result.claim.method, metric.name)
        if compared is not None:
            values = [
                wording.interval(mean_interval(result.values(world.name, name, metric.name)), metric)
                for name in (result.claim.method, result.claim.baseline)
            ]
            gain, interval = (
                write(compared.found, metric) for write in (wording.improvement, wording.improvement_interval)
            )
            rows.append([metric.title, *values, gain, interval, wording.p_value(compared.p_holm)])
    if len(rows) < 2:
        return ""
    names = [result.contender(name).title for name in (result.claim.method, result.claim.baseline)]
    header = ["by every metric", *names, "improvement", f"{wording.CONFIDENCE_TEXT} interval", "p (Holm)"]
    return html_table(header, rows)


def _expectations(result: StudyResult) -> str:
    rows = []
    for claim in result.further_claims:
        metric = result.metric(claim.metric)
        rows.append(
            [
                claim.sentence,
                result.world(claim.world).title,
                f"{wording.improvement(claim.found, metric)} {wording.improvement_interval(claim.found, metric)}",
                wording.margin(claim, metric),
                f"{wording.VERDICT_SYMBOL[claim.verdict]} {claim.verdict}",
            ]
        )
    table = html_table(["expectation", "world", "found", "margin", "outcome"], rows)
    return (
        f"<section><h2>Also expected</h2><p>Written down beforehand, without a say in the verdict.</p>{table}</section>"
    )


def _settings(result: StudyResult) -> str:
    named = [
        (f"scale {result.scale}", result.scale_settings),
        *((f"world: {world.title}", world.settings) for world in result.worlds),
        *((f"contender: {contender.title}", contender.settings) for contender in result.contenders),
    ]
    rows = [[name, _settings_text(settings)] for name, settings in named if settings]
    return f"<section><details><summary>Settings</summary>{html_table(['what', 'settings'], rows)}</details></section>"


def _settings_text(settings: Settings) -> str:
    texts = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in settings.items()}
    return ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in texts.items())


def _seed_values(result: StudyResult) -> str:
    tables = []
    for world in result.worlds:
        for metric in result.metrics:
            rows = [
                [
                    contender.title,
                    *(
                        wording.number(value, metric)
                        for value in result.values(world.name, contender.name, metric.name)
                    ),
                ]
                for contender in result.contenders_in(world.name)
            ]
            header = ["contender", *(f"seed {seed}" for seed in result.seeds)]
            tables.append(f"<h3>{escape(world.title)}: {escape(metric.title)}</h3>{html_table(header, rows)}")
    return f"<section><details><summary>Every seed</summary>{''.join(tables)}</details></section>"


def provenance_section(provenance: Mapping[str, Any]) -> str:
    """Where and when and with what something was run."""
    rows: list[list[str]] = []
    for name, value in provenance.items():
        if isinstance(value, Mapping):
            rows += [[f"{name}: {key}", str(inner)] for key, inner in value.items() if inner is not None]
        elif name == "trial_seconds":
            rows.append(["time of all trials together", wording.duration(float(value))])
        elif isinstance(value, list):
            rows.append([name, ", ".join(map(str, value))])
        elif value is not None:
            rows.append([name, str(value)])
    table = html_table(["what", "value"], rows)
    return f"<section><details open><summary>Where this comes from</summary>{table}</details></section>"


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = ()) -> str:
    """A table of plain cells; `classes` style its rows."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = []
    for index, row in enumerate(rows):
        kind = f" class={classes[index]}" if classes else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --page: #f4f6f8; --ink: #1f2933; --quiet: #5b6675; --line: #dde2e8;
  --link: #1f6feb; --holds: #15803d; --fails: #b42318; --inconclusive: #a15c07; }
@media (prefers-color-scheme: dark) { :root { --paper: #161b22; --page: #0d1117; --ink: #e6edf3; --quiet: #9aa5b1;
  --line: #2d343e; --link: #6cb0ff; --holds: #5fd38a; --fails: #ff8f85; --inconclusive: #f0b45b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
header { padding: 0 .5rem; } h1 { font-size: 1.65rem; line-height: 1.25; margin: .25rem 0 1.25rem; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; } h3 { font-size: .95rem; margin: 1.25rem 0 .25rem; }
a { color: var(--link); } .quiet { color: var(--quiet); font-size: .875rem; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: .6rem; padding: 1.25rem;
  margin: 0 0 1rem; }
.verdict { border-left: .35rem solid var(--tone); } .holds { --tone: var(--holds); } .fails { --tone: var(--fails); }
.inconclusive { --tone: var(--inconclusive); }
.badge { margin: 0; color: var(--tone); font-weight: 700; font-size: 1.1rem; text-transform: uppercase;
  letter-spacing: .04em; }
.claim { font-size: 1.2rem; margin: .25rem 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.facts div { border-top: 1px solid var(--line); padding-top: .4rem; }
.facts dt { color: var(--quiet); font-size: .8rem; } .facts dd { margin: 0; font-weight: 600;
  font-variant-numeric: tabular-nums; }
img { width: 100%; height: auto; display: block; margin: .75rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
th { text-align: right; color: var(--quiet); font-weight: 600; vertical-align: bottom; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); } td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } details td { text-align: left; white-space: normal; }
details th { text-align: left; }
tr.method td { font-weight: 700; } tr.reference td { color: var(--quiet); }
summary { cursor: pointer; font-weight: 600; }
@media print { body { background: none; } section { break-inside: avoid; } }
"""
