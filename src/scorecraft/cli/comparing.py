"""`compare`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Running:
    """How a comparison is run, whatever it compares."""

    seeds: int
    jobs: int | None
    folder: Path | None
    fresh: bool
    record: bool
    as_json: bool


def compare_similarity(data: str, objectives: list[str], running: Running, **options: Any) -> None:
    """Compare objectives on labelled data; without objectives, all of this library."""
    from scorecraft.comparisons.similarity import similarity_comparison

    _compare(similarity_comparison, data, objectives or list(objective_types()), running, options)


def compare_retrieval(data: str, objectives: list[str], running: Running, **options: Any) -> None:
    """Compare objectives that fine-tune a retriever."""
    from scorecraft.comparisons.retrieval import DEFAULT_OBJECTIVES, retrieval_comparison

    _compare(retrieval_comparison, data, objectives or list(DEFAULT_OBJECTIVES), running, options)


def compare_reranking(data: str, objectives: list[str], running: Running, **options: Any) -> None:
    """Compare objectives that train a re-ranker."""
    from scorecraft.comparisons.reranking import DEFAULT_OBJECTIVES, reranking_comparison

    _compare(reranking_comparison, data, objectives or list(DEFAULT_OBJECTIVES), running, options)


def compare_preference(data: str, objectives: list[str], running: Running, **options: Any) -> None:
    """Compare objectives that align a language model."""
    from scorecraft.comparisons.preference import DEFAULT_OBJECTIVES, preference_comparison

    _compare(preference_comparison, data, objectives or list(DEFAULT_OBJECTIVES), running, options)


def _compare(
    make: Callable[..., Comparison], data: str, objectives: list[str], running: Running, options: Mapping[str, Any]
) -> None:
    if running.record:
        require_checkout()
    chosen = list(dict.fromkeys(objectives))
    if len(chosen) < 2:
        raise UsageError("expected two different objectives or more to compare (--objective NAME --objective NAME)")
    try:
        comparison = make(data, chosen, **options)
    except UnknownObjective as error:
        raise UsageError(str(error)) from error
    name = re.sub(r"\W+", "-", Path(data).stem)
    place = running.folder or RUNS / comparison.slug / f"{name}-{comparison.world.settings['sha256'][:8]}"
    recorded = comparison_path(comparison.task, name) if running.record else None
    _run(comparison, range(running.seeds), place, running.jobs, running.fresh, recorded, running.as_json)


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
