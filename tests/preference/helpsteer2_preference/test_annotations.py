"""Aggregating votes, agreement of annotators, and what becomes of rewards."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from scorecraft.preference.helpsteer2_preference import (
    Aggregated,
    aggregate_votes,
    leave_one_out_advantages,
    standardised_rewards,
    vote_agreement,
)


@pytest.mark.parametrize(
    "votes, expected",
    [
        ([3, -3, 2, 2, 1], Aggregated((1, 2, 2), 1, 5 / 3, 2, True)),
        ([-3, 1, 2, 2], Aggregated((1, 2, 2), 1, 5 / 3, 2, True)),
        ([1, 1, 0], Aggregated((0, 1, 1), 1, 2 / 3, 1, True)),
        ([0, 0, 1], Aggregated((0, 0, 1), 1, 1 / 3, 0, False)),
        ([2, -100, -100], Aggregated(None, None, None, None, False)),
        ([-3, 0, 3], Aggregated((-3, 0, 3), 6, 0.0, 0, False)),
        ([0, 3, 3], Aggregated((0, 3, 3), 3, 2.0, 2, False)),
        ([-1, -2, -2, -100], Aggregated((-2, -2, -1), 1, -5 / 3, -2, True)),
        ([], Aggregated(None, None, None, None, False)),
    ],
)
def test_check_values(votes: list[int], expected: Aggregated) -> None:
    assert aggregate_votes(votes) == expected


def test_the_rule_by_exact_fractions() -> None:
    for votes in itertools.product((-3, -2, 0, 1, 3), repeat=5):
        triples = sorted({tuple(sorted(three)) for three in itertools.combinations(votes, 3)})
        mean = Fraction(sum(votes), 5)
        best = min(triples, key=lambda three: (max(three) - min(three), abs(Fraction(sum(three), 3) - mean), three))
        found = aggregate_votes(votes)
        assert found.triple == best
        centre = Fraction(sum(best), 3)
        assert found.strength == math.copysign(1, centre) * math.floor(abs(centre) + Fraction(1, 2))
        assert found.keep == (max(best) - min(best) <= 2 and found.strength != 0)


def test_order_does_not_matter_and_spread_is_an_option() -> None:
    assert aggregate_votes([2, 3, 1, -3, 2]) == aggregate_votes([3, -3, 2, 2, 1])
    assert not aggregate_votes([0, 3, 3]).keep
    assert aggregate_votes([0, 3, 3], max_spread=3).keep
    assert not aggregate_votes([1, 1, 2], max_spread=0).keep
    assert aggregate_votes(np.array([3, -3, 2, 2, 1])).strength == 2


@pytest.mark.parametrize("votes", [[1.5, 2, 2], [None, 1, 1], [True, 1, 1], [math.nan, 1, 1]])
def test_votes_that_are_refused(votes: list) -> None:
    with pytest.raises(ValueError, match=r"^argument `votes`: expected integers, got"):
        aggregate_votes(votes)


def test_agreement_is_cohens_kappa_with_quadratic_weights() -> None:
    random = np.random.default_rng(0)
    items = random.integers(-3, 4, size=(60, 3))
    pairs = [pair for votes in items.tolist() for pair in itertools.permutations(votes, 2)]
    expected = cohen_kappa_score(*zip(*pairs, strict=True), labels=range(-3, 4), weights="quadratic")
    assert vote_agreement(items.tolist()) == pytest.approx(expected, abs=1e-12)
    assert vote_agreement([[1, 1], [-2, -2, -100]]) == 1


def test_dropping_votes_that_stand_apart_raises_agreement() -> None:
    random = np.random.default_rng(1)
    items = [np.clip(np.round(random.normal(truth, 1.5, 5)), -3, 3).astype(int).tolist()
             for truth in random.uniform(-3, 3, 200)]  # fmt: skip
    triples = [one.triple for votes in items if (one := aggregate_votes(votes)).keep]
    assert vote_agreement(triples) > vote_agreement(items) + 0.2


@pytest.mark.parametrize("items", [[], [[1], [2, -100]], [[1, 1], [1, 1]]])
def test_agreement_of_nothing_is_refused(items: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"^argument `items`: expected"):
        vote_agreement(items)


def test_leave_one_out_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    expected = torch.tensor([[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(leave_one_out_advantages(rewards), expected, rtol=0, atol=1e-14)
    offset = leave_one_out_advantages((rewards + 1e4).float())
    torch.testing.assert_close(offset.double(), expected, rtol=0, atol=5e-3)


def test_leave_one_out_advantages_of_the_answers_there_are() -> None:
    rewards = torch.tensor([[1.0, torch.nan, 6.0], [7.0, torch.nan, torch.nan]])
    where = ~rewards.isnan()
    assert leave_one_out_advantages(rewards, where).tolist() == [[-5, 0, 5], [0, 0, 0]]


def test_advantages_that_are_refused() -> None:
    for rewards in (
        torch.ones(3, 1),
        torch.tensor(1.0),
        torch.ones(2, 2, dtype=torch.long),
        torch.tensor([1.0, torch.nan]),
    ):
        with pytest.raises(ValueError, match=r"^argument `rewards`: expected"):
            leave_one_out_advantages(rewards)
    with pytest.raises(ValueError, match=r"^argument `where`: expected"):
        leave_one_out_advantages(torch.ones(2, 2), torch.ones(2, 2))


def test_standardised_rewards() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    own = standardised_rewards(rewards)
    assert own.mean().item() == pytest.approx(0, abs=1e-15)
    assert own.std(correction=0).item() == pytest.approx(1)
    of_others = standardised_rewards(rewards, torch.tensor([0.0, 4.0], dtype=torch.float64))
    assert of_others.tolist() == [-0.5, 0, 2]
    for reference in (torch.ones(3), torch.tensor([1.0, torch.inf]), torch.ones(2, 2)):
        with pytest.raises(ValueError, match=r"^argument `reference`: expected"):
            standardised_rewards(rewards, reference)
