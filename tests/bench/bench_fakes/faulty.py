"""An entry that cannot run."""

from __future__ import annotations

from bench_fakes.cheap import SMALL, failing
from scorecraft.bench.harness import Case, Entry, Figure

CASES = (Case("exits", SMALL, SMALL, {"ours": Entry("ours", failing)}, (Figure("time"),)),)
