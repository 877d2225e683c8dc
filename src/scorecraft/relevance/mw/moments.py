"""Sums over all pairs of a positive and a negative score in linear time, from moments of the scores.

What has to be summed, `softplus(b - a)` for the loss and `sigmoid(b - a)` for its gradient, is smooth: both kernels are
analytic in the strip `|Im| < pi`. So the line is cut into panels of half-width `h = 1/4`, always the same ones, and on
a pair of panels the kernel is its Chebyshev interpolant in both arguments,

    k(b - a) = sum_ij K_ij^(d) t^i s^j,   a = centre + h t,   b = centre + h (s + 2 d),   t, s in [-1, 1],

which depends on the distance `d` of the panels alone and is tabulated once. What the sums need to know of the scores
are then the moments of each panel, `sum_a t^i` and `sum_b s^j` for `i, j < nodes`: one pass over the scores makes them,
a small banded product turns them into the two potentials

    F(a) = sum_b k(b - a),   G(b) = sum_a k(b - a)

as polynomials on every panel, and one more pass reads these at the scores. Panels further apart than `FAR` need no
table: there `softplus(x)` is 0 or `x` and `sigmoid(x)` is 0 or 1 up to `exp(-FAR)`, and cumulative sums do.

The error falls by `rho = pi / h + sqrt(1 + (pi / h)^2)`, about 25, with every node. Both potentials of `sigmoid` are
interpolated, so a gradient is the interpolant of the derivative and not the derivative of an interpolant, which would
lose more than a node.

Moments add over blocks and over ranks: a few thousand float64 numbers take the place of all pairs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.checks import positive_integer, refuse

HALF_WIDTH = 0.25
"""A power of two, so that a score's place in its panel is exact in every floating-point type."""
FAR = 40.0
"""`exp(-FAR) = 4e-18`, below the rounding of 1 in float64: what a pair of scores further apart is off by at most."""
BAND = round(FAR / (2 * HALF_WIDTH))
"""Panels that far apart are linear to each other."""
MAX_PANELS = 1 << 20
MIN_NODES, MAX_NODES = 2, 16
"""Beyond, rounding is all that is left of the error."""

_CHUNK = 1 << 14
"""Scores looked at together on a CPU: they and their temporaries stay in the cache, and in the allocator."""
_WINDOW = 1 << 22
"""Numbers in the windows of a banded product."""

Moments: TypeAlias = Float[Tensor, "2 panels nodes"]
"""Of the positives and of the negatives, float64."""
Members: TypeAlias = Bool[Tensor, "*n"] | bool
"""Which scores: one bool each, or a plain one for all of them."""
Kernel: TypeAlias = Float[Tensor, "distances nodes nodes"]


class Panels(NamedTuple):
    """A run of panels; panel `c` is `[2 h c, 2 h (c + 1))`."""

    first: int
    number: int


def number_of_nodes(nodes: int) -> int:
    """A number of nodes per panel, checked."""
    if not MIN_NODES <= positive_integer("nodes", nodes) <= MAX_NODES:
        refuse("nodes", f"an integer in [{MIN_NODES}, {MAX_NODES}]", nodes)
    return nodes


def extremes(
    scores: Float[Tensor, "*n"], positives: Members, negatives: Members
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The lowest and the highest score that takes part; `(inf, -inf)` when none does, NaN where one is."""
    low, high = [scores.new_full((), torch.inf)], [scores.new_full((), -torch.inf)]
    flat, of_positives, of_negatives = scores.detach().reshape(-1), _cut(positives), _cut(negatives)
    for where in _chunks(flat):
        left_out = _neither(of_positives(where), of_negatives(where))
        if left_out is not True:
            low.append((flat[where] if left_out is False else flat[where].masked_fill(left_out, torch.inf)).amin())
            high.append((flat[where] if left_out is False else flat[where].masked_fill(left_out, -torch.inf)).amax())
    return torch.stack(low).amin(), torch.stack(high).amax()


def fits(lowest: Float[Tensor, ""], highest: Float[Tensor, ""]) -> bool:
    """Whether the scores lie in at most `MAX_PANELS` panels; waits for the device."""
    low, high = torch.stack([lowest, highest]).tolist()
    return not low <= high or high - low < 2 * HALF_WIDTH * (MAX_PANELS - 1)


def panels_between(lowest: Float[Tensor, ""], highest: Float[Tensor, ""]) -> Panels:
    """The panels from the lowest to the highest score; waits for the device."""
    low, high = torch.stack([lowest, highest]).tolist()
    if math.isinf(low) and low > high:
        return Panels(0, 1)
    if not (math.isfinite(low) and math.isfinite(high) and fits(lowest, highest)):
        widest = 2 * HALF_WIDTH * (MAX_PANELS - 1)
        refuse("scores", f"finite scores that range over less than {widest:.0f}", f"from {low:g} to {high:g}")
    first = math.floor(low / (2 * HALF_WIDTH))
    return Panels(first, math.floor(high / (2 * HALF_WIDTH)) - first + 1)


def moments(
    scores: Float[Tensor, "*n"],
    positives: Members,
    negatives: Members,
    panels: Panels,
    nodes: int,
    weights: Float[Tensor, "*n"] | None = None,
) -> Moments:
    """`sum t^k` over the positives and over the negatives of each panel; with weights, `sum w t^k`."""
    total = scores.new_zeros((nodes, 2 * panels.number + 1), dtype=torch.float64)
    for part in _parts(scores, positives, negatives, panels, weights):
        place = part.place.double()
        power = torch.ones_like(place) if part.weights is None else part.weights.to(torch.float64, copy=True)
        for row in total:
            row.scatter_add_(0, part.slot, power)
            power.mul_(place)
    return total[:, :-1].reshape(nodes, 2, panels.number).permute(1, 2, 0).contiguous()


def read_potentials(
    scores: Float[Tensor, "*n"],
    positives: Members,
    negatives: Members,
    panels: Panels,
    tables: Moments,
    weights: Float[Tensor, "*n"] | None = None,
) -> Float[Tensor, "*n"]:
    """The polynomials in `tables` at the scores: of the first half at positives, of the second at negatives, else 0.

    With weights, times the weight of each score.
    """
    result = torch.empty(scores.numel(), dtype=scores.dtype, device=scores.device)
    coefficients = F.pad(tables.flatten(0, 1), (0, 0, 0, 1)).T.to(scores.dtype).contiguous()
    for part in _parts(scores, positives, negatives, panels, weights):
        value = coefficients[-1].index_select(0, part.slot)
        for row in coefficients[:-1].flip(0):
            value = row.index_select(0, part.slot).addcmul_(value, part.place)
        result[part.where] = value if part.weights is None else value * part.weights
    return result.view(scores.shape)


def pair_sum(of: Moments) -> Float[Tensor, ""]:
    """`sum_ab softplus(b - a)` over all pairs of a positive `a` and a negative `b`."""
    positives, negatives = of
    near = (positives * _banded(negatives, _softplus_kernel(of.shape[2], of.device))).sum()
    if of.shape[1] <= BAND + 1:
        return near
    # Of the negatives more than a band above a panel: how many there are, and the sum of their distances to its centre.
    count, distance = _far_above(negatives)
    far = positives[:, 0] * distance - HALF_WIDTH * positives[:, 1] * count
    return near + far.sum()


def gradient_potentials(of: Moments) -> Moments:
    """`-sum_b sigmoid(b - a)` around every positive `a`, `+sum_a sigmoid(b - a)` around every negative `b`."""
    positives, negatives = of
    kernel = _sigmoid_kernel(of.shape[2], of.device)
    around_positives = _banded(negatives, kernel)
    around_negatives = _banded(positives, kernel.flip(0).mT)
    if of.shape[1] > BAND + 1:
        around_positives[:, 0] += _shifted_sums(negatives[:, 0].flip(0)).flip(0)
        around_negatives[:, 0] += _shifted_sums(positives[:, 0])
    return torch.stack([-around_positives, around_negatives])


class _Part(NamedTuple):
    """Some scores, with the panel they lie in and their place in it."""

    where: slice
    slot: Int[Tensor, " n"]
    """Panel of a positive; `number` plus panel of a negative; `2 number` for what takes no part."""
    place: Float[Tensor, " n"]
    """`t` in [-1, 1)."""
    weights: Float[Tensor, " n"] | None


def _parts(
    scores: Tensor, positives: Members, negatives: Members, panels: Panels, weights: Tensor | None
) -> Iterator[_Part]:
    flat = scores.detach().reshape(-1)
    weights = None if weights is None else weights.detach().reshape(-1)
    of_positives, of_negatives = _cut(positives), _cut(negatives)
    nowhere = 2 * panels.number
    for where in _chunks(flat):
        part, positive, negative = flat[where], of_positives(where), of_negatives(where)
        steps = part * (1 / (2 * HALF_WIDTH))
        left_out = _neither(positive, negative)
        if isinstance(left_out, Tensor):
            steps.masked_fill_(left_out, 0.0)
        panel = steps.floor()
        slot = panel.long().sub_(panels.first)
        place = steps.sub_(panel).mul_(2).sub_(1)
        if negative is not False:
            slot.add_(negative, alpha=panels.number)
        if left_out is True:
            slot.fill_(nowhere)
        elif isinstance(left_out, Tensor):
            slot.masked_fill_(left_out, nowhere)
        yield _Part(where, slot, place, None if weights is None else weights[where])


def _chunks(flat: Tensor) -> Iterator[slice]:
    size = _CHUNK if flat.device.type == "cpu" else max(1, len(flat))
    return (slice(start, start + size) for start in range(0, len(flat), size))


def _cut(mask: Members) -> Callable[[slice], Members]:
    """The part of a mask for some of the flattened scores."""
    if isinstance(mask, bool):
        return lambda where: mask
    flat = mask.reshape(-1)
    return lambda where: flat[where]


def _neither(positives: Members, negatives: Members) -> Members:
    """What takes no part."""
    if positives is True or negatives is True:
        return False
    if positives is False:
        return True if negatives is False else ~negatives
    return ~positives if negatives is False else ~(positives | negatives)


def _far_above(negatives: Float[Tensor, "panels nodes"]) -> tuple[Float[Tensor, " panels"], Float[Tensor, " panels"]]:
    """Of the scores more than a band above each panel: their number, and the sum of `b - centre`."""
    centres = torch.arange(len(negatives), dtype=torch.float64, device=negatives.device) * (2 * HALF_WIDTH)
    sums = centres * negatives[:, 0] + HALF_WIDTH * negatives[:, 1]
    count = _shifted_sums(negatives[:, 0].flip(0)).flip(0)
    return count, _shifted_sums(sums.flip(0)).flip(0) - centres * count


def _shifted_sums(values: Float[Tensor, " panels"]) -> Float[Tensor, " panels"]:
    """For every panel the sum over those that lie more than a band before it."""
    return F.pad(values.cumsum(0), (BAND + 1, 0))[: len(values)]


def _banded(source: Float[Tensor, "panels nodes"], kernel: Kernel) -> Float[Tensor, "panels nodes"]:
    """`result_c = sum_{|d| <= BAND} kernel_d source_{c + d}`, for `kernel` from `-BAND` to `BAND`."""
    panels, nodes = source.shape
    reach = min(BAND, panels - 1)
    width = 2 * reach + 1
    matrix = kernel[BAND - reach : BAND + reach + 1].permute(0, 2, 1).reshape(width * nodes, nodes)
    padded = F.pad(source, (0, 0, reach, reach)).reshape(-1)
    windows = padded.unfold(0, width * nodes, nodes)
    step = max(1, _WINDOW // (width * nodes))
    return torch.cat([windows[start : start + step] @ matrix for start in range(0, panels, step)])


@functools.lru_cache(maxsize=32)
def _softplus_kernel(nodes: int, device: torch.device) -> Kernel:
    return _interpolant(lambda x: -F.logsigmoid(-x), nodes).to(device)


@functools.lru_cache(maxsize=32)
def _sigmoid_kernel(nodes: int, device: torch.device) -> Kernel:
    return _interpolant(torch.sigmoid, nodes).to(device)


def _interpolant(function: Callable[[Tensor], Tensor], nodes: int) -> Kernel:
    """`K_ij^(d)` of the module's equation, for `d` from `-BAND` to `BAND`."""
    index = torch.arange(nodes, dtype=torch.float64)
    angles = (2 * index + 1) * (torch.pi / (2 * nodes))
    distance = 2 * HALF_WIDTH * torch.arange(-BAND, BAND + 1, dtype=torch.float64)
    places = angles.cos()
    values = function(distance[:, None, None] + HALF_WIDTH * (places[None, None, :] - places[None, :, None]))
    # First to coefficients of Chebyshev polynomials, which is stable; they fall so fast that those of powers are too.
    transform = torch.cos(index[:, None] * angles) * (2 / nodes)
    transform[0] /= 2
    powers = _chebyshev_in_powers(nodes)
    return powers.T @ (transform @ values @ transform.T) @ powers


def _chebyshev_in_powers(nodes: int) -> Float[Tensor, "nodes nodes"]:
    """Row `k`: the coefficients of `T_k` in powers."""
    table = torch.zeros(nodes, nodes, dtype=torch.float64)
    table[0, 0] = table[1, 1] = 1
    for k in range(2, nodes):
        table[k, 1:] = 2 * table[k - 1, :-1]
        table[k] -= table[k - 2]
    return table
