"""`compare` from the shell: an answer, resuming, and what is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from scorecraft import cli
from scorecraft.catalog import records

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    pixels, labels = load_digits(return_X_y=True)
    np.savez(tmp_path / "digits.npz", features=pixels[:400].astype(np.float32), labels=labels[:400])
    return tmp_path / "digits.npz"


def test_an_answer_with_files_and_a_second_run_that_resumes(scorecraft: Command, digits: Path, tmp_path: Path) -> None:
    command = ["compare", "similarity", "--data", digits, "--objective", "contrastive", "--objective", "triplet"]
    command += ["--seeds", "2", "--steps", "4", "--jobs", "1"]
    run = scorecraft(*command, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "answer" in run.stdout
    (folder,) = (tmp_path / "scorecraft-runs" / "compare_similarity").iterdir()
    assert {"report.html", "result.json", "plot.png"} <= {file.name for file in folder.iterdir()}
    before = {file: file.stat().st_mtime_ns for file in (folder / "trials").iterdir()}
    assert len(before) == 4
    more = scorecraft(*command, "--objective", "n-pair", "--json", cwd=tmp_path)
    content = json.loads(more.stdout)
    assert {row["title"] for row in content["ranking"]} == {"contrastive", "triplet", "n-pair"}
    after = {file: file.stat().st_mtime_ns for file in (folder / "trials").iterdir()}
    assert len(after) == 6
    assert all(after[file] == time for file, time in before.items())
    other = scorecraft(*command[:-4], "--steps", "5", "--seeds", "2", cwd=tmp_path)
    assert other.returncode == 1
    assert "holds trials of other code or configuration" in other.stderr


def test_recording(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "results_folder", lambda: tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    names = ["--objective", "contrastive", "--objective", "contrastive + 0.5*tcm"]
    assert cli.run(["compare", "similarity", "--data", "digits.npz", *names, "--seeds", "2", "--steps", "2", "--jobs",
                    "1", "--record"]) == cli.OK  # fmt: skip
    ((path, record),) = records.comparison_records()
    assert path == tmp_path / "results" / "comparisons" / "similarity" / "digits.json"
    assert path.with_suffix(".png").is_file()
    assert {row["title"] for row in record["ranking"]} == {"contrastive", "contrastive + 0.5*tcm"}
    assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (("--objective", "triplet"), 2, "expected two different objectives or more"),
        (("--objective", "triplet", "--objective", "tripplet"), 2, "did you mean `triplet`?"),
        (("--objective", "triplet", "--objective", "pml:NoLoss"), 1, "pytorch-metric-learning has no loss `NoLoss`"),
        (("--objective", "triplet", "--objective", "n-pair", "--features", "z"), 1, "has no `z`"),
    ],
)
def test_refusals_are_one_line(
    scorecraft: Command, digits: Path, options: tuple[str, ...], code: int, line: str
) -> None:
    run = scorecraft("compare", "similarity", "--data", digits, *options, cwd=digits.parent)
    assert run.returncode == code
    assert line in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert not (digits.parent / "scorecraft-runs").exists()
