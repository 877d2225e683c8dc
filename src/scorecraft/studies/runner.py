"""Run a study: every contender in every world with every seed, in parallel, each finished trial on disk at once.

A run that was stopped in whatever way goes on where it was when it is started again; see `run_folder`.
Nothing is printed here: progress is told to a callback.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import joblib

from scorecraft.studies.fingerprint import fingerprint
from scorecraft.studies.provenance import cpu_model, now, provenance
from scorecraft.studies.ray_cluster import on_ray
from scorecraft.studies.result import StudyResult, TrialRecord, conclude
from scorecraft.studies.run_folder import RunFolder
from scorecraft.studies.study import Contender, Experiment, Scale, Study, StudyError, Trial, World

_Meeting = tuple[World, Contender, int]

Backend = Literal["local", "ray"]
RUNS = Path("scorecraft-runs")


class TrialFailed(StudyError):
    """A trial raised, or returned something other than its metrics as finite numbers."""


class RunInterrupted(KeyboardInterrupt):
    """The run was stopped by the user; the message says how far it came and how to go on."""


@dataclass(frozen=True)
class Progress:
    """What the progress callback hears: once at the start and after each finished trial."""

    done: int
    """Finished trials, those of earlier runs included."""
    total: int
    resumed: int
    """Trials that were already there at the start."""
    trial: str
    """The trial just finished, for people; empty at the start."""
    seconds: float
    """Wall time of that trial."""


def default_folder(slug: str, scale: str) -> Path:
    """Where a run goes unless it is told otherwise."""
    return RUNS / slug / scale


def run_study(
    study: Study,
    *,
    scale: str = "desk",
    seeds: int | Sequence[int] | None = None,
    jobs: int | None = None,
    backend: Backend = "local",
    folder: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
) -> StudyResult:
    """Run what is missing of a study and judge it.

    The same folder may be used again: finished trials are kept, so more seeds extend a run and a stopped run resumes.
    Every trial computes with one torch thread, so the numbers do not depend on `jobs`.

    Args:
        study: what to run.
        scale: name of one of its scales.
        seeds: how many (0, 1, ...), or which; default: as many as the scale says.
        jobs: trials at the same time; default: one per core. With 1 they run in this process (not on a cluster).
        backend: `"local"` processes, or `"ray"`, a Ray cluster (see `ray_cluster`): the same trials, the same numbers.
        folder: of the run; default: `scorecraft-runs/<slug>/<scale>` under the working folder.
        fresh: throw away what the folder holds of an earlier run.
        progress: called with a `Progress`, in this process.
        command: how this run was started, for the record; default: this process's command line.

    Raises:
        StudyError: in one line that says what to do: an unknown scale, a folder that is in use, holds results of other
            code or configuration or cannot be written, a trial that fails.
        RunInterrupted: on Ctrl-C, after the workers were stopped.
        ValueError: `seeds` or `jobs` out of range.
    """
    chosen = study.scale(scale)
    numbers = _seeds(chosen.seeds if seeds is None else seeds)
    if jobs is not None and jobs < 1:
        raise ValueError(f"argument `jobs`: expected an integer >= 1, got {jobs}")
    path = default_folder(study.slug, scale) if folder is None else Path(folder)
    records, where = run_trials(
        study,
        chosen,
        numbers,
        jobs=jobs,
        backend=backend,
        folder=path,
        fresh=fresh,
        progress=progress,
        command=command,
    )
    return conclude(study, chosen, numbers, records, where)


def run_trials(
    experiment: Experiment,
    scale: Scale,
    seeds: Sequence[int],
    *,
    folder: Path,
    jobs: int | None = None,
    backend: Backend = "local",
    fresh: bool = False,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
) -> tuple[list[TrialRecord], dict[str, Any]]:
    """Run what is missing of an experiment in a folder; its trials in order, and where they come from.

    Args and errors are those of `run_study`.
    """
    with RunFolder(folder, fingerprint(experiment, scale), study=experiment.slug, scale=scale.name, fresh=fresh) as run:
        wanted = [(world, contender, seed) for seed in seeds for world, contender in experiment.meetings()]
        missing = [one for one in wanted if (one[0].name, one[1].name, one[2]) not in run.trials]
        resumed = done = len(wanted) - len(missing)
        tell = progress or _ignore
        tell(Progress(done, len(wanted), resumed, "", 0.0))
        workers = min(jobs or joblib.cpu_count(), len(missing))
        metrics = tuple(metric.name for metric in experiment.metrics)
        titles = {(world.name, contender.name): (world, contender) for world, contender, _ in wanted}
        failure: TrialFailed | None = None
        begun = _until(lambda: failure is not None, missing)  # after a failure, what runs is finished and kept
        try:
            tasks = ((os.getpid(), experiment.trial, metrics, *one, scale) for one in begun)
            if backend == "ray" and missing:
                begin = on_ray(_run_in_worker, tasks, jobs)
            else:
                begin = _on_this_machine(tasks, workers)
            with contextlib.closing(begin) as outcomes:
                for outcome in outcomes:
                    if isinstance(outcome, TrialFailed):
                        failure = failure or outcome
                        continue
                    run.save(outcome)
                    done += 1
                    label = _label(*titles[outcome.world, outcome.contender], outcome.seed)
                    tell(Progress(done, len(wanted), resumed, label, outcome.seconds))
        except KeyboardInterrupt as stop:
            raise RunInterrupted(
                f"stopped with {done} of {len(wanted)} trials finished in {folder}: the same command goes on from there"
            ) from stop
        except BrokenProcessPool as broken:
            raise StudyError(
                f"a worker process died with {done} of {len(wanted)} trials finished in {folder}, perhaps for want of"
                " memory: the same command goes on from there, `--jobs 1` needs the least"
            ) from broken
        if failure is not None:
            raise failure
        records = [run.trials[world.name, contender.name, seed] for world, contender, seed in wanted]
    where = provenance(command)
    machines = sorted({record.cpu for record in records})
    took = sum(record.seconds for record in records)
    return records, {**where, "backend": backend, "jobs": workers, "trial_seconds": took, "cpus": machines}


def _on_this_machine(
    tasks: Iterable[tuple[Any, ...]], workers: int
) -> Generator[TrialRecord | TrialFailed, None, None]:
    """Run trials and give each outcome as it comes; closing the generator stops the workers."""
    if workers <= 1:
        with _one_thread():
            for _, *task in tasks:
                yield _run_trial(*task)
        return
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        options: dict[str, Any] = {"return_as": "generator_unordered", "batch_size": 1, "pre_dispatch": "2 * n_jobs"}
        pool = joblib.Parallel(n_jobs=workers, **options)
        with _deaf_to_interrupts():
            given = pool(joblib.delayed(_run_in_worker)(*task) for task in tasks)
            outcomes = cast(Generator[TrialRecord | TrialFailed, None, None], given)
    try:
        for outcome in outcomes:  # noqa: UP028 - `yield from` would close joblib's generator before the lines below
            yield outcome
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib warns that it stops its workers, which is what we ask for
            outcomes.close()


def _run_in_worker(
    parent: int,
    trial: Trial,
    metrics: tuple[str, ...],
    world: World,
    contender: Contender,
    seed: int,
    scale: Scale,
) -> TrialRecord | TrialFailed:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(parent)
    torch.set_num_threads(1)
    return _run_trial(trial, metrics, world, contender, seed, scale)


def _run_trial(
    trial: Trial, metrics: tuple[str, ...], world: World, contender: Contender, seed: int, scale: Scale
) -> TrialRecord | TrialFailed:
    """A failure is given back, not raised, so that the trials beside it are kept; its note tells where it happened."""
    label = _label(world, contender, seed)
    start = time.perf_counter()
    try:
        values = _checked(trial(world, contender, seed, scale), metrics)
    except Exception as error:
        reason = " ".join(str(error).split())
        failed = TrialFailed(f"trial {label} failed with {type(error).__name__}: {reason}")
        failed.add_note(traceback.format_exc())
        return failed
    seconds = time.perf_counter() - start
    return TrialRecord(
        world=world.name,
        contender=contender.name,
        seed=seed,
        metrics=values,
        seconds=round(seconds, 4),
        finished=now(),
        cpu=cpu_model(),
    )


def _checked(returned: Mapping[str, float], metrics: tuple[str, ...]) -> dict[str, float]:
    if set(returned) != set(metrics):
        raise ValueError(f"expected the metrics {', '.join(metrics)}, got {', '.join(returned)}")
    values = {name: float(returned[name]) for name in metrics}
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"expected a finite {name}, got {value}")
    return values


def _until(stop: Callable[[], bool], missing: Sequence[_Meeting]) -> Iterator[_Meeting]:
    """What is missing, as long as nothing says stop."""
    for one in missing:
        if stop():
            return
        yield one


def _label(world: World, contender: Contender, seed: int) -> str:
    return f"{world.title} · {contender.title} · seed {seed}"


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not numbers or len(set(numbers)) != len(numbers) or min(numbers) < 0:
        raise ValueError(f"argument `seeds`: expected a number >= 1, or different numbers >= 0, got {seeds!r}")
    return numbers


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute as the workers do: the order of a sum depends on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started in here never see Ctrl-C, which a terminal sends to all: stopping them is the runner's part."""
    if threading.current_thread() is not threading.main_thread():  # which may not change what a signal does
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_watched: set[int] = set()


def _end_with(parent: int) -> None:
    """End this worker when the process it works for is gone, however that happened."""
    if parent in _watched:
        return
    _watched.add(parent)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if os.getppid() == parent:
        threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _ignore(event: Progress) -> None:
    """The progress callback of a run nobody watches."""
