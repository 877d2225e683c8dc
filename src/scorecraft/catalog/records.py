"""Reading what studies, benchmarks and comparisons recorded under `results/`.

    results/studies/<slug>/<scale>.json
    results/bench/<cpu|cuda>.json
    results/comparisons/<task>/<data>.json

A checkout reads the folder at its root; an installed wheel carries a copy inside the package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]
VERDICTS = ("holds", "fails", "inconclusive")


class BadRecord(ValueError):
    """A recorded result that cannot be read."""


def checkout() -> Path | None:
    """The root of the checkout this package is imported from; None for an installed copy."""
    root = _PACKAGE.parents[1]
    return root if (root / "pyproject.toml").is_file() and root / "src" / "scorecraft" == _PACKAGE else None


def results_folder() -> Path:
    """Where recorded results are read from."""
    root = checkout()
    return _PACKAGE / "results" if root is None else root / "results"


def study_path(slug: str, scale: str = "desk") -> Path:
    """Where the study of a paper is recorded, whether it has been or not."""
    return results_folder() / "studies" / slug / f"{scale}.json"


def study_record(slug: str, scale: str = "desk") -> dict[str, Any] | None:
    """The recorded study of a paper, None where there is none.

    Raises:
        BadRecord: the file is there but is not a study's record.
    """
    path = study_path(slug, scale)
    record = _read(path)
    if record is not None and record.get("verdict") not in VERDICTS:
        raise BadRecord(f"{path}: expected a `verdict` of {', '.join(VERDICTS)}, got {record.get('verdict')!r}")
    return record


def bench_path(device: str = "cpu") -> Path:
    """Where the benchmarks of a device are recorded, whether they have been or not."""
    return results_folder() / "bench" / f"{device}.json"


def bench_record(device: str = "cpu") -> dict[str, Any] | None:
    """The recorded benchmarks of a device (`provenance` and `rows`), None where there are none.

    Raises:
        BadRecord: the file is there but is not a benchmark's record.
    """
    path = bench_path(device)
    record = _read(path)
    if record is not None and not isinstance(record.get("rows"), list):
        raise BadRecord(f"{path}: expected a list of `rows`, got {type(record.get('rows')).__name__}")
    return record


def comparison_path(task: str, data: str) -> Path:
    """Where a comparison on some data is recorded, whether it has been or not."""
    return results_folder() / "comparisons" / task / f"{data}.json"


def comparison_records() -> list[tuple[Path, dict[str, Any]]]:
    """Every recorded comparison with its file, ordered by task and data.

    Raises:
        BadRecord: a file is there but is not a comparison's record.
    """
    found = []
    for path in sorted((results_folder() / "comparisons").glob("*/*.json")):
        record = _read(path)
        if record is None or not isinstance(record.get("ranking"), list):
            raise BadRecord(f"{path}: expected a comparison with its `ranking`")
        found.append((path, record))
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        record = json.loads(text)
    except ValueError as error:
        raise BadRecord(f"{path}: expected JSON, got {error}") from error
    if not isinstance(record, dict):
        raise BadRecord(f"{path}: expected a JSON object, got {type(record).__name__}")
    return record
