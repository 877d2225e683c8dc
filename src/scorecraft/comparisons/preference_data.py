"""Pairs of answers: a prompt, the answer that is preferred, and the one that is not.

They are read from a folder or file of parquet or JSON lines, or from the hub, in the forms the field uses: columns
`prompt`, `chosen`, `rejected` of texts or of messages; or `chosen` and `rejected` alone, as whole dialogues that share
their beginning.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from scorecraft.comparisons.labelled_data import BadData
from scorecraft.comparisons.retrieval_data import Row, rows_of_file
from scorecraft.integrations.optional import require

_TURN = re.compile(r"\n\n(?:Assistant|Human):|<\|im_start\|>\w+\n")
_SUFFIXES = (".parquet", ".jsonl")


@dataclass(frozen=True)
class PreferenceData:
    """Pairs of answers as texts."""

    prompts: tuple[str, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    left_out: int = 0
    """Pairs that say nothing: an empty answer, or two equal ones."""

    def __len__(self) -> int:
        return len(self.prompts)

    def digest(self) -> str:
        """SHA-256 of all of it: two runs must not mix trials on different data."""
        found = hashlib.sha256()
        for part in (self.prompts, self.chosen, self.rejected):
            for text in part:
                found.update(text.encode() + b"\0")
        return found.hexdigest()


@lru_cache(maxsize=2)
def load_preferences(source: str, *, split: str | None = None) -> PreferenceData:
    """Read pairs of answers; those with an empty answer or two equal ones are left out and counted.

    Args:
        source: a `.parquet` or `.jsonl` file, a folder with one per split, or the name of a hub data set.
        split: `train` when left out, else the only one.

    Raises:
        BadData: in one line, naming the row.
        ImportError: an optional package is needed; the line says how to install it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        rows: Iterable[Row] = rows_of_file(_file_in(path, split))
    elif path.is_file():
        rows = rows_of_file(path)
    elif source.startswith((".", "/", "~")) or path.suffix in _SUFFIXES:
        _bad(source, "there is no such file or folder")
    else:
        rows = _hub(source, split)
    pairs = [_pair(source, number, row) for number, row in enumerate(rows)]
    kept = [pair for pair in pairs if pair[1].strip() and pair[2].strip() and pair[1] != pair[2]]
    if not kept:
        _bad(source, f"expected pairs of two different answers, got {len(pairs)} rows without one")
    return PreferenceData(*zip(*kept, strict=True), left_out=len(pairs) - len(kept))


def _file_in(path: Path, split: str | None) -> Path:
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    wanted = [file for file in found if file.stem == (split or "train")] or (found if split is None else [])
    if len(wanted) != 1:
        there = ", ".join(file.stem for file in found) or "none"
        _bad(path, f"expected one file of pairs `{split or 'train'}.parquet` or .jsonl, got {there}")
    return wanted[0]


def _hub(source: str, split: str | None) -> Iterable[Row]:
    require("datasets", "text")
    import datasets

    try:
        return datasets.load_dataset(source, split=split or "train")  # type: ignore[return-value]
    except Exception as error:  # the hub's clients raise errors of many libraries
        _bad(source, f"neither a file or folder, nor could the hub give it ({type(error).__name__}: {error})")


def _pair(source: object, number: int, row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Prompt, chosen and rejected answer of a row."""
    missing = [name for name in ("chosen", "rejected") if row.get(name) is None]
    if missing:
        _bad(source, f"row {number} has no `{missing[0]}`, only {', '.join(row)}")
    chosen, rejected = (_text(source, number, row[name]) for name in ("chosen", "rejected"))
    if row.get("prompt") is not None:
        prompt = _text(source, number, row["prompt"])
        # Messages may hold the whole dialogue although the prompt stands apart.
        return prompt, chosen.removeprefix(prompt), rejected.removeprefix(prompt)
    same = itertools.takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False))
    shared = "".join(letter for letter, _ in same)
    turns = [turn.end() for turn in _TURN.finditer(shared)]
    start = turns[-1] if turns else 0
    return shared[:start], chosen[start:], rejected[start:]


def _text(source: object, number: int, value: object) -> str:
    """A text, or messages one under the other."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(one, Mapping) and "content" in one for one in value):
        return "".join(f"\n\n{_speaker(one.get('role'))}: {one['content']}" for one in value)
    _bad(source, f"row {number} holds neither texts nor messages, but {type(value).__name__}")


def _speaker(role: object) -> str:
    return {"user": "Human", "assistant": "Assistant"}.get(str(role), str(role).capitalize())


def _bad(source: object, what: str) -> NoReturn:
    raise BadData(f"data `{source}`: {what}")
