"""Entries with known time, known memory, and known faults."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from scorecraft.bench.harness import (
    Call,
    Case,
    Entry,
    Figure,
    Shape,
    below_peer,
    megabytes,
    times_floor,
)

Build = Callable[[Shape, torch.device], Call]
SMALL = {"n": 1}


def sleeping(milliseconds: float, value: float = 1.0) -> Build:
    def build(shape: Shape, device: torch.device) -> Call:
        def call() -> float:
            print("measured code may print")
            time.sleep(milliseconds / 1e3)
            return value

        return call

    return build


def allocating(megabytes_at_peak: int, inputs: int = 0) -> Build:
    """Holds `inputs` MB before the call and `megabytes_at_peak` more for a moment during it (times n, from 0 or 1)."""

    def build(shape: Shape, device: torch.device) -> Call:
        kept = torch.ones(inputs * 250_000 * shape["n"], device=device)
        torch.ones(inputs * 500_000 * shape["n"], device=device)  # dropped at once: building is not charged

        def call() -> float:
            block = torch.ones(megabytes_at_peak * 250_000 * shape["n"], device=device)
            return float(kept.sum() * 0 + block[:1].sum())

        return call

    return build


def failing(shape: Shape, device: torch.device) -> Call:
    sys.exit("this entry cannot run")


SLEEP = Case(
    name="sleeping, 20 against 40 and 10",
    shape=SMALL,
    small=SMALL,
    entries={
        "ours": Entry("ours", sleeping(20)),
        "peer": Entry("a sleepy peer", sleeping(40)),
        "floor": Entry("floor", sleeping(10)),
    },
    figures=(Figure("time", (times_floor(3.0), below_peer(1.25))),),
    agreement=1e-6,
)
ALLOCATION = Case(
    name="200 MB on top of 100 MB",
    shape=SMALL,
    small={"n": 0},
    entries={"ours": Entry("ours", allocating(200, inputs=100)), "peer": Entry("twice as much", allocating(400))},
    figures=(Figure("memory", (megabytes(150),)), Figure("process memory")),
)
ABSENT = Case(
    name="peer not installed",
    shape=SMALL,
    small=SMALL,
    entries={
        "ours": Entry("ours", sleeping(1)),
        "peer": Entry("the peer", sleeping(1), needs=("no_package_of_this_name",)),
    },
    figures=(Figure("time", (below_peer(2),)),),
    agreement=1e-6,
)

CASES = (SLEEP, ALLOCATION, ABSENT)
