"""The two objectives and the unified one: the specification's numbers, and what the decomposition promises."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import InfoNCELoss, citation, list_score_gradients
from scorecraft.relevance.sft_vs_cl import (
    ContrastiveRerankingLoss,
    SupervisedRerankingLoss,
    UnifiedRerankingLoss,
    direction_score,
    first_is_relevant,
    reranking_weights,
)

YES = [[2.0, 1.0, -0.5], [0.2, 0.4, 0.1]]
NO = [[0.5, 0.3, 0.7], [0.1, -0.2, 0.6]]
CL_GRADIENT = [[-0.1551639569, 0.1268580908, 0.0283058661], [-0.3400634718, 0.1953469166, 0.1447165552]]
SFT_GRADIENT = [[-0.0912127619, 0.3340938861, 0.1157376083], [-0.2375104063, 0.3228281531, 0.1887703344]]
CL_WEIGHTS = [[0.3103279139, 0.2537161816, 0.0566117322], [0.6801269437, 0.3906938333, 0.2894331104]]
SFT_WEIGHTS = [[0.1824255238, 0.6681877722, 0.2314752165], [0.4750208125, 0.6456563062, 0.3775406688]]
LOSSES = (SupervisedRerankingLoss, ContrastiveRerankingLoss, UnifiedRerankingLoss)


def close(found: Tensor, expected: list[list[float]] | float) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.fixture
def scores() -> Tensor:
    return torch.tensor([YES, NO], dtype=torch.float64).requires_grad_()


@pytest.fixture
def relevance(scores: Tensor) -> Tensor:
    return first_is_relevant(scores[0])


def random_lists(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Lists with several relevant candidates, with one group only, with a single candidate and with none."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(2, 7, 6, generator=generator, dtype=torch.float64)
    relevance = torch.rand(7, 6, generator=generator) < 0.4
    where = torch.rand(7, 6, generator=generator) < 0.8
    relevance[0], relevance[1] = True, False
    where[2], where[3] = torch.arange(6) == 2, False
    return scores.requires_grad_(), relevance, where


# --- the specification's check values ------------------------------------------------------------------------------


def test_contrast(scores: Tensor, relevance: Tensor) -> None:
    close(ContrastiveRerankingLoss()(scores, relevance), 0.7556850463)
    gradient = list_score_gradients(ContrastiveRerankingLoss(), scores, relevance)
    close(gradient[0], CL_GRADIENT)
    assert torch.equal(gradient[1], torch.zeros_like(gradient[1]))


def test_supervised(scores: Tensor, relevance: Tensor) -> None:
    close(SupervisedRerankingLoss(documents="sum")(scores, relevance), 1.8619216945)
    close(SupervisedRerankingLoss()(scores, relevance), 0.6206405648)
    gradient = list_score_gradients(SupervisedRerankingLoss(documents="sum"), scores, relevance)
    close(gradient[0], SFT_GRADIENT)
    torch.testing.assert_close(gradient[1], -gradient[0])


def test_weights(scores: Tensor, relevance: Tensor) -> None:
    close(reranking_weights(scores, relevance, weight="cl"), CL_WEIGHTS)
    close(reranking_weights(scores, relevance, weight="sft"), SFT_WEIGHTS)
    close(reranking_weights(scores, relevance, weight="one"), [[1.0] * 3] * 2)


@pytest.mark.parametrize(
    "weight, direction, value",
    [
        ("cl", "cl", -0.1730250283),
        ("cl", "sft", -0.1670687860),
        ("sft", "cl", 0.1943057716),
        ("sft", "sft", 0.0337221315),
    ],
)
def test_unified(scores: Tensor, relevance: Tensor, weight: str, direction: str, value: float) -> None:
    loss = UnifiedRerankingLoss(weight=weight, direction=direction)  # type: ignore[arg-type]
    close(loss(scores, relevance), value)
    yes, no = list_score_gradients(loss, scores, relevance)
    close(yes, CL_GRADIENT if weight == "cl" else SFT_GRADIENT)
    torch.testing.assert_close(no, torch.zeros_like(no) if direction == "cl" else -yes)


def test_the_score_of_one_pair() -> None:
    pair = torch.tensor([[2.0], [0.5]], dtype=torch.float64)
    close(direction_score(pair, "sft").sigmoid(), [0.8175744762])
    assert direction_score(pair, "cl").item() == 2.0


# --- weights, by their definition and by autograd --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_closed_forms_are_the_gradients_of_the_losses(seed: int) -> None:
    """Several relevant candidates, one group only, one candidate, none: weights and gradients stay the same thing."""
    scores, relevance, where = random_lists(seed)
    for weight, loss in (
        ("sft", SupervisedRerankingLoss(documents="sum", reduction="sum")),
        ("cl", ContrastiveRerankingLoss(reduction="sum")),
    ):
        gradient = list_score_gradients(loss, scores, relevance, where=where)
        weights = reranking_weights(scores, relevance, where, weight=weight)  # type: ignore[arg-type]
        torch.testing.assert_close(torch.where(relevance, -weights, weights), gradient[0], rtol=1e-12, atol=1e-12)
        assert ((weights >= 0) & (weights <= 1)).all()
        assert not weights.requires_grad


def test_contrastive_weights_balance() -> None:
    scores, relevance, where = random_lists()
    weights = reranking_weights(scores, relevance, where, weight="cl")
    balance = torch.where(relevance, -weights, weights).sum(dim=1)
    torch.testing.assert_close(balance, torch.zeros_like(balance))


def test_the_masked_constant_is_strict() -> None:
    """Zero strictly beyond the threshold, whatever the direction; s = sigmoid(z_y - z_n)."""
    chances = torch.tensor([[0.75, 0.76, 0.74], [0.25, 0.24, 0.26]], dtype=torch.float64)
    scores = torch.stack([chances.logit(), torch.zeros_like(chances)])
    scores[0, 0, 0], scores[0, 1, 0] = math.log(3), -math.log(3)  # at the threshold itself
    relevant = torch.tensor([[True] * 3, [False] * 3])
    weights = reranking_weights(scores, relevant, weight="masked", mask_threshold=0.25)
    assert weights[:, 1:].tolist() == [[0, 1], [0, 1]]
    assert reranking_weights(scores, relevant, weight="masked", mask_threshold=0.0).min() == 1


def test_small_weights_are_not_lost_to_cancellation() -> None:
    """1 - softmax and 1 - sigmoid of these are 0 in float64; the weights themselves are not."""
    scores = torch.tensor([[50.0, -40.0, 49.0, 50.0], [-50.0, 40.0, 50.0, 50.0]], dtype=torch.float64)
    relevance = first_is_relevant(scores[0])
    cl = reranking_weights(scores, relevance, weight="cl")
    mass = 1 + math.exp(-90) + math.exp(-1) + 1
    assert cl[0].item() == pytest.approx((mass - 1) / mass, rel=1e-14)
    assert cl[1].item() == pytest.approx(math.exp(-90) / mass, rel=1e-12)
    sft = reranking_weights(scores, relevance, weight="sft")
    assert sft[0].item() == pytest.approx(math.exp(-100), rel=1e-12)
    assert sft[1].item() == pytest.approx(math.exp(-80), rel=1e-12)
    assert sft[2:].tolist() == pytest.approx([1 / (1 + math.e), 0.5], rel=1e-12)
    close(SupervisedRerankingLoss(documents="sum")(scores, relevance), math.log1p(math.exp(-1)) + math.log(2))


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_are_finite(kind: type, dtype: torch.dtype) -> None:
    scores = torch.tensor([[[60.0, -60, 60, -60]], [[-60.0, 60, 60, -60]]], dtype=dtype)
    for relevant in itertools.product((False, True), repeat=4):
        leaf = scores.clone().requires_grad_()
        loss = kind()(leaf, torch.tensor([relevant]))
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert gradient.isfinite().all()


# --- properties ------------------------------------------------------------------------------------------------------


def test_contrast_is_blind_to_a_shift_of_a_query_and_sft_is_not(scores: Tensor, relevance: Tensor) -> None:
    shifted = scores + torch.tensor([[[3.0], [-2.0]], [[0.0], [0.0]]])
    torch.testing.assert_close(ContrastiveRerankingLoss()(shifted, relevance),
                               ContrastiveRerankingLoss()(scores, relevance))  # fmt: skip
    assert (SupervisedRerankingLoss()(shifted, relevance) - SupervisedRerankingLoss()(scores, relevance)).abs() > 0.1


def test_the_gradient_of_contrast_sums_to_zero_over_a_query() -> None:
    scores, relevance, where = random_lists()
    total = list_score_gradients(ContrastiveRerankingLoss(), scores, relevance, where=where).sum(dim=2)
    torch.testing.assert_close(total, torch.zeros_like(total))


def test_sft_without_no_is_binary_cross_entropy(scores: Tensor, relevance: Tensor) -> None:
    yes = scores[0].detach()
    found = SupervisedRerankingLoss(pos_weight=2.5)(torch.stack([yes, torch.zeros_like(yes)]), relevance)
    factor = torch.tensor(2.5, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(yes, relevance.double(), pos_weight=factor)
    torch.testing.assert_close(found, expected)


def test_one_negative_with_mirrored_no_makes_both_equal() -> None:
    """z_n of each is z_y of the other: both terms of SFT are the contrastive loss."""
    yes = torch.tensor([0.7, -0.4], dtype=torch.float64)
    scores, relevance = torch.stack([yes, yes.flip(0)]), torch.tensor([True, False])
    torch.testing.assert_close(SupervisedRerankingLoss()(scores, relevance),
                               ContrastiveRerankingLoss()(scores, relevance))  # fmt: skip


def test_contrast_is_infonce_on_the_yes_logits() -> None:
    scores, relevance, where = random_lists()
    found = ContrastiveRerankingLoss(temperature=0.5)(scores, relevance, where)
    torch.testing.assert_close(found, InfoNCELoss(temperature=0.5)(scores[0], relevance, where))


@pytest.mark.parametrize("documents", ["sum", "mean"])
def test_the_mean_over_documents_divides_by_those_there_are(documents: str) -> None:
    scores, relevance, where = random_lists()
    for kind in (SupervisedRerankingLoss, UnifiedRerankingLoss):
        each = kind(documents=documents, reduction="none")(scores, relevance, where)
        whole = kind(documents="sum", reduction="none")(scores, relevance, where)
        lengths = where.sum(dim=1).clamp(min=1) if documents == "mean" else 1
        torch.testing.assert_close(each, whole / lengths)


def test_masked_candidates_take_part_in_nothing() -> None:
    scores, relevance, where = random_lists()
    cut, keep = scores[:, 4:5][..., where[4]], relevance[4:5][:, where[4]]
    for loss in [SupervisedRerankingLoss(), ContrastiveRerankingLoss(), *(UnifiedRerankingLoss(weight=w) for w in ("sft", "cl", "one", "masked"))]:  # fmt: skip  # noqa: E501
        masked = loss(scores[:, 4:5], relevance[4:5], where[4:5])
        torch.testing.assert_close(masked, loss(cut, keep))
        padded = torch.where(where, scores, -torch.inf)
        torch.testing.assert_close(loss(padded, relevance), loss(scores, relevance, where))
        assert padded.grad_fn is not None


def test_a_query_without_a_choice() -> None:
    """Without negatives contrast has nothing to say, and SFT goes on; a query without positives likewise."""
    alone = torch.tensor([[[0.3]], [[0.1]]], dtype=torch.float64).requires_grad_()
    yes = torch.ones(1, 1, dtype=torch.bool)
    assert torch.equal(list_score_gradients(ContrastiveRerankingLoss(), alone, yes), torch.zeros(2, 1, 1))
    close(SupervisedRerankingLoss()(alone, yes), math.log1p(math.exp(-0.2)))
    close(SupervisedRerankingLoss()(alone, ~yes), math.log1p(math.exp(0.2)))
    nothing = torch.zeros_like(yes)
    for kind in LOSSES:
        loss = kind()(alone, yes, nothing)
        assert loss.item() == 0
        assert torch.equal(torch.autograd.grad(loss, alone)[0], torch.zeros_like(alone))


def test_the_mean_runs_over_queries_that_have_a_term() -> None:
    scores, relevance, where = random_lists()
    each = SupervisedRerankingLoss(reduction="none")(scores, relevance, where)
    torch.testing.assert_close(SupervisedRerankingLoss()(scores, relevance, where), each.sum() / 6)  # one is empty
    with_positives = (relevance & where).any(dim=1).sum()
    each = ContrastiveRerankingLoss(reduction="none")(scores, relevance, where)
    torch.testing.assert_close(ContrastiveRerankingLoss()(scores, relevance, where), each.sum() / with_positives)


@pytest.mark.parametrize("kind", [SupervisedRerankingLoss, ContrastiveRerankingLoss])
def test_gradcheck(kind: type) -> None:
    scores, relevance, where = random_lists()
    torch.autograd.gradcheck(lambda s: kind(reduction="none")(s, relevance, where), scores)


def test_weights_are_not_differentiated(scores: Tensor, relevance: Tensor) -> None:
    """The gradient of the unified loss is linear in its weights: twice the weight, twice the pull."""
    weights = reranking_weights(scores, relevance)
    pull = list_score_gradients(UnifiedRerankingLoss(direction="cl"), scores, relevance)[0]
    torch.testing.assert_close(pull, torch.where(relevance, -weights, weights) / 2)
    (first,) = torch.autograd.grad(UnifiedRerankingLoss()(scores, relevance), scores, create_graph=True)
    assert not first.requires_grad  # constant in the scores, weights included


@pytest.mark.parametrize("kind", LOSSES)
def test_compiles_to_one_graph(kind: type) -> None:
    scores, relevance, where = random_lists()
    loss = kind()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(scores, relevance, where), loss(scores, relevance, where))


# --- at the door -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSES)
def test_bad_scores_are_refused(kind: type, scores: Tensor, relevance: Tensor) -> None:
    for value, channels in ((torch.nan, [0]), (torch.inf, [1]), (-torch.inf, [1]), (-torch.inf, [0])):
        broken = scores.detach().clone()
        broken[channels, 0, 1] = value
        with pytest.raises(ValueError, match="argument `scores`: expected finite"):
            kind()(broken, relevance)
    with pytest.raises(ValueError, match=r"argument `scores`: expected floating-point scores of shape \[2, "):
        kind()(scores[:1], relevance)
    outside = scores.detach().clone()
    outside[1, 0, 1] = -torch.inf
    where = torch.ones_like(relevance)
    where[0, 1] = False
    assert kind()(outside, relevance, where).isfinite()


def test_a_list_needs_its_positive_in_column_0(scores: Tensor) -> None:
    assert first_is_relevant(scores[0]).tolist() == [[True, False, False]] * 2
    padded = scores[0].detach().clone()
    padded[1, 0] = -torch.inf
    where = torch.tensor([[False, True, True], [True] * 3])
    for call in (lambda: first_is_relevant(padded), lambda: first_is_relevant(scores[0], where)):
        with pytest.raises(ValueError, match="argument `scores`: expected a positive in column 0"):
            call()


@pytest.mark.parametrize(
    "kind, name, value",
    [
        (SupervisedRerankingLoss, "documents", "max"),
        (SupervisedRerankingLoss, "pos_weight", 0.0),
        (ContrastiveRerankingLoss, "temperature", -1.0),
        (UnifiedRerankingLoss, "weight", "url"),
        (UnifiedRerankingLoss, "direction", "one"),
        (UnifiedRerankingLoss, "mask_threshold", 1.5),
        (UnifiedRerankingLoss, "documents", "none"),
        (UnifiedRerankingLoss, "reduction", "max"),
    ],
)
def test_hyper_parameters_are_refused(kind: type, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"argument `{name}`: expected "):
        kind(**{name: value})


def test_weights_refuse_what_does_not_fit(scores: Tensor, relevance: Tensor) -> None:
    with pytest.raises(ValueError, match=r"argument `scores`: expected floating-point logits \[2, "):
        reranking_weights(scores[:1], relevance)
    with pytest.raises(ValueError, match="argument `relevance`: expected one per candidate"):
        reranking_weights(scores, relevance[:, 1:])
    with pytest.raises(ValueError, match="argument `weight`: expected one of"):
        reranking_weights(scores, relevance, weight="base")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="argument `direction`: expected one of"):
        direction_score(scores, "one")  # type: ignore[arg-type]


def test_what_it_prints_and_cites() -> None:
    assert "weight='sft', direction='sft', documents='sum', reduction='mean'" in repr(UnifiedRerankingLoss())
    assert "mask_threshold=0.1" in repr(UnifiedRerankingLoss(weight="masked"))
    assert "documents='mean', pos_weight=1.0" in repr(SupervisedRerankingLoss())
    assert "temperature=1.0" in repr(ContrastiveRerankingLoss())
    assert all("2510.14824" in citation(kind) for kind in LOSSES)
