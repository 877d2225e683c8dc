"""The command line from outside: what it prints where, its contracts with scripts, its exit codes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import scorecraft as package
from scorecraft import catalog, cli
from scorecraft.bench import Row
from scorecraft.catalog import readme, records
from scorecraft.cli import app
from scorecraft.core.paper import ROOMS
from scorecraft.studies import registry

Command = Callable[..., "subprocess.CompletedProcess[str]"]
COMMANDS = (
    "list",
    "show",
    "search",
    "explain",
    "cite",
    "reproduce",
    "compare",
    "diagnose",
    "extrapolate",
    "logic",
    "new-paper",
    "bench",
    "doctor",
)


def refused(run: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on stderr of a command that could not do what it was asked."""
    assert run.returncode == code, run.stderr
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("scorecraft: ")
    return line.removeprefix("scorecraft: ")


def test_help_is_quick(scorecraft: Command) -> None:
    def clocked() -> float:
        begin = time.perf_counter()
        assert scorecraft("--help").returncode == 0
        return time.perf_counter() - begin

    assert min(clocked() for _ in range(5)) < 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(scorecraft: Command, command: str) -> None:
    run = scorecraft(command, "--help")
    assert run.returncode == 0
    assert "Examples" in run.stdout
    assert f"scorecraft {command}" in run.stdout.partition("Examples")[2]


def test_version(scorecraft: Command) -> None:
    assert scorecraft("--version").stdout == f"scorecraft {package.__version__}\n"


def test_module_is_the_command(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "scorecraft", "--version"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == f"scorecraft {package.__version__}\n"


def test_without_arguments_it_shows_its_help(scorecraft: Command) -> None:
    run = scorecraft()
    assert run.returncode == 0
    assert "Usage: scorecraft" in run.stdout
    assert run.stderr == ""


def test_list_json_is_the_contract(scorecraft: Command) -> None:
    run = scorecraft("list", "--json")
    assert run.returncode == 0
    assert run.stderr == ""
    papers = json.loads(run.stdout)
    assert len({paper["slug"] for paper in papers}) == len(papers) == 45
    texts = ("slug", "title", "arxiv", "date", "room", "kind")
    for paper in papers:
        assert list(paper) == [*texts, "api", "hosts", "status", "verdict"]
        assert all(isinstance(paper[name], str) and paper[name] for name in texts)
        assert all(isinstance(name, str) for name in (*paper["api"], *paper["hosts"]))
        assert paper["status"] in ("done", "planned")
        assert paper["verdict"] in ("holds", "fails", "inconclusive", None)
        assert paper["api"] if paper["status"] == "done" else not paper["api"]


def test_list_narrows(scorecraft: Command) -> None:
    papers = json.loads(scorecraft("list", "--room", "density", "--search", "distillation", "--json").stdout)
    assert {paper["slug"] for paper in papers} >= {"sim"}
    assert {paper["room"] for paper in papers} == {"density"}
    assert json.loads(scorecraft("list", "--search", "no such words", "--json").stdout) == []


def test_list_is_a_table_without_colour_in_a_pipe(scorecraft: Command) -> None:
    run = scorecraft("list")
    assert run.returncode == 0
    assert "\x1b" not in run.stdout + run.stderr
    assert all(entry.paper.slug in run.stdout for entry in catalog.entries())


def test_rooms_are_those_of_the_house() -> None:
    assert tuple(room.value for room in app.Room) == ROOMS


def test_show(scorecraft: Command) -> None:
    run = scorecraft("show", "multi-similarity")
    assert run.returncode == 0
    for fact in ("Multi-Similarity Loss with General Pair Weighting", "1904.06627", "@misc{", "MultiSimilarityLoss"):
        assert fact in run.stdout
    for host in catalog.find("multi_similarity").paper.hosts:
        assert host in run.stdout


def test_show_json(scorecraft: Command) -> None:
    shown = json.loads(scorecraft("show", "tcm", "--json").stdout)
    entry = catalog.find("tcm")
    assert {name: shown[name] for name in entry.row()} == dict(entry.row())
    assert shown["bibtex"] == entry.paper.bibtex
    assert shown["claim"] == registry.find("tcm").claim.sentence
    assert shown["record"] == catalog.study_record("tcm")


def test_show_a_planned_paper(scorecraft: Command) -> None:
    run = scorecraft("show", "ctm")
    assert run.returncode == 0
    assert "planned" in run.stdout


def test_cite(scorecraft: Command) -> None:
    run = scorecraft("cite", "multi-similarity", "tcm", "multi_similarity")
    entries = [catalog.find(slug).paper.bibtex for slug in ("multi_similarity", "tcm")]
    assert run.stdout == "\n\n".join(entries) + "\n"


@pytest.mark.parametrize("command", ["show", "cite", "reproduce"])
def test_unknown_papers_name_the_nearest(scorecraft: Command, command: str) -> None:
    line = refused(scorecraft(command, "multi-similarty"), 2)
    assert line.startswith("unknown paper `multi-similarty`: did you mean `multi_similarity`")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lst"], "No such command 'lst'"),
        (["list", "--room", "kitchen"], "Invalid value for '--room'"),
        (["list", "--verbose"], "No such option"),
        (["show"], "Missing argument 'PAPER'"),
        (["reproduce"], "expected either papers or --all"),
        (["reproduce", "tcm", "--all"], "expected either papers or --all"),
        (["reproduce", "tcm", "--seeds", "0"], "Invalid value for '--seeds'"),
        (["reproduce", "tcm", "--scale", "huge"], "Invalid value for '--scale'"),
        (["reproduce", "ctm"], "`ctm` is planned and has no study yet"),
        (["reproduce", "tcm", "--record", "--seeds", "1"], "--record keeps results of at least the study's own"),
        (["bench", "multi-similarty"], "did you mean"),
        (["bench", "tcm", "--record"], "--record writes the whole table"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_that_make_no_sense(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == cli.USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert expected in printed.err


def test_doctor(scorecraft: Command) -> None:
    run = scorecraft("doctor")
    assert run.returncode == 0
    assert "torch" in run.stdout
    assert "cpu" in run.stdout


def test_doctor_json(scorecraft: Command) -> None:
    report = json.loads(scorecraft("doctor", "--json").stdout)
    assert report["scorecraft"] == package.__version__
    assert report["devices"]
    packages = {(row["name"], row["extra"]): row for row in report["packages"]}
    assert packages["torch", None]["state"] == "ok"
    assert re.fullmatch(r"2\.\d+\.\d+.*", packages["torch", None]["installed"])
    lacking = {row["extra"] for row in report["packages"] if row["extra"] and row["state"] != "ok"}
    assert {part["extra"] for part in report["missing"]} == lacking
    for part in report["missing"]:
        assert "pip install " in part["install"]
        assert f"[{part['extra']}]" in part["install"]


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
def test_a_reader_may_stop_reading(environment: dict[str, str]) -> None:
    script = f"{sys.executable} -m scorecraft list --json | head -n 1"
    pipe = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert pipe.stdout == "[\n"
    assert pipe.stderr == ""


@pytest.mark.parametrize("narrow", ["40", "200"])
def test_any_width_will_do(scorecraft: Command, narrow: str) -> None:
    assert scorecraft("list", COLUMNS=narrow).returncode == 0
    assert scorecraft("show", "tcm", COLUMNS=narrow).returncode == 0


ROW = Row(
    bench="tcm",
    case="tiled, n=16384",
    what="time",
    ours=2.0,
    peer=None,
    floor=4.0,
    unit="s",
    peer_name=None,
    ratio_to_peer=None,
    ratio_to_floor=0.5,
    limit="<= 1 x floor",
    within_limit=True,
)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Benchmarks that take no time; holds what they were asked for."""
    asked: list[object] = []

    def run(names: list[str] | None, progress: Callable[[int, int, str], None], device: str) -> list[Row]:
        asked.extend([names, device])
        progress(0, 1, "tcm")
        progress(1, 1, "done")
        return [ROW]

    monkeypatch.setattr("scorecraft.bench.run", run)
    return asked


def test_bench_json_is_the_contract(measured: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "tcm", "--json"]) == cli.OK
    printed = capsys.readouterr()
    assert json.loads(printed.out) == [ROW]
    assert printed.err == ""
    assert measured == [["tcm"], "cpu"]


def test_bench_prints_a_table(measured: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench"]) == cli.OK
    assert "<= 1 x floor" in capsys.readouterr().out
    assert measured == [None, "cpu"]


def test_bench_records(
    measured: list[object], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "results_folder", lambda: tmp_path)
    assert readme.benchmarks() == "Not recorded yet."
    assert cli.run(["bench", "--record", "--json"]) == cli.OK
    record = json.loads((tmp_path / "bench" / "cpu.json").read_text())
    assert record["rows"] == [ROW]
    assert record["provenance"]["hardware"]
    assert "recorded in" in capsys.readouterr().err
    table = readme.benchmarks()
    assert "| tcm | tiled, n=16384 | time | 2 s |  | 4 s |  | 0.5 | <= 1 x floor | yes |" in table
    assert f"torch {record['provenance']['versions']['torch']}" in table


def test_foreseeable_errors_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "results.json")

    monkeypatch.setattr("scorecraft.cli.papers.list_papers", full)
    assert cli.run(["list"]) == cli.FAILED
    assert capsys.readouterr().err == "scorecraft: [Errno 28] No space left on device: 'results.json'\n"


def test_faults_of_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("scorecraft.cli.papers.list_papers", broken)
    with pytest.raises(ZeroDivisionError):
        cli.run(["list"])


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scorecraft.cli.papers.list_papers", stopped)
    assert cli.run(["list"]) == cli.INTERRUPTED


def test_search_finds_words_anywhere(scorecraft: Command) -> None:
    found = json.loads(scorecraft("search", "hard", "negatives", "--json").stdout)
    assert "star_adore" in [row["slug"] for row in found]
    assert json.loads(scorecraft("search", "no such words", "--json").stdout) == []


def test_explain_draws_the_curve(scorecraft: Command, tmp_path: Path) -> None:
    run = scorecraft("explain", "multi-similarity:beta=20", "--plot", tmp_path / "curve.svg")
    assert run.returncode == 0, run.stderr
    assert "beta=20.0" in run.stdout
    assert "a positive pair is pulled together" in run.stdout
    assert "█" in run.stdout
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml")
    scorecraft("explain", "tcm", "--plot", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    curve = json.loads(scorecraft("explain", "n-pair", "--json").stdout)
    assert curve["papers"] == ["multi_similarity"]
    assert len(curve["scores"]) == len(curve["positive"]) == len(curve["negative"])


def test_explain_refuses_in_one_line(scorecraft: Command, tmp_path: Path) -> None:
    assert refused(scorecraft("explain", "multisim"), cli.USAGE).startswith("unknown objective `multisim`")
    assert "ends in .png or .svg" in refused(scorecraft("explain", "tcm", "--plot", tmp_path / "a.gif"), cli.USAGE)
    assert "argument `alpha`" in refused(scorecraft("explain", "multi_similarity:alpha=0"), cli.FAILED)
    assert not list(tmp_path.iterdir())
