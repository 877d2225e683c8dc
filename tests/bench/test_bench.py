"""The harness on entries of known cost, and every real case at toy size."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from scorecraft import bench
from scorecraft.bench import harness
from scorecraft.bench.harness import Bound, Case, EntryName, Measured, Row, below_peer, megabytes, times_floor
from scorecraft.studies import registry

HERE = Path(__file__).parent
CPU = torch.device("cpu")
linux_only = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory cannot be reset here"
)


def importable(patch: pytest.MonkeyPatch) -> None:
    patch.syspath_prepend(str(HERE))
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench_fakes` importable here and in child processes."""
    importable(monkeypatch)


def child(*arguments: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(bench.__file__).parents[2])
    paths = os.pathsep.join([source, str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "scorecraft.bench.child", *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


def check_contract(row: Row) -> None:
    assert set(row) == set(get_type_hints(Row))
    assert list(row) == [
        "bench", "case", "what", "ours", "peer", "floor", "unit",
        "peer_name", "ratio_to_peer", "ratio_to_floor", "limit", "within_limit",
    ]  # fmt: skip
    assert row["what"] in harness.UNITS
    assert row["unit"] == harness.UNITS[row["what"]]
    assert isinstance(row["ours"], float)
    assert math.isfinite(row["ours"])
    assert row["ours"] >= 0
    for other, ratio in (("peer", "ratio_to_peer"), ("floor", "ratio_to_floor")):
        assert (row[other] is None) == (row[ratio] is None) or row[other] == 0
        if row[ratio] is not None:
            assert row[ratio] == pytest.approx(row["ours"] / row[other])
    assert row["within_limit"] is None or row["limit"] is not None
    assert json.loads(json.dumps(row)) == row


# The fakes, through real child processes


@pytest.fixture(scope="module")
def cheap() -> tuple[list[Row], list[tuple[int, int, str]]]:
    """The rows of `bench_fakes.cheap` at full size, and the progress reported on the way."""
    with pytest.MonkeyPatch.context() as patch:
        importable(patch)
        seen: list[tuple[int, int, str]] = []
        return bench.run(["bench_fakes.cheap"], progress=lambda *step: seen.append(step)), seen


def test_every_row_keeps_the_contract(cheap: tuple[list[Row], list[tuple[int, int, str]]]) -> None:
    rows, _ = cheap
    for row in rows:
        check_contract(row)
    assert [row["what"] for row in rows] == ["time", "memory", "process memory", "time"]
    assert {row["bench"] for row in rows} == {"bench_fakes.cheap"}


def test_known_times(cheap: tuple[list[Row], list[tuple[int, int, str]]]) -> None:
    row = cheap[0][0]
    assert row["case"] == "sleeping, 20 against 40 and 10"
    assert row["limit"] == "<= 3 x floor, <= 1/1.25 x peer"
    assert row["peer_name"] == "a sleepy peer"
    assert 0.02 <= row["ours"] < 0.04  # a busy machine adds to each
    assert 0.3 < row["ratio_to_peer"] < 0.8
    assert 1.2 < row["ratio_to_floor"] < 3.0
    assert row["within_limit"] is True


@linux_only
def test_a_known_allocation_is_measured_within_ten_percent(cheap: tuple[list[Row], list[tuple[int, int, str]]]) -> None:
    _, memory, whole, _ = cheap[0]
    assert memory["ours"] == pytest.approx(200, rel=0.1)
    assert memory["peer"] == pytest.approx(400, rel=0.1)
    assert memory["ratio_to_peer"] == pytest.approx(0.5, rel=0.1)
    assert memory["within_limit"] is False  # the bound was 150 MB
    assert whole["ours"] > 300
    assert whole["limit"] is None
    assert whole["within_limit"] is None


def test_a_peer_that_is_not_installed_leaves_the_question_open(
    cheap: tuple[list[Row], list[tuple[int, int, str]]],
) -> None:
    row = cheap[0][3]
    assert row["peer"] is None
    assert row["peer_name"] == "the peer (not installed)"
    assert row["limit"] == "<= 1/2 x peer"
    assert row["within_limit"] is None


def test_progress_counts_child_processes(cheap: tuple[list[Row], list[tuple[int, int, str]]]) -> None:
    steps = 1 + 2 + 1
    assert [step[:2] for step in cheap[1]] == [(done, steps) for done in range(steps + 1)]


def test_without_a_resettable_mark_memory_is_still_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_reset_high_water_mark", lambda: False)

    def build(shape: harness.Shape, device: torch.device) -> harness.Call:
        return lambda: 1.0

    measured = harness.peak_memory(build, Case("none", {}, {}, {}, ()), CPU, small=False)
    assert measured.memory is not None
    assert measured.memory >= 0
    assert measured.process_memory is not None
    assert measured.process_memory > 20


def test_a_failing_entry_is_reported_in_one_line(fakes: None) -> None:
    with pytest.raises(bench.BenchError) as caught:
        bench.run(["bench_fakes.faulty"])
    message = str(caught.value)
    assert "\n" not in message
    assert "bench_fakes.faulty" in message
    assert "exits" in message
    assert "this entry cannot run" in message


def test_entries_that_compute_different_things_are_refused(fakes: None) -> None:
    with pytest.raises(bench.BenchError, match=r"must compute the same value to 0\.001, got 1\.0 and 2\.0"):
        bench.run(["bench_fakes.unequal"])


def test_toy_size_states_limits_without_judging(fakes: None) -> None:
    (row,) = bench.run(["bench_fakes.scalable"], small=True)
    assert row["case"] == "200 MB or none (toy size)"
    assert row["ours"] < 1
    assert row["limit"] == "<= 0.0001 MB"
    assert row["within_limit"] is None


def test_the_child_answers_one_json_object(fakes: None) -> None:
    timed = child("bench_fakes.cheap", "sleeping, 20 against 40 and 10", "floor,ours", "time")
    assert timed.returncode == 0, timed.stderr
    assert "measured code may print" in timed.stderr
    answer = json.loads(timed.stdout)
    assert answer["threads"] >= 1
    assert list(answer["entries"]) == ["ours", "floor"]
    for report in answer["entries"].values():
        assert report["value"] == 1.0
        assert len(report["seconds"]) >= 7
        assert report["memory"] is None

    weighed = json.loads(child("bench_fakes.cheap", "200 MB on top of 100 MB", "ours", "memory").stdout)
    assert weighed["entries"]["ours"]["seconds"] == []
    assert weighed["entries"]["ours"]["memory"] > 100


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("bench_fakes.cheap", "no such case", "ours", "time"), "argument `case`: expected one of"),
        (("bench_fakes.cheap", "peer not installed", "theirs", "time"), "argument `entries`: expected names out of"),
        (("bench_fakes.cheap", "peer not installed", "ours,peer", "memory"), "expected one entry for memory"),
        (("tmc", "any", "ours", "time"), "did you mean 'tcm'?"),
        (("bench_fakes.cheap", "peer not installed", "ours", "speed"), "invalid choice"),
    ],
)
def test_the_child_refuses_unknown_names(fakes: None, arguments: tuple[str, ...], complaint: str) -> None:
    refused = child(*arguments)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert complaint in refused.stderr.splitlines()[-1]


# The harness in this process


def test_entries_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "LONG_ENOUGH", 0.0)
    order: list[str] = []

    def call(name: str) -> harness.Call:
        def run() -> float:
            order.append(name)
            return float(len(name))

        return run

    names: tuple[EntryName, ...] = ("ours", "peer", "floor")
    measured = harness.time_in_turns({name: call(name) for name in names}, CPU)
    rounds = [tuple(order[start : start + 3]) for start in range(0, len(order), 3)]
    assert len(rounds) == 1 + harness.ROUNDS
    assert rounds[0] == names
    assert all(turn == (names if index % 2 == 0 else names[::-1]) for index, turn in enumerate(rounds[1:]))
    assert all(len(result.seconds) == len(rounds) - 1 for result in measured.values())
    assert {name: result.value for name, result in measured.items()} == {"ours": 4.0, "peer": 4.0, "floor": 5.0}


def test_long_cases_run_seven_rounds_and_a_slow_peer_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "LONG_ENOUGH", 0.0)
    monkeypatch.setattr(harness, "SLOW_PEER", -1.0)
    measured = harness.time_in_turns({"ours": lambda: 1.0, "peer": lambda: 1.0}, CPU)
    assert len(measured["ours"].seconds) == 7
    assert len(measured["peer"].seconds) == 3
    case = Case("slow", {}, {}, dict.fromkeys(("ours", "peer"), harness.Entry("a loop", lambda *_: lambda: 1.0)),
                (harness.Figure("time"),))  # fmt: skip
    assert case.rows("any", measured)[0]["peer_name"] == "a loop (3 rounds)"


def test_the_median_decides() -> None:
    assert Measured(seconds=[9.0, 1.0, 2.0]).median("time") == 2.0
    assert Measured().median("time") is None


@pytest.mark.parametrize(
    "bounds, floor, peer, expected",
    [
        ((times_floor(1.0),), 2.0, None, True),
        ((times_floor(1.0),), 1.9, None, False),
        ((below_peer(6),), None, 12.0, True),
        ((below_peer(6),), None, 11.9, False),
        ((below_peer(6),), None, None, None),
        ((times_floor(1.0), below_peer(6)), 2.0, None, None),
        ((times_floor(1.0), below_peer(6)), 1.0, None, False),
        ((megabytes(2),), None, None, True),
        ((megabytes(1.99),), None, None, False),
        ((), 2.0, 2.0, None),
    ],
)
def test_bounds(bounds: tuple[Bound, ...], floor: float | None, peer: float | None, expected: bool | None) -> None:
    def fixed(value: float) -> Measured:
        return Measured(seconds=[value], memory=value)

    what: harness.What = "memory" if bounds and bounds[0].on == "ours" else "time"
    measured: dict[EntryName, Measured] = {"ours": fixed(2.0)}
    measured |= {"peer": fixed(peer)} if peer is not None else {}
    measured |= {"floor": fixed(floor)} if floor is not None else {}
    (row,) = Case("bounded", {}, {}, {}, (harness.Figure(what, bounds),)).rows("any", measured)
    assert row["within_limit"] is expected
    assert (row["limit"] is None) == (not bounds)


# Names


def test_names_are_the_modules_of_the_package() -> None:
    found = bench.names()
    assert found == sorted(found)
    # A preference step is what several papers share.
    assert {"multi_similarity", "tcm", "unpg"} <= set(found) <= {*registry.slugs(), "preference_step"}
    assert not {"harness", "child", "inputs"} & set(found)


@pytest.mark.parametrize(
    "name, words",
    [
        ("multi-similarty", ("'multi-similarty'", "did you mean 'multi_similarity'?")),
        ("harness", ("'harness'", "'multi_similarity'", "'tcm'", "'unpg'")),
        ("no.such.module", ("'no.such.module'", "importable module")),
    ],
)
def test_an_unknown_name_is_refused_in_one_line_before_anything_runs(name: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="argument `names`") as caught:
        bench.run(["tcm", name])
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words)


def test_an_unknown_or_absent_device_is_refused() -> None:
    with pytest.raises(ValueError, match="argument `device`: expected 'cpu' or 'cuda', got 'tpu'"):
        bench.run([], device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"argument `device`.*torch sees no GPU"):
            bench.run([], device="cuda")


def test_importing_the_benches_imports_neither_torch_nor_rich() -> None:
    code = "import sys, scorecraft.bench as b; b.names(); print([m for m in ('torch', 'rich') if m in sys.modules])"
    source = str(Path(bench.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": source},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "[]"


# What is shown and kept


def some_rows() -> list[Row]:
    figures = (harness.Figure("time", (times_floor(1.0), below_peer(6))), harness.Figure("memory"))
    entry = harness.Entry("the peer", lambda *_: lambda: 1.0)
    case = Case("a case", {}, {}, {"ours": entry, "peer": entry}, figures)
    return case.rows("a_bench", {"ours": Measured(seconds=[0.25], memory=20.0), "peer": Measured(seconds=[2.0])})


def test_the_terminal_table_shows_every_row() -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=StringIO())
    console.print(bench.terminal_table(some_rows()))
    text = console.export_text()
    for word in ("a_bench", "a case", "memory", "0.25 s", "20 MB", "0.125", "<= 1 x floor, <= 1/6 x peer", "the peer"):
        assert word in text


def test_a_record_holds_the_rows_and_where_they_come_from(tmp_path: Path) -> None:
    path = bench.record(some_rows(), tmp_path / "bench" / "cpu.json")
    kept: dict[str, Any] = json.loads(path.read_text())
    assert kept["rows"] == some_rows()
    assert {"command", "date", "versions", "hardware", "threads", "peers"} <= set(kept["provenance"])
    assert [file.name for file in path.parent.iterdir()] == ["cpu.json"]


# The real cases, at toy size


@pytest.mark.parametrize("name", bench.names())
def test_every_case_runs_and_agrees_with_its_peer(name: str) -> None:
    for case in bench.cases(name):
        measured = {key: Measured(value=case.entries[key].build(case.small, CPU)()) for key in case.available()}
        assert all(math.isfinite(result.value) for result in measured.values())
        case.check_agreement(name, measured)
        assert case.name == case.name.strip()
        assert case.figures


def test_case_names_are_unique() -> None:
    for name in bench.names():
        known = [case.name for case in bench.cases(name)]
        assert len(known) == len(set(known))
