"""Small exact wrappers: the same value and gradient as the plain call, in less memory or on more ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import Tensor

from scorecraft.core.batch import Batch
from scorecraft.core.checks import positive_integer
from scorecraft.core.engine import DEFAULT_BLOCK, Blocks
from scorecraft.core.objective import Execution, Objective
from scorecraft.core.ranks import gather_rows, offset_of_rank, world_size
from scorecraft.core.separable import SeparableObjective

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


SeparableT = TypeVar("SeparableT", bound=SeparableObjective)


class Wrapper(Objective):
    """An objective evaluated in another way; it adds, scales and nests like the one inside."""

    def __init__(self, objective: Objective) -> None:
        if not isinstance(objective, Objective):
            raise TypeError(f"argument `objective`: expected a scorecraft objective, got {type(objective).__name__}")
        super().__init__(score=objective.score, reduction=objective.reduction, validate=objective.validate)
        self.objective = objective

    def batch(self, embeddings: Tensor, labels: Tensor | None = None, **call: Any) -> Batch:
        return self.objective.batch(embeddings, labels, **call)

    def evaluate_scores(self, scores: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return self.objective.evaluate_scores(scores, batch)

    def extra_repr(self) -> str:
        return ""


class Tiled(Wrapper):
    """See `tiled`."""

    def __init__(self, objective: Objective, block: int = DEFAULT_BLOCK) -> None:
        super().__init__(objective)
        self.block = positive_integer("block", block)

    def evaluate(self, batch: Batch, execution: Execution) -> Tensor:
        return self.objective.evaluate(batch, Blocks(self.block))

    def extra_repr(self) -> str:
        return f"block={self.block}"


class AcrossRanks(Wrapper):
    """See `across_ranks`."""

    def __init__(self, objective: Objective, group: ProcessGroup | None = None) -> None:
        super().__init__(objective)
        self.group = group

    def evaluate(self, batch: Batch, execution: Execution) -> Tensor:
        ranks = world_size(self.group)
        if ranks == 1:
            return self.objective.evaluate(batch, execution)
        if batch.embeddings is None:
            raise ValueError("across_ranks needs embeddings: call it on them, not on scores")
        offset = offset_of_rank(len(batch.embeddings), batch.embeddings.device, self.group)
        columns = batch.embeddings if batch.reference is None else batch.reference

        def gather(values: Tensor) -> Tensor:
            return gather_rows(values, self.group)

        gathered = replace(
            batch,
            reference=gather(columns),
            pairs=batch.pairs.gathered(gather, offset),
            met_in_both_orders=batch.reference is None,
            ranks=ranks,
            group=self.group,
        )
        return self.objective.evaluate(gathered, execution if isinstance(execution, Blocks) else Blocks())


def tiled(objective: Objective, *, block: int = DEFAULT_BLOCK) -> Tiled:
    """The same loss on blocks of scores: memory `O(n d + block^2)` instead of `O(n^2)`, and faster on large batches.

    An objective without closed-form weights is evaluated on whole rows instead, in memory `O(block^2 + rows * n)`.
    Differentiable once.

    Args:
        objective: any objective; in a sum, each term is tiled.
        block: rows and columns of a block, at least 1.
    """
    return Tiled(objective, block)


@overload
def across_ranks(objective: Objective, group: ProcessGroup | None = None) -> AcrossRanks: ...


@overload
def across_ranks(objective: SeparableT, group: ProcessGroup | None = None) -> SeparableT: ...


def across_ranks(objective: Any, group: ProcessGroup | None = None) -> Any:
    """The loss of the global batch of all ranks of `torch.distributed`; batches may be uneven.

    The contract: the mean over ranks of the returned values is the global loss, and DDP's average of gradients is its
    gradient. Each rank scores its own rows against all ranks' columns. Without a process group (or with one rank) it is
    the plain call. All ranks must call it, and its backward, together. Of a list objective only the number of lists is
    exchanged, which the mean needs where ranks hold uneven numbers of them.

    Args:
        objective: any objective, also a `tiled` one, or a separable one.
        group: the process group; the default group when left out.
    """
    if isinstance(objective, SeparableObjective):
        return objective.of_ranks(objective, group)
    return AcrossRanks(objective, group)


def score_gradients(objective: Objective, embeddings: Tensor, labels: Tensor | None = None, **call: Any) -> Tensor:
    """The pull on each pair: `d loss / d s_ij` as a matrix `[n, m]` (`[channels, n, m]` for several channels).

    `s_ij` and `s_ji` are separate variables; a positive entry pushes the pair apart, a negative one pulls it together.

    Args:
        objective: any objective with a scalar reduction.
        embeddings: `[n, d]`.
        labels: `[n]`.
        call: further arguments of the objective's call (`reference`, `pairs`, ...).
    """
    batch = objective.batch(embeddings, labels, **call)
    with torch.enable_grad():
        scores = tuple(channel.detach().requires_grad_() for channel in objective.dense_scores(batch))
        value = objective.evaluate_scores(scores, batch)
        gradients = torch.autograd.grad(value, scores, allow_unused=True, materialize_grads=True)
    return gradients[0] if len(gradients) == 1 else torch.stack(gradients)
