"""Writing files so that an interruption leaves the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

TEMPORARY = ".part"
"""Ending of files that are being written; one that an interruption left behind may be removed."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either there as a whole or not at all, also after a crash; its folder is made.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first reason is the one to report
            temporary.unlink()
        raise
