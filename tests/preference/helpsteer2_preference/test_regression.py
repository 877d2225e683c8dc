"""Masked regression and the head that it leaves to the reward model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scorecraft.core import across_ranks
from scorecraft.preference.helpsteer2_preference import (
    ATTRIBUTES,
    MaskedRegressionLoss,
    attribute_rewards,
    reward_head,
    reward_head_state,
)

PREDICTIONS = torch.tensor([[2.5, 1.0], [0.5, 3.0]], dtype=torch.float64)
TARGETS = torch.tensor([[3, 1.5], [-100, 2]], dtype=torch.float64)


def test_check_value() -> None:
    assert MaskedRegressionLoss()(PREDICTIONS, TARGETS).item() == 0.5


def test_a_rating_that_is_missing_is_worth_nothing() -> None:
    predictions = PREDICTIONS.clone().requires_grad_()
    each = MaskedRegressionLoss(reduction="none")(predictions, TARGETS)
    assert each.tolist() == [[0.25, 0.25], [0.0, 1.0]]
    (pull,) = torch.autograd.grad(MaskedRegressionLoss()(predictions, TARGETS), predictions)
    torch.testing.assert_close(pull, torch.tensor([[-1 / 3, -1 / 3], [0.0, 2 / 3]], dtype=torch.float64))
    assert MaskedRegressionLoss(reduction="sum")(PREDICTIONS, TARGETS).item() == 1.5


def test_one_attribute_alone() -> None:
    assert MaskedRegressionLoss(attributes=(0,))(PREDICTIONS, TARGETS).item() == 0.25
    assert MaskedRegressionLoss(attributes=(1,))(PREDICTIONS, TARGETS).item() == 0.625
    masked = TARGETS.clone()
    masked[:, 0] = -100
    assert MaskedRegressionLoss()(PREDICTIONS, masked).item() == 0.625


def test_another_mask_value_and_integer_ratings() -> None:
    loss = MaskedRegressionLoss(mask_value=-1)
    assert loss(PREDICTIONS, torch.tensor([[3, -1], [-1, 2]])).item() == pytest.approx((0.25 + 1) / 2)


def test_weights_of_answers() -> None:
    weights = torch.tensor([2.0, 1.0], dtype=torch.float64)
    expected = (2 * 0.25 + 2 * 0.25 + 1) / 5
    assert MaskedRegressionLoss()(PREDICTIONS, TARGETS, weights=weights).item() == pytest.approx(expected)


def test_parts_of_a_batch_add_up_by_their_count() -> None:
    whole = MaskedRegressionLoss()(PREDICTIONS, TARGETS)
    total = MaskedRegressionLoss(reduction="sum")
    parts = sum(total(PREDICTIONS[row, None], TARGETS[row, None]) for row in range(2))
    assert (parts / total.rated(TARGETS).sum()).item() == whole.item()
    means = [MaskedRegressionLoss()(PREDICTIONS[row, None], TARGETS[row, None]).item() for row in range(2)]
    assert sum(means) / 2 != whole.item()


def test_objectives_add() -> None:
    both = MaskedRegressionLoss(attributes=(0,)) + 2 * MaskedRegressionLoss(attributes=(1,))
    assert both(PREDICTIONS, TARGETS).item() == 0.25 + 2 * 0.625
    assert across_ranks(both)(PREDICTIONS, TARGETS).item() == 0.25 + 2 * 0.625


def test_half_precision_is_computed_in_float32() -> None:
    predictions = torch.tensor([[3.0]], dtype=torch.bfloat16)
    loss = MaskedRegressionLoss()(predictions, torch.tensor([[2.999]]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize(
    "predictions, targets, name",
    [
        (PREDICTIONS, torch.tensor([3.0, 2.0]), "targets"),  # would broadcast
        (PREDICTIONS[:, 0], TARGETS[:, 0], "predictions"),
        (PREDICTIONS[:, :1], TARGETS, "targets"),
        (PREDICTIONS, torch.full((2, 2), -100.0), "targets"),
        (PREDICTIONS, torch.full((2, 2), torch.nan), "targets"),
        (PREDICTIONS * torch.inf, TARGETS, "predictions"),
        (PREDICTIONS.long(), TARGETS, "predictions"),
    ],
)
def test_what_is_refused(predictions: Tensor, targets: Tensor, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^argument `{name}`: expected [^\n]*$"):
        MaskedRegressionLoss()(predictions, targets)


@pytest.mark.parametrize("attributes", [(), (1, 1), (-1,), (2,)])
def test_attributes_that_are_refused(attributes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^argument `attributes`: expected"):
        MaskedRegressionLoss(attributes=attributes)(PREDICTIONS, TARGETS)


def test_gradient() -> None:
    predictions = PREDICTIONS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda at: MaskedRegressionLoss()(at, TARGETS), (predictions,))


def test_helpfulness_is_slot_four_of_nine() -> None:
    assert len(ATTRIBUTES) == 9
    assert ATTRIBUTES[4] == "helpfulness"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weights", [None, [0.0, 1.0, 0.5, -2.0, 0.25]])
def test_a_head_of_one_output_gives_the_reward_of_the_regression(bias: bool, weights: list[float] | None) -> None:
    torch.manual_seed(0)
    head, states = nn.Linear(6, 5, bias=bias).double(), torch.randn(8, 6, dtype=torch.float64)
    expected = attribute_rewards(head(states), slot=4, weights=weights)
    taken = reward_head(head, slot=4, weights=weights)
    assert taken.weight.shape == (1, 6)
    torch.testing.assert_close(taken(states)[:, 0], expected, rtol=0, atol=1e-6)
    model = nn.ModuleDict({"body": nn.Linear(6, 6), "score": head})
    state = reward_head_state(model.state_dict(), head="score", slot=4, weights=weights)
    fresh = nn.ModuleDict({"body": nn.Linear(6, 6), "score": nn.Linear(6, 1, bias=bias)}).double()
    fresh.load_state_dict(state)
    torch.testing.assert_close(fresh["score"](states), taken(states))
    taken.weight.data.zero_()
    assert head.weight.any()  # it is a copy


def test_heads_that_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^argument `slot`: expected an output below 3"):
        reward_head(nn.Linear(4, 3), slot=4)
    with pytest.raises(ValueError, match=r"^argument `weights`: expected 3 numbers"):
        reward_head(nn.Linear(4, 3), weights=[1.0])
    with pytest.raises(ValueError, match=r"^argument `head`: expected a name"):
        reward_head_state({"a.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"^argument `predictions`: expected"):
        attribute_rewards(torch.zeros(3), slot=0)
