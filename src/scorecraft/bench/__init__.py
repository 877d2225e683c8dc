"""Benchmarks: our time and memory against a peer and against the floor, every figure with the bound set for it.

    rows = run(["multi_similarity"])      # a list of `Row`, ready for json
    record(rows, "results/bench/cpu.json")
    print(terminal_table(rows))           # a rich table

How a figure is taken is written in `scorecraft.bench.harness`; one module of this package per bench.
"""

from __future__ import annotations

import difflib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from scorecraft.bench.harness import BenchError, Case, EntryName, Measured, Row

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["BenchError", "Progress", "Row", "cases", "names", "record", "run", "terminal_table"]

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, what_runs_now)` before every measurement and once at the end."""

_MACHINERY = {"harness", "child", "inputs"}


def names() -> list[str]:
    """The benches, by the slug of their paper."""
    return _slugs()


def cases(name: str) -> tuple[Case, ...]:
    """The cases of one bench.

    `name` is a slug (hyphens accepted), or the dotted path of any importable module with a `CASES` tuple, for benches
    kept outside of this package. Raises `ValueError` for an unknown name.
    """
    return import_module(_module(name)).CASES


def run(
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
    *,
    small: bool = False,
) -> list[Row]:
    """Measure benches (all of them by default) and return one row per figure.

    `small=True` runs every case at toy size, to see that it works: limits are then stated but not judged. Raises
    `ValueError` for an unknown name or device and `BenchError` when a measurement fails.
    """
    chosen = _slugs() if names is None else list(names)
    for name in chosen:
        _module(name)
    _check_device(device)
    plan = [(_slug(bench), case) for bench in chosen for case in cases(bench)]
    total = sum(len(_steps(case)) for _, case in plan)
    rows: list[Row] = []
    done = 0
    for bench, case in plan:
        measured: dict[EntryName, Measured] = {name: Measured() for name in case.available()}
        for entries, what in _steps(case):
            if progress is not None:
                progress(done, total, f"{bench}: {case.name}, {what} of {', '.join(entries)}")
            _take(bench, case, entries, what, device, small, measured)
            done += 1
        case.check_agreement(bench, measured)
        rows += case.rows(bench, measured, judged=not small)
    if progress is not None:
        progress(total, total, "done")
    return rows


def record(rows: Sequence[Row], path: str | os.PathLike[str]) -> Path:
    """Write `{"provenance": …, "rows": […]}` to `path` atomically and return the path.

    Call it on the machine, and with the settings, that the rows were measured with: that is what the provenance
    states, the number of threads and the versions of the peers among it. Raises `StudyError`, one line, if it cannot
    be written.
    """
    from scorecraft.studies.provenance import provenance
    from scorecraft.studies.run_folder import write_atomically

    origin = {**provenance(), "threads": _threads(), "peers": _peer_versions()}
    write_atomically(Path(path), json.dumps({"provenance": origin, "rows": list(rows)}, indent=1) + "\n")
    return Path(path)


def terminal_table(rows: Sequence[Row]) -> Table:
    """The rows as a rich table; smaller ratios are better."""
    from rich.table import Table

    table = Table(title="ours against the peer and the floor (ratios: ours on top, smaller is better)")
    for heading in ("bench", "case", "what"):
        table.add_column(heading, overflow="fold")
    for heading in ("ours", "peer", "floor", "ours / peer", "ours / floor"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("limit", overflow="fold")
    table.add_column("kept")
    for row in rows:
        kept = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[row["within_limit"]]
        table.add_row(
            row["bench"], row["case"], row["what"],
            *(_amount(row[column], row["unit"]) for column in ("ours", "peer", "floor")),
            _number(row["ratio_to_peer"]), _number(row["ratio_to_floor"]), row["limit"] or "", kept,
        )  # fmt: skip
    peers = {row["peer_name"]: None for row in rows if row["peer_name"]}
    if peers:
        table.caption = "peers: " + "; ".join(peers)
    return table


def _slugs() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _MACHINERY)


def _slug(name: str) -> str:
    return name if "." in name else name.replace("-", "_")


def _module(name: str) -> str:
    """The module behind a name, or one line that says what there is and what comes nearest."""
    if "." in name:
        try:
            found = find_spec(name) is not None
        except ModuleNotFoundError:  # a package on the way to it is missing
            found = False
        if not found:
            raise ValueError(f"argument `names`: expected an importable module, got {name!r}")
        return name
    known = _slugs()
    if _slug(name) not in known:
        near = difflib.get_close_matches(_slug(name), known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"argument `names`: expected one of {', '.join(map(repr, known))}, got {name!r}{hint}")
    return f"{__name__}.{_slug(name)}"


def _check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise ValueError(f"argument `device`: expected 'cpu' or 'cuda', got {device!r}")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("argument `device`: expected a device of this machine, got 'cuda' and torch sees no GPU")


def _steps(case: Case) -> list[tuple[tuple[EntryName, ...], str]]:
    """The child processes a case needs: one for all times, one per entry for memory."""
    entries = case.available()
    whats = {figure.what for figure in case.figures}
    steps: list[tuple[tuple[EntryName, ...], str]] = []
    if "time" in whats:
        steps.append((entries, "time"))
    for entry in entries if whats - {"time"} else ():
        steps.append(((entry,), "memory"))
    return steps


def _take(
    bench: str,
    case: Case,
    entries: tuple[EntryName, ...],
    what: str,
    device: str,
    small: bool,
    measured: dict[EntryName, Measured],
) -> None:
    """Run one child process and enter what it reports into `measured`."""
    command = [sys.executable, "-m", "scorecraft.bench.child", bench, case.name, ",".join(entries), what]
    command += ["--device", device, *(["--small"] if small else [])]
    finished = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        complaint = finished.stderr.strip().splitlines() or ["no message"]
        raise BenchError(
            f"bench `{bench}`, case `{case.name}`: measuring {what} of {', '.join(entries)} ended with exit status "
            f"{finished.returncode}: {complaint[-1]}"
        )
    for name, report in json.loads(finished.stdout)["entries"].items():
        result = measured[name]
        result.value = report["value"]
        result.seconds += report["seconds"]
        result.memory = result.memory if report["memory"] is None else report["memory"]
        result.process_memory = result.process_memory if report["process_memory"] is None else report["process_memory"]


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _peer_versions() -> dict[str, str | None]:
    """The versions of the packages that peers need, None where one is not installed."""
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    homes = packages_distributions()
    found: dict[str, str | None] = {}
    entries = [entry for name in _slugs() for case in cases(name) for entry in case.entries.values()]
    for package in sorted({package for entry in entries for package in entry.needs}):
        distribution = homes.get(package, [package])[0]
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            found[distribution] = None
    return found


def _environment() -> dict[str, str]:
    """This environment, with this very package importable in the child."""
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _amount(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_number(value)} {unit}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
