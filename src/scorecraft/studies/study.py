"""What a study is: a paper's claim and the contenders that test it, all fixed before anything is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar

from scorecraft.core.paper import Paper

Settings = Mapping[str, Any]
"""Numbers, strings and truth values by name."""
Role = Literal["method", "baseline", "contender", "reference"]
Verdict = Literal["holds", "fails", "inconclusive"]

DESK_SEEDS = 8
"""The fewest paired seeds a study may have at desk scale."""


class StudyError(Exception):
    """Something that keeps a study from running, said in one line."""


@dataclass(frozen=True)
class Metric:
    """A number that every trial returns."""

    name: str
    title: str
    better: Literal["higher", "lower"] = "higher"
    decimals: int = 3
    """Digits after the point where it is shown."""


@dataclass(frozen=True)
class Contender:
    """One way of doing it."""

    name: str
    title: str
    role: Role = "contender"
    """`method` (under test), `baseline` (the paper's own), `contender`, or `reference` (shown, never compared)."""
    settings: Settings = field(default_factory=dict)
    worlds: tuple[str, ...] = ()
    """The worlds it takes part in; empty means all."""

    def __post_init__(self) -> None:
        _check_name("contender", self.name)
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def __reduce__(self) -> tuple[type[Contender], tuple[object, ...]]:
        return Contender, (self.name, self.title, self.role, dict(self.settings), self.worlds)


@dataclass(frozen=True)
class World:
    """Where the contenders meet: data with its settings."""

    name: str
    title: str
    description: str = ""
    settings: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("world", self.name)
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def __reduce__(self) -> tuple[type[World], tuple[object, ...]]:
        return World, (self.name, self.title, self.description, dict(self.settings))


@dataclass(frozen=True)
class Scale:
    """How large the study is run: `smoke` for seconds, `desk` for minutes on two cores."""

    name: str
    seeds: int
    settings: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("scale", self.name)
        if self.seeds < 1:
            raise ValueError(f"scale `{self.name}`: expected at least one seed, got {self.seeds}")
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def __reduce__(self) -> tuple[type[Scale], tuple[object, ...]]:
        return Scale, (self.name, self.seeds, dict(self.settings))


@dataclass(frozen=True)
class Claim:
    """`method` improves `metric` over `baseline` by at least `margin`.

    An improvement is counted in the direction of the metric, so it is positive when the method is better. A `relative`
    margin is a fraction of the baseline's mean: 0.25 with a lower-is-better metric claims a reduction by a quarter.
    """

    sentence: str
    metric: str
    margin: float
    relative: bool = False
    method: str = ""
    """Name of a contender; empty means the study's method under test."""
    baseline: str = ""
    """Name of a contender; empty means the study's baseline."""
    world: str = ""
    """Name of a world; empty means the one that carries the verdict."""


_Named = TypeVar("_Named", Metric, Contender, World, Scale)

Trial = Callable[[World, Contender, int, Scale], Mapping[str, float]]
"""Runs one contender with one seed: a module's function that depends on nothing but its arguments."""


class Experiment(Protocol):
    """What the runner needs to know: a study is one, and so is a comparison on somebody's own data."""

    @property
    def slug(self) -> str:
        """What a run's folder says it belongs to."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What every trial returns."""
        ...

    @property
    def trial(self) -> Trial:
        """Runs one contender with one seed."""
        ...

    def meetings(self) -> Iterable[tuple[World, Contender]]:
        """Every contender in every world it takes part in."""
        ...

    def configuration(self, scale: Scale) -> dict[str, Settings]:
        """Everything that a trial is told, by name."""
        ...


@dataclass(frozen=True)
class Study:
    """One paper's claim as an experiment.

    Args:
        paper: the paper's card; its slug names the study.
        claim: the statement that the verdict is about.
        metrics: what every trial returns, the claim's metric among them.
        worlds: the first carries the verdict; the others are reported beside it.
        contenders: exactly one `method` and one `baseline`, any number of further ones and references.
        trial: `trial(world, contender, seed, scale)` returns a value for each metric. Trials of the same seed and world
            must share everything that is not the contender's own (data, initial weights, order of batches): they are
            compared in pairs.
        scales: `smoke` and `desk` at least; desk has eight seeds or more.
        further_claims: expectations written down beforehand that are judged by the same rule and shown, without a say
            in the verdict.
        notes: limits a reader must know, one sentence each.

    Raises:
        ValueError: the parts do not fit together.
    """

    paper: Paper
    claim: Claim
    metrics: tuple[Metric, ...]
    worlds: tuple[World, ...]
    contenders: tuple[Contender, ...]
    trial: Trial
    scales: tuple[Scale, ...]
    further_claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, things in (("metrics", self.metrics), ("worlds", self.worlds), ("contenders", self.contenders)):
            names = [thing.name for thing in things]
            if not names or len(set(names)) != len(names):
                raise ValueError(f"study `{self.slug}`: expected {what} with names of their own, got {names}")
        for role in ("method", "baseline"):
            holders = [contender.name for contender in self.contenders if contender.role == role]
            if len(holders) != 1:
                raise ValueError(f"study `{self.slug}`: expected exactly one contender as {role}, got {holders}")
            if self.contender(holders[0]).worlds:
                raise ValueError(f"study `{self.slug}`: expected the {role} to take part in every world")
        scales = {scale.name: scale for scale in self.scales}
        if not {"smoke", "desk"} <= scales.keys():
            raise ValueError(f"study `{self.slug}`: expected the scales smoke and desk, got {list(scales)}")
        if scales["desk"].seeds < DESK_SEEDS:
            raise ValueError(
                f"study `{self.slug}`: expected at least {DESK_SEEDS} desk seeds, got {scales['desk'].seeds}"
            )
        worlds = {world.name for world in self.worlds}
        for contender in self.contenders:
            if not set(contender.worlds) <= worlds:
                raise ValueError(
                    f"study `{self.slug}`: contender `{contender.name}` names unknown worlds {contender.worlds}"
                )
        for claim in (self.claim, *self.further_claims):
            world, method, baseline = self.parties(claim)
            self.metric(claim.metric)
            if not (self.takes_part(method, world) and self.takes_part(baseline, world)):
                raise ValueError(f"study `{self.slug}`: {method.name} and {baseline.name} never meet in {world.name}")

    @property
    def slug(self) -> str:
        """The paper's slug."""
        return self.paper.slug

    @property
    def method(self) -> Contender:
        """The contender under test."""
        return next(contender for contender in self.contenders if contender.role == "method")

    @property
    def baseline(self) -> Contender:
        """The paper's own baseline."""
        return next(contender for contender in self.contenders if contender.role == "baseline")

    def scale(self, name: str) -> Scale:
        """The scale of this name; `StudyError` when the study has none."""
        return self._find(name, self.scales, "scale")

    def metric(self, name: str) -> Metric:
        """The metric of this name."""
        return self._find(name, self.metrics, "metric")

    def world(self, name: str) -> World:
        """The world of this name."""
        return self._find(name, self.worlds, "world")

    def contender(self, name: str) -> Contender:
        """The contender of this name."""
        return self._find(name, self.contenders, "contender")

    def parties(self, claim: Claim) -> tuple[World, Contender, Contender]:
        """The world a claim is about, its method and its baseline, with the defaults filled in."""
        return (
            self.world(claim.world) if claim.world else self.worlds[0],
            self.contender(claim.method) if claim.method else self.method,
            self.contender(claim.baseline) if claim.baseline else self.baseline,
        )

    def takes_part(self, contender: Contender, world: World) -> bool:
        """Whether a contender is run in a world."""
        return not contender.worlds or world.name in contender.worlds

    def meetings(self) -> Iterator[tuple[World, Contender]]:
        """Every contender in every world it takes part in."""
        for world in self.worlds:
            for contender in self.contenders:
                if self.takes_part(contender, world):
                    yield world, contender

    def configuration(self, scale: Scale) -> dict[str, Settings]:
        """Everything that a trial of this scale is told, by name: two runs with different ones must not be mixed.

        The number of seeds is not part of it, since more seeds extend a run.
        """
        parts: dict[str, Settings] = {f"scale {scale.name}": dict(scale.settings)}
        parts |= {f"world {world.name}": dict(world.settings) for world in self.worlds}
        parts |= {f"contender {contender.name}": dict(contender.settings) for contender in self.contenders}
        parts |= {f"metric {metric.name}": {} for metric in self.metrics}
        return parts

    def _find(self, name: str, things: tuple[_Named, ...], what: str) -> _Named:
        for thing in things:
            if thing.name == name:
                return thing
        known = ", ".join(thing.name for thing in things)
        raise StudyError(f"study `{self.slug}` has no {what} `{name}`: expected one of {known}")


def _check_name(what: str, name: str) -> None:
    """Names become parts of file names."""
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name):
        raise ValueError(f"{what} name: expected lower-case words joined by single underscores, got {name!r}")
