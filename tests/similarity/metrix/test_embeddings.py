"""Mixtures through the Gram matrix equal mixtures that are made."""

from __future__ import annotations

import pytest
import torch
from tests.similarity.metrix.explicit import FORMS, batch, explicit_losses, masks
from torch import Tensor
from torch.nn import functional as F

from scorecraft.similarity.metrix import (
    PairForm,
    embedding_mixture_loss,
    embeddings,
    generic_pair_loss,
    mixed_scores,
    pooled_distance_contrastive,
)

KINDS = ("positive_negative", "anchor_negative")


def gram_losses(form: PairForm, x: Tensor, labels: Tensor, lam: float, **options: object) -> Tensor:
    unit = F.normalize(x, dim=1)
    scores = unit @ unit.T
    return embedding_mixture_loss(form, scores, scores, *masks(labels), lam, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [None, 1, 200])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_it_is_the_loss_of_mixtures_that_are_made(
    form: PairForm, kind: str, normalised: bool, average: bool, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block is not None:
        monkeypatch.setattr(embeddings, "_BLOCK_ELEMENTS", block)
    x, labels = batch()
    options = {"kind": kind, "normalised": normalised, "average": average}
    found = gram_losses(form, x, labels, 0.3, **options)
    expected = explicit_losses(form, x, x, *masks(labels), 0.3, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.abs().max() > 0
    coefficients = torch.linspace(-1, 1, len(x), dtype=torch.float64)
    (pull,) = torch.autograd.grad(found @ coefficients, x)
    (expected_pull,) = torch.autograd.grad(expected @ coefficients, x)
    torch.testing.assert_close(pull, expected_pull, rtol=1e-10, atol=1e-12)


def test_separate_others() -> None:
    x, labels = batch(7)
    y, others = batch(15, seed=1)
    positives = labels[:, None] == others
    a, b = F.normalize(x, dim=1), F.normalize(y, dim=1)
    form = FORMS["multi_similarity"]
    found = embedding_mixture_loss(form, a @ b.T, b @ b.T, positives, ~positives, 0.6)
    expected = explicit_losses(form, x, y, positives, ~positives, 0.6, kind="positive_negative")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalised", [False, True])
def test_pure_weights_leave_one_of_the_two(normalised: bool) -> None:
    """Property (a): lam = 1 is the positive, lam = 0 the negative."""
    x, labels = batch()
    unit = F.normalize(x, dim=1)
    scores = unit @ unit.T
    positives, negatives = masks(labels)
    form = FORMS["multi_similarity"]
    of_positives, of_negatives = [gram_losses(form, x, labels, lam, normalised=normalised) for lam in (1.0, 0.0)]
    for row in range(len(x)):
        p, n = scores[row, positives[row]], scores[row, negatives[row]]
        pairs_p, pairs_n = p[:, None].expand(-1, len(n)).flatten(), n.repeat(len(p))
        torch.testing.assert_close(of_positives[row], generic_pair_loss(form, pairs_p[None], 1.0)[0])
        torch.testing.assert_close(of_negatives[row], generic_pair_loss(form, pairs_n[None], 0.0)[0])
    for loss in (of_positives, of_negatives):
        assert torch.autograd.grad(loss.sum(), x, retain_graph=True)[0].isfinite().all()


def test_swapping_the_two_and_their_weights_changes_nothing() -> None:
    """Property (b)."""
    a, b, c = torch.rand(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed_scores(a, b, c, 0.3), mixed_scores(b, a, c, 0.7), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(mixed_scores(a, b, None, 0.3), mixed_scores(b, a, None, 0.7), rtol=1e-14, atol=1e-14)


def test_opposite_vectors_have_a_finite_mixture() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    loss = gram_losses(FORMS["multi_similarity"], x, torch.tensor([0, 0, 1]), 0.5)
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 2]], ids=["one class", "no positives", "few"])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_anchors_without_mixtures_have_no_loss(form: PairForm, normalised: bool, labels: list[int]) -> None:
    x, _ = batch(4)
    loss = gram_losses(form, x, torch.tensor(labels), 0.3, normalised=normalised)
    alone = torch.tensor([labels.count(one) == 1 or len(set(labels)) == 1 for one in labels])
    assert (loss[alone] == 0).all()
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert gradient.isfinite().all()
    if alone.all():
        assert (gradient == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalised", [False, True])
def test_gradients(kind: str, normalised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_BLOCK_ELEMENTS", 60)
    x, labels = batch(9, 3, 3)
    form = PairForm.multi_similarity(positive_scale=2, negative_scale=5)
    assert torch.autograd.gradcheck(lambda e: gram_losses(form, e, labels, 0.4, kind=kind, normalised=normalised), (x,))


def test_memory_stays_below_the_mixtures() -> None:
    """No tensor of the graph has the size of the mixtures, nor of their similarities when blocks are small."""
    x, labels = batch(60, 6, 8)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        gram_losses(FORMS["multi_similarity"], x, labels, 0.4)
        whole = max(sizes)
        sizes.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embeddings, "_BLOCK_ELEMENTS", 60)
            gram_losses(FORMS["multi_similarity"], x, labels, 0.4)
    positives, negatives = masks(labels)
    mixtures = int((positives.sum(1) * negatives.sum(1)).sum())
    assert whole < mixtures * 8
    assert max(sizes) <= 60 * 60


def test_bad_input_is_refused_in_one_line() -> None:
    x, labels = batch()
    scores = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    positives, negatives = masks(labels)
    form = FORMS["contrastive"]
    with pytest.raises(ValueError, match="argument `lam`: expected a number in"):
        embedding_mixture_loss(form, scores, scores, positives, negatives, 1.5)
    with pytest.raises(ValueError, match="argument `kind`: expected one of 'positive_negative', 'anchor_negative'"):
        embedding_mixture_loss(form, scores, scores, positives, negatives, 0.5, kind="positive_positive")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="argument `gram`: expected the cosines of the others"):
        embedding_mixture_loss(form, scores, None, positives, negatives, 0.5)
    with pytest.raises(ValueError, match="argument `negatives`: expected a bool matrix of shape"):
        embedding_mixture_loss(form, scores, scores, positives, negatives[:3], 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_official_contrastive_form(kind: str) -> None:
    x, labels = batch(12, 4)
    unit = F.normalize(x, dim=1)
    positives, negatives = masks(labels)
    lam, pulls, pushes = 0.6, [], []
    for a in range(12):
        for first in positives[a].nonzero().flatten() if kind == "positive_negative" else [a]:
            for second in negatives[a].nonzero().flatten():
                mixture = F.normalize(lam * unit[first] + (1 - lam) * unit[second], dim=0)
                distance = (unit[a] - mixture).norm()
                pulls.append(lam * (distance - 0.2).clamp(min=0))
                pushes.append((1 - lam) * (0.9 - distance).clamp(min=0))
    expected = sum(torch.stack(group)[torch.stack(group) > 0].mean() for group in (pulls, pushes))
    found = pooled_distance_contrastive(
        unit @ unit.T,
        positives,
        negatives,
        lam,
        kind=kind,
        positive_margin=0.2,
        negative_margin=0.9,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, x, retain_graph=True)[0], torch.autograd.grad(expected, x)[0], rtol=1e-9, atol=1e-12
    )


def test_the_official_contrastive_form_of_nothing_is_zero() -> None:
    x, _ = batch(4)
    unit = F.normalize(x, dim=1)
    loss = pooled_distance_contrastive(unit @ unit.T, *masks(torch.zeros(4, dtype=torch.long)), 0.5)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))
