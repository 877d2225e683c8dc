"""The group ordering loss of a labelled batch: one pass over lists of all lengths is each anchor's own loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import Pairs, score_gradients, tiled
from scorecraft.similarity.groco import GroupOrderingLoss, group_ordering_loss

SIZES = (1, 2, 3, 7, 9)


def batch(sizes: tuple[int, ...] = SIZES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes of these sizes, in random order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    x = torch.randn(len(labels), 6, generator=generator, dtype=torch.float64).requires_grad_()
    return x, labels[torch.randperm(len(labels), generator=generator)]


def anchor_by_anchor(
    x: Tensor, labels: Tensor, negatives: int, steepness: float, max_positives: int | None = None
) -> list[Tensor]:
    """The definition, one anchor after the other; 0 for an anchor without a list."""
    scores = F.normalize(x) @ F.normalize(x).T
    losses = []
    for i in range(len(x)):
        positives = [j for j in range(len(x)) if labels[j] == labels[i] and j != i]
        others = [j for j in range(len(x)) if labels[j] != labels[i]]
        if not positives or not others:
            losses.append(0 * x.sum())
            continue
        hardest = scores[i, others].topk(min(negatives, len(others))).values
        chosen = scores[i, positives]
        if max_positives is not None:
            chosen = chosen.topk(min(max_positives, len(positives)), largest=False).values
        losses.append(group_ordering_loss(hardest, chosen, steepness=steepness))
    return losses


@pytest.mark.parametrize("negatives", [1, 4, 10, 18, 100])
@pytest.mark.parametrize("max_positives", [None, 1, 4, 50])
def test_equal_to_each_anchor_alone(negatives: int, max_positives: int | None) -> None:
    x, labels = batch()
    objective = GroupOrderingLoss(negatives=negatives, steepness=3.0, max_positives=max_positives, reduction="none")
    expected = torch.stack(anchor_by_anchor(x, labels, negatives, 3.0, max_positives))
    found = objective(x, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    weights = torch.linspace(0.5, 2, len(x), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    (one_by_one,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(gradient, one_by_one, rtol=0, atol=1e-13)


def test_the_mean_runs_over_anchors_with_positives() -> None:
    x, labels = batch()
    each = anchor_by_anchor(x, labels, 10, 1.0)
    expected = torch.stack(each).sum() / (len(x) - 1)  # one class has a single item
    torch.testing.assert_close(GroupOrderingLoss()(x, labels), expected)
    torch.testing.assert_close(tiled(GroupOrderingLoss(), block=4)(x, labels), expected)


def test_anchors_with_few_negatives_use_those_they_have() -> None:
    x, labels = batch((5, 3))
    torch.testing.assert_close(GroupOrderingLoss(negatives=10)(x, labels), GroupOrderingLoss(negatives=5)(x, labels))
    few = torch.stack(anchor_by_anchor(x, labels, 10, 1.0)).mean()
    torch.testing.assert_close(GroupOrderingLoss(negatives=10)(x, labels), few)


@pytest.mark.parametrize("sizes", [(6,), (1, 1, 1, 1), (1,)], ids=["one class", "no positives", "one item"])
def test_nothing_to_order_is_zero_with_zero_gradient(sizes: tuple[int, ...]) -> None:
    x, labels = batch(sizes)
    loss = GroupOrderingLoss()(x, labels)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("negatives", [1, 4])
def test_only_the_hardest_negatives_are_pushed(negatives: int) -> None:
    x, labels = batch((2, 2, 12))
    pull = score_gradients(GroupOrderingLoss(negatives=negatives, steepness=5.0), x, labels)
    scores = F.normalize(x) @ F.normalize(x).T
    for i in range(len(x)):
        others = torch.where(labels == labels[i], -torch.inf, scores[i])
        moved = ((pull[i] != 0) & (labels != labels[i])).nonzero().flatten()
        assert set(moved.tolist()) == set(others.topk(negatives).indices.tolist())


def test_detached_others_leave_the_anchors_gradient_alone() -> None:
    x, labels = batch()
    ids = torch.arange(len(x))
    loss = GroupOrderingLoss()
    stopped = loss(x, labels, reference=x.detach(), reference_labels=labels, ids=ids, reference_ids=ids)
    torch.testing.assert_close(stopped, loss(x, labels))
    (gradient,) = torch.autograd.grad(stopped, x)
    pull = score_gradients(loss, x, labels)
    unit = F.normalize(x)
    (expected,) = torch.autograd.grad((pull * (unit @ unit.detach().T)).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_a_query_and_its_candidates() -> None:
    """Reranking: relevant against irrelevant documents of each query, from scores that exist already."""
    scores = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    relevant = torch.arange(8) < torch.tensor([1, 2, 5])[:, None]
    found = GroupOrderingLoss(negatives=3, reduction="none").on_scores(scores, pairs=Pairs.from_masks(relevant))
    for row, mask, loss in zip(scores, relevant, found, strict=True):
        torch.testing.assert_close(loss, group_ordering_loss(row[~mask].topk(3).values, row[mask]))


def test_compiled_lists_have_room_for_every_column() -> None:
    x, labels = batch()
    for options in ({}, {"max_positives": 8}):
        loss = GroupOrderingLoss(**options)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, labels), loss(x, labels), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name, value", [("negatives", 0), ("negatives", 2.0), ("max_positives", 0), ("steepness", -1)])
def test_hyper_parameters_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"argument `{name}`: expected "):
        GroupOrderingLoss(**{name: value})  # type: ignore[arg-type]


def test_what_it_prints() -> None:
    assert "negatives=10, steepness=1.0, reduction='mean'" in repr(GroupOrderingLoss())
    assert "max_positives=3" in repr(GroupOrderingLoss(max_positives=3))
