"""Recall@K against its definition."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import Tensor

from scorecraft.core import Cosine, Dot, NegativeDistance, NegativeSquaredDistance, ScoreMap
from scorecraft.similarity.recall import recall_at_k

recall_module = importlib.import_module("scorecraft.similarity.recall")
RANKS = (1, 2, 5, 30)


@pytest.fixture(autouse=True, params=[512, 7], ids=["one block", "many blocks"])
def query_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall_module, "QUERY_ROWS", request.param)


def items(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 12, (n,), generator=generator)
    labels[3] = 50 + seed
    centres = torch.randn(64, 4, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(n, 4, generator=generator, dtype=torch.float64), labels


def plain_recall(scores: Tensor, labels: Tensor, others: Tensor, own: bool) -> tuple[dict[int, float], int]:
    hits, used = dict.fromkeys(RANKS, 0), 0
    for i in range(len(scores)):
        columns = [j for j in range(scores.shape[1]) if not (own and i == j)]
        positives = [float(scores[i, j]) for j in columns if labels[i] == others[j]]
        negatives = [float(scores[i, j]) for j in columns if labels[i] != others[j]]
        if positives:
            used += 1
            above = sum(s > max(positives) for s in negatives)
            for k in RANKS:
                hits[k] += above < k
    return {k: count / used for k, count in hits.items()}, len(scores) - used


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("score", [Cosine(), Dot(), NegativeDistance(), NegativeSquaredDistance()])
def test_equals_the_definition(score: ScoreMap, with_reference: bool) -> None:
    x, y = items(60)
    reference, others = items(31, seed=1) if with_reference else (x, y)
    scores = score.scores(score.prepare(x), score.prepare(reference))[0]
    expected, left_out = plain_recall(scores, y, others, own=not with_reference)
    call = {"reference": reference, "reference_labels": others} if with_reference else {}
    result = recall_at_k(x, y, RANKS, score=score, **call)
    assert result.recall == expected
    assert result.queries_without_positive == left_out > 0
    assert result.queries == len(x) - left_out
    assert result[5] == expected[5]
    assert recall_at_k(x, y, 2, score=score, **call).recall == {2: expected[2]}


def test_multi_hot_labels_match_when_they_share_a_class() -> None:
    x, y = items(60)
    one_hot = torch.nn.functional.one_hot(y)
    assert recall_at_k(x, one_hot, RANKS) == recall_at_k(x, y, RANKS)


def test_only_strictly_closer_negatives_count() -> None:
    """Duplicates under another label tie with the positive of items 0, 1 and 3, and beat that of item 2, twice."""
    x = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    assert recall_at_k(x, torch.tensor([0, 0, 1, 1]), (1, 2, 3)).recall == {1: 0.75, 2: 0.75, 3: 1}
    # A reference equal to the queries is another set: nothing is left out.
    y = torch.tensor([0, 1, 2, 3])
    assert recall_at_k(x, y, 1, reference=x, reference_labels=y)[1] == 1


def test_without_any_positive() -> None:
    result = recall_at_k(torch.eye(3), torch.arange(3), (1, 2))
    assert (result.queries, result.queries_without_positive) == (0, 3)
    assert all(math.isnan(value) for value in result.recall.values())


def test_half_precision_and_autocast_score_in_float32() -> None:
    x, y = items(60)
    half = x.to(torch.bfloat16)
    expected = recall_at_k(half.float(), y, RANKS)
    with torch.autocast("cpu", torch.bfloat16):
        assert recall_at_k(half, y, RANKS) == recall_at_k(half.float(), y, RANKS) == expected


def test_inputs_are_left_alone() -> None:
    x, y = items(60)
    before = x.clone()
    recall_at_k(x.requires_grad_(), y, score=Dot())
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "argument `k`: expected an integer >= 1"),
        ({"k": ()}, "argument `k`: expected at least one K"),
        ({"labels": torch.arange(3)}, "argument `labels`: expected 60 labels"),
        ({"labels": torch.zeros(60)}, "argument `labels`: expected integer labels"),
        ({"embeddings": torch.full((60, 4), math.inf)}, "argument `embeddings`: expected finite values"),
        ({"embeddings": torch.zeros(60, 4)}, "argument `embeddings`: expected rows of non-zero norm"),
        ({"embeddings": torch.ones(60)}, "argument `embeddings`"),
        ({"reference": torch.ones(2, 4)}, "argument `reference_labels`: expected labels exactly when"),
        ({"reference": torch.ones(2, 3), "reference_labels": torch.arange(2)}, "argument `reference`: expected rows"),
        ({"reference": torch.ones(2, 4), "reference_labels": torch.eye(2).long()}, "argument `reference_labels`"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    x, y = items(60)
    call = {"embeddings": x, "labels": y, **change}
    with pytest.raises(ValueError, match=message) as caught:
        recall_at_k(**call)
    assert "\n" not in str(caught.value)
