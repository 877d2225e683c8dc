"""Known values of the classical list losses, the relation of queries to passages, and scaled scores."""

from __future__ import annotations

import math

import pytest
import torch

from scorecraft.core import (
    Cosine,
    Dot,
    InfoNCELoss,
    ListNetLoss,
    NegativeDistance,
    Pairs,
    PairwiseLogisticLoss,
    PerHead,
    in_batch,
    tiled,
)

SCORES = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 0.0, 3.0]], dtype=torch.float64)


def test_info_nce() -> None:
    assert InfoNCELoss()(SCORES, torch.eye(3)).item() == pytest.approx(0.3283526495, abs=1e-10)
    logits = torch.tensor([[2.0, 1.0, -0.5], [0.2, 0.4, 0.1]], dtype=torch.float64)
    first = torch.tensor([[1, 0, 0], [1, 0, 0]])
    assert InfoNCELoss()(logits, first).item() == pytest.approx(0.7556850463, abs=1e-10)
    assert InfoNCELoss(temperature=0.5)(logits, first).item() == InfoNCELoss()(2 * logits, first).item()


def test_info_nce_keeps_positives_apart() -> None:
    value = InfoNCELoss()(SCORES[0], torch.tensor([1, 1, 0]))
    each = [math.log(1 + math.exp(0.0 - score)) for score in (2.0, 1.0)]
    assert value.item() == pytest.approx(sum(each) / 2)


def test_list_net_is_the_cross_entropy_of_top_one_distributions() -> None:
    relevance = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    expected = -(relevance.softmax(0) * SCORES[0].log_softmax(0)).sum()
    assert ListNetLoss()(SCORES[0], relevance).item() == pytest.approx(expected.item())


def test_pairwise_logistic_reads_grades() -> None:
    value = PairwiseLogisticLoss()(SCORES[0], torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64))
    pairs = [(1, 0), (1, 2), (2, 0)]  # the more relevant one first
    expected = [math.log1p(math.exp(SCORES[0, worse] - SCORES[0, better])) for better, worse in pairs]
    assert value.item() == pytest.approx(sum(expected) / 3)


def test_lists_without_relevant_candidates_leave_the_mean() -> None:
    relevance = torch.eye(3)
    relevance[2] = 0
    for loss in (InfoNCELoss(), PairwiseLogisticLoss()):
        torch.testing.assert_close(loss(SCORES, relevance), loss(SCORES[:2], torch.eye(3)[:2]))


def test_queries_against_passages() -> None:
    pairs = Pairs.of_queries(torch.tensor([0, 1]), passages=torch.tensor([7, 8, 7, 9]))
    positives, negatives = pairs.masks()
    assert positives.tolist() == [[True, False, False, False], [False, True, False, False]]
    assert negatives.tolist() == [[False, True, False, True], [True, False, True, True]]  # 7 again is no negative of 7
    known = Pairs.of_queries(
        torch.tensor([0, 1]), passages=torch.tensor([7, 8, 7, 9]), relevant=torch.tensor([[9, -1], [8, 7]])
    )
    assert known.masks()[1].tolist() == [[False, True, False, False], [False, False, False, True]]
    twice = torch.tensor([[7, 0], [8, 1], [9, 0], [8, 2]])  # a passage and its group: either may repeat the positive
    assert Pairs.of_queries(torch.tensor([0, 1]), passages=twice).masks()[1].tolist() == [
        [False, True, False, True],
        [True, False, True, False],
    ]
    assert Pairs.of_queries(torch.tensor([1]), passages=3).masks()[1].tolist() == [[True, False, True]]
    with pytest.raises(ValueError, match="argument `positives`: expected columns below 3"):
        Pairs.of_queries(torch.tensor([3]), passages=3)
    with pytest.raises(ValueError, match="argument `relevant`"):
        Pairs.of_queries(torch.tensor([1]), passages=3, relevant=torch.tensor([1]))


@pytest.mark.parametrize("score", [Dot(), Cosine(), NegativeDistance(), PerHead(Dot(), 2)], ids=repr)
def test_scaled_scores(score: object) -> None:
    scaled = 20 * score  # type: ignore[operator]
    assert repr(scaled) == f"20 * {score!r}"
    shape = (3, 2, 4) if isinstance(score, PerHead) else (3, 4)
    x, y = (torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    x, y = scaled.prepare(x).requires_grad_(), scaled.prepare(y).requires_grad_()
    plain, found = score.scores(x, y), scaled.scores(x, y)  # type: ignore[attr-defined]
    weights = tuple(torch.randn_like(channel) for channel in found)
    for mine, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(mine, 20 * theirs)
    expected = torch.autograd.grad(sum((w * s).sum() for w, s in zip(weights, found, strict=True)), (x, y))
    with torch.no_grad():
        buffer = torch.empty(len(found) * 9, dtype=torch.float64)
        blocks = scaled.scores(x, y, out=buffer)
        pulled = torch.zeros_like(x), torch.zeros_like(y)
        scaled.pull(weights, blocks, x, y, *pulled)
    for mine, theirs in zip(pulled, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_scale_must_be_positive() -> None:
    with pytest.raises(ValueError, match="argument `scale`: expected a finite number > 0"):
        -1 * Cosine()


def test_one_score_channel_in_batch() -> None:
    with pytest.raises(TypeError, match="expected a list objective of one score channel, got Tiled"):
        in_batch(tiled(in_batch(InfoNCELoss())))  # type: ignore[arg-type]
