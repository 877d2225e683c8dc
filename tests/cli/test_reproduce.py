"""`scorecraft reproduce` through the real entry point: results, files, resuming, and what stops it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from scorecraft import catalog, cli
from scorecraft.catalog import readme, records
from scorecraft.cli import terminal
from scorecraft.studies import registry

Command = Callable[..., "subprocess.CompletedProcess[str]"]
SLUG = "multi_similarity"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def smoke(scorecraft: Command, folder: Path) -> subprocess.CompletedProcess[str]:
    """One smoke run, printed for people."""
    return scorecraft("reproduce", "multi-similarity", "--scale", "smoke", "--jobs", "1", "--folder", folder)


def test_it_prints_contenders_verdict_and_places(smoke: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert smoke.returncode == 0, smoke.stderr
    study = registry.find(SLUG)
    printed = " ".join(smoke.stdout.split())
    for contender in study.contenders:
        assert contender.title in printed
    assert any(verdict in printed for verdict in records.VERDICTS)
    assert "95 % interval" in printed
    run = folder / SLUG / "smoke"
    for path in (run, run / "report.html", *(run / f"plot-{world.name}.png" for world in study.worlds)):
        assert path.exists()
        assert str(path) in smoke.stdout


def test_a_pipe_sees_no_progress(smoke: subprocess.CompletedProcess[str]) -> None:
    assert smoke.stderr == ""
    assert "\x1b" not in smoke.stdout


def test_json_of_a_finished_run(
    smoke: subprocess.CompletedProcess[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["reproduce", SLUG, "--scale", "smoke", "--jobs", "1", "--folder", str(folder), "--json"]
    assert cli.run(arguments) == cli.OK
    printed = capsys.readouterr()
    (result,) = json.loads(printed.out)
    assert printed.err == ""
    assert result["slug"] == SLUG
    assert result["verdict"] in records.VERDICTS
    assert {"claim", "effect", "interval", "margin", "contenders", "trials", "provenance"} <= result.keys()
    files = result.pop("files")
    assert json.loads(Path(files["result"]).read_text())["trials"] == result["trials"]
    assert all(Path(path).exists() for path in (files["run"], files["report"], *files["plots"]))


def test_runs_of_other_code_are_refused(
    smoke: subprocess.CompletedProcess[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = folder / SLUG / "smoke" / "run.json"
    before = manifest.read_text()
    content = json.loads(before)
    content["code"] = {module: {"sha256": "of something else"} for module in content["code"]}
    try:
        manifest.write_text(json.dumps(content))
        assert cli.run(["reproduce", SLUG, "--scale", "smoke", "--folder", str(folder)]) == cli.FAILED
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert "other code or configuration" in printed.err
    finally:
        manifest.write_text(before)


def test_recording(
    smoke: subprocess.CompletedProcess[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(records, "results_folder", lambda: tmp_path)
    arguments = ["reproduce", SLUG, "--scale", "smoke", "--jobs", "1", "--folder", str(folder), "--record"]
    assert cli.run(arguments) == cli.OK
    record = records.study_record(SLUG, "smoke")
    assert record is not None
    assert record["verdict"] in records.VERDICTS
    for world in registry.find(SLUG).worlds:
        plot = tmp_path / "studies" / SLUG / f"smoke-{world.name}.png"
        assert plot.read_bytes() == (folder / SLUG / "smoke" / f"plot-{world.name}.png").read_bytes()
    printed = capsys.readouterr()
    assert "recorded in" in printed.err
    assert "trials were there from an earlier run" in printed.out

    # What the README would say, had this been a desk study.
    assert "not recorded yet" in readme.verdicts()
    records.study_path(SLUG).write_text(records.study_path(SLUG, "smoke").read_text())
    (row,) = [line for line in readme.verdicts().splitlines() if f"[{SLUG}]" in line]
    assert record["claim"] in row
    assert f"[{record['verdict']}](results/studies/{SLUG}/smoke-{record['world']}.png)" in row
    assert catalog.find(SLUG).verdict == record["verdict"]
    assert cli.run(["show", SLUG]) == cli.OK
    assert f"{record['verdict']}: improvement" in capsys.readouterr().out


def test_recording_needs_a_checkout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("scorecraft.cli.recording.checkout", lambda: None)
    assert cli.run(["reproduce", SLUG, "--record"]) == cli.USAGE
    assert "installed copy" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments = ["reproduce", SLUG, "--scale", "smoke", "--jobs", "1", "--folder", str(tmp_path / "file" / "runs")]
    assert cli.run(arguments) == cli.FAILED
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert str(tmp_path / "file") in printed


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_interrupted_runs_say_how_to_go_on(tmp_path: Path, program: Path, environment: dict[str, str]) -> None:
    command = [program, "reproduce", SLUG, "--scale", "desk", "--jobs", "1", "--folder", tmp_path]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    trials = tmp_path / SLUG / "desk" / "trials"
    deadline = time.monotonic() + 200
    while process.poll() is None and not list(trials.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, complaint = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED
    assert printed == ""
    assert complaint.count("\n") == 1
    assert "the same command goes on from there" in complaint
    assert list(trials.glob("*.json"))


def test_progress_shows_count_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(terminal, "stderr", lambda: console)
    with terminal.progress_bar("trial") as advance:
        advance(2, 8, "resumed")
        for done in range(3, 7):
            time.sleep(0.02)
            advance(done, 8, f"trial {done}")
    printed = screen.getvalue()
    assert "6/8" in printed
    assert "trials/s" in printed
    assert re.search(r"0:00:0\d", printed)


def test_progress_vanishes_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "stderr", lambda: Console(file=screen, force_terminal=False))
    with terminal.progress_bar("trial") as advance:
        advance(0, 2, "")
        advance(2, 2, "done")
    assert screen.getvalue() == ""
