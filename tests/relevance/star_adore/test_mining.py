"""Relevant documents, static lists, and the batches of STAR that are drawn from them."""

from __future__ import annotations

import pytest
import torch

from scorecraft.core import Pairs
from scorecraft.relevance.star_adore import (
    RelevantDocuments,
    StarLoss,
    mine_hard_negatives,
    sample_hard_negatives,
    star_batch,
)
from scorecraft.relevance.vector_index import ExactIndex

LISTS = [[3], [7, 1, 4], [0, 9]]


def relevant() -> RelevantDocuments:
    return RelevantDocuments(LISTS, documents=10)


def test_relevant_documents_are_padded_in_stored_order() -> None:
    assert len(relevant()) == 3
    assert relevant()[torch.tensor([1, 0, 1])].tolist() == [[7, 1, 4], [3, -1, -1], [7, 1, 4]]
    assert relevant()[torch.tensor([0])].tolist() == [[3]]


def test_a_positive_is_drawn_uniformly() -> None:
    drawn = relevant().sample(torch.tensor([1]).expand(3000), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=10)
    assert counts.nonzero().flatten().tolist() == [1, 4, 7]
    assert (counts[[1, 4, 7]] - 1000).abs().max() < 120
    assert relevant().sample(torch.tensor([0, 0]), generator=torch.Generator()).tolist() == [3, 3]


@pytest.mark.parametrize(
    "lists, complaint",
    [
        ([[1], []], "expected a relevant document for every query, got none for query 1"),
        ([[1], [10]], "expected documents from 0 to 9, got 10 for query 1"),
        ([[-1]], "expected documents from 0 to 9, got -1 for query 0"),
        ([[2, 2]], r"expected every document once per query, got \[2, 2\] for query 0"),
        ([], "expected the relevant documents of at least one query, got none"),
    ],
)
def test_bad_relevance_is_refused(lists: list[list[int]], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"argument `lists`: {complaint}"):
        RelevantDocuments(lists, documents=10)


def test_fingerprint_tells_lists_apart() -> None:
    prints = {
        RelevantDocuments(lists, documents=number).fingerprint
        for lists, number in ((LISTS, 10), (LISTS, 11), ([[3], [7, 1], [4, 0, 9]], 10), ([[3], [1, 7, 4], [0, 9]], 10))
    }
    assert len(prints) == 4
    assert relevant().fingerprint == relevant().fingerprint


def test_mined_lists_hold_the_best_irrelevant_documents() -> None:
    generator = torch.Generator().manual_seed(0)
    documents, queries = torch.randn(10, 4, generator=generator), torch.randn(3, 4, generator=generator)
    seen = []
    mined = mine_hard_negatives(
        ExactIndex(documents), queries, relevant(), depth=8, batch_size=2, progress=lambda *told: seen.append(told)
    )
    order = (queries @ documents.T).argsort(dim=1, descending=True).tolist()
    for row, ranked, known in zip(mined.tolist(), order, LISTS, strict=True):
        expected = [document for document in ranked if document not in known][:8]
        assert row == expected + [-1] * (8 - len(expected))
    assert seen == [(2, 3, "queries mined"), (3, 3, "queries mined")]


def test_mining_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="argument `index`: expected an index of 10 documents"):
        mine_hard_negatives(ExactIndex(torch.randn(9, 4)), torch.randn(3, 4), relevant())
    with pytest.raises(ValueError, match="argument `queries`: expected 3 embeddings"):
        mine_hard_negatives(ExactIndex(torch.randn(10, 4)), torch.randn(2, 4), relevant())
    with pytest.raises(ValueError, match=r"argument `queries`: expected floating-point embeddings \[b, 4\]"):
        mine_hard_negatives(ExactIndex(torch.randn(10, 4)), torch.randn(3, 5), relevant())


def test_draws_are_different_and_uniform_and_never_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    mined = torch.tensor([[5, 6, 7, 8], [5, 6, -1, -1], [-1, -1, -1, -1]])
    drawn = torch.stack([sample_hard_negatives(mined, 3, generator=generator) for _ in range(800)])
    assert all(len(set(row)) == 3 for row in drawn[:, 0].tolist())
    assert (torch.bincount(drawn[:, 0].flatten())[5:9] - 600).abs().max() < 60
    assert (drawn[:, 1].sort(dim=1).values == torch.tensor([-1, 5, 6])).all()
    assert (drawn[:, 2] == -1).all()
    assert sample_hard_negatives(mined, 6, generator=generator).shape == (3, 6)


def test_a_batch_of_star() -> None:
    mined = torch.tensor([[5, 6], [8, -1], [-1, -1]])
    rows = torch.tensor([2, 0, 1])
    batch = star_batch(rows, relevant(), mined, hard_per_query=2, generator=torch.Generator().manual_seed(3))
    positives, hard = batch.passages[:3].tolist(), batch.passages[3:].tolist()
    assert positives[0] in (0, 9)
    assert positives[1] == 3
    assert positives[2] in (1, 4, 7)
    assert sorted(hard) == [5, 6, 8]  # the first query has none, the last one only one
    is_positive, is_negative = batch.pairs.masks()
    assert torch.equal(is_positive, torch.eye(3, 6).bool())
    for i, query in enumerate(rows.tolist()):
        for j, passage in enumerate(batch.passages.tolist()):
            assert is_negative[i, j] == (passage not in LISTS[query])


def test_an_in_batch_step_has_positives_only() -> None:
    batch = star_batch(torch.tensor([0, 1]), relevant(), generator=torch.Generator().manual_seed(0))
    assert len(batch.passages) == 2
    assert isinstance(batch.pairs, Pairs)
    x = torch.randn(2, 3)
    assert StarLoss()(x, reference=x, pairs=batch.pairs) > 0
