"""Masked reductions over the columns of a block of scores, in the log domain where exponentials meet.

A mask is a bool tensor of the values' shape, or a plain `bool` when the whole block agrees: the engine knows of most
blocks that they hold negatives only, and an absent mask is the cheapest one. The reduction of an empty set is the
neutral element (`-inf` for a maximum or a log-sum-exp, `+inf` for a minimum, 0 for a sum), and its gradient is zero.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_LOG2_E = math.log2(math.e)

Mask: TypeAlias = Bool[Tensor, "r c"] | bool


def mask_out(
    values: Float[Tensor, "... c"], where: Bool[Tensor, "... c"] | bool, fill: float
) -> Float[Tensor, "... c"]:
    """`values` inside the mask, `fill` outside."""
    if where is True:
        return values
    if where is False:
        return torch.full_like(values, fill)
    return torch.where(where, values, fill)


def excess_over(values: Float[Tensor, "r c"], floor: Float[Tensor, " r"]) -> Float[Tensor, "r c"]:
    """`values - floor` where it is strictly positive, `-inf` elsewhere; a floor of `+inf` keeps nothing.

    Arithmetic, because a comparison and a selection cost ten times as much on a CPU.
    """
    return F.threshold(values - finite_floor(floor)[:, None], 0.0, -math.inf, inplace=True)


def finite_floor(floor: Tensor) -> Tensor:
    """A floor no finite value is above, where it was `+inf`, so that it can be added back."""
    return floor.clamp(max=torch.finfo(floor.dtype).max)


def scaled_exp(values: Float[Tensor, "r c"], scale: float, shift: Float[Tensor, " r"]) -> Float[Tensor, "r c"]:
    """`exp(scale * values_rc + shift_r)`, in two passes over the block; `-inf` in either gives 0.

    In base two: `exp2` is the fastest exponential of every backend.
    """
    return torch.add((shift * _LOG2_E)[:, None], values, alpha=scale * _LOG2_E).exp2_()


def masked_sum(values: Float[Tensor, "r c"], where: Mask = True) -> Float[Tensor, " r"]:
    """Row sums over the mask; 0 where it is empty."""
    return mask_out(values, where, 0.0).sum(dim=1)


def masked_max(values: Float[Tensor, "r c"], where: Mask = True) -> Float[Tensor, " r"]:
    """Row maxima over the mask; `-inf` where it is empty."""
    if where is False:
        return values.new_full((values.shape[0],), -math.inf)
    return mask_out(values, where, -math.inf).amax(dim=1)


def masked_min(values: Float[Tensor, "r c"], where: Mask = True) -> Float[Tensor, " r"]:
    """Row minima over the mask; `+inf` where it is empty."""
    if where is False:
        return values.new_full((values.shape[0],), math.inf)
    return mask_out(values, where, math.inf).amin(dim=1)


def masked_logsumexp(
    values: Float[Tensor, "... c"], where: Bool[Tensor, "... c"] | bool = True, scale: float = 1.0
) -> Float[Tensor, "..."]:
    """`log sum_{c in mask} exp(scale * values_c)` over the last axis; `-inf`, with a zero gradient, where it is empty.

    Entries of `-inf` count as absent, so a caller may also drop entries by value.

    Args:
        values: `[..., c]`, below `+inf`.
        where: the mask.
        scale: an inverse temperature, > 0.
    """
    if where is False:
        return values.new_full(values.shape[:-1], -math.inf)
    kept = mask_out(values, where, -math.inf)
    peak = kept.detach().amax(dim=-1).clamp(min=torch.finfo(values.dtype).min)
    total = torch.add((peak * (-scale * _LOG2_E)).unsqueeze(-1), kept, alpha=scale * _LOG2_E).exp2_().sum(dim=-1)
    # An empty row has total 0: the clamp blocks its gradient, which would be 0 / 0.
    logarithm = peak * scale + total.clamp(min=torch.finfo(values.dtype).tiny).log()
    return torch.where(total > 0, logarithm, -math.inf)


def softplus_of(log_mass: Float[Tensor, " r"]) -> Float[Tensor, " r"]:
    """`log(1 + exp(log_mass))`, exact at `-inf` (0) and for large masses."""
    return torch.logaddexp(log_mass, torch.zeros_like(log_mass))


def log1mexp(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`log(1 - e^x)` for `x <= 0`: `log(-expm1(x))` above `-ln 2`, `log1p(-e^x)` below; `-inf` at 0."""
    near = values > -math.log(2)
    # Each branch is kept away from the other's side, where its derivative would be infinite.
    close = (-torch.expm1(torch.where(near, values, -1.0))).log()
    return torch.where(near, close, torch.log1p(-torch.where(near, -1.0, values).exp()))


class Merge(enum.Enum):
    """How the measurements of two blocks become one."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"
    LOGSUMEXP = "logsumexp"

    @property
    def neutral(self) -> float:
        """The measurement of an empty block."""
        return {Merge.SUM: 0.0, Merge.MAX: -math.inf, Merge.MIN: math.inf, Merge.LOGSUMEXP: -math.inf}[self]

    def combine(self, left: Tensor, right: Tensor) -> Tensor:
        """The measurement of two disjoint blocks together."""
        if self is Merge.SUM:
            return left + right
        if self is Merge.MAX:
            return torch.maximum(left, right)
        if self is Merge.MIN:
            return torch.minimum(left, right)
        return torch.logaddexp(left, right)

    def repeat(self, value: Tensor, times: int) -> Tensor:
        """The measurement of `times` equal copies of a block."""
        if times == 1 or self in (Merge.MAX, Merge.MIN):
            return value
        return value * times if self is Merge.SUM else value + math.log(times)

    def all_reduce(self, value: Tensor, group: ProcessGroup | None) -> Tensor:
        """The measurement of all ranks' blocks together."""
        import torch.distributed as dist

        result = value.clone()
        if self is Merge.LOGSUMEXP:
            peak = value.clone()
            dist.all_reduce(peak, dist.ReduceOp.MAX, group=group)
            peak = peak.clamp(min=torch.finfo(value.dtype).min)
            result = (value - peak).exp()
            dist.all_reduce(result, dist.ReduceOp.SUM, group=group)
            return peak + result.log()
        operation = {Merge.SUM: dist.ReduceOp.SUM, Merge.MAX: dist.ReduceOp.MAX, Merge.MIN: dist.ReduceOp.MIN}[self]
        dist.all_reduce(result, operation, group=group)
        return result
