"""The rewards of sampled answers, per prompt, on disk: what a reference costs, kept, whatever is made of it later.

    made_by.json          what produced them: policy, sampling, reward models
    part-<digest>.jsonl   {"prompt": <sha256>, "rewards": {"helpful": [0.2, 1.1]}}, one prompt a line

Every file is written at once or not at all, under a name that follows from its content, so that several processes may
write into one folder and a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from scorecraft.core.checks import positive_integer, refuse
from scorecraft.core.files import write_atomically

Prompt: TypeAlias = Any
"""A text, or a list of messages."""
Samples: TypeAlias = Mapping[str, Sequence[float]]
"""Rewards of a prompt's answers, by the name of the reward."""

_FORMAT = 1


class RewardStore:
    """Rewards of sampled answers by prompt, in memory and, where there is a folder, on disk.

        store = RewardStore("references", made_by={"policy": "Qwen3-0.6B", "temperature": 1.0, "samples": 16})
        fill(store, prompts, compute)
        store[prompt]["helpful"]

    Args:
        folder: of the files, made when it is not there; None keeps everything in memory.
        made_by: what produced the rewards, anything that JSON holds; a folder of another producer is refused. Left out,
            a folder that is there is opened as it is.

    Raises:
        ValueError: one line: a folder of another producer, or a file that cannot be read.
    """

    def __init__(self, folder: str | Path | None = None, *, made_by: str | Mapping[str, Any] | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.made_by = made_by
        self._rewards: dict[str, dict[str, list[float]]] = {}
        if self.folder is None:
            return
        path = self.folder / "made_by.json"
        if path.exists():
            theirs = _parsed(path, path.read_text(encoding="utf-8"), "format", "made_by")
            if theirs["format"] != _FORMAT:
                refuse("folder", f"rewards of format {_FORMAT}", f"format {theirs['format']} in {self.folder}")
            self.made_by = theirs["made_by"]
            if made_by is not None and self.made_by != json.loads(json.dumps(made_by)):
                refuse("made_by", f"{_short(self.made_by)}, of the rewards in {self.folder}", _short(made_by))
        else:
            if not made_by:
                refuse("made_by", "what produces the rewards in a new folder, such as policy and sampling", made_by)
            write_atomically(path, json.dumps({"format": _FORMAT, "made_by": made_by}, indent=1) + "\n")
        for part in sorted(self.folder.glob("part-*.jsonl")):
            for line in part.read_text(encoding="utf-8").splitlines():
                row = _parsed(part, line, "prompt", "rewards")
                self._rewards[row["prompt"]] = row["rewards"]

    def __len__(self) -> int:
        return len(self._rewards)

    def __contains__(self, prompt: Prompt) -> bool:
        return prompt_key(prompt) in self._rewards

    def __getitem__(self, prompt: Prompt) -> Mapping[str, list[float]]:
        """The rewards of a prompt, by name.

        Raises:
            ValueError: there are none.
        """
        found = self._rewards.get(prompt_key(prompt))
        if found is None:
            where = "memory" if self.folder is None else self.folder
            refuse("prompt", f"one of the {len(self)} prompts in {where}", repr(str(prompt)[:60]))
        return found

    def add(self, prompts: Sequence[Prompt], rewards: Sequence[Samples]) -> None:
        """Keep the rewards of some prompts; one file, whole or not at all.

        Args:
            prompts: which.
            rewards: for each of them, by name, at least one finite reward.

        Raises:
            ValueError: another number of rewards than of prompts, none for a prompt, or one that is not finite.
        """
        if len(prompts) != len(rewards):
            refuse("rewards", f"{len(prompts)} sets of rewards, one per prompt", len(rewards))
        rows = {prompt_key(prompt): _checked(samples) for prompt, samples in zip(prompts, rewards, strict=True)}
        if not rows:
            return
        if self.folder is not None:
            text = "".join(json.dumps({"prompt": key, "rewards": row}) + "\n" for key, row in rows.items())
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            write_atomically(self.folder / f"part-{name}.jsonl", text)
        self._rewards |= rows


def fill(
    store: RewardStore,
    prompts: Sequence[Prompt],
    compute: Callable[[list[int]], Sequence[Samples]],
    *,
    part: int = 16,
) -> None:
    """Compute what a store lacks, each prompt once, and keep it part by part.

    Args:
        store: to fill.
        prompts: whose rewards are needed; may repeat.
        compute: from places in `prompts` to the rewards of each, by name.
        part: prompts computed and kept at a time.
    """
    positive_integer("part", part)
    places = {prompt_key(prompt): place for place, prompt in reversed(list(enumerate(prompts)))}
    missing = sorted(place for place in places.values() if prompts[place] not in store)
    for start in range(0, len(missing), part):
        chosen = missing[start : start + part]
        store.add([prompts[place] for place in chosen], compute(chosen))


def prompt_key(prompt: Prompt) -> str:
    """A hash of a prompt, a text or anything that JSON holds."""
    try:
        text = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"argument `prompt`: expected a text or a list of messages, got {error}") from None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _checked(samples: Samples) -> dict[str, list[float]]:
    found = {name: [float(value) for value in values] for name, values in samples.items()}
    for name, values in found.items():
        if not values:
            refuse("rewards", "at least one reward per prompt", f"none of {name!r}")
        for value in values:
            if not math.isfinite(value):
                refuse("rewards", "finite rewards", f"{value} of {name!r}")
    return found


def _parsed(path: Path, text: str, *fields: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"cannot read {path} ({error}): delete the file, and what it held is computed anew") from error
    if not isinstance(found, dict) or not set(fields) <= found.keys():
        raise ValueError(f"cannot read {path} (expected the fields {', '.join(fields)}): is it of something else?")
    return found


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
