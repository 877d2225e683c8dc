"""`bench`."""

from __future__ import annotations

from scorecraft.catalog.records import bench_path
from scorecraft.cli import UsageError
from scorecraft.cli.recording import require_checkout
from scorecraft.cli.terminal import print_json, progress_bar, stderr, stdout


def bench(names: list[str], *, device: str, record: bool, as_json: bool) -> None:
    """Measure, print, and record where asked to."""
    from scorecraft import bench as benches

    for name in names:
        try:
            benches.cases(name)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if record:
        if names:
            raise UsageError("--record writes the whole table: leave the names out")
        require_checkout()
    with progress_bar("measurement") as advance:
        rows = benches.run(names or None, advance, device)
    if record:
        path = benches.record(rows, bench_path(device))
        stderr().print(f"recorded in {path}", markup=False, soft_wrap=True)
    if as_json:
        print_json(rows)
    else:
        stdout().print(benches.terminal_table(rows))
