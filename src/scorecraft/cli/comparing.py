"""`compare`."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from scorecraft.catalog.objectives import UnknownObjective, objective_types
from scorecraft.catalog.records import comparison_path
from scorecraft.cli import FAILED, INTERRUPTED, UsageError
from scorecraft.cli.recording import require_checkout
from scorecraft.cli.terminal import complain, print_json, progress_bar, stderr, stdout
from scorecraft.comparisons.comparison import Comparison, ComparisonResult, conclude
from scorecraft.comparisons.report import ReportFiles, terminal_table, write_report
from scorecraft.studies.run_folder import write_atomically
from scorecraft.studies.runner import RUNS, Progress, run_trials
from scorecraft.studies.study import StudyError


def compare_similarity(
    data: str,
    objectives: list[str],
    *,
    seeds: int,
    steps: int,
    jobs: int | None,
    folder: Path | None,
    fresh: bool,
    record: bool,
    as_json: bool,
    **reading: Any,
) -> None:
    """Compare objectives on labelled data; without objectives, all of this library."""
    from scorecraft.comparisons.similarity import similarity_comparison

    if record:
        require_checkout()
    chosen = list(dict.fromkeys(objectives)) or list(objective_types())
    if len(chosen) < 2:
        raise UsageError("expected two different objectives or more to compare (--objective NAME --objective NAME)")
    try:
        comparison = similarity_comparison(data, chosen, steps=steps, **reading)
    except UnknownObjective as error:
        raise UsageError(str(error)) from error
    place = folder or RUNS / comparison.slug / f"{Path(data).stem}-{comparison.world.settings['sha256'][:8]}"
    recorded = comparison_path(comparison.task, re.sub(r"\W+", "-", Path(data).stem)) if record else None
    _run(comparison, range(seeds), place, jobs, fresh, recorded, as_json)


def _run(
    comparison: Comparison,
    seeds: range,
    place: Path,
    jobs: int | None,
    fresh: bool,
    recorded: Path | None,
    as_json: bool,
) -> None:
    command = shlex.join(["scorecraft", *sys.argv[1:]])
    try:
        with progress_bar("trial") as advance:

            def told(event: Progress) -> None:
                advance(event.done, event.total, f"{comparison.task}  {event.trial}")

            trials, provenance = run_trials(
                comparison,
                comparison.scale,
                seeds,
                jobs=jobs,
                folder=place,
                fresh=fresh,
                progress=told,
                command=command,
            )
        result = conclude(comparison, seeds, trials, provenance)
        files = write_report(result, place)
        if recorded is not None:
            write_atomically(recorded.with_suffix(".png"), files.plot.read_bytes())
            write_atomically(recorded, files.json.read_bytes())
            stderr().print(Text(f"recorded in {recorded}"), soft_wrap=True)
    except StudyError as error:
        complain(str(error))
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt as stop:
        complain(str(stop) or "stopped: the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from stop
    _show(result, place, files, as_json)


def _show(result: ComparisonResult, place: Path, files: ReportFiles, as_json: bool) -> None:
    paths = {"run": place, "plot": files.plot, "report": files.html}
    if as_json:
        print_json({**result.as_json(), "files": {what: str(path) for what, path in paths.items()}})
        return
    out = stdout()
    out.print(terminal_table(result))
    for what, path in paths.items():
        out.print(Text(f"{what:7}{path}"), soft_wrap=True)
