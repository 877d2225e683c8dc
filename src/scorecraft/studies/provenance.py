"""Where results come from: versions, code, hardware, command and date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

_DISTRIBUTIONS = ("torch", "numpy", "scipy", "scikit-learn", "joblib", "matplotlib")


def provenance(command: str | None = None) -> dict[str, object]:
    """Everything about this process that a reader needs to run it again and to weigh its timings.

    Args:
        command: the command as typed; the default is this process's own.
    """
    import scorecraft

    return {
        "command": command or own_command(),
        "date": now(),
        "versions": {
            "scorecraft": scorecraft.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _DISTRIBUTIONS},
        },
        "commit": git_commit(),
        "hardware": hardware(),
    }


def now() -> str:
    """The present time in UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def own_command() -> str:
    """The command line of this process, without the folder the program lies in."""
    return shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])


def hardware() -> dict[str, object]:
    """The machine: system, processor, cores this process may use, memory in GiB, graphics card (None without one)."""
    import joblib
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": joblib.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit this code was run from, with `+changes` where its source differs from it; None outside a checkout."""
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = _git(here.parent, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(here.parent, "status", "--porcelain", "--", str(here.parents[1]))
    return commit + ("+changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None where there is no git or it refuses."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
