"""The filter of hard examples: candidates are scored, those with weight left queue up, batches are always full."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import IterableDataset, Sampler

from scorecraft.core.checks import check_values, describe, natural, positive_integer, probability, refuse
from scorecraft.core.ranks import world_size

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

WEIGHT = "coverage_weight"
"""The key under which a data set of kept examples hands on their weights."""


class KeptBatch(NamedTuple):
    """Examples to train on."""

    indices: list[int]
    weights: Float[Tensor, " b"]
    """`F` when they were candidates. The loss of DCO makes it anew; DCO_a and whole proofs multiply by this one."""


class CoverageFilter:
    """Batches of examples that still have weight: of shuffled candidates those with `F > epsilon`, in order.

        def score(indices):                                   # eval mode, no gradient
            return coverage_weight(256, log_probabilities_of(indices))

        kept = CoverageFilter(len(dataset), batch_size=64, score=score)
        for epoch in range(4):
            for indices, weights in kept:
                ...

    The next `batch_size` shuffled examples are scored, and those kept are queued; each full batch is handed out, and
    what is left over waits, also for the next epoch. An iteration is a pass over the candidates. It takes up a pass
    that was left in the middle; it goes on to the next pass when one gave no batch; and it ends, with a warning, when a
    whole pass kept nothing, because then the model has learnt all it is to learn.

    On several ranks `batch_size` is that of all of them together. Each rank scores its share of the candidates; weights
    are gathered and the order is that of rank 0, so that all ranks take the same decisions. They must iterate together.
    Each rank scores the same number of candidates, at least one, as often as the others. `KeptBatch` is the batch of
    all ranks; a `CoverageBatchSampler` deals it out.

    Args:
        size: examples in the data set.
        batch_size: examples in a full batch, over all ranks.
        score: called with a list of indices, returns their weights `F` in [0, 1], 1-d and floating-point.
        epsilon: keep `F > epsilon`, in [0, 1]. With DCO_a score by `sampled_coverage_weight`, which gives 0 to what
            is to be dropped, and keep all others with 0.
        warmup_batches: so many batches are neither scored nor filtered, with weight 1 (DCO_a: 20).
        passes: over the candidates in all; without a number as many as are asked for.
        seed: of the shuffles, one per pass.
        group: the process group; the default group when left out.
        device: where ranks exchange weights; that of their backend.

    Raises:
        ValueError: one line: sizes below 1, an epsilon outside [0, 1], scores that are no weights.

    Source: arXiv 2502.07154, appendix; allanraventos/refine.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        score: Callable[[list[int]], Float[Tensor, " k"]],
        epsilon: float = 0.1,
        warmup_batches: int = 0,
        passes: int | None = None,
        seed: int = 0,
        group: ProcessGroup | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.size = positive_integer("size", size)
        self.batch_size = positive_integer("batch_size", batch_size)
        self.score = score
        self.epsilon = probability("epsilon", epsilon)
        self.warmup_batches = natural("warmup_batches", warmup_batches)
        self.passes = None if passes is None else positive_integer("passes", passes)
        self.seed = natural("seed", seed)
        self.group, self.device = group, torch.device(device)
        self.epoch = 0
        """The pass at hand."""
        self.position = 0
        """How many candidates of this pass were looked at."""
        self.batches = 0
        """How many batches were handed out."""
        self.candidates = 0
        """How many candidates were scored, and `kept` of them."""
        self.kept = 0
        self._kept_in_pass = 0
        self._queue: deque[tuple[int, float]] = deque()

    def __len__(self) -> int:
        """How many examples wait for a batch."""
        return len(self._queue)

    @property
    def keep_rate(self) -> float:
        """The share of candidates that were kept; training costs its inverse in forward passes."""
        return self.kept / self.candidates if self.candidates else 1.0

    def __iter__(self) -> Iterator[KeptBatch]:
        before = self.batches
        while self.passes is None or self.epoch < self.passes:
            order = self._order()
            yield from self._ready()
            while self.position < self.size:
                chosen = order[self.position : self.position + self.batch_size]
                filtered = self.batches >= self.warmup_batches
                weights = self._weights(chosen) if filtered else [1.0] * len(chosen)
                left = [(i, w) for i, w in zip(chosen, weights, strict=True) if not filtered or w > self.epsilon]
                self._queue.extend(left)
                self.position += len(chosen)
                self._kept_in_pass += len(left)
                if filtered:
                    self.candidates += len(chosen)
                    self.kept += len(left)
                yield from self._ready()
            nothing = self._kept_in_pass == 0
            self.epoch, self.position, self._kept_in_pass = self.epoch + 1, 0, 0
            if nothing:
                warnings.warn(
                    f"no example has a weight above {self.epsilon:g} any more: nothing is left to train on",
                    stacklevel=2,
                )
            if nothing or self.batches > before:
                return

    def _ready(self) -> Iterator[KeptBatch]:
        while len(self._queue) >= self.batch_size:
            batch = [self._queue.popleft() for _ in range(self.batch_size)]
            self.batches += 1
            yield KeptBatch([i for i, _ in batch], torch.tensor([weight for _, weight in batch]))

    def _order(self) -> list[int]:
        """The shuffle of the pass at hand, as rank 0 has it."""
        digest = (self.seed * 1_000_003 + self.epoch) % 2**63
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(digest))
        if world_size(self.group) > 1:
            order = order.to(self.device)
            first = 0 if self.group is None else dist.get_global_rank(self.group, 0)
            dist.broadcast(order, src=first, group=self.group)
        return order.tolist()

    def _weights(self, chosen: list[int]) -> list[float]:
        """The weights of candidates, each rank scoring its share."""
        ranks = world_size(self.group)
        share = -(-len(chosen) // ranks)
        padded = chosen + chosen[-1:] * (share * ranks - len(chosen))
        rank = dist.get_rank(self.group) if ranks > 1 else 0
        own = self._scored(padded[rank * share : (rank + 1) * share])
        if ranks > 1:
            everyone = [torch.empty_like(own) for _ in range(ranks)]
            dist.all_gather(everyone, own, group=self.group)
            own = torch.cat(everyone)
        return own[: len(chosen)].tolist()

    def _scored(self, indices: list[int]) -> Tensor:
        values = self.score(indices)
        if not isinstance(values, Tensor) or values.shape != (len(indices),) or not values.is_floating_point():
            refuse("score", f"a function that returns {len(indices)} floating-point weights", describe(values))
        weights = values.detach().to(self.device, torch.float32).contiguous()
        check_values("score", "weights in [0, 1]", lambda: (weights >= 0) & (weights <= 1), weights)
        return weights

    def state_dict(self) -> dict[str, Any]:
        """Where the filter stands, as plain numbers and lists: the same on all ranks."""
        return {
            "size": self.size,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "batches": self.batches,
            "candidates": self.candidates,
            "kept": self.kept,
            "kept_in_pass": self._kept_in_pass,
            "queue": [index for index, _ in self._queue],
            "weights": [weight for _, weight in self._queue],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where another filter stood: the next iteration hands out what its next would have.

        Raises:
            ValueError: it belongs to another data set, another batch size or another seed.
        """
        for name in ("size", "batch_size", "seed"):
            if state.get(name) != getattr(self, name):
                refuse("state", f"{name} = {getattr(self, name)}", f"{name} = {state.get(name)}")
        self.epoch, self.position, self.batches = state["epoch"], state["position"], state["batches"]
        self.candidates, self.kept, self._kept_in_pass = state["candidates"], state["kept"], state["kept_in_pass"]
        self._queue = deque(zip(state["queue"], state["weights"], strict=True))


class CoverageBatchSampler(Sampler[list[int]]):
    """What this rank trains on, for `DataLoader(dataset, batch_sampler=...)`: its part of each batch that was kept.

    A batch of the filter is dealt out as `micro_batches` lists on every rank, in the order of the queue. The model is
    asked when a batch is needed and not before: use no workers that read ahead, and no loader that looks ahead.

    Args:
        filter: the filter.
        micro_batches: lists per batch and rank (steps of gradient accumulation).

    Raises:
        ValueError: one line: a batch that cannot be dealt out evenly.
    """

    def __init__(self, filter: CoverageFilter, *, micro_batches: int = 1) -> None:
        self.filter = filter
        self.micro_batches = positive_integer("micro_batches", micro_batches)
        self.ranks = world_size(filter.group)
        if filter.batch_size % (self.ranks * micro_batches):
            expected = f"a divisor of batch_size / ranks = {filter.batch_size} / {self.ranks}"
            refuse("micro_batches", expected, micro_batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.dealt():
            yield batch.indices

    def dealt(self) -> Iterator[KeptBatch]:
        """The same with weights."""
        rank = dist.get_rank(self.filter.group) if self.ranks > 1 else 0
        part = self.filter.batch_size // (self.ranks * self.micro_batches)
        for batch in self.filter:
            for start in range(rank * part, self.filter.batch_size, part * self.ranks):
                yield KeptBatch(batch.indices[start : start + part], batch.weights[start : start + part])

    def __len__(self) -> int:
        """Lists per pass if everything were kept: the most there can be, apart from what waits from earlier passes."""
        return max(self.filter.size // self.filter.batch_size, 1) * self.micro_batches


class CoverageFilteredDataset(IterableDataset[Any]):
    """The examples of a data set that the filter keeps, one after the other, with their weights.

        loader = DataLoader(CoverageFilteredDataset(dataset, CoverageBatchSampler(kept)), batch_size=8)

    An example that is a mapping gets its weight as `coverage_weight`; of any other kind a pair `(example, weight)` is
    made. The batch size of the loader is that of one list of the sampler; workers are refused, because each would have
    a filter of its own.

    Args:
        dataset: anything with `dataset[index]`.
        sampler: what this rank trains on.
    """

    def __init__(self, dataset: Sequence[Any] | Any, sampler: CoverageBatchSampler) -> None:
        super().__init__()
        self.dataset = dataset
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        if torch.utils.data.get_worker_info() is not None:
            refuse("num_workers", "0 workers around a filtered data set", "a worker process")
        for batch in self.sampler.dealt():
            for index, weight in zip(batch.indices, batch.weights.tolist(), strict=True):
                example = self.dataset[index]
                yield {**example, WEIGHT: weight} if isinstance(example, Mapping) else (example, weight)

    def state_dict(self) -> dict[str, Any]:
        """That of the filter, between two of its batches."""
        return self.sampler.filter.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `CoverageFilter.load_state_dict`."""
        self.sampler.filter.load_state_dict(state)
