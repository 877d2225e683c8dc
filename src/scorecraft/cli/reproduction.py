"""`reproduce`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from scorecraft.catalog.records import study_path
from scorecraft.cli import FAILED, INTERRUPTED, UsageError
from scorecraft.cli.papers import lookup
from scorecraft.cli.recording import require_checkout
from scorecraft.cli.terminal import complain, print_json, progress_bar, stderr, stdout
from scorecraft.studies import registry
from scorecraft.studies.report import ReportFiles, terminal_table, write_json, write_report
from scorecraft.studies.result import StudyResult
from scorecraft.studies.run_folder import write_atomically
from scorecraft.studies.runner import RUNS, Backend, Progress, run_study
from scorecraft.studies.study import Study, StudyError


def reproduce(
    names: list[str],
    *,
    every: bool,
    scale: str,
    seeds: int | None,
    jobs: int | None,
    backend: Backend,
    folder: Path | None,
    fresh: bool,
    record: bool,
    as_json: bool,
) -> None:
    """Run studies one after the other; one that fails is reported and does not keep the others from running."""
    studies = _chosen(names, every)
    if record:
        require_checkout()
        for study in studies:
            own = study.scale(scale).seeds
            if seeds is not None and seeds < own:
                raise UsageError(f"--record keeps results of at least the study's own {own} seeds, got --seeds {seeds}")
    outcomes: list[dict[str, Any]] = []
    failed = False
    for study in studies:
        place = (RUNS if folder is None else folder) / study.slug / scale
        try:
            result, resumed = _run(study, scale, seeds, jobs, backend, place, fresh)
            files = write_report(result, place)
            if record:
                _record(result, files)
        except StudyError as error:
            complain(str(error))
            failed = True
        except KeyboardInterrupt as stop:
            complain(str(stop) or f"{study.slug} was stopped: the same command goes on from there")
            raise typer.Exit(INTERRUPTED) from stop
        else:
            outcomes.append({**result.as_json(), "files": _paths(place, files)})
            if not as_json:
                _print(result, place, files, resumed)
    if as_json:
        print_json(outcomes)
    if failed:
        raise typer.Exit(FAILED)


def _chosen(names: list[str], every: bool) -> list[Study]:
    if every == bool(names):
        raise UsageError("expected either papers or --all (see `scorecraft reproduce --help`)")
    if every:
        return [registry.find(slug) for slug in registry.slugs()]
    slugs = list(dict.fromkeys(lookup(name).paper.slug for name in names))
    for slug in slugs:
        if slug not in registry.slugs():
            ready = ", ".join(registry.slugs())
            raise UsageError(f"`{slug}` is planned and has no study yet: there are studies of {ready}")
    return [registry.find(slug) for slug in slugs]


def _run(
    study: Study, scale: str, seeds: int | None, jobs: int | None, backend: Backend, place: Path, fresh: bool
) -> tuple[StudyResult, int]:
    """The result, and how many of its trials an earlier run had left."""
    command = shlex.join(["scorecraft", *sys.argv[1:]])
    resumed = 0
    with progress_bar("trial") as advance:

        def told(event: Progress) -> None:
            nonlocal resumed
            resumed = event.resumed
            advance(event.done, event.total, f"{study.slug}  {event.trial}")

        result = run_study(
            study,
            scale=scale,
            seeds=seeds,
            jobs=jobs,
            backend=backend,
            folder=place,
            fresh=fresh,
            progress=told,
            command=command,
        )
    return result, resumed


def _record(result: StudyResult, files: ReportFiles) -> None:
    """Put the result and its plots where the catalogue and the README read them."""
    path = study_path(result.slug, result.scale)
    for world, plot in zip(result.worlds, files.plots, strict=True):
        write_atomically(path.with_name(f"{result.scale}-{world.name}.png"), plot.read_bytes())
    write_json(result, path)
    stderr().print(Text(f"recorded in {path}; `python -m scorecraft.catalog.readme` puts it into the README"))


def _print(result: StudyResult, place: Path, files: ReportFiles, resumed: int) -> None:
    out = stdout()
    out.print(terminal_table(result))
    earlier = f" ({resumed} of {len(result.trials)} trials were there from an earlier run)" if resumed else ""
    for what, path in (("run", f"{place}{earlier}"), *(("plot", plot) for plot in files.plots), ("report", files.html)):
        out.print(Text(f"{what:7}{path}"), soft_wrap=True)


def _paths(place: Path, files: ReportFiles) -> dict[str, Any]:
    return {
        "run": str(place),
        "result": str(files.json),
        "report": str(files.html),
        "plots": [str(plot) for plot in files.plots],
    }
