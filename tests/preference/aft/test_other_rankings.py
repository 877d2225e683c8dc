"""RRHF, PRO and DPO with the detached constraint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scorecraft.core import DPOLoss, citation, list_score_gradients, preference_gradients
from scorecraft.preference.aft import DetachedDPOLoss, PROLoss, RRHFLoss

SCORES = torch.tensor([[-0.4, -0.7, -0.2, -0.9], [-1.0, -0.3, -0.6, -0.5]], dtype=torch.float64)
GRADES = torch.tensor([[3, 2, 1, 1], [0, 2, 2, 1]])


def rrhf(scores: Tensor, grades: Tensor, detach: bool) -> Tensor:
    total = scores.new_zeros(())
    for i in range(len(scores)):
        for j in range(len(scores)):
            if grades[i] > grades[j]:
                total = total + (scores[j].detach() if detach else scores[j]).sub(scores[i]).clamp(min=0)
    return total


def pro(scores: Tensor, grades: Tensor, detach: bool) -> Tensor:
    order = sorted(range(len(scores)), key=lambda place: -int(grades[place]))
    total = scores.new_zeros(())
    for k, place in enumerate(order):
        rest = [scores[other].detach() if detach else scores[other] for other in order[k + 1 :]]
        total = total + torch.stack([scores[place], *rest]).logsumexp(dim=0) - scores[place]
    return total


@pytest.mark.parametrize("kind, formula", [(RRHFLoss, rrhf), (PROLoss, pro)])
@pytest.mark.parametrize("constraint", ["none", "detach"])
def test_formula_and_gradient(kind: Any, formula: Any, constraint: str) -> None:
    scores = SCORES.clone().requires_grad_()
    found = kind(constraint=constraint, reduction="none")(scores, GRADES)
    wanted = torch.stack(
        [formula(row, grades, constraint == "detach") for row, grades in zip(scores, GRADES, strict=True)]
    )
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), scores)[0],
        torch.autograd.grad(wanted.sum(), scores)[0],
        rtol=1e-12,
        atol=1e-12,
    )


def test_values_by_hand() -> None:
    # (-0.7, -0.2, -0.9) below -0.4, then (-0.2, -0.9) below -0.7: 0.2 and 0.5 are in the wrong order.
    assert RRHFLoss(reduction="none")(SCORES, GRADES)[0].item() == pytest.approx(0.7, abs=1e-12)
    one = torch.tensor([0.0, 0.0], dtype=torch.float64)
    assert PROLoss()(one, torch.tensor([1, 0])).item() == pytest.approx(0.6931471805599453, abs=1e-15)


@pytest.mark.parametrize("kind", [RRHFLoss, PROLoss])
def test_the_constraint_keeps_the_value_and_lowers_nothing(kind: Any) -> None:
    plain, detached = kind(), kind(constraint="detach")
    assert plain.value_is_the_loss
    assert not detached.value_is_the_loss
    assert plain(SCORES, GRADES) == detached(SCORES, GRADES)
    assert (list_score_gradients(plain, SCORES, GRADES) > 0).any()
    assert (list_score_gradients(detached, SCORES, GRADES) <= 0).all()


def test_ties_of_pro_stand_in_the_order_in_which_they_come() -> None:
    loss = PROLoss()
    first, second = torch.tensor([-0.2, -0.9, -0.5]), torch.tensor([-0.9, -0.2, -0.5])
    grades = torch.tensor([1, 1, 0])
    assert loss(first, grades) < loss(second, grades)
    assert not PROLoss.order_invariant
    # A mask in between changes no order.
    spread = torch.tensor([-0.2, 7.0, -0.9, -0.5])
    where = torch.tensor([True, False, True, True])
    torch.testing.assert_close(loss(spread, torch.tensor([1, 5, 1, 0]), where), loss(first, grades))


@pytest.mark.parametrize("kind", [RRHFLoss, PROLoss])
@pytest.mark.parametrize("constraint", ["none", "detach"])
def test_equal_grades_are_no_ranking(kind: Any, constraint: str) -> None:
    scores = SCORES.clone().requires_grad_()
    loss = kind(constraint=constraint, reduction="none")
    losses = loss(scores, torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]))
    assert losses.tolist() == [0, 0]
    (pull,) = torch.autograd.grad(losses.sum(), scores)
    assert (pull == 0).all()
    mixed = torch.stack([GRADES[0], torch.ones(4, dtype=torch.long)])
    assert kind(constraint=constraint)(SCORES, mixed).item() == pytest.approx(loss(SCORES, mixed)[0].item() / 2)


@pytest.mark.parametrize("kind", [RRHFLoss, PROLoss])
def test_answers_without_a_gradient(kind: Any) -> None:
    where = torch.tensor([[True] * 4, [True, True, False, True]])
    loss = kind(constraint="detach")
    receives = loss.receives_gradient(GRADES, where)
    assert (list_score_gradients(loss, SCORES, GRADES, where=where)[~receives] == 0).all()
    assert not receives.all(dim=1).any()
    assert kind().receives_gradient(GRADES, where).equal(where)
    if kind is PROLoss:
        assert receives.tolist() == [[True, True, True, False], [False, True, False, True]]
    assert not loss.receives_gradient(torch.ones(2, 4), where).any()


def test_boundary_is_not_defined_for_them() -> None:
    for kind in (RRHFLoss, PROLoss):
        with pytest.raises(ValueError, match="argument `constraint`: expected one of 'none', 'detach', got 'boundary'"):
            kind(constraint="boundary")
        assert "constraint='detach'" in repr(kind(constraint="detach"))


def test_dpo_through_the_preferred_answer_alone() -> None:
    chosen, rejected = torch.tensor([-3.0, -5.0]), torch.tensor([-2.0, -9.0])
    reference = {"reference_chosen": torch.tensor([-3.5, -5.5]), "reference_rejected": torch.tensor([-3.0, -8.0])}
    plain, detached = DPOLoss(beta=0.3), DetachedDPOLoss(beta=0.3)
    assert plain(chosen, rejected, **reference) == detached(chosen, rejected, **reference)
    of_chosen, of_rejected = preference_gradients(plain, chosen, rejected, **reference)
    found = preference_gradients(detached, chosen, rejected, **reference)
    torch.testing.assert_close(found[0], of_chosen)
    assert of_rejected.gt(0).all()
    assert (found[1] == 0).all()
    assert not detached.value_is_the_loss
    assert "2309.02144" in citation(detached)
    with pytest.raises(ValueError, match="argument `beta`: expected a finite number > 0"):
        DetachedDPOLoss(beta=0)
