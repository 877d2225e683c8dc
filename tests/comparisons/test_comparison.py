"""The statistics and the answer of a comparison, and `compare similarity` from end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

from scorecraft.comparisons.comparison import Comparison, ComparisonResult, conclude, contender_name
from scorecraft.comparisons.labelled_data import LabelledData
from scorecraft.comparisons.report import html_report, write_report
from scorecraft.comparisons.similarity import similarity_comparison, similarity_trial, split
from scorecraft.studies.result import TrialRecord
from scorecraft.studies.study import Contender, Metric, Scale, World

OFFSETS = {"first": 0.5, "second": 0.49, "third": 0.2}
SEEDS = range(8)
PROVENANCE = {
    "date": "2026-01-02T03:04:05",
    "command": "scorecraft compare similarity",
    "hardware": {"cpu": "a processor", "cores": 2, "gpu": None},
    "versions": {"torch": "2"},
}


def found(offsets: Mapping[str, float] = OFFSETS, noise: float = 0.02, share: float = 0.6) -> ComparisonResult:
    random = np.random.default_rng(0)
    comparison = Comparison(
        "similarity",
        (Metric("m", "M"),),
        World("data", "Data"),
        tuple(Contender(name, name.title()) for name in offsets),
        similarity_trial,
        Scale("desk", 8),
        share,
    )
    trials = [
        TrialRecord("data", name, seed, {"m": offset + noise * random.normal()}, 0.0, "", "")
        for seed in SEEDS
        for name, offset in offsets.items()
    ]
    return conclude(comparison, SEEDS, trials, PROVENANCE)


def test_the_interval_is_that_of_resampled_data() -> None:
    result = found()
    assert [contender.name for contender in result.contenders] == ["first", "second", "third"]
    (one,) = [one for one in result.against_best if one.contender == "third"]
    d = np.array(result.values("first", "m")) - result.values("third", "m")
    error = d.std(ddof=1) * math.sqrt(1 / 8 + 0.6)
    half = stats.t.ppf(1 - 0.05 / 2 / 2, 7) * error  # two comparisons
    assert one.found.low == pytest.approx(d.mean() - half)
    assert one.found.high == pytest.approx(d.mean() + half)
    assert one.found.p_value == pytest.approx(2 * stats.t.sf(d.mean() / error, 7))


def test_the_answer() -> None:
    result = found()
    assert result.best.name == "first"
    assert [contender.name for contender in result.equals] == ["second"]
    assert result.answer == "Use First, or one that these data cannot tell from it: Second."
    assert found({"a": 0.9, "b": 0.1}).answer == "Use A: it is better than every other contender."
    assert found({"a": 0.5, "b": 0.5}).answer.startswith("These data cannot tell the contenders apart.")


def test_names_of_files_are_told_apart() -> None:
    names = [contender_name(text) for text in ("triplet", "triplet:margin=1", "triplet:margin=-1", "pml:TripletLoss")]
    assert len(set(names)) == 4
    assert names[0] == "triplet"


@pytest.mark.parametrize("classes", [4, 12])
def test_parts_of_a_split(classes: int) -> None:
    labels = torch.arange(120) % classes
    data = LabelledData(torch.arange(120.0)[:, None], labels)
    parts = split(data, seed=3)
    rows = [set(part.items[:, 0].tolist()) for part in parts]
    assert sum(map(len, rows)) == 120
    assert len(set.union(*rows)) == 120
    seen = [set(labels[part.items[:, 0].long()].tolist()) for part in parts]
    if classes < 10:
        assert all(one == set(range(classes)) for one in seen)
    else:
        assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]
        assert [len(one) for one in seen] == [6, 2, 4]
    assert all(part.labels.max() + 1 == len(part.labels.unique()) for part in parts)
    again = split(data, seed=3)
    assert all(torch.equal(one.items, other.items) for one, other in zip(parts, again, strict=True))
    assert not torch.equal(split(data, seed=4)[0].items, parts[0].items)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels, labels = load_digits(return_X_y=True)
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, features=pixels[:600].astype(np.float32), labels=labels[:600])
    return path


@pytest.mark.parametrize("name", ["multi_similarity", "unpg", "pml:ArcFaceLoss"])
def test_a_trial_repeats_to_the_last_bit(digits: Path, name: str) -> None:
    comparison = similarity_comparison(str(digits), [name, "triplet"], steps=5, learning_rates=(0.003, 0.001))
    torch.manual_seed(1)
    first = comparison.trial(comparison.world, comparison.contenders[0], 2, comparison.scale)
    torch.manual_seed(2)
    again = comparison.trial(comparison.world, comparison.contenders[0], 2, comparison.scale)
    assert first == again
    assert first["recall_at_5"] >= first["recall_at_1"] > 0.3


def test_images_meet_convolutions(tmp_path: Path) -> None:
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels[:300] * 15).astype(np.uint8).reshape(-1, 8, 8)
    np.savez(tmp_path / "images.npz", images=images, labels=labels[:300])
    comparison = similarity_comparison(str(tmp_path / "images.npz"), ["contrastive", "triplet"], steps=3)
    metrics = comparison.trial(comparison.world, comparison.contenders[0], 0, comparison.scale)
    assert metrics["recall_at_1"] > 0.2


def test_a_report_says_the_answer(tmp_path: Path) -> None:
    result = found()
    files = write_report(result, tmp_path)
    assert result.answer in html_report(result)
    content = json.loads(files.json.read_text())
    assert content["best"] == "first"
    assert content["cannot_tell_from_best"] == ["second"]
    assert [row["contender"] for row in content["ranking"]] == ["first", "second", "third"]
    assert files.plot.read_bytes().startswith(b"\x89PNG")
