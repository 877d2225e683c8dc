"""The check values and properties of the Multi-Similarity specification."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scorecraft.core import Objective, Pairs, score_gradients
from scorecraft.similarity.multi_similarity import (
    BinomialDevianceLoss,
    ContrastiveLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    MultiSimilarityMiner,
    NPairLoss,
    TripletLoss,
    general_pair_weighting,
    pair_weights,
)

SCORES = torch.tensor(
    [[1, 0.8, 0.25, 0.6], [0.8, 1, 0.2, 0.5], [0.25, 0.2, 1, 0.4], [0.6, 0.5, 0.4, 1]], dtype=torch.float64
)
LABELS = torch.tensor([0, 0, 1, 1])


def embeddings_of(scores: Tensor) -> Tensor:
    """Unit vectors with the given cosines."""
    return torch.linalg.cholesky(scores)


def random_batch(n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), torch.randint(0, 7, (n,), generator=generator)


@pytest.mark.parametrize(
    "objective, expected",
    [
        (MultiSimilarityLoss.paper(), 0.1829103084),
        (MultiSimilarityLoss.code(), 0.1249922105),
        (MultiSimilarityLoss(alpha=2, beta=50, threshold=0.5, mining=False), 0.3624729682),
        (ContrastiveLoss(threshold=0.5), -0.55),
        (TripletLoss(margin=0.1), 0.125),
        (LiftedStructureLoss(margin=0.5), 0.9876484270),
        (BinomialDevianceLoss(alpha=2, beta=50, threshold=0.5), 2.0427800503),
        (NPairLoss(), 0.9724019280),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_check_values(objective: Objective, expected: float) -> None:
    assert objective.on_scores(SCORES, LABELS).item() == pytest.approx(expected, abs=1e-9)
    assert objective(embeddings_of(SCORES), LABELS).item() == pytest.approx(expected, abs=1e-9)


def test_check_weights_without_mining() -> None:
    weights = pair_weights(MultiSimilarityLoss(mining=False), embeddings_of(SCORES), LABELS)
    assert 4 * weights.positives[0, 1].item() == pytest.approx(0.3543436938, abs=1e-9)
    assert 4 * weights.negatives[0, 2].item() == pytest.approx(2.494193e-08, rel=1e-6)
    assert 4 * weights.negatives[0, 3].item() == pytest.approx(0.9933071243, abs=1e-9)


def test_the_miner_keeps_anchor_three_only() -> None:
    anchors, positives, other_anchors, negatives = MultiSimilarityMiner(margin=0.1).mine(embeddings_of(SCORES), LABELS)
    assert anchors.tolist() == [3]
    assert positives.tolist() == [2]
    assert other_anchors.tolist() == [3, 3]
    assert negatives.tolist() == [0, 1]


def closed_form(name: str, row: list[float], same: list[bool], anchor: int) -> list[float]:
    """The weights of one anchor as the paper's table states them, in plain Python; positives carry a minus sign."""
    positives = [k for k, is_positive in enumerate(same) if is_positive and k != anchor]
    negatives = [k for k, is_positive in enumerate(same) if not is_positive]
    weights = [0.0] * len(row)
    if name == "contrastive":
        for k in positives:
            weights[k] = -1.0
        for k in negatives:
            weights[k] = float(row[k] > 0.5)
    elif name == "triplet":
        for k in positives:
            weights[k] = -float(sum(row[n] - row[k] + 0.1 > 0 for n in negatives))
        for k in negatives:
            weights[k] = float(sum(row[k] - row[p] + 0.1 > 0 for p in positives))
    elif name == "lifted":
        pull = sum(math.exp(-row[k]) for k in positives)
        push = sum(math.exp(row[k]) for k in negatives)
        if positives and negatives and 0.5 + math.log(pull) + math.log(push) > 0:
            for k in positives:
                weights[k] = -math.exp(-row[k]) / pull
            for k in negatives:
                weights[k] = math.exp(row[k]) / push
    elif name == "binomial":
        for k in positives:
            weights[k] = -2 / len(positives) / (1 + math.exp(-2 * (0.5 - row[k])))
        for k in negatives:
            weights[k] = 50 / len(negatives) / (1 + math.exp(-50 * (row[k] - 0.5)))
    elif positives:
        chosen = positives[0]
        push = sum(math.exp(row[n] - row[chosen]) for n in negatives)
        weights[chosen] = -(1 - 1 / (1 + push))
        for k in negatives:
            weights[k] = math.exp(row[k]) / (math.exp(row[chosen]) + push * math.exp(row[chosen]))
    return weights


@pytest.mark.parametrize(
    "name, objective",
    [
        ("contrastive", ContrastiveLoss()),
        ("triplet", TripletLoss()),
        ("lifted", LiftedStructureLoss()),
        ("binomial", BinomialDevianceLoss()),
        ("n-pair", NPairLoss()),
    ],
)
def test_weights_equal_the_closed_forms_of_the_table(name: str, objective: Objective) -> None:
    x, labels = random_batch(24)
    scores = torch.nn.functional.normalize(x.detach(), dim=1)
    scores = scores @ scores.T
    found = score_gradients(objective, x, labels) * len(x)
    for anchor in range(len(x)):
        expected = closed_form(name, scores[anchor].tolist(), (labels == labels[anchor]).tolist(), anchor)
        assert found[anchor].tolist() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    "objective", [MultiSimilarityLoss(), ContrastiveLoss(), TripletLoss(), LiftedStructureLoss(), NPairLoss()]
)
def test_the_linear_form_has_the_same_gradient(objective: Objective) -> None:
    x, labels = random_batch()
    (expected,) = torch.autograd.grad(objective(x, labels), x)
    (found,) = torch.autograd.grad(general_pair_weighting(objective, x, labels), x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_zero_exactly_when_classes_are_separated_by_more_than_the_margin() -> None:
    x = torch.tensor([[1.0, 0.0], [0.99, 0.01], [0.0, 1.0], [0.01, 0.99]], requires_grad=True)
    loss = MultiSimilarityLoss()(x, LABELS)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]], ids=["one class", "no positives"])
def test_one_class_or_no_positives_give_zero_loss_and_zero_gradient(labels: list[int]) -> None:
    x = embeddings_of(SCORES).requires_grad_()
    loss = MultiSimilarityLoss()(x, torch.tensor(labels))
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


def test_weights_of_each_group_sum_to_less_than_one() -> None:
    x, labels = random_batch()
    weights = pair_weights(MultiSimilarityLoss(mining=False), x, labels)
    assert (weights.positives.sum(1) * len(x) < 1).all()
    assert (weights.negatives.sum(1) * len(x) < 1).all()


def test_large_scales_tend_to_batch_hard_hinges() -> None:
    x, labels = random_batch()
    scale = 1e4
    objective = MultiSimilarityLoss(alpha=scale, beta=scale, mining=False, reduction="none")
    scores = torch.nn.functional.normalize(x.detach(), dim=1)
    scores = scores @ scores.T
    same = labels[:, None] == labels
    positives = torch.where(same & ~torch.eye(len(x), dtype=torch.bool), scores, math.inf).amin(1)
    hinges = (0.5 - positives).clamp(min=0) + (torch.where(same, -math.inf, scores).amax(1) - 0.5).clamp(min=0)
    assert (objective(x, labels) - hinges).abs().max() <= 2 * math.log(1 + len(x)) / scale


def test_exact_duplicates_are_positives_and_only_the_anchor_is_left_out() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.8, 0.6]])
    pulls = score_gradients(MultiSimilarityLoss(mining=False), x, torch.tensor([0, 0, 1]))
    assert pulls[0, 1] < 0
    assert pulls[0, 0] == 0


def test_one_sided_anchors_are_skipped_unless_asked_for() -> None:
    pairs = Pairs.from_masks(torch.zeros(4, 4, dtype=torch.bool), LABELS[:, None] != LABELS)
    x = embeddings_of(SCORES)
    assert MultiSimilarityLoss(mining=False)(x, pairs=pairs) == 0
    both = MultiSimilarityLoss(mining=False, skip_one_sided=False)(x, pairs=pairs)
    expected = (1 + (50 * (SCORES - 0.5)).exp().where(LABELS[:, None] != LABELS, 0).sum(1)).log().mean() / 50
    torch.testing.assert_close(both, expected)


def test_the_miner_never_leaves_one_group_of_an_anchor_empty() -> None:
    x, labels = random_batch(60)
    for margin in (-0.2, 0.0, 0.1, 0.5):
        anchors, _, other_anchors, _ = MultiSimilarityMiner(margin=margin).mine(x, labels)
        assert set(anchors.tolist()) == set(other_anchors.tolist())


@pytest.mark.parametrize("argument", ["alpha", "beta"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "2"])
def test_scales_must_be_positive(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"argument `{argument}`: expected a finite number > 0, got"):
        MultiSimilarityLoss(**{argument: value})  # type: ignore[arg-type]
