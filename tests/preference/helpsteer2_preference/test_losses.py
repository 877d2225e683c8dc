"""Strength-aware Bradley-Terry losses: check values, the options of ties and of the mean, and the numerical traps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scorecraft.core import BradleyTerryLoss, DPOLoss, PreferenceObjective, across_ranks, preference_gradients
from scorecraft.preference.helpsteer2_preference import (
    MarginBradleyTerryLoss,
    MarginDPOLoss,
    ScaledBradleyTerryLoss,
    ScaledDPOLoss,
    accuracy_by_strength,
    by_signed_strength,
    pair_accuracy,
)

ALL = (MarginBradleyTerryLoss, ScaledBradleyTerryLoss, MarginDPOLoss, ScaledDPOLoss)
ON_REWARDS = ALL[:2]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rewards(pairs: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = torch.randn(2, pairs, generator=generator, dtype=torch.float64)
    return chosen, rejected, torch.randint(1, 4, (pairs,), generator=generator)


def call(objective: PreferenceObjective, z: Tensor, strength: Tensor) -> Tensor:
    """The loss at differences `z`, whatever the objective reads."""
    if objective.reads == "rewards":
        return objective(z, torch.zeros_like(z), strength=strength)
    # beta (log p(c) - log p(r) - 0) = z with both log-probabilities below 0.
    scaled = z / objective.beta
    zero = torch.zeros_like(z)
    lowest = scaled.detach().abs().max() + 1
    return objective(scaled - lowest, zero - lowest, reference_chosen=zero, reference_rejected=zero, strength=strength)


@pytest.mark.parametrize(
    "objective, value, slope",
    [
        (BradleyTerryLoss(), 0.4740769841801067, -0.3775406687981454),
        (MarginBradleyTerryLoss(), 1.7014132779827524, -0.8175744761936437),
        (ScaledBradleyTerryLoss(), 0.9481539683602134, -0.7550813375962908),
    ],
)
def test_check_values(objective: PreferenceObjective, value: float, slope: float) -> None:
    z = tensor(0.5).requires_grad_()
    loss = call(objective, z, torch.tensor([2]))
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() == pytest.approx(value, abs=1e-14)
    assert gradient.item() == pytest.approx(slope, abs=1e-14)


@pytest.mark.parametrize("of_rewards, of_log_ratios", [(ON_REWARDS[0], ALL[2]), (ON_REWARDS[1], ALL[3])])
def test_on_log_ratios_it_is_the_same_loss(of_rewards: type, of_log_ratios: type) -> None:
    z = tensor(0.5, -2.0, 3.0)
    strength = torch.tensor([2, 1, 3])
    expected = call(of_rewards(), z, strength)
    torch.testing.assert_close(call(of_log_ratios(beta=0.3), z, strength), expected, rtol=0, atol=1e-12)


def test_strength_one_is_plain_bradley_terry_and_dpo() -> None:
    chosen, rejected, _ = rewards()
    ones = torch.ones(7)
    plain = BradleyTerryLoss()(chosen, rejected)
    assert torch.equal(ScaledBradleyTerryLoss()(chosen, rejected, strength=ones), plain)
    logs = {"reference_chosen": chosen - 5, "reference_rejected": rejected - 4}
    scaled = ScaledDPOLoss(beta=0.2)(chosen - 9, rejected - 9, strength=ones, **logs)
    torch.testing.assert_close(scaled, DPOLoss(beta=0.2)(chosen - 9, rejected - 9, **logs), rtol=0, atol=1e-14)


def test_margin_zero_is_plain_bradley_terry_where_ties_are_kept() -> None:
    chosen, rejected, _ = rewards()
    loss = MarginBradleyTerryLoss(ties="response_2")(chosen, rejected, strength=torch.zeros(7))
    assert torch.equal(loss, BradleyTerryLoss()(chosen, rejected))


def test_scaling_is_drawing_a_pair_as_often() -> None:
    chosen, rejected, strength = rewards()
    total = ScaledBradleyTerryLoss(reduction="sum")
    pulls = preference_gradients(total, chosen, rejected, strength=strength)
    owners = torch.arange(7).repeat_interleave(strength)
    repeated = preference_gradients(BradleyTerryLoss(reduction="sum"), chosen[owners], rejected[owners])
    for pull, of_copies in zip(pulls, repeated, strict=True):
        torch.testing.assert_close(pull, torch.zeros(7).double().index_add(0, owners, of_copies), rtol=0, atol=1e-13)
    by_weight = ScaledBradleyTerryLoss(normalize="weights")(chosen, rejected, strength=strength)
    torch.testing.assert_close(by_weight, BradleyTerryLoss()(chosen[owners], rejected[owners]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ON_REWARDS)
def test_a_constant_on_all_rewards_changes_nothing(kind: type) -> None:
    chosen, rejected, strength = rewards()
    loss = kind()(chosen, rejected, strength=strength)
    torch.testing.assert_close(kind()(chosen + 2.5, rejected + 2.5, strength=strength), loss, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_far_on_the_wrong_side(dtype: torch.dtype) -> None:
    z = torch.tensor([-70.0], dtype=dtype, requires_grad=True)
    scaled = ScaledBradleyTerryLoss()(z, torch.zeros_like(z), strength=torch.tensor([3]))
    (slope,) = torch.autograd.grad(scaled, z)
    assert (scaled.item(), slope.item()) == (210.0, -3.0)
    assert MarginBradleyTerryLoss()(z, torch.zeros_like(z), strength=torch.tensor([3])).item() == 73.0


def test_margin_asks_for_a_distance_and_scaling_does_not() -> None:
    z = tensor(1.0)
    for strength in (1.0, 3.0):
        margin, _ = preference_gradients(MarginBradleyTerryLoss(), z, 0 * z, strength=tensor(strength))
        scaled, _ = preference_gradients(ScaledBradleyTerryLoss(), z, 0 * z, strength=tensor(strength))
        assert margin.item() == pytest.approx(-1 / (1 + math.exp(1 - strength)), abs=1e-14)
        assert scaled.item() == pytest.approx(-strength / (1 + math.exp(1)), abs=1e-14)


# A tie at z = 0.5 beside a pair of strength 2 at z = 1.
PAIR = {MarginBradleyTerryLoss: math.log1p(math.exp(1)), ScaledBradleyTerryLoss: 2 * math.log1p(math.exp(-1))}
HALF = (math.log1p(math.exp(0.5)) + math.log1p(math.exp(-0.5))) / 2
TIE = {MarginBradleyTerryLoss: math.log1p(math.exp(-0.5)), ScaledBradleyTerryLoss: 0.0}


@pytest.mark.parametrize("kind", ON_REWARDS)
def test_what_a_tie_is_worth(kind: type) -> None:
    chosen, rejected, strength = tensor(1.0, 0.5), tensor(0.0, 0.0), torch.tensor([2, 0])

    def losses(**options: str) -> tuple[list[float], float]:
        each = kind(reduction="none", **options)(chosen, rejected, strength=strength)
        return each.tolist(), kind(**options)(chosen, rejected, strength=strength).item()

    each, mean = losses()
    assert each == pytest.approx([PAIR[kind], 0.0], abs=1e-14)
    assert mean == pytest.approx(PAIR[kind], abs=1e-14)
    each, mean = losses(ties="half")
    assert each == pytest.approx([PAIR[kind], HALF], abs=1e-14)
    assert mean == pytest.approx((PAIR[kind] + HALF) / 2, abs=1e-14)
    each, mean = losses(ties="response_2")
    assert each == pytest.approx([PAIR[kind], TIE[kind]], abs=1e-14)
    assert mean == pytest.approx((PAIR[kind] + TIE[kind]) / 2, abs=1e-14)


def test_the_mean_by_weights_counts_a_half_tie_once() -> None:
    chosen, rejected, strength = tensor(1.0, 0.5), tensor(0.0, 0.0), torch.tensor([2, 0])
    of_pair = PAIR[ScaledBradleyTerryLoss]

    def mean(ties: str) -> float:
        loss = ScaledBradleyTerryLoss(ties=ties, normalize="weights")  # type: ignore[arg-type]
        return loss(chosen, rejected, strength=strength).item()

    assert mean("half") == pytest.approx((of_pair + HALF) / 3, abs=1e-14)
    assert mean("drop") == mean("response_2") == pytest.approx(of_pair / 2, abs=1e-14)


@pytest.mark.parametrize("kind", ALL)
def test_ties_alone_are_a_loss_of_zero_with_a_gradient_of_zero(kind: type) -> None:
    z = tensor(0.5, -1.0).requires_grad_()
    loss = call(kind(), z, torch.zeros(2))
    (slope,) = torch.autograd.grad(loss, z)
    assert loss.item() == 0
    assert slope.tolist() == [0, 0]


def test_weights_of_pairs_and_strengths_multiply() -> None:
    chosen, rejected, strength = rewards(3)
    weights = tensor(1.0, 0.0, 2.0)
    each = ScaledBradleyTerryLoss(reduction="none")(chosen, rejected, strength=strength)
    by_pairs = ScaledBradleyTerryLoss()(chosen, rejected, strength=strength, weights=weights)
    torch.testing.assert_close(by_pairs, (each * weights).sum() / 3, rtol=0, atol=1e-14)
    by_weights = ScaledBradleyTerryLoss(normalize="weights")(chosen, rejected, strength=strength, weights=weights)
    torch.testing.assert_close(by_weights, (each * weights).sum() / (weights * strength).sum(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("ties", ["drop", "half", "response_2"])
def test_gradients(kind: type, ties: str) -> None:
    z = tensor(0.5, -2.0, 3.0, 0.1).requires_grad_()
    strength = tensor(2.0, 1.0, 0.5, 0.0)
    assert torch.autograd.gradcheck(lambda at: call(kind(ties=ties), at, strength), (z,))


def test_objectives_add_and_scale() -> None:
    chosen, rejected, strength = rewards()
    both = ScaledBradleyTerryLoss() + 0.5 * BradleyTerryLoss()
    assert both.needs_strength
    expected = ScaledBradleyTerryLoss()(chosen, rejected, strength=strength) + 0.5 * BradleyTerryLoss()(
        chosen, rejected
    )
    torch.testing.assert_close(both(chosen, rejected, strength=strength), expected)
    torch.testing.assert_close(across_ranks(both)(chosen, rejected, strength=strength), expected)


def test_per_token() -> None:
    logs = [tensor(-8.0, -3.0), tensor(-6.0, -9.0), tensor(-7.0, -4.0), tensor(-7.0, -8.0)]
    tokens = torch.tensor([4, 3]), torch.tensor([2, 5])
    strength = torch.tensor([2, 3])
    by_hand = [one / count for one, count in zip(logs, (*tokens, *tokens), strict=True)]
    for kind in (MarginDPOLoss, ScaledDPOLoss):
        found = kind(average_log_probabilities=True)(
            logs[0], logs[1], reference_chosen=logs[2], reference_rejected=logs[3], chosen_tokens=tokens[0],
            rejected_tokens=tokens[1], strength=strength,
        )  # fmt: skip
        expected = kind()(
            by_hand[0], by_hand[1], reference_chosen=by_hand[2], reference_rejected=by_hand[3], strength=strength
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ON_REWARDS)
@pytest.mark.parametrize("strength", [None, [-1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0], [1.0]])
def test_strengths_that_are_refused(kind: type, strength: list[float] | None) -> None:
    with pytest.raises(ValueError, match=r"^argument `strength`: expected .*, got [^\n]*$"):
        kind()(torch.zeros(2), torch.zeros(2), strength=None if strength is None else torch.tensor(strength))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: MarginBradleyTerryLoss(ties="keep"), "ties"),  # type: ignore[arg-type]
        (lambda: ScaledBradleyTerryLoss(ties="keep"), "ties"),  # type: ignore[arg-type]
        (lambda: ScaledBradleyTerryLoss(normalize="n"), "normalize"),  # type: ignore[arg-type]
        (lambda: ScaledDPOLoss(beta=0.0), "beta"),
        (lambda: MarginDPOLoss(beta=-1.0), "beta"),
    ],
)
def test_options_that_are_refused(make, name: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=f"^argument `{name}`: expected"):
        make()


def test_signed_strengths_put_the_better_response_first() -> None:
    first, second = tensor(1.0, 2.0, 3.0), tensor(10.0, 20.0, 30.0)
    pairs = by_signed_strength(first, second, torch.tensor([-3, 2, 0]))
    assert pairs.chosen.tolist() == [1, 20, 30]
    assert pairs.rejected.tolist() == [10, 2, 3]
    assert pairs.strength.tolist() == [3, 2, 0]
    assert pairs.tied.tolist() == [False, False, True]
    tokens = torch.arange(6).view(3, 2)
    assert by_signed_strength(tokens, tokens + 10, torch.tensor([1, -1, 1])).chosen.tolist() == [
        [10, 11], [2, 3], [14, 15]
    ]  # fmt: skip
    plain = BradleyTerryLoss()(pairs.chosen, pairs.rejected, weights=(~pairs.tied).double())
    assert plain.item() == pytest.approx((math.log1p(math.exp(9)) + math.log1p(math.exp(-18))) / 2)


@pytest.mark.parametrize(
    "second, strength, name",
    [
        (torch.zeros(2), torch.zeros(3), "response_2"),
        (torch.zeros(3), torch.zeros(2), "strength"),
        (torch.zeros(3), torch.tensor([1.0, math.nan, 2.0]), "strength"),
    ],
)
def test_signed_strengths_that_are_refused(second: Tensor, strength: Tensor, name: str) -> None:
    with pytest.raises(ValueError, match=f"^argument `{name}`: expected"):
        by_signed_strength(torch.zeros(3), second, strength)


def test_accuracy_by_strength() -> None:
    chosen, rejected = tensor(1.0, 2.0, 3.0, 0.0), tensor(0.0, 3.0, 1.0, 0.0)
    assert pair_accuracy(chosen, rejected) == (2, 4)
    assert pair_accuracy(chosen, rejected).share == 0.5
    by_strength = accuracy_by_strength(chosen, rejected, torch.tensor([3, 1, 1, 3]))
    assert list(by_strength.items()) == [(1, (1, 2)), (3, (1, 2))]
    with pytest.raises(ValueError, match=r"^argument `strength`: expected"):
        accuracy_by_strength(chosen, rejected, torch.ones(3))
    with pytest.raises(ValueError, match=r"^argument `rejected`: expected"):
        pair_accuracy(chosen, rejected[:3])
