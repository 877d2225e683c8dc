"""What the engine promises beyond the conformance matrix: channels, learnable parameters, memory, custom objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from scorecraft.core import (
    BatchObjective,
    Context,
    Cosine,
    Merge,
    NegativeDistance,
    Pairs,
    PerHead,
    RowObjective,
    Sweep,
    Tile,
    score_gradients,
    tiled,
)
from scorecraft.core.batch import Batch
from scorecraft.core.reductions import mask_out, masked_logsumexp, masked_sum
from scorecraft.similarity.multi_similarity import MultiSimilarityLoss


class LearnedTemperature(RowObjective):
    """A softmax over several channels with a learnable temperature, stated on whole rows."""

    def __init__(self, heads: int) -> None:
        super().__init__(score=PerHead(Cosine(), heads))
        self.log_scale = nn.Parameter(torch.tensor(0.7))

    def row_loss(self, tile: Tile) -> Tensor:
        mixed = sum((1 + head) * scores for head, scores in enumerate(tile.scores)) * self.log_scale.exp()
        positive, everything = masked_logsumexp(mixed, tile.positives), masked_logsumexp(mixed)
        return torch.where(positive.isfinite(), everything - positive.nan_to_num(neginf=0.0), 0.0)


class AsymmetricMoments(BatchObjective):
    """Terms that differ between a tile and its transpose, without a closed form, with a learnable parameter."""

    totals: ClassVar[Mapping[str, Merge]] = {"moment": Merge.SUM, "mass": Merge.LOGSUMEXP}
    symmetric_terms = False

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(1.3))

    def survey(self, sweep: Sweep) -> Context:
        def mean(tile: Tile, context: Context) -> dict[str, Tensor]:
            del context
            return {"row_sum": masked_sum(tile.score.detach(), tile.negatives)}

        return sweep.rows(mean, row_sum=Merge.SUM)

    def terms(self, tile: Tile, context: Context) -> dict[str, Tensor]:
        lifted = (tile.score + 2) ** self.power * (1 + tile.rows[:, None]) + context["row_sum"][:, None]
        return {
            "moment": mask_out(lifted, tile.negatives, 0.0).sum(),
            "mass": masked_logsumexp(masked_logsumexp(self.power * tile.score, tile.positives)[None]).squeeze(0),
        }

    def finish(self, totals: Context, context: Context, batch: Batch) -> Tensor:
        del context, batch
        return totals["moment"].log() + 2 * totals["mass"]


def inputs(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
    return x, torch.randint(0, 5, (shape[0],), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_channels_and_learnable_parameters_on_whole_rows(reduction: str) -> None:
    x, labels = inputs(23, 3, 4)
    objective = LearnedTemperature(3).double()
    objective.reduction = reduction  # type: ignore[assignment]
    weights = torch.linspace(1, 2, 23, dtype=torch.float64)
    values = [way(x, labels, weights=weights) for way in (objective, tiled(objective, block=4))]
    torch.testing.assert_close(*values)
    pulls = [torch.autograd.grad(value.square().sum(), [x, objective.log_scale]) for value in values]
    torch.testing.assert_close(*pulls)
    if reduction != "none":
        assert score_gradients(objective, x, labels).shape == (3, 23, 23)


def test_asymmetric_terms_row_context_and_parameters_of_a_batch_objective() -> None:
    x, labels = inputs(23, 4)
    objective = AsymmetricMoments().double()
    values = [way(x, labels) for way in (objective, tiled(objective, block=4))]
    torch.testing.assert_close(*values)
    pulls = [torch.autograd.grad(value, [x, objective.power]) for value in values]
    torch.testing.assert_close(*pulls)


def test_graded_pairs_reach_the_tile() -> None:
    class Graded(RowObjective):
        def row_loss(self, tile: Tile) -> Tensor:
            assert tile.grades is not None
            return -masked_sum(tile.score * tile.grades, tile.positives)

    x, _ = inputs(9, 4)
    reference = torch.randn(6, 4, dtype=torch.float64)
    grades = torch.randint(0, 4, (9, 6)).double()
    objective = Graded()
    pairs = Pairs.from_masks(grades)
    expected = -(objective.score.prepare(x) @ objective.score.prepare(reference).T * grades).sum(1).mean()
    torch.testing.assert_close(objective(x, reference=reference, pairs=pairs), expected)
    torch.testing.assert_close(tiled(objective, block=2)(x, reference=reference, pairs=pairs), expected)


def test_the_derivative_of_a_distance_at_zero_is_zero() -> None:
    x = torch.ones(4, 3, dtype=torch.float64).requires_grad_()
    objective = MultiSimilarityLoss(score=NegativeDistance(), mining=False)
    for way in (objective, tiled(objective, block=2)):
        (gradient,) = torch.autograd.grad(way(x, torch.tensor([0, 0, 1, 1])), x)
        assert torch.equal(gradient, torch.zeros_like(x))


def test_a_second_derivative_of_the_tiled_form_is_refused() -> None:
    x, labels = inputs(9, 4)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(tiled(MultiSimilarityLoss())(x, labels), x, create_graph=True)


def test_the_backward_pass_can_run_twice_and_scale() -> None:
    x, labels = inputs(20, 4)
    loss = tiled(MultiSimilarityLoss(), block=6)(x, labels)
    (once,) = torch.autograd.grad(loss, x, retain_graph=True)
    (scaled,) = torch.autograd.grad(3 * loss, x)
    torch.testing.assert_close(scaled, 3 * once)


@pytest.mark.slow
def test_the_dense_form_runs_under_the_default_compiler() -> None:
    x, labels = inputs(30, 8)
    x = x.detach().float().requires_grad_()
    objective = MultiSimilarityLoss()
    torch.testing.assert_close(torch.compile(objective, fullgraph=True)(x, labels), objective(x, labels))


class NegativeShare(RowObjective):
    """`1 - softmax` share of the positives, averaged over the rows that have one."""

    mean_over_anchors_with_positives = True

    def row_loss(self, tile: Tile) -> Tensor:
        mass = masked_logsumexp(tile.score, tile.positives)
        share = (mass - masked_logsumexp(tile.score, tile.positives | tile.negatives)).exp()
        return torch.where(mass > -torch.inf, 1 - share, 0.0)


@pytest.mark.parametrize("way", ["labels", "multi-hot", "ids", "ignore", "pairs", "reference"])
def test_the_mean_over_anchors_with_positives(way: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 6])
    call: dict[str, object] = {"labels": labels}
    counted = torch.tensor([True] * 5 + [False] + [True] * 2 + [False] + [True] * 2 + [False])
    if way == "multi-hot":
        call = {"labels": nn.functional.one_hot(labels).bool()}
    elif way == "ids":
        call["ids"] = torch.tensor([0, 1, 2, 3, 3, 5, 6, 7, 8, 9, 9, 11])  # two pairs are the same example twice
        counted[[3, 4, 9, 10]] = False
    elif way == "ignore":
        call["ignore"] = torch.arange(12) == 3
        counted[[3, 4]] = False
    elif way == "pairs":
        same = (labels[:, None] == labels) & ~torch.eye(12, dtype=torch.bool)
        call = {"pairs": Pairs.from_masks(same, labels[:, None] != labels)}
    elif way == "reference":
        call |= {"reference": x.detach() + 0.1, "reference_labels": labels % 4}
        counted = labels < 4
    loss = NegativeShare()
    mean = loss(x, **call)
    (gradient,) = torch.autograd.grad(mean, x)
    loss.reduction = "none"
    rows = loss(x, **call)
    torch.testing.assert_close(mean, rows[counted].mean())
    assert (rows[~counted] == 0).all()
    loss.reduction = "mean"
    found = tiled(loss, block=5)(x, **call)
    torch.testing.assert_close(found, mean)
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], gradient)


def test_no_anchor_with_positives_is_zero_and_attached() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    value = NegativeShare()(x, torch.arange(4))
    value.backward()
    assert value == 0
    assert x.grad is not None
    assert (x.grad == 0).all()
