"""The two objective contracts, and how a batch becomes scores, scores become a loss, and losses add.

An objective reads scores and pairs; it never sees how the scores were made, how the batch was cut into blocks, or how
many ranks hold it. It states either a loss per row (`RowObjective`) or totals over the whole batch (`BatchObjective`),
and the wrappers (`tiled`, `across_ranks`) choose how those are evaluated.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scorecraft.core.batch import Batch, Reduction
from scorecraft.core.checks import check_values, choice, describe, finite, refuse
from scorecraft.core.pairs import Labels, Pairs, ReferenceLabels, Tile
from scorecraft.core.reductions import Merge
from scorecraft.core.scores import Cosine, ScoreMap
from scorecraft.core.sweep import Context, Sweep, whole_tile

Weights: TypeAlias = Float[Tensor, "r c"] | tuple[Float[Tensor, "r c"], ...]
"""The weights of the pairs of a block, in one or several score channels."""


class Execution:
    """How an objective is evaluated; this one: densely, with autograd. The engine has another, on blocks."""

    def row_objective(self, objective: RowObjective, batch: Batch) -> Tensor:
        """The reduced loss of a row objective."""
        return objective.evaluate_scores(objective.dense_scores(batch), batch)

    def batch_objective(self, objective: BatchObjective, batch: Batch) -> Tensor:
        """The loss of a batch objective."""
        return objective.evaluate_scores(objective.dense_scores(batch), batch)


class Objective(nn.Module):
    """A loss over scored pairs that adds, scales, and can be wrapped.

    Args:
        score: the score map between embeddings (`Cosine()`, `Dot()`, `NegativeDistance()`, ...).
        reduction: `"mean"`, `"sum"` or `"none"` over rows.
        validate: read the values of the input (finite, non-zero rows); shapes and dtypes are always checked.
    """

    order_invariant: ClassVar[bool] = True
    """Whether the value does not depend on the order of the batch."""
    pairwise: ClassVar[bool] = True
    """Whether the value is a function of scores and pairs alone (a head's logits are not)."""

    def __init__(self, *, score: ScoreMap | None = None, reduction: Reduction = "mean", validate: bool = True) -> None:
        super().__init__()
        self.score = Cosine() if score is None else score
        if not isinstance(self.score, ScoreMap):
            raise TypeError(f"argument `score`: expected a score map such as Cosine(), got {describe(score)}")
        self.reduction: Reduction = choice("reduction", reduction, ("mean", "sum", "none"))  # type: ignore[assignment]
        self.validate = validate

    @classmethod
    def example(cls, *, classes: int, dimension: int, **options: Any) -> Objective:
        """An instance for labels below `classes` and embeddings `[n, dimension]`, its options the defaults or given."""
        del classes, dimension
        return cls(**options)

    def forward(
        self,
        embeddings: Float[Tensor, "n ..."],
        labels: Labels | None = None,
        *,
        reference: Float[Tensor, "m ..."] | None = None,
        reference_labels: ReferenceLabels | None = None,
        ids: Int[Tensor, " n"] | None = None,
        reference_ids: Int[Tensor, " m"] | None = None,
        pairs: Pairs | None = None,
        weights: Float[Tensor, " n"] | None = None,
        ignore: Bool[Tensor, " n"] | None = None,
    ) -> Tensor:
        """The loss of embeddings against each other, or against a reference set.

        Args:
            embeddings: `[n, d]`, the anchors; any finite values (the score map normalises when it needs to).
            labels: int `[n]`, or multi-hot `[n, classes]`; may be left out when `pairs` is given.
            reference: `[m, d]`, what the anchors are compared with; themselves when left out. Receives gradient.
            reference_labels: labels of the reference.
            ids: identities of the examples; pairs of equal ids are left out (self pairs always are).
            reference_ids: identities of the reference examples.
            pairs: an explicit relation instead of labels.
            weights: non-negative weights of the anchors (row objectives); the mean is the weighted mean.
            ignore: bool `[n]`, examples that take part in nothing.

        Returns:
            A scalar, or `[n]` with `reduction="none"`.

        Raises:
            ValueError: one line naming the argument, what was expected and what came.
        """
        batch = self.batch(
            embeddings,
            labels,
            reference=reference,
            reference_labels=reference_labels,
            ids=ids,
            reference_ids=reference_ids,
            pairs=pairs,
            weights=weights,
            ignore=ignore,
        )
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.evaluate(batch, Execution())

    def on_scores(
        self,
        scores: Float[Tensor, "n m"],
        labels: Labels | None = None,
        *,
        reference_labels: ReferenceLabels | None = None,
        pairs: Pairs | None = None,
        weights: Float[Tensor, " n"] | None = None,
    ) -> Tensor:
        """The loss of a given matrix of scores; `labels` alone mean that rows and columns are the same examples."""
        if pairs is None:
            if labels is None:
                refuse("labels", "labels or pairs", "neither")
            pairs = Pairs.from_labels(labels, reference_labels)
        if scores.shape != (pairs.rows, pairs.columns) or not scores.is_floating_point():
            refuse("scores", f"a floating-point matrix of shape {(pairs.rows, pairs.columns)}", describe(scores))
        scores = scores if scores.dtype == torch.float64 else scores.float()
        batch = Batch(None, None, pairs, labels, weights, met_in_both_orders=reference_labels is None)
        return self.evaluate_scores((scores,), batch)

    def batch(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        *,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
        ids: Tensor | None = None,
        reference_ids: Tensor | None = None,
        pairs: Pairs | None = None,
        weights: Tensor | None = None,
        ignore: Tensor | None = None,
    ) -> Batch:
        """Check the arguments of a call and put them together."""
        self.score.check("embeddings", embeddings, validate=self.validate)
        if reference is not None:
            self.score.check("reference", reference, validate=self.validate)
            if reference.shape[1:] != embeddings.shape[1:]:
                refuse("reference", f"embeddings of shape [m, {_axes(embeddings)}]", describe(reference))
        others = embeddings if reference is None else reference
        if pairs is None:
            if labels is None:
                refuse("labels", "labels or pairs", "neither")
            if (reference is None) != (reference_labels is None):
                missing = "reference" if reference is None else "reference_labels"
                refuse(missing, "`reference` and `reference_labels` together", "only one of them")
            if len(labels) != len(embeddings):
                refuse("labels", f"{len(embeddings)} labels, one per embedding", describe(labels))
            pairs = Pairs.from_labels(
                labels,
                reference_labels,
                ids=ids,
                reference_ids=reference_ids,
                ignore=ignore,
            )
        elif ids is not None or ignore is not None:
            refuse("pairs", "no `ids` or `ignore` beside explicit pairs", "both")
        if (pairs.rows, pairs.columns) != (len(embeddings), len(others)):
            refuse("pairs", f"a relation of shape {(len(embeddings), len(others))}", str((pairs.rows, pairs.columns)))
        if weights is not None and (weights.shape != (len(embeddings),) or not weights.is_floating_point()):
            refuse("weights", f"{len(embeddings)} floating-point weights", describe(weights))
        if weights is not None and self.validate:
            check_values("weights", "finite weights >= 0", lambda: (weights.isfinite() & (weights >= 0)).all(), weights)
        kept = None if ignore is None else ~ignore
        return Batch(embeddings, reference, pairs, labels, weights, kept, met_in_both_orders=reference is None)

    @abstractmethod
    def evaluate(self, batch: Batch, execution: Execution) -> Tensor:
        """The loss of a batch, evaluated as `execution` says."""

    @abstractmethod
    def evaluate_scores(self, scores: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """The loss of given scores, one matrix per channel, with gradient."""

    def dense_scores(self, batch: Batch) -> tuple[Tensor, ...]:
        """The whole score matrix of a batch, with gradient."""
        if batch.embeddings is None:
            raise ValueError(f"{type(self).__name__} needs embeddings: call it on them, not on scores")
        rows = self.score.prepare(batch.embeddings)
        return self.score.scores(rows, rows if batch.reference is None else self.score.prepare(batch.reference))

    def __add__(self, other: Objective) -> ObjectiveSum:
        if not isinstance(other, Objective):
            return NotImplemented
        return ObjectiveSum([*_terms(self), *_terms(other)])

    def __mul__(self, factor: float) -> ObjectiveSum:
        if isinstance(factor, (Objective, Tensor)):
            return NotImplemented
        return ObjectiveSum([(weight * finite("factor", factor), objective) for weight, objective in _terms(self)])

    __rmul__ = __mul__

    def extra_repr(self) -> str:
        score = "" if self.score == Cosine() else f", score={self.score!r}"
        return f"reduction={self.reduction!r}{score}"


class RowObjective(Objective):
    """A loss per row of scores: `mean_i loss_i(s_i1 ... s_im)`.

    State it in one of two ways. Either write `row_loss` on whole rows, and autograd does the rest; or split it into
    what each row must know (`survey`: extremes, log-sum-exps), its loss from that (`row_values`), and, in closed form,
    the weight `d loss_i / d s_ij` of each pair (`pair_weights`). The second form is evaluated on blocks of any shape,
    visits each unordered pair of blocks once when a batch meets itself, and never records a graph.
    """

    mean_over_anchors_with_positives: ClassVar[bool] = False
    """Whether rows without a positive are left out of the mean, instead of counting as zero."""

    def survey(self, sweep: Sweep) -> Context:
        """What the loss and the weights of a row depend on, as tensors `[n]`."""
        del sweep
        return {}

    def row_values(self, context: Context) -> Float[Tensor, " r"]:
        """The loss of each row from its survey."""
        raise NotImplementedError(f"{type(self).__name__} states neither `row_loss` nor `row_values`")

    def row_loss(self, tile: Tile) -> Float[Tensor, " r"]:
        """The loss of each row of a tile of whole rows, differentiable in the scores."""
        return self.row_values(self.survey(Sweep(tile)))

    def pair_weights(self, tile: Tile, context: Context) -> Weights:
        """`d loss_i / d s_ij` of a block, in closed form; `context` holds the rows of the tile.

        One block, or a tuple of one per score channel.
        """
        raise NotImplementedError(f"{type(self).__name__} states no closed form")

    @property
    def has_closed_form(self) -> bool:
        """Whether `pair_weights` is stated, and holds (a learnable hyper-parameter needs autograd)."""
        stated = type(self).pair_weights is not RowObjective.pair_weights
        return stated and not any(parameter.requires_grad for parameter in self.parameters())

    def row_weights(self, tile: Tile) -> tuple[Float[Tensor, " r"], Weights]:
        """Loss and closed-form weights of a tile of whole rows."""
        context = self.survey(Sweep(tile))
        return self.row_values(context), self.pair_weights(tile, context)

    def evaluate(self, batch: Batch, execution: Execution) -> Tensor:
        return execution.row_objective(self, self._over_counted_rows(batch))

    def evaluate_scores(self, scores: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return self._over_counted_rows(batch).reduce(self.row_loss(whole_tile(scores, batch.pairs)), self.reduction)

    def _over_counted_rows(self, batch: Batch) -> Batch:
        """The batch with the rows kept that the mean runs over."""
        if not self.mean_over_anchors_with_positives:
            return batch
        counted = batch.pairs.rows_with_positives()
        return replace(batch, kept=counted if batch.kept is None else batch.kept & counted)


class BatchObjective(Objective):
    """A loss of totals over all pairs of the batch: `finish(sum over tiles of terms(tile))`.

    `totals` names them and says how two tiles' totals merge (`SUM`, or `LOGSUMEXP`; extremes are not differentiable and
    belong into `survey`). Every ordered pair counts once. With `symmetric_terms` a tile and its transpose have the same
    terms, and only one of the two is visited.
    """

    totals: ClassVar[Mapping[str, Merge]]
    symmetric_terms: ClassVar[bool] = True
    takes_weights: ClassVar[bool] = False
    """Whether its `finish` is a mean over rows, which per-example weights and `ignore` can enter."""

    def survey(self, sweep: Sweep) -> Context:
        """What the terms depend on, found without gradient before them."""
        del sweep
        return {}

    @abstractmethod
    def terms(self, tile: Tile, context: Context) -> dict[str, Tensor]:
        """The totals of one tile, 0-d or of a fixed shape (moments), differentiable in its scores."""

    @abstractmethod
    def finish(self, totals: Context, context: Context, batch: Batch) -> Tensor:
        """The loss from the totals, differentiable in them, and from what each rank holds on its own."""

    def pair_weights(self, tile: Tile, context: Context, totals: Context, coefficients: Context) -> Weights:
        """`sum_k coefficient_k d total_k / d s_ij` of a block in closed form, `coefficient_k = d loss / d total_k`
        (of the shape of the total).

        Optional: without it the engine differentiates `terms` block by block.
        """
        raise NotImplementedError(f"{type(self).__name__} states no closed form")

    @property
    def has_closed_form(self) -> bool:
        """Whether `pair_weights` is stated, and holds (a learnable hyper-parameter needs autograd)."""
        return type(self).pair_weights is not BatchObjective.pair_weights

    def evaluate(self, batch: Batch, execution: Execution) -> Tensor:
        if batch.weights is not None and not self.takes_weights:
            refuse("weights", f"none, {type(self).__name__} is no mean over rows", describe(batch.weights))
        return execution.batch_objective(self, batch)

    def evaluate_scores(self, scores: tuple[Tensor, ...], batch: Batch) -> Tensor:
        tile = whole_tile(scores, batch.pairs)
        context = self.survey(Sweep(tile))
        return self.finish(self.terms(tile, context), context, batch)


class ObjectiveSum(Objective):
    """`sum_k weight_k * objective_k`, each with its own score and reduction; made by `+` and `*`."""

    def __init__(self, terms: list[tuple[float, Objective]]) -> None:
        super().__init__()
        reductions = {objective.reduction for _, objective in terms}
        if "none" in reductions and len(reductions) > 1:
            refuse("reduction", "'none' in every term of a sum or in no term", str([o.reduction for _, o in terms]))
        self.factors = [weight for weight, _ in terms]
        self.objectives = nn.ModuleList(objective for _, objective in terms)
        self.reduction = terms[0][1].reduction
        self.score = terms[0][1].score

    @property
    def parts(self) -> list[tuple[float, Objective]]:
        """Factors and objectives."""
        return list(zip(self.factors, self.objectives, strict=True))  # type: ignore[arg-type]

    def batch(self, embeddings: Tensor, labels: Tensor | None = None, **call: Any) -> Batch:
        batches = [objective.batch(embeddings, labels, **call) for objective in self.objectives]  # type: ignore[operator]
        # What one term ignores (a sample without a class), all ignore.
        return next((batch for batch in batches if batch.kept is not None), batches[0])

    def evaluate(self, batch: Batch, execution: Execution) -> Tensor:
        return sum_of(weight * objective.evaluate(batch, execution) for weight, objective in self.parts)

    def evaluate_scores(self, scores: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return sum_of(weight * objective.evaluate_scores(scores, batch) for weight, objective in self.parts)

    def extra_repr(self) -> str:
        return "factors=" + ", ".join(f"{factor:g}" for factor in self.factors)


def sum_of(values: Iterator[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    total = next(values)
    for value in values:
        total = total + value
    return total


def _terms(objective: Objective) -> list[tuple[float, Objective]]:
    return objective.parts if isinstance(objective, ObjectiveSum) else [(1.0, objective)]


def _axes(embeddings: Tensor) -> str:
    return ", ".join(str(size) for size in embeddings.shape[1:])
