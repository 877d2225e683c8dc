"""A study whose trials cost nothing, to test the machinery around it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path

from scorecraft.core.paper import Paper
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Study, World


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> Mapping[str, float]:
    if log := os.environ.get("FAKE_STUDY_LOG"):
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()} {world.name}--{contender.name}--{seed:04d}\n")
    time.sleep(float(scale.settings["seconds"]))
    noise = ((seed * 7 + len(contender.name) * 3) % 5) / 100
    return {"accuracy": float(contender.settings["level"]) + noise, "cost": 5.0 - seed / 10}


def broken_trial(world: World, contender: Contender, seed: int, scale: Scale) -> Mapping[str, float]:
    if seed == 2 and contender.name == "new":
        raise ZeroDivisionError("no such thing")
    return trial(world, contender, seed, scale)


def nan_trial(world: World, contender: Contender, seed: int, scale: Scale) -> Mapping[str, float]:
    return {**trial(world, contender, seed, scale), "cost": float("nan")}


def forgetful_trial(world: World, contender: Contender, seed: int, scale: Scale) -> Mapping[str, float]:
    return {"accuracy": 1.0}


def interrupted_trial(world: World, contender: Contender, seed: int, scale: Scale) -> Mapping[str, float]:
    if seed == 2:
        raise KeyboardInterrupt
    return trial(world, contender, seed, scale)


STUDY = Study(
    paper=Paper(
        slug="made_up",
        title="On <Escaping> & other made-up matters",
        arxiv="0000.00000",
        date="2020-01-01",
        room="similarity",
        kind="loss",
    ),
    claim=Claim("New beats old by a tenth.", metric="accuracy", margin=0.1),
    further_claims=(Claim("New beats other.", metric="accuracy", margin=0.01, baseline="other"),),
    metrics=(Metric("accuracy", "accuracy"), Metric("cost", "cost", better="lower", decimals=1)),
    worlds=(World("first", "first world", "Where it counts."), World("second", "second <world>", settings={"size": 3})),
    contenders=(
        Contender("old", "old", "baseline", {"level": 0.5}),
        Contender("other", "other", settings={"level": 0.6}),
        Contender("new", "new & better", "method", {"level": 0.7}),
        Contender("truth", "truth", "reference", {"level": 0.9}, worlds=("first",)),
    ),
    trial=trial,
    scales=(Scale("smoke", 4, {"seconds": 0.0}), Scale("desk", 8, {"seconds": 0.1})),
    notes=("Nothing here is <real>.",),
)


def variant(**changes: object) -> Study:
    return dataclasses.replace(STUDY, **changes)
