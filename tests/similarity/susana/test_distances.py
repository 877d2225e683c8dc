"""Neighbours found in blocks, or by faiss, are those of the whole matrix, and chosen pairs are exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scorecraft.similarity.susana import distances
from scorecraft.similarity.susana.distances import nearest, pair_distances


def points(n: int, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_matrix(x: Tensor, z: Tensor, count: int, *, own: bool) -> Tensor:
    matrix = torch.cdist(x.double(), z.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if own:
        matrix.fill_diagonal_(torch.inf)
    return matrix.argsort(dim=1)[:, :count]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "SEARCH_ROWS", 7)
    monkeypatch.setattr(distances, "SEARCH_COLUMNS", 11)
    monkeypatch.setattr(distances, "_ELEMENTS", 60)


@pytest.mark.parametrize("count", [1, 4, 20, 39])
def test_blocks_find_what_the_matrix_shows(small_blocks: None, count: int) -> None:
    x, z = points(40), points(53, seed=1)
    assert torch.equal(nearest(x, x, count, own=True), by_matrix(x, x, count, own=True))
    assert torch.equal(nearest(x, z, count), by_matrix(x, z, count, own=False))


@pytest.mark.parametrize("blocks", [False, True])
def test_faiss_and_blocks_find_the_same(monkeypatch: pytest.MonkeyPatch, blocks: bool) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(distances, "FAISS_PAIRS", 0)
    if blocks:
        monkeypatch.setattr(distances, "_by_blocks", lambda *_: pytest.fail("faiss was passed over"))
    x, z = points(300, dtype=torch.float32), points(500, seed=1, dtype=torch.float32)
    assert torch.equal(nearest(x, x, 6, own=True), by_matrix(x, x, 6, own=True))
    assert torch.equal(nearest(x, z, 6), by_matrix(x, z, 6, own=False))


def test_without_faiss_large_sets_are_searched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "FAISS_PAIRS", 0)
    monkeypatch.setattr(distances, "find_spec", lambda name: None)
    x = points(60, dtype=torch.float32)
    assert torch.equal(nearest(x, x, 6, own=True), by_matrix(x, x, 6, own=True))


def test_an_exact_duplicate_is_a_neighbour_and_the_point_itself_is_not() -> None:
    x = points(30)
    x[7] = x[3]
    found = nearest(x, x, 5, own=True)
    assert found[7, 0] == 3
    assert found[3, 0] == 7
    assert not (found == torch.arange(30)[:, None]).any()


def test_small_distances_far_from_the_origin_are_exact() -> None:
    """In float32 the Gram form of these points is wrong by more than the distances themselves."""
    x = points(40, dtype=torch.float32) * 1e-2 + 300
    found = nearest(x, x, 5, own=True)
    assert torch.equal(found, by_matrix(x, x, 5, own=True))
    exact = (x.double()[:, None] - x.double()[found]).square().sum(dim=2).add(1e-6).sqrt()
    torch.testing.assert_close(pair_distances(x, x, found).double(), exact, rtol=1e-5, atol=0)


def test_gradient_of_chosen_pairs(small_blocks: None) -> None:
    x, z = points(9).requires_grad_(), points(6, seed=1).requires_grad_()
    index = torch.randint(6, (9, 4), generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(lambda x, z: pair_distances(x, z, index), (x, z))
    assert torch.autograd.gradcheck(lambda x: pair_distances(x, x, index), (x,))
    (gradient,) = torch.autograd.grad(pair_distances(x, z.detach(), index).sum(), x)
    (expected,) = torch.autograd.grad(pair_distances(x, z, index).sum(), x)
    assert torch.equal(gradient, expected)


def test_the_gradient_at_distance_zero_is_zero() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    value = pair_distances(x, x, torch.tensor([[1], [0]]))
    torch.testing.assert_close(value, torch.full((2, 1), 1e-3))
    assert torch.equal(torch.autograd.grad(value.sum(), x)[0], torch.zeros_like(x))
