"""Episodic sampling: few-shot tasks of `way` classes, each with some supports and some queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.utils.data import Sampler

from scorecraft.core.checks import describe, integer_labels, natural, positive_integer, refuse, replica


class Episode(NamedTuple):
    """The two parts of an episode; the class of an item is its place on the first axis."""

    supports: Shaped[Tensor, "way shot ..."]
    queries: Shaped[Tensor, "way queries ..."]


class EpisodicBatchSampler(Sampler[list[int]]):
    """A batch sampler: each batch is one episode of `way` classes, `shot` supports and `queries` queries of each.

        sampler = EpisodicBatchSampler(labels, way=5, shot=1, queries=15, episodes=100)
        for items in DataLoader(dataset, batch_sampler=sampler):
            supports, queries = split_episode(encoder(items), way=5, shot=1, queries=15)

    A batch is class-major: the supports of the first class, of the second, and so on; then the queries of all classes
    in the same order. Classes of an episode are different, and so are its items, drawn anew for every episode. A class
    with fewer than `shot + queries` items is never drawn, since none of its items may be support and query at once.

    Every epoch has its own order: it depends on `seed` and on the epoch, which advances with each iteration and can be
    set by `set_epoch`.

    Args:
        labels: integers `[n]`, the class of each item of the data set.
        way: classes per episode (paper: 5 in the test, 30 or 20 in training).
        shot: supports per class (paper: 1 or 5).
        queries: queries per class (paper: 15).
        episodes: episodes per epoch (per replica; paper: 100).
        seed: non-negative seed.
        num_replicas: number of processes that share the data set. They deal the same sequence of episodes out among
            them, and must share `seed` and epoch.
        rank: this process, in `[0, num_replicas)`.

    Raises:
        ValueError: fewer than `way` classes have `shot + queries` items; labels are not integers `[n]`.

    Source: Mendez-Ruiz et al. 2023, arXiv 2305.09062, after Vinyals et al. 2016, "Matching Networks for One Shot
    Learning".
    """

    @classmethod
    def example(cls, labels: Int[Tensor, " n"], **options: Any) -> EpisodicBatchSampler:
        """A sampler of batches of twelve items."""
        return cls(labels, way=3, shot=1, queries=3, episodes=10, **options)

    def __init__(
        self,
        labels: Int[Tensor, " n"] | Sequence[int] | np.ndarray,
        *,
        way: int,
        shot: int,
        queries: int,
        episodes: int = 100,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        values = integer_labels(labels)
        self.way = positive_integer("way", way)
        self.shot = positive_integer("shot", shot)
        self.queries = positive_integer("queries", queries)
        self.episodes = positive_integer("episodes", episodes)
        self.seed = natural("seed", seed)
        self.num_replicas, self.rank = replica(num_replicas, rank)
        counts = values.unique(return_counts=True)[1].tolist()
        by_class = values.argsort(stable=True).split(counts)
        self._members = [items for items in by_class if len(items) >= shot + queries]
        if len(self._members) < way:
            refuse("labels", f"at least {way} classes of {shot + queries} items or more", len(self._members))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; iterations after it go on counting from there."""
        self.epoch = natural("epoch", epoch)

    def __len__(self) -> int:
        """Episodes per epoch on this replica."""
        return self.episodes

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, so that the epoch advances with the first batch: a data loader with workers makes an iterator
        # that it never uses.
        epoch = self.epoch
        self.epoch += 1
        for turn in range(self.rank, self.episodes * self.num_replicas, self.num_replicas):
            yield self._episode(epoch, turn)

    def _episode(self, epoch: int, turn: int) -> list[int]:
        """The items of one episode, from a stream of random numbers of its own."""
        entropy = np.random.SeedSequence((self.seed, epoch, turn)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(entropy[0] >> np.uint64(1)))
        classes = torch.randperm(len(self._members), generator=generator)[: self.way].tolist()
        per_class = self.shot + self.queries
        drawn = torch.stack(
            [
                members[torch.randperm(len(members), generator=generator)[:per_class]]
                for members in (self._members[index] for index in classes)
            ]
        )
        return torch.cat([drawn[:, : self.shot].flatten(), drawn[:, self.shot :].flatten()]).tolist()


def split_episode(embeddings: Shaped[Tensor, "n ..."], *, way: int, shot: int, queries: int) -> Episode:
    """Supports `[way, shot, d]` and queries `[way, queries, d]` of a batch in the order of `EpisodicBatchSampler`.

    Args:
        embeddings: `[way * (shot + queries), d]`, or with further axes behind the first.
        way: classes of the episode.
        shot: supports per class.
        queries: queries per class.

    Raises:
        ValueError: there are not `way * (shot + queries)` embeddings.
    """
    rows = positive_integer("way", way) * (positive_integer("shot", shot) + positive_integer("queries", queries))
    if len(embeddings) != rows:
        refuse("embeddings", f"way * (shot + queries) = {rows} rows", describe(embeddings))
    supports, asked = embeddings.split([way * shot, way * queries])
    return Episode(supports.unflatten(0, (way, shot)), asked.unflatten(0, (way, queries)))
