"""`scorecraft logic`: what it prints, its JSON, its picture, its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from scorecraft import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process; gives exit code, stdout and stderr."""
    monkeypatch.setenv("NO_COLOR", "1")

    def called(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(["logic", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return called


def refused(answer: tuple[int, str, str], code: int) -> str:
    assert answer[:2] == (code, "")
    (line,) = answer[2].splitlines()
    return line.removeprefix("scorecraft: ")


def test_a_formula_is_explained(run: Run) -> None:
    code, out, err = run("L -> W given W | L both W & L")
    assert (code, err) == (0, "")
    for line in (
        "rho  = log [ W / L ]   (a name stands for its probability)",
        "T T   T   T    T   both",
        "F F   T   -    -   -",
        "  W   d rho = 1, d loss = -0.363636",
        "equals            CPO",
        "entails           cCPO, unCPO",
        "entailed by       CEUnl",
    ):
        assert line in out.splitlines()


def test_json_is_the_contract(run: Run) -> None:
    found = json.loads(run("orpo", "--json", "--at", "W=0.6,L=0.5")[1])
    assert list(found) == [
        "name", "formula", "core", "condition", "both", "propositions", "worlds", "ratio", "loss", "beta", "semantic",
        "prefactor", "point", "rho", "value", "weights", "place",
    ]  # fmt: skip
    assert found["name"] == "ORPO"
    assert found["formula"] == "L -> W given W ^ L"
    assert found["point"] == {"W": 0.6, "L": 0.5}
    assert found["value"] == pytest.approx(0.5108256237659907, rel=1e-12)  # log(1 + 0.4 / 0.6)
    assert found["weights"]["L"]["slope"] == "-1/(1 - L)"
    assert found["place"]["entails"] == ["cCPO", "unCPO", "cfUNL"]
    assert [world["plus"] for world in found["worlds"]] == [False, True, False, False]


def test_names_bring_their_function_and_their_scale(run: Run) -> None:
    found = json.loads(run("ipo", "--json")[1])
    assert (found["loss"], found["beta"]) == ("(rho - 1 / (2 beta))^2", 0.1)
    assert json.loads(run("ipo", "--beta", "0.5", "--loss", "logistic", "--json")[1])["beta"] == 0.5
    assert run("simpo")[1].startswith("SimPO: DPO with a manual reference")
    assert json.loads(run("simpo", "--json")[1])["point"]["RL"] == pytest.approx(0.5 * 2.718281828459045**-0.5)


def test_the_reference_form_of_cpo_is_dpo(run: Run) -> None:
    code, out, _ = run("L -> W given W | L both W & L", "--reference", "--beta", "0.1")
    assert code == 0
    assert "rho  = log [ W*RL / (L*RW) ]" in out
    assert "equals            DPO" in out


@pytest.mark.parametrize(
    "ratio, formula",
    [
        ("dpo", "L & RW -> W & RL given W & RL | L & RW both W & L & RW & RL"),
        ("W*(1-L) / (L*(1-W))", "L -> W given W ^ L"),
        ("log W/(1 - W) / (L/(1 - L))", "L -> W given W ^ L"),
    ],
)
def test_decompiling(run: Run, ratio: str, formula: str) -> None:
    code, out, err = run("--decompile", ratio, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["formula"] == formula


def test_the_map_as_text_and_as_data(run: Run) -> None:
    lines = run("--lattice")[1].splitlines()
    assert lines[0] == "unCPO  L -> W"
    assert lines[-2:] == ["CEUnl  W & ~L", "         entails CE, CPO, ORPO, fUNL"]
    found = json.loads(run("W given L", "--lattice", "--json")[1])
    assert found["given"] == "yours"
    assert {loss["name"]: loss["covered_by"] for loss in found["losses"]}["yours"] == ["cCPO"]
    assert json.loads(run("~W -> ~L", "--lattice", "--json")[1])["given"] == "unCPO"
    assert json.loads(run("dpo", "--lattice", "--json")[1])["given"] == "DPO"


@pytest.mark.parametrize("name, begins", [("map.png", b"\x89PNG"), ("map.svg", b"<?xml")])
def test_the_map_as_a_picture(run: Run, tmp_path, name: str, begins: bytes) -> None:
    first, second = tmp_path / name, tmp_path / f"again-{name}"
    assert run("--lattice", str(first)) == (0, f"Drawn into {first}\n", "")
    assert run("orpo", "--lattice", str(second))[0] == 0
    content = first.read_bytes()
    assert content.startswith(begins)
    assert content != second.read_bytes()  # the given one is marked
    run("--lattice", str(second))
    assert content == second.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_what_lies_between_two_losses(run: Run) -> None:
    code, out, err = run("--enumerate", "ceunl", "uncpo")
    assert (code, err) == (0, "")
    *rows, last = out.splitlines()
    assert len(rows) == 16
    assert last == "16 structures, 8 of them new"
    assert rows[0].split("  ")[0] == "W & ~L"
    assert rows[0].endswith("W*(1 - L) / (1 - W*(1 - L))  (CEUnl)")
    assert sum(row.endswith("(new)") for row in rows) == 8


def test_an_interval_of_formulas_without_the_filter(run: Run) -> None:
    ends = ("W & ~L both W & L", "L -> W given W | L")
    kept = json.loads(run("--enumerate", *ends, "--json")[1])
    everything = json.loads(run("--enumerate", *ends, "--unfiltered", "--json")[1])
    assert all(row["winner_monotone"] for row in kept)
    assert [row for row in everything if row["winner_monotone"]] == kept
    assert {"formula", "ratio", "plus", "minus", "name", "same_ratio_as", "winner_monotone"} == set(kept[0])


@pytest.mark.parametrize(
    "arguments, code, told",
    [
        ((), 2, "expected a formula, --decompile, --lattice or --enumerate"),
        (("L", "W"), 2, "expected one formula, got 'L' 'W' (quote a formula as a whole)"),
        (("L -> W", "--decompile", "orpo"), 2, "expected one of FORMULA, --decompile, --lattice and --enumerate"),
        (("orpo", "--unfiltered"), 2, "--unfiltered goes with --enumerate"),
        (("--lattice", "map.pdf"), 2, "--lattice: expected a file name that ends in .png or .svg, got map.pdf"),
        (("orpo", "--at", "W:1"), 2, "--at: expected probabilities such as W=0.7,L=0.4, got 'W:1'"),
        (("orpo", "--at", "W=2"), 1, "argument `at`: expected a probability of W in (0, 1), got 2.0"),
        (("L -> -> W",), 1, "at column 6 of `L -> -> W`, got `->`"),
        (("L -> X",), 1, "expected one of the propositions W, L, RW, RL at column 6 of `L -> X`, got `X`"),
        (("W & ~W",), 1, "expected worlds on both sides, got `false`, whose plus set is empty"),
        (("--decompile", "W + L"), 1, "it is 2 in the world TT of (W, L)"),
        (("--decompile", "W / (L"), 1, "at column 7 of `W / (L`, got its end"),
        (("--enumerate", "cpo", "orpo"), 1, "argument `lower`: expected a structure that entails"),
        (("nca_pair",), 1, "expected a loss that is a function of one log-ratio, got 'nca_pair'"),
        (("orpo", "--loss", "hinge"), 1, "argument `loss`: expected one of"),
        (("dpo", "--reference"), 1, "expected one of the model alone"),
    ],
)
def test_refusals_are_one_line(run: Run, arguments: tuple[str, ...], code: int, told: str) -> None:
    assert told in refused(run(*arguments), code)


def test_the_help_has_examples_and_the_grammar(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "scorecraft logic" in out.partition("Examples")[2]
    assert "[given P_C]" in " ".join(out.split())


def test_training_is_a_comparison_with_dpo(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "scorecraft.cli.comparing.compare_preference", lambda *given, **more: calls.append((given, more))
    )
    code, out, _ = run("L -> W given W | L", "--beta", "0.5", "--train", "pairs.jsonl")
    assert (code, "entailed by" in out) == (0, True)
    ((data, objectives, _), more) = calls[0]
    assert (data, objectives) == ("pairs.jsonl", ["logic: L -> W given W | L; beta=0.5", "dpo"])
    assert more == {"model": "tiny"}
    assert "--train goes with a formula" in refused(run("--train", "pairs.jsonl"), cli.USAGE)
