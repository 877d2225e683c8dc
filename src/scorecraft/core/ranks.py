"""What the engine needs of `torch.distributed`: sizes, offsets, and a differentiable gather of uneven row blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def world_size(group: ProcessGroup | None = None) -> int:
    """Ranks of the group; 1 when nothing is distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rows_per_rank(rows: int, device: torch.device, group: ProcessGroup | None = None) -> list[int]:
    """How many rows each rank brings."""
    own = torch.tensor([rows], device=device)
    everyone = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(everyone, own, group=group)
    return torch.cat(everyone).tolist()


def offset_of_rank(rows: int, device: torch.device, group: ProcessGroup | None = None) -> int:
    """Where this rank's rows begin in the gathered batch."""
    return sum(rows_per_rank(rows, device, group)[: dist.get_rank(group)])


def gather_rows(values: Shaped[Tensor, "n ..."], group: ProcessGroup | None = None) -> Shaped[Tensor, "m ..."]:
    """The rows of all ranks, in rank order; floating-point rows carry gradient back to the rank they came from.

    The gradient of a row is the sum over ranks of what each rank's loss says about it.
    """
    if world_size(group) == 1:
        return values
    return _GatherRows.apply(values, group)  # type: ignore[return-value]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: ProcessGroup | None) -> Tensor:
        sizes = rows_per_rank(len(values), values.device, group)
        padded = values.new_zeros((max(sizes), *values.shape[1:]))
        padded[: len(values)] = values
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded.contiguous(), group=group)
        ctx.group, ctx.sizes = group, sizes
        return torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total.split(ctx.sizes)[dist.get_rank(ctx.group)], None
