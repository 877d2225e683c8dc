"""What each kind of negative counts, enumerated on random scores."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from scorecraft.core import Pairs
from scorecraft.relevance.star_adore import (
    StarLoss,
    list_overlap,
    ranking_errors,
    reciprocal_rank,
    reciprocal_rank_of_errors,
    top_errors,
)


def test_errors_are_enumerated() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (20, 15), generator=generator).double()  # many ties
    relevant = torch.rand(20, 15, generator=generator) < 0.2
    errors = ranking_errors(scores, relevant)
    for q in range(20):
        for d in range(15):
            above = sum(bool(scores[q, n] > scores[q, d] and not relevant[q, n]) for n in range(15))
            assert errors[q, d] == (above if relevant[q, d] else 0)


def test_a_random_negative_is_an_error_as_often_as_errors_say() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(1, 40, generator=generator)
    relevant = torch.zeros(1, 40, dtype=torch.bool)
    relevant[0, 3] = True
    share = (scores[~relevant] > scores[0, 3]).double().mean()
    torch.testing.assert_close(ranking_errors(scores, relevant)[0, 3] / 39, share.float())


@pytest.mark.parametrize("k", [1, 5, 50])
def test_reciprocal_rank_depends_on_the_top_errors_alone(k: int) -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(100, 30, generator=generator)
    relevant = F.one_hot(torch.randint(30, (100,), generator=generator), 30).bool()
    errors = ranking_errors(scores, relevant)[relevant]
    ranked = relevant.gather(1, scores.argsort(dim=1, descending=True))
    torch.testing.assert_close(reciprocal_rank_of_errors(errors, k), reciprocal_rank(ranked, cut=k))
    torch.testing.assert_close(reciprocal_rank_of_errors(top_errors(errors, k), k), reciprocal_rank(ranked, cut=k))


def test_one_failed_query_dominates_random_negatives_and_not_the_top() -> None:
    """Two queries with 10,000 errors and 1: all negatives pull them 10,000 to 1, the top 10 pull them 10 to 1."""
    documents = 10_001
    scores = torch.full((2, documents), -60.0, dtype=torch.float64)
    scores[0, 1:], scores[1, 1], scores[:, 0] = 60.0, 60.0, 0.0
    relevant = torch.zeros(2, documents, dtype=torch.bool)
    relevant[:, 0] = True
    errors = ranking_errors(scores, relevant)[:, 0]
    assert errors.tolist() == [10_000, 1]
    assert top_errors(errors, 10).tolist() == [10, 1]
    leaf = scores.clone().requires_grad_()
    pairs = Pairs.from_masks(relevant)
    (pull,) = torch.autograd.grad(StarLoss().on_scores(leaf, pairs=pairs), leaf)
    torch.testing.assert_close(pull[0, 0] / pull[1, 0], torch.tensor(1e4, dtype=torch.float64))


def test_overlap() -> None:
    frozen = torch.tensor([[1, 2, 3, -1], [1, 2, 3, 4], [5, 6, 7, 8]])
    current = torch.tensor([[3, 1, 9, 10], [4, 3, 2, 1], [-1, -1, -1, -1]])
    assert list_overlap(frozen, current).tolist() == [0.5, 1, 0]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"argument `relevant`: expected a bool tensor of shape \(2, 3\)"):
        ranking_errors(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="argument `k`"):
        top_errors(torch.tensor([1]), 0)
