"""`diagnose preference`: tables, JSON and the file of pairs, and what is refused."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scorecraft import cli

Run = Callable[..., tuple[int, str, str]]

PAIRS = {
    "chosen": [-38.0, -20.0, -30.0, -12.0, -25.0],
    "rejected": [-37.0, -25.0, -33.0, -11.0, -24.0],
    "reference_chosen": [-40.0, -20.0, -35.0, -11.0, -40.0],
    "reference_rejected": [-35.0, -22.0, -30.0, -12.0, -20.0],
}
TOKENS = {"chosen_tokens": [10, 10, 10, 4, 5], "rejected_tokens": [9, 10, 10, 4, 5]}
ALPHA = {"alpha": [0.75, 1.0, 0.5, 0.6, 0.9]}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process; gives exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.run(["diagnose", "preference", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    rows = list(zip(*columns.values(), strict=True))
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(columns), *rows])
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_json(run: Run, tmp_path: Path, kind: str) -> None:
    data = write(tmp_path / f"pairs.{kind}", PAIRS | TOKENS | ALPHA)
    code, out, err = run("--data", data, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["beta"], found["gamma"]) == (0.1, 1.0)
    (one,) = found["checkpoints"]
    assert one["checkpoint"] is None
    assert one["pairs"] == 5
    assert one["plain"]["ranking_accuracy"] == pytest.approx(2 / 5)
    assert one["plain"]["reward_accuracy"] == pytest.approx(4 / 5)
    assert one["plain"]["reference_ranking_accuracy"] == pytest.approx(2 / 5)
    assert one["per_token"]["ranking_accuracy"] == pytest.approx(3 / 5)  # 38/10 < 37/9
    assert {name: flips["pairs"] for name, flips in one["flips"].items()} == {
        "kept": 1, "unlearned": 1, "flipped": 1, "unflipped": 2,
    }  # fmt: skip
    assert one["flips"]["unflipped"]["loss"] == pytest.approx(
        (math.log1p(math.exp(-0.4)) + math.log1p(math.exp(-1.9))) / 2, abs=1e-9
    )
    assert one["difficulty"]["quantiles"]["0.5"] == pytest.approx(0.5)
    assert one["difficulty"]["wrong_under_reference"] == pytest.approx(3 / 5)
    assert one["difficulty"]["out_of_reach"] is None
    ideal = one["plain"]["idealized"]
    assert ideal["betas"] == [0.01, 0.1, 1.0, 5.0, 10.0]
    assert ideal["accuracies"] == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.4])
    assert one["plain"]["alignment_gap"] == pytest.approx(0.0)
    assert one["rule_agreement"] == 1


def test_tables(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.csv", PAIRS | TOKENS | ALPHA)
    code, out, _ = run("--data", data, "--reachable-loss", "0.3")
    assert code == 0
    for words in ("Accuracy", "per token", "ideal min", "Flips", "unlearned", "unflipped", "Difficulty", "50 %"):
        assert words in out
    assert "threshold below 0.3" in out
    bare = run("--data", write(tmp_path / "bare.csv", PAIRS))[1]
    assert "per token" not in bare


def test_checkpoints_one_by_one(run: Run, tmp_path: Path) -> None:
    later = {**PAIRS, "chosen": [-30.0] * 5, "checkpoint": ["step-20"] * 5}
    both = {name: [*values, *later[name]] for name, values in {**PAIRS, "checkpoint": ["step-10"] * 5}.items()}
    found = json.loads(run("--data", write(tmp_path / "two.csv", both), "--json")[1])
    assert [one["checkpoint"] for one in found["checkpoints"]] == ["step-10", "step-20"]
    assert [one["plain"]["ranking_accuracy"] for one in found["checkpoints"]] == pytest.approx([0.4, 0.4])
    assert [one["plain"]["reward_accuracy"] for one in found["checkpoints"]] == pytest.approx([0.8, 0.6])
    out = run("--data", tmp_path / "two.csv")[1]
    assert out.count("step-10") == out.count("step-20") == 1 + 1 + 4 + 1


def test_options_reach_the_figures(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.csv", PAIRS | ALPHA)
    options = ("--beta", "0.2", "--gamma", "0.5", "--ideal-beta", "0.001", "--precision", "bfloat16")
    (one,) = json.loads(run("--data", data, *options, "--reachable-loss", "0.5", "--json")[1])["checkpoints"]
    assert one["difficulty"]["quantiles"]["0.5"] == pytest.approx(0.5)
    assert one["difficulty"]["quantiles"]["1.0"] == pytest.approx(2.0)
    assert one["difficulty"]["out_of_reach"] == pytest.approx(3 / 5)  # softplus(-0.5) = 0.474
    assert one["plain"]["idealized"]["accuracies"] == pytest.approx([0.8])
    (coarse,) = json.loads(run("--data", write(tmp_path / "b.csv", {
        name: [10 * value for value in values] if name in ("chosen", "rejected") else values
        for name, values in (PAIRS | {"rejected": [-38.1, *PAIRS["rejected"][1:]]}).items()
    }), "--precision", "bfloat16", "--json")[1])["checkpoints"]  # fmt: skip
    assert coarse["below_rounding"] == pytest.approx(1 / 5)


def test_the_file_of_pairs(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.csv", {"id": [*"abcde"], **PAIRS})
    out = tmp_path / "new" / "difficulties.csv"
    assert run("--data", data, "--out", out)[0] == 0
    rows = list(csv.DictReader(out.open()))
    assert list(rows[0]) == ["id", *PAIRS, "difficulty", "threshold", "category"]
    assert [row["id"] for row in rows] == [*"abcde"]
    assert [row["category"] for row in rows] == ["unflipped", "kept", "flipped", "unlearned", "unflipped"]
    assert float(rows[0]["difficulty"]) == pytest.approx(0.5, abs=1e-12)
    assert float(rows[0]["threshold"]) == pytest.approx(0.4740769841801067, abs=1e-12)
    again = tmp_path / "again.csv"
    assert run("--data", out, "--out", again)[0] == 0  # what was added is added anew
    assert again.read_text() == out.read_text()


def without(name: str) -> dict[str, list[Any]]:
    return {column: values for column, values in PAIRS.items() if column != name}


@pytest.mark.parametrize(
    "columns, problem",
    [
        (without("rejected"), "expected a column rejected, there are chosen, reference_chosen, reference_rejected"),
        ({**PAIRS, "chosen_tokens": [1] * 5}, "expected both columns chosen_tokens and rejected_tokens, or neither"),
        ({**PAIRS, "chosen": ["x", *PAIRS["chosen"][1:]]}, "expected numbers in column chosen, got 'x' in pair 0"),
        ({**PAIRS, "chosen": [0.5] * 5}, "argument `chosen`: expected finite log-probabilities <= 0, got 0.5 at [0]"),
        ({**PAIRS, "rejected": ["nan"] * 5}, "argument `rejected`: expected finite log-probabilities <= 0, got nan"),
        ({**PAIRS, "alpha": [1.5] * 5}, "argument `alpha`: expected shares in [0, 1], got 1.5"),
        ({**PAIRS, **TOKENS, "chosen_tokens": [0] * 5}, "argument `chosen_tokens`: expected at least one token per"),
        ({name: [] for name in PAIRS}, "expected at least one pair"),
        ({**PAIRS, "chosen": [0.5] * 5, "checkpoint": ["a"] * 5}, "checkpoint a: argument `chosen`"),
    ],
)  # fmt: skip
def test_bad_columns_are_one_line(run: Run, tmp_path: Path, columns: dict[str, list[Any]], problem: str) -> None:
    code, out, err = run("--data", write(tmp_path / "pairs.csv", columns))
    assert (code, out) == (cli.FAILED, "")
    assert err.startswith(f"scorecraft: data `{tmp_path / 'pairs.csv'}`")
    assert problem in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("pairs.txt", "", "expected a file of .csv, .parquet, .jsonl, got .txt"),
        ("none.csv", None, "there is no such file"),
        ("pairs.csv", "chosen,rejected\n1,2,3\n", "pair 0 has another number of fields than the header, 2"),
        ("pairs.csv", "chosen,chosen\n1,2\n", "has two columns of one name"),
        ("pairs.csv", "", "expected a column chosen, there are none"),
        ("pairs.jsonl", "{", "cannot read it as JSON lines"),
        ("pairs.jsonl", "[1]", "expected an object in every line"),
        ("pairs.jsonl", '{"chosen": -1}\n{"rejected": -1}', "pair 1 has other fields than the first, chosen"),
        ("pairs.parquet", "no parquet", "cannot read it as parquet"),
    ],
)
def test_bad_files_are_one_line(run: Run, tmp_path: Path, name: str, content: str | None, problem: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_text(content)
    code, _, err = run("--data", tmp_path / name)
    assert code == cli.FAILED
    assert problem in err
    assert err.count("\n") == 1


def test_bad_options_are_one_line(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.csv", PAIRS)
    for option, value in (("--beta", "0"), ("--gamma", "-1"), ("--reachable-loss", "0")):
        code, _, err = run("--data", data, option, value)
        assert code == cli.FAILED
        assert err.count("\n") == 1
        assert "expected a finite number" in err
    assert run("--data", data, "--precision", "int8")[0] == cli.USAGE
    assert run()[0] == cli.USAGE
