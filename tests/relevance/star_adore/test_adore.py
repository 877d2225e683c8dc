"""AdoreLoss: the check values, its weights against the definition, and what is appended to a list."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from scorecraft.core import list_score_gradients
from scorecraft.relevance.star_adore import AdoreLoss, hit_rate, reciprocal_rank, with_missing_positives


def lists(shape: tuple[int, ...] = (4, 3, 9), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, relevance and mask; some lists without relevant candidates, some with gaps."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    relevance = torch.rand(shape, generator=generator) < 0.2
    return scores, relevance, torch.rand(shape, generator=generator) < 0.8


def by_definition(scores: list[float], labels: list[int], metric: str, cut: int | None, known: int | None) -> float:
    """One list, pair by pair."""
    places = range(1, len(scores) + 1)
    limit = len(scores) if cut is None else cut
    gains = [(1 / k if metric == "mrr" else 1 / math.log2(1 + k)) if k <= limit else 0.0 for k in places]
    number = sum(labels) if known is None else known
    best = sum(1 / math.log2(1 + k) for k in range(1, min(number, number if cut is None else cut) + 1))
    norm = 1.0 if metric == "mrr" else best
    terms = [
        abs(gains[i] - gains[j]) / norm * math.log1p(math.exp(scores[j] - scores[i]))
        for i, j in itertools.product(range(len(scores)), repeat=2)
        if labels[i] and not labels[j]
    ]
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize(
    "scores, labels, cut, expected",
    [
        ([3, 2.5, 2, 1], [0, 0, 1, 0], 4, 0.3546530321),
        ([3, 2.5, 2, 1], [0, 0, 1, 0], 1, 0.4377538958),
        ([3, 2.5, 2, 1, -1], [0, 0, 0, 0, 1], 4, 1.8327382309),
        ([3, 2.5, 2, 1, -1], [0, 0, 0, 0, 1], 5, 1.1965674455),
        ([3, 2.5, 2, 1], [0, 1, 0, 1], 4, 0.5676714513),
    ],
)
def test_check_values(scores: list[float], labels: list[int], cut: int, expected: float) -> None:
    found = AdoreLoss(metric_cut=cut)(torch.tensor(scores, dtype=torch.float64), torch.tensor(labels))
    assert found.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("metric", ["mrr", "ndcg"])
@pytest.mark.parametrize("cut", [None, 1, 4, 20])
@pytest.mark.parametrize("known", [None, 5], ids=["relevant in the list", "relevant at all"])
def test_equal_to_the_definition(metric: str, cut: int | None, known: int | None) -> None:
    scores, relevance, where = lists()
    counts = None if known is None else torch.full((4, 3), known)
    found = AdoreLoss(metric=metric, metric_cut=cut, reduction="none")(scores, relevance, where, relevant_counts=counts)
    for index in itertools.product(range(4), range(3)):
        there = where[index]
        expected = by_definition(
            scores[index][there].tolist(), relevance[index][there].int().tolist(), metric, cut, known
        )
        assert found[index].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", ["mrr", "ndcg"])
def test_gradcheck(metric: str) -> None:
    scores, relevance, where = lists((3, 6))
    loss = AdoreLoss(metric=metric, metric_cut=4)
    assert torch.autograd.gradcheck(lambda s: loss(s, relevance, where), scores)


def test_weights_of_pairs_beyond_the_cut_are_exactly_zero() -> None:
    scores, labels = torch.randn(8, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1, 0, 0, 0])
    pull = list_score_gradients(AdoreLoss(metric_cut=3), scores, labels)
    assert (pull[[3, 5, 6, 7]] == 0).all()
    assert (pull[:3] > 0).all()
    torch.testing.assert_close(pull[4], -pull[:3].sum())


def test_weights_are_in_closed_form() -> None:
    scores, labels = torch.randn(6, dtype=torch.float64), torch.tensor([0, 1, 0, 0, 1, 0])
    pull = list_score_gradients(AdoreLoss(), scores, labels)
    for j in (0, 2, 3, 5):
        slopes = [abs(1 / (i + 1) - 1 / (j + 1)) * torch.sigmoid(scores[j] - scores[i]) for i in (1, 4)]
        torch.testing.assert_close(pull[j], sum(slopes) / 8)


def test_the_gradient_lies_in_the_span_of_the_differences_and_documents_get_none() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, generator=generator, dtype=torch.float64).requires_grad_()
    documents = torch.randn(6, 20, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 0, 0, 0])
    loss = AdoreLoss()
    value = loss(documents @ x, labels)
    (gradient,) = torch.autograd.grad(value, x)
    differences = documents[labels == 0] - documents[2]
    weights = torch.linalg.lstsq(differences.T, gradient[:, None]).solution
    torch.testing.assert_close(differences.T @ weights, gradient[:, None])
    assert (weights > 0).all()
    assert not documents.requires_grad
    moved = documents + torch.randn(20, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(loss(moved @ x, labels), value)


def test_a_positive_in_first_place_far_ahead_contributes_nothing() -> None:
    scores = torch.tensor([900.0, 0.0, -900.0]).requires_grad_()
    value = AdoreLoss()(scores, torch.tensor([1, 0, 0]))
    assert value.item() == 0
    assert (torch.autograd.grad(value, scores)[0] == 0).all()
    behind = AdoreLoss()(scores, torch.tensor([0, 0, 1]))
    assert behind.item() == pytest.approx((1800 * 2 / 3 + 900 * 1 / 6) / 2)


def test_lists_without_a_choice_and_how_they_count() -> None:
    scores = torch.randn(3, 4, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    each = AdoreLoss(reduction="none")(scores, labels)
    assert each[1] == each[2] == 0
    torch.testing.assert_close(AdoreLoss()(scores, labels), each[0] / 2)  # all relevant counts, none relevant does not
    nothing = AdoreLoss()(scores, torch.zeros(3, 4))
    assert nothing == 0
    assert (torch.autograd.grad(nothing, scores)[0] == 0).all()


def test_missing_candidates_take_up_no_place() -> None:
    scores, labels = torch.tensor([3.0, -torch.inf, 2.5, 2.0]), torch.tensor([0, 0, 1, 0])
    torch.testing.assert_close(AdoreLoss()(scores, labels), AdoreLoss()(scores[[0, 2, 3]], labels[[0, 2, 3]]))


def test_weights_of_lists_and_half_precision() -> None:
    scores, relevance, where = lists((5, 8))
    loss = AdoreLoss(metric="ndcg", metric_cut=5)
    weights = torch.rand(5, dtype=torch.float64)
    counts = torch.full((5,), 4)
    each = AdoreLoss(metric="ndcg", metric_cut=5, reduction="none")(scores, relevance, where, relevant_counts=counts)
    counted = weights * (relevance & where).any(dim=1)
    found = loss(scores, relevance, where, relevant_counts=counts, weights=weights)
    torch.testing.assert_close(found, (each * counted).sum() / counted.sum())
    assert loss(scores.detach().bfloat16() * 100, relevance, where).dtype == torch.float32


@pytest.mark.parametrize("metric", ["mrr", "ndcg"])
def test_it_compiles_in_one_graph(metric: str) -> None:
    scores, relevance, where = lists((3, 6))
    loss = AdoreLoss(metric=metric, metric_cut=4)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(scores, relevance, where), loss(scores, relevance, where))


def test_appending_what_was_not_retrieved() -> None:
    ids = torch.tensor([[4, 2, 9], [4, 2, 9], [4, -1, -1]])
    relevant = torch.tensor([[2, 7, -1], [8, 7, -1], [4, 4 + 1, 6]])
    if_none = with_missing_positives(ids, relevant)
    assert if_none.ids.tolist() == [[4, 2, 9, -1, -1, -1], [4, 2, 9, 8, 7, -1], [4, -1, -1, -1, -1, -1]]
    assert if_none.relevant.int().tolist() == [[0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]]
    assert if_none.where.sum(dim=1).tolist() == [3, 5, 1]
    always = with_missing_positives(ids, relevant, add_missing="always")
    assert always.ids.tolist() == [[4, 2, 9, -1, 7, -1], [4, 2, 9, 8, 7, -1], [4, -1, -1, -1, 5, 6]]
    assert always.relevant.sum(dim=1).tolist() == [2, 2, 3]


def test_online_metrics_read_the_first_ten() -> None:
    relevant = torch.zeros(3, 12, dtype=torch.bool)
    relevant[0, [1, 3]] = relevant[1, 10] = True
    assert reciprocal_rank(relevant).tolist() == [0.5, 0, 0]
    assert hit_rate(relevant).tolist() == [1, 0, 0]
    assert hit_rate(relevant, cut=11).tolist() == [1, 1, 0]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="argument `metric`: expected one of 'mrr', 'ndcg', got 'map'"):
        AdoreLoss(metric="map")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="argument `metric_cut`: expected an integer >= 1, got 0"):
        AdoreLoss(metric_cut=0)
    with pytest.raises(ValueError, match="argument `relevant_counts`: expected integers of shape"):
        AdoreLoss(metric="ndcg")(torch.randn(2, 3), torch.ones(2, 3), relevant_counts=torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match="argument `add_missing`"):
        with_missing_positives(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1).long(), add_missing="never")  # type: ignore[arg-type]


def test_what_it_prints() -> None:
    assert repr(AdoreLoss(metric_cut=200)) == "AdoreLoss(metric='mrr', metric_cut=200, reduction='mean')"
