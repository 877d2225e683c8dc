"""Connectives of independent properties, against sums over all outcomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from scorecraft.preference.reward_transform import (
    Judgement,
    all_of,
    any_of,
    at_least,
    judged,
    log_sigmoid_centred,
    log_sigmoid_sum,
    negated,
)

DOUBLE = torch.float64


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=DOUBLE)


def random(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def by_enumeration(odds: Tensor, is_good: Callable[[int], bool]) -> float:
    """The probability of a statement about the number of properties that hold, over all outcomes."""
    p = odds.sigmoid().tolist()
    outcomes = product((0, 1), repeat=len(p))
    return sum(
        math.prod(one if held else 1 - one for one, held in zip(p, outcome, strict=True))
        for outcome in outcomes
        if is_good(sum(outcome))
    )


def adds_up(found: Judgement) -> None:
    torch.testing.assert_close(found.good.exp() + found.bad.exp(), torch.ones_like(found.good), rtol=1e-12, atol=0)


def test_check_value() -> None:
    found = log_sigmoid_sum(values(0.3, -1.0), 0.0)
    assert found.item() == pytest.approx(-1.86761693198675, rel=1e-14)
    assert found.exp().item() == pytest.approx(0.15449138696668488, rel=1e-14)


def test_the_sum_is_the_log_of_the_product() -> None:
    rewards, reference = random(50, 3), random(50, 3, seed=1)
    product_of = (rewards - reference).sigmoid().prod(dim=1)
    torch.testing.assert_close(log_sigmoid_sum(rewards, reference).exp(), product_of, rtol=1e-13, atol=0)
    weights = values(2, 0.5, 0)
    weighted = ((rewards - reference).sigmoid() ** weights).prod(dim=1)
    torch.testing.assert_close(log_sigmoid_sum(rewards, reference, weights=weights).exp(), weighted, rtol=1e-13, atol=0)
    scaled = log_sigmoid_sum(rewards, reference, scale=values(1, 2, 0.5))
    each = [log_sigmoid_centred(rewards[:, i], reference[:, i], scale=a) for i, a in enumerate((1, 2, 0.5))]
    torch.testing.assert_close(scaled, sum(each), rtol=1e-13, atol=0)


def test_one_bad_property_dominates_where_raw_rewards_buy_it_off() -> None:
    lopsided, even = values(30, -5), values(1, 1)
    assert lopsided.sum() > even.sum()
    assert log_sigmoid_sum(lopsided, 0.0) < log_sigmoid_sum(even, 0.0)


def test_a_large_scale_makes_it_an_and_of_thresholds() -> None:
    rewards = random(200, 3)
    both = (rewards > 0.2).all(dim=1).double()
    torch.testing.assert_close(log_sigmoid_sum(rewards, 0.2, scale=1e5).exp(), both, rtol=0, atol=1e-9)


@pytest.mark.parametrize("properties", [1, 2, 4])
def test_connectives_against_all_outcomes(properties: int) -> None:
    odds = random(12, properties)
    judgement = judged(odds, 0.0)
    connectives: list[tuple[Judgement, Callable[[int], bool]]] = [
        (all_of(judgement), lambda held: held == properties),
        (any_of(judgement), lambda held: held > 0),
        *((at_least(judgement, k), lambda held, k=k: held >= k) for k in range(properties + 1)),
    ]
    for found, is_good in connectives:
        wanted = [by_enumeration(row, is_good) for row in odds]
        assert found.good.exp().tolist() == pytest.approx(wanted, rel=1e-11)
        adds_up(found)


def test_laws() -> None:
    judgement = judged(random(20, 3), 0.0)
    for part in (0, 1):
        torch.testing.assert_close(at_least(judgement, 1)[part], any_of(judgement)[part], rtol=1e-12, atol=0)
        torch.testing.assert_close(at_least(judgement, 3)[part], all_of(judgement)[part], rtol=1e-12, atol=0)
        # De Morgan.
        torch.testing.assert_close(
            negated(any_of(judgement))[part], all_of(negated(judgement))[part], rtol=1e-12, atol=0
        )
    assert torch.equal(negated(judgement).good, log_sigmoid_centred(-random(20, 3), 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_both_sides_keep_their_digits_far_out(dtype: torch.dtype) -> None:
    rounding = 8 * torch.finfo(dtype).eps
    far = torch.tensor([[60.0, 61.0, 62.0], [-60.0, -61.0, -62.0]], dtype=dtype)
    judgement = judged(far, 0.0)
    tail = math.log(math.exp(-60) + math.exp(-61) + math.exp(-62))
    everything, anything, two = all_of(judgement), any_of(judgement), at_least(judgement, 2)
    assert everything.bad[0].item() == pytest.approx(tail, rel=rounding)
    assert everything.good[1].item() == pytest.approx(-183, rel=rounding)
    assert anything.bad[0].item() == pytest.approx(-183, rel=rounding)
    assert anything.good[1].item() == pytest.approx(tail, rel=rounding)
    # Two of three fail in the likeliest of ways, or hold.
    pair = math.log(math.exp(-121) + math.exp(-122) + math.exp(-123))
    assert two.bad[0].item() == pytest.approx(pair, rel=rounding)
    assert two.good[1].item() == pytest.approx(pair, rel=rounding)
    for found in (everything, anything, two):
        assert not found.good.isnan().any()
        assert (found.good <= 0).all()
        assert (found.bad <= 0).all()
    nested = any_of(Judgement(*(torch.stack([part, part], dim=-1) for part in everything)))
    assert nested.bad[0].item() == pytest.approx(2 * tail, rel=rounding)


@pytest.mark.parametrize("dtype, far", [(torch.float32, 98.0), (DOUBLE, 738.0)])
def test_probabilities_that_have_lost_their_digits(dtype: torch.dtype, far: float) -> None:
    """log P(good) is a denormal number there, or 0; log P(not good) is not, and comes from its own side."""
    judgement = judged(torch.tensor([far, far + 1, far + 2], dtype=dtype), 0.0)
    tail = -far + math.log(1 + math.exp(-1) + math.exp(-2))
    assert all_of(judgement).bad.item() == pytest.approx(tail, rel=4 * torch.finfo(dtype).eps)
    assert any_of(negated(judgement)).good.item() == pytest.approx(tail, rel=4 * torch.finfo(dtype).eps)
    weighted = all_of(judgement, weights=torch.tensor([0.0, 2.0, 0.0], dtype=dtype)).bad.item()
    assert weighted == pytest.approx(math.log(2) - far - 1, rel=4 * torch.finfo(dtype).eps)


def test_rewards_of_a_thousand_stay_finite() -> None:
    for rewards in (torch.tensor([1000.0, 1000.0]), torch.tensor([-1000.0, 1000.0])):
        judgement = judged(rewards.requires_grad_(), 0.0)
        for found in (all_of(judgement), any_of(judgement), at_least(judgement, 1), at_least(judgement, 2)):
            assert found.good.isfinite()
            (gradient,) = torch.autograd.grad(found.good, rewards, retain_graph=True)
            assert gradient.isfinite().all()
    assert log_sigmoid_sum(torch.tensor([-1000.0, 1000.0]), torch.tensor([1.0, 0.0])).item() == -1001


def test_gradients() -> None:
    def connectives(rewards: Tensor) -> Tensor:
        judgement = judged(rewards, 0.3, scale=1.5)
        some = torch.tensor([True, False, True]).expand_as(rewards)
        found = [
            all_of(judgement, weights=values(1, 2, 0.5)),
            any_of(judgement),
            at_least(judgement, 2),
            negated(all_of(judgement)),
            any_of(judgement, where=some),
            at_least(judgement, 2, where=some),
        ]
        return torch.stack([part for one in found for part in one])

    assert torch.autograd.gradcheck(connectives, random(3, 3).requires_grad_())


def test_what_does_not_apply_is_left_out() -> None:
    rewards = random(6, 3)
    where = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 1, 1]]).bool()
    hidden = rewards.masked_fill(~where, math.nan)
    judgement = judged(hidden, 0.0, where=where)
    connectives: list[Callable[..., Judgement]] = [all_of, any_of, lambda given, where=None: at_least(
        given, min(2, given.good.shape[-1]), where=where)]  # fmt: skip
    for connective in connectives:
        found = connective(judgement, where=where)
        for row in range(6):
            alone = connective(judged(rewards[row][where[row]], 0.0))
            assert found.good[row].item() == pytest.approx(alone.good.item(), rel=1e-13)
            assert found.bad[row].item() == pytest.approx(alone.bad.item(), rel=1e-13)
    # Not log sigmoid(0) = -0.69.
    assert log_sigmoid_sum(hidden, 0.0, where=where)[2] == log_sigmoid_centred(rewards[2, 2], 0.0)


def test_where_nothing_applies_everything_is_good() -> None:
    rewards = values(-3, 2).requires_grad_()
    none = torch.zeros(2, dtype=torch.bool)
    judgement = judged(rewards, 0.0, where=none)
    for found in (all_of(judgement, where=none), any_of(judgement, where=none), at_least(judgement, 2, where=none)):
        assert found.good.item() == 0
        assert found.bad.item() == -math.inf
        (gradient,) = torch.autograd.grad(found.good, rewards, retain_graph=True)
        assert torch.equal(gradient, torch.zeros_like(gradient))
    assert at_least(judged(rewards, 0.0), 0).good.item() == 0


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda j: all_of(j, weights=values(1, -1)),
            "argument `weights`: expected finite numbers >= 0, got -1.0 at [1]",
        ),
        (lambda j: all_of(j, weights=values(1)), "argument `weights`: expected one per property, shape (2,), got"),
        (lambda j: at_least(j, 3), "argument `count`: expected at most the 2 properties there are, got 3"),
        (lambda j: at_least(j, -1), "argument `count`: expected an integer >= 0, got -1 (int)"),
        (
            lambda j: any_of(j, where=torch.ones(3, dtype=torch.bool)),
            "argument `where`: expected a bool tensor of shape",
        ),
        (lambda j: all_of(j, where=torch.ones(5, 2)), "argument `where`: expected a bool tensor of shape (5, 2), got"),
        (lambda j: all_of(Judgement(j.good[:, :0], j.bad[:, :0])), "argument `judgement`: expected log-probabilities"),
        (lambda j: judged(j.good, 0.0, where=torch.ones(5, 2)), "argument `where`: expected a bool tensor, got float"),
        (
            lambda j: judged(j.good, 0.0, scale=values(1, 0)),
            "argument `scale`: expected finite numbers > 0, got 0.0 at [1]",
        ),
        (lambda j: judged(j.good, 0.0, scale=values(1, 1, 1)), "argument `scale`: expected a shape that broadcasts to"),
    ],
)
def test_refusals(call: Callable[[Judgement], object], line: str) -> None:
    with pytest.raises(ValueError, match=r"^argument") as caught:
        call(judged(random(5, 2), 0.0))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
