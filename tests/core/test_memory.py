"""The memory queue and the loss against it."""

from __future__ import annotations

import pytest
import torch

from scorecraft.core import MemoryQueue, remembering, tiled
from scorecraft.similarity.multi_similarity import MultiSimilarityLoss


def test_the_oldest_are_forgotten() -> None:
    queue = MemoryQueue(5, 2)
    for start in range(0, 12, 3):
        values = torch.arange(start, start + 3)
        queue.enqueue(values[:, None].float().expand(3, 2), values)
    assert len(queue) == 5
    assert sorted(queue.labels.tolist()) == [7, 8, 9, 10, 11]
    assert torch.equal(queue.embeddings[:, 0], queue.labels.float())
    queue.enqueue(torch.zeros(9, 2), torch.arange(100, 109))
    assert sorted(queue.labels.tolist()) == [104, 105, 106, 107, 108]
    queue.clear()
    assert len(queue) == 0


def test_state_survives_a_checkpoint() -> None:
    queue = MemoryQueue(5, 2)
    queue.enqueue(torch.randn(7, 2), torch.arange(7))
    other = MemoryQueue(5, 2)
    other.load_state_dict(queue.state_dict())
    assert len(other) == 5
    for memory in (queue, other):
        memory.enqueue(torch.ones(2, 2), torch.tensor([50, 51]))
    assert torch.equal(queue.embeddings, other.embeddings)


def test_the_batch_meets_itself_and_the_past() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3) for _ in range(3)]
    loss, queue = MultiSimilarityLoss(), MemoryQueue(100, 4).double()
    remember = remembering(tiled(loss, block=3), queue)
    past, past_labels = torch.empty(0, 4, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    for x, labels in batches:
        x.requires_grad_()
        reference = torch.cat([x, past])
        others = torch.cat([torch.eye(8, dtype=torch.bool), torch.zeros(8, len(past), dtype=torch.bool)], 1)
        same = labels[:, None] == torch.cat([labels, past_labels])
        from scorecraft.core import Pairs

        expected = loss(x, reference=reference, pairs=Pairs.from_masks(same & ~others, ~same))
        found = remember(x, labels)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, x), torch.autograd.grad(expected, x))
        past, past_labels = torch.cat([past, x.detach()]), torch.cat([past_labels, labels])
    assert len(queue) == 24


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="argument `size`"):
        MemoryQueue(0, 3)
    queue = MemoryQueue(4, 3)
    with pytest.raises(ValueError, match="argument `embeddings`: expected embeddings of dimension 3"):
        queue.enqueue(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="argument `labels`"):
        queue.enqueue(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
