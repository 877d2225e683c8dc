"""A memory of past embeddings to compare a batch with (cross-batch memory)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.core.checks import check_labels, describe, positive_integer, refuse
from scorecraft.core.objective import Objective


class MemoryQueue(nn.Module):
    """A first-in first-out memory of the last `size` embeddings and labels; part of the state dict.

    Args:
        size: embeddings kept, at least 1.
        dimension: of an embedding.

    Source: Wang et al. 2020, "Cross-Batch Memory for Embedding Learning".
    """

    _embeddings: Tensor
    _labels: Tensor
    _count: Tensor

    def __init__(self, size: int, dimension: int) -> None:
        super().__init__()
        self.size = positive_integer("size", size)
        self.register_buffer("_embeddings", torch.zeros(size, positive_integer("dimension", dimension)))
        self.register_buffer("_labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("_count", torch.zeros((), dtype=torch.int64))
        self._enqueued = 0  # the same number, readable without waiting for the device

    def __len__(self) -> int:
        return min(self._enqueued, self.size)

    @property
    def embeddings(self) -> Float[Tensor, "m d"]:
        """The remembered embeddings, in no particular order."""
        return self._embeddings[: len(self)]

    @property
    def labels(self) -> Int[Tensor, " m"]:
        """Their labels."""
        return self._labels[: len(self)]

    @torch.no_grad()
    def enqueue(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        """Remember a batch, forgetting the oldest; of a batch larger than the memory, its last `size`."""
        check_labels("labels", labels, len(embeddings))
        if embeddings.ndim != 2 or embeddings.shape[1] != self._embeddings.shape[1]:
            refuse("embeddings", f"embeddings of dimension {self._embeddings.shape[1]}", describe(embeddings))
        kept = min(len(embeddings), self.size)
        start = self._enqueued + len(embeddings) - kept
        slots = torch.arange(start, start + kept, device=self._embeddings.device) % self.size
        self._embeddings[slots] = embeddings[-kept:].to(self._embeddings)
        self._labels[slots] = labels[-kept:].to(self._labels)
        self._enqueued += len(embeddings)
        self._count.fill_(self._enqueued)

    def clear(self) -> None:
        """Forget everything."""
        self._enqueued = 0
        self._count.zero_()

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(*args, **kwargs)
        self._enqueued = int(self._count)

    def extra_repr(self) -> str:
        return f"size={self.size}, dimension={self._embeddings.shape[1]}"


class Remembering(nn.Module):
    """See `remembering`."""

    def __init__(self, objective: Objective, queue: MemoryQueue) -> None:
        super().__init__()
        self.objective = objective
        self.queue = queue

    def forward(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Tensor:
        """The loss of the batch against itself and the memory; then the batch is remembered."""
        past = self.queue.embeddings.to(embeddings.dtype, copy=True)
        reference = torch.cat([embeddings, past])
        own = torch.arange(len(embeddings), device=labels.device)
        ids = torch.cat([own, own.new_full((len(past),), -1)])
        reference_labels = torch.cat([labels, self.queue.labels.to(labels)])
        loss = self.objective(
            embeddings,
            labels,
            reference=reference,
            reference_labels=reference_labels,
            ids=own,
            reference_ids=ids,
        )
        self.queue.enqueue(embeddings.detach(), labels)
        return loss


def remembering(objective: Objective, queue: MemoryQueue) -> Remembering:
    """The loss of each batch against itself and a memory of earlier batches: `remembering(loss, queue)(x, labels)`.

    Anchors come from the batch; gradient flows to the batch on both sides of a pair, and not into the memory.

    Args:
        objective: any objective called as `objective(embeddings, labels, reference=..., ...)`.
        queue: the memory; it belongs to the caller, who may share or clear it.
    """
    return Remembering(objective, queue)
