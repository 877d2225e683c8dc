"""The filter of hard examples: full batches, leftovers, warm-up, resuming, ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import run_ranks
from torch import Tensor
from torch.utils.data import DataLoader

from scorecraft.preference.dco import CoverageBatchSampler, CoverageFilter, CoverageFilteredDataset

SIZE, BATCH = 23, 6


def third(indices: list[int]) -> Tensor:
    """Every third example is easy; the weight of the others tells them apart."""
    values = torch.tensor(indices)
    return torch.where(values % 3 == 0, 0.05, 0.2 + values / 100)


def made(score: Callable[[list[int]], Tensor] = third, **options: Any) -> CoverageFilter:
    return CoverageFilter(SIZE, batch_size=BATCH, score=score, **options)


def test_batches_are_full_and_hold_what_has_weight() -> None:
    asked: list[list[int]] = []

    def score(indices: list[int]) -> Tensor:
        asked.append(indices)
        return third(indices)

    kept = made(score)
    seen = []
    for indices, weights in kept:
        assert len(indices) == len(weights) == BATCH
        torch.testing.assert_close(weights, third(indices))
        seen += indices
    assert [len(one) for one in asked] == [6, 6, 6, 5]
    assert sorted(index for one in asked for index in one) == list(range(SIZE))
    hard = [index for one in asked for index in one if index % 3]  # in the order of the candidates
    assert seen == hard[: len(seen)]
    assert len(seen) == 12
    assert len(kept) == 15 - 12
    assert kept.keep_rate == pytest.approx(15 / 23)


def test_leftovers_roll_over_to_the_next_pass() -> None:
    kept = made()
    first = [batch.indices for batch in kept]
    waiting = kept.state_dict()["queue"]
    second = [batch.indices for batch in kept]
    assert second[0][:3] == waiting
    everything = [index for batch in first + second for index in batch] + kept.state_dict()["queue"]
    assert sorted(everything) == sorted(2 * [index for index in range(SIZE) if index % 3])
    assert first != second[: len(first)]  # another shuffle
    assert kept.epoch == 2


def test_a_pass_without_a_full_batch_goes_on_with_the_next() -> None:
    kept = made(lambda indices: (torch.tensor(indices) == 4).float())
    (batch,) = list(kept)
    assert batch.indices == [4] * 6
    assert kept.epoch == 6


def test_a_pass_that_keeps_nothing_ends_it() -> None:
    kept = made(lambda indices: torch.full((len(indices),), 0.125), epsilon=0.125)  # above epsilon, not at it
    with pytest.warns(UserWarning, match=r"no example has a weight above 0\.125 any more"):
        assert list(kept) == []
    assert kept.epoch == 1


def test_passes_are_counted() -> None:
    kept = made(passes=2)
    assert len(list(kept)) + len(list(kept)) == 5
    assert list(kept) == []


def test_warm_up_takes_all() -> None:
    asked = []

    def score(indices: list[int]) -> Tensor:
        asked.append(len(indices))
        return torch.zeros(len(indices))

    kept = made(score, warmup_batches=3, passes=1)
    found = list(kept)
    assert [batch.weights.tolist() for batch in found] == [[1.0] * 6] * 3
    assert asked == [5]
    assert (kept.candidates, kept.kept, len(kept)) == (5, 0, 0)


def test_the_seed_decides_the_order() -> None:
    one, same, other = (next(iter(made(seed=seed))).indices for seed in (3, 3, 4))
    assert one == same != other


@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_resumed_from_its_state(batches: int) -> None:
    """Anywhere, also between two batches that one look at candidates had filled."""

    def endless(kept: CoverageFilter) -> Any:
        while True:
            yield from kept

    whole = endless(made())
    wanted = [next(whole) for _ in range(9)][batches:]
    first = made()
    start = endless(first)
    for _ in range(batches):
        next(start)
    again = made()
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert again.state_dict() == first.state_dict()
    rest = endless(again)
    for batch in wanted:
        found = next(rest)
        assert found.indices == batch.indices
        assert torch.equal(found.weights, batch.weights)


def test_an_iteration_that_was_left_is_taken_up() -> None:
    whole, parts = made(), made()
    wanted = [batch.indices for batch in whole]
    assert [next(iter(parts)).indices for _ in wanted] == wanted


def test_dealt_out_in_micro_batches() -> None:
    sampler = CoverageBatchSampler(made(), micro_batches=3)
    lists = list(sampler)
    assert [len(one) for one in lists] == [2] * 6
    assert lists[0] + lists[1] + lists[2] == next(iter(made())).indices
    assert len(sampler) == SIZE // BATCH * 3
    loader = DataLoader(list(range(SIZE)), batch_sampler=CoverageBatchSampler(made(), micro_batches=3))
    assert [batch.tolist() for batch in loader] == lists


def test_a_data_set_hands_on_the_weights() -> None:
    rows = [{"x": index} for index in range(SIZE)]
    data = CoverageFilteredDataset(rows, CoverageBatchSampler(made()))
    loader = DataLoader(data, batch_size=BATCH)
    batches = list(loader)
    assert len(batches) == 2
    for batch in batches:
        torch.testing.assert_close(batch["coverage_weight"].float(), third(batch["x"].tolist()))
    assert rows[1] == {"x": 1}
    state = data.state_dict()
    pairs = CoverageFilteredDataset("abcdefghijklmnopqrstuvw", CoverageBatchSampler(made()))
    pairs.load_state_dict(state)
    letter, weight = next(iter(pairs))
    assert weight == pytest.approx(third([ord(letter) - ord("a")]).item())
    with pytest.raises(ValueError, match="expected 0 workers around a filtered data set"):
        list(DataLoader(data, batch_size=BATCH, num_workers=1))


def test_what_is_refused() -> None:
    state = made().state_dict()
    calls = [
        (lambda: made(epsilon=1.5), "argument `epsilon`: expected a number in [0, 1]"),
        (lambda: made(warmup_batches=-1), "argument `warmup_batches`"),
        (lambda: made(passes=0), "argument `passes`"),
        (lambda: made(seed=-1), "argument `seed`"),
        (lambda: CoverageFilter(0, batch_size=1, score=third), "argument `size`"),
        (lambda: CoverageFilter(3, batch_size=0, score=third), "argument `batch_size`"),
        (lambda: list(made(lambda indices: torch.ones(3))), "argument `score`: expected a function that returns 6"),
        (lambda: list(made(lambda indices: [1.0] * 6)), "argument `score`: expected a function that returns 6"),
        (lambda: list(made(lambda indices: torch.full((6,), 1.5))), "argument `score`: expected weights in [0, 1]"),
        (lambda: made(seed=1).load_state_dict(state), "argument `state`: expected seed = 1, got seed = 0"),
        (
            lambda: CoverageFilter(9, batch_size=6, score=third).load_state_dict(state),
            "argument `state`: expected size",
        ),
        (lambda: CoverageBatchSampler(made(), micro_batches=4), "argument `micro_batches`: expected a divisor of"),
        (lambda: CoverageBatchSampler(made(), micro_batches=0), "argument `micro_batches`"),
    ]
    for call, line in calls:
        with pytest.raises(ValueError, match=r"^argument") as caught:
            call()
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)


def _on_ranks(rank: int, folder: str) -> None:
    asked: list[int] = []

    def score(indices: list[int]) -> Tensor:
        asked.extend(indices)
        return third(indices)

    kept = made(score, seed=rank)  # the order is that of rank 0, whatever a rank would have taken
    sampler = CoverageBatchSampler(kept)
    lists = [one for _ in range(2) for one in sampler]
    told = {"lists": lists, "state": kept.state_dict(), "asked": len(asked)}
    Path(folder, f"{rank}.json").write_text(json.dumps(told))


def test_ranks_take_the_same_decisions(tmp_path: Path) -> None:
    run_ranks(_on_ranks, str(tmp_path))
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    alone = made(seed=0)
    batches = [batch.indices for _ in range(2) for batch in alone]
    assert [first + second for first, second in zip(both[0]["lists"], both[1]["lists"], strict=True)] == batches
    for rank in (0, 1):
        wanted = alone.state_dict() | {"seed": rank}
        assert both[rank]["state"] == wanted
        assert both[rank]["asked"] == 2 * 12  # half of the 23, the odd one on both
