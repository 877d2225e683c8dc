"""What the commands share of the terminal: results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

Advance = Callable[[int, int, str], None]
"""`advance(done, total, what_runs_now)`."""

PIPED_WIDTH = 140


def stdout() -> Console:
    """Where results are printed; wide enough for tables when it is a pipe and nobody said how wide that is."""
    console = Console(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=PIPED_WIDTH)


def stderr() -> Console:
    """Where progress, hints and errors are printed."""
    return Console(stderr=True, highlight=False)


def print_json(value: object) -> None:
    """Print plain data for a script; numbers that JSON does not know (infinite, NaN) are refused."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def complain(message: str) -> None:
    """Print one line about what went wrong."""
    sys.stderr.write("scorecraft: " + " ".join(message.split()) + "\n")


@contextmanager
def progress_bar(unit: str) -> Iterator[Advance]:
    """A bar on stderr with rate and time left, gone when it is done; nothing at all when stderr is not a terminal.

    The first call says what was done before: the rate is that of the rest.
    """
    console = stderr()
    if not console.is_terminal:
        yield lambda done, total, what: None
        return
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(20),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        expand=True,
        speed_estimate_period=600,
    )
    with bar:
        task = bar.add_task("", total=None)
        started = False

        def advance(done: int, total: int, what: str) -> None:
            nonlocal started
            if not started:
                bar.reset(task, completed=done, total=total, description=what)
                started = True
            bar.update(task, completed=done, total=total, description=what)

        yield advance


class _Rate(ProgressColumn):
    """How many a second, or how long one takes."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text(f"- {self.unit}s/s", style="progress.data.speed")
        pace = f"{speed:.1f} {self.unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{self.unit}"
        return Text(pace, style="progress.data.speed")
