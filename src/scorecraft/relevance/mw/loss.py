"""The Mann-Whitney loss: every positive against every negative of the batch, of the same query or of any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from scorecraft.core.batch import Batch
from scorecraft.core.checks import check_values, choice, describe, refuse
from scorecraft.core.objective import BatchObjective
from scorecraft.core.pairs import Tile
from scorecraft.core.reductions import Merge
from scorecraft.core.scores import ScoreMap
from scorecraft.core.sweep import Context, Sweep
from scorecraft.relevance.mw.exact import pair_sum_and_gradients
from scorecraft.relevance.mw.labelled import check_labelled_scores
from scorecraft.relevance.mw.moments import (
    Members,
    Moments,
    Panels,
    extremes,
    fits,
    gradient_potentials,
    moments,
    number_of_nodes,
    pair_sum,
    panels_between,
    read_potentials,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Method: TypeAlias = Literal["auto", "exact", "chebyshev"]

DEFAULT_NODES = 8
"""The loss to 1e-12 and its gradient to 1e-9 of the largest entry, with room to spare."""
_FEW = 1 << 11
"""Scores with at most a million pairs between them, which the exact form is quick enough for."""


def mann_whitney_loss(
    scores: Float[Tensor, "..."],
    relevance: Num[Tensor, "..."] | Bool[Tensor, "..."],
    where: Bool[Tensor, "..."] | None = None,
    *,
    weights: Float[Tensor, "..."] | None = None,
    method: Method = "auto",
    nodes: int = DEFAULT_NODES,
    group: ProcessGroup | None = None,
    validate: bool = True,
) -> Float[Tensor, ""]:
    """The Mann-Whitney loss of scores of any shape, all pooled: a smooth upper bound of the area over the ROC curve.

        L = sum_{a in P, b in N} u_a v_b log(1 + e^{b - a}) / (sum_a u_a sum_b v_b)

    over the positive scores `P` and the negative scores `N`, the weights being 1 when left out. `1 - AUC <= L / ln 2`.
    Adding one constant to all scores changes nothing; adding one to the scores of a single query does, unlike in a
    softmax. The gradient is `-sum_b sigmoid(b - a)` at a positive and `+sum_a sigmoid(b - a)` at a negative, times
    weights and over the same total, so it adds up to zero. Differentiable once. Without a positive or without a
    negative the loss and its gradient are zero.

    With `group` every rank holds scores of its own, and moments of them (`scorecraft.relevance.mw.moments`) are all
    that is exchanged: each rank gets the loss over all ranks' pairs, and a gradient whose average over ranks is that of
    the loss. All ranks must call it, and its backward, together.

    Args:
        scores: any shape, any finite values; `-inf` is padding.
        relevance: 1 (positive) or 0 (negative), of the same shape.
        where: bool, the scores there are; the others take part in nothing (false negatives, padding).
        weights: non-negative weights of the scores; constants.
        method: `"chebyshev"` takes linear time, through moments of the scores; `"exact"` looks at every pair, in tiles;
            `"auto"` the first for more than a million pairs, unless the scores range too widely for it.
        nodes: Chebyshev nodes on a panel of width 1/2, in [2, 16]; each lowers the error about 25-fold. With 8 the loss
            is off by less than 1e-12 and the gradient by less than 1e-11 of its largest entry, with 4 by less than
            1e-6 and 1e-5.
        group: the process group whose ranks share the pairs (`torch.distributed.group.WORLD` for all of them).
        validate: read the values of the input.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: one line naming the argument, what was expected and what came.

    Source: arXiv 2510.00137, the loss over all positive and negative pairs of a batch.
    """
    positives, negatives = check_labelled_scores(scores, relevance, where, validate=validate)
    choice("method", method, ("auto", "exact", "chebyshev"))
    number_of_nodes(nodes)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if weights is not None:
        if weights.shape != scores.shape or not weights.is_floating_point():
            refuse("weights", f"floating-point weights of shape {tuple(scores.shape)}", describe(weights))
        if validate:
            check_values("weights", "finite weights >= 0", lambda: (weights.isfinite() & (weights >= 0)).all(), weights)
    if group is None:
        with_gradient = torch.is_grad_enabled() and scores.requires_grad
        return _evaluated(scores, positives, negatives, weights, method, nodes, with_gradient)[0]
    if method == "exact":
        refuse("method", "'auto' or 'chebyshev' with a group, which exchanges moments", repr(method))
    low, high = extremes(scores, positives, negatives)
    panels = panels_between(Merge.MIN.all_reduce(low, group), Merge.MAX.all_reduce(high, group))
    of: Moments = _Moments.apply(scores, positives, negatives, weights, panels, nodes, group)  # type: ignore[assignment]
    loss: Tensor = _PooledLoss.apply(of)  # type: ignore[assignment]
    return loss.to(scores.dtype)


class MannWhitneyLoss(BatchObjective):
    """Mann-Whitney loss of queries against the passages of a batch: InfoNCE with a common threshold.

        L = mean_{a in P, b in N} log(1 + e^{b - a})

    over **all** positive scores `P` and all negative scores `N` of the batch, also of different queries, where InfoNCE
    compares within each query only and so cannot see a shift of all scores of one. `1 - AUC <= L / ln 2` for the AUC of
    the pooled scores. The pull on a positive is `-sum_b sigmoid(b - a)`, that on a negative `+sum_a sigmoid(b - a)`,
    over the number of pairs.

        >>> loss = MannWhitneyLoss(score=20 * Cosine())  # doctest: +SKIP
        >>> pairs = Pairs.of_queries(positives, passages=len(passages))  # doctest: +SKIP
        >>> loss(queries, reference=passages, pairs=pairs)  # doctest: +SKIP

    Costs no more similarities than InfoNCE, and time linear in their number: `mann_whitney_loss` with its method
    `"auto"`. Tiled or across ranks its totals are moments of the scores, a few thousand numbers. The range of the
    scores, and with it the number of panels, is read from the device once.

    Args:
        nodes: Chebyshev nodes per panel, in [2, 16], as of `mann_whitney_loss`.
        score: score map; cosine by default, which wants a scale (`20 * Cosine()`), or a plain `Dot()`.
        validate: read input values.

    Raises:
        ValueError: tiled or across ranks, scores that range over more than half a million.

    Source: arXiv 2510.00137.
    """

    totals: ClassVar[Mapping[str, Merge]] = {"moments": Merge.SUM}

    def __init__(self, *, nodes: int = DEFAULT_NODES, score: ScoreMap | None = None, validate: bool = True) -> None:
        super().__init__(score=score, validate=validate)
        self.nodes = number_of_nodes(nodes)

    def survey(self, sweep: Sweep) -> Context:
        """The panels that the scores lie in, where the host can read them without waiting again."""
        found = sweep.totals(_extremes_of, lowest=Merge.MIN, highest=Merge.MAX)
        panels = panels_between(found["lowest"], found["highest"])
        return {"first": torch.tensor(panels.first), "number": torch.tensor(panels.number)}

    def terms(self, tile: Tile, context: Context) -> dict[str, Tensor]:
        """Moments of the positives and the negatives of a block.

        Their backward pass takes what `finish` hands out for potentials of the derivative.
        """
        found = _Moments.apply(tile.score, tile.positives, tile.negatives, None, _panels(context), self.nodes, None)
        return {"moments": found}  # type: ignore[dict-item]

    def finish(self, totals: Context, context: Context, batch: Batch) -> Float[Tensor, ""]:
        """The mean over all pairs."""
        del context
        loss: Tensor = _PooledLoss.apply(totals["moments"])  # type: ignore[assignment]
        double = batch.embeddings is not None and batch.embeddings.dtype == torch.float64
        return loss if double else loss.float()

    def pair_weights(
        self, tile: Tile, context: Context, totals: Context, coefficients: Context
    ) -> Float[Tensor, "r c"]:
        """The potentials of the derivative at the scores of a block."""
        del totals
        return read_potentials(tile.score, tile.positives, tile.negatives, _panels(context), coefficients["moments"])

    def evaluate_scores(self, scores: tuple[Tensor, ...], batch: Batch) -> Tensor:
        positives, negatives = batch.pairs.masks()
        with_gradient = torch.is_grad_enabled() and scores[0].requires_grad
        return _evaluated(scores[0], positives, negatives, None, "auto", self.nodes, with_gradient)[0]

    def extra_repr(self) -> str:
        return f"nodes={self.nodes}, {super().extra_repr()}"


def _extremes_of(tile: Tile, context: Context) -> dict[str, Tensor]:
    del context
    lowest, highest = extremes(tile.score, tile.positives, tile.negatives)
    return {"lowest": lowest, "highest": highest}


def _panels(context: Context) -> Panels:
    return Panels(int(context["first"]), int(context["number"]))


def _pairs_in(of: Moments) -> Float[Tensor, ""]:
    """The weight of all pairs."""
    return of[0, :, 0].sum() * of[1, :, 0].sum()


def _mean(total: Tensor, pairs: Tensor) -> Tensor:
    """`total / pairs`, 0 without pairs."""
    return torch.where(pairs > 0, total / torch.where(pairs > 0, pairs, 1), 0)


def _refuse_second_derivative() -> None:
    """The gradients here are constants to autograd: one of them must not be taken for a zero."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("the Mann-Whitney loss is differentiable once")


class _Moments(torch.autograd.Function):
    """Moments of the scores, over all ranks of a group; a gradient of the moments is read as potentials."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, positives: Members, negatives: Members, weights: Tensor | None,
                panels: Panels, nodes: int, group: ProcessGroup | None) -> Moments:  # fmt: skip
        ctx.save_for_backward(scores, weights)
        ctx.masks, ctx.panels, ctx.group = (positives, negatives), panels, group
        found = moments(scores, positives, negatives, panels, nodes, weights)
        return found if group is None else Merge.SUM.all_reduce(found, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        scores, weights = ctx.saved_tensors
        tables = grads[0] if ctx.group is None else Merge.SUM.all_reduce(grads[0], ctx.group)
        positives, negatives = ctx.masks
        pull = read_potentials(scores, positives, negatives, ctx.panels, tables, weights)
        return pull, None, None, None, None, None, None


class _PooledLoss(torch.autograd.Function):
    """The mean over pairs from the moments; its gradient holds the potentials of the derivative."""

    @staticmethod
    def forward(ctx: Any, of: Moments) -> Tensor:
        ctx.save_for_backward(of)
        return _mean(pair_sum(of), _pairs_in(of))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        _refuse_second_derivative()
        (of,) = ctx.saved_tensors
        return _mean(gradient_potentials(of) * grads[0], _pairs_in(of))


@torch.library.custom_op(
    "scorecraft::mann_whitney",
    mutates_args=(),
    schema="(Tensor scores, Tensor positives, Tensor negatives, Tensor? weights, str method, int nodes, "
    "bool with_gradient) -> (Tensor, Tensor)",
)
def _evaluated(
    scores: Tensor,
    positives: Tensor,
    negatives: Tensor,
    weights: Tensor | None,
    method: str,
    nodes: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of scores that are all here; one operator, which a compiler need not look into."""
    if method == "auto" and scores.numel() <= _FEW:
        method = "exact"
    if method != "exact":
        low, high = extremes(scores, positives, negatives)
        if method == "chebyshev" or fits(low, high):
            return _through_moments(
                scores, positives, negatives, weights, panels_between(low, high), nodes, with_gradient
            )
    return _pair_by_pair(scores, positives, negatives, weights, with_gradient)


@_evaluated.register_fake
def _shapes(
    scores: Tensor,
    positives: Tensor,
    negatives: Tensor,
    weights: Tensor | None,
    method: str,
    nodes: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    del positives, negatives, weights, method, nodes
    return scores.new_empty(()), scores.new_empty(scores.shape if with_gradient else (0,))


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    del inputs
    ctx.save_for_backward(output[1])


def _hand_out_gradient(ctx: Any, of_loss: Tensor, of_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    del of_gradient
    (gradient,) = ctx.saved_tensors
    _refuse_second_derivative()
    return gradient * of_loss, None, None, None, None, None, None


_evaluated.register_autograd(_hand_out_gradient, setup_context=_keep_gradient)


def _through_moments(
    scores: Tensor,
    positives: Tensor,
    negatives: Tensor,
    weights: Tensor | None,
    panels: Panels,
    nodes: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    of = moments(scores, positives, negatives, panels, nodes, weights)
    pairs = _pairs_in(of)
    loss = _mean(pair_sum(of), pairs).to(scores.dtype)
    if not with_gradient:
        return loss, scores.new_empty(0)
    tables = _mean(gradient_potentials(of), pairs)
    return loss, read_potentials(scores, positives, negatives, panels, tables, weights)


def _pair_by_pair(
    scores: Tensor, positives: Tensor, negatives: Tensor, weights: Tensor | None, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    u, v = (None, None) if weights is None else (weights[positives], weights[negatives])
    a, b = scores[positives], scores[negatives]
    total, of_a, of_b = pair_sum_and_gradients(a, b, u, v)
    pairs = total.new_tensor(len(a) * len(b)) if u is None or v is None else u.double().sum() * v.double().sum()
    loss = _mean(total, pairs).to(scores.dtype)
    if not with_gradient:
        return loss, scores.new_empty(0)
    gradient = torch.zeros_like(scores)
    gradient[positives] = _mean(of_a, pairs).to(scores.dtype)
    gradient[negatives] = _mean(of_b, pairs).to(scores.dtype)
    return loss, gradient
