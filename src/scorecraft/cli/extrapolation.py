"""`extrapolate`."""

from __future__ import annotations

import math
from pathlib import Path

from rich.text import Text

from scorecraft.cli import UsageError
from scorecraft.cli.terminal import print_json, progress_bar, stdout

_MEGABYTE = 1_000_000


def extrapolate(weak: Path, strong: Path, factor: float, out: Path, as_json: bool) -> None:
    """Write the model that lies beyond the strong one, and say what was written."""
    from scorecraft.preference.helpsteer2_preference import extrapolate_checkpoint

    if not math.isfinite(factor):
        raise UsageError(f"--factor: expected a finite number, got {factor}")
    with progress_bar("megabyte") as advance:
        last = -1

        def told(done: int, total: int, what: str) -> None:
            nonlocal last
            if (megabytes := done // _MEGABYTE) != last:
                last = megabytes
                advance(megabytes, math.ceil(total / _MEGABYTE), what)

        written = extrapolate_checkpoint(weak, strong, out, factor=factor, progress=told)
    if as_json:
        print_json({**written._asdict(), "folder": str(written.folder), "factor": factor})
        return
    kept = f", {written.kept} of them from an earlier call" if written.kept else ""
    shards = "1 file" if written.shards == 1 else f"{written.shards} files"
    what = f"{written.tensors} tensors, {written.size / 1e9:.2f} GB in {shards}{kept}"
    stdout().print(Text(f"weak + {factor:g} (strong - weak): {what}"), soft_wrap=True)
    stdout().print(Text(f"Written into {written.folder}", "dim"), soft_wrap=True)
