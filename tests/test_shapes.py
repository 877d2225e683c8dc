"""The shapes in the signatures are true: the conformance matrix passes with each of them checked at every call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_shape_annotations_hold() -> None:
    subjects = ["tests/conformance/test_objectives.py", "tests/similarity/test_multi_similarity.py"]
    # Deliberately wrong types are caught by the checks before our own message, and compiled code cannot enter them.
    selection = "not refused and not compiles and not gradient_is_the_derivative and not must_be"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.shape_checks", "-k", selection, *subjects]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
