"""torchmetrics: the pooled ROC area of a retriever or re-ranker, exact or in constant memory, and that of each query.

    from torchmetrics import MetricCollection
    from scorecraft.integrations.torchmetrics.relevance import PerQueryAUC, StreamingAUC

    metrics = MetricCollection([StreamingAUC(), PerQueryAUC()])
    for batch in loader:
        metrics.update(scores, relevance)     # [queries, candidates], any real scores, labels 1 and 0
    metrics.compute()                         # {"auc": ..., "aoc": ..., "auc_error": ..., "per_query_auc": ..., ...}

Scores are taken as they are, logits or cosines alike. An area that does not exist (no positive or no negative yet) is
NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from scorecraft.integrations.optional import require
from scorecraft.relevance.mw import AUCHistogram, per_query_auc, pooled_aoc, pooled_auc
from scorecraft.relevance.mw.labelled import check_labelled_scores

require("torchmetrics", "metric-learning")

from torchmetrics import Metric  # noqa: E402
from torchmetrics.utilities import dim_zero_cat  # noqa: E402


class PooledAUC(Metric):
    """The exact AUC of all scores together, as `scorecraft.relevance.mw.pooled_auc`; keeps every score.

    `compute` returns `auc` and `aoc = 1 - auc`, float64.

    Args:
        **host: the host's own arguments (`sync_on_compute`, `process_group`, ...).

    Raises:
        ValueError: bad scores or labels.

    Source: arXiv 2510.00137.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    scores: list[Tensor]
    relevant: list[Tensor]

    def __init__(self, **host: Any) -> None:
        super().__init__(**host)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("relevant", [], dist_reduce_fx="cat")

    def update(
        self,
        scores: Float[Tensor, "..."],
        relevance: Num[Tensor, "..."] | Bool[Tensor, "..."],
        where: Bool[Tensor, "..."] | None = None,
    ) -> None:
        """Gather scores of any shape with their labels, 1 or 0; those outside `where` and of `-inf` are left out."""
        positives, negatives = check_labelled_scores(scores, relevance, where)
        kept = positives | negatives
        self.scores.append(scores.detach()[kept])
        self.relevant.append(positives[kept])

    def compute(self) -> dict[str, Tensor]:
        """The areas under and over the curve."""
        if not len(self.scores):
            nothing = torch.full((), torch.nan, dtype=torch.float64, device=self.device)
            return {"auc": nothing, "aoc": nothing}
        scores, relevant = dim_zero_cat(self.scores), dim_zero_cat(self.relevant).bool()
        return {"auc": pooled_auc(scores, relevant), "aoc": pooled_aoc(scores, relevant)}


class StreamingAUC(Metric):
    """The AUC of all scores together in constant memory, with a guaranteed error: counts in `2^bits` bins.

    `compute` returns `auc`, `aoc = 1 - auc` and `auc_error`: the exact value is within `auc - auc_error` and
    `auc + auc_error` (`scorecraft.relevance.mw.AUCHistogram`).

    Args:
        bits: `2^bits` bins, in [8, 24].
        **host: the host's own arguments (`sync_on_compute`, `process_group`, ...).

    Raises:
        ValueError: bad arguments, scores or labels.

    Source: arXiv 2510.00137.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    positives: Tensor
    negatives: Tensor

    def __init__(self, *, bits: int = 16, **host: Any) -> None:
        super().__init__(**host)
        empty = AUCHistogram(bits=bits)
        self.bits = bits
        self.add_state("positives", empty.positives, dist_reduce_fx="sum")
        self.add_state("negatives", empty.negatives, dist_reduce_fx="sum")

    def update(
        self,
        scores: Float[Tensor, "..."],
        relevance: Num[Tensor, "..."] | Bool[Tensor, "..."],
        where: Bool[Tensor, "..."] | None = None,
    ) -> None:
        """Count scores of any shape with their labels, 1 or 0; those outside `where` and of `-inf` are left out."""
        counted = AUCHistogram(bits=self.bits, device=self.device).update(scores, relevance, where)
        self.positives = self.positives + counted.positives
        self.negatives = self.negatives + counted.negatives

    def compute(self) -> dict[str, Tensor]:
        """The middle of the interval, and half its width."""
        counts = AUCHistogram(bits=self.bits, device=self.device)
        counts.positives, counts.negatives = self.positives, self.negatives
        found = counts.result()
        return {"auc": found.auc, "aoc": found.aoc, "auc_error": found.error}


class PerQueryAUC(Metric):
    """The mean over queries of the AUC of each query's own candidates, as `scorecraft.relevance.mw.per_query_auc`.

    `compute` returns `per_query_auc` and `queries_without_auc`, the queries left out for want of a positive or of a
    negative. Every update brings whole queries.

    Args:
        **host: the host's own arguments (`sync_on_compute`, `process_group`, ...).

    Raises:
        ValueError: bad scores or labels.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    total: Tensor
    queries: Tensor
    queries_without_auc: Tensor

    def __init__(self, **host: Any) -> None:
        super().__init__(**host)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("queries", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("queries_without_auc", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        scores: Float[Tensor, "... c"],
        relevance: Num[Tensor, "... c"] | Bool[Tensor, "... c"],
        where: Bool[Tensor, "... c"] | None = None,
    ) -> None:
        """Measure the queries of `[..., candidates]` scores; candidates outside `where` and of `-inf` are left out."""
        found = per_query_auc(scores, relevance, where, reduction="none")
        self.total = self.total + found.nansum()
        self.queries = self.queries + found.isfinite().sum()
        self.queries_without_auc = self.queries_without_auc + found.isnan().sum()

    def compute(self) -> dict[str, Tensor]:
        """The mean, and how many queries it leaves out."""
        return {"per_query_auc": self.total / self.queries, "queries_without_auc": self.queries_without_auc}
