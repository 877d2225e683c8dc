"""Recall@K: does one of the K nearest items of a query share its class?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core.checks import check_labels, describe, positive_integer, refuse
from scorecraft.core.scores import Cosine, ScoreMap

QUERY_ROWS = 512
"""Queries handled at once; memory is that many rows of scores."""


@dataclass(frozen=True, slots=True)
class RecallResult:
    """Recall@K, and the queries it was taken over."""

    hits: dict[int, int]
    """Queries with a positive among their K nearest, for each K."""
    queries: int
    """Queries with at least one positive in the gallery."""
    queries_without_positive: int
    """Queries left out because the gallery holds no positive for them."""

    @property
    def recall(self) -> dict[int, float]:
        """Share of the queries that are hits, in [0, 1], for each K; NaN when no query has a positive."""
        return {k: count / self.queries if self.queries else math.nan for k, count in self.hits.items()}

    def __getitem__(self, k: int) -> float:
        return self.recall[k]


@torch.no_grad()
def recall_at_k(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, "n ..."],
    k: int | Sequence[int] = (1,),
    *,
    reference: Float[Tensor, "m d"] | None = None,
    reference_labels: Int[Tensor, "m ..."] | None = None,
    score: ScoreMap | None = None,
    validate: bool = True,
) -> RecallResult:
    """Recall@K of queries against a gallery.

        hit_i(K)  =  #{negatives of query i with score > its best positive's} < K,     Recall@K = mean_i hit_i(K)

    The gallery is the set itself, each query left out of its own ranking by index (never by value), or a separate
    reference. Queries without a positive are left out of the mean and counted. Memory is O(rows x gallery).

    Args:
        embeddings: queries `[n, d]`; scores are computed in float32, or in float64 when they are float64.
        labels: integers `[n]`, or multi-hot `[n, classes]` (positive: a class in common).
        k: one K or several, each at least 1.
        reference: gallery `[m, d]`.
        reference_labels: like `labels`, `[m]` or `[m, classes]`.
        score: score map with one channel, cosine by default; higher is more similar (`NegativeDistance()` for a
            distance).
        validate: read input values.

    Raises:
        ValueError: bad embeddings, labels or `k`.

    Source: Wang et al. 2019, arXiv 1904.06627, evaluation of section 4.
    """
    score = Cosine() if score is None else score
    ranks = [positive_integer("k", value) for value in ((k,) if isinstance(k, int) else k)]
    if not ranks:
        refuse("k", "at least one K", repr(k))
    if score.channels != 1:
        refuse("score", "a score map with one channel", repr(score))
    score.check("embeddings", embeddings, validate=validate)
    check_labels("labels", labels, len(embeddings))
    own = reference is None
    if reference is None or reference_labels is None:
        if reference is not None or reference_labels is not None:
            refuse("reference_labels", "labels exactly when there is a reference", describe(reference_labels))
        reference, reference_labels = embeddings, labels
    else:
        score.check("reference", reference, validate=validate)
        check_labels("reference_labels", reference_labels, len(reference))
        if reference.shape[1:] != embeddings.shape[1:]:
            refuse("reference", f"rows of shape {tuple(embeddings.shape[1:])}", describe(reference))
        if reference_labels.shape[1:] != labels.shape[1:]:
            refuse("reference_labels", f"labels like those of the queries, {describe(labels)}",
                   describe(reference_labels))  # fmt: skip

    with torch.autocast(embeddings.device.type, enabled=False):
        queries = score.prepare(embeddings)
        gallery = queries if own else score.prepare(reference).to(queries.dtype)
        buffer = queries.new_empty(min(QUERY_ROWS, len(queries)) * len(gallery))
        hits = torch.zeros(len(ranks), dtype=torch.int64, device=queries.device)
        counted = torch.zeros((), dtype=torch.int64, device=queries.device)
        limits = torch.tensor(ranks, device=queries.device)
        for start in range(0, len(queries), QUERY_ROWS):
            rows = slice(start, min(start + QUERY_ROWS, len(queries)))
            (scores,) = score.scores(queries[rows], gallery, buffer)
            positives = _share_a_class(labels[rows], reference_labels)
            if own:
                scores.diagonal(start).fill_(-torch.inf)
                positives.diagonal(start).fill_(False)
            best = scores.masked_fill(~positives, -torch.inf).amax(dim=1)
            # Nothing above the best positive is a positive, so what is above it is a negative.
            closer = (scores > best.unsqueeze(1)).sum(dim=1)
            usable = positives.any(dim=1)
            hits += ((closer.unsqueeze(1) < limits) & usable.unsqueeze(1)).sum(dim=0)
            counted += usable.sum()
    return RecallResult(
        hits=dict(zip(ranks, hits.tolist(), strict=True)),
        queries=int(counted),
        queries_without_positive=len(queries) - int(counted),
    )


def _share_a_class(labels: Int[Tensor, "r ..."], others: Int[Tensor, "m ..."]) -> Bool[Tensor, "r m"]:
    if labels.ndim == 1:
        return labels[:, None] == others
    return (labels.float() @ others.float().T) > 0
