"""STAR: static hard negatives of all queries, steadied by the other queries' positives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Batch
from scorecraft.core.checks import non_negative
from scorecraft.core.objective import BatchObjective
from scorecraft.core.pairs import Tile
from scorecraft.core.reductions import Merge, mask_out, masked_min, masked_sum
from scorecraft.core.scores import Dot, ScoreMap
from scorecraft.core.sweep import Context, Sweep


class StarLoss(BatchObjective):
    """Pairwise logistic loss of queries against passages: the batch's positives first, then hard documents.

    With `s_i` the score of query `i` and its positive, `l_ij = log(1 + exp(s_ij - s_i))`, and all pairs left out that
    are not negative,

        L = (sum_random l_ij + sum_hard l_ij) / (random pairs + hard pairs)                         (alpha=None)
        L = alpha * sum_random l_ij / random pairs + sum_hard l_ij / hard pairs                     (a number)

    A pair is *random* when its passage is some query's positive, and *hard* when it is nobody's; the hard documents of
    one query are negatives of all of them. The weight of a negative is `sigmoid(s_ij - s_i)` over the number of pairs
    it is averaged with, and a positive is pulled with the sum of its row.

        loss = StarLoss()
        pairs = Pairs.of_queries(torch.arange(32), passages=passage_ids, relevant=relevant_ids)
        loss(queries, reference=passages, pairs=pairs)

    `relevant` keeps other positives of a query out of its negatives: give the full sets, not only the sampled one.
    Without hard documents this is the in-batch loss; with `alpha=0` the extra documents alone count, which with
    documents drawn at random is the baseline of random negatives. From labels, a row's positive is its first one in
    the order of the batch. No negative at all gives zero.

    Args:
        alpha: weight of the random part (>= 0; the paper's is below 1), or None to give every pair the same weight, as
            the official code does.
        score: score map, the plain dot product by default.
        validate: read input values.

    Raises:
        ValueError: `alpha` is negative or not finite.

    Source: Zhan et al. 2021, arXiv 2104.08051, section 5.1; masks and the pooled mean are those of the official code.
    """

    totals: ClassVar[Mapping[str, Merge]] = {
        "random_losses": Merge.SUM,
        "random_pairs": Merge.SUM,
        "hard_losses": Merge.SUM,
        "hard_pairs": Merge.SUM,
    }
    order_invariant: ClassVar[bool] = False
    symmetric_terms: ClassVar[bool] = False

    def __init__(self, *, alpha: float | None = None, score: ScoreMap | None = None, validate: bool = True) -> None:
        super().__init__(score=Dot() if score is None else score, validate=validate)
        self.alpha = None if alpha is None else non_negative("alpha", alpha)

    def survey(self, sweep: Sweep) -> Context:
        """The positive of every row with its score, which columns are positives, and how hard each row is pulled."""
        context = sweep.rows(_first_positive, first_positive=Merge.MIN)
        context |= sweep.rows(_positive_score, context, positive_score=Merge.SUM)
        context["in_batch"] = _in_batch_columns(sweep, len(context["first_positive"]))
        with torch.no_grad():
            pulls = sweep.rows(_pulls, context, random_pull=Merge.SUM, hard_pull=Merge.SUM)
        return context | pulls

    def terms(self, tile: Tile, context: Context) -> dict[str, Tensor]:
        """Sums and counts of both kinds of pairs of a block."""
        losses = F.softplus(_gaps(tile, context), threshold=40)
        random, hard = _kinds(tile, context)
        return {
            "random_losses": mask_out(losses, random, 0.0).sum(),
            "random_pairs": random.sum(dtype=losses.dtype),
            "hard_losses": mask_out(losses, hard, 0.0).sum(),
            "hard_pairs": hard.sum(dtype=losses.dtype),
        }

    def finish(self, totals: Context, context: Context, batch: Batch) -> Float[Tensor, ""]:
        """One mean over all pairs, or the weighted sum of two."""
        del context, batch
        random_pairs, hard_pairs = totals["random_pairs"].detach(), totals["hard_pairs"].detach()
        if self.alpha is None:
            return (totals["random_losses"] + totals["hard_losses"]) / (random_pairs + hard_pairs).clamp(min=1)
        random = totals["random_losses"] / random_pairs.clamp(min=1)
        return self.alpha * random + totals["hard_losses"] / hard_pairs.clamp(min=1)

    def pair_weights(
        self, tile: Tile, context: Context, totals: Context, coefficients: Context
    ) -> Float[Tensor, "r c"]:
        """Negatives by the slope of their logistic loss, the positive by minus the sum over its row."""
        del totals
        push_random, push_hard = coefficients["random_losses"], coefficients["hard_losses"]
        random, hard = _kinds(tile, context)
        weights = _gaps(tile, context).sigmoid() * (random * push_random + hard * push_hard)
        pull = context["random_pull"] * push_random + context["hard_pull"] * push_hard
        return weights - _is_positive(tile, context) * pull[:, None]

    def extra_repr(self) -> str:
        score = "" if self.score == Dot() else f", score={self.score!r}"
        return f"alpha={self.alpha}{score}"


def _first_positive(tile: Tile, context: Context) -> dict[str, Tensor]:
    del context
    columns = tile.columns.to(tile.score.dtype).expand(tile.score.shape)
    return {"first_positive": masked_min(columns, tile.positives)}


def _is_positive(tile: Tile, context: Context) -> Bool[Tensor, "r c"]:
    return tile.columns.to(tile.score.dtype) == context["first_positive"][:, None]


def _positive_score(tile: Tile, context: Context) -> dict[str, Tensor]:
    return {"positive_score": masked_sum(tile.score, _is_positive(tile, context))}


def _in_batch_columns(sweep: Sweep, rows: int) -> Bool[Tensor, "n m"]:
    """Which columns are the positive of some row of any rank; the same for every row, in the memory of one."""
    columns, counts, pairs = [], [], 0
    for tile, _ in sweep.tiles():
        columns.append(tile.columns)
        counts.append(mask_out(torch.ones_like(tile.score), tile.positives, 0.0).sum(dim=0))
        pairs += tile.score.numel()
    found = counts[0].new_zeros(pairs // rows).index_add(0, torch.cat(columns), torch.cat(counts))
    return (sweep.all_reduce(found) > 0).expand(rows, -1)


def _pulls(tile: Tile, context: Context) -> dict[str, Tensor]:
    slopes = _gaps(tile, context).sigmoid()
    random, hard = _kinds(tile, context)
    return {"random_pull": masked_sum(slopes, random), "hard_pull": masked_sum(slopes, hard)}


def _gaps(tile: Tile, context: Context) -> Float[Tensor, "r c"]:
    """`s_ij - s_i`."""
    return tile.score - context["positive_score"][:, None]


def _kinds(tile: Tile, context: Context) -> tuple[Bool[Tensor, "r c"], Bool[Tensor, "r c"]]:
    """The negatives that are some query's positive, and the others; of rows with a positive of their own."""
    negatives = tile.negatives & (context["first_positive"] < math.inf)[:, None]
    negatives = negatives.expand(tile.score.shape)
    in_batch = context["in_batch"][0, tile.columns]
    return negatives & in_batch, negatives & ~in_batch
