"""Episodic sampling: what an episode and an epoch hold, seeds, replicas, and the data loader."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from scorecraft.similarity.episodic_sampler import EpisodicBatchSampler, split_episode

# 8 classes, of which those of 3 and of 6 items are too small for episodes of 2 + 5; labels are any integers.
SIZES = {4: 10, -1: 7, 100: 8, 7: 3, 8: 6, 20: 9, 21: 20, 22: 7}
LABELS = torch.tensor([label for label, size in SIZES.items() for _ in range(size)])
LABELS = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))]
TASK = {"way": 4, "shot": 2, "queries": 5}


def test_an_episode_is_class_major_and_holds_no_item_twice() -> None:
    for batch in EpisodicBatchSampler(LABELS, **TASK, episodes=60):
        assert len(batch) == len(set(batch)) == 4 * (2 + 5)
        supports, queries = split_episode(LABELS[batch], **TASK)
        assert supports.shape == (4, 2)
        assert queries.shape == (4, 5)
        classes = supports[:, 0]
        assert len(classes.unique()) == 4
        assert (supports == classes[:, None]).all()
        assert (queries == classes[:, None]).all()


def test_classes_too_small_are_left_out_and_the_others_come_alike() -> None:
    drawn: Counter[int] = Counter()
    for batch in EpisodicBatchSampler(LABELS, **TASK, episodes=600):
        drawn.update(set(LABELS[batch].tolist()))
    assert drawn.keys() == {4, -1, 100, 20, 21, 22}
    assert all(count == pytest.approx(600 * 4 / 6, rel=0.1) for count in drawn.values())


def test_items_of_a_class_come_alike_as_supports_and_as_queries() -> None:
    labels = torch.arange(3).repeat_interleave(4)
    supports: Counter[int] = Counter()
    for batch in EpisodicBatchSampler(labels, way=2, shot=1, queries=3, episodes=900):
        supports.update(batch[:2])
    assert all(supports[item] == pytest.approx(900 * 2 / 12, rel=0.3) for item in range(12))


def test_seed_and_epoch_decide_the_episodes() -> None:
    first, again = (EpisodicBatchSampler(LABELS, **TASK, episodes=5, seed=3) for _ in range(2))
    epochs = [list(first) for _ in range(4)]
    assert [list(again) for _ in range(4)] == epochs
    assert all(a != b for a, b in pairwise(epochs))
    again.set_epoch(2)
    assert [list(again), list(again)] == epochs[2:]
    other = list(EpisodicBatchSampler(LABELS, **TASK, episodes=5, seed=4))
    assert other not in epochs  # seeds and epochs are not the same counter


@pytest.mark.parametrize("replicas", [1, 3])
def test_replicas_deal_one_sequence_out(replicas: int) -> None:
    whole = list(EpisodicBatchSampler(LABELS, **TASK, episodes=4 * replicas, seed=5))
    samplers = [
        EpisodicBatchSampler(LABELS, **TASK, episodes=4, seed=5, num_replicas=replicas, rank=rank)
        for rank in range(replicas)
    ]
    assert [len(sampler) for sampler in samplers] == [4] * replicas
    assert [batch for turn in zip(*samplers, strict=True) for batch in turn] == whole


def test_labels_may_be_a_list_or_an_array() -> None:
    expected = list(EpisodicBatchSampler(LABELS, **TASK, episodes=3))
    assert list(EpisodicBatchSampler(LABELS.tolist(), **TASK, episodes=3)) == expected
    assert list(EpisodicBatchSampler(LABELS.numpy(), **TASK, episodes=3)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_feeds_a_data_loader(workers: int) -> None:
    data = TensorDataset(torch.arange(len(LABELS)), LABELS)
    sampler, twin = (EpisodicBatchSampler(LABELS, **TASK, episodes=6, seed=1) for _ in range(2))
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    assert len(loader) == 6
    for _ in range(2):
        assert [indices.tolist() for indices, _ in loader] == list(twin)


def test_an_episode_splits_with_any_axes_behind_the_first() -> None:
    images = torch.arange(28).float()[:, None, None].expand(28, 3, 2)
    supports, queries = split_episode(images, **TASK)
    assert supports.shape == (4, 2, 3, 2)
    assert queries.shape == (4, 5, 3, 2)
    assert torch.equal(torch.cat([supports.flatten(0, 1), queries.flatten(0, 1)]), images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"way": 0}, "argument `way`: expected an integer >= 1"),
        ({"shot": 0}, "argument `shot`: expected an integer >= 1"),
        ({"queries": 0}, "argument `queries`: expected an integer >= 1"),
        ({"episodes": 0}, "argument `episodes`: expected an integer >= 1"),
        ({"way": 7}, "argument `labels`: expected at least 7 classes of 7 items or more, got 6"),
        ({"queries": 30}, "argument `labels`: expected at least 4 classes of 32 items or more, got 0"),
        ({"labels": LABELS.float()}, r"argument `labels`: expected integer labels \[n\], got float32 tensor"),
        ({"labels": LABELS[:, None]}, "argument `labels`: expected integer labels"),
        ({"labels": torch.zeros(0, dtype=torch.long)}, "argument `labels`: expected at least 4 classes"),
        ({"seed": -1}, "argument `seed`: expected an integer >= 0"),
        ({"num_replicas": 2, "rank": 2}, "argument `rank`: expected a rank below num_replicas = 2, got 2"),
    ],
)
def test_bad_arguments_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpisodicBatchSampler(**{"labels": LABELS, **TASK, **change})


def test_an_epoch_below_zero_and_a_batch_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="argument `epoch`: expected an integer >= 0"):
        EpisodicBatchSampler(LABELS, **TASK).set_epoch(-1)
    with pytest.raises(ValueError, match=r"argument `embeddings`: expected way \* \(shot \+ queries\) = 28 rows, got"):
        split_episode(torch.zeros(27, 3), **TASK)
    with pytest.raises(ValueError, match="argument `shot`: expected an integer >= 1"):
        split_episode(torch.zeros(27, 3), way=3, shot=0, queries=9)
