"""Mixtures of inputs and of features: which pairs, the mixing itself, and the loss on what the model makes of them."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scorecraft.core.checks import choice, describe, positive_integer, probability, refuse
from scorecraft.core.reductions import mask_out
from scorecraft.similarity.metrix.embeddings import KINDS, PairKind
from scorecraft.similarity.metrix.generic import PairForm, generic_pair_loss


class MixingPairs(NamedTuple):
    """Mixture `q` is `lam x_first + (1 - lam) x_second`, seen from its anchor."""

    anchors: Int[Tensor, " q"]
    """Rows of the anchors."""
    first: Int[Tensor, " q"]
    """Index of the positive, or of the anchor itself."""
    second: Int[Tensor, " q"]
    """Index of the negative."""
    places: Int[Tensor, " q"]
    """Where among its anchor's mixtures it stands; below `width`."""
    width: int
    """The most mixtures that an anchor may have."""

    def __len__(self) -> int:
        return len(self.anchors)


@torch.no_grad()
def mixing_pairs(
    scores: Float[Tensor, "a m"],
    positives: Bool[Tensor, "a m"],
    negatives: Bool[Tensor, "a m"],
    *,
    hardest: int = 1,
    kind: PairKind = "positive_negative",
) -> MixingPairs:
    """The `hardest` most similar negatives of each anchor, each with every positive or with the anchor itself.

    Args:
        scores: similarities of anchors and others, by which negatives are ranked.
        positives: which others are positives of an anchor.
        negatives: which are negatives; an anchor with fewer than `hardest` has them all.
        hardest: `k >= 1` (1 in the official code, sensible to 5): every mixture costs a pass through the network.
        kind: what negatives are mixed with. `"anchor_negative"` needs anchors that are the others, in the same order.

    Raises:
        ValueError: masks of another shape, no positive integer, an unknown kind, anchors that are not the others.

    Source: Venkataramanan et al. 2021, arXiv 2106.04990, section 3.4; `hardest` as in the official code.
    """
    positive_integer("hardest", hardest)
    choice("kind", kind, KINDS)
    for name, mask in (("positives", positives), ("negatives", negatives)):
        if mask.dtype != torch.bool or mask.shape != scores.shape:
            refuse(name, f"a bool matrix of shape {tuple(scores.shape)}", describe(mask))
    if kind == "anchor_negative":
        if scores.shape[0] != scores.shape[1]:
            refuse("kind", "'positive_negative' where anchors are not the others", repr(kind))
        positives = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    hard = mask_out(scores, negatives, -torch.inf).topk(min(hardest, scores.shape[1]), dim=1)
    found = hard.values > -torch.inf
    anchors, first, rank = (positives[:, :, None] & found[:, None, :]).nonzero(as_tuple=True)
    before = positives.long().cumsum(dim=1) - 1
    places = before[anchors, first] * found.shape[1] + rank
    width = 1 + int(places.max()) if len(places) else 0
    return MixingPairs(anchors, first, hard.indices[anchors, rank], places, width)


def mix(values: Float[Tensor, "n ..."], pairs: MixingPairs, lam: float) -> Float[Tensor, "q ..."]:
    """`lam values_first + (1 - lam) values_second` of every pair.

    Args:
        values: one row per example: inputs, features or embeddings (their mixtures are not normalised here).
        pairs: of examples.
        lam: in [0, 1].

    Raises:
        ValueError: values that are not floating-point (token indices mean nothing in between), `lam` out of range.
    """
    probability("lam", lam)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        refuse("values", "floating-point values, which have something in between", describe(values))
    return torch.lerp(values[pairs.second], values[pairs.first], lam)


def mixture_loss(
    form: PairForm,
    anchors: Float[Tensor, "a d"],
    mixtures: Float[Tensor, "q d"],
    pairs: MixingPairs,
    lam: float,
    *,
    average: bool = False,
) -> Float[Tensor, " a"]:
    """The generic loss of each anchor against its mixtures, all of label `lam`; 0 for anchors without one.

    Args:
        form: the pair loss.
        anchors: unit vectors.
        mixtures: unit vectors, what the network made of `mix(...)`.
        pairs: which mixture belongs to which anchor.
        lam: as it was mixed.
        average: take means over an anchor's mixtures instead of sums.
    """
    if mixtures.shape != (len(pairs), anchors.shape[1]):
        refuse("mixtures", f"vectors of shape {(len(pairs), anchors.shape[1])}", describe(mixtures))
    shape = (len(anchors), max(pairs.width, 1))
    slots = pairs.anchors * shape[1] + pairs.places
    similarities = (anchors[pairs.anchors] * mixtures).sum(dim=1)
    scores = similarities.new_zeros(shape[0] * shape[1]).index_put((slots,), similarities)
    there = torch.zeros_like(scores, dtype=torch.bool).index_fill(0, slots, True)
    return generic_pair_loss(form, scores.view(shape), lam, there.view(shape), average=average)


class MixingAt:
    """Within it, a module of a model gives mixtures of its features, so that `model(inputs)` is `g(mix(f(inputs)))`.

        with MixingAt(model, "layer4", pairs, lam):
            mixtures = model(inputs)                     # [q, d] instead of [n, d]

    A forward hook does it, which is removed on leaving, also by an exception.

    Args:
        model: the whole network `g o f`.
        layer: the dotted name of a submodule whose output is a tensor with one row per example.
        pairs: of examples.
        lam: weight of the first of a pair, in [0, 1].

    Raises:
        ValueError: the model has no such submodule; on the forward pass, the submodule was not run exactly once, or
            gave something else than such a tensor.

    Source: Venkataramanan et al. 2021, arXiv 2106.04990, section 3.4 (feature mixing).
    """

    def __init__(self, model: nn.Module, layer: str, pairs: MixingPairs, lam: float) -> None:
        known = dict(model.named_modules())
        if not layer or layer not in known:
            refuse("layer", "the dotted name of a submodule", repr(layer))
        self.module = known[layer]
        self.layer, self.pairs, self.lam = layer, pairs, probability("lam", lam)
        self.runs = 0

    def __enter__(self) -> MixingAt:
        self.runs = 0
        self._hook = self.module.register_forward_hook(self._mix)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hook.remove()
        if error is None and self.runs != 1:
            refuse("layer", "a module that runs once in a forward pass", f"{self.layer!r}, which ran {self.runs} times")

    def _mix(self, module: nn.Module, args: Any, output: Any) -> Tensor:
        del module, args
        self.runs += 1
        if not isinstance(output, Tensor):
            refuse("layer", "a module that returns a tensor", f"{self.layer!r}, which returns {type(output).__name__}")
        return mix(output, self.pairs, self.lam)
