"""A comparison, its statistics and its answer.

The best contender by the mean of the deciding metric is compared with each of the others, seed by seed. Every seed
splits the same data anew, which the interval takes into account; the p-values carry Holm's correction over the
comparisons, and the intervals are simultaneous (level `1 - 0.05 / comparisons`). A contender is *beaten* when its
corrected p-value is below 0.05; otherwise the data cannot tell it from the best.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from scorecraft.studies.result import TrialRecord, comparison_json
from scorecraft.studies.statistics import CONFIDENCE, PairedComparison, holm, mean_interval, paired_comparison
from scorecraft.studies.study import Contender, Metric, Scale, Settings, Trial, World

TRAINING, VALIDATION, TEST = 0.5, 0.2, 0.3
"""Shares of a split."""
_SCHEMA = 1
_Trained = TypeVar("_Trained")


@dataclass(frozen=True)
class Comparison:
    """Contenders that meet on somebody's data.

    Args:
        task: such as `similarity`.
        metrics: what every trial returns; the first one decides.
        world: the data.
        contenders: two or more.
        trial: splits the data by the seed, tunes on the validation part and measures on the test part.
        scale: the budget that every contender has.
        test_share: ratio of test to training items of a split.
    """

    task: str
    metrics: tuple[Metric, ...]
    world: World
    contenders: tuple[Contender, ...]
    trial: Trial
    scale: Scale
    test_share: float

    def __post_init__(self) -> None:
        names = [contender.name for contender in self.contenders]
        if len(names) < 2 or len(set(names)) != len(names):
            raise ValueError(f"argument `contenders`: expected two or more different ones, got {names}")

    @property
    def slug(self) -> str:
        """What a run's folder says it belongs to."""
        return f"compare_{self.task}"

    def meetings(self) -> Iterator[tuple[World, Contender]]:
        """Every contender on the data."""
        for contender in self.contenders:
            yield self.world, contender

    def configuration(self, scale: Scale) -> dict[str, Settings]:
        """What a trial is told. Contenders are told apart by their names, so that more of them extend a run."""
        return {f"scale {scale.name}": dict(scale.settings), f"world {self.world.name}": dict(self.world.settings)}


@dataclass(frozen=True)
class AgainstBest:
    """The best contender against another one, by the deciding metric."""

    contender: str
    found: PairedComparison
    """How much better the best one is, with its simultaneous interval."""
    p_holm: float

    @property
    def beaten(self) -> bool:
        """Whether the data tell it from the best."""
        return self.p_holm < 1 - CONFIDENCE


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison found; the contenders are ranked, the best first."""

    task: str
    world: World
    metrics: tuple[Metric, ...]
    contenders: tuple[Contender, ...]
    against_best: tuple[AgainstBest, ...]
    seeds: tuple[int, ...]
    trials: tuple[TrialRecord, ...]
    scale: Scale
    provenance: Mapping[str, Any]

    @property
    def best(self) -> Contender:
        """The contender with the best mean."""
        return self.contenders[0]

    @property
    def equals(self) -> list[Contender]:
        """The contenders that the data cannot tell from the best."""
        open_ = {one.contender for one in self.against_best if not one.beaten}
        return [contender for contender in self.contenders[1:] if contender.name in open_]

    @property
    def answer(self) -> str:
        """Which one to use, in one or two sentences."""
        equals = ", ".join(contender.title for contender in self.equals)
        if not equals:
            return f"Use {self.best.title}: it is better than every other contender."
        if len(self.equals) == len(self.against_best):
            return (
                f"These data cannot tell the contenders apart. {self.best.title} has the best mean; take the one that "
                "is simplest for you, or compare with more seeds or more data."
            )
        return f"Use {self.best.title}, or one that these data cannot tell from it: {equals}."

    def values(self, contender: str, metric: str) -> list[float]:
        """A metric seed by seed, in the order of `seeds`."""
        found = {trial.seed: trial.metrics[metric] for trial in self.trials if trial.contender == contender}
        return [found[seed] for seed in self.seeds]

    def as_json(self) -> dict[str, Any]:
        """Plain data, the deciding metric first; unbounded ends of intervals are null."""
        return {
            "schema": _SCHEMA,
            "task": self.task,
            "answer": self.answer,
            "best": self.best.name,
            "cannot_tell_from_best": [contender.name for contender in self.equals],
            "metrics": [asdict(metric) for metric in self.metrics],
            "ranking": [self._contender_json(contender) for contender in self.contenders],
            "seeds": list(self.seeds),
            "data": {"title": self.world.title, "description": self.world.description, **self.world.settings},
            "budget": dict(self.scale.settings),
            "provenance": dict(self.provenance),
        }

    def _contender_json(self, contender: Contender) -> dict[str, Any]:
        per_seed = {metric.name: self.values(contender.name, metric.name) for metric in self.metrics}
        row: dict[str, Any] = {
            "contender": contender.name,
            "title": contender.title,
            "settings": dict(contender.settings),
            "mean": {name: mean_interval(values).mean for name, values in per_seed.items()},
            "per_seed": per_seed,
        }
        for one in self.against_best:
            if one.contender == contender.name:
                row |= {"behind_best": comparison_json(one.found), "p_holm": one.p_holm, "beaten": one.beaten}
        return row


def conclude(
    comparison: Comparison, seeds: Sequence[int], trials: Sequence[TrialRecord], provenance: Mapping[str, Any]
) -> ComparisonResult:
    """Rank the contenders and compare the best one with the others."""
    deciding = comparison.metrics[0]
    values = {
        contender.name: [
            next(one for one in trials if one.contender == contender.name and one.seed == seed).metrics[deciding.name]
            for seed in seeds
        ]
        for contender in comparison.contenders
    }
    sign = 1 if deciding.better == "higher" else -1
    ranked = sorted(comparison.contenders, key=lambda one: -sign * math.fsum(values[one.name]))
    best, others = ranked[0], ranked[1:]
    found = [
        paired_comparison(
            values[best.name],
            values[other.name],
            better=deciding.better,
            confidence=1 - (1 - CONFIDENCE) / len(others),
            resampled=comparison.test_share,
        )
        for other in others
    ]
    corrected = holm([one.p_value for one in found])
    return ComparisonResult(
        task=comparison.task,
        world=comparison.world,
        metrics=comparison.metrics,
        contenders=tuple(ranked),
        against_best=tuple(
            AgainstBest(other.name, one, p) for other, one, p in zip(others, found, corrected, strict=True)
        ),
        seeds=tuple(seeds),
        trials=tuple(trials),
        scale=comparison.scale,
        provenance=provenance,
    )


def tuned(learning_rates: str, attempt: Callable[[float], tuple[float, _Trained]]) -> tuple[float, _Trained]:
    """What was trained with the best rate of a grid, and what it reached on the validation part.

    Args:
        learning_rates: as in a budget, with commas between them.
        attempt: trains with a rate, and says what that reached (higher is better); the first of equals is taken.
    """
    return max((attempt(float(rate)) for rate in learning_rates.split(",")), key=lambda found: found[0])


def contender_name(text: str) -> str:
    """A name for files: of an objective with options, told apart by a hash of how it is written."""
    words = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return words if re.fullmatch(r"[\w-]+", text) else f"{words}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"
