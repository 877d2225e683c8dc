"""`scorecraft extrapolate` from outside, and what it prints."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scorecraft.cli import UsageError
from scorecraft.cli.extrapolation import extrapolate

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def model(folder: Path, value: float, shards: int = 2) -> Path:
    """A folder of one tensor per shard."""
    folder.mkdir()
    told = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file({f"layer{number}.weight": torch.full((4, 3), value + number)}, folder / file)
        told[f"layer{number}.weight"] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": told}))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return model(tmp_path / "weak", 1.0), model(tmp_path / "strong", 2.0)


def test_the_command(models: tuple[Path, Path], tmp_path: Path, scorecraft: Command) -> None:
    weak, strong = models
    run = scorecraft("extrapolate", weak, strong, "--factor", "1.5", "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "weak + 1.5 (strong - weak): 2 tensors, 0.00 GB in 2 files",
        f"Written into {tmp_path / 'out'}",
    ]
    assert run.stderr == ""
    found = load_file(tmp_path / "out" / "model-00002-of-00002.safetensors")
    assert found["layer1.weight"].unique().tolist() == [3.5]
    again = scorecraft("extrapolate", weak, strong, "--factor", "1.5", "--out", tmp_path / "out", "--json")
    assert json.loads(again.stdout) == {
        "folder": str(tmp_path / "out"), "shards": 2, "kept": 2, "tensors": 2, "size": 96, "factor": 1.5
    }  # fmt: skip


def test_what_cannot_be_done_is_one_line(models: tuple[Path, Path], tmp_path: Path, scorecraft: Command) -> None:
    weak, _ = models
    other = model(tmp_path / "other", 1.0, shards=1)
    run = scorecraft("extrapolate", weak, other, "--out", tmp_path / "out")
    assert run.returncode == 1
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("scorecraft: argument `strong`: expected the tensors of the other model, got none named")
    assert not (tmp_path / "out").exists()


def test_the_factor_of_the_paper_and_what_was_kept(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak, strong = models
    extrapolate(weak, strong, 1.52, tmp_path / "out", as_json=False)
    (tmp_path / "out" / "model-00001-of-00002.safetensors").unlink()
    capsys.readouterr()
    extrapolate(weak, strong, 1.52, tmp_path / "out", as_json=False)
    assert "in 2 files, 1 of them from an earlier call" in capsys.readouterr().out
    found = load_file(tmp_path / "out" / "model-00001-of-00002.safetensors")
    assert found["layer0.weight"].unique().item() == pytest.approx(2.52)


def test_progress_in_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("weak", 0.0), ("strong", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((3_000_000,), value)}, tmp_path / name / "model.safetensors")
    told: list[tuple[int, int, str]] = []

    class Bar:
        def __enter__(self) -> Callable[[int, int, str], None]:
            return lambda *progress: told.append(progress)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("scorecraft.cli.extrapolation.progress_bar", lambda unit: Bar())
    extrapolate(tmp_path / "weak", tmp_path / "strong", 2.0, tmp_path / "out", as_json=True)
    assert told == [(0, 12, "model.safetensors"), (8, 12, "model.safetensors"), (12, 12, "model.safetensors")]


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_factor_that_is_no_number(factor: float, models: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--factor: expected a finite number"):
        extrapolate(*models, factor, tmp_path / "out", as_json=False)
