"""A learned reference: the mean and spread of a prompt's rewards, or their quantile, from the prompt's embedding."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core.checks import (
    check_embeddings,
    check_values,
    choice,
    describe,
    non_negative,
    positive,
    positive_integer,
    refuse,
)
from scorecraft.preference.reward_transform.references import (
    QUANTILE,
    Moments,
    gaussian_negative_log_likelihood,
    gaussian_quantile,
    pinball_loss,
)

Kind: TypeAlias = Literal["gaussian", "quantile"]
KINDS = ("gaussian", "quantile")
_LEAST_STD = 1e-4
"""Of the spread of all rewards: below it a likelihood has no maximum."""


class PromptReference(nn.Module):
    """A linear head on prompt embeddings that predicts `r_ref`.

    `"gaussian"` predicts mean and standard deviation of a prompt's rewards and is fitted by likelihood, so that any
    quantile can be asked for later; `"quantile"` predicts one quantile and is fitted by the pinball loss. Embeddings
    and rewards are standardised by what `fit` saw, and that is part of the state.

        head = PromptReference(384)
        head.fit(embed(prompts), sampled_rewards)
        head(embed(new_prompts))

    Args:
        dimensions: of the embeddings.
        kind: which.
        quantile: that is predicted, inside of (0, 1).

    Source: arXiv 2402.00742, the learned reference.
    """

    def __init__(self, dimensions: int, *, kind: Kind = "gaussian", quantile: float = QUANTILE) -> None:
        super().__init__()
        self.kind = choice("kind", kind, KINDS)
        gaussian_quantile(0.0, 1.0, quantile)
        self.quantile = quantile
        self.head = nn.Linear(positive_integer("dimensions", dimensions), 2 if kind == "gaussian" else 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.centre: Tensor
        self.spread: Tensor
        self.reward_centre: Tensor
        self.reward_spread: Tensor
        self.register_buffer("centre", torch.zeros(dimensions))
        self.register_buffer("spread", torch.ones(dimensions))
        self.register_buffer("reward_centre", torch.zeros(()))
        self.register_buffer("reward_spread", torch.ones(()))

    def forward(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """`r_ref` of `n` prompts."""
        if self.kind == "gaussian":
            return gaussian_quantile(*self.moments(embeddings), self.quantile)
        return self.reward_centre + self.reward_spread * self._raw(embeddings)[:, 0]

    def moments(self, embeddings: Float[Tensor, "n d"]) -> Moments:
        """Mean and standard deviation of the rewards of `n` prompts.

        Raises:
            ValueError: the head predicts a quantile.
        """
        if self.kind != "gaussian":
            refuse("kind", "'gaussian', which predicts moments", repr(self.kind))
        mean, spread = self._raw(embeddings).unbind(dim=1)
        # softplus(0.5413) = 1: an unfitted head predicts the spread of all rewards.
        std = F.softplus(spread + 0.541324854612918) + _LEAST_STD
        return Moments(self.reward_centre + self.reward_spread * mean, self.reward_spread * std)

    def loss(self, embeddings: Float[Tensor, "n d"], rewards: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
        """Negative log-likelihood, or pinball loss, of `k` sampled rewards per prompt."""
        _check_rewards(rewards, len(embeddings))
        if self.kind == "gaussian":
            return gaussian_negative_log_likelihood(*self.moments(embeddings), rewards)
        return pinball_loss(self(embeddings), rewards, self.quantile)

    def fit(
        self,
        embeddings: Float[Tensor, "n d"],
        rewards: Float[Tensor, "n k"],
        *,
        steps: int = 500,
        learning_rate: float = 0.05,
        weight_decay: float = 1e-3,
    ) -> float:
        """Fit from zero on all prompts at once (AdamW, the learning rate falling to 0); there is no randomness.

        Args:
            embeddings: `[n, d]`, of the prompts.
            rewards: `[n, k]`, of `k` answers of the base policy to each.
            steps, learning_rate, weight_decay: of the optimiser.

        Returns:
            The loss at the end.

        Raises:
            ValueError: embeddings or rewards that are not finite or do not fit together.
        """
        check_embeddings("embeddings", embeddings)
        _check_rewards(rewards, len(embeddings))
        positive_integer("steps", steps)
        positive("learning_rate", learning_rate)
        non_negative("weight_decay", weight_decay)
        weight = self.head.weight
        embeddings, rewards = embeddings.detach().to(weight), rewards.detach().to(weight)
        with torch.no_grad():
            self.centre.copy_(embeddings.mean(dim=0))
            self.spread.copy_(_or_one(embeddings.std(dim=0, correction=0)))
            self.reward_centre.copy_(rewards.mean())
            self.reward_spread.copy_(_or_one(rewards.std(correction=0)))
            weight.zero_()
            self.head.bias.zero_()
        optimiser = torch.optim.AdamW(self.head.parameters(), lr=learning_rate, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        with torch.enable_grad():
            for _ in range(steps):
                optimiser.zero_grad()
                self.loss(embeddings, rewards).backward()
                optimiser.step()
                schedule.step()
        optimiser.zero_grad()
        with torch.no_grad():
            return self.loss(embeddings, rewards).item()

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, quantile={self.quantile}"

    def _raw(self, embeddings: Tensor) -> Tensor:
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.centre):
            refuse("embeddings", f"prompt embeddings [n, {len(self.centre)}]", describe(embeddings))
        return self.head((embeddings.to(self.centre) - self.centre) / self.spread)


def _or_one(spread: Tensor) -> Tensor:
    return torch.where(spread > 0, spread, 1.0)


def _check_rewards(rewards: Tensor, prompts: int) -> None:
    if rewards.ndim != 2 or len(rewards) != prompts or rewards.shape[1] == 0 or not rewards.is_floating_point():
        refuse("rewards", f"rewards [{prompts}, k], one row per prompt", describe(rewards))
    check_values("rewards", "finite values only", lambda: torch.isfinite(rewards), rewards)
