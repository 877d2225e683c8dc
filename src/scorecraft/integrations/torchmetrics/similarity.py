"""torchmetrics: Recall@K, OPIS, class-wise error rates and the ICNN score as metrics.

    from torchmetrics import MetricCollection
    from scorecraft.integrations.torchmetrics import OPIS, RecallAtK

    metrics = MetricCollection([RecallAtK(k=(1, 5)), OPIS()])
    for batch in loader:
        metrics.update(encoder(batch), labels)
    metrics.compute()                            # {"recall_at_1": ..., "recall_at_5": ..., "opis": ..., ...}

These measure a whole set of items, not a batch: call `update` per batch and `compute` once. `forward` also works, and
returns the value of the batch alone.

A metric either **gathers** embeddings and labels over updates and processes (every pair is seen; memory is that of the
embeddings; every process must have been updated at least once, as for all gathering metrics of the host), or adds up
**integer counts** over the pairs of each single update, which needs no gathering. Counts belong to the latter: give
each `update` the whole reference set, and every query is measured against all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.core.checks import check_embeddings, check_labels, describe, positive_integer, refuse
from scorecraft.core.scores import ScoreMap
from scorecraft.integrations.optional import require
from scorecraft.similarity.recall import recall_at_k
from scorecraft.similarity.susana import ICNNLoss, icnn_score
from scorecraft.similarity.tcm import operating
from scorecraft.similarity.tcm.consistency import OPISResult, opis, opis_from_counts
from scorecraft.similarity.tcm.operating import OperatingCounts, Orientation

require("torchmetrics", "metric-learning")

from torchmetrics import Metric  # noqa: E402
from torchmetrics.utilities import dim_zero_cat  # noqa: E402


class RecallAtK(Metric):
    """Recall@K, as `scorecraft.similarity.recall.recall_at_k`.

    Updates without a reference gather the items, which are then each other's gallery. Updates with a reference count
    hits at once and keep nothing else. One metric takes either kind.

    `compute` returns `recall_at_<K>` for each K, and `queries_without_positive`, which the recall leaves out.

    Args:
        k: one K or several, each at least 1.
        score: score map, cosine by default.
        **host: the host's own arguments (`sync_on_compute`, `process_group`, ...).

    Raises:
        ValueError: bad arguments; updates of both kinds.

    Source: Wang et al. 2019, arXiv 1904.06627.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    embeddings: list[Tensor]
    labels: list[Tensor]
    hits: Tensor
    queries: Tensor
    queries_without_positive: Tensor

    def __init__(self, k: int | Sequence[int] = (1,), *, score: ScoreMap | None = None, **host: Any) -> None:
        super().__init__(**host)
        self.ranks = [positive_integer("k", value) for value in ((k,) if isinstance(k, int) else k)]
        if not self.ranks:
            refuse("k", "at least one K", repr(k))
        self.score = score
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")
        self.add_state("hits", torch.zeros(len(self.ranks), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("queries", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("queries_without_positive", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        reference: Float[Tensor, "m d"] | None = None,
        reference_labels: Int[Tensor, " m"] | None = None,
    ) -> None:
        """Gather items, or count the hits of queries `[n, d]` in a reference `[m, d]`."""
        if reference is None:
            if bool(self.queries + self.queries_without_positive):
                refuse("reference", "a reference, as in earlier updates", None)
            _gather(self, embeddings, labels)
            return
        if self.embeddings:
            refuse("reference", "None, as in earlier updates", describe(reference))
        result = recall_at_k(
            embeddings, labels, self.ranks, reference=reference, reference_labels=reference_labels, score=self.score
        )
        self.hits = self.hits + self.hits.new_tensor(list(result.hits.values()))
        self.queries = self.queries + result.queries
        self.queries_without_positive = self.queries_without_positive + result.queries_without_positive

    def compute(self) -> dict[str, Tensor]:
        """The recall, and how many queries it leaves out."""
        hits, queries, left_out = self.hits, self.queries, self.queries_without_positive
        gathered = _gathered(self)
        if gathered is not None:
            result = recall_at_k(*gathered, self.ranks, score=self.score)
            hits = hits.new_tensor(list(result.hits.values()))
            queries, left_out = queries.new_tensor(result.queries), left_out.new_tensor(result.queries_without_positive)
        recall = hits / queries
        return {
            **{f"recall_at_{k}": value for k, value in zip(self.ranks, recall, strict=True)},
            "queries_without_positive": left_out,
        }


class ICNN(Metric):
    """The ICNN score of all gathered items, as `scorecraft.similarity.susana.icnn_score`: a signal for early stopping.

    `compute` returns a dict of tensors, each in [0, 1]: `icnn_score`, its mean part on distances `icnn_lambda` and its
    purity `icnn_gamma`.

    Args:
        neighbours: `k >= 1`, the neighbours that are scored.
        fetched: neighbours among which the nearest of another class is looked for; `neighbours + 1` by default.
        **host: the host's own arguments (`sync_on_compute`, `process_group`, ...).

    Raises:
        ValueError: bad arguments; in `compute`, no update before.

    Source: Mendez-Ruiz et al. 2023, arXiv 2305.09062.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    embeddings: list[Tensor]
    labels: list[Tensor]

    def __init__(self, *, neighbours: int = 4, fetched: int | None = None, **host: Any) -> None:
        super().__init__(**host)
        checked = ICNNLoss(neighbours=neighbours, fetched=fetched)
        self.neighbours, self.fetched = checked.neighbours, checked.fetched
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        reference: Float[Tensor, "m d"] | None = None,
        reference_labels: Int[Tensor, " m"] | None = None,
    ) -> None:
        """Gather items; the score is that of one set, so there is no reference."""
        for name, value in (("reference", reference), ("reference_labels", reference_labels)):
            if value is not None:
                refuse(name, "none, the score is that of one set of items", describe(value))
        _gather(self, embeddings, labels)

    def compute(self) -> dict[str, Tensor]:
        """The score and its parts."""
        gathered = _gathered(self)
        if gathered is None:
            refuse("embeddings", "at least one update before compute", "none")
        with torch.no_grad():
            found = icnn_score(*gathered, neighbours=self.neighbours, fetched=self.fetched)
        return {"icnn_score": found.score, "icnn_lambda": found.lambda_mean, "icnn_gamma": found.gamma}


class _CountingMetric(Metric):
    """A metric whose state are the integer counts of an `OperatingCounts`."""

    full_state_update = False
    is_differentiable = False

    positives: Tensor
    negatives: Tensor
    hits: Tensor
    queries: Tensor

    def _add_counts(self, zero: OperatingCounts) -> None:
        self._zero = zero
        for name in ("positives", "negatives", "hits", "queries"):
            self.add_state(name, getattr(zero, name), dist_reduce_fx="sum")

    def _empty(self) -> OperatingCounts:
        zero = self._zero
        return OperatingCounts(
            zero.classes, zero.thresholds, score=zero.score, orientation=zero.orientation, device=self.device
        )

    def _count(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None,
        reference_labels: Tensor | None,
        offset: int | None,
    ) -> None:
        counts = self._empty().update(embeddings, labels, reference, reference_labels, offset=offset)
        self.positives = self.positives + counts.positives
        self.negatives = self.negatives + counts.negatives
        self.hits = self.hits + counts.hits
        self.queries = self.queries + counts.queries

    def _counts(self) -> OperatingCounts:
        counts = self._empty()
        counts.positives, counts.negatives = self.positives, self.negatives
        counts.hits, counts.queries = self.hits, self.queries
        return counts


class OPIS(_CountingMetric):
    """OPIS and epsilon-OPIS, as `scorecraft.similarity.tcm.opis`.

    Without `threshold_range` the items are gathered, and the range is calibrated on all of them. With it (found once,
    for instance by `calibrated_range` on validation data) the state are integer counts over the pairs of each update:
    the items of a batch with each other or, better, with a reference set.

    `compute` returns a dict of tensors: `opis`, `eps_opis`, `d_min`, `d_max` (the range), `mean_utility`,
    `recall_at_1`, `per_class` (utility of each class averaged over the range, `[t]`), `classes` (their labels, `[t]`)
    and `classes_without_positives`.

    Args:
        threshold_range: the strictest and the most lenient threshold; `None`: calibrated on the gathered items.
        num_classes: with `threshold_range`: number of classes, labels being class indices.
        far_range: the pooled false accept rates that set the range, when it is not given.
        thresholds: number of evenly spaced thresholds in the range, at least 2.
        fraction: share of the classes in each of the two groups of epsilon-OPIS, in (0, 1].
        score: score map, cosine by default.
        orientation: "distance" or "similarity", what the thresholds are on.
        **host: the host's own arguments (`sync_on_compute`, `process_group`, ...).

    Raises:
        ValueError: bad arguments; a reference without `threshold_range`; in `compute`, too few pairs.

    Source: Zhang et al. 2023, arXiv 2307.04047, section 3.
    """

    higher_is_better = False

    embeddings: list[Tensor]
    labels: list[Tensor]

    def __init__(
        self,
        threshold_range: tuple[float, float] | None = None,
        num_classes: int | None = None,
        *,
        far_range: tuple[float, float] = (1e-2, 1e-1),
        thresholds: int = 101,
        fraction: float = 0.1,
        score: ScoreMap | None = None,
        orientation: Orientation = "distance",
        **host: Any,
    ) -> None:
        super().__init__(**host)
        if (threshold_range is None) != (num_classes is None):
            refuse("num_classes", "a number of classes exactly when there is a threshold_range", describe(num_classes))
        self.threshold_range = threshold_range
        self.far_range = far_range
        self.thresholds = positive_integer("thresholds", thresholds)
        self.fraction = fraction
        self.score = score
        self.orientation: Orientation = orientation
        if threshold_range is None or num_classes is None:
            self.add_state("embeddings", [], dist_reduce_fx="cat")
            self.add_state("labels", [], dist_reduce_fx="cat")
        else:
            grid = torch.linspace(*threshold_range, thresholds, dtype=torch.float64)
            self._add_counts(OperatingCounts(num_classes, grid, score=score, orientation=orientation))

    def update(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        reference: Float[Tensor, "m d"] | None = None,
        reference_labels: Int[Tensor, " m"] | None = None,
        offset: int | None = None,
    ) -> None:
        """Gather items, or count pairs (arguments as for `OperatingCounts.update`)."""
        if self.threshold_range is not None:
            self._count(embeddings, labels, reference, reference_labels, offset)
        elif reference is not None:
            refuse("reference", "None without a threshold_range", describe(reference))
        else:
            _gather(self, embeddings, labels)

    def compute(self) -> dict[str, Tensor]:
        """OPIS with the range, the mean utility and the recall it must be read together with."""
        if self.threshold_range is not None:
            result = opis_from_counts(self._counts(), fraction=self.fraction)
        else:
            gathered = _gathered(self)
            if gathered is None:
                refuse("embeddings", "at least one update before compute", "none")
            result = opis(
                *gathered,
                far_range=self.far_range,
                thresholds=self.thresholds,
                fraction=self.fraction,
                score=self.score,
                orientation=self.orientation,
            )
        return self._as_tensors(result)

    def _as_tensors(self, result: OPISResult) -> dict[str, Tensor]:
        numbers = {
            "opis": result.opis,
            "eps_opis": result.epsilon_opis,
            "d_min": result.threshold_min,
            "d_max": result.threshold_max,
            "mean_utility": result.mean_utility,
            "recall_at_1": result.recall_at_1,
        }
        return {
            **{name: torch.tensor(value, device=self.device) for name, value in numbers.items()},
            "per_class": result.per_class,
            "classes": result.classes,
            "classes_without_positives": torch.tensor(result.classes_without_positives, device=self.device),
        }


class FalseAcceptReject(_CountingMetric):
    """False accept and false reject rates of each class, as `scorecraft.similarity.tcm.false_accept_reject`.

    The state are integer counts over the pairs of each update: the items of a batch with each other or, better, with a
    reference set.

    `compute` returns a dict of tensors: `false_accept` and `false_reject` `[num_classes, g]` (NaN where a class has no
    such pair), `pooled_false_accept` and `pooled_false_reject` `[g]`.

    Args:
        thresholds: `[g]` from strict to lenient: increasing distances, or decreasing similarities.
        num_classes: number of classes, labels being class indices.
        score: score map, cosine by default.
        orientation: "distance" or "similarity", what the thresholds are on.
        **host: the host's own arguments (`sync_on_compute`, `process_group`, ...).

    Source: Zhang et al. 2023, arXiv 2307.04047, section 3.
    """

    higher_is_better = False

    def __init__(
        self,
        thresholds: Sequence[float] | Float[Tensor, " g"],
        num_classes: int,
        *,
        score: ScoreMap | None = None,
        orientation: Orientation = "distance",
        **host: Any,
    ) -> None:
        super().__init__(**host)
        self._add_counts(OperatingCounts(num_classes, thresholds, score=score, orientation=orientation))

    def update(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        reference: Float[Tensor, "m d"] | None = None,
        reference_labels: Int[Tensor, " m"] | None = None,
        offset: int | None = None,
    ) -> None:
        """Count pairs (arguments as for `OperatingCounts.update`)."""
        self._count(embeddings, labels, reference, reference_labels, offset)

    def compute(self) -> dict[str, Tensor]:
        """The rates at the thresholds given."""
        rates = operating.FalseAcceptReject.from_counts(self._counts())
        names = ("false_accept", "false_reject", "pooled_false_accept", "pooled_false_reject")
        return {name: getattr(rates, name) for name in names}


def _gather(metric: RecallAtK | OPIS | ICNN, embeddings: Tensor, labels: Tensor) -> None:
    check_embeddings("embeddings", embeddings)
    check_labels("labels", labels, len(embeddings))
    metric.embeddings.append(embeddings.detach())
    metric.labels.append(labels)


def _gathered(metric: RecallAtK | OPIS | ICNN) -> tuple[Tensor, Tensor] | None:
    """All embeddings and labels; none have been gathered where counts are kept, or before the first update."""
    # Synchronised between processes, "none" is an empty tensor.
    if not len(metric.embeddings) or dim_zero_cat(metric.embeddings).numel() == 0:
        return None
    return dim_zero_cat(metric.embeddings), dim_zero_cat(metric.labels)
