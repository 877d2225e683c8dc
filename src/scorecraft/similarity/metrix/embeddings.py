"""Mixtures of embeddings through the Gram matrix: none is ever made.

With unit vectors, the similarity of an anchor `a` and the mixture of `x` and `y` needs three numbers,

    s~ = lam s_ax + (1 - lam) s_ay,      divided, when the mixture is normalised, by
    sqrt( lam^2 + (1 - lam)^2 + 2 lam (1 - lam) s_xy ),

so all `m |P| |N|` of them come from the scores `[a, m]` and the Gram matrix of the others `[m, m]`, a block of anchors
at a time, instead of from `m |P| |N| d` numbers. For exponentials of mixtures that are not normalised the double sum
over `P` and `N` is a product of two sums, and even that many similarities are not needed:

    sum_{p,n} e^(c (lam s_ap + (1 - lam) s_an)) = (sum_p e^(c lam s_ap)) (sum_n e^(c (1 - lam) s_an)).
"""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scorecraft.core.checks import choice, describe, probability, refuse
from scorecraft.core.reductions import masked_logsumexp, masked_sum
from scorecraft.similarity.metrix.generic import ExponentialSum, PairForm, generic_pair_loss

PairKind: TypeAlias = Literal["positive_negative", "anchor_negative"]
"""What is mixed, for every anchor: each positive with each negative, or the anchor itself with each negative."""
KINDS: tuple[PairKind, ...] = ("positive_negative", "anchor_negative")

_BLOCK_ELEMENTS = 1 << 20
"""Similarities of mixtures looked at together."""
_LEAST_SQUARED_NORM = 1e-12
"""Stands in for the squared norm of a mixture of two opposite vectors, which has no direction."""


def mixed_scores(
    with_first: Float[Tensor, "..."],
    with_second: Float[Tensor, "..."],
    of_both: Float[Tensor, "..."] | None,
    lam: float,
) -> Float[Tensor, "..."]:
    """Similarity of an anchor to the mixture `lam first + (1 - lam) second` of two unit vectors.

    Args:
        with_first: similarity of the anchor to the first.
        with_second: similarity of the anchor to the second.
        of_both: similarity of the two, by which the mixture is normalised; `None` leaves it unnormalised.
        lam: weight of the first, in [0, 1].
    """
    plain = lam * with_first + (1 - lam) * with_second
    if of_both is None:
        return plain
    squared_norm = lam**2 + (1 - lam) ** 2 + 2 * lam * (1 - lam) * of_both
    return plain * squared_norm.clamp(min=_LEAST_SQUARED_NORM).rsqrt()


def embedding_mixture_loss(
    form: PairForm,
    scores: Float[Tensor, "a m"],
    gram: Float[Tensor, "m m"] | None,
    positives: Bool[Tensor, "a m"],
    negatives: Bool[Tensor, "a m"],
    lam: float,
    *,
    kind: PairKind = "positive_negative",
    normalised: bool = True,
    average: bool = False,
) -> Float[Tensor, " a"]:
    """The generic loss of each anchor against all mixtures of its others, each of label `lam`.

    Anchors without a mixture have the loss 0. Memory beyond the arguments is `O(block |P| m)` with `|P|` the largest
    number of positives: each block of anchors is computed once more in the backward pass. Without normalisation and
    with exponential sums it is `O(a m)`.

    Args:
        form: the pair loss.
        scores: cosines of anchors and others.
        gram: cosines of the others among each other, which normalised mixtures of positives with negatives need.
        positives: which others are positives of an anchor.
        negatives: which are negatives.
        lam: weight of the positive, or of the anchor itself, in [0, 1].
        kind: which pairs are mixed.
        normalised: whether mixtures have length 1.
        average: take means over an anchor's mixtures instead of sums.

    Raises:
        ValueError: shapes that do not fit together, `lam` outside [0, 1], an unknown kind.

    Source: Venkataramanan et al. 2021, arXiv 2106.04990, section 3.4; the Gram forms follow from its definitions.
    """
    probability("lam", lam)
    choice("kind", kind, KINDS)
    for name, mask in (("positives", positives), ("negatives", negatives)):
        if mask.dtype != torch.bool or mask.shape != scores.shape:
            refuse(name, f"a bool matrix of shape {tuple(scores.shape)}", describe(mask))
    if kind == "anchor_negative":
        mixed = mixed_scores(torch.ones_like(scores), scores, scores if normalised else None, lam)
        return generic_pair_loss(form, mixed, lam, negatives, average=average)
    if normalised:
        expected = (scores.shape[1], scores.shape[1])
        if gram is None or gram.shape != expected:
            refuse("gram", f"the cosines of the others, a matrix of shape {expected}", describe(gram))
        return _in_blocks(form, scores, gram, positives, negatives, lam, average)
    pull, push = form.positive, form.negative
    if isinstance(pull, ExponentialSum) and isinstance(push, ExponentialSum):
        total = partial(_factorised, scores=scores, positives=positives, negatives=negatives, lam=lam, average=average)
        return form.of_totals(total(pull, lam), total(push, 1.0 if form.negatives_are_all else 1 - lam))
    return _in_blocks(form, scores, None, positives, negatives, lam, average)


def _factorised(
    side: ExponentialSum,
    weight: float,
    *,
    scores: Tensor,
    positives: Tensor,
    negatives: Tensor,
    lam: float,
    average: bool,
) -> Float[Tensor, " a"]:
    """The total of unnormalised mixtures of every positive with every negative, as a product of sums."""
    of_positives = masked_logsumexp(side.scale * lam * scores, positives)
    of_negatives = masked_logsumexp(side.scale * (1 - lam) * scores, negatives)
    total = side.weighted(of_positives + of_negatives, weight)
    if not average:
        return total
    ones = torch.ones_like(scores)
    return side.averaged(total, (masked_sum(ones, positives) * masked_sum(ones, negatives)).clamp(min=1))


def _in_blocks(
    form: PairForm,
    scores: Tensor,
    gram: Tensor | None,
    positives: Tensor,
    negatives: Tensor,
    lam: float,
    average: bool,
) -> Float[Tensor, " a"]:
    """Mixtures of every positive with every negative, some anchors at a time."""
    most = max(1, int(positives.sum(dim=1).max()))  # a number the shapes depend on: the one wait for the device
    found, places = positives.byte().topk(most, dim=1)
    anchors = max(1, _BLOCK_ELEMENTS // (most * scores.shape[1]))
    evaluate = partial(_block_loss, form, gram, lam, average)
    if anchors < len(scores):
        evaluate = partial(checkpoint, evaluate, use_reentrant=False, preserve_rng_state=False)
    blocks = zip(*(part.split(anchors) for part in (scores, places, found.bool(), negatives)), strict=True)
    return torch.cat([evaluate(*block) for block in blocks])


def _block_loss(
    form: PairForm,
    gram: Tensor | None,
    lam: float,
    average: bool,
    scores: Float[Tensor, "r m"],
    places: Tensor,
    found: Bool[Tensor, "r p"],
    negatives: Bool[Tensor, "r m"],
) -> Float[Tensor, " r"]:
    """The loss of some anchors whose positives stand at `places`, as far as they were found."""
    of_positives = scores.gather(1, places)
    of_both = None if gram is None else gram.index_select(0, places.flatten()).unflatten(0, places.shape)
    mixed = mixed_scores(of_positives[:, :, None], scores[:, None, :], of_both, lam)
    where = found[:, :, None] & negatives[:, None, :]
    return generic_pair_loss(form, mixed.flatten(1), lam, where.flatten(1), average=average)
