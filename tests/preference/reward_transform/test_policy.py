"""The optimum of KL-regularised alignment over candidates, and what is measured of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scorecraft.preference.reward_transform import (
    best_candidate,
    expected,
    gamma_for_kl,
    good_in_all,
    improvement,
    log_sigmoid_centred,
    log_sigmoid_sum,
    optimal_policy,
    share_improved,
    win_rate,
)

DOUBLE = torch.float64
BASE = torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE).log()
REWARDS = torch.tensor([1.0, -1.0, 3.0], dtype=DOUBLE)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def test_check_value() -> None:
    found = optimal_policy(BASE, log_sigmoid_centred(REWARDS, 0.5), 0.5).log_probabilities.exp()
    assert found.tolist() == pytest.approx([0.51727077, 0.02665744, 0.45607179], abs=5e-9)


def test_the_optimum_is_the_base_given_that_the_answer_is_good() -> None:
    base, rewards = random(4, 6).log_softmax(dim=1), 2 * random(4, 6, seed=1)
    good = (rewards - 0.5).sigmoid()
    given_good = base.exp() * good / (base.exp() * good).sum(dim=1, keepdim=True)
    found = optimal_policy(base, log_sigmoid_centred(rewards, 0.5), 1.0)
    torch.testing.assert_close(found.log_probabilities.exp(), given_good, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.log_normaliser.exp(), (base.exp() * good).sum(dim=1), rtol=1e-12, atol=0)
    sharper = optimal_policy(base, log_sigmoid_centred(rewards, 0.5), 0.25).log_probabilities
    torch.testing.assert_close(sharper, (base + 4 * good.log()).log_softmax(dim=1), rtol=1e-11, atol=1e-12)


def test_the_optimum_is_one() -> None:
    base, utility, gamma = random(4, 6).log_softmax(dim=1), random(4, 6, seed=1), 0.7

    def objective(policy: Tensor) -> Tensor:
        return expected(policy, utility) - gamma * expected(policy, policy - base)

    found = optimal_policy(base, utility, gamma)
    # Its value is gamma log Z, and every other policy has less.
    torch.testing.assert_close(objective(found.log_probabilities), gamma * found.log_normaliser, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        found.kl, expected(found.log_probabilities, found.log_probabilities - base), rtol=1e-11, atol=1e-13
    )
    for seed in range(5):
        other = (found.log_probabilities + 0.1 * random(4, 6, seed=seed)).log_softmax(dim=1)
        assert (objective(other) < objective(found.log_probabilities)).all()


def test_constants_of_a_prompt_change_nothing() -> None:
    base, utility, moved = random(4, 6), random(4, 6, seed=1), random(4, 1, seed=2)
    found, other = optimal_policy(base, utility, 0.5), optimal_policy(base + 3, utility + moved, 0.5)
    torch.testing.assert_close(found.log_probabilities, other.log_probabilities, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.log_normaliser + 2 * moved[:, 0], other.log_normaliser, rtol=1e-12, atol=1e-12)


def test_limits_of_the_reference() -> None:
    """Far above all rewards: as with raw rewards. Far below: the base policy."""
    base, rewards = random(4, 6).log_softmax(dim=1), random(4, 6, seed=1)
    raw = optimal_policy(base, rewards, 0.5).log_probabilities
    above = optimal_policy(base, log_sigmoid_centred(rewards, 40.0), 0.5).log_probabilities
    below = optimal_policy(base, log_sigmoid_centred(rewards, -40.0), 0.5).log_probabilities
    torch.testing.assert_close(above, raw, rtol=0, atol=1e-12)
    torch.testing.assert_close(below, base, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_utilities_of_thousands(dtype: torch.dtype) -> None:
    utility = torch.tensor([[1000.0, -1000.0, 999.0], [-1e5, -1e5, -1e5]], dtype=dtype)
    found = optimal_policy(BASE.to(dtype).expand(2, 3), utility, 1.0)
    first = math.log(0.5 + 0.2 * math.exp(-1))
    assert found.log_normaliser.tolist() == pytest.approx([1000 + first, -1e5], rel=1e-6)
    p = 0.5 / math.exp(first)
    kl = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.2)
    assert found.kl.tolist() == pytest.approx([kl, 0.0], abs=1e-6)
    assert found.log_probabilities[0, 1].item() == pytest.approx(math.log(0.3) - 2000 - first, rel=1e-6)


def test_candidates_that_are_not_there() -> None:
    where = torch.tensor([[True, False, True]])
    utility = torch.tensor([[0.5, math.nan, -1.0]], dtype=DOUBLE)
    found = optimal_policy(BASE[None], utility, 0.5, where=where)
    alone = optimal_policy(BASE[[0, 2]], utility[0, [0, 2]], 0.5)
    torch.testing.assert_close(found.log_probabilities[0, [0, 2]], alone.log_probabilities, rtol=1e-13, atol=0)
    assert found.log_probabilities[0, 1] == -math.inf
    assert found.kl.item() == pytest.approx(alone.kl.item(), rel=1e-13)
    never = optimal_policy(torch.tensor([0.0, -math.inf], dtype=DOUBLE), torch.tensor([0.0, 1e6], dtype=DOUBLE), 1.0)
    assert never.log_probabilities.tolist() == [0, -math.inf]
    assert never.kl.item() == 0
    assert gamma_for_kl(BASE[None], utility, 0.3, where=where) == pytest.approx(
        gamma_for_kl(BASE[[0, 2]], utility[0, [0, 2]], 0.3), rel=1e-10
    )


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("target", [1e-4, 0.5, 1.2])
def test_gamma_meets_the_kl(target: float, scale: float) -> None:
    base, utility = torch.zeros(5, 12, dtype=DOUBLE), scale * random(5, 12)
    gamma = gamma_for_kl(base, utility, target)
    assert optimal_policy(base, utility, gamma).kl.mean().item() == pytest.approx(target, rel=1e-8)


def test_gamma_refuses_what_cannot_be_reached() -> None:
    base, utility = torch.zeros(2, 8), torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0]])
    most = (math.log(4) + math.log(8)) / 2
    assert optimal_policy(base, utility, gamma_for_kl(base, utility, most - 0.01)).kl.mean() == pytest.approx(
        most - 0.01, rel=1e-5
    )
    with pytest.raises(ValueError, match=rf"^argument `target`: expected below {most:.6g} nats, which always taking"):
        gamma_for_kl(base, utility, most + 1e-6)
    with pytest.raises(ValueError, match=r"^argument `target`: expected below .*, which always taking a best"):
        gamma_for_kl(base, torch.zeros(2, 8), 0.1)
    with pytest.raises(ValueError, match=r"^argument `target`: expected a finite number > 0"):
        gamma_for_kl(base, utility, 0.0)


def test_one_reward_ranks_the_same_and_two_do_not() -> None:
    rewards, reference = 2 * random(300, 8, 2), random(300, 1, 2, seed=1)
    for one in range(2):
        raw = best_candidate(rewards[..., one])
        assert torch.equal(raw, best_candidate(log_sigmoid_centred(rewards[..., one], reference[..., one])))
    together = best_candidate(log_sigmoid_sum(rewards, reference))
    assert 0.02 < (together != best_candidate(rewards.sum(dim=2))).double().mean() < 0.5
    # Yet under a KL term the same reward gives another policy.
    base = torch.zeros(300, 8, dtype=DOUBLE)
    policies = []
    for utility in (rewards[..., 0], log_sigmoid_centred(rewards[..., 0], reference[..., 0])):
        policies.append(optimal_policy(base, utility, gamma_for_kl(base, utility, 0.5)))
    assert (policies[0].kl - policies[1].kl).abs().max() > 0.1


def test_first_of_equals_and_only_of_those_there() -> None:
    utility = torch.tensor([[1.0, 2.0, 2.0], [5.0, 0.0, 0.0]])
    assert best_candidate(utility).tolist() == [1, 0]
    assert best_candidate(utility, torch.tensor([[True, False, True], [False, True, True]])).tolist() == [2, 1]


def test_win_rate_by_counting() -> None:
    policy, base = random(3, 5).log_softmax(dim=1), random(3, 5, seed=1).log_softmax(dim=1)
    rewards = torch.tensor([[1.0, 1, 2, 0, 2], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1]], dtype=DOUBLE)
    wins = (rewards[:, :, None] > rewards[:, None]).double() + (rewards[:, :, None] == rewards[:, None]).double() / 2
    wanted = torch.einsum("pi,pj,pij->p", policy.exp(), base.exp(), wins)
    torch.testing.assert_close(win_rate(policy, base, rewards), wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(win_rate(base, base, rewards), torch.full((3,), 0.5, dtype=DOUBLE), rtol=1e-12, atol=0)


def test_improvement_in_standard_deviations() -> None:
    base = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8]], dtype=DOUBLE).log()
    policy = torch.tensor([[0.25, 0.75], [0.25, 0.75], [0.1, 0.9]], dtype=DOUBLE).log()
    rewards = torch.tensor([[0.0, 4.0], [3.0, 3.0], [0.0, 1.0]], dtype=DOUBLE)
    found = improvement(policy, base, rewards)
    assert found.tolist() == pytest.approx([0.5, 0.0, 0.1 / 0.4], abs=1e-12)
    assert share_improved(found, by=0.25 - 1e-9).item() == pytest.approx(2 / 3)
    assert share_improved(torch.tensor([0.5, 0.4, -1.0, 2.0])).item() == 0.5


def test_good_in_all() -> None:
    policy = torch.tensor([[0.1, 0.2, 0.7]], dtype=DOUBLE).log()
    rewards = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [2.0, 3.0]]], dtype=DOUBLE)
    assert good_in_all(policy, rewards, torch.tensor([[0.5, 0.5]], dtype=DOUBLE)).item() == pytest.approx(
        0.8, rel=1e-12
    )
    assert good_in_all(policy, rewards, torch.tensor([[1.0, 0.5]], dtype=DOUBLE)).item() == pytest.approx(
        0.7, rel=1e-12
    )


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: optimal_policy(BASE, REWARDS, 0.0), "argument `gamma`: expected a finite number > 0, got 0.0 (float)"),
        (
            lambda: optimal_policy(BASE, REWARDS[:2], 1.0),
            "argument `base`: expected log-probabilities of shape (2,), got",
        ),
        (
            lambda: optimal_policy(BASE, REWARDS * math.nan, 1.0),
            "argument `utility`: expected finite values only, got nan",
        ),
        (lambda: optimal_policy(BASE * math.nan, REWARDS, 1.0), "argument `base`: expected log-probabilities that are"),
        (
            lambda: optimal_policy(BASE - math.inf, REWARDS, 1.0),
            "argument `base`: expected a possible candidate for every",
        ),
        (
            lambda: optimal_policy(BASE, REWARDS, 1.0, where=REWARDS > 9),
            "argument `base`: expected a possible candidate",
        ),
        (
            lambda: optimal_policy(BASE, REWARDS, 1.0, where=REWARDS),
            "argument `where`: expected a bool tensor of shape (3,)",
        ),
        (
            lambda: best_candidate(REWARDS[:0]),
            "argument `utility`: expected floating-point values [..., c] of at least one",
        ),
        (lambda: win_rate(BASE[:2], BASE, REWARDS), "argument `policy`: expected log-probabilities of shape (3,), got"),
        (lambda: improvement(BASE, BASE, REWARDS / 0), "argument `rewards`: expected finite values only, got inf"),
        (lambda: expected(BASE, REWARDS[:2]), "argument `values`: expected one per candidate, shape (3,), got"),
        (
            lambda: good_in_all(BASE, REWARDS, REWARDS),
            "argument `rewards`: expected rewards [..., c, n] of candidates (3,)",
        ),
        (
            lambda: good_in_all(BASE, REWARDS[:, None], REWARDS),
            "argument `reference`: expected one per prompt and property",
        ),
    ],
)
def test_refusals(call: Callable[[], object], line: str) -> None:
    with pytest.raises(ValueError, match=r"^argument") as caught:
        call()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
