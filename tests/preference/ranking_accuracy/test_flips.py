"""Categories of pairs before and after training, and the report of everything."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.preference.ranking_accuracy import (
    CATEGORIES,
    diagnose_pairs,
    difficulty_summary,
    flip_categories,
    flip_table,
    flip_threshold,
    idealized_ranking_accuracy,
    log_ratio,
    pair_difficulty,
    ranking_accuracy,
    reward_accuracy,
    rule_agreement,
)
from scorecraft.preference.ranking_accuracy.flips import flip_sums, table_of_sums


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_categories() -> None:
    gap, reference = vector(1, -1, 1, -1, 0, 0, -1, 1), vector(2, 2, -2, -2, 0, -2, 0, 0)
    names = [CATEGORIES[place] for place in flip_categories(gap, reference)]
    assert names == ["kept", "unlearned", "flipped", "unflipped", "kept", "flipped", "unlearned", "kept"]


def test_table() -> None:
    gap, reference = vector(3, 1, -1, 2, -2, -4), vector(2, 2, 2, -2, -2, -3)
    found = flip_table(gap, reference, beta=0.5)
    assert found.counts.tolist() == [2, 1, 1, 2]
    torch.testing.assert_close(found.shares, vector(2, 1, 1, 2) / 6)
    margins = 0.5 * (gap - reference)
    wanted = vector(float(margins[:2].mean()), float(margins[2]), float(margins[3]), float(margins[4:].mean()))
    torch.testing.assert_close(found.margins, wanted, rtol=0, atol=1e-12)
    losses = F.softplus(-margins)
    wanted = vector(float(losses[:2].mean()), float(losses[2]), float(losses[3]), float(losses[4:].mean()))
    torch.testing.assert_close(found.losses, wanted, rtol=0, atol=1e-12)
    assert float(found.flipped) == pytest.approx(1 / 3)
    assert float(found.unlearned) == pytest.approx(1 / 3)
    half = flip_table(gap, reference, beta=0.5, gamma=0.5)
    assert float(half.margins[1]) == pytest.approx(0.5 * (-1 - 1))


def test_empty_categories() -> None:
    found = flip_table(vector(1.0, 2.0), vector(1.0, 1.0))
    assert found.shares.tolist() == [1, 0, 0, 0]
    assert found.losses.isnan().tolist() == found.margins.isnan().tolist() == [False, True, True, True]
    assert math.isnan(float(found.flipped))
    assert found.unlearned == 0


def test_sums_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    gap, reference = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    parts = sum(flip_sums(gap[part], reference[part]) for part in (slice(0, 7), slice(7, 8), slice(8, 50)))
    assert isinstance(parts, Tensor)
    for found, wanted in zip(table_of_sums(parts), flip_table(gap, reference), strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_rule_agrees_but_for_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    gap, reference = 100 * torch.randn(2, 5000, generator=generator, dtype=torch.float64)
    assert rule_agreement(gap, reference) == 1
    # A log-ratio that vanishes beside the reference's: 1e-15 of a sum of 1e6 is not there.
    assert rule_agreement(vector(-1e-15, 1.0), vector(-1e6, 1.0)) == 0.5


def test_everything_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = -200 * torch.rand(2, 300, generator=generator, dtype=torch.float64) - 1
    model = (reference + 30 * torch.randn(2, 300, generator=generator, dtype=torch.float64)).clamp(max=-0.1)
    tokens = torch.randint(1, 50, (2, 300), generator=generator)
    alpha = torch.rand(300, generator=generator, dtype=torch.float64)
    found = diagnose_pairs(*model, *reference, chosen_tokens=tokens[0], rejected_tokens=tokens[1], alpha=alpha,
                           beta=0.2, gamma=0.5, reachable_loss=0.4)  # fmt: skip
    gap, before = log_ratio(*model), log_ratio(*reference)
    counts = {"chosen_tokens": tokens[0], "rejected_tokens": tokens[1]}
    assert found.plain.ranking == float(ranking_accuracy(gap))
    assert found.plain.reward == float(reward_accuracy(gap, before))
    assert found.plain.reference_ranking == float(ranking_accuracy(before))
    assert found.per_token is not None
    means = log_ratio(*model, **counts), log_ratio(*reference, **counts)
    assert found.per_token.ranking == float(ranking_accuracy(means[0])) != found.plain.ranking
    assert found.per_token.reward == float(reward_accuracy(*means))
    ideal = idealized_ranking_accuracy(means[1], alpha)
    assert found.per_token.idealized is not None
    assert torch.equal(found.per_token.idealized.accuracies, ideal.accuracies)
    assert found.per_token.alignment_gap == pytest.approx(100 * (float(ideal.median) - found.per_token.ranking))
    difficulty = pair_difficulty(before, beta=0.2, gamma=0.5)
    assert torch.equal(found.difficulty, difficulty)
    assert torch.equal(found.threshold, flip_threshold(difficulty))
    assert found.difficulties.out_of_reach == difficulty_summary(difficulty, reachable_loss=0.4).out_of_reach
    assert found.flips.counts.tolist() == found.category.bincount(minlength=4).tolist()
    assert found.rule_agreement == 1
    plain = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert plain["per_token"]["idealized"]["median"] == float(ideal.median)
    assert plain["flips"]["flipped"]["pairs"] == int(found.flips.counts[2])
    assert plain["difficulty"]["quantiles"]["0.5"] == pytest.approx(float(difficulty.median()), abs=1)


def test_what_is_not_known_is_none() -> None:
    found = diagnose_pairs(vector(-1, -2), vector(-3, -4), vector(-1, -1), vector(-2, -2)).as_json()
    assert found["per_token"] is None
    assert found["plain"]["idealized"] is None
    assert found["plain"]["alignment_gap"] is None
    assert found["flips"]["flipped"]["loss"] is None
    assert found["flipped"] is None
    assert found["difficulty"]["out_of_reach"] is None
    with pytest.raises(ValueError, match=r"^argument `rejected_tokens`"):
        diagnose_pairs(vector(-1), vector(-1), vector(-1), vector(-1), chosen_tokens=torch.tensor([1]))
