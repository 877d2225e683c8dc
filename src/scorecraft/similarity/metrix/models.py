"""Metrix inside a model: the base loss, and the same loss on what the model makes of mixed inputs or features."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.core.checks import check_embeddings, check_labels, positive_integer
from scorecraft.similarity.metrix.loss import MetrixLoss
from scorecraft.similarity.metrix.mixing import MixingAt, mix, mixing_pairs, mixture_loss


class MetrixModelLoss(nn.Module):
    """Metrix/input and Metrix/feature: `base(f(x), y) + weight * mixed`, the mixtures made inside the network.

        loss = MetrixModelLoss(MetrixLoss(MultiSimilarityLoss()), layer="layer4")
        loss(model, images, labels).backward()

    The mixtures of a batch are those of each anchor's `hardest` negatives (by the clean embeddings) with each of its
    positives, or with the anchor itself. With `layer=None` the inputs are mixed and each mixture costs a whole forward
    pass; with the name of a submodule its output is, in a second pass: each mixture costs what comes after it, and the
    clean batch passes what comes before it once more (batch normalisation there sees it twice). Where the network is at
    hand in two parts, `mix` between them and `mixture_loss` behind them save that.

    Loss, weight, draws, `eval()` and the options are those of the `MetrixLoss`. Only the local batch is mixed; the
    model may live on several ranks.

    Args:
        loss: says what is added to what.
        layer: dotted name of the submodule after which to mix; `None` mixes the inputs.
        hardest: negatives mixed per anchor, at least 1.

    Raises:
        TypeError: `loss` is no `MetrixLoss`.
        ValueError: `hardest` is no positive integer; on calling, inputs, labels or a layer that do not fit.

    Source: Venkataramanan et al. 2021, arXiv 2106.04990, section 3.4.
    """

    def __init__(self, loss: MetrixLoss, *, layer: str | None = None, hardest: int = 1) -> None:
        super().__init__()
        if not isinstance(loss, MetrixLoss):
            raise TypeError(f"argument `loss`: expected a MetrixLoss, got {type(loss).__name__}")
        self.objective = loss
        self.layer = layer
        self.hardest = positive_integer("hardest", hardest)

    def forward(self, model: nn.Module, inputs: Any, labels: Int[Tensor, "n ..."]) -> Float[Tensor, "..."]:
        """The loss of a batch.

        Args:
            model: called as `model(inputs)`, returns embeddings `[n, d]`.
            inputs: a floating-point tensor `[n, ...]` when inputs are mixed, else what the model takes.
            labels: `[n]`, or multi-hot `[n, classes]`.
        """
        loss, embeddings = self.objective, model(inputs)
        check_embeddings("model(inputs)", embeddings, validate=loss.validate)
        check_labels("labels", labels, len(embeddings))
        base = loss.objective(embeddings, labels)
        if not (loss.training and loss.weight > 0):
            return base
        lam, kind = loss.draw()
        batch = loss.batch(embeddings, labels)
        anchors = loss.score.prepare(embeddings)
        pairs = mixing_pairs(anchors @ anchors.T, *batch.pairs.masks(), hardest=self.hardest, kind=kind)
        if not len(pairs):
            return base
        if self.layer is None:
            mixtures = model(mix(inputs, pairs, lam))
        else:
            with MixingAt(model, self.layer, pairs, lam):
                mixtures = model(inputs)
        losses = mixture_loss(loss.form, anchors, loss.score.prepare(mixtures), pairs, lam, average=loss.average)
        return base + loss.weight * batch.reduce(losses, loss.reduction)

    def extra_repr(self) -> str:
        return f"layer={self.layer!r}, hardest={self.hardest}"
