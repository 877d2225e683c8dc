"""`compare preference` from end to end: pairs in every form, a tiny model built on the spot, TRL's trainer."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

pytest.importorskip("trl")

from tests.integrations.tiny_models import WORDS, save_tiny_llama

from scorecraft import cli
from scorecraft.catalog.objectives import UnknownObjective, make_preference_objective, preference_objective_types
from scorecraft.comparisons.labelled_data import BadData
from scorecraft.comparisons.preference import preference_comparison
from scorecraft.comparisons.preference_data import load_preferences
from scorecraft.core import DPOLoss, SimPOLoss

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def rows(count: int = 24) -> list[dict[str, str]]:
    """The preferred answer repeats the word of the prompt."""
    return [
        {
            "prompt": f"{WORDS[row]} ",
            "chosen": f"{WORDS[row]} {WORDS[row]}",
            "rejected": f"{WORDS[-1 - row]} {WORDS[5]}",
        }
        for row in range(count)
    ]


def written(path: Path, content: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows())  # type: ignore[arg-type]


def test_forms_of_pairs(tmp_path: Path) -> None:
    plain = {"prompt": "Why?", "chosen": " Because.", "rejected": " No."}
    dialogue = {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: Bees."}
    asked = [{"role": "user", "content": "Why?"}]
    messages = {
        "prompt": asked,
        "chosen": [*asked, {"role": "assistant", "content": "Because."}],
        "rejected": [*asked, {"role": "assistant", "content": "Bees."}],
    }
    for place, row in enumerate((plain, dialogue, messages)):
        data = load_preferences(str(written(tmp_path / f"{place}.jsonl", [row])))
        assert data.prompts[0].strip().removesuffix("\n\nAssistant:").endswith("Why?")
        assert data.chosen[0].strip().removeprefix("Assistant: ") == "Because."
        assert data.rejected[0].strip().removeprefix("Assistant: ") in ("No.", "Bees.")


def test_a_folder_and_its_splits(tmp_path: Path) -> None:
    written(tmp_path / "test.jsonl", rows(3))  # type: ignore[arg-type]
    assert len(load_preferences(str(tmp_path))) == 3
    written(tmp_path / "train.jsonl", rows(5))  # type: ignore[arg-type]
    load_preferences.cache_clear()
    assert len(load_preferences(str(tmp_path))) == 5
    assert len(load_preferences(str(tmp_path), split="test")) == 3
    with pytest.raises(BadData, match=r"expected one file of pairs `dev.parquet` or .jsonl, got test, train$"):
        load_preferences(str(tmp_path), split="dev")


def test_pairs_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    content = rows(4)
    content[1]["rejected"] = content[1]["chosen"]
    content[2]["chosen"] = "  "
    data = load_preferences(str(written(tmp_path / "some.jsonl", content)))  # type: ignore[arg-type]
    assert (len(data), data.left_out) == (2, 2)
    with pytest.raises(BadData, match="expected pairs of two different answers, got 2 rows without one"):
        load_preferences(str(written(tmp_path / "none.jsonl", content[1:3])))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "row, line",
    [
        ({"prompt": "a", "answer": "b"}, "row 0 has no `chosen`, only prompt, answer"),
        ({"chosen": 3, "rejected": "b"}, "row 0 holds neither texts nor messages, but int"),
    ],
)
def test_what_is_refused_is_one_line(tmp_path: Path, row: dict[str, object], line: str) -> None:
    with pytest.raises(BadData, match=line) as caught:
        load_preferences(str(written(tmp_path / "bad.jsonl", [row])))
    assert "\n" not in str(caught.value)
    with pytest.raises(BadData, match="there is no such file or folder"):
        load_preferences(str(tmp_path / "nowhere.jsonl"))


def test_objectives_as_they_are_typed() -> None:
    assert {"dpo", "ipo", "simpo", "slic"} <= set(preference_objective_types())
    objective = make_preference_objective("DPO:beta=0.3 + 0.5*simpo")
    assert objective.needs_reference
    assert objective.needs_tokens
    kinds = [type(part) for _, part in objective.parts]  # type: ignore[attr-defined]
    assert kinds == [DPOLoss, SimPOLoss]
    with pytest.raises(UnknownObjective, match="unknown objective `dppo`: did you mean `dpo`"):
        make_preference_objective("dppo")
    with pytest.raises(UnknownObjective, match="objective `dpo` has no option `bta`: did you mean `beta`"):
        make_preference_objective("dpo:bta=1")


@pytest.mark.parametrize("model", ["tiny", "folder"])
def test_a_trial_measures_and_repeats(pairs: Path, tmp_path: Path, model: str) -> None:
    name = str(save_tiny_llama(tmp_path / "llama")) if model == "folder" else model
    comparison = preference_comparison(
        str(pairs), ["dpo", "simpo"], model=name, steps=4, batch=4, learning_rates=(1e-2,), pairs=24, max_tokens=32,
        log_probabilities=tmp_path / "tables",
    )  # fmt: skip
    first = comparison.trial(comparison.world, comparison.contenders[0], 0, comparison.scale)
    assert set(first) == {metric.name for metric in comparison.metrics}
    shares = [value for name, value in first.items() if name not in ("difficulty", "chosen_change")]
    assert all(0 <= value <= 1 for value in shares)
    assert comparison.trial(comparison.world, comparison.contenders[0], 0, comparison.scale) == first
    with (tmp_path / "tables" / "dpo-0.csv").open() as file:
        table = list(csv.DictReader(file))
    right = sum(float(row["chosen"]) >= float(row["rejected"]) for row in table) / len(table)
    assert right == pytest.approx(first["ranking_accuracy"])


def test_what_the_comparison_refuses(pairs: Path, tmp_path: Path) -> None:
    few = written(tmp_path / "few.jsonl", rows(4))  # type: ignore[arg-type]
    with pytest.raises(BadData, match="expected at least 10 pairs of two different answers, got 4"):
        preference_comparison(str(few), ["dpo", "ipo"])
    with pytest.raises(BadData, match=r"model `nowhere/`: expected `tiny`, a folder, or a causal language model"):
        preference_comparison(str(pairs), ["dpo", "ipo"], model="nowhere/")


def test_from_the_shell(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["compare", "preference", "--data", str(pairs), "--objective", "dpo", "--objective", "ipo:beta=0.5"]
    command += ["--seeds", "2", "--steps", "2", "--batch", "2", "--pairs", "20", "--max-tokens", "24", "--jobs", "1"]
    assert cli.run(command) == cli.OK
    (folder,) = (tmp_path / "scorecraft-runs" / "compare_preference").iterdir()
    content = json.loads((folder / "result.json").read_text())
    assert {row["title"] for row in content["ranking"]} == {"dpo", "ipo:beta=0.5"}
    assert content["metrics"][0]["name"] == "reward_accuracy"


@pytest.mark.skipif(not (SHARED / "hh_rlhf_harmless").is_dir(), reason="the shared data are not here")
def test_real_dialogues() -> None:
    data = load_preferences(str(SHARED / "hh_rlhf_harmless"))
    assert (len(data), data.left_out) == (2308, 4)
    assert all(prompt.endswith("Assistant:") for prompt in data.prompts)
