"""The catalogue: one entry per paper, finished or planned, and what was recorded about it.

A finished paper is a module of one of the families that holds a `PAPER` card; those are found by walking the families.
Every other paper has its card in `planned`.
"""

from __future__ import annotations

from scorecraft.catalog.entries import Entry, UnknownPaper, collect, entries, find, search
from scorecraft.catalog.records import BadRecord, bench_record, results_folder, study_record

__all__ = [
    "BadRecord",
    "Entry",
    "UnknownPaper",
    "bench_record",
    "collect",
    "entries",
    "find",
    "results_folder",
    "search",
    "study_record",
]
