"""The list contract: a loss per list of scored candidates.

Scores, relevances and the mask have the candidates on the last axis and any number of list axes before it. Every list
owns its candidates, so nothing is tiled and nothing is gathered: the mean of local losses is the loss.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int, Num, Shaped
from torch import Tensor

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import check_values, describe, refuse
from scorecraft.core.objective import RowObjective, sum_of
from scorecraft.core.pairs import Tile
from scorecraft.core.reductions import mask_out
from scorecraft.core.scores import ScoreMap
from scorecraft.core.separable import Items, OfRanks, SeparableObjective, Summed, in_working_precision, same_reduction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class Lists(Items):
    """What a list objective is evaluated on; entries outside `where` are zero and take part in nothing."""

    scores: Float[Tensor, "... c"]
    """`[..., c]`, or `[channels, ..., c]`."""
    relevance: Float[Tensor, "... c"]
    where: Bool[Tensor, "... c"]


class ListObjective(SeparableObjective[Lists]):
    """A loss per list of scored candidates: `loss_q(s_q1 ... s_qc)`, given how relevant each candidate is.

    Args:
        reduction: `"mean"`, `"sum"` or `"none"` over lists; the mean runs over the lists that `counts` names.
        validate: read the values of the input; shapes and dtypes are always checked.
    """

    channels: ClassVar[int] = 1
    """Scores per candidate; several stand on a leading axis, `[channels, ..., c]`."""
    order_invariant: ClassVar[bool] = True
    """Whether the value does not depend on the order of a list."""

    def forward(
        self,
        scores: Float[Tensor, "..."],
        relevance: Num[Tensor, "..."] | Bool[Tensor, "..."],
        where: Bool[Tensor, "..."] | None = None,
        *,
        segments: Int[Tensor, " n"] | None = None,
        weights: Float[Tensor, "..."] | None = None,
    ) -> Tensor:
        """The loss of lists of candidates.

        Args:
            scores: `[..., c]` (`[channels, ..., c]` with several channels), any finite values; `-inf` is padding.
            relevance: `[..., c]`, how relevant each candidate is: >= 0, bool or graded.
            where: bool `[..., c]`, the candidates there are; the others take part in nothing.
            segments: int `[n]`, for ragged lists that stand one after the other or mixed in `scores` `[n]` and
                `relevance` `[n]`: the list each candidate belongs to, numbered from 0.
            weights: non-negative weights of the lists `[...]`; the mean is the weighted mean.

        Returns:
            A scalar, or one loss per list `[...]` with `reduction="none"`.

        Raises:
            ValueError: one line naming the argument, what was expected and what came.
        """
        return self.evaluate(self.lists(scores, relevance, where, segments=segments, weights=weights))

    def lists(
        self,
        scores: Tensor,
        relevance: Tensor,
        where: Tensor | None = None,
        *,
        segments: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Lists:
        """Check the arguments of a call and put them together."""
        shape = scores.shape[1:] if self.channels > 1 else scores.shape
        channels = self.channels == 1 or len(scores) == self.channels
        if not scores.is_floating_point() or len(shape) < 1 or shape[-1] == 0 or not channels:
            lead = f"{self.channels}, " if self.channels > 1 else ""
            refuse("scores", f"floating-point scores of shape [{lead}..., candidates]", describe(scores))
        if relevance.shape != shape or relevance.is_complex():
            refuse("relevance", f"one per candidate, shape {tuple(shape)}", describe(relevance))
        if where is not None and (where.shape != shape or where.dtype != torch.bool):
            refuse("where", f"a bool tensor of shape {tuple(shape)}", describe(where))
        present = scores != -torch.inf
        if self.channels > 1:
            present = self._present_in_all(scores, present, where)
        where = present if where is None else where & present
        scores = in_working_precision(scores)
        relevance = relevance.to(scores.dtype)
        if self.validate:
            self._check_values(scores, relevance, where)
        scores, relevance = torch.where(where, scores, 0.0), torch.where(where, relevance, 0.0)
        if segments is not None:
            scores, relevance, where = _padded(scores, relevance, where, segments)
        self.check_weights(weights, where.shape[:-1])
        return Lists(scores, relevance, where, weights=weights)

    def _present_in_all(self, scores: Tensor, present: Tensor, where: Tensor | None) -> Tensor:
        """Candidates that have a score in every channel; one that has some and lacks others is refused."""
        everywhere = present.all(dim=0)
        if self.validate:
            agreed = everywhere == present.any(dim=0)
            agreed = agreed if where is None else agreed | ~where
            check_values("scores", "finite values in every channel (or -inf in all, for padding)", agreed.all, scores)
        return everywhere

    def _check_values(self, scores: Tensor, relevance: Tensor, where: Tensor) -> None:
        check_values("scores", "finite values (or -inf for padding)", (scores.isfinite() | ~where).all, scores)
        known = (relevance.isfinite() & (relevance >= 0)) | ~where
        check_values("relevance", "finite values >= 0", known.all, relevance)

    @abstractmethod
    def list_loss(
        self, scores: Float[Tensor, "... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        """The loss of each list; scores and relevance are zero outside `where`. A list without a choice to make
        (nothing relevant, a single candidate, none at all) has loss zero and gradient zero."""

    def counts(self, relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "..."]:
        """The lists that the mean runs over: those with a relevant candidate."""
        return ((relevance > 0) & where).any(dim=-1)

    def evaluate(self, items: Lists) -> Tensor:
        """The reduced loss of checked lists."""
        losses = self.list_loss(items.scores, items.relevance, items.where)
        return self.reduce(losses, items, self.counts(items.relevance, items.where))


class ListObjectiveSum(Summed, ListObjective):
    """`sum_k weight_k * objective_k`, each with its own reduction; made by `+` and `*`."""

    def __init__(self, terms: list[tuple[float, ListObjective]]) -> None:
        if len({objective.channels for _, objective in terms}) > 1:
            refuse("terms", "the same channels in every term", repr([objective for _, objective in terms]))
        super().__init__(reduction=same_reduction(terms))
        self.hold(terms)
        self.channels = terms[0][1].channels  # type: ignore[misc]
        self.order_invariant = all(objective.order_invariant for _, objective in terms)  # type: ignore[misc]

    def list_loss(self, scores: Tensor, relevance: Tensor, where: Tensor) -> Tensor:
        return sum_of(factor * objective.list_loss(scores, relevance, where) for factor, objective in self.parts)


class ListsAcrossRanks(OfRanks, ListObjective):
    """See `across_ranks`."""

    def __init__(self, objective: ListObjective, group: ProcessGroup | None = None) -> None:
        super().__init__(reduction=objective.reduction, validate=objective.validate)
        self.channels = objective.channels  # type: ignore[misc]
        self.order_invariant = objective.order_invariant  # type: ignore[misc]
        self.objective = objective
        self.group = group

    def list_loss(self, scores: Tensor, relevance: Tensor, where: Tensor) -> Tensor:
        return self.objective.list_loss(scores, relevance, where)


ListObjective.sums, ListObjective.of_ranks = ListObjectiveSum, ListsAcrossRanks


class InBatch(RowObjective):
    """See `in_batch`."""

    mean_over_anchors_with_positives = True

    def __init__(
        self,
        objective: ListObjective,
        *,
        score: ScoreMap | None = None,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(score=score, reduction=reduction, validate=validate)
        if not isinstance(objective, ListObjective) or objective.channels != 1:
            got = type(objective).__name__
            raise TypeError(f"argument `objective`: expected a list objective of one score channel, got {got}")
        self.objective = objective
        self.order_invariant = objective.order_invariant  # type: ignore[misc]

    def row_loss(self, tile: Tile) -> Float[Tensor, " r"]:
        """The loss of every row as a list whose candidates are the columns that are positive or negative."""
        everywhere = torch.ones_like(tile.score, dtype=torch.bool)
        positives, negatives = everywhere & tile.positives, everywhere & tile.negatives
        where = positives | negatives
        grades = torch.ones_like(tile.score) if tile.grades is None else tile.grades
        return self.objective.list_loss(mask_out(tile.score, where, 0.0), mask_out(grades, positives, 0.0), where)


def in_batch(objective: ListObjective, *, score: ScoreMap | None = None, validate: bool = True) -> InBatch:
    """A list objective on queries against the passages of a batch: each query's list is all of them.

        >>> loss = in_batch(InfoNCELoss(), score=20 * Cosine())  # doctest: +SKIP
        >>> pairs = Pairs.of_queries(positives, passages=len(passages))  # doctest: +SKIP
        >>> loss(queries, reference=passages, pairs=pairs)  # doctest: +SKIP

    The result is a row objective: it can be tiled, taken across ranks, cached and added to others.

    Args:
        objective: a list objective of one score channel.
        score: the score map between embeddings, cosine by default (most list objectives want it scaled).
        validate: read the values of the input.
    """
    return InBatch(objective, score=score, reduction=objective.reduction, validate=validate)


def list_score_gradients(objective: ListObjective, scores: Tensor, relevance: Tensor, **call: Any) -> Tensor:
    """The pull on each candidate: `d loss / d s`, in the shape of `scores`; positive entries are pushed down.

    Args:
        objective: any list objective with a scalar reduction.
        scores: `[..., c]`.
        relevance: `[..., c]`.
        call: further arguments of the objective's call (`where`, `segments`, `weights`).
    """
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(leaf, relevance, **call), leaf)
    return gradient


def _padded(scores: Tensor, relevance: Tensor, where: Tensor, segments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ragged lists as rows `[lists, longest]`."""
    if where.ndim != 1 or segments.shape != where.shape or segments.is_floating_point():
        refuse("segments", f"one list index per candidate, for flat scores {tuple(where.shape)}", describe(segments))
    if segments.numel() == 0:
        refuse("segments", "at least one candidate", describe(segments))
    check_values("segments", "list indices >= 0", (segments >= 0).all, segments)
    lengths = torch.bincount(segments)
    order = segments.argsort(stable=True)
    lists = segments[order]
    starts = lengths.cumsum(0) - lengths
    place = torch.arange(len(order), device=order.device) - starts[lists]
    shape = (len(lengths), int(lengths.max()))

    def padded(values: Shaped[Tensor, "... n"]) -> Shaped[Tensor, "... lists longest"]:
        filled = values.new_zeros((*values.shape[:-1], *shape))
        return filled.index_put((*_all_axes(values.ndim - 1, filled), lists, place), values[..., order])

    return padded(scores), padded(relevance), padded(where)


def _all_axes(count: int, filled: Tensor) -> tuple[Tensor, ...]:
    """Index of everything on the leading axis, where there is one."""
    return (torch.arange(len(filled), device=filled.device)[:, None],) if count else ()
