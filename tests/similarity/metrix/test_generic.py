"""The generic pair loss: its check values, soft labels, and the losses it is said to contain."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from tests.similarity.metrix.explicit import FORMS, batch, masks
from torch import Tensor

from scorecraft.core import Objective, Pairs
from scorecraft.similarity.metrix import GenericPairLoss, PairForm, form_of, generic_pair_loss
from scorecraft.similarity.multi_similarity import (
    BinomialDevianceLoss,
    ContrastiveLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
)

SCORES = torch.tensor([[0.9, 0.4, 0.6, -0.1]], dtype=torch.float64)
HARD = torch.tensor([[1.0, 1, 0, 0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("form", "hard", "soft"),
    [
        (PairForm.contrastive(threshold=0.5), -1.2, -1.11),
        (PairForm.multi_similarity(positive_scale=2, negative_scale=50, threshold=0.5), 0.5913105510, 1.1872659597),
        (PairForm.proxy_anchor(scale=32, margin=0.1), 0.7000021165, 1.1513059701),
        (PairForm.binomial_deviance(positive_scale=2, negative_scale=50, threshold=0.5), 6.1759548838, 9.7654918201),
        (PairForm.lifted_structure(margin=0.5), 0.5772630331, 0.8428493652),
        (PairForm.nca(temperature=0.1), -3.0058038820, -0.8472978604),
    ],
    ids=lambda value: value.name if isinstance(value, PairForm) else "",
)
def test_check_values(form: PairForm, hard: float, soft: float) -> None:
    assert generic_pair_loss(form, SCORES, HARD).item() == pytest.approx(hard, abs=1e-9)
    assert generic_pair_loss(form, SCORES, torch.full_like(SCORES, 0.7)).item() == pytest.approx(soft, abs=1e-9)
    assert generic_pair_loss(form, SCORES, 0.7).item() == pytest.approx(soft, abs=1e-9)
    positives = HARD.bool()
    row = GenericPairLoss(form).on_scores(SCORES, pairs=_pairs(positives))
    assert row.item() == pytest.approx(hard, abs=1e-9)


def _pairs(positives: Tensor) -> Pairs:
    return Pairs.from_masks(positives, ~positives)


def test_proxy_nca_plus_plus_counts_positives_in_its_denominator() -> None:
    form = PairForm.proxy_nca_plus_plus(temperature=0.1)
    e = (SCORES[0] / 0.1).exp()
    expected = (-(e[:2].sum() / e.sum()).log()).item()
    assert generic_pair_loss(form, SCORES, HARD).item() == pytest.approx(expected, abs=1e-12)
    assert GenericPairLoss(form).on_scores(SCORES, pairs=_pairs(HARD.bool())).item() == pytest.approx(expected)


@pytest.mark.parametrize("label", [0.2, 0.5, 0.9])
def test_nca_of_equal_labels_says_nothing_of_the_scores(label: float) -> None:
    scores = SCORES.clone().requires_grad_()
    loss = generic_pair_loss(PairForm.nca(temperature=0.1), scores, torch.full_like(SCORES, label))
    assert loss.item() == pytest.approx(math.log((1 - label) / label), abs=1e-12)
    assert torch.autograd.grad(loss, scores)[0].abs().max() < 1e-12


def test_only_the_nca_forms_are_blind_to_equal_labels() -> None:
    assert {name for name, form in FORMS.items() if form.blind_to_equal_labels} == {"nca", "proxy_nca_plus_plus"}


@pytest.mark.parametrize(
    "base",
    [
        ContrastiveLoss(threshold=0.3),
        MultiSimilarityLoss(alpha=3, beta=20, threshold=0.4, mining=False),
        LiftedStructureLoss(margin=0.7),
    ],
    ids=lambda base: type(base).__name__,
)
def test_the_form_of_a_base_is_the_base(base: Objective) -> None:
    x, labels = batch(30)
    found = GenericPairLoss(form_of(base))(x, labels)
    expected = base(x, labels)
    torch.testing.assert_close(found, expected)
    assert expected != 0
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], torch.autograd.grad(expected, x)[0])


def test_the_form_of_binomial_deviance_sums_where_the_base_averages() -> None:
    x, labels = batch(30)
    base = BinomialDevianceLoss(alpha=3, beta=20, threshold=0.4, reduction="none")
    positives, negatives = masks(labels)
    scores = base.dense_scores(base.batch(x, labels))[0]
    gap = scores - 0.4
    expected = ((1 + (-3 * gap).exp()).log() * positives).sum(1) + ((1 + (20 * gap).exp()).log() * negatives).sum(1)
    torch.testing.assert_close(GenericPairLoss(form_of(base), reduction="none")(x, labels), expected)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_gradients(form: PairForm) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (2 * torch.rand(3, 5, generator=generator, dtype=torch.float64) - 1).requires_grad_()
    labels = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    labels[0, 0], labels[1, 1] = 0.0, 1.0
    where = torch.rand(3, 5, generator=generator) < 0.8
    for soft in (labels, 0.3):
        assert torch.autograd.gradcheck(lambda s, y=soft: generic_pair_loss(form, s, y, where), (scores,))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("labels", [0.0, 1.0, "zeros", "ones"])
def test_pure_labels_have_finite_gradients(form: PairForm, labels: float | str) -> None:
    scores = SCORES.repeat(2, 1).requires_grad_()
    soft = {"zeros": torch.zeros_like(scores), "ones": torch.ones_like(scores)}.get(labels, labels)  # type: ignore[call-overload]
    loss = generic_pair_loss(form, scores, soft)
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), scores)[0].isfinite().all()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_anchors_without_others_have_no_loss(form: PairForm) -> None:
    scores = SCORES.repeat(2, 1).requires_grad_()
    where = torch.tensor([[True] * 4, [False] * 4])
    for average in (False, True):
        loss = generic_pair_loss(form, scores, 0.4, where, average=average)
        assert loss[1] == 0
        (gradient,) = torch.autograd.grad(loss.sum(), scores)
        assert gradient.isfinite().all()
        assert (gradient[1] == 0).all()


@pytest.mark.parametrize("form", [FORMS["lifted"], FORMS["nca"], FORMS["proxy_nca_plus_plus"]])
def test_anchors_without_positives_are_skipped_where_a_logarithm_needs_them(form: PairForm) -> None:
    scores = SCORES.clone().requires_grad_()
    loss = generic_pair_loss(form, scores, torch.zeros_like(SCORES))
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss.sum(), scores)[0], torch.zeros_like(scores))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_scales_do_not_overflow(dtype: torch.dtype) -> None:
    form = PairForm.multi_similarity(positive_scale=400, negative_scale=1000, threshold=0.0)
    scores = torch.tensor([[1.0, -1.0, 0.5]], dtype=dtype, requires_grad=True)
    loss = generic_pair_loss(form, scores, torch.tensor([[0.5, 0.5, 0.5]]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2 + math.log(0.5) / 1000 + math.log(0.5) / 400, abs=1e-3)
    assert torch.autograd.grad(loss.sum(), scores)[0].isfinite().all()


def test_average_takes_means() -> None:
    where = torch.tensor([[True, True, True, False]])
    contrastive = FORMS["contrastive"]
    total = generic_pair_loss(contrastive, SCORES, 0.3, where)
    assert generic_pair_loss(contrastive, SCORES, 0.3, where, average=True).item() == pytest.approx(total.item() / 3)
    form = FORMS["multi_similarity"]
    s = SCORES[0, :3]
    expected = (1 + 0.3 * (-2 * (s - 0.5)).exp().mean()).log() / 2 + (
        1 + 0.7 * (50 * (s - 0.5)).exp().mean()
    ).log() / 50
    torch.testing.assert_close(generic_pair_loss(form, SCORES, 0.3, where, average=True)[0], expected)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_are_plain_data(form: PairForm) -> None:
    assert pickle.dumps(form)  # a started process can be handed one
    other = copy.deepcopy(form)
    assert torch.equal(generic_pair_loss(other, SCORES, 0.3), generic_pair_loss(form, SCORES, 0.3))


def test_bad_input_is_refused_in_one_line() -> None:
    form = FORMS["contrastive"]
    for labels in (SCORES + 1, torch.full_like(SCORES, math.nan)):
        with pytest.raises(ValueError, match=r"argument `labels`: expected labels in \[0, 1\], got"):
            generic_pair_loss(form, SCORES, labels)
    with pytest.raises(ValueError, match="argument `labels`: expected a number in"):
        generic_pair_loss(form, SCORES, 1.5)
    with pytest.raises(ValueError, match="argument `labels`: expected a floating-point tensor of shape"):
        generic_pair_loss(form, SCORES, torch.ones(4))
    with pytest.raises(ValueError, match="argument `temperature`: expected a finite number > 0"):
        PairForm.nca(temperature=0)
    with pytest.raises(ValueError, match="argument `positive_scale`"):
        PairForm.multi_similarity(positive_scale=-1)
    with pytest.raises(ValueError, match="argument `margin`: expected a finite number"):
        PairForm.lifted_structure(margin=math.inf)
    with pytest.raises(ValueError, match="argument `margin`: expected a finite number"):
        PairForm.proxy_anchor(margin=math.nan)
    with pytest.raises(ValueError, match="argument `scale`: expected a finite number > 0"):
        PairForm.proxy_anchor(scale=0)
    with pytest.raises(TypeError, match="argument `form`"):
        GenericPairLoss("contrastive")  # type: ignore[arg-type]
