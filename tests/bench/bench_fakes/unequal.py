"""Ours and the peer compute different things."""

from __future__ import annotations

from bench_fakes.cheap import SMALL, sleeping
from scorecraft.bench.harness import Case, Entry, Figure

CASES = (
    Case(
        name="one and two",
        shape=SMALL,
        small=SMALL,
        entries={"ours": Entry("ours", sleeping(1, value=1.0)), "peer": Entry("the peer", sleeping(1, value=2.0))},
        figures=(Figure("time"),),
        agreement=1e-3,
    ),
)
