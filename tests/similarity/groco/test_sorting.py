"""Relaxed sorting networks: equal to diffsort, doubly stochastic, and reached without their matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scorecraft.similarity.groco.sorting import Network, reach_group, relaxed_sort, sorting_network

NETWORKS = [("odd_even", 2), ("odd_even", 3), ("odd_even", 7), ("odd_even", 12), ("bitonic", 2), ("bitonic", 16)]
every_network = pytest.mark.parametrize("network, n", NETWORKS)


def scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_group(n: int, lists: int) -> Tensor:
    return (scores(n, lists, seed=1) > 0).double()


def by_matrix(values: Tensor, group: Tensor, steepness: float, network: Network = "odd_even") -> Tensor:
    """What `reach_group` computes, from the whole relaxed permutation."""
    _, permutation = relaxed_sort(values.T, steepness=steepness, network=network)
    return torch.einsum("bir, rb -> ib", permutation, group)


@every_network
@pytest.mark.parametrize("steepness", [1.0, 10.0])
def test_equal_to_diffsort(network: Network, n: int, steepness: float) -> None:
    diffsort = pytest.importorskip("diffsort")
    x = scores(5, n)
    peer = diffsort.DiffSortNet(network, n, steepness=steepness, distribution="cauchy")
    for found, expected in zip(relaxed_sort(x, steepness=steepness, network=network), peer(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    group = some_group(n, 5)
    expected = torch.einsum("bir, rb -> ib", peer(x)[1], group)
    found = reach_group(x.T, group, steepness=steepness, network=network)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@every_network
def test_the_permutation_is_doubly_stochastic_and_makes_the_order(network: Network, n: int) -> None:
    x = scores(2, 3, n)
    ordered, permutation = relaxed_sort(x, steepness=3.0, network=network)
    assert permutation.shape == (2, 3, n, n)
    assert (permutation >= 0).all()
    for axis in (-1, -2):
        torch.testing.assert_close(permutation.sum(axis), torch.ones_like(x))
    torch.testing.assert_close(torch.einsum("abi, abir -> abr", x, permutation), ordered)


@every_network
def test_a_steep_network_sorts(network: Network, n: int) -> None:
    x = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(s)) for s in range(20)]).double()
    ordered, permutation = relaxed_sort(x, steepness=1e9, network=network)
    torch.testing.assert_close(ordered, x.sort(dim=-1).values, rtol=0, atol=1e-6)
    torch.testing.assert_close(permutation.argmax(dim=-1), x.argsort(dim=-1).argsort(dim=-1))


@every_network
def test_one_comparator_per_pair_of_positions_and_layer(network: Network, n: int) -> None:
    layers = sorting_network(network, n)
    depth = n.bit_length() - 1
    assert len(layers) == (n if network == "odd_even" else depth * (depth + 1) // 2)
    positions = torch.arange(n)
    for layer in layers:
        first, second = (half.flatten() for half in layer.halves(positions))
        assert torch.equal(second - first, torch.full_like(first, layer.distance))
        assert len(torch.cat([first, second]).unique()) == 2 * layer.comparators


@every_network
def test_value_and_gradient_are_those_of_the_matrix(network: Network, n: int) -> None:
    x, group = scores(n, 5).requires_grad_(), some_group(n, 5)
    found, expected = (f(x, group, steepness=3.0, network=network) for f in (reach_group, by_matrix))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    weights = scores(n, 5, seed=2)
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    (by_autograd,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(gradient, by_autograd, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda v: reach_group(v, group, steepness=3.0, network=network), (x,))


def test_lists_of_several_lengths_equal_each_alone() -> None:
    lengths = torch.tensor([0, 1, 2, 5, 8, 11, 12])
    x, group = scores(12, 7).requires_grad_(), some_group(12, 7)
    weights = scores(12, 7, seed=2)
    together = reach_group(x, group, steepness=2.0, lengths=lengths)
    (gradient,) = torch.autograd.grad((together * weights).sum(), x)
    for index, n in enumerate(lengths.tolist()):
        assert torch.equal(together[n:, index], group[n:, index])
        assert not gradient[n:, index].any()
        if n == 0:
            continue
        one = x.detach()[:n, index, None].requires_grad_()
        alone = reach_group(one, group[:n, index, None], steepness=2.0)
        torch.testing.assert_close(together[:n, index, None], alone, rtol=0, atol=0)
        (expected,) = torch.autograd.grad((alone * weights[:n, index, None]).sum(), one)
        torch.testing.assert_close(gradient[:n, index, None], expected, rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda v: reach_group(v, group, steepness=2.0, lengths=lengths), (x,))


@pytest.mark.parametrize(
    "network, lengths", [("odd_even", None), ("odd_even", torch.tensor([8, 3, 0])), ("bitonic", None)]
)
def test_it_is_an_operator_like_any_other(network: Network, lengths: Tensor | None) -> None:
    x, group = scores(8, 3).requires_grad_(), some_group(8, 3)
    torch.library.opcheck(torch.ops.scorecraft.reach_group.default, (x, group, lengths, network))
    compiled = torch.compile(reach_group, fullgraph=True, backend="aot_eager")
    found = compiled(x, group, steepness=2.0, network=network, lengths=lengths)
    expected = reach_group(x, group, steepness=2.0, network=network, lengths=lengths)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_it_is_differentiable_once_and_says_so() -> None:
    x = scores(4, 2).requires_grad_()
    value = reach_group(x, some_group(4, 2), steepness=1.0).square().sum()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


def test_inverted_pairs_keep_gradient() -> None:
    """The Cauchy link decays as the square of the gap, not exponentially."""
    gaps = torch.tensor([10.0, 100.0, 1000.0], dtype=torch.float64)
    x = torch.stack([gaps, torch.zeros(3, dtype=torch.float64)]).requires_grad_()
    group = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, 3)
    (gradient,) = torch.autograd.grad(reach_group(x, group, steepness=1.0)[1].sum(), x)
    torch.testing.assert_close(gradient[1], 1 / (math.pi * (1 + gaps**2)))


def test_refused() -> None:
    with pytest.raises(ValueError, match="argument `scores`: expected floating-point lists"):
        relaxed_sort(torch.arange(3))
    with pytest.raises(ValueError, match="argument `steepness`: expected a finite number > 0, got"):
        relaxed_sort(scores(3), steepness=0)
    with pytest.raises(ValueError, match="argument `network`: expected 'odd_even', or lists whose length is a power"):
        relaxed_sort(scores(6), network="bitonic")
    with pytest.raises(ValueError, match="argument `network`: expected one of 'odd_even', 'bitonic', got 'bubble'"):
        relaxed_sort(scores(6), network="bubble")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="argument `network`: expected 'odd_even' for lists of several lengths"):
        reach_group(scores(4, 2), some_group(4, 2), steepness=1.0, network="bitonic", lengths=torch.tensor([4, 2]))
