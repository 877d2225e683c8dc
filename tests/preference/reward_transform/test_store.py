"""Rewards of sampled answers on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from scorecraft.preference.reward_transform import RewardStore, fill

MADE_BY = {"policy": "tiny", "temperature": 1.0, "samples": 2}
CHAT = [{"role": "user", "content": "w1?"}]


def rewards_of(places: list[int]) -> list[dict[str, list[float]]]:
    return [{"helpful": [place, place + 0.1]} for place in places]


def test_what_is_added_is_there_also_later(tmp_path: Path) -> None:
    store = RewardStore(tmp_path / "kept", made_by=MADE_BY)
    assert len(store) == 0
    store.add(["one", CHAT], [{"helpful": [0.1, -1 / 3], "harmless": [2]}, {}])
    store.add([], [])
    for opened in (store, RewardStore(tmp_path / "kept", made_by=MADE_BY), RewardStore(tmp_path / "kept")):
        assert len(opened) == 2
        assert opened["one"] == {"helpful": [0.1, -1 / 3], "harmless": [2.0]}
        assert opened[CHAT] == {}
        assert CHAT in opened
        assert "two" not in opened
        assert opened.made_by == MADE_BY
    # The order of a message's fields is no other prompt.
    assert [{"content": "w1?", "role": "user"}] in store


def test_in_memory() -> None:
    store = RewardStore()
    store.add(["one"], [{"helpful": [1.0]}])
    assert store["one"]["helpful"] == [1.0]


def test_files_are_whole_and_named_by_their_content(tmp_path: Path) -> None:
    for _ in range(2):  # two processes with the same part
        RewardStore(tmp_path, made_by=MADE_BY).add(["one", "two"], rewards_of([0, 1]))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    assert names[0] == "made_by.json"
    rows = [json.loads(line) for line in (tmp_path / names[1]).read_text().splitlines()]
    assert [row["rewards"] for row in rows] == rewards_of([0, 1])
    # Prompts may be private: a file has their hashes.
    assert "one" not in (tmp_path / names[1]).read_text()


def test_each_prompt_is_computed_once_in_parts() -> None:
    store, seen = RewardStore(), []

    def compute(places: list[int]) -> list[dict[str, list[float]]]:
        seen.append(places)
        return rewards_of(places)

    prompts = ["a", "b", "a", "c", "d", "b", "e"]
    store.add(["c"], [{"helpful": [7.0]}])
    fill(store, prompts, compute, part=2)
    assert seen == [[0, 1], [4, 6]]
    assert [store[one]["helpful"][0] for one in "abcde"] == [0, 1, 7, 4, 6]
    fill(store, prompts, compute, part=2)
    assert len(seen) == 2


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    prompts, computed = [f"p{number}" for number in range(10)], []

    def compute(places: list[int], dies: bool) -> list[dict[str, list[float]]]:
        if dies and len(computed) >= 6:
            raise KeyboardInterrupt
        computed.extend(places)
        return rewards_of(places)

    with pytest.raises(KeyboardInterrupt):
        fill(RewardStore(tmp_path, made_by=MADE_BY), prompts, lambda places: compute(places, True), part=3)
    assert computed == [0, 1, 2, 3, 4, 5]
    store = RewardStore(tmp_path, made_by=MADE_BY)
    assert len(store) == 6
    fill(store, prompts, lambda places: compute(places, False), part=3)
    assert computed == list(range(10))
    assert [store[one]["helpful"] for one in prompts] == [row["helpful"] for row in rewards_of(list(range(10)))]


def refused(line: str, call: Any) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_refusals(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    store = RewardStore(kept, made_by=MADE_BY)
    store.add(["one"], [{"helpful": [1.0]}])
    refused(
        'argument `made_by`: expected {"policy": "tiny", "temperature": 1.0, "samples": 2}, of the rewards in',
        lambda: RewardStore(kept, made_by={**MADE_BY, "temperature": 0.7}),
    )
    for nothing in (None, "", {}):
        refused(
            "argument `made_by`: expected what produces the rewards in a new folder",
            lambda nothing=nothing: RewardStore(tmp_path / "new", made_by=nothing),
        )
    assert not (tmp_path / "new").exists()
    refused(f"argument `prompt`: expected one of the 1 prompts in {kept}, got 'two'", lambda: store["two"])
    refused("argument `prompt`: expected one of the 0 prompts in memory, got 'two'", lambda: RewardStore()["two"])
    refused("argument `prompt`: expected a text or a list of messages, got Object of type", lambda: store[b"bytes"])
    refused("argument `rewards`: expected 1 sets of rewards, one per prompt, got 2", lambda: store.add(["a"], [{}, {}]))
    refused(
        "argument `rewards`: expected at least one reward per prompt, got none of 'helpful'",
        lambda: store.add(["a"], [{"helpful": []}]),
    )
    refused(
        "argument `rewards`: expected finite rewards, got nan of 'helpful'",
        lambda: store.add(["a"], [{"helpful": [1.0, math.nan]}]),
    )
    refused("argument `part`: expected an integer >= 1, got 0 (int)", lambda: fill(store, ["a"], rewards_of, part=0))
    assert len(RewardStore(kept)) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    RewardStore(tmp_path, made_by=MADE_BY)
    part = tmp_path / "part-0123.jsonl"
    for text in ('{"prompt": "ab', '["prompt"]', '{"prompt": "ab"}'):
        part.write_text(text)
        refused(f"cannot read {part} (", lambda: RewardStore(tmp_path))
    part.unlink()
    (tmp_path / "made_by.json").write_text('{"format": 9, "made_by": 1}')
    refused("argument `folder`: expected rewards of format 1, got format 9 in", lambda: RewardStore(tmp_path))
    (tmp_path / "made_by.json").write_text("{")
    refused(f"cannot read {tmp_path / 'made_by.json'} (", lambda: RewardStore(tmp_path))
