"""PK sampling: batches of P classes with K items each, so that every item finds positives and negatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Sampler

from scorecraft.core.checks import integer_labels, natural, positive_integer, refuse, replica


class PKSampler(Sampler[list[int]]):
    """A batch sampler: `batch_size / per_class` different classes, `per_class` items of each.

        loader = DataLoader(dataset, batch_sampler=PKSampler(labels, batch_size=80, per_class=5))

    Each class's shuffled items are cut into chunks of `per_class`; a class with fewer items is filled up by drawing
    from it with replacement, and a larger class's last items that fill no chunk are dropped. A batch takes one chunk
    from each of its classes, which are drawn without replacement. A class leaves the pool when its chunks are used up;
    when fewer classes remain than a batch needs, the pool is rebuilt from a new shuffle.

    An epoch has as many batches as one pool has chunks for (per replica), or `batches`. Every epoch has its own
    order: it depends on `seed` and on the epoch, which advances with each iteration and can be set by `set_epoch`.

    Args:
        labels: integers `[n]`, the class of each item of the data set.
        batch_size: items per batch (per replica), a multiple of `per_class`.
        per_class: K, items per class in a batch (paper: 5).
        seed: non-negative seed.
        batches: batches per epoch (per replica); default: one pool's worth.
        num_replicas: number of processes that share the data set. They deal the same sequence of batches out among
            them, so all of them have equally many, and must share `seed` and epoch.
        rank: this process, in `[0, num_replicas)`.

    Raises:
        ValueError: `batch_size` is no multiple of `per_class`; there are fewer classes than a batch needs; not every
            replica gets a batch; labels are not integers `[n]`.

    Source: Wang et al. 2019, arXiv 1904.06627, section 4 (K = 5).
    """

    @classmethod
    def example(cls, labels: Int[Tensor, " n"], **options: Any) -> PKSampler:
        """A sampler of batches of twelve items."""
        return cls(labels, batch_size=12, per_class=3, **options)

    def __init__(
        self,
        labels: Int[Tensor, " n"] | Sequence[int] | np.ndarray,
        batch_size: int,
        per_class: int = 5,
        seed: int = 0,
        *,
        batches: int | None = None,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        values = integer_labels(labels)
        self.batch_size = positive_integer("batch_size", batch_size)
        self.per_class = positive_integer("per_class", per_class)
        if batch_size % per_class:
            refuse("batch_size", f"a multiple of per_class = {per_class}", batch_size)
        self.classes_per_batch = batch_size // per_class
        self.seed = natural("seed", seed)
        self.num_replicas, self.rank = replica(num_replicas, rank)
        classes, self._class_of = values.unique(return_inverse=True)
        self._sizes: list[int] = torch.bincount(self._class_of, minlength=len(classes)).tolist()
        if len(classes) < self.classes_per_batch:
            refuse("labels", f"at least {self.classes_per_batch} classes (batch_size / per_class)", len(classes))
        if batches is None:
            chunks = sum(max(1, size // per_class) for size in self._sizes)
            self._batches = chunks // self.classes_per_batch // num_replicas
            if self._batches == 0:
                refuse(
                    "num_replicas", f"at most {chunks // self.classes_per_batch}, the batches of an epoch", num_replicas
                )
        else:
            self._batches = positive_integer("batches", batches)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; iterations after it go on counting from there."""
        self.epoch = natural("epoch", epoch)

    def __len__(self) -> int:
        """Batches per epoch on this replica, exactly."""
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, so that the epoch advances with the first batch: a data loader with workers makes an iterator
        # that it never uses.
        entropy = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(entropy[0] >> np.uint64(1)))
        self.epoch += 1
        pool: dict[int, list[list[int]]] = {}
        for turn in range(self._batches * self.num_replicas):
            if len(pool) < self.classes_per_batch:
                pool = self._pool(generator)
            available = list(pool)
            chosen = torch.randperm(len(available), generator=generator)[: self.classes_per_batch].tolist()
            batch: list[int] = []
            for position in chosen:
                chunks = pool[available[position]]
                batch += chunks.pop()
                if not chunks:
                    del pool[available[position]]
            if turn % self.num_replicas == self.rank:
                yield batch

    def _pool(self, generator: torch.Generator) -> dict[int, list[list[int]]]:
        """The chunks of every class, from a new shuffle."""
        shuffled = torch.randperm(len(self._class_of), generator=generator)
        by_class = shuffled[self._class_of[shuffled].argsort(stable=True)].split(self._sizes)
        pool = {}
        for index, items in enumerate(by_class):
            missing = self.per_class - len(items)
            if missing > 0:
                extra = torch.randint(len(items), (missing,), generator=generator)
                items = torch.cat([items, items[extra]])
            whole = len(items) // self.per_class * self.per_class
            pool[index] = [chunk.tolist() for chunk in items[:whole].split(self.per_class)]
        return pool
