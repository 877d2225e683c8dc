"""Proxy and gold reward over checkpoints: their rank correlation, and the file that keeps them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from scorecraft.preference.r3 import CheckpointRewards, monotonicity


def test_spearman_by_hand() -> None:
    assert monotonicity([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 400.0]).spearman == pytest.approx(1, abs=1e-12)
    assert monotonicity([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]).spearman == pytest.approx(-1, abs=1e-12)
    swapped = monotonicity(range(10), [1, 0, 3, 2, 4, 5, 6, 7, 9, 8])  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert swapped.spearman == pytest.approx(1 - 6 * 6 / 990, abs=1e-12)
    assert swapped.checkpoints == 10
    assert swapped.p_value < 1e-4


def test_ties_share_their_ranks() -> None:
    """Ranks 1.5, 1.5, 3 against 1, 2, 3: Pearson of these is sqrt(3)/2."""
    assert monotonicity([5.0, 5.0, 6.0], [1.0, 2.0, 3.0]).spearman == pytest.approx(math.sqrt(3) / 2, abs=1e-12)


def test_what_does_not_vary_has_no_correlation() -> None:
    found = monotonicity([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert math.isnan(found.spearman)
    assert math.isnan(found.p_value)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"^argument `proxy`: expected at least two checkpoints, got 1"):
        monotonicity([1.0], [1.0])
    with pytest.raises(ValueError, match=r"^argument `gold`: expected 2 rewards, one per checkpoint, got 1"):
        monotonicity([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"^argument `gold`: expected a finite number, got nan"):
        monotonicity([1.0, 2.0], [1.0, math.nan])
    kept = CheckpointRewards()
    with pytest.raises(ValueError, match=r"^argument `gold`: expected 2 rewards, one per rollout, got 1"):
        kept.record(0, [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"^argument `gold`: expected 1 rewards, one per rollout, got 0"):
        kept.record(0, [], [])
    with pytest.raises(ValueError, match=r"^argument `proxy`: expected a finite number, got inf"):
        kept.record(0, [math.inf], [1.0])
    with pytest.raises(ValueError, match=r"^argument `step`: expected an integer >= 0"):
        kept.record(-1, [1.0], [1.0])
    assert len(kept) == 0


def test_measurements_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "rewards.jsonl"
    kept = CheckpointRewards(path)
    kept.record(20, [3.0, 5.0], [7.0, 9.0])
    kept.record(0, [1.0], [2.0])
    kept.record(10, [9.0], [9.0])
    kept.record(10, [2.0, 2.0], [4.0, 5.0])  # measured anew
    again = CheckpointRewards(path)
    assert again.steps == [0, 10, 20]
    assert again.proxy == kept.proxy == [1.0, 2.0, 4.0]
    assert again.gold == kept.gold == [2.0, 4.5, 8.0]
    assert again.monotonicity().spearman == pytest.approx(1)
    again.forget(10)
    assert again.steps == [0]
    again.record(5, [0.0], [0.0])
    assert CheckpointRewards(path).steps == [0, 5]


@pytest.mark.parametrize("content", ["not json\n", '{"step": 1}\n', "[1]\n"])
def test_a_file_of_something_else(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rewards.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"^cannot read .*rewards\.jsonl .*: delete it to start anew$"):
        CheckpointRewards(path)
    assert path.read_text() == content
