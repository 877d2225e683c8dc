"""Do preference strengths make a better reward model, and does it help to begin with ratings of the same answers?

All contenders of a seed see the same pairs, votes and ratings, and begin from the same weights; those that are trained
in two stages share the first one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.core import BradleyTerryLoss, PreferenceObjective
from scorecraft.preference.helpsteer2_preference import (
    PAPER,
    MarginBradleyTerryLoss,
    MaskedRegressionLoss,
    ScaledBradleyTerryLoss,
    aggregate_votes,
    by_signed_strength,
    extrapolate,
    pair_accuracy,
)
from scorecraft.studies.study import Claim, Contender, Metric, Role, Scale, Settings, Study, World
from scorecraft.studies.worlds import generator

_DIMENSIONS = 16
_ANNOTATORS = 3
_ANY_SPREAD = 6

_LOSSES: dict[str, type[PreferenceObjective]] = {
    "regular": BradleyTerryLoss,
    "margin": MarginBradleyTerryLoss,
    "scaled": ScaledBradleyTerryLoss,
}


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """Train a reward model and see how often it orders new pairs as the true utility does."""
    told = {**scale.settings, **contender.settings}
    random = generator(seed, "annotated answers")
    hidden = Utility(random)
    train = annotated(hidden, told["pairs"], random)
    answers = torch.randn(2, told["test_pairs"], _DIMENSIONS, generator=random)
    model = reward_model(seed)
    if told["ratings"]:
        train_on_ratings(model, train, seed, told)
    weak = {name: value.clone() for name, value in model.state_dict().items()}
    if told["loss"]:
        train_on_pairs(model, train, seed, told)
    if told["factor"] != 1:
        model.load_state_dict(extrapolate(weak, model.state_dict(), told["factor"]))
    with torch.no_grad():
        rewards, truth = model(answers)[..., 0], hidden(answers)
    better = truth[0] > truth[1]
    right = pair_accuracy(
        torch.where(better, rewards[0], rewards[1]).double(), torch.where(better, rewards[1], rewards[0]).double()
    )
    return {"accuracy": right.share, "used": used(train, told["max_spread"]) if told["loss"] else 1.0}


class Utility:
    """`u(x) = 1.5 tanh(w_1 x) + w_2 x` on 16 Gaussian features, with `w ~ N(0, 0.375^2)`."""

    def __init__(self, random: torch.Generator) -> None:
        self.weights = torch.randn(2, _DIMENSIONS, generator=random) / 4 * 1.5

    def __call__(self, answers: Float[Tensor, "... 16"]) -> Float[Tensor, "..."]:
        bent, straight = (answers @ self.weights.T).unbind(dim=-1)
        return 1.5 * torch.tanh(bent) + straight


@dataclass(frozen=True)
class Annotated:
    """Pairs of answers with what annotators say of them."""

    answers: Float[Tensor, "2 n 16"]
    votes: Int[Tensor, "n 3"]
    """-3 to 3; negative where the first answer is better."""
    ratings: Float[Tensor, "2 n"]
    """0 to 4."""


def annotated(utility: Utility, pairs: int, random: torch.Generator) -> Annotated:
    """New pairs, voted on by three annotators and rated by one."""
    answers = torch.randn(2, pairs, _DIMENSIONS, generator=random)
    truth = utility(answers)
    seen = 0.8 * (truth[1] - truth[0])[:, None] + 1.6 * torch.randn(pairs, _ANNOTATORS, generator=random)
    votes = (seen.sign() * (seen.abs() / 1.3).ceil().clamp(1, 3)).long()
    ratings = (2 + 0.8 * truth + 0.9 * torch.randn(truth.shape, generator=random)).round().clamp(0, 4)
    return Annotated(answers, votes, ratings)


def strengths(votes: Int[Tensor, "n 3"], max_spread: int) -> Int[Tensor, " n"]:
    """The signed strength of each pair, 0 for those that are not kept."""
    found = [aggregate_votes(own, max_spread=max_spread) for own in votes.tolist()]
    return torch.tensor([one.strength or 0 if one.keep else 0 for one in found])


def used(train: Annotated, max_spread: int) -> float:
    """The share of the pairs that is trained on."""
    return float((strengths(train.votes, max_spread) != 0).float().mean())


def reward_model(seed: int) -> nn.Module:
    """A perceptron 16-32-1 with tanh; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(_DIMENSIONS, 32), nn.Tanh(), nn.Linear(32, 1))


def train_on_ratings(model: nn.Module, train: Annotated, seed: int, settings: Settings) -> None:
    """Stage 1: regression on single answers."""
    answers, ratings = train.answers.flatten(0, 1), train.ratings.flatten()[:, None]
    loss = MaskedRegressionLoss(validate=False)
    optimiser = _optimiser(model, settings["learning_rate"])
    for batch in _batches(len(ratings), settings["batch"], settings["rating_steps"], generator(seed, "ratings")):
        optimiser.zero_grad()
        loss(model(answers[batch]), ratings[batch]).backward()
        optimiser.step()


def train_on_pairs(model: nn.Module, train: Annotated, seed: int, settings: Settings) -> None:
    """Stage 2, or the only one: Bradley-Terry on pairs with a preference."""
    signed = strengths(train.votes, settings["max_spread"])
    kept = signed != 0
    pairs = by_signed_strength(train.answers[0, kept], train.answers[1, kept], signed[kept])
    loss = _LOSSES[settings["loss"]](validate=False)
    stage = "after_ratings" if settings["ratings"] else "from_scratch"
    optimiser = _optimiser(model, settings[f"learning_rate_{stage}"])
    steps = settings[f"steps_{stage}"]
    for batch in _batches(len(pairs.strength), settings["batch"], steps, generator(seed, "pairs")):
        rewards = model(torch.stack([pairs.chosen[batch], pairs.rejected[batch]]))[..., 0]
        optimiser.zero_grad()
        loss(rewards[0], rewards[1], strength=pairs.strength[batch]).backward()
        optimiser.step()


def _optimiser(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3, fused=True)


def _batches(rows: int, size: int, steps: int, random: torch.Generator) -> Iterator[Int[Tensor, " b"]]:
    """Batches of rows drawn without replacement, pass after pass."""
    order = torch.cat([torch.randperm(rows, generator=random) for _ in range(math.ceil(steps * size / rows))])
    yield from order[: steps * size].split(size)


def _contender(
    name: str, title: str, role: Role = "contender", *, loss: str = "", ratings: bool = False, factor: float = 1.0,
    max_spread: int = _ANY_SPREAD,
) -> Contender:  # fmt: skip
    settings: dict[str, Any] = {"loss": loss, "ratings": ratings, "factor": factor, "max_spread": max_spread}
    return Contender(name, title, role, settings)


def _claim(sentence: str, method: str, baseline: str) -> Claim:
    return Claim(sentence, metric="accuracy", margin=0.0, method=method, baseline=baseline)


_TRAINING = {
    "batch": 64,
    "learning_rate": 1e-2,
    "learning_rate_from_scratch": 1e-2,
    "learning_rate_after_ratings": 3e-3,
}

STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "Scaling the Bradley-Terry loss by the strength of the preference orders more new pairs right than the regular"
        " loss.",
        metric="accuracy",
        margin=0.0,
    ),
    further_claims=(
        _claim(
            "Beginning from a regression on ratings makes the scaled loss better than it is from scratch.",
            "init_scaled", "scaled",
        ),
        _claim("From ratings, too, the scaled loss is better than the regular one.", "init_scaled", "init_regular"),
        _claim("Preferences on top of ratings are better than ratings alone.", "init_scaled", "regression"),
        _claim("A margin is no worse than scaling (the paper saw it behind).", "margin", "scaled"),
        _claim(
            "Extrapolation gains nothing here: the model that factor 1.5 begins from is better (the paper saw a gain).",
            "init_scaled", "expo_1_5",
        ),
        _claim(
            "Dropping pairs whose votes lie more than 2 apart gains nothing here: all pairs are better (the paper"
            " filters).",
            "scaled", "scaled_filtered",
        ),
    ),
    metrics=(
        Metric("accuracy", "share of new pairs in the right order", decimals=4),
        Metric("used", "share of the pairs that is trained on", decimals=3),
    ),
    worlds=(
        World(
            "annotated",
            "annotated answers",
            "400 pairs of answers with 16 features and a utility that bends; three annotators vote -3 to 3 on each pair"
            " with much noise, and each answer is rated 0 to 4. Strength is the rounded mean of the votes, ties are"
            " left out. Tested on 4,000 new pairs without noise.",
        ),
    ),
    contenders=(
        _contender("regular", "regular Bradley-Terry", "baseline", loss="regular"),
        _contender("margin", "margin Bradley-Terry", loss="margin"),
        _contender("scaled", "scaled Bradley-Terry", "method", loss="scaled"),
        _contender("scaled_filtered", "scaled, votes at most 2 apart", loss="scaled", max_spread=2),
        _contender("regression", "regression on ratings", ratings=True),
        _contender("init_regular", "regression, then regular", loss="regular", ratings=True),
        _contender("init_scaled", "regression, then scaled", loss="scaled", ratings=True),
        _contender("init_scaled_filtered", "regression, then scaled, votes at most 2 apart", loss="scaled",
                   ratings=True, max_spread=2),
        _contender("expo_1_2", "extrapolated by 1.2", loss="scaled", ratings=True, factor=1.2),
        _contender("expo_1_5", "extrapolated by 1.5", loss="scaled", ratings=True, factor=1.5),
        _contender("expo_2", "extrapolated by 2", loss="scaled", ratings=True, factor=2.0),
    ),
    trial=trial,
    scales=(
        Scale(
            "smoke",
            2,
            {
                **_TRAINING, "pairs": 100, "test_pairs": 400, "rating_steps": 40, "steps_from_scratch": 30,
                "steps_after_ratings": 15,
            },
        ),
        Scale(
            "desk",
            12,
            {
                **_TRAINING, "pairs": 400, "test_pairs": 4000, "rating_steps": 300, "steps_from_scratch": 150,
                "steps_after_ratings": 60,
            },
        ),
    ),
    notes=(
        "The last three expectations are the specification's, written down beforehand from an earlier run of this"
        " experiment, and against the paper: they are reported as they come out.",
        "In the paper extrapolation gains about half a point on a benchmark on which its factor was chosen; here the"
        " factors are fixed.",
        "A perceptron on 16 features stands in for a language model of 70 billion weights: this tests the mechanism,"
        " not the paper's margins on RewardBench.",
    ),
)  # fmt: skip
