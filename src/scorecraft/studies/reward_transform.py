"""Does aligning with the log-probability of being good beat aligning with raw rewards at the same KL?

Nothing is trained or estimated by sampling: every prompt has a finite set of candidates, over which the optimum of
KL-regularised alignment is a softmax. All contenders of a seed meet the same rewards and the same mean KL; they differ
in the utility.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.preference.reward_transform import (
    PAPER,
    expected,
    gamma_for_kl,
    good_in_all,
    improvement,
    log_sigmoid_sum,
    optimal_policy,
    sample_quantile,
    share_improved,
    truncated,
)
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Settings, Study, World
from scorecraft.studies.worlds import generator

_IMPROVED = 0.5
"""Standard deviations of the base policy's rewards, from which on a prompt counts as improved."""


class Rewards(NamedTuple):
    """Of all candidates of all prompts."""

    truth: Float[Tensor, "p c n"]
    proxy: Float[Tensor, "p c n"]
    """What alignment sees."""


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """The optimum at the world's KL, measured by the true rewards."""
    truth, proxy = draw(seed, {**scale.settings, **world.settings})
    reference = sample_quantile(proxy.transpose(1, 2), scale.settings["quantile"])
    base = torch.zeros(proxy.shape[:2], dtype=proxy.dtype).log_softmax(dim=1)
    value = utility(contender.settings["utility"], proxy, reference)
    gamma = gamma_for_kl(base, value, world.settings["kl"])
    policy = optimal_policy(base, value, gamma).log_probabilities
    properties = truth.unbind(dim=2)
    gained = torch.stack([improvement(policy, base, one) for one in properties])
    above_median = [expected(policy, (one > one.quantile(0.5, dim=1, keepdim=True)).double()) for one in properties]
    return {
        "good": good_in_all(policy, truth, reference).mean().item(),
        "worst_prompt": torch.stack(above_median).amin(dim=1).mean().item(),
        "reward": expected(policy, truth.mean(dim=2)).mean().item(),
        "improvement": gained.mean().item(),
        "unimproved": 100 * (1 - share_improved(gained, by=_IMPROVED).item()),
    }


def draw(seed: int, told: Settings) -> Rewards:
    """Two rewards per candidate, or one of them with a shortcut.

    Property `i` of prompt `x` has Gaussian rewards of mean `N(0, 2²)` and standard deviation `U(0.5, 2.5)`, drawn for
    each prompt; the two rewards of a candidate have a correlation of -0.5. With a shortcut there is the first property
    alone, and its proxy is 6 too large on a random hundredth of the candidates.
    """
    random = generator(seed, "rewards")
    prompts, candidates = told["prompts"], told["candidates"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    mean = 2 * normal(prompts, 1, 2)
    spread = 0.5 + 2 * torch.rand(prompts, 1, 2, generator=random, dtype=torch.float64)
    noise = normal(prompts, candidates, 2)
    noise[..., 1] = -0.5 * noise[..., 0] + 0.75**0.5 * noise[..., 1]
    truth = mean + spread * noise
    if not told["shortcut"]:
        return Rewards(truth, truth)
    truth = truth[..., :1]
    hit = torch.rand(truth.shape, generator=random, dtype=torch.float64) < 0.01
    return Rewards(truth, truth + 6 * hit)


def utility(name: str, proxy: Float[Tensor, "p c n"], reference: Float[Tensor, "p n"]) -> Float[Tensor, "p c"]:
    """What is aligned with: the sum over the properties of raw, transformed or truncated rewards."""
    if name == "raw":
        return proxy.sum(dim=2)
    if name == "truncated":
        return truncated(proxy, reference[:, None]).sum(dim=2)
    return log_sigmoid_sum(proxy, reference[:, None] if name == "centred" else 0.0)


_DESK = {"prompts": 200, "candidates": 2000, "quantile": 0.85}

STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "At a mean KL of 2 nats the sum of log-sigmoid-centred rewards gives answers that are good in both properties"
        " more often than the sum of raw rewards: by 30 in 100 or more.",
        metric="good",
        margin=0.3,
        relative=True,
    ),
    further_claims=(
        Claim(
            "With a reward that has a shortcut, at 1 nat, the share of prompts that hardly improve is half as large or"
            " less.",
            metric="unimproved",
            margin=0.5,
            relative=True,
            world="shortcut",
        ),
        Claim(
            "With a shortcut the true reward improves more.",
            metric="improvement",
            margin=0.0,
            world="shortcut",
        ),
        Claim("The prompt that alignment serves worst is served better.", metric="worst_prompt", margin=0.0),
        Claim(
            "Without centring the log-sigmoid serves the worst prompt worse than raw rewards do.",
            metric="worst_prompt",
            margin=0.0,
            method="raw",
            baseline="uncentred",
        ),
        Claim(
            "Raw rewards win on the mean raw reward, as they must.",
            metric="reward",
            margin=0.0,
            method="raw",
            baseline="centred",
        ),
    ),
    metrics=(
        Metric("good", "P(good in every property)"),
        Metric("worst_prompt", "P(above the prompt's median), worst prompt"),
        Metric("reward", "mean true reward"),
        Metric("improvement", "improvement in standard deviations"),
        Metric("unimproved", "% of prompts improved by less than 0.5 sd", "lower", decimals=1),
    ),
    worlds=(
        World(
            "two_rewards",
            "two rewards, 2 nats",
            "200 prompts with 2,000 candidates each and a uniform base policy; two rewards that oppose each other"
            " (correlation -0.5), with a mean and a spread of their own for every prompt; good is above the 0.85"
            " quantile of the base policy.",
            {"kl": 2.0, "shortcut": False},
        ),
        World(
            "two_rewards_near",
            "two rewards, 1 nat",
            "The same, nearer to the base policy.",
            {"kl": 1.0, "shortcut": False},
        ),
        World(
            "shortcut",
            "one reward with a shortcut, 1 nat",
            "The first reward alone, which is 6 too large on a random hundredth of the candidates; measured by the true"
            " one.",
            {"kl": 1.0, "shortcut": True},
        ),
    ),
    contenders=(
        Contender("raw", "raw rewards, summed", "baseline", {"utility": "raw"}),
        Contender("centred", "log-sigmoid-centred rewards, summed", "method", {"utility": "centred"}),
        Contender("uncentred", "log-sigmoid without centring", settings={"utility": "uncentred"}),
        Contender("truncated", "rewards truncated at the reference", settings={"utility": "truncated"}),
    ),
    trial=trial,
    scales=(
        Scale("smoke", 2, {"prompts": 60, "candidates": 200, "quantile": 0.85}),
        Scale("desk", 8, dict(_DESK)),
    ),
    notes=(
        "Everything is exact: optimal policies over finite sets, at a mean KL that a search for the KL weight meets."
        " How far a training would come is not asked.",
        "The rewards are made, and so is the shortcut: this tests the mechanism, not win rates of language models.",
        "The truncated reward is the hard-edged relative of the log-sigmoid, not of the paper's tables.",
    ),
)
