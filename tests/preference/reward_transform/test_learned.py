"""The learned reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scorecraft.preference.reward_transform import PromptReference, sample_moments, sample_quantile

Z = 1.0364333894937898


def prompts(count: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings, rewards, and the true mean, which is linear, and spread, which is one of two."""
    random = torch.Generator().manual_seed(seed)
    embeddings = 3 + 2 * torch.randn(count, 4, generator=random)
    embeddings[:, 3] = (embeddings[:, 3] > 3).float()
    mean = embeddings @ torch.tensor([1.0, -2, 0.5, 0]) + 10
    std = 0.5 + 1.5 * embeddings[:, 3]
    return embeddings, mean[:, None] + std[:, None] * torch.randn(count, k, generator=random), mean, std


@pytest.mark.parametrize("kind", ["gaussian", "quantile"])
def test_it_finds_the_quantile_of_prompts_it_never_saw(kind: Any) -> None:
    embeddings, rewards, _, _ = prompts(1000, 16)
    head = PromptReference(4, kind=kind)
    before = head.loss(embeddings, rewards).item()
    after = head.fit(embeddings, rewards)
    assert after < before
    new, answers, mean, std = prompts(400, 200, seed=1)
    found = head(new).detach()
    share = (answers < found[:, None]).float().mean()
    assert share.item() == pytest.approx(0.85, abs=0.02)
    error = (found - (mean + Z * std)).abs().mean() / (mean + Z * std).std()
    assert error < 0.05


def test_moments_give_any_quantile() -> None:
    embeddings, rewards, mean, std = prompts(1000, 16)
    head = PromptReference(4)
    head.fit(embeddings, rewards)
    found = head.moments(embeddings)
    assert (found.mean - mean).abs().mean() < 0.05
    assert (found.std - std).abs().mean() < 0.05
    torch.testing.assert_close(head(embeddings), found.mean + Z * found.std)
    head.quantile = 0.5
    torch.testing.assert_close(head(embeddings), found.mean)


def test_without_anything_to_learn_it_is_the_quantile_of_all_rewards() -> None:
    rewards = 7 + 3 * torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    constant = torch.ones(200, 3)
    gaussian, quantile = PromptReference(3), PromptReference(3, kind="quantile")
    gaussian.fit(constant, rewards)
    quantile.fit(constant, rewards)
    moments = sample_moments(rewards.flatten())
    assert gaussian(constant[:1]).item() == pytest.approx((moments.mean + Z * moments.std).item(), rel=1e-3)
    assert quantile(constant[:1]).item() == pytest.approx(sample_quantile(rewards.flatten()).item(), rel=1e-2)


def test_prompts_whose_rewards_do_not_differ() -> None:
    head = PromptReference(2)
    assert math.isfinite(head.fit(torch.randn(5, 2), torch.full((5, 3), 4.0)))
    assert head(torch.zeros(1, 2)).item() == pytest.approx(4, abs=0.1)


def test_the_fit_repeats_and_the_state_is_all_of_it() -> None:
    embeddings, rewards, _, _ = prompts(60, 4)
    first, second, loaded = (PromptReference(4) for _ in range(3))
    assert first.fit(embeddings, rewards, steps=20) == second.fit(embeddings, rewards, steps=20)
    assert first.fit(embeddings, rewards, steps=20) == second.loss(embeddings, rewards).item()
    loaded.load_state_dict(first.state_dict())
    assert torch.equal(loaded(embeddings), first(embeddings))
    assert repr(first).startswith("PromptReference(\n  kind='gaussian', quantile=0.85")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda h: PromptReference(0), "argument `dimensions`: expected an integer >= 1, got 0 (int)"),
        (
            lambda h: PromptReference(4, kind="mean"),
            "argument `kind`: expected one of 'gaussian', 'quantile', got 'mean'",
        ),
        (
            lambda h: PromptReference(4, quantile=1.0),
            "argument `quantile`: expected a number inside of (0, 1), got 1.0",
        ),
        (
            lambda h: h(torch.zeros(2, 3)),
            "argument `embeddings`: expected prompt embeddings [n, 4], got float32 tensor",
        ),
        (
            lambda h: h.fit(torch.zeros(2, 4), torch.zeros(3, 2)),
            "argument `rewards`: expected rewards [2, k], one row per",
        ),
        (
            lambda h: h.fit(torch.zeros(2, 4), torch.zeros(2, 0)),
            "argument `rewards`: expected rewards [2, k], one row per",
        ),
        (
            lambda h: h.fit(torch.zeros(2, 4), torch.full((2, 1), math.nan)),
            "argument `rewards`: expected finite values",
        ),
        (
            lambda h: h.fit(torch.full((2, 4), math.inf), torch.zeros(2, 1)),
            "argument `embeddings`: expected finite values",
        ),
        (lambda h: h.fit(torch.zeros(2, 4), torch.zeros(2, 1), steps=0), "argument `steps`: expected an integer >= 1"),
        (
            lambda h: PromptReference(4, kind="quantile").moments(torch.zeros(2, 4)),
            "argument `kind`: expected 'gaussian'",
        ),
    ],
)
def test_refusals(call: Any, line: str) -> None:
    with pytest.raises(ValueError, match=r"^argument") as caught:
        call(PromptReference(4))
    assert str(caught.value).startswith(line)
