"""The contrastive part: positives against negatives on each head, every pair with a temperature of its own.

An example is one row `[C * (d' + r)]`: for each head a vector of width `d'`, then the `r` features of its temperature.
A pair has two scores per head, the cosine `s` of the vectors and the inner product `p` of the features; its exponent is
`e(s, tau(p)) = s / tau - beta Omega(tau)`, see `likelihood`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import check_values, describe, non_negative, positive_integer, refuse
from scorecraft.core.objective import Objective, RowObjective
from scorecraft.core.pairs import Tile
from scorecraft.core.reductions import Mask, Merge, mask_out, masked_logsumexp, masked_sum, scaled_exp
from scorecraft.core.scores import Dot, ScoreMap
from scorecraft.core.sweep import Context, Sweep
from scorecraft.similarity.amcl.likelihood import PairLikelihood


class HeadPairs(ScoreMap):
    """Two channels per head: the cosines of all heads, then the temperature products of all heads.

    Embeddings `[n, C * (d' + r)]`; preparing them gives `[n, C, d' + r]` with unit vectors, the features as they were.

    Args:
        heads: `C >= 1`.
        width: `d' >= 1`, of a head's vector.
        features: `r >= 1`, of its temperature features.
    """

    def __init__(self, heads: int, width: int, features: int) -> None:
        self.heads = positive_integer("heads", heads)
        self.width = positive_integer("width", width)
        self.features = positive_integer("features", features)
        self.channels = 2 * heads

    def check(self, name: str, embeddings: Tensor, *, validate: bool) -> None:
        super().check(name, embeddings, validate=validate)
        columns = self.heads * (self.width + self.features)
        if embeddings.shape[1] != columns:
            refuse(name, f"{columns} columns, {self.heads} x ({self.width} + {self.features})", describe(embeddings))
        if validate:
            vectors = self._by_head(embeddings)[..., : self.width]
            check_values(name, "vectors of non-zero norm on every head, which a cosine needs",
                         lambda: (vectors != 0).any(dim=-1).all(), embeddings)  # fmt: skip

    def prepare(self, embeddings: Tensor) -> Tensor:
        vectors, features = self._by_head(super().prepare(embeddings)).split([self.width, self.features], dim=-1)
        return torch.cat([F.normalize(vectors, dim=-1), features], dim=-1)

    def scores(self, x: Tensor, y: Tensor, out: Tensor | None = None) -> tuple[Float[Tensor, "r c"], ...]:
        size = x.shape[0] * y.shape[0]
        return tuple(
            _DOT.scores(left, right, None if out is None else out[channel * size :])[0]
            for channel, (left, right) in enumerate(zip(self._operands(x), self._operands(y), strict=True))
        )

    def pull(self, weights: tuple[Tensor, ...], scores: tuple[Tensor, ...], x: Tensor, y: Tensor,
             x_grad: Tensor, y_grad: Tensor | None) -> None:  # fmt: skip
        left, right, left_grad = self._operands(x), self._operands(y), self._operands(x_grad)
        right_grad = [None] * self.channels if y_grad is None else self._operands(y_grad)
        for channel, weight in enumerate(weights):
            _DOT.pull((weight,), (scores[channel],), left[channel], right[channel],
                      left_grad[channel], right_grad[channel])  # fmt: skip

    def _by_head(self, embeddings: Tensor) -> Tensor:
        return embeddings.unflatten(1, (self.heads, self.width + self.features))

    def _operands(self, prepared: Tensor) -> list[Tensor]:
        """What the channels multiply, each a view `[n, d']` or `[n, r]`."""
        vectors, features = prepared.split([self.width, self.features], dim=-1)
        return [*vectors.unbind(1), *features.unbind(1)]

    def __repr__(self) -> str:
        return f"HeadPairs(heads={self.heads}, width={self.width}, features={self.features})"


_DOT = Dot()


class _OverHeads(Objective):
    """What both objectives hold: the scores of `C` heads, the likelihood of a pair, and who the candidates are."""

    score: HeadPairs

    def __init__(
        self,
        *,
        heads: int = 3,
        width: int = 128,
        features: int = 64,
        beta: float = 0.1,
        low: float = 0.05,
        high: float = 1.05,
        with_positive: bool = False,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(score=HeadPairs(heads, width, features), reduction=reduction, validate=validate)
        self.likelihood = PairLikelihood(width, non_negative("beta", beta), low, high)
        self.with_positive = with_positive

    @classmethod
    def example(cls, *, classes: int, dimension: int, **options: Any) -> Objective:
        """Two heads with one temperature feature each, for embeddings of an even dimension of at least 4."""
        del classes
        return cls(**{"heads": 2, "width": dimension // 2 - 1, "features": 1, **options})

    def channels(self, tile: Tile) -> Iterator[tuple[Float[Tensor, "r c"], Float[Tensor, "r c"]]]:
        """Similarities and temperatures of a block, head by head."""
        heads = self.score.heads
        if len(tile.scores) != 2 * heads:
            refuse("scores", f"{2 * heads} channels, so call it on embeddings", f"{len(tile.scores)}")
        for similarity, product in zip(tile.scores[:heads], tile.scores[heads:], strict=True):
            yield similarity, self.likelihood.temperature(product)

    def candidates(self, tile: Tile) -> Mask:
        """What an anchor's positive is told apart from: its negatives, and in the InfoNCE family itself too."""
        if not self.with_positive or tile.positives is False:
            return tile.negatives
        if isinstance(tile.positives, bool) or isinstance(tile.negatives, bool):
            return True if tile.positives is True or tile.negatives is True else tile.positives
        return tile.positives | tile.negatives

    def extra_repr(self) -> str:
        pair = self.likelihood
        return (
            f"heads={self.score.heads}, beta={pair.beta}, low={pair.low}, high={pair.high}, "
            f"with_positive={self.with_positive}, reduction={self.reduction!r}"
        )


class MultiHeadContrastLoss(_OverHeads, RowObjective):
    """AMCL's soft mode: on every head the positive against the log-sum-exp of the candidates, summed over heads.

        L_i = sum_c { -mean_{P} e_ij^c + log sum_{K} exp(e_ij^c) },   e = s / tau - beta Omega(tau)

    `K` are the negatives of the anchor (NT-Xent: SimCLR, MoCo), or its negatives and positives (InfoNCE family). An
    anchor without a positive or without a negative contributes zero. With `q_ij = [K] exp(e_ij) / sum_K exp(e) -
    [P] / |P|` the weight of a pair is `q_ij / tau_ij` on its similarity and `q_ij de/dp` on its temperature product.
    The loss may be negative. With one temperature for all pairs `Omega` drops out, and what is left is decoupled
    NT-Xent (plain InfoNCE in the second case).

    Rows are embeddings with their temperature features, `[n, C * (d' + r)]`; `AMCLLoss` makes them from two views.

    Args:
        heads: `C >= 1`.
        width: `d' >= 1`, of a head's vector; also the `d'` of `Omega`.
        features: `r >= 1`, of its temperature features.
        beta: strength of the regulariser, >= 0 (0.01 to 1; 1 is exact maximum likelihood).
        low, high: the interval of temperatures, `0 < low < high`; the loss is unbounded below without it.
        with_positive: whether the positives are candidates too.
        reduction: over anchors.
        validate: read input values.

    Raises:
        ValueError: `beta` is negative, not `0 < low < high`, or a size is no integer of at least 1.

    Source: AMCL (arXiv 2310.05615), the table of losses, with the log-sum-exp of its derivation.
    """

    def survey(self, sweep: Sweep) -> Context:
        """How many positives and negatives an anchor has, its positives' exponents, and each head's log-mass."""
        sums = dict.fromkeys(("positives", "negatives", "pulled"), Merge.SUM)
        return sweep.rows(self._measure, None, **sums, **dict.fromkeys(self._masses, Merge.LOGSUMEXP))

    def row_values(self, context: Context) -> Float[Tensor, " r"]:
        pulled = context["pulled"] / context["positives"].clamp(min=1)
        pushed = torch.stack([context[name] for name in self._masses]).sum(dim=0)
        return torch.where(_counted(context), pushed - pulled, 0.0)

    def pair_weights(self, tile: Tile, context: Context) -> tuple[Float[Tensor, "r c"], ...]:
        counted = _counted(context)
        pull = torch.where(counted, 1 / context["positives"].clamp(min=1), 0.0)[:, None]
        candidates = self.candidates(tile)
        on_similarities, on_products = [], []
        for (similarity, temperature), mass in zip(self.channels(tile), self._masses, strict=True):
            exponent = self.likelihood.exponent(similarity, temperature)
            kept = mask_out(exponent, candidates, -math.inf)
            weight = scaled_exp(kept, 1.0, torch.where(counted, -context[mass], -math.inf))
            if tile.positives is not False:
                weight = weight - mask_out(pull.expand_as(weight), tile.positives, 0.0)
            by_similarity, by_product = self.likelihood.slopes(similarity, temperature)
            on_similarities.append(by_similarity.mul_(weight))
            on_products.append(by_product.mul_(weight))
        return *on_similarities, *on_products

    @property
    def _masses(self) -> list[str]:
        return [f"mass_{head}" for head in range(self.score.heads)]

    def _measure(self, tile: Tile, context: Context) -> dict[str, Tensor]:
        del context
        candidates = self.candidates(tile)
        found = {"positives": _count(tile, tile.positives), "negatives": _count(tile, tile.negatives)}
        found["pulled"] = torch.zeros_like(found["positives"])
        for (similarity, temperature), mass in zip(self.channels(tile), self._masses, strict=True):
            exponent = self.likelihood.exponent(similarity, temperature)
            found[mass] = masked_logsumexp(exponent, candidates)
            if tile.positives is not False:
                found["pulled"] = found["pulled"] + masked_sum(exponent, tile.positives)
        return found


class HardestMultiHeadContrastLoss(_OverHeads, RowObjective):
    """AMCL's hard mode: on every head the positive against the mean of the `kappa` hardest candidates.

        L_i = sum_c { -mean_{P} e_ij^c + mean_{H} e_ij^c },   e = s / tau - beta Omega(tau)

    `H` are the `kappa` candidates most similar to the anchor on that head: chosen by similarity, not by exponent, and
    without gradient; of equal ones the first. `kappa = 1` is the loss of the paper's table. An anchor with fewer
    candidates takes those it has; one without a positive or without a negative contributes zero.

    Args:
        kappa: how many candidates, >= 1.
        heads, width, features, beta, low, high, with_positive, reduction, validate: as in `MultiHeadContrastLoss`.

    Raises:
        ValueError: as there, and for `kappa` below 1.

    Source: AMCL (arXiv 2310.05615), the table of losses.
    """

    order_invariant = False  # among equals

    def __init__(
        self,
        *,
        kappa: int = 1,
        heads: int = 3,
        width: int = 128,
        features: int = 64,
        beta: float = 0.1,
        low: float = 0.05,
        high: float = 1.05,
        with_positive: bool = False,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(
            heads=heads,
            width=width,
            features=features,
            beta=beta,
            low=low,
            high=high,
            with_positive=with_positive,
            reduction=reduction,
            validate=validate,
        )
        self.kappa = positive_integer("kappa", kappa)

    def row_loss(self, tile: Tile) -> Float[Tensor, " r"]:
        positives, negatives = _count(tile, tile.positives), _count(tile, tile.negatives)
        candidates = self.candidates(tile)
        loss = torch.zeros_like(positives)
        for similarity, temperature in self.channels(tile):
            exponent = self.likelihood.exponent(similarity, temperature)
            hardest = most_similar(similarity, candidates, self.kappa)
            pushed = masked_sum(exponent, hardest) / hardest.sum(dim=1).clamp(min=1)
            loss = loss + pushed - masked_sum(exponent, tile.positives) / positives.clamp(min=1)
        return torch.where(_counted({"positives": positives, "negatives": negatives}), loss, 0.0)

    def extra_repr(self) -> str:
        return f"kappa={self.kappa}, {super().extra_repr()}"


def most_similar(similarity: Float[Tensor, "r c"], candidates: Mask, count: int) -> Bool[Tensor, "r c"]:
    """Which `count` candidates of each row are the most similar, without gradient; of equal ones the first."""
    kept = mask_out(similarity.detach(), candidates, -math.inf)
    last = kept.topk(min(count, kept.shape[1]), dim=1).values[:, -1:]
    above, level = kept > last, (kept == last) & (kept > -math.inf)
    # `topk` breaks ties as it likes: fill up from the left instead.
    return above | (level & (level.cumsum(dim=1) <= count - above.sum(dim=1, keepdim=True)))


def _count(tile: Tile, where: Mask) -> Float[Tensor, " r"]:
    """How many pairs of each row are inside the mask."""
    rows, columns = tile.score.shape
    if isinstance(where, bool):
        return tile.score.new_full((rows,), columns if where else 0)
    return where.sum(dim=1).to(tile.score.dtype)


def _counted(context: Context) -> Bool[Tensor, " r"]:
    """Anchors that contribute: they have a positive to tell from a negative."""
    return (context["positives"] > 0) & (context["negatives"] > 0)
