"""A margin head whose classes are divided among the ranks of `torch.distributed`, for `C` of 10^5 and more.

Every rank holds a contiguous range of class vectors and sees the features of all ranks. With the other classes of each
range `p` summed into `R^p_i = log sum_{j in p, j != y_i} e^{s c_ij}`, the plain head's

    L_i = log( 1 + e^{R_i - s z_i,y_i} ),    R_i = log( sum_p e^{R^p_i} + e^M ),

needs two numbers per sample from the other ranks: `R_i`, and the target cosine from the one rank that has it. The
shared negatives `M` are known to every rank and join at the end, so they cost no communication here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scorecraft.core.checks import describe, positive_integer, refuse
from scorecraft.core.ranks import gather_rows, offset_of_rank, world_size
from scorecraft.core.reductions import Merge
from scorecraft.similarity.unpg.heads import (
    IGNORED,
    MarginHead,
    OtherClasses,
    check_inputs,
    cosine_of_rows,
    margin_loss,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ShardedHead(nn.Module):
    """A margin head with `C` classes of which this rank holds one range; the same losses as the head on one process.

        head = ShardedHead(CosFaceHead, num_classes=1_000_000, dim=512, scale=64.0, margin=0.4)

    *The mean over ranks of the returned values is the global loss.* The gradient that arrives in a rank's features is
    the number of ranks times theirs in the global loss, so that DDP's average of gradients is right for the encoder in
    front. The class vectors are nobody else's and are not averaged: their gradient is that of the global loss itself,
    the mean over ranks. Keep the head out of DDP, and give its parameters to each rank's optimiser.

    All ranks must call it, and its backward, together; their batches may be uneven. Without a process group, or with
    one rank, it is the plain head.

    Args:
        head_type: `CosFaceHead`, `ArcFaceHead`, `MagFaceHead`, or another `MarginHead`; called for this rank's classes.
        num_classes: `C`, at least the number of ranks. Ranges differ by at most one class.
        dim: width of the features.
        group: the process group; the default group when left out. It is needed when the head is made.
        generator: draws the seed of the initial class vectors; may be in the same state on every rank.
        options: further arguments of `head_type` (`scale`, `margin`, ...).

    Raises:
        ValueError: fewer classes than ranks, and what `head_type` refuses.
    """

    def __init__(
        self,
        head_type: Callable[..., MarginHead],
        num_classes: int,
        dim: int,
        *,
        group: ProcessGroup | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.num_classes = positive_integer("num_classes", num_classes)
        self.dim = positive_integer("dim", dim)
        self.group = group
        self.ranks = world_size(group)
        rank = dist.get_rank(group) if self.ranks > 1 else 0
        if num_classes < self.ranks:
            refuse("num_classes", f"at least one class for each of {self.ranks} ranks", num_classes)
        self.first = rank * num_classes // self.ranks
        stop = (rank + 1) * num_classes // self.ranks
        if self.ranks > 1:  # ranks in the same random state must not start from the same class vectors
            seed = int(torch.randint(2**62, (), generator=generator)) + rank
            generator = torch.Generator().manual_seed(seed)
        self.shard = head_type(stop - self.first, dim, **options)
        self.shard.reset_parameters(generator, classes=num_classes)
        # Saved with the weights: a shard must not be loaded where another one belongs.
        self.register_buffer("class_range", torch.tensor([self.first, stop, num_classes]))
        self.register_load_state_dict_pre_hook(_refuse_other_shard)

    @property
    def scale(self) -> float:
        """`s`, of the head inside."""
        return self.shard.scale

    def cross_entropy(
        self,
        features: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        shared_negatives: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, " n"]:
        """The losses of this rank's samples over all classes, as `MarginHead.cross_entropy`.

        Args:
            features: `[n, d]`, of this rank.
            labels: `[n]` in `0 ... C-1` (of all classes), or -1.
            shared_negatives: `M`, the same on every rank. Its gradient is that of this rank's losses.
        """
        self._check_ranks()
        if self.ranks == 1:
            return self.shard.cross_entropy(features, labels, shared_negatives)
        check_inputs(features, labels, self.dim, self.num_classes, validate=self.shard.validate)
        with torch.autocast(features.device.type, enabled=False):
            x, w, norms = self.shard.normalised(features)
            w = _ScaledGradient.apply(w, 1 / self.ranks)
            everyone = gather_rows(x, self.group)
            targets = gather_rows(labels, self.group) - self.first
            others = OtherClasses.apply(everyone, w, targets, self.scale, self.shard.class_block)
            here = (targets >= 0) & (targets < len(w))
            cosines = torch.where(here, cosine_of_rows(everyone, w[targets.clamp(0, len(w) - 1)]), 0.0)
            others, cosines = _Combined.apply(others, cosines, self.group)
            offset = offset_of_rank(len(x), x.device, self.group)
            own = slice(offset, offset + len(x))
            target = self.scale * self.shard.margin_cosine(cosines[own], norms)
            return margin_loss(target, others[own], shared_negatives) * (labels != IGNORED)

    def regulariser(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"] | Float[Tensor, ""]:
        """The head's own term, of this rank's samples."""
        return self.shard.regulariser(features)

    def forward(self, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Plain margin softmax, as `MarginHead.forward`; the mean over ranks is the global value."""
        losses = self.cross_entropy(features, labels) + self.regulariser(features)
        kept = labels != IGNORED
        count = kept.sum() if self.ranks == 1 else Merge.SUM.all_reduce(kept.sum(), self.group)
        return self.ranks * (losses * kept).sum() / count.clamp(min=1)

    @torch.no_grad()
    def full_weight(self) -> Float[Tensor, "C d"]:
        """The class vectors of all ranks, on every rank, as the plain head holds them."""
        self._check_ranks()
        return gather_rows(self.shard.weight, self.group).clone()

    @torch.no_grad()
    def load_full_weight(self, weight: Float[Tensor, "C d"]) -> None:
        """Take this rank's range out of the class vectors of a plain head."""
        if weight.shape != (self.num_classes, self.dim):
            refuse("weight", f"a matrix of shape {(self.num_classes, self.dim)}", describe(weight))
        self.shard.weight.copy_(weight[self.first : self.first + self.shard.num_classes])

    def _check_ranks(self) -> None:
        if world_size(self.group) != self.ranks:
            raise RuntimeError(
                f"ShardedHead was made for {self.ranks} ranks and is called with {world_size(self.group)}: "
                "make it after torch.distributed.init_process_group"
            )

    def extra_repr(self) -> str:
        stop = self.first + self.shard.num_classes
        return f"classes {self.first} to {stop - 1} of {self.num_classes}, ranks={self.ranks}"


class _Combined(torch.autograd.Function):
    """`log sum_p e^{R^p}` and `sum_p c^p` over ranks; backward sums what every rank's loss says about each sample."""

    @staticmethod
    def forward(ctx: Any, others: Tensor, cosines: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
        combined = Merge.LOGSUMEXP.all_reduce(others, group)
        ctx.group = group
        ctx.save_for_backward((others - combined).exp())
        return combined, Merge.SUM.all_reduce(cosines, group)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        (shares,) = ctx.saved_tensors
        others_grad, cosines_grad = Merge.SUM.all_reduce(torch.stack(grads), ctx.group)
        return shares * others_grad, cosines_grad, None


class _ScaledGradient(torch.autograd.Function):
    """The identity, with its gradient multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def _refuse_other_shard(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Report a range of classes other than this rank's among the errors of `load_state_dict`."""
    saved, own = state.get(f"{prefix}class_range"), module.class_range
    if isinstance(saved, Tensor) and isinstance(own, Tensor) and saved.tolist() != own.tolist():
        errors: list[str] = rest[-1]
        errors.append(
            f"argument `state_dict`: expected the class range [first, stop, all] = {own.tolist()}, "
            f"got {saved.tolist()}; to load other ranges, go through full_weight and load_full_weight"
        )
