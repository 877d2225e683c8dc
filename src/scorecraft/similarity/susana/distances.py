"""The floored Euclidean distance of both losses, nearest neighbours by it, and its gradient for chosen pairs only.

A set of `n` points is compared with `m` others without a matrix of either `n m d` or, for large sets, `n m` numbers:
neighbours are found without gradient in blocks of the Gram form, and the few pairs chosen are then computed directly
from the vectors, where the Gram form would cancel.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

DISTANCE_FLOOR = 1e-6
"""Added below the root: no distance is under 1e-3, and the slope is finite at distance zero."""

SEARCH_ROWS, SEARCH_COLUMNS = 512, 4096
"""Rows and columns of one block of the search; memory is a few such blocks."""
FAISS_PAIRS = 1 << 26
"""Pairs from which a search is worth handing over to faiss, where it is installed."""

_SPARE = 8  # candidates beyond those wanted, because Gram distances of near-equal neighbours may change places
_ELEMENTS = 1 << 19  # numbers of one block of differences


def full_precision(points: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The points in float32 at least."""
    return points if points.dtype == torch.float64 else points.float()


def pair_distances(x: Float[Tensor, "n d"], z: Float[Tensor, "m d"], index: Int[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    """`delta_ij = sqrt(|x_i - z_{index_ij}|^2 + 1e-6)`, computed from the differences, at least 1e-3.

    Differentiable once, in `x` and in `z`; the differences are made anew for the gradient and never kept.
    """
    # A view, because a compiled function of this kind does not take one tensor twice.
    return (_PairSquares.apply(x, z.view_as(z), index) + DISTANCE_FLOOR).sqrt()  # type: ignore[operator]


@torch.no_grad()
def nearest(
    x: Float[Tensor, "n d"], z: Float[Tensor, "m d"], count: int, *, own: bool = False
) -> Int[Tensor, "n count"]:
    """The `count` nearest of `z` for every row of `x`, nearest first; equal distances in any order.

    With `own`, `z` is `x` itself and a row is no neighbour of its own: it is left out by index, so that an exact
    duplicate stays.
    """
    candidates = _candidates(x, z, min(len(z), count + own + _SPARE))
    squares = _squares(x, z, candidates)
    if own:
        squares.masked_fill_(candidates == torch.arange(len(x), device=x.device)[:, None], torch.inf)
    return candidates.gather(1, squares.argsort(dim=1, stable=True)[:, :count])


def _candidates(x: Tensor, z: Tensor, count: int) -> Int[Tensor, "n count"]:
    """The nearest by the Gram form, in no order."""
    # Distances do not change, but the squares that cancel in the Gram form become as small as they can.
    centre = z.mean(dim=0)
    x, z = x - centre, z - centre
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
    if fits and len(x) * len(z) >= FAISS_PAIRS and find_spec("faiss") is not None:
        return _by_faiss(x, z, count)
    return _by_blocks(x, z, count)


def _by_faiss(x: Tensor, z: Tensor, count: int) -> Int[Tensor, "n count"]:
    faiss = import_module("faiss")
    flat = faiss.IndexFlatL2(z.shape[1])
    flat.add(z.numpy())
    return torch.from_numpy(flat.search(x.numpy(), count)[1])


def _by_blocks(x: Tensor, z: Tensor, count: int) -> Int[Tensor, "n count"]:
    norms = z.square().sum(dim=1)
    found = torch.empty(len(x), count, dtype=torch.int64, device=x.device)
    for rows in _blocks(len(x), SEARCH_ROWS):
        near, places = x.new_empty(rows.stop - rows.start, 0), found[rows, :0]
        for columns in _blocks(len(z), SEARCH_COLUMNS):
            # |x|^2 is the same along a row.
            block = torch.addmm(norms[columns], x[rows], z[columns].T, alpha=-2)
            closest, place = _smallest(block, count)
            near = torch.cat([near, closest], dim=1)
            places = torch.cat([places, place + columns.start], dim=1)
            near, kept = _smallest(near, count)
            places = places.gather(1, kept)
        found[rows] = places
    return found


def _smallest(values: Float[Tensor, "r c"], count: int) -> tuple[Float[Tensor, "r k"], Int[Tensor, "r k"]]:
    """The `count` smallest of every row and where they stand; all, where there are fewer."""
    smallest, place = values.topk(min(count, values.shape[1]), dim=1, largest=False, sorted=False)
    return smallest, place


class _PairSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(x, z, index)
        return _squares(x, z, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        (weights,) = grads
        x, z, index = ctx.saved_tensors
        x_grad = torch.empty_like(x)
        z_grad = torch.zeros_like(z) if ctx.needs_input_grad[1] else None
        for rows, differences in _differences(x, z, index):
            pulls = differences * (2 * weights[rows])[..., None]
            x_grad[rows] = pulls.sum(dim=1)
            if z_grad is not None:
                z_grad.index_add_(0, index[rows].flatten(), pulls.flatten(0, 1), alpha=-1)
        return x_grad, z_grad, None


def _squares(x: Tensor, z: Tensor, index: Tensor) -> Float[Tensor, "n p"]:
    """Squared distances of chosen pairs."""
    squares = torch.empty(index.shape, dtype=x.dtype, device=x.device)
    for rows, differences in _differences(x, z, index):
        squares[rows] = differences.square_().sum(dim=2)
    return squares


def _differences(x: Tensor, z: Tensor, index: Tensor) -> Iterator[tuple[slice, Float[Tensor, "r p d"]]]:
    """`x_i - z_{index_ij}`, some rows at a time."""
    for rows in _blocks(len(x), max(1, _ELEMENTS // max(1, index.shape[1] * x.shape[1]))):
        yield rows, x[rows, None] - z[index[rows]]


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
