"""A margin softmax whose denominator also holds the batch's own negatives: unified negative pair generation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scorecraft.core.batch import Batch, Reduction
from scorecraft.core.checks import non_negative, refuse
from scorecraft.core.objective import BatchObjective
from scorecraft.core.pairs import Pairs, Tile
from scorecraft.core.reductions import Merge, mask_out, masked_logsumexp, scaled_exp
from scorecraft.core.sweep import Context, Sweep
from scorecraft.similarity.unpg.filter import quartile_bounds, tiled_quartile_bounds
from scorecraft.similarity.unpg.heads import CosFaceHead, LogitHead


class UNPGLoss(BatchObjective):
    """Cross-entropy of a margin head with one more term in every denominator: the batch's sample-to-sample negatives.

        L = 1/N sum_i [ -s z_iy + log( sum_j exp(s z_ij) + exp(M) ) ],   M = log sum_{v in S'} exp(s v)

    `S'` holds the cosines of all unordered pairs of different labels in the batch that survive the box-and-whisker
    filter `Q1 - r IQR <= v <= Q3 + r IQR`; the same scalar `M` serves every sample, so the memory of
    `N x (C + N^2 / 2)` logits is never needed. Gradient flows through `M` into both features of a kept pair; the
    quartiles only select. Without a negative pair the loss is the head's own.

    Args:
        head: a margin head (`CosFaceHead`, `ArcFaceHead`, `MagFaceHead`, a sharded one, or any `LogitHead`). It belongs
            to this module: give its parameters to the optimiser.
        whisker: `r >= 0` in interquartile ranges (paper: 1.5 on MS1MV2, 1.0 on K-FACE); `None` switches the filter off.
        reduction: over samples.
        validate: read input values.

    Raises:
        ValueError: the whisker is negative or not finite; labels are missing or outside the head's classes.

    Source: Jung et al. 2022, arXiv 2203.11593, section 3.
    """

    pairwise = False
    takes_weights = True
    totals: ClassVar[Mapping[str, Merge]] = {"negative_mass": Merge.LOGSUMEXP}

    def __init__(
        self,
        head: LogitHead,
        *,
        whisker: float | None = 1.5,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        if not isinstance(head, nn.Module) or not hasattr(head, "cross_entropy"):
            raise TypeError(f"argument `head`: expected a margin head such as CosFaceHead, got {type(head).__name__}")
        self.head = head
        self.whisker = None if whisker is None else non_negative("whisker", whisker)

    @classmethod
    def example(cls, *, classes: int, dimension: int, **options: Any) -> UNPGLoss:
        generator = torch.Generator().manual_seed(0)
        return cls(CosFaceHead(classes, dimension, scale=16.0, margin=0.2, generator=generator), **options)

    def batch(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        *,
        pairs: Pairs | None = None,
        ignore: Tensor | None = None,
        **call: Any,
    ) -> Batch:
        """As every objective's; a label of -1 marks a sample to ignore (explicit pairs join whom they say)."""
        if labels is None or labels.ndim != 1:
            refuse("labels", "one class index per sample", "none" if labels is None else tuple(labels.shape))
        unlabelled = labels == -1
        if pairs is not None:
            batch = super().batch(embeddings, labels, pairs=pairs, ignore=ignore, **call)
            return replace(batch, kept=~unlabelled)
        # Reading the values is free on the CPU only; elsewhere a mask that may be empty does no harm.
        if torch.compiler.is_compiling() or labels.device.type != "cpu" or bool(unlabelled.any()):
            ignore = unlabelled if ignore is None else ignore | unlabelled
        return super().batch(embeddings, labels, ignore=ignore, **call)

    def survey(self, sweep: Sweep) -> Context:
        """The range of similarities that the filter keeps, over the whole batch."""
        if self.whisker is None:
            return {}
        if sweep.whole is not None:
            low, high = quartile_bounds(_negatives(sweep.whole), self.whisker)
            return {"low": low, "high": high}
        sample = sweep.sample(_negatives)
        low, high = tiled_quartile_bounds(
            lambda: ((_negatives(tile), times) for tile, times in sweep.tiles()),
            self.whisker,
            count=sweep.count_negatives(),
            sample=sample[sample < math.inf],
            dtype=sample.dtype,
            device=sample.device,
            reduce=sweep.all_reduce,
        )
        return {"low": low, "high": high}

    def terms(self, tile: Tile, context: Context) -> dict[str, Tensor]:
        """`log sum exp(s v)` of the kept negatives of a block."""
        row_mass = masked_logsumexp(self._kept(tile, context), scale=self.head.scale)
        return {"negative_mass": masked_logsumexp(row_mass[None]).squeeze(0)}

    def pair_weights(
        self, tile: Tile, context: Context, totals: Context, coefficients: Context
    ) -> Float[Tensor, "r c"]:
        """The share of each kept pair in the mass, times the scale."""
        shift = (-totals["negative_mass"]).nan_to_num(neginf=-math.inf, posinf=-math.inf).expand(len(tile.score))
        shares = scaled_exp(self._kept(tile, context), self.head.scale, shift)
        return shares.mul_(coefficients["negative_mass"] * self.head.scale)

    def finish(self, totals: Context, context: Context, batch: Batch) -> Tensor:
        """The head's cross-entropy with the mass as one more logit, and the head's own regulariser."""
        del context
        if batch.embeddings is None or batch.labels is None:
            raise ValueError("UNPGLoss needs embeddings: its head reads features, not scores")
        mass = totals["negative_mass"]
        mass = mass - math.log(2) if batch.met_in_both_orders else mass
        losses = self.head.cross_entropy(batch.embeddings, batch.labels, mass)
        return batch.reduce(losses + self.head.regulariser(batch.embeddings), self.reduction)

    def _kept(self, tile: Tile, context: Context) -> Float[Tensor, "r c"]:
        """Similarities of kept negatives, `-inf` elsewhere."""
        kept = mask_out(tile.score, tile.negatives, -math.inf)
        if self.whisker is None:
            return kept
        scores = tile.score.detach()
        return mask_out(kept, (scores >= context["low"]) & (scores <= context["high"]), -math.inf)

    def extra_repr(self) -> str:
        return f"whisker={self.whisker}, reduction={self.reduction!r}"


def _negatives(tile: Tile) -> Float[Tensor, "r c"]:
    """Similarities of negatives, `+inf` (absent, to the filter) elsewhere."""
    return mask_out(tile.score.detach(), tile.negatives, math.inf)
