"""The pool, the judge's filter and the cyclic choice, on ids and scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scorecraft.relevance.unime_v2 import (
    candidate_pool,
    cyclic_positions,
    first_occurrences,
    judge_threshold,
    judged_negatives,
    passes_judge,
)


def all_there(count: int, columns: int | None = None) -> Tensor:
    return (torch.arange(count if columns is None else columns) < count)[None]


@pytest.mark.parametrize(
    "kept, expected",
    [
        (23, [0, 5, 10, 15, 20, 1, 6, 11, 16, 21]),
        (10, [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]),
        (7, [0, 5, 1, 6, 2, 3, 4, 0, 5, 1]),
        (1, [0] * 10),
        (0, [-1] * 10),
    ],
)
def test_check_values_of_cyclic_sampling(kept: int, expected: list[int]) -> None:
    assert cyclic_positions(all_there(kept, 50)).tolist() == [expected]


def test_cyclic_sampling_reads_what_is_kept_in_order() -> None:
    where = torch.rand(30, 40, generator=torch.Generator().manual_seed(0)) < 0.4
    found = cyclic_positions(where, stride=3, count=12)
    for row, mask in zip(found.tolist(), where, strict=True):
        kept = mask.nonzero().flatten().tolist()
        ordered = [kept[i] for start in range(3) for i in range(start, len(kept), 3)]
        assert row == [ordered[i % len(ordered)] for i in range(12)]


def test_the_pool_is_what_is_most_similar_below_the_cap() -> None:
    ids = torch.tensor([[7, 3, 9, 1, 4, -1]])
    similarities = torch.tensor([[0.5, 0.9, 0.99, 0.5, 0.2, math.nan]])
    pool = candidate_pool(ids, similarities, torch.tensor([[4, -1]]), size=3, cap=0.99)
    assert pool.ids.tolist() == [[3, 1, 7]]  # 9 is at the cap, 4 the positive; the tie goes to the lower id
    torch.testing.assert_close(pool.similarities, torch.tensor([[0.9, 0.5, 0.5]]))
    without = candidate_pool(ids, similarities, torch.tensor([[4, 3]]), size=5)
    assert without.ids.tolist() == [[9, 1, 7, -1, -1]]
    assert without.where.tolist() == [[True, True, True, False, False]]
    assert (without.similarities[0, 3:] == -math.inf).all()


def test_a_pool_may_stay_empty() -> None:
    pool = candidate_pool(torch.tensor([[2, 5]]), torch.tensor([[0.9, 0.8]]), torch.tensor([[2]]), cap=0.1)
    assert pool.ids.tolist() == [[-1, -1]]


def test_the_filter_keeps_equality() -> None:
    scores = torch.tensor([[0.5, 0.51, 0.49]], dtype=torch.float64)
    positive = torch.tensor([0.75], dtype=torch.float64)
    where = torch.tensor([[True, True, True]])
    assert passes_judge(scores, positive, where, margin=0.25).tolist() == [[True, False, True]]
    assert not passes_judge(scores, positive, ~where, margin=0.25).any()


def test_where_the_judge_rejects_the_positive_nothing_is_below_the_margin() -> None:
    positive = torch.tensor([0.05, 0.8], dtype=torch.float64)
    torch.testing.assert_close(judge_threshold(positive), torch.tensor([-0.05, 0.7], dtype=torch.float64))
    ratio = judge_threshold(positive, ratio=0.9)
    torch.testing.assert_close(ratio, torch.tensor([0.045, 0.72], dtype=torch.float64))


def judged(fallback: str = "skip", count: int = 4, **options: object):
    scores = torch.tensor([[0.2, 0.9, 0.3, 0.1, 0.0], [0.9, 0.8, 0.7, 0.6, 0.0], [0.1, 0.0, 0.0, 0.0, 0.0]])
    positive = torch.tensor([0.8, 0.5, 0.9])
    where = torch.tensor([[True] * 5, [True] * 4 + [False], [True] + [False] * 4])
    return judged_negatives(scores, positive, where, stride=2, count=count, fallback=fallback, **options)


def test_judged_negatives() -> None:
    found = judged()
    assert found.positions.tolist() == [[0, 3, 2, 4], [-1] * 4, [0] * 4]  # kept of the first: 0, 2, 3, 4
    torch.testing.assert_close(found.scores[0], torch.tensor([0.2, 0.1, 0.3, 0.0]))
    assert found.counted.tolist() == [True, False, True]
    assert found.passed.tolist() == [4, 0, 1]
    assert not found.scores[1].any()
    assert found.distinct.tolist() == [[True] * 4, [False] * 4, [True, False, False, False]]


@pytest.mark.parametrize("fallback, score", [("positive", 0.5), ("one", 1.0)])
def test_random_negatives_where_none_passes(fallback: str, score: float) -> None:
    found = judged(fallback, generator=torch.Generator().manual_seed(0))
    assert found.counted.all()
    assert sorted(found.positions[1].tolist()) == [0, 1, 2, 3]  # its whole pool, without replacement
    assert found.scores[1].tolist() == [score] * 4
    assert found.positions[0].tolist() == judged().positions[0].tolist()
    again = judged(fallback, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.positions, again.positions)
    others = {tuple(judged(fallback, generator=torch.Generator().manual_seed(n)).positions[1].tolist())
              for n in range(20)}  # fmt: skip
    assert len(others) > 5
    longer = judged(fallback, count=6, generator=torch.Generator().manual_seed(0))
    assert longer.positions[1, 4:].tolist() == longer.positions[1, :2].tolist()


def test_a_query_without_a_pool_has_no_negatives_whatever_the_fallback() -> None:
    found = judged_negatives(torch.zeros(1, 3), torch.ones(1), torch.zeros(1, 3, dtype=torch.bool), fallback="one",
                             generator=torch.Generator())  # fmt: skip
    assert not found.counted.any()
    assert not found.scores.any()


def test_first_occurrences() -> None:
    ids = torch.tensor([[4, 4, 2, 4, 2, 7], [1, -1, -1, 0, 1, 0]])
    expected = [[True, False, True, False, False, True], [True, False, False, True, False, False]]
    assert first_occurrences(ids).tolist() == expected


@pytest.mark.parametrize(
    "spoil, message",
    [
        ({"judge_scores": torch.tensor([[0.5, math.nan]])}, r"`judge_scores`: expected scores in \[0, 1\], got nan"),
        ({"judge_scores": torch.tensor([[0.5, 1.2]])}, r"`judge_scores`: expected scores in \[0, 1\], got 1.2"),
        ({"judge_scores": torch.tensor([[0.5]])}, r"`judge_scores`: expected floating-point scores of shape \(1, 2\)"),
        ({"positive_scores": torch.tensor([-0.1])}, r"`positive_scores`: expected scores in \[0, 1\], got -0.1"),
        ({"positive_scores": torch.zeros(2)}, r"`positive_scores`: expected floating-point scores of shape \(1,\)"),
        ({"where": torch.ones(1, 0, dtype=torch.bool)}, "`where`: expected a bool matrix"),
        ({"where": torch.ones(1, 2)}, "`where`: expected a bool matrix"),
        ({"margin": 1.5}, "`margin`: expected a number in"),
        ({"ratio": -0.1}, "`ratio`: expected a number in"),
        ({"stride": 0}, "`stride`: expected an integer >= 1"),
        ({"count": 0}, "`count`: expected an integer >= 1"),
        ({"fallback": "random"}, "`fallback`: expected one of"),
        ({"fallback": "one"}, "`generator`: expected a torch.Generator"),
    ],
)
def test_bad_input_is_refused_in_one_line(spoil: dict[str, object], message: str) -> None:
    call = {
        "judge_scores": torch.tensor([[0.5, 0.1]]),
        "positive_scores": torch.tensor([0.9]),
        "where": torch.ones(1, 2, dtype=torch.bool),
    } | spoil
    with pytest.raises(ValueError, match="argument " + message) as caught:
        judged_negatives(**call)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_unread_scores_may_be_anything() -> None:
    where = torch.tensor([[True, False]])
    found = judged_negatives(torch.tensor([[0.1, math.nan]]), torch.tensor([0.9]), where, count=2)
    assert found.positions.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "spoil, message",
    [
        ({"ids": torch.zeros(1, 3)}, "`ids`: expected integer ids"),
        ({"similarities": torch.zeros(1, 2)}, "`similarities`: expected floating-point similarities"),
        ({"similarities": torch.tensor([[0.1, math.nan, 0.2]])}, "`similarities`: expected finite values"),
        ({"positives": torch.zeros(2, 1, dtype=torch.long)}, "`positives`: expected integer ids"),
        ({"size": 0}, "`size`: expected an integer >= 1"),
        ({"cap": math.inf}, "`cap`: expected a finite number"),
    ],
)
def test_a_pool_refuses_bad_input(spoil: dict[str, object], message: str) -> None:
    call = {
        "ids": torch.tensor([[0, 1, 2]]),
        "similarities": torch.tensor([[0.5, 0.4, 0.3]]),
        "positives": torch.tensor([[0]]),
    } | spoil
    with pytest.raises(ValueError, match="argument " + message):
        candidate_pool(**call)  # type: ignore[arg-type]
