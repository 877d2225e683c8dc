"""An entry that takes 200 MB at full size and nothing at toy size."""

from __future__ import annotations

from bench_fakes.cheap import SMALL, allocating
from scorecraft.bench.harness import Case, Entry, Figure, megabytes

CASES = (
    Case(
        "200 MB or none",
        SMALL,
        {"n": 0},
        {"ours": Entry("ours", allocating(200))},
        (Figure("memory", (megabytes(1e-4),)),),
    ),
)
