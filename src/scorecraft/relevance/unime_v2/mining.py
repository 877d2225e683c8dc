"""Hard negatives out of a retriever's candidates, by the verdicts of a judge.

Three steps, each on ids and scores alone: the pool of a query's most similar candidates (`candidate_pool`), the filter
against false negatives (`passes_judge`) and a diverse choice of what is left (`cyclic_positions`);
`judged_negatives` does the last two with their fallback.

Source: Gu et al. 2025, arXiv 2510.13515, section 3 (equations 1 to 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core.checks import choice, describe, finite, positive_integer, probability, refuse

MISSING = -1
"""The id, or position, of a place that nothing stands in."""

Fallback = Literal["skip", "positive", "one"]


class Pool(NamedTuple):
    """The potential hard negatives of each query, in retrieval order."""

    ids: Int[Tensor, "q c"]
    """`MISSING` behind the last candidate of a query that has fewer."""
    similarities: Float[Tensor, "q c"]
    """`-inf` where nothing stands."""

    @property
    def where(self) -> Bool[Tensor, "q c"]:
        """The candidates there are."""
        return self.ids != MISSING


class JudgedNegatives(NamedTuple):
    """The negatives of each query, the most similar first, as columns of its pool."""

    positions: Int[Tensor, "q k"]
    """Columns of the pool; `MISSING` for a query without negatives."""
    scores: Float[Tensor, "q k"]
    """Their judge scores, or what the fallback puts in their place; 0 for a query without negatives."""
    distinct: Bool[Tensor, "q k"]
    """False where a negative repeats an earlier one of its list (a short list is repeated): leave it out of a softmax,
    in which it would count twice."""
    counted: Bool[Tensor, " q"]
    """The queries that have negatives at all."""
    passed: Int[Tensor, " q"]
    """How many candidates of each query passed the judge."""


def candidate_pool(
    ids: Int[Tensor, "q n"],
    similarities: Float[Tensor, "q n"],
    positives: Int[Tensor, "q p"],
    *,
    size: int = 50,
    cap: float | None = None,
) -> Pool:
    """The most similar candidates that are neither positives nor too similar, in descending similarity.

    Ties are in the order of their ids. A query with fewer candidates keeps those it has.

    Args:
        ids: what was retrieved for each query, in any order, each id once; `MISSING` for nothing.
        similarities: of the query to each of them; finite where an id stands.
        positives: ids of the positives of each query, padded with `MISSING`.
        size: how many to keep, at least 1 (sensible 20 to 200).
        cap: `delta`, keep only similarities strictly below; None keeps all (sensible 0.9 to 1, against duplicates).

    Raises:
        ValueError: shapes that do not fit, a similarity that is not finite.
    """
    if ids.ndim != 2 or ids.is_floating_point():
        refuse("ids", "integer ids [queries, candidates]", describe(ids))
    if similarities.shape != ids.shape or not similarities.is_floating_point():
        refuse("similarities", f"floating-point similarities {tuple(ids.shape)}", describe(similarities))
    if positives.ndim != 2 or len(positives) != len(ids) or positives.is_floating_point():
        refuse("positives", f"integer ids [{len(ids)}, positives], padded with {MISSING}", describe(positives))
    size = min(positive_integer("size", size), ids.shape[1])
    kept = ids != MISSING
    if not bool((similarities.isfinite() | ~kept).all()):
        refuse("similarities", "finite values wherever there is an id", describe(similarities))
    for column in positives.unbind(dim=1):
        kept &= ids != column[:, None]
    if cap is not None:
        kept &= similarities < finite("cap", cap)
    by_id = ids.argsort(dim=1)
    ordered = torch.where(kept, similarities, -torch.inf).gather(1, by_id)
    order = ordered.argsort(dim=1, descending=True, stable=True)[:, :size]
    best = ordered.gather(1, order)
    return Pool(torch.where(best > -torch.inf, ids.gather(1, by_id.gather(1, order)), MISSING), best)


def judge_threshold(
    positive_scores: Float[Tensor, " q"], *, margin: float = 0.1, ratio: float | None = None
) -> Float[Tensor, " q"]:
    """The highest judge score of a negative: `s_positive - margin`, or `max(that, ratio * s_positive)`.

    Where the judge itself rejects the positive (`s_positive < margin`) nothing is below the first form. The second
    keeps what the judge rejects more clearly than the positive.

    Args:
        positive_scores: `[q]`, of each query's positive, in [0, 1].
        margin: `beta` in [0, 1] (sensible 0 to 0.2).
        ratio: `rho` in [0, 1] (sensible 0.9); None for the first form.
    """
    threshold = positive_scores - probability("margin", margin)
    return threshold if ratio is None else torch.maximum(threshold, probability("ratio", ratio) * positive_scores)


def passes_judge(
    judge_scores: Float[Tensor, "q c"],
    positive_scores: Float[Tensor, " q"],
    where: Bool[Tensor, "q c"],
    *,
    margin: float = 0.1,
    ratio: float | None = None,
) -> Bool[Tensor, "q c"]:
    """The candidates that are no false negatives to the judge: those at or below `judge_threshold`."""
    return where & (judge_scores <= judge_threshold(positive_scores, margin=margin, ratio=ratio)[:, None])


def cyclic_positions(where: Bool[Tensor, "q c"], *, stride: int = 5, count: int = 10) -> Int[Tensor, "q k"]:
    """A diverse choice out of ranked candidates: every `stride`-th, then again from the second, and so on.

    Of 23 candidates these are 0, 5, 10, 15, 20, 1, 6, 11, ... Where there are fewer than `count`, the order is repeated
    from its start.

    Args:
        where: the candidates to choose from; the order of the columns is that of the retrieval.
        stride: how far apart, at least 1.
        count: how many of each row, at least 1.

    Returns:
        Columns `[q, count]`; `MISSING` for a row without candidates.
    """
    _check_where(where)
    columns = where.shape[1]
    rank = where.cumsum(dim=1) - 1
    stride = positive_integer("stride", stride)
    key = torch.where(where, rank % stride * columns + rank // stride, stride * columns)
    return _repeated(key.argsort(dim=1, stable=True), where.sum(dim=1), positive_integer("count", count))


def judged_negatives(
    judge_scores: Float[Tensor, "q c"],
    positive_scores: Float[Tensor, " q"],
    where: Bool[Tensor, "q c"],
    *,
    margin: float = 0.1,
    ratio: float | None = None,
    stride: int = 5,
    count: int = 10,
    fallback: Fallback = "skip",
    generator: torch.Generator | None = None,
) -> JudgedNegatives:
    """Filter a pool by its judge scores and choose diverse hard negatives from what is left.

    A query with fewer than `count` candidates left has them repeated; see `JudgedNegatives.distinct`. A query none of
    whose candidates passes is left out (`fallback="skip"`), or takes `count` random ones of its pool with a made-up
    score: that of its positive (`"positive"`, no preference), or 1 (`"one"`, as in the paper, which makes soft labels
    prefer the random candidates to the positive).

    Args:
        judge_scores: `[q, c]` in [0, 1], in retrieval order.
        positive_scores: `[q]` in [0, 1].
        where: bool `[q, c]`, the candidates there are.
        margin: see `judge_threshold`.
        ratio: see `judge_threshold`.
        stride: see `cyclic_positions`.
        count: negatives per query.
        fallback: for queries without a candidate that passes.
        generator: of the random fallbacks; needed by them alone.

    Raises:
        ValueError: scores that are no probabilities or do not fit, a fallback that needs a generator and has none.
    """
    _check_where(where)
    check_judge_scores(judge_scores, where.shape, where, name="judge_scores")
    check_judge_scores(positive_scores, where.shape[:1], name="positive_scores")
    choice("fallback", fallback, ("skip", "positive", "one"))
    if fallback != "skip" and generator is None:
        refuse("generator", f"a torch.Generator for fallback={fallback!r}", "none")
    passing = passes_judge(judge_scores, positive_scores, where, margin=margin, ratio=ratio)
    positions = cyclic_positions(passing, stride=stride, count=count)
    scores = judge_scores.gather(1, positions.clamp(min=0))
    passed = passing.sum(dim=1)
    if fallback != "skip":
        none = (passed == 0)[:, None]
        positions = torch.where(none, _random_positions(where, count, generator), positions)
        made_up = positive_scores if fallback == "positive" else torch.ones_like(positive_scores)
        scores = torch.where(none, made_up[:, None], scores)
    counted = positions[:, 0] != MISSING
    scores = torch.where(counted[:, None], scores, 0.0)
    return JudgedNegatives(positions, scores, first_occurrences(positions), counted, passed)


def first_occurrences(ids: Int[Tensor, "... c"]) -> Bool[Tensor, "... c"]:
    """Whether each entry of a list is the first with its id; `MISSING` never is."""
    earlier = torch.ones(ids.shape[-1], ids.shape[-1], dtype=torch.bool, device=ids.device).tril(-1)
    repeats = (ids.unsqueeze(-1) == ids.unsqueeze(-2)) & earlier
    return ~repeats.any(dim=-1) & (ids != MISSING)


def check_judge_scores(
    scores: Tensor, shape: Sequence[int], where: Bool[Tensor, "..."] | None = None, *, name: str = "judge"
) -> None:
    """Refuse what a judge may not return: NaN, a value outside [0, 1], more or fewer scores than candidates.

    Args:
        scores: what came.
        shape: what was asked for.
        where: the entries that are read; all when left out.
        name: of the argument that is complained about.
    """
    if scores.shape != tuple(shape) or not scores.is_floating_point():
        refuse(name, f"floating-point scores of shape {tuple(shape)}", describe(scores))
    good = (scores >= 0) & (scores <= 1)
    bad = ~good if where is None else ~good & where
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        refuse(name, "scores in [0, 1]", f"{float(scores[place])} at {list(place)}")


def _check_where(where: Tensor) -> None:
    if where.ndim != 2 or where.dtype != torch.bool or where.shape[1] == 0:
        refuse("where", "a bool matrix [queries, candidates] with at least one column", describe(where))


def _random_positions(where: Bool[Tensor, "q c"], count: int, generator: torch.Generator | None) -> Int[Tensor, "q k"]:
    """Candidates in random order, without replacement as long as they last."""
    draws = torch.rand(where.shape, generator=generator, device=where.device)
    return _repeated(torch.where(where, draws, 2.0).argsort(dim=1), where.sum(dim=1), count)


def _repeated(order: Int[Tensor, "q c"], lengths: Int[Tensor, " q"], count: int) -> Int[Tensor, "q k"]:
    """The first `lengths` entries of each row, over and over, `count` in all; `MISSING` where there are none."""
    turn = torch.arange(count, device=order.device) % lengths.clamp(min=1)[:, None]
    return torch.where(lengths[:, None] > 0, order.gather(1, turn), MISSING)
