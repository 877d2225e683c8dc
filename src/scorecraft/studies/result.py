"""The outcome of a study as plain data, and the JSON form that the README, the site and the catalogue are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scorecraft.studies.statistics import PairedComparison, holm, judge, paired_comparison
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Settings, Study, Verdict, World

_SCHEMA = 1


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial."""

    world: str
    contender: str
    seed: int
    metrics: Mapping[str, float]
    seconds: float
    """Wall time of the trial alone."""
    finished: str
    """Date in UTC."""
    cpu: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells one trial of a run from another."""
        return self.world, self.contender, self.seed


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with everything filled in, what was found, and the verdict."""

    sentence: str
    metric: str
    margin: float
    relative: bool
    method: str
    baseline: str
    world: str
    found: PairedComparison
    verdict: Verdict


@dataclass(frozen=True)
class ContenderComparison:
    """A contender against the study's baseline in one world, by one metric."""

    world: str
    metric: str
    contender: str
    found: PairedComparison
    p_holm: float
    """The p-value after Holm's correction over the contenders compared in this world by this metric."""


@dataclass(frozen=True)
class StudyResult:
    """What a study found."""

    slug: str
    title: str
    arxiv: str
    scale: str
    scale_settings: Settings
    claim: JudgedClaim
    further_claims: tuple[JudgedClaim, ...]
    comparisons: tuple[ContenderComparison, ...]
    metrics: tuple[Metric, ...]
    worlds: tuple[World, ...]
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]
    trials: tuple[TrialRecord, ...]
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]

    @property
    def verdict(self) -> Verdict:
        """Whether the study's claim holds, in the world that carries the verdict."""
        return self.claim.verdict

    def metric(self, name: str) -> Metric:
        """The metric of this name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def contender(self, name: str) -> Contender:
        """The contender of this name."""
        return next(contender for contender in self.contenders if contender.name == name)

    def world(self, name: str) -> World:
        """The world of this name."""
        return next(world for world in self.worlds if world.name == name)

    def contenders_in(self, world: str) -> list[Contender]:
        """The contenders that took part in a world, the method and the baseline first, references last."""
        present = [contender for contender in self.contenders if not contender.worlds or world in contender.worlds]
        return sorted(present, key=lambda one: ("method", "baseline", "contender", "reference").index(one.role))

    def values(self, world: str, contender: str, metric: str) -> list[float]:
        """A metric seed by seed, in the order of `seeds`."""
        found = {
            trial.seed: trial.metrics[metric]
            for trial in self.trials
            if trial.world == world and trial.contender == contender
        }
        return [found[seed] for seed in self.seeds]

    def comparison(self, world: str, contender: str, metric: str) -> ContenderComparison | None:
        """The comparison with the baseline; None for the baseline itself and for references."""
        for one in self.comparisons:
            if (one.world, one.contender, one.metric) == (world, contender, metric):
                return one
        return None

    def as_json(self) -> dict[str, Any]:
        """The form kept under `results/studies/<slug>/<scale>.json`.

        `effect`, `interval` and `margin` are improvements of the method over the baseline in the world that carries the
        verdict: positive is better, fractions of the baseline's mean where `relative`. Whatever is unbounded or not
        defined is null.
        """
        found = self.claim.found
        return {
            "schema": _SCHEMA,
            "slug": self.slug,
            "title": self.title,
            "arxiv": self.arxiv,
            "scale": self.scale,
            "scale_settings": dict(self.scale_settings),
            "claim": self.claim.sentence,
            "metric": self.claim.metric,
            "method": self.claim.method,
            "baseline": self.claim.baseline,
            "world": self.claim.world,
            "relative": self.claim.relative,
            "effect": found.improvement,
            "interval": [_number(found.low), _number(found.high)],
            "margin": self.claim.margin,
            "effect_size": found.effect_size,
            "p_value": found.p_value,
            "verdict": self.verdict,
            "seeds": list(self.seeds),
            "metrics": [asdict(metric) for metric in self.metrics],
            "worlds": [
                {"name": one.name, "title": one.title, "description": one.description, "settings": dict(one.settings)}
                for one in self.worlds
            ],
            "contenders": [
                {
                    "name": one.name,
                    "title": one.title,
                    "role": one.role,
                    "settings": dict(one.settings),
                    "worlds": list(one.worlds),
                }
                for one in self.contenders
            ],
            "further_claims": [
                {**_without(asdict(one), "found"), "found": comparison_json(one.found)} for one in self.further_claims
            ],
            "comparisons": [
                {**_without(asdict(one), "found"), "found": comparison_json(one.found)} for one in self.comparisons
            ],
            "notes": list(self.notes),
            "trials": [asdict(trial) for trial in self.trials],
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StudyResult:
        """Read back what `as_json` gave.

        Raises:
            ValueError: content of another schema.
        """
        if content.get("schema") != _SCHEMA:
            raise ValueError(
                f"argument `content`: expected a study result of schema {_SCHEMA}, got {content.get('schema')}"
            )
        found = {
            "pairs": len(content["seeds"]),
            "improvement": content["effect"],
            "low": content["interval"][0],
            "high": content["interval"][1],
            "effect_size": content["effect_size"],
            "p_value": content["p_value"],
            "relative": content["relative"],
        }
        fields = ("metric", "margin", "relative", "method", "baseline", "world", "verdict")
        return cls(
            slug=content["slug"],
            title=content["title"],
            arxiv=content["arxiv"],
            scale=content["scale"],
            scale_settings=content["scale_settings"],
            claim=JudgedClaim(
                sentence=content["claim"], found=_comparison(found), **{field: content[field] for field in fields}
            ),
            further_claims=tuple(
                JudgedClaim(**_without(one, "found"), found=_comparison(one["found"]))
                for one in content["further_claims"]
            ),
            comparisons=tuple(
                ContenderComparison(**_without(one, "found"), found=_comparison(one["found"]))
                for one in content["comparisons"]
            ),
            metrics=tuple(Metric(**one) for one in content["metrics"]),
            worlds=tuple(World(**one) for one in content["worlds"]),
            contenders=tuple(
                Contender(**_without(one, "worlds"), worlds=tuple(one["worlds"])) for one in content["contenders"]
            ),
            seeds=tuple(content["seeds"]),
            trials=tuple(TrialRecord(**one) for one in content["trials"]),
            notes=tuple(content["notes"]),
            provenance=content["provenance"],
        )


def conclude(
    study: Study, scale: Scale, seeds: Sequence[int], trials: Sequence[TrialRecord], provenance: Mapping[str, Any]
) -> StudyResult:
    """Judge a study's claims on its finished trials, which must be there for every meeting and seed."""
    finished = {trial.key: trial for trial in trials}
    kept = [
        finished[world.name, contender.name, seed] for seed in seeds for world, contender in study.meetings()
    ]  # fmt: skip

    def compare(world: World, method: Contender, baseline: Contender, metric: str, relative: bool) -> PairedComparison:
        ours, theirs = (
            [finished[world.name, one.name, seed].metrics[metric] for seed in seeds] for one in (method, baseline)
        )
        return paired_comparison(ours, theirs, better=study.metric(metric).better, relative=relative)

    def judged(claim: Claim) -> JudgedClaim:
        world, method, baseline = study.parties(claim)
        found = compare(world, method, baseline, claim.metric, claim.relative)
        return JudgedClaim(
            sentence=claim.sentence,
            metric=claim.metric,
            margin=claim.margin,
            relative=claim.relative,
            method=method.name,
            baseline=baseline.name,
            world=world.name,
            found=found,
            verdict=judge(found, claim.margin),
        )

    comparisons: list[ContenderComparison] = []
    for world in study.worlds:
        rivals = [
            contender
            for contender in study.contenders
            if contender.role in ("method", "contender") and study.takes_part(contender, world)
        ]
        for metric in study.metrics:
            relative = study.claim.relative and metric.name == study.claim.metric
            found = [compare(world, rival, study.baseline, metric.name, relative) for rival in rivals]
            corrected = holm([one.p_value for one in found])
            comparisons += [
                ContenderComparison(world.name, metric.name, rival.name, one, p_holm)
                for rival, one, p_holm in zip(rivals, found, corrected, strict=True)
            ]
    return StudyResult(
        slug=study.slug,
        title=study.paper.title,
        arxiv=study.paper.arxiv,
        scale=scale.name,
        scale_settings=scale.settings,
        claim=judged(study.claim),
        further_claims=tuple(judged(claim) for claim in study.further_claims),
        comparisons=tuple(comparisons),
        metrics=study.metrics,
        worlds=study.worlds,
        contenders=study.contenders,
        seeds=tuple(seeds),
        trials=tuple(kept),
        notes=study.notes,
        provenance=provenance,
    )


def comparison_json(found: PairedComparison) -> dict[str, Any]:
    """A paired comparison as plain data; unbounded ends are null."""
    return {**asdict(found), "low": _number(found.low), "high": _number(found.high)}


def _comparison(content: Mapping[str, Any]) -> PairedComparison:
    low = -math.inf if content["low"] is None else content["low"]
    high = math.inf if content["high"] is None else content["high"]
    return PairedComparison(**{**content, "low": low, "high": high})


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _without(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != key}
