"""Ranking accuracy, reward accuracy, raters who are split, whole rankings, and what is only rounding."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from scorecraft.preference.ranking_accuracy import (
    below_rounding,
    competition_ranks,
    log_ratio,
    ranking_accuracy,
    rated_ranking_accuracy,
    reward_accuracy,
    whole_ranking_accuracy,
)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sequences(n: int = 200, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities of chosen and rejected under a model and under its reference, all of them different."""
    generator = torch.Generator().manual_seed(seed)
    reference = -300 * torch.rand(2, n, generator=generator, dtype=torch.float64) - 1
    model = (reference + 20 * torch.randn(2, n, generator=generator, dtype=torch.float64)).clamp(max=-0.1)
    return model[0], model[1], reference[0], reference[1]


def test_the_two_accuracies_part_ways() -> None:
    """Check value 1: training moved the pair the right way, and the model still ranks it wrong."""
    gap, reference = log_ratio(vector(-38), vector(-37)), log_ratio(vector(-40), vector(-35))
    assert gap.tolist() == [-1.0]
    assert reference.tolist() == [-5.0]
    assert reward_accuracy(gap, reference) == 1
    assert ranking_accuracy(gap) == 0


def test_per_token() -> None:
    gap = log_ratio(
        vector(-30, -30), vector(-20, -20), chosen_tokens=torch.tensor([10, 3]), rejected_tokens=torch.tensor([5, 4])
    )
    torch.testing.assert_close(gap, vector(1.0, -5.0), rtol=0, atol=1e-14)
    assert ranking_accuracy(log_ratio(vector(-30, -30), vector(-20, -20))) == 0
    assert ranking_accuracy(gap, reduction="none").tolist() == [1, 0]


def test_invariances() -> None:
    chosen, rejected, reference_chosen, reference_rejected = sequences()
    before = log_ratio(reference_chosen, reference_rejected)
    shift = -30 * torch.rand(len(chosen), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ranked = ranking_accuracy(log_ratio(chosen, rejected), reduction="none")
    assert 0 < ranked.mean() < 1
    moved = ranking_accuracy(log_ratio(chosen + shift, rejected + shift), reduction="none")
    assert torch.equal(moved, ranked)
    rewarded = reward_accuracy(log_ratio(chosen, rejected), before, reduction="none")
    moved = reward_accuracy(
        log_ratio(chosen + shift, rejected), log_ratio(reference_chosen + shift, reference_rejected), reduction="none"
    )
    assert torch.equal(moved, rewarded)
    assert not torch.equal(ranking_accuracy(log_ratio(chosen + shift, rejected), reduction="none"), ranked)


@pytest.mark.parametrize("ties, found", [("correct", 1.0), ("wrong", 0.0), ("half", 0.5)])
def test_ties(ties: Any, found: float) -> None:
    even = vector(0.0, 2.0, -2.0)
    assert ranking_accuracy(even, ties=ties, reduction="none").tolist() == [found, 1, 0]
    assert reward_accuracy(even, vector(0, 2, -2), ties=ties, reduction="none").tolist() == [found] * 3
    assert ranking_accuracy(even, ties=ties, reduction="sum") == 1 + found
    assert ranking_accuracy(vector(0.0)) == 1  # the definition
    assert reward_accuracy(vector(0.0), vector(0.0)) == 0  # trainers


def test_nothing_is_exponentiated() -> None:
    """Probabilities of e^-4000 are zero in any precision; their order is not."""
    gap = log_ratio(torch.tensor([-4000.0, -4001.0]), torch.tensor([-4001.0, -4000.0]))
    assert ranking_accuracy(gap, reduction="none").tolist() == [1, 0]


def test_split_raters() -> None:
    first, second = vector(0.5, 0.5, 0.5, 0.5, 0.5).log(), vector(0.495, 0.489, 0.4, 0.4, 0.5).log()
    alpha = vector(0.5, 0.5, 0.75, 0.25, 0.75)
    assert rated_ranking_accuracy(first, second, alpha, reduction="none").tolist() == [1, 0, 1, 0, 0]
    # An exact tie is wrong for either majority, and the other order is judged by the other majority.
    assert rated_ranking_accuracy(second, first, alpha, reduction="none").tolist() == [1, 0, 0, 1, 0]
    assert rated_ranking_accuracy(first[:2], second[:2], alpha[:2], tolerance=0.02) == 1
    tokens = {"first_tokens": torch.tensor([20]), "second_tokens": torch.tensor([10])}
    sums = vector(20 * math.log(0.5)), vector(10 * math.log(0.45))
    assert rated_ranking_accuracy(*sums, vector(0.5), **tokens) == 0
    assert rated_ranking_accuracy(*sums, vector(0.5)) == 1  # whole answers are as good as impossible
    assert rated_ranking_accuracy(*sums, vector(1.0), **tokens) == 1
    assert rated_ranking_accuracy(*sums, vector(1.0)) == 0


def test_ranks_of_ties() -> None:
    scores = vector(0.3, 0.3, 0.2, 0.1, -1, 5, 5, 5).view(2, 4)
    assert competition_ranks(scores).tolist() == [[1, 1, 3, 4], [4, 1, 1, 1]]
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (50, 7), generator=generator).double()
    slow = 1 + (scores[:, None, :] > scores[:, :, None]).sum(dim=2)
    assert torch.equal(competition_ranks(scores), slow)


def test_whole_rankings() -> None:
    logs = -vector(1, 2, 3, 4, 1, 2, 3, 4, 1, 1, 3, 4, 1, 2, 3, 4).view(4, 4)
    ranks = torch.tensor([[1, 2, 3, 4], [1, 3, 2, 4], [1, 1, 3, 4], [1, 1, 3, 4]])
    assert whole_ranking_accuracy(logs, ranks, reduction="none").tolist() == [1, 0, 1, 0]
    assert whole_ranking_accuracy(logs, ranks) == 0.5
    tokens = torch.tensor([[1, 4, 9, 16]]).expand(4, 4)  # means per token turn the order around
    assert whole_ranking_accuracy(logs[:1], ranks[:1].flip(1), tokens=tokens[:1]) == 1
    pairs = -vector(1, 2, 2, 1).view(2, 2)
    two = whole_ranking_accuracy(pairs, torch.tensor([[1, 2], [1, 2]]), reduction="none")
    assert torch.equal(two, ranking_accuracy(pairs[:, 0] - pairs[:, 1], reduction="none"))


def test_chance_level_of_whole_rankings() -> None:
    generator = torch.Generator().manual_seed(0)
    logs = -torch.rand(24_000, 4, generator=generator)
    ranks = 1 + torch.rand(24_000, 4, generator=generator).argsort(dim=1)
    assert float(whole_ranking_accuracy(logs, ranks)) == pytest.approx(1 / 24, abs=0.005)


def test_below_rounding() -> None:
    chosen, rejected = vector(-300, -300, -3, -300), vector(-301, -303, -3.5, -300)
    assert below_rounding(chosen, rejected, dtype=torch.bfloat16).tolist() == [True, False, False, True]
    assert below_rounding(chosen, rejected).tolist() == [False, False, False, True]
    half = below_rounding(chosen.bfloat16(), rejected.bfloat16())  # of what came, where nothing is said
    assert half.tolist() == [True, False, False, True]  # -301 is -300 there, and -303 is -304


def test_half_precision_is_compared_in_float32() -> None:
    chosen = torch.tensor([-30.0], dtype=torch.float16)
    gap = log_ratio(chosen, chosen - 1, chosen_tokens=torch.tensor([7]), rejected_tokens=torch.tensor([7]))
    assert gap.dtype == torch.float32
    assert gap.item() == pytest.approx(1 / 7, abs=1e-6)


@pytest.mark.parametrize(
    "call, line",
    [
        (lambda: log_ratio(vector(0.5), vector(-1)), "argument `chosen`: expected finite log-probabilities <= 0, got"),
        (lambda: log_ratio(vector(-1), vector(-1, -2)), "argument `rejected`: expected floating-point"),
        (lambda: log_ratio(vector(-1), vector(math.nan)), "argument `rejected`: expected finite log-probabilities"),
        (lambda: log_ratio(vector(-1), vector(-math.inf)), "argument `rejected`: expected finite log-probabilities"),
        (lambda: log_ratio(vector(), vector()), "argument `chosen`: expected floating-point log-probabilities"),
        (
            lambda: log_ratio(vector(0), vector(0), chosen_tokens=torch.tensor([0]), rejected_tokens=torch.tensor([1])),
            "argument `chosen_tokens`: expected at least one token per answer, got 0",
        ),
        (
            lambda: log_ratio(vector(-1), vector(-1), chosen_tokens=torch.tensor([1])),
            "argument `rejected_tokens`: expected the number of tokens",
        ),
        (lambda: ranking_accuracy(vector(math.nan)), "argument `log_ratio`: expected finite numbers"),
        (lambda: ranking_accuracy(vector(1).view(1, 1)), "argument `log_ratio`: expected floating-point"),
        (lambda: ranking_accuracy(vector(1), ties="none"), "argument `ties`: expected one of"),
        (lambda: ranking_accuracy(vector(1), reduction="max"), "argument `reduction`: expected one of"),
        (lambda: reward_accuracy(vector(1), vector(1, 2)), "argument `reference_log_ratio`: expected"),
        (lambda: below_rounding(vector(-1), vector(-1), dtype=torch.int64), "argument `dtype`: expected a floating"),
        (lambda: rated_ranking_accuracy(vector(-1), vector(-1), vector(1.2)), "argument `alpha`: expected shares in"),
        (lambda: rated_ranking_accuracy(vector(-1), vector(-1), vector(math.nan)), "argument `alpha`: expected shares"),
        (
            lambda: rated_ranking_accuracy(vector(-1), vector(-1), vector(1), second_tokens=torch.tensor([2])),
            "argument `first_tokens`: expected the number of tokens",
        ),
        (
            lambda: rated_ranking_accuracy(vector(-1), vector(-1), vector(1), tolerance=0),
            "argument `tolerance`: expected a finite number > 0",
        ),
        (
            lambda: whole_ranking_accuracy(-vector(1, 2, 3).view(1, 3), torch.tensor([[1, 1, 2]])),
            "argument `ranks`: expected ranks of which ties share the smallest",
        ),
        (
            lambda: whole_ranking_accuracy(-vector(1, 2).view(1, 2), torch.tensor([[0, 1]])),
            "argument `ranks`: expected ranks of which ties share the smallest",
        ),
        (
            lambda: whole_ranking_accuracy(-vector(1).view(1, 1), torch.tensor([[1]])),
            "argument `log_probabilities`: expected floating-point log-probabilities of shape",
        ),
        (
            lambda: whole_ranking_accuracy(
                -vector(1, 2).view(1, 2), torch.tensor([[1, 2]]), tokens=torch.tensor([[1, 0]])
            ),
            "argument `tokens`: expected at least one token per answer",
        ),
        (lambda: competition_ranks(vector(1, 2)), "argument `scores`: expected floating-point scores"),
    ],
)  # fmt: skip
def test_refusals(call: Any, line: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(line)):
        call()
