"""The engine: objectives evaluated on blocks of scores that are made, used and forgotten.

Two primitives carry every objective. `tile_mean` evaluates a `RowObjective`, `tile_totals` a `BatchObjective`. Both
make the scores block by block in one buffer, first for the no-gradient surveys, then (only when gradient is asked for)
once more for the weights `w_ij = d loss / d s_ij`, which are pulled back to the embeddings at once. The score matrix
never exists, so memory is `O(n d + block^2)`.

When a batch meets itself, each unordered pair of blocks is visited once: the block serves its rows, its transpose its
columns, and `H = W + W^T` is pulled back with one pair of products. Rows and columns are first sorted by label, so
that most blocks hold negatives only and need no masks. Differentiable once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.batch import Batch
from scorecraft.core.blocks import BlockSweep, Visit, WeightsOf, rows_of
from scorecraft.core.objective import BatchObjective, Execution, RowObjective
from scorecraft.core.pairs import Tile
from scorecraft.core.reductions import Merge
from scorecraft.core.sweep import Context

DEFAULT_BLOCK = 512
"""Rows and columns of a block: small enough that a block and its temporaries stay in the cache."""
_Gradients: TypeAlias = tuple[Tensor | None, ...]


class _RowWeights(WeightsOf):
    """Closed-form weights of a row objective, scaled by what each row's loss counts for."""

    def __init__(self, objective: RowObjective, context: Context, coefficients: Tensor | None) -> None:
        self.objective, self.context, self.coefficients = objective, context, coefficients

    def __call__(self, tile: Tile, visit: Visit) -> tuple[Tensor, ...]:
        weights = self._scaled(tile, visit.rows)
        if visit.mirrored:
            for weight, other in zip(weights, self._scaled(tile.transposed(), visit.columns), strict=True):
                weight.add_(other.T)
        return weights

    def _scaled(self, tile: Tile, rows: slice) -> tuple[Tensor, ...]:
        weights = _as_channels(self.objective.pair_weights(tile, rows_of(self.context, rows)))
        if self.coefficients is None:
            return weights
        return tuple(weight.mul_(self.coefficients[rows, None]) for weight in weights)


class _Differentiated(WeightsOf):
    """Weights by autograd inside a block; gathers the gradient of learnable hyper-parameters on the way."""

    def __init__(self, parameters: tuple[Tensor, ...]) -> None:
        self.parameters = parameters
        self.gradients = [torch.zeros_like(parameter) for parameter in parameters]

    def value(self, tile: Tile, visit: Visit) -> Tensor:
        """The scalar whose derivative the weights are."""
        raise NotImplementedError

    def __call__(self, tile: Tile, visit: Visit) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            scores = tuple(channel.detach().requires_grad_() for channel in tile.scores)
            value = self.value(tile._replace(scores=scores), visit)
            inputs = [*scores, *self.parameters]
            found = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
        for gradient, part in zip(self.gradients, found[len(scores) :], strict=True):
            gradient.add_(part)
        return found[: len(scores)]


class _RowLossWeights(_Differentiated):
    """Of whole rows; keeps their losses, which came out on the way."""

    def __init__(self, objective: RowObjective, coefficients: Tensor, parameters: tuple[Tensor, ...]) -> None:
        super().__init__(parameters)
        self.objective, self.coefficients = objective, coefficients
        self.losses = torch.zeros_like(coefficients)

    def value(self, tile: Tile, visit: Visit) -> Tensor:
        losses = self.objective.row_loss(tile)
        self.losses[visit.rows] = losses.detach()
        return losses @ self.coefficients[visit.rows]


class _TermWeights(_Differentiated):
    """Of a batch objective's terms, each counting for `d loss / d total`."""

    def __init__(
        self,
        objective: BatchObjective,
        context: Context,
        totals: Context,
        coefficients: Context,
        parameters: tuple[Tensor, ...],
    ) -> None:
        super().__init__(parameters)
        self.objective, self.context, self.totals, self.coefficients = objective, context, totals, coefficients

    def value(self, tile: Tile, visit: Visit) -> Tensor:
        times = 2 if visit.mirrored else 1
        value = torch.zeros((), dtype=tile.score.dtype, device=tile.score.device)
        for name, term in self.objective.terms(tile, rows_of(self.context, visit.rows)).items():
            merge = self.objective.totals[name]
            share = torch.ones_like(term)
            if merge is Merge.LOGSUMEXP:  # d log sum_k exp(t_k) / d t_k
                share = (merge.repeat(term.detach(), times) - self.totals[name]).exp().nan_to_num(0.0)  # nothing kept
            else:
                share = share * times
            value = value + (self.coefficients[name] * share * torch.where(share > 0, term, 0)).sum()
        return value


class _ClosedTermWeights(WeightsOf):
    """Of a batch objective that states them in closed form."""

    def __init__(self, objective: BatchObjective, context: Context, totals: Context, coefficients: Context) -> None:
        self.objective, self.context, self.totals, self.coefficients = objective, context, totals, coefficients
        self.doubled = {name: 2 * value for name, value in coefficients.items()}

    def __call__(self, tile: Tile, visit: Visit) -> tuple[Tensor, ...]:
        coefficients = self.doubled if visit.mirrored else self.coefficients
        context = rows_of(self.context, visit.rows)
        return _as_channels(self.objective.pair_weights(tile, context, self.totals, coefficients))


def _differentiable_once(backward: Callable[..., _Gradients]) -> Callable[..., _Gradients]:
    """Refuse `create_graph=True`: torch's own guard takes weights for constants when the upstream gradient is one."""

    @functools.wraps(backward)
    def guarded(ctx: Any, *grads: Tensor) -> _Gradients:
        if torch.is_grad_enabled():
            raise RuntimeError("a tiled objective is differentiable once: use the dense form for second derivatives")
        return backward(ctx, *grads)

    return guarded


class _RowLosses(torch.autograd.Function):
    """Row losses `[n]`, the gradient by a second visit in the backward pass."""

    @staticmethod
    def forward(ctx: Any, objective: RowObjective, sweep: BlockSweep, x: Tensor, y: Tensor | None,
                *parameters: Tensor) -> Tensor:  # fmt: skip
        sweep.load(x, y)
        if objective.has_closed_form:
            context = objective.survey(sweep)
            losses = objective.row_values(context)
        else:
            context = {}
            losses = torch.cat([objective.row_loss(tile) for tile, _ in sweep.tiles()])
        sweep.unload()
        ctx.save_for_backward(x, y, *context.values(), *parameters)
        ctx.objective, ctx.sweep, ctx.names, ctx.parameter_count = objective, sweep, list(context), len(parameters)
        return sweep.restore_rows(losses)

    @staticmethod
    @_differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> _Gradients:
        x, y, *saved = ctx.saved_tensors
        sweep: BlockSweep = ctx.sweep
        context = dict(zip(ctx.names, saved, strict=False))
        parameters = tuple(saved[len(context) :])
        # The gradient of a plain mean is one expanded number: it is cheaper to apply it at the end.
        uniform = ctx.objective.has_closed_form and grads[0].stride() == (0,)
        coefficients = None if uniform else sweep.arrange_rows(grads[0])
        weights: WeightsOf
        if coefficients is None or ctx.objective.has_closed_form:
            weights = _RowWeights(ctx.objective, context, coefficients)
        else:
            weights = _RowLossWeights(ctx.objective, coefficients, parameters)
        sweep.load(x, y)
        x_grad, y_grad = sweep.pull(weights, needs_columns=ctx.needs_input_grad[3])
        sweep.unload()
        if uniform:
            x_grad.mul_(grads[0][0])
            y_grad = None if y_grad is None else y_grad.mul_(grads[0][0])
        return None, None, x_grad, y_grad, *(weights.gradients if isinstance(weights, _Differentiated) else ())


class _WeightedRowLosses(torch.autograd.Function):
    """`sum_i coefficient_i loss_i` of an objective without closed form, value and gradient in one pass."""

    @staticmethod
    def forward(ctx: Any, objective: RowObjective, sweep: BlockSweep, coefficients: Tensor, x: Tensor,
                y: Tensor | None, *parameters: Tensor) -> Tensor:  # fmt: skip
        sweep.load(x, y)
        arranged = sweep.arrange_rows(coefficients)
        weights = _RowLossWeights(objective, arranged, parameters)
        gradients = sweep.pull(weights, needs_columns=ctx.needs_input_grad[4])
        sweep.unload()
        ctx.save_for_backward(*gradients, *weights.gradients)
        return weights.losses @ arranged

    @staticmethod
    @_differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> _Gradients:
        scaled = (None if saved is None else saved * grads[0] for saved in ctx.saved_tensors)
        return None, None, None, *scaled


class _Totals(torch.autograd.Function):
    """Totals of a batch objective over all ranks; the backward pass shares the coefficients and visits again."""

    @staticmethod
    def forward(ctx: Any, objective: BatchObjective, sweep: BlockSweep, context: Context, x: Tensor,
                y: Tensor | None, *parameters: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
        sweep.load(x, y)
        totals = sweep.totals(objective.terms, context, **objective.totals)
        sweep.unload()
        ctx.objective, ctx.sweep, ctx.context = objective, sweep, context
        result = tuple(totals[name] for name in objective.totals)
        ctx.save_for_backward(x, y, *result, *parameters)
        return result

    @staticmethod
    @_differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> _Gradients:
        objective: BatchObjective = ctx.objective
        sweep: BlockSweep = ctx.sweep
        x, y, *saved = ctx.saved_tensors
        totals = dict(zip(objective.totals, (total.detach() for total in saved), strict=False))
        parameters = saved[len(totals) :]
        shared = sweep.all_reduce(torch.cat([grad.reshape(-1) for grad in grads]))  # one message for all of them
        parts = shared.split([grad.numel() for grad in grads])
        coefficients = {
            name: part.view_as(grad) for name, part, grad in zip(objective.totals, parts, grads, strict=True)
        }
        weights: WeightsOf
        if objective.has_closed_form:
            weights = _ClosedTermWeights(objective, ctx.context, totals, coefficients)
        else:
            weights = _TermWeights(objective, ctx.context, totals, coefficients, tuple(parameters))
        sweep.load(x, y)
        x_grad, y_grad = sweep.pull(weights, needs_columns=ctx.needs_input_grad[4])
        sweep.unload()
        gradients = weights.gradients if isinstance(weights, _Differentiated) else ()
        return None, None, None, x_grad, y_grad, *gradients


class Blocks(Execution):
    """Evaluation on blocks of scores; without a block size, on one block (which several ranks need for their totals).

    Args:
        block: rows and columns of a block.
    """

    def __init__(self, block: int | None = None) -> None:
        self.block = block

    def row_objective(self, objective: RowObjective, batch: Batch) -> Tensor:
        if self.block is None:
            return super().row_objective(objective, batch)
        return tile_mean(objective, batch, self.block)

    def batch_objective(self, objective: BatchObjective, batch: Batch) -> Tensor:
        block = max(batch.pairs.rows, batch.pairs.columns) if self.block is None else self.block
        totals, context = tile_totals(objective, batch, block)
        return objective.finish(totals, context, batch)


def tile_mean(
    objective: RowObjective, batch: Batch, block: int = DEFAULT_BLOCK
) -> Float[Tensor, ""] | Float[Tensor, " n"]:
    """The reduced loss of a row objective, evaluated on blocks.

    With closed-form weights the surveys run in the forward pass and the weights in the backward pass, so nothing is
    spent under `no_grad`. Without them a tile holds whole rows, and the gradient is taken in the forward pass.

    Args:
        objective: the row objective.
        batch: this rank's rows and what they are compared with.
        block: rows and columns of a block.

    Returns:
        What `objective.reduction` asks for: 0-d, or `[n]`.
    """
    x, y, sweep = _prepare(objective, batch, block, whole_rows=not objective.has_closed_form)
    parameters = _learnable(objective)
    in_forward = not objective.has_closed_form and objective.reduction != "none" and torch.is_grad_enabled()
    if not in_forward:
        losses: Tensor = _RowLosses.apply(objective, sweep, x, y, *parameters)  # type: ignore[assignment]
        return batch.reduce(losses, objective.reduction)
    with torch.enable_grad():
        losses = torch.zeros(batch.pairs.rows, dtype=x.dtype, device=x.device, requires_grad=True)
        (coefficients,) = torch.autograd.grad(batch.reduce(losses, objective.reduction), losses)
    return _WeightedRowLosses.apply(objective, sweep, coefficients, x, y, *parameters)  # type: ignore[return-value]


def tile_totals(
    objective: BatchObjective, batch: Batch, block: int = DEFAULT_BLOCK
) -> tuple[dict[str, Float[Tensor, "..."]], Context]:
    """The totals of a batch objective over all pairs of all ranks, differentiable, and what its survey found.

    Args:
        objective: the batch objective.
        batch: this rank's rows and what they are compared with.
        block: rows and columns of a block.

    Returns:
        `{name: total}` for every name in `objective.totals`, and the survey's context.
    """
    x, y, sweep = _prepare(objective, batch, block, whole_rows=False)
    sweep.symmetric = sweep.symmetric and objective.symmetric_terms
    with torch.no_grad():
        sweep.load(x, y)
        context = objective.survey(sweep)
        sweep.unload()
    parameters = _learnable(objective)
    values: tuple[Tensor, ...] = _Totals.apply(objective, sweep, context, x, y, *parameters)  # type: ignore[assignment]
    return dict(zip(objective.totals, values, strict=True)), context


def _prepare(
    objective: RowObjective | BatchObjective, batch: Batch, block: int, *, whole_rows: bool
) -> tuple[Tensor, Tensor | None, BlockSweep]:
    if batch.embeddings is None:
        raise ValueError(f"{type(objective).__name__} needs embeddings: call it on them, not on scores")
    x = objective.score.prepare(batch.embeddings)
    y = None if batch.reference is None else objective.score.prepare(batch.reference)
    sweep = BlockSweep(
        objective.score,
        batch.pairs,
        against_itself=y is None,
        block=block,
        order_invariant=objective.order_invariant,
        whole_rows=whole_rows,
        group=batch.group,
        ranks=batch.ranks,
    )
    return x, y, sweep


def _learnable(objective: RowObjective | BatchObjective) -> tuple[Tensor, ...]:
    """The parameters that blocks may pull at; a closed form holds for constants only."""
    if objective.has_closed_form:
        return ()
    return tuple(parameter for parameter in objective.parameters() if parameter.requires_grad)


def _as_channels(weights: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (weights,) if isinstance(weights, Tensor) else weights
