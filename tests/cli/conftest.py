"""The command as a shell finds it: installed beside the interpreter, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("scorecraft")
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """This environment with one thread, and nothing that would make Rich think of a terminal."""
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "COLUMNS")}
    return {**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def program() -> Path:
    """The installed command."""
    if not PROGRAM.exists():
        pytest.fail(f"{PROGRAM} is not there: the tests need an installed package (`pip install -e .`)")
    return PROGRAM


@pytest.fixture(scope="session")
def scorecraft(program: Path, environment: dict[str, str]) -> Command:
    """Run `scorecraft ARGUMENTS...`; gives exit code, stdout and stderr."""

    def run(*arguments: str | Path, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments],
            cwd=cwd,
            env={**environment, **more},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=280,
            check=False,
        )

    return run
