"""Metrix on embeddings: a base loss, and the same loss on mixtures of the batch's embeddings."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.batch import Batch
from scorecraft.core.checks import choice, non_negative, positive, refuse
from scorecraft.core.objective import Execution, Objective
from scorecraft.core.scores import Cosine
from scorecraft.core.wrappers import AcrossRanks, Tiled
from scorecraft.similarity.metrix.embeddings import KINDS, PairKind, embedding_mixture_loss
from scorecraft.similarity.metrix.generic import GenericPairLoss, PairForm
from scorecraft.similarity.multi_similarity import (
    BinomialDevianceLoss,
    ContrastiveLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
)


class MetrixLoss(Objective):
    """Metric Mix on embeddings: `base + weight * mixed`, each a mean over the same anchors.

    For every anchor `a`, `mixed` is the generic form of the base loss on the mixtures of pairs of embeddings

        v = lam x + (1 - lam) x', normalised,    label lam,    lam ~ Beta(alpha, alpha), one for the batch,

    with `x` each positive and `x'` each negative of the anchor, or `x` the anchor itself and `x'` each negative; which
    of the two is drawn for each batch. Gradient flows through anchors and mixtures. An anchor without a mixture counts
    as zero. No mixture is ever made (`embedding_mixture_loss`), so the cost is that of `m |P| |N|` numbers, whatever
    the dimension. Mining inside the base sees no mixture; explicit `pairs`, a miner's say, are the ones that are mixed.

    The loss draws, so it is no pure function of its input: the draws come from a generator of its own, part of the
    state dict, and every evaluation in training mode takes the next one. In evaluation mode (`eval()`) and with
    `weight=0` it is the base loss, bit for bit. On several ranks (`across_ranks`) all draw alike, having the same seed
    and the same number of calls; anchors are a rank's own, mixtures those of all ranks. The draw happens on the host,
    so a compiled model breaks its graph here. `tiled` applies to the base; the mixed part holds the scores and runs in
    blocks of anchors anyway.

    Args:
        base: an objective on cosines.
        form: the generic form of the mixed part. Left out, it has the constants of the base where that is a
            `MultiSimilarityLoss`, `ContrastiveLoss`, `LiftedStructureLoss`, `BinomialDevianceLoss` or
            `GenericPairLoss`.
        weight: `w >= 0`, of the mixed part (sensible 0.1 to 1).
        alpha: of the Beta distribution, > 0 (sensible 0.2 to 4); larger means nearer to one half.
        smallest_share: `lam` is kept within `[smallest_share, 1 - smallest_share]`, above 0 and at most 1/2.
        kind: which pairs are mixed: `"positive_negative"`, `"anchor_negative"`, or `"either"`, drawn with equal
            chances.
        normalised: whether mixtures are scaled to length 1.
        average: whether the mixed part takes means over the mixtures of an anchor instead of sums. Sums of the
            contrastive and the binomial loss grow with `|P| |N|`.
        seed: of the draws.

    Raises:
        TypeError: `base` is no objective.
        ValueError: a number out of range; a base that does not score by cosines, or whose form is not known; a form
            that mixtures of one label do not move (NCA); a base inside `across_ranks`, which belongs around the whole.

    Source: Venkataramanan et al. 2021, arXiv 2106.04990, section 3.
    """

    def __init__(
        self,
        base: Objective,
        *,
        form: PairForm | None = None,
        weight: float = 0.4,
        alpha: float = 2.0,
        smallest_share: float = 1e-6,
        kind: Literal["either", "positive_negative", "anchor_negative"] = "either",
        normalised: bool = True,
        average: bool = False,
        seed: int = 0,
    ) -> None:
        if not isinstance(base, Objective):
            raise TypeError(f"argument `base`: expected a scorecraft objective, got {type(base).__name__}")
        if isinstance(base, AcrossRanks):
            refuse("base", "an objective of one process: write across_ranks(MetrixLoss(base))", "across_ranks(...)")
        if base.score != Cosine():
            refuse("base", "an objective scored by Cosine()", f"one scored by {base.score!r}")
        super().__init__(score=base.score, reduction=base.reduction, validate=base.validate)
        self.objective = base  # the name under which compositions are followed to their papers
        self.form = form_of(base) if form is None else form
        if self.form.blind_to_equal_labels:
            refuse("form", "a loss that mixtures of one label move", f"{self.form.name}, which they leave constant")
        self.weight = non_negative("weight", weight)
        self.alpha = positive("alpha", alpha)
        self.smallest_share = positive("smallest_share", smallest_share)
        if self.smallest_share > 0.5:
            refuse("smallest_share", "a number in (0, 1/2]", smallest_share)
        self.kind = choice("kind", kind, ("either", *KINDS))
        self.normalised = normalised
        self.average = average
        self.generator = torch.Generator().manual_seed(seed)

    @classmethod
    def example(cls, *, classes: int, dimension: int, **options: Any) -> MetrixLoss:
        del classes, dimension
        return cls(MultiSimilarityLoss(), **options)

    def draw(self) -> tuple[float, PairKind]:
        """The next `lam` and kind of pairs."""
        lam = symmetric_beta(self.alpha, self.generator)
        lam = min(max(lam, self.smallest_share), 1 - self.smallest_share)
        heads = bool(torch.rand((), generator=self.generator) < 0.5)  # drawn always: a call is one step of the stream
        if self.kind == "either":
            return lam, KINDS[heads]
        return lam, KINDS[KINDS.index(self.kind)]  # type: ignore[arg-type]

    def mixed_loss(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Tensor | None = None,
        *,
        lam: float | None = None,
        kind: PairKind | None = None,
        **call: Any,
    ) -> Tensor:
        """The mixed part alone, not weighted.

        Args:
            embeddings: `[n, d]`.
            labels: `[n]`.
            lam: weight of the positive (or of the anchor), in [0, 1]; drawn when left out.
            kind: which pairs are mixed; drawn, or the module's own, when left out.
            call: further arguments of the call (`reference`, `pairs`, ...).
        """
        drawn_lam, drawn_kind = self.draw() if lam is None or kind is None else (lam, kind)
        batch = self.batch(embeddings, labels, **call)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._mixed(batch, drawn_lam if lam is None else lam, drawn_kind if kind is None else kind)

    def batch(self, embeddings: Tensor, labels: Tensor | None = None, **call: Any) -> Batch:
        return self.objective.batch(embeddings, labels, **call)

    def evaluate(self, batch: Batch, execution: Execution) -> Tensor:
        base = self.objective.evaluate(batch, execution)
        return base + self.weight * self._mixed(batch, *self.draw()) if self._mixes else base

    def evaluate_scores(self, scores: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """As `evaluate`, where the scores say everything: of a batch against itself, or of unnormalised mixtures."""
        base = self.objective.evaluate_scores(scores, batch)
        if not self._mixes:
            return base
        (score,) = scores
        square = batch.met_in_both_orders and score.shape[0] == score.shape[1]
        lam, kind = self.draw()
        return base + self.weight * self._mixed_of_scores(score, score if square else None, batch, lam, kind)

    @property
    def _mixes(self) -> bool:
        return self.training and self.weight > 0

    def _mixed(self, batch: Batch, lam: float, kind: PairKind) -> Tensor:
        if batch.embeddings is None:
            raise ValueError("MetrixLoss needs embeddings: call it on them, or on scores of a batch against itself")
        anchors = self.score.prepare(batch.embeddings)
        if batch.reference is None:
            scores = anchors @ anchors.T
            return self._mixed_of_scores(scores, scores, batch, lam, kind)
        others = self.score.prepare(batch.reference)
        gram = others @ others.T if self.normalised and kind == "positive_negative" else None
        return self._mixed_of_scores(anchors @ others.T, gram, batch, lam, kind)

    def _mixed_of_scores(self, scores: Tensor, gram: Tensor | None, batch: Batch, lam: float, kind: PairKind) -> Tensor:
        losses = embedding_mixture_loss(
            self.form,
            scores,
            gram,
            *batch.pairs.masks(),
            lam,
            kind=kind,
            normalised=self.normalised,
            average=self.average,
        )
        return batch.reduce(losses, self.reduction)

    def get_extra_state(self) -> Tensor:
        """Where the draws stand."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on drawing from there."""
        self.generator.set_state(state.cpu())

    def extra_repr(self) -> str:
        return (
            f"form={self.form.name}, weight={self.weight}, alpha={self.alpha}, kind={self.kind!r}, "
            f"normalised={self.normalised}, average={self.average}"
        )


def form_of(base: Objective) -> PairForm:
    """The generic form with the constants of a base loss: with labels 0 and 1 it is the base without its mining.

    The one exception is binomial deviance, whose generic form sums over pairs where `BinomialDevianceLoss` averages.

    Raises:
        ValueError: the base is of no kind whose form is known.
    """
    if isinstance(base, Tiled):
        return form_of(base.objective)
    if isinstance(base, GenericPairLoss):
        return base.form
    if isinstance(base, MultiSimilarityLoss):
        return PairForm.multi_similarity(positive_scale=base.alpha, negative_scale=base.beta, threshold=base.threshold)
    if isinstance(base, ContrastiveLoss):
        return PairForm.contrastive(threshold=base.threshold)
    if isinstance(base, LiftedStructureLoss):
        # There the margin stands on the positives, with the opposite sign.
        return PairForm.lifted_structure(margin=-base.margin)
    if isinstance(base, BinomialDevianceLoss):
        return PairForm.binomial_deviance(positive_scale=base.alpha, negative_scale=base.beta, threshold=base.threshold)
    refuse("form", f"a form beside a base of type {type(base).__name__}", "none")


def symmetric_beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha), any `alpha > 0`, from two uniform numbers.

    With `t = sqrt(u^(-1/alpha) - 1) cos(2 pi v)`, `t sqrt(2 alpha)` has Student's distribution with `2 alpha` degrees
    of freedom and `(1 + t / sqrt(1 + t^2)) / 2` is the draw.

    Source: Bailey 1994, "Polar generation of random variates with the t-distribution".
    """
    u, v = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    stretch = math.sqrt(math.expm1(min(-math.log1p(-u) / alpha, 700.0)))  # 1 - u is above 0; e^700 is near the largest
    t = stretch * math.cos(2 * math.pi * v)
    return (1 + t / math.hypot(1, t)) / 2
