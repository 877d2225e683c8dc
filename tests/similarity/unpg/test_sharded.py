"""The class-sharded head on two ranks of gloo against the plain head on one process, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.ranks import run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scorecraft.core.reductions import Merge
from scorecraft.similarity.unpg.heads import ArcFaceHead, CosFaceHead, LogitHead, MagFaceHead, MarginHead
from scorecraft.similarity.unpg.sharded import ShardedHead

RANKS = 2
DIM = 6
HEADS = {
    "cosface": (CosFaceHead, {"scale": 8.0, "margin": 0.3}),
    "arcface": (ArcFaceHead, {"scale": 8.0, "margin": 0.5, "monotone": True}),
    "magface": (MagFaceHead, {"scale": 8.0, "norm_range": (1.0, 4.0), "regulariser_weight": 2.0}),
}

# Rows of each rank (even, uneven), classes (divisible, not), classes at a time, with shared negatives or without.
CASES = [
    ([4, 4], 8, None, True),
    ([4, 4], 9, 3, False),
    ([1, 6], 8, 3, True),
    ([1, 6], 9, None, False),
    ([6, 1], 9, None, True),
]


def sharded(name: str, classes: int, **options: int | None) -> ShardedHead:
    head_type, hyper = HEADS[name]
    return ShardedHead(head_type, classes, DIM, **hyper, **options).double()


def plain(name: str, classes: int) -> MarginHead:
    head_type, hyper = HEADS[name]
    return head_type(classes, DIM, generator=torch.Generator().manual_seed(5), **hyper).double()


def global_batch(rows: int, classes: int) -> tuple[Tensor, Tensor, nn.Module]:
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, classes, (rows,), generator=generator)
    encoder = nn.Linear(5, DIM).double()
    with torch.no_grad():
        encoder.weight.copy_(torch.randn(DIM, 5, generator=generator, dtype=torch.float64))
        encoder.bias.fill_(0.1)
    return inputs, labels, encoder


def mean_with_shared(head: LogitHead, features: Tensor, labels: Tensor, mass: Tensor | None, rows: int) -> Tensor:
    """The contract for a local loss: its mean over ranks is the mean over all rows."""
    losses = head.cross_entropy(features, labels, mass) + head.regulariser(features)
    return losses.sum() / rows * (RANKS if isinstance(head, ShardedHead) else 1)


def on_each_rank(rank: int) -> None:
    for name, case in itertools.product(HEADS, CASES):
        check_equals_one_process(rank, name, *case)
    check_plain_softmax(rank)
    check_weights(rank)
    check_refusals(rank)


def check_equals_one_process(
    rank: int, name: str, sizes: list[int], classes: int, class_block: int | None, with_shared: bool
) -> None:
    rows = sum(sizes)
    inputs, labels, encoder = global_batch(rows, classes)
    mass = torch.tensor(1.5, dtype=torch.float64, requires_grad=True) if with_shared else None

    reference = plain(name, classes)
    expected_features = encoder(inputs)
    expected_features.retain_grad()
    expected = mean_with_shared(reference, expected_features, labels, mass, rows)
    expected.backward()
    expected_mass = None if mass is None else mass.grad
    encoder_grad = [parameter.grad for parameter in encoder.parameters()]

    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    head = sharded(name, classes, class_block=class_block)
    head.load_full_weight(reference.weight)
    # DDP averages the gradients of the encoder; the head stays outside.
    copy = DistributedDataParallel(global_batch(rows, classes)[2])
    features = copy(inputs[own])
    features.retain_grad()
    mass = None if mass is None else mass.detach().clone().requires_grad_()
    value = mean_with_shared(head, features, labels[own], mass, rows)
    value.backward()

    torch.testing.assert_close(Merge.SUM.all_reduce(value.detach(), None) / RANKS, expected.detach())
    torch.testing.assert_close(features.grad, RANKS * expected_features.grad[own])
    for parameter, gradient in zip(copy.parameters(), encoder_grad, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    held = slice(head.first, head.first + head.shard.num_classes)
    torch.testing.assert_close(head.shard.weight.grad, reference.weight.grad[held])
    if mass is not None:
        torch.testing.assert_close(Merge.SUM.all_reduce(mass.grad, None) / RANKS, expected_mass)


def check_plain_softmax(rank: int) -> None:
    inputs, labels, encoder = global_batch(7, 5)
    features = encoder(inputs).detach()
    own = slice(0, 2) if rank == 0 else slice(2, 7)
    reference, head = plain("magface", 5), sharded("magface", 5)
    head.load_full_weight(reference.weight)
    value = head(features[own], labels[own])
    torch.testing.assert_close(Merge.SUM.all_reduce(value.detach(), None) / RANKS, reference(features, labels).detach())
    silent = head(features[own], torch.full_like(labels[own], -1))
    assert silent.item() == 0


def check_weights(rank: int) -> None:
    torch.manual_seed(0)  # the same random state on both ranks
    head = sharded("cosface", 9)
    assert head.shard.num_classes == (4, 5)[rank]
    assert f"classes {(0, 4)[rank]} to {(3, 8)[rank]} of 9" in repr(head)
    weight = head.full_weight()
    assert weight.shape == (9, DIM)
    assert not torch.equal(weight[:4], weight[4:8])
    assert torch.equal(weight[head.first : head.first + head.shard.num_classes], head.shard.weight)

    other = sharded("cosface", 9)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.full_weight(), weight)
    third = sharded("cosface", 9)
    third.load_full_weight(weight)
    assert torch.equal(third.shard.weight, head.shard.weight)

    elsewhere = head.state_dict()
    elsewhere["class_range"] = torch.tensor([0, 4, 9]) if rank else torch.tensor([4, 8, 8])
    with pytest.raises(RuntimeError, match=r"expected the class range \[first, stop, all\] = .*, got "):
        other.load_state_dict(elsewhere)


def check_refusals(rank: int) -> None:
    del rank
    with pytest.raises(
        ValueError, match="argument `num_classes`: expected at least one class for each of 2 ranks, got 1"
    ):
        sharded("cosface", 1)
    with pytest.raises(ValueError, match=r"argument `weight`: expected a matrix of shape \(9, 6\), got"):
        sharded("cosface", 9).load_full_weight(torch.zeros(8, DIM))
    head = sharded("cosface", 9)
    features = torch.ones(2, DIM, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"argument `labels`: expected class indices in \[0, 8\], or -1 for none, got"):
        head.cross_entropy(features, torch.tensor([0, 9]))
    head.ranks = 1
    with pytest.raises(RuntimeError, match="ShardedHead was made for 1 ranks and is called with 2"):
        head.cross_entropy(features, torch.tensor([0, 1]))


def test_two_ranks_equal_one_process() -> None:
    run_ranks(on_each_rank, ranks=RANKS)


@pytest.mark.parametrize("name", HEADS)
def test_without_a_process_group_it_is_the_plain_head(name: str) -> None:
    inputs, labels, encoder = global_batch(7, 9)
    mass = torch.tensor(0.7, dtype=torch.float64)
    results = []
    for head in (plain(name, 9), sharded(name, 9)):
        if isinstance(head, ShardedHead):
            head.load_full_weight(plain(name, 9).weight)
            weight = head.shard.weight
            assert torch.equal(head.full_weight(), weight)
        else:
            weight = head.weight
        assert isinstance(head, LogitHead)
        features = encoder(inputs).detach().requires_grad_()
        losses = head.cross_entropy(features, labels, mass)
        (losses.sum() + head(features, labels)).backward()
        results.append((losses.detach(), features.grad, weight.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert sharded(name, 9).scale == 8.0


def test_seeded() -> None:
    first, second = (
        ShardedHead(CosFaceHead, 5, DIM, generator=torch.Generator().manual_seed(1)).shard.weight for _ in range(2)
    )
    assert torch.equal(first, second)
    alone = CosFaceHead(5, DIM, generator=torch.Generator().manual_seed(1)).weight
    assert torch.equal(first, alone)
