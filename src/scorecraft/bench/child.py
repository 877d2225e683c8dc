"""The process in which a figure is taken: `python -m scorecraft.bench.child BENCH CASE ENTRY[,ENTRY…] time|memory`.

Answers with one JSON object on stdout: `{"threads": …, "entries": {name: {"value": …, "seconds": […], "memory": …,
"process_memory": …}}}`. Whatever the measured code prints goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import get_args

from scorecraft.bench import cases
from scorecraft.bench.harness import Case, EntryName, Measured, peak_memory, time_in_turns


def main(arguments: list[str] | None = None) -> None:
    """Measure the entries named on the command line and print the result."""
    parser = argparse.ArgumentParser(prog="python -m scorecraft.bench.child", description="Take one benchmark figure.")
    parser.add_argument("bench")
    parser.add_argument("case")
    parser.add_argument("entries", help="ours, peer, floor; several separated by commas for time")
    parser.add_argument("what", choices=("time", "memory"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="run at toy size")
    given = parser.parse_args(arguments)
    try:
        case = _named(given.bench, given.case)
        entries = _entries(case, given.entries)
        if given.what == "memory" and len(entries) != 1:
            raise ValueError(f"argument `entries`: expected one entry for memory, got {given.entries!r}")
    except ValueError as error:
        parser.error(str(error))
    with redirect_stdout(sys.stderr):
        answer = _measure(case, entries, given.what, given.device, given.small)
    print(json.dumps(answer))


def _named(bench: str, name: str) -> Case:
    known = {case.name: case for case in cases(bench)}
    if name not in known:
        raise ValueError(f"argument `case`: expected one of {', '.join(map(repr, known))}, got {name!r}")
    return known[name]


def _entries(case: Case, names: str) -> list[EntryName]:
    entries: list[EntryName] = [
        name for name in get_args(EntryName) if name in names.split(",") and name in case.entries
    ]
    if not entries or len(entries) != len(names.split(",")):
        raise ValueError(f"argument `entries`: expected names out of {', '.join(case.entries)}, got {names!r}")
    return entries


def _measure(case: Case, entries: list[EntryName], what: str, device_name: str, small: bool) -> dict[str, object]:
    import torch

    device = torch.device(device_name)
    measured: dict[EntryName, Measured]
    if what == "time":
        shape = case.small if small else case.shape
        measured = time_in_turns({name: case.entries[name].build(shape, device) for name in entries}, device)
    else:
        measured = {name: peak_memory(case.entries[name].build, case, device, small=small) for name in entries}
    return {"threads": torch.get_num_threads(), "entries": {name: asdict(result) for name, result in measured.items()}}


if __name__ == "__main__":
    main()
