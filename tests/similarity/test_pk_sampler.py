"""PK sampling: what a batch and an epoch hold, seeds, replicas, and the data loader."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from scorecraft.similarity.pk_sampler import PKSampler

# 9 classes: of 10, 7, 5, 3 and 1 items, and some more of 5; labels are any integers.
SIZES = {4: 10, -1: 7, 100: 5, 7: 3, 8: 1, 20: 5, 21: 5, 22: 5, 23: 5}
LABELS = torch.tensor([label for label, size in SIZES.items() for _ in range(size)])
LABELS = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))]


def classes_of(batch: list[int]) -> Counter[int]:
    return Counter(LABELS[batch].tolist())


@pytest.mark.parametrize(("batch_size", "per_class"), [(15, 5), (12, 2), (9, 1), (45, 5)])
def test_batches_hold_k_items_of_different_classes(batch_size: int, per_class: int) -> None:
    sampler = PKSampler(LABELS, batch_size, per_class, batches=40)
    for batch in sampler:
        counts = classes_of(batch)
        assert len(counts) == batch_size // per_class
        assert set(counts.values()) == {per_class}
        for start in range(0, batch_size, per_class):
            assert len(set(LABELS[batch[start : start + per_class]].tolist())) == 1


def test_an_item_is_repeated_only_where_its_class_is_too_small() -> None:
    for batch in PKSampler(LABELS, 15, 5, batches=60):
        for label, size in SIZES.items():
            mine = [item for item in batch if int(LABELS[item]) == label]
            if mine:
                assert len(set(mine)) == min(5, size)


def test_a_pool_uses_each_chunk_once() -> None:
    """All classes in each batch: a pool lasts as long as the smallest classes, one batch."""
    labels = torch.arange(6).repeat_interleave(10)
    sampler = PKSampler(labels, 15, 5)
    assert len(sampler) == 12 // 3
    for _ in range(5):
        dealt = [item for batch in sampler for item in batch]
        # 12 chunks of 6 classes, 3 classes a time: rebuilt before the end only if 2 classes keep what is left.
        assert len(dealt) == 60
    labels = torch.arange(3).repeat_interleave(17)
    dealt = [item for batch in PKSampler(labels, 15, 5) for item in batch]
    assert len(dealt) == len(set(dealt)) == 45  # the last 2 of each class are dropped


def test_no_item_comes_back_before_the_pool_is_used_up() -> None:
    """Two classes a time out of five with three chunks each: repeats only after the pool was rebuilt."""
    labels = torch.arange(5).repeat_interleave(6)
    for seed in range(20):
        seen: Counter[int] = Counter()
        left = dict.fromkeys(range(5), 3)
        for batch in PKSampler(labels, 4, 2, seed=seed, batches=30):
            if sum(count > 0 for count in left.values()) < 2:
                left, seen = dict.fromkeys(range(5), 3), Counter()
            for label in set(labels[batch].tolist()):
                left[label] -= 1
            seen.update(batch)
            assert max(seen.values()) == 1
            assert min(left.values()) >= 0


@pytest.mark.parametrize(("replicas", "batches"), [(1, None), (3, None), (1, 7), (4, 7)])
def test_length_is_what_an_epoch_yields(replicas: int, batches: int | None) -> None:
    for rank in range(replicas):
        sampler = PKSampler(LABELS, 10, 5, batches=batches, num_replicas=replicas, rank=rank)
        # chunks of 5: 2 + 1 + 7 x 1 = 10, two a batch
        assert len(sampler) == (5 // replicas if batches is None else batches)
        for _ in range(3):
            assert len(list(sampler)) == len(sampler)


def test_seed_and_epoch_decide_the_order() -> None:
    first, again = PKSampler(LABELS, 15, seed=3), PKSampler(LABELS, 15, seed=3)
    epochs = [list(first) for _ in range(4)]
    assert [list(again) for _ in range(4)] == epochs
    assert all(a != b for a, b in pairwise(epochs))
    again.set_epoch(2)
    assert [list(again), list(again)] == epochs[2:]
    assert list(PKSampler(LABELS, 15, seed=4)) != epochs[0]
    assert list(PKSampler(LABELS, 15, seed=4)) != epochs[1]  # seeds and epochs are not the same counter


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    list(PKSampler(LABELS, 15))
    torch.testing.assert_close(torch.rand(3), expected[0])
    assert np.random.rand(3).tolist() == expected[1].tolist()  # noqa: NPY002


def test_replicas_deal_one_sequence_out() -> None:
    whole = list(PKSampler(LABELS, 10, batches=12, seed=5))
    parts = [list(PKSampler(LABELS, 10, batches=4, seed=5, num_replicas=3, rank=rank)) for rank in range(3)]
    assert [batch for turn in zip(*parts, strict=True) for batch in turn] == whole


def test_labels_may_be_a_list_or_an_array() -> None:
    expected = list(PKSampler(LABELS, 15))
    assert list(PKSampler(LABELS.tolist(), 15)) == expected
    assert list(PKSampler(LABELS.numpy(), 15)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_feeds_a_data_loader(workers: int) -> None:
    data = TensorDataset(torch.arange(len(LABELS)), LABELS)
    sampler = PKSampler(LABELS, 15, seed=1)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    assert len(loader) == len(sampler)
    twin = PKSampler(LABELS, 15, seed=1)
    for _ in range(3):
        assert [indices.tolist() for indices, _ in loader] == list(twin)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 14}, "argument `batch_size`: expected a multiple of per_class = 5, got 14"),
        ({"batch_size": 0}, "argument `batch_size`: expected an integer >= 1"),
        ({"per_class": 0}, "argument `per_class`: expected an integer >= 1"),
        ({"batch_size": 50}, r"argument `labels`: expected at least 10 classes \(batch_size / per_class\), got 9"),
        ({"labels": LABELS.float()}, r"argument `labels`: expected integer labels \[n\], got float32 tensor"),
        ({"labels": LABELS[:, None]}, "argument `labels`: expected integer labels"),
        ({"labels": torch.zeros(0, dtype=torch.long)}, "argument `labels`: expected at least 3 classes"),
        ({"seed": -1}, "argument `seed`: expected an integer >= 0"),
        ({"batches": 0}, "argument `batches`: expected an integer >= 1"),
        ({"num_replicas": 2, "rank": 2}, "argument `rank`: expected a rank below num_replicas = 2, got 2"),
        ({"num_replicas": 9}, "argument `num_replicas`: expected at most 3, the batches of an epoch, got 9"),
    ],
)
def test_bad_arguments_are_refused(change: dict, message: str) -> None:
    call = {"labels": LABELS, "batch_size": 15, **change}
    with pytest.raises(ValueError, match=message):
        PKSampler(**call)
    with pytest.raises(ValueError, match="argument `epoch`"):
        PKSampler(LABELS, 15).set_epoch(-1)
