"""The alignment losses: check values and properties of the specification, and the linear forms against double sums."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import PairwiseLogisticLoss, citation, list_score_gradients
from scorecraft.preference.aft import (
    AFTLoss,
    RankedAFTLoss,
    aft_losses,
    mean_log_probabilities,
    ranked_aft_losses,
    relevance_of_ranks,
)

CONSTRAINTS = ("none", "detach", "boundary")


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return -scale * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pull(value: Tensor, *scores: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value.sum(), scores)


def double_sum(scores: Tensor, relevance: Tensor, constraint: str, beta: float = 0.15) -> Tensor:
    """The loss of one list as it is written, every pair a term."""
    better = relevance[:, None] > relevance[None, :]
    worse = scores.detach() if constraint == "detach" else scores
    terms = [scores.new_zeros(1), (worse[None, :] - scores[:, None])[better]]
    if constraint == "boundary":
        fixed = scores.detach()[:, None]
        boundary = torch.where(better, fixed, torch.inf).amin(dim=0) - beta
        terms.append((2 * boundary - fixed - scores)[better])
    return torch.cat(terms).logsumexp(dim=0)


POSITIVES, NEGATIVES = tensor(-0.5, -0.8), tensor(-0.6, -1.2)


@pytest.mark.parametrize("kind", [AFTLoss, RankedAFTLoss])
@pytest.mark.parametrize(
    "constraint, value, gradient",
    [
        ("none", 1.457019687112603, [-0.32643261527767, -0.44063794081263, 0.49526394185983, 0.27180661423047]),
        ("detach", 1.457019687112603, [-0.32643261527767, -0.44063794081263, 0, 0]),
        ("boundary", 1.984156049459186, [-0.19269086712064, -0.26010546412225, 0.14717369254266, -0.10408442455775]),
    ],
)
def test_check_values(kind: type, constraint: str, value: float, gradient: list[float]) -> None:
    scores = torch.cat([POSITIVES, NEGATIVES]).requires_grad_()
    loss = kind(constraint=constraint, beta=0.15)
    relevance = tensor(1, 1, 0, 0)
    assert loss(scores, relevance).item() == pytest.approx(value, abs=1e-14)
    found = list_score_gradients(loss, scores, relevance)
    torch.testing.assert_close(found, tensor(*gradient), rtol=0, atol=1e-13)
    if constraint == "detach":
        assert (found[2:] == 0).all()


@pytest.mark.parametrize(
    "constraint, value, gradient",
    [
        ("none", 1.528432228648634, [-0.42555748318834, -0.19690184801351, 0.62245933120185]),
        ("detach", 1.528432228648634, [-0.42555748318834, -0.35756710482850, 0]),
        ("boundary", 1.855225899843981, [-0.30692590397260, -0.29842962369335, 0.32658806638921]),
    ],
)
def test_check_values_of_a_ranking(constraint: str, value: float, gradient: list[float]) -> None:
    scores, relevance = tensor(-0.4, -0.7, -0.2), relevance_of_ranks(torch.tensor([1, 2, 3]))
    loss = RankedAFTLoss(constraint=constraint, beta=0.15)  # type: ignore[arg-type]
    assert loss(scores, relevance).item() == pytest.approx(value, abs=1e-14)
    torch.testing.assert_close(list_score_gradients(loss, scores, relevance), tensor(*gradient), rtol=0, atol=1e-13)


def test_check_value_at_the_boundary() -> None:
    scores, relevance = tensor(-0.5, -0.65), tensor(1, 0)
    loss = AFTLoss(constraint="boundary")
    assert loss(scores, relevance).item() == pytest.approx(1.001152315758658, abs=1e-14)
    assert list_score_gradients(loss, scores, relevance)[1] == 0


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("right, wrong, scale", [(1, 1, 1.0), (3, 5, 2.0), (17, 4, 60.0), (40, 60, 5.0)])
def test_linear_form_is_the_double_sum(constraint: Any, right: int, wrong: int, scale: float) -> None:
    scores = drawn(right + wrong, seed=right, scale=scale).requires_grad_()
    relevance = tensor(*[1] * right, *[0] * wrong)
    found = AFTLoss(constraint=constraint, beta=0.3)(scores, relevance)
    wanted = double_sum(scores, relevance, constraint, beta=0.3)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12, abs=1e-12)
    torch.testing.assert_close(pull(found, scores)[0], pull(wanted, scores)[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("grades, scale", [(2, 1.0), (4, 3.0), (30, 60.0)])
def test_sorted_form_is_the_double_sum(constraint: Any, grades: int, scale: float) -> None:
    random = torch.Generator().manual_seed(grades)
    for seed in range(4):
        scores = drawn(30, seed=seed, scale=scale).requires_grad_()
        relevance = torch.randint(grades, (30,), generator=random)
        found = RankedAFTLoss(constraint=constraint, beta=0.3)(scores, relevance)
        wanted = double_sum(scores, relevance, constraint, beta=0.3)
        assert found.item() == pytest.approx(wanted.item(), rel=1e-12, abs=1e-12)
        torch.testing.assert_close(pull(found, scores)[0], pull(wanted, scores)[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_two_groups_are_a_ranking_of_two_grades(constraint: Any) -> None:
    scores, where = drawn(6, 9).requires_grad_(), drawn(6, 9, seed=1) > -0.8
    relevance = (drawn(6, 9, seed=2) > -0.5).double()
    two = AFTLoss(constraint=constraint, reduction="none")(scores, relevance, where)
    graded = RankedAFTLoss(constraint=constraint, reduction="none")(scores, relevance, where)
    torch.testing.assert_close(two, graded, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pull(two, scores)[0], pull(graded, scores)[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", [AFTLoss, RankedAFTLoss])
def test_without_a_constraint_the_gradient_is_the_derivative(kind: type) -> None:
    scores, relevance = drawn(3, 6).requires_grad_(), torch.tensor([[2, 0, 1, 0, 1, 2]]).expand(3, 6)
    loss = kind(constraint="none")
    assert loss.value_is_the_loss
    assert torch.autograd.gradcheck(lambda s: loss(s, relevance), (scores,), eps=1e-7)
    assert not kind().value_is_the_loss
    assert not kind(constraint="boundary").value_is_the_loss


@pytest.mark.parametrize("kind", [AFTLoss, RankedAFTLoss])
def test_the_detached_value_is_the_plain_one(kind: type) -> None:
    scores, relevance = drawn(5, 7), torch.tensor([[2, 0, 1, 0, 1, 2, 0]]).expand(5, 7)
    torch.testing.assert_close(
        kind(constraint="detach")(scores, relevance), kind(constraint="none")(scores, relevance), rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", [AFTLoss, RankedAFTLoss])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_shifts_and_order_change_nothing(kind: type, constraint: str) -> None:
    scores, relevance = drawn(5, 7), torch.tensor([[2, 0, 1, 0, 1, 2, 0]]).expand(5, 7)
    loss = kind(constraint=constraint, reduction="none")
    wanted = loss(scores, relevance)
    torch.testing.assert_close(loss(scores - 3, relevance), wanted, rtol=1e-12, atol=1e-12)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(scores[:, order], relevance[:, order]), wanted, rtol=1e-12, atol=1e-12)


def test_one_of_each_is_ranknet() -> None:
    scores, relevance = drawn(9, 2), torch.tensor([[1, 0]]).expand(9, 2)
    wanted = F.softplus(scores[:, 1] - scores[:, 0])
    torch.testing.assert_close(AFTLoss(constraint="none", reduction="none")(scores, relevance), wanted)
    torch.testing.assert_close(PairwiseLogisticLoss(reduction="none")(scores, relevance), wanted)


def test_the_boundary_pulls_up_below_and_pushes_down_above() -> None:
    scores = torch.cat([drawn(50, 3, scale=2), drawn(50, 6, seed=1, scale=4)], dim=1)
    relevance = torch.tensor([[1] * 3 + [0] * 6]).expand(50, 9)
    found = list_score_gradients(AFTLoss(constraint="boundary", beta=0.4), scores, relevance)[:, 3:]
    above = scores[:, 3:] - (scores[:, :3].amin(dim=1, keepdim=True) - 0.4)
    assert (found.sign() == above.sign()).all()
    assert {-1.0, 1.0} <= set(found.sign().flatten().tolist())


def test_the_boundary_and_the_worst_right_answer_are_constants() -> None:
    """Right answers are pulled by the plain pairs alone: the added term has no gradient on them."""
    scores, relevance = tensor(-0.5, -0.8, -0.6, -1.2), tensor(1, 1, 0, 0)
    plain = AFTLoss(constraint="none")
    bounded = AFTLoss(constraint="boundary")
    ratio = math.exp(plain(scores, relevance).item() - bounded(scores, relevance).item())
    of_right = list_score_gradients(bounded, scores, relevance)[:2]
    torch.testing.assert_close(of_right, ratio * list_score_gradients(plain, scores, relevance)[:2])


def test_a_wide_boundary_is_no_constraint() -> None:
    scores, relevance = drawn(4, 6), torch.tensor([[1, 1, 0, 0, 0, 1]]).expand(4, 6)
    for kind in (AFTLoss, RankedAFTLoss):
        wide, plain = kind(constraint="boundary", beta=50), kind(constraint="none")
        assert wide(scores, relevance).item() == pytest.approx(plain(scores, relevance).item(), abs=1e-12)
        torch.testing.assert_close(
            list_score_gradients(wide, scores, relevance), list_score_gradients(plain, scores, relevance)
        )
        # Of no width, it is the worst right answer itself that wrong ones are pulled to.
        narrow = kind(constraint="boundary", beta=0)
        equal = tensor(-0.3, -0.9, -0.9)
        assert list_score_gradients(narrow, equal, tensor(1, 1, 0))[2].abs() < 1e-15


@pytest.mark.parametrize("kind", [AFTLoss, RankedAFTLoss])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_questions_without_a_pair_add_zero_to_the_mean(kind: type, constraint: str) -> None:
    scores = drawn(4, 3).requires_grad_()
    relevance = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]])
    where = torch.tensor([[True] * 3, [True] * 3, [True] * 3, [False] * 3])
    losses = kind(constraint=constraint, reduction="none")(scores, relevance, where)
    assert losses[:2].tolist() == [0, 0]
    assert losses[2] > 0
    mean = kind(constraint=constraint)(scores, relevance, where)
    torch.testing.assert_close(mean, losses[2] / 3)  # the one without answers is no question
    (found,) = pull(mean, scores)
    assert found.isfinite().all()
    assert (found[[0, 1, 3]] == 0).all()


@pytest.mark.parametrize("kind", [AFTLoss, RankedAFTLoss])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_scores_that_overflow_a_naive_form(kind: type, constraint: str) -> None:
    scores = torch.tensor([-120.0, -0.1, -0.2, -100.0], requires_grad=True)
    relevance = torch.tensor([1, 1, 0, 0])
    value = kind(constraint=constraint)(scores, relevance)
    assert value.item() == pytest.approx(119.8 if constraint != "boundary" else 140.0, rel=0.2)
    assert pull(value, scores)[0].isfinite().all()
    wanted = double_sum(scores.detach().double(), relevance, constraint)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_functions_of_flat_scores(constraint: Any) -> None:
    scores, questions = drawn(9), torch.tensor([0, 1, 0, 2, 1, 0, 2, 1, 0])
    right = torch.tensor([True, False, False, True, True, True, True, False, False])
    ranks = torch.tensor([2, 1, 1, 1, 3, 3, 2, 2, 2])
    two = aft_losses(scores, right, questions, constraint=constraint, beta=0.2)
    graded = ranked_aft_losses(scores, ranks, questions, constraint=constraint, beta=0.2)
    for question in range(3):
        own = questions == question
        wanted = double_sum(scores[own], right[own].double(), constraint, beta=0.2)
        assert two[question].item() == pytest.approx(wanted.item(), abs=1e-12)
        wanted = double_sum(scores[own], -ranks[own], constraint, beta=0.2)
        assert graded[question].item() == pytest.approx(wanted.item(), abs=1e-12)


def test_answers_without_a_gradient() -> None:
    relevance = torch.tensor([[2, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    where = torch.tensor([[True, True, True, True], [True] * 4, [True] * 3 + [False]])
    better = [[True, False, True, False], [False] * 4, [False] * 4]
    for kind, constraint in itertools.product((AFTLoss, RankedAFTLoss), CONSTRAINTS):
        loss = kind(constraint=constraint)
        receives = loss.receives_gradient(relevance, where)
        assert receives.tolist() == (better if constraint == "detach" else where.tolist())
        scores = drawn(3, 4)
        assert (list_score_gradients(loss, scores, relevance, where=where)[~receives] == 0).all()


def test_relevance_of_ranks() -> None:
    assert relevance_of_ranks(torch.tensor([3, 1, 2, 3])).tolist() == [0, 2, 1, 0]
    where = torch.tensor([True, True, False, True])
    assert relevance_of_ranks(torch.tensor([3, 1, 99, 2]), where).tolist() == [0, 2, 0, 1]
    for ranks in (torch.tensor([1.0]), torch.tensor([True]), torch.empty(0, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"argument `ranks`: expected integer ranks, at least one"):
            relevance_of_ranks(ranks)
    with pytest.raises(ValueError, match="argument `where`: expected a bool tensor of shape"):
        relevance_of_ranks(torch.tensor([1, 2]), torch.tensor([1, 0]))


def test_mean_log_probabilities() -> None:
    sums, tokens = torch.tensor([-6.0, -1.0], dtype=torch.bfloat16), torch.tensor([3, 4])
    found = mean_log_probabilities(sums, tokens)
    assert found.dtype == torch.float32
    assert found.tolist() == [-2, -0.25]
    with pytest.raises(ValueError, match="argument `tokens`: expected at least one token per answer, got 0"):
        mean_log_probabilities(sums, torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="argument `tokens`: expected one token count per answer"):
        mean_log_probabilities(sums, torch.tensor([3]))


@pytest.mark.parametrize("kind", [AFTLoss, RankedAFTLoss])
def test_what_is_refused(kind: type) -> None:
    for options, message in (
        ({"constraint": "both"}, "argument `constraint`: expected one of 'none', 'detach', 'boundary', got 'both'"),
        ({"beta": -0.1}, "argument `beta`: expected a finite number >= 0"),
        ({"beta": math.nan}, "argument `beta`: expected a finite number >= 0"),
    ):
        with pytest.raises(ValueError, match="^" + message):
            kind(**options)
    assert repr(kind(constraint="boundary")) == f"{kind.__name__}(constraint='boundary', beta=0.15, reduction='mean')"
    assert "2309.02144" in citation(kind() + 0.5 * kind(constraint="none"))
