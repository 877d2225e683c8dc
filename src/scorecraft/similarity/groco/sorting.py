"""Relaxed sorting networks, and the one thing a group ordering loss needs of them.

A sorting network is a fixed sequence of layers of comparators. A relaxed comparator on the values `a`, `b` of two
positions exchanges them in part,

    a' = a + w d,   b' = b - w d,   d = b - a,   w = 1/2 - arctan(steepness * d) / pi,

where the Cauchy link makes `1 - w` the chance that the two are in order already. Each layer is a doubly stochastic
matrix `M_t`, symmetric, of 2 x 2 blocks `[[1-w, w], [w, 1-w]]`, and the relaxed permutation is `M_0 M_1 ... M_L-1`
(rows: input elements, columns: positions of the sorted list).

The chance that an element ends up in a *group* of positions is that matrix times the group's indicator, so the matrix
is never made: the values go forward through the layers, the indicator goes backward, at `O(n)` per layer of a list of
`n`. The gradient is two more such passes. Positions come first and lists last here, `[n, b]`, so that a comparator is
an operation on contiguous rows.

Source: Shvetsova et al. 2023, arXiv 2301.02009, section 3; Petersen et al. 2021, arXiv 2105.04019 (the relaxation).
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from scorecraft.core.checks import choice, describe, positive, refuse

Network: TypeAlias = Literal["odd_even", "bitonic"]
NETWORKS: tuple[Network, ...] = ("odd_even", "bitonic")


class Layer(NamedTuple):
    """Comparators side by side: blocks of `2 * distance` positions from `start` on, each half against the other."""

    start: int
    blocks: int
    distance: int
    run: int
    """How many blocks in a row sort the same way: the first run upwards, the next one downwards, and so on."""

    @property
    def comparators(self) -> int:
        """How many there are."""
        return self.blocks * self.distance

    def halves(self, values: Shaped[Tensor, "n *b"]) -> tuple[Tensor, Tensor]:
        """Views `[blocks, distance, *b]` of the first and of the second position of every comparator."""
        inside = values.narrow(0, self.start, 2 * self.comparators)
        pairs = inside.view(self.blocks, 2, self.distance, *values.shape[1:])
        return pairs.select(1, 0), pairs.select(1, 1)

    def row(self, buffer: Shaped[Tensor, "h b"]) -> Shaped[Tensor, "blocks distance b"]:
        """The part of a buffer of one number per comparator that this layer fills."""
        return buffer[: self.comparators].view(self.blocks, self.distance, buffer.shape[1])

    def signs(self, like: Float[Tensor, "blocks *rest"]) -> Tensor | float:
        """1 for blocks that sort upwards, -1 for the others, to be multiplied with a tensor that starts with blocks."""
        if self.run >= self.blocks:
            return 1.0
        block = torch.arange(self.blocks, device=like.device)
        return (1 - 2 * (block // self.run % 2)).to(like.dtype).view(-1, *[1] * (like.ndim - 1))


@functools.lru_cache(maxsize=256)
def sorting_network(network: Network, n: int) -> tuple[Layer, ...]:
    """The layers that sort `n` values in ascending order.

    Args:
        network: `"odd_even"`, `n` layers of neighbours; or `"bitonic"`, `log2(n) (log2(n) + 1) / 2` layers.
        n: at least 1; a power of two for the bitonic network.

    Raises:
        ValueError: an unknown network, or a length it is not made for.
    """
    choice("network", network, NETWORKS)
    if n < 1:
        refuse("n", "a list of at least one value", n)
    if network == "odd_even":
        return tuple(Layer(t % 2, (n - t % 2) // 2, 1, run=n) for t in range(n))
    if n & (n - 1):
        refuse("network", "'odd_even', or lists whose length is a power of two", f"'bitonic' with lists of {n}")
    layers = []
    for stage in range(n.bit_length() - 1):
        for step in range(stage + 1):
            distance = 2 ** (stage - step)
            # Stretches of 2^(stage+1) positions are sorted up and down in turn, to be merged by the next stage.
            layers.append(Layer(0, n // (2 * distance), distance, run=2**step))
    return tuple(layers)


def relaxed_sort(
    scores: Float[Tensor, "*lists n"], *, steepness: float = 1.0, network: Network = "odd_even"
) -> tuple[Float[Tensor, "*lists n"], Float[Tensor, "*lists n n"]]:
    """The relaxed ascending order of each list, and the relaxed permutation that makes it.

    For inspection: it costs `O(n^3)` per list and keeps every layer for autograd. The losses here never call it.

    Args:
        scores: lists of `n` scores.
        steepness: of the comparators, > 0; the larger, the closer to sorting.
        network: `"odd_even"`, or `"bitonic"` for a power of two.

    Returns:
        `sorted` and the doubly stochastic `permutation`, rows input elements, columns positions:
        `sorted_r = sum_i scores_i permutation_ir`. Differentiable.

    Raises:
        ValueError: no floating-point lists, a steepness not above zero, or a length the network is not made for.
    """
    if not scores.is_floating_point() or scores.ndim < 1:
        refuse("scores", "floating-point lists [..., n]", describe(scores))
    steepness = positive("steepness", steepness)
    n = scores.shape[-1]
    values = (scores if scores.dtype == torch.float64 else scores.float()).reshape(-1, n).T
    # Positions, then lists, then input elements; the values ride along as one more column.
    identity = torch.eye(n, dtype=values.dtype, device=values.device)[:, None].expand(n, values.shape[1], n)
    state = torch.cat([values[..., None], identity], dim=-1)
    for layer in sorting_network(network, n):
        first, second = layer.halves(state)
        gap = second - first
        swap = 0.5 - layer.signs(gap) * torch.atan(steepness * gap[..., :1]) / math.pi
        moved = torch.stack([first + swap * gap, second - swap * gap], dim=1).flatten(0, 2)
        state = torch.cat([state[: layer.start], moved, state[layer.start + len(moved) :]])
    return state[..., 0].T.reshape(scores.shape), state[..., 1:].permute(1, 2, 0).reshape(*scores.shape, n)


def reach_group(
    values: Float[Tensor, "n b"],
    group: Float[Tensor, "n b"],
    *,
    steepness: float,
    network: Network = "odd_even",
    lengths: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, "n b"]:
    """The chance of each element to end up in a group of positions: the relaxed permutation times its indicator.

    Time and memory are `O(n)` per layer and list. Differentiable once, in `values`; a single operator to
    `torch.compile`.

    Args:
        values: `b` lists of `n` values, position first.
        group: 1 for the positions of the group, else 0.
        steepness: of the comparators, > 0.
        network: which network.
        lengths: the true length of each list, at most `n` (odd-even network only). What follows in a list stays as it
            is, and the result is that of the list without it; values there must be finite.
    """
    if lengths is not None and network != "odd_even":
        refuse("network", "'odd_even' for lists of several lengths", repr(network))
    scaled = values * steepness  # the link sees the product alone, and a comparator is linear in the values
    return torch.ops.scorecraft.reach_group(scaled, group, lengths, network)[0]


@torch.library.custom_op(
    "scorecraft::reach_group",
    mutates_args=(),
    schema="(Tensor values, Tensor group, Tensor? lengths, str network) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _reach_group(
    values: Tensor, group: Tensor, lengths: Tensor | None, network: Network
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, and what the gradient needs of every comparator: three numbers `[layers, n / 2, b]`.

    With the gap `d`, the swap `w(d)`, its slope `rho = -dw/dd = 1 / (pi (1 + d^2))`, and the tilt, by how much the
    group differs between the two positions, they are `w`, `rho d - w` and `rho tilt`.
    """
    layers = sorting_network(network, len(values))
    swaps, gaps, tilts = (_buffer(values, layers) for _ in range(3))
    active = None if lengths is None else _active(layers, lengths)
    state = values.clone(memory_format=torch.contiguous_format)
    for t, layer in enumerate(layers):
        first, second = layer.halves(state)
        gap, swap = layer.row(gaps[t]), layer.row(swaps[t])
        torch.sub(second, first, out=gap)
        torch.atan(gap, out=swap)
        swap.mul_(layer.signs(swap) * (-1 / math.pi)).add_(0.5)
        if active is not None:
            swap.mul_(layer.row(active[t]))
        move = swap * gap
        first.add_(move)
        second.sub_(move)
    result = group.clone(memory_format=torch.contiguous_format)
    for t in reversed(range(len(layers))):
        _exchange(layers[t], result, swaps[t], tilts[t])
    slopes = gaps.square().add_(1).mul_(math.pi).reciprocal_()
    for t, layer in enumerate(layers):
        if layer.run < layer.blocks:
            slope = layer.row(slopes[t])
            slope.mul_(layer.signs(slope))
    if active is not None:
        slopes.mul_(active)
    return result, swaps, gaps.mul_(slopes).sub_(swaps), tilts.mul_(slopes)


@torch.library.custom_op(
    "scorecraft::reach_group_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor swaps, Tensor follows, Tensor tilts, str network) -> Tensor",
)
def _reach_group_backward(grad: Tensor, swaps: Tensor, follows: Tensor, tilts: Tensor, network: Network) -> Tensor:
    """The gradient of the values.

    With `g` the gradient at the output of a layer's exchange of the group, `d loss / d w = -tilt (g_b - g_a)`; those
    gradients pass the layers in order. A second pass, in reverse, carries the gradient `v` of the values: the chain
    through the exchanged amount `w(d) d`, and that through `w(d)` in the group's exchange, together move
    `(rho d - w) (v_b - v_a) + rho tilt (g_b - g_a)` from `a` to `b`.
    """
    layers = sorting_network(network, len(grad))
    pulls = torch.zeros_like(tilts)
    state = grad.clone(memory_format=torch.contiguous_format)
    for t, layer in enumerate(layers):
        _exchange(layer, state, swaps[t], pulls[t])
    pulls.mul_(tilts)
    state.zero_()
    for t in reversed(range(len(layers))):
        layer = layers[t]
        first, second = layer.halves(state)
        move = torch.addcmul(layer.row(pulls[t]), second - first, layer.row(follows[t]))
        first.sub_(move)
        second.add_(move)
    return state


def _exchange(layer: Layer, state: Tensor, swaps: Tensor, differences: Tensor) -> None:
    """One layer applied to `state` in place; `differences` takes what stood between the halves before."""
    first, second = layer.halves(state)
    difference = layer.row(differences)
    torch.sub(second, first, out=difference)
    move = difference * layer.row(swaps)
    first.add_(move)
    second.sub_(move)


def _buffer(values: Float[Tensor, "n b"], layers: tuple[Layer, ...]) -> Float[Tensor, "t h b"]:
    """One number for every comparator of every layer; zeros where a layer has one less."""
    return values.new_zeros(len(layers), len(values) // 2, values.shape[1])


def _active(layers: tuple[Layer, ...], lengths: Int[Tensor, " b"]) -> Bool[Tensor, "t h b"]:
    """Which comparators an odd-even network on the true length of each list has: layer and both positions below it."""
    layer = torch.arange(len(layers), device=lengths.device)[:, None]
    second = 2 * torch.arange(len(layers) // 2, device=lengths.device) + 1 + layer % 2
    return torch.maximum(layer, second)[:, :, None] < lengths


@_reach_group.register_fake
def _(values: Tensor, group: Tensor, lengths: Tensor | None, network: Network) -> tuple[Tensor, ...]:
    layers = sorting_network(network, len(values))
    return group.new_empty(group.shape), *(_buffer(values, layers) for _ in range(3))


@_reach_group_backward.register_fake
def _(grad: Tensor, swaps: Tensor, follows: Tensor, tilts: Tensor, network: Network) -> Tensor:
    return grad.new_empty(grad.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *_, ctx.network = inputs
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)  # or what is kept here would be met by zeros of its size in the backward pass


def _differentiate(ctx: Any, grad: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, None, None, None]:
    if grad is None:
        return None, None, None, None
    return torch.ops.scorecraft.reach_group_backward(grad, *ctx.saved_tensors, ctx.network), None, None, None


torch.library.register_autograd("scorecraft::reach_group", _differentiate, setup_context=_keep)
