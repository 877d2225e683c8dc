"""References: quantiles and moments of sampled rewards, one value at a time, and the losses of a learned one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from scorecraft.preference.reward_transform import (
    StreamingQuantile,
    gaussian_negative_log_likelihood,
    gaussian_quantile,
    pinball_loss,
    reference_reward,
    sample_moments,
    sample_quantile,
)

DOUBLE = torch.float64
SAMPLES = torch.tensor([0.2, 1.1, -0.7, 2.4], dtype=DOUBLE)


def test_check_values() -> None:
    assert reference_reward(SAMPLES).item() == pytest.approx(1.815, rel=1e-15)
    assert reference_reward(SAMPLES, estimator="gaussian").item() == pytest.approx(1.9373836150337351, rel=1e-14)
    assert gaussian_quantile(0.0, 1.0).item() == pytest.approx(1.0364333894937898, rel=1e-14)


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5, 0.85, 0.999, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_quantiles_are_those_of_numpy(quantile: float, count: int) -> None:
    samples = torch.randn(5, count, dtype=DOUBLE, generator=torch.Generator().manual_seed(count))
    wanted = np.quantile(samples.numpy(), quantile, axis=1)
    np.testing.assert_allclose(sample_quantile(samples, quantile).numpy(), wanted, rtol=1e-13, atol=1e-14)


def test_moments() -> None:
    samples = torch.randn(5, 9, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    for ddof in (0, 1):
        mean, std = sample_moments(samples, ddof=ddof)
        np.testing.assert_allclose(mean.numpy(), samples.numpy().mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(std.numpy(), samples.numpy().std(axis=1, ddof=ddof), rtol=1e-12)
        found = reference_reward(samples, quantile=0.6, estimator="gaussian", ddof=ddof)
        torch.testing.assert_close(found, mean + 0.2533471031357997 * std, rtol=1e-12, atol=0)


def test_one_sample_and_equal_samples() -> None:
    for ddof in (0, 1):
        assert sample_moments(SAMPLES[:1], ddof=ddof).std.item() == 0
        assert reference_reward(SAMPLES[:1], estimator="gaussian", ddof=ddof).item() == 0.2
    assert reference_reward(SAMPLES[:1]).item() == 0.2
    same = torch.full((6,), 1.5)
    assert reference_reward(same).item() == reference_reward(same, estimator="gaussian").item() == 1.5


def test_a_larger_quantile_is_stricter() -> None:
    for estimator in ("empirical", "gaussian"):
        found = [reference_reward(SAMPLES, quantile=q, estimator=estimator).item() for q in (0.1, 0.5, 0.85, 0.95)]
        assert found == sorted(set(found))


def test_half_precision_is_computed_in_single() -> None:
    samples = torch.tensor([20.0, 20.125], dtype=torch.bfloat16)
    assert sample_quantile(samples, 0.85).item() == pytest.approx(20.10625, rel=1e-7)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.85])
def test_streaming_quantile(quantile: float) -> None:
    samples = 3 + 2 * torch.randn(20_000, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    running = StreamingQuantile(quantile)
    for start in range(0, 20_000, 1000):
        running.add(samples[start : start + 1000])
    assert running.count == 20_000
    assert running.value == pytest.approx(sample_quantile(samples, quantile).item(), abs=0.03)
    assert len(running._heights) == 5


def test_streaming_quantile_is_exact_while_it_can_be() -> None:
    running = StreamingQuantile(0.85)
    for count, value in enumerate((0.2, 1.1, -0.7, 2.4, 0.5), start=1):
        running.add(value)
        seen = torch.tensor((0.2, 1.1, -0.7, 2.4, 0.5)[:count], dtype=DOUBLE)
        assert running.value == pytest.approx(sample_quantile(seen).item(), rel=1e-14)
    same = StreamingQuantile(0.3)
    same.add([4.0] * 100)
    assert same.value == 4.0


def test_streaming_quantile_follows_the_published_example() -> None:
    """The median of 20 observations of Jain and Chlamtac 1985, table I: 4.44."""
    observed = [0.02, 0.15, 0.74, 3.39, 0.83, 22.37, 10.15, 15.43, 38.62, 15.92,
                34.60, 10.28, 1.47, 0.40, 0.05, 11.39, 0.27, 0.42, 0.09, 11.37]  # fmt: skip
    running = StreamingQuantile(0.5)
    running.add(observed)
    assert running.value == pytest.approx(4.44, abs=0.005)


def test_pinball_loss_is_least_at_the_quantile() -> None:
    rewards = torch.randn(3, 2001, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    best = sample_quantile(rewards, 0.85)
    least = pinball_loss(best, rewards)
    for step in (-0.2, -0.02, 0.02, 0.2):
        assert pinball_loss(best + step, rewards) > least
    by_hand = pinball_loss(torch.tensor([1.0], dtype=DOUBLE), torch.tensor([[3.0, 0.0]], dtype=DOUBLE), 0.9)
    assert by_hand.item() == pytest.approx((0.9 * 2 + 0.1 * 1) / 2, rel=1e-15)


def test_likelihood_is_that_of_torch() -> None:
    rewards = torch.randn(3, 50, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.1, 1, -2], dtype=DOUBLE), torch.tensor([0.5, 1, 2], dtype=DOUBLE)
    wanted = (
        -torch.distributions.Normal(mean[:, None], std[:, None]).log_prob(rewards).mean() - math.log(2 * math.pi) / 2
    )
    torch.testing.assert_close(gaussian_negative_log_likelihood(mean, std, rewards), wanted, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("samples", "options", "line"),
    [
        (torch.empty(3, 0), {}, "argument `samples`: expected at least one reward per prompt, got"),
        (torch.empty(0), {}, "argument `samples`: expected at least one reward per prompt, got"),
        (torch.tensor([1.0, math.nan]), {}, "argument `samples`: expected finite values only, got nan at [1]"),
        (torch.tensor(1.0), {}, "argument `samples`: expected floating-point rewards [..., k], got"),
        (torch.tensor([1]), {}, "argument `samples`: expected floating-point rewards [..., k], got"),
        (SAMPLES, {"quantile": 1.5}, "argument `quantile`: expected a number in [0, 1], got 1.5 (float)"),
        (
            SAMPLES,
            {"quantile": 1.0, "estimator": "gaussian"},
            "argument `quantile`: expected a number inside of (0, 1)",
        ),
        (
            SAMPLES,
            {"estimator": "median"},
            "argument `estimator`: expected one of 'empirical', 'gaussian', got 'median'",
        ),
        (SAMPLES, {"estimator": "gaussian", "ddof": 2}, "argument `ddof`: expected 0 or 1, got 2"),
    ],
)
def test_refusals(samples: Tensor, options: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=r"^argument") as caught:
        reference_reward(samples, **options)
    assert str(caught.value).startswith(line)


def test_refusals_of_the_rest() -> None:
    with pytest.raises(ValueError, match=r"^argument `std`: expected finite values >= 0"):
        gaussian_quantile(0.0, -1.0)
    with pytest.raises(ValueError, match=r"^argument `mean`: expected finite values only"):
        gaussian_quantile(math.nan, 1.0)
    for quantile in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"^argument `quantile`: expected a number inside of \(0, 1\)"):
            StreamingQuantile(quantile)
    with pytest.raises(ValueError, match=r"^argument `values`: expected at least one value, got none$"):
        _ = StreamingQuantile().value
    with pytest.raises(ValueError, match=r"^argument `values`: expected a finite number, got nan"):
        StreamingQuantile().add([1.0, math.nan])
