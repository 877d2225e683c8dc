"""What mixing is meant to change, as numbers: how well training covers test, and when a mixture acts as a positive."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scorecraft.core.checks import describe, probability, refuse
from scorecraft.core.pairs import Labels, Pairs
from scorecraft.core.reductions import mask_out
from scorecraft.core.scores import Cosine
from scorecraft.similarity.metrix.generic import ExponentialSum, PairForm, generic_pair_loss

TILE_ROWS, TILE_COLUMNS = 1024, 8192
"""Queries and references compared at once."""


@torch.no_grad()
def utilization(
    queries: Float[Tensor, "q d"], reference: Float[Tensor, "m d"], *, validate: bool = True
) -> Float[Tensor, ""]:
    """How far test embeddings lie from the training set: `mean_q min_x ||q - x||^2` of unit vectors.

    In [0, 4], lower is better covered; 0 when every query is in the reference, and never larger for a larger reference.
    The search is exact, in tiles: memory is `O(tile)` beside the inputs.

    Args:
        queries: test embeddings, of any non-zero length.
        reference: training embeddings, and mixtures of them if wanted.
        validate: read input values.

    Source: Venkataramanan et al. 2021, arXiv 2106.04990, section 4.
    """
    x, y = _unit("queries", queries, validate), _unit("reference", reference, validate)
    if y.shape[1] != x.shape[1]:
        refuse("reference", f"embeddings of dimension {x.shape[1]}", describe(reference))
    y = y.to(x.dtype)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows in x.split(TILE_ROWS):
        best = rows.new_full((len(rows),), -math.inf)
        nearest = torch.zeros(len(rows), dtype=torch.int64, device=x.device)
        for start in range(0, len(y), TILE_COLUMNS):
            found = (rows @ y[start : start + TILE_COLUMNS].T).max(dim=1)
            nearest = torch.where(found.values > best, found.indices + start, nearest)
            best = torch.maximum(found.values, best)
        # From the difference: 2 - 2 s loses half of the digits where the two are near.
        total += (rows - y[nearest]).square().sum(dim=1, dtype=torch.float64).sum()
    return total / len(x)


@torch.no_grad()
def alignment(embeddings: Float[Tensor, "n d"], labels: Labels, *, validate: bool = True) -> Float[Tensor, ""]:
    """`mean ||x - x'||^2` over the positive pairs of unit vectors, in [0, 4]; NaN when there are none.

    Source: Wang and Isola 2020, arXiv 2005.10242, as used by arXiv 2106.04990, section 4.
    """
    x = _unit("embeddings", embeddings, validate)
    pairs = Pairs.from_labels(labels)
    if pairs.rows != len(x):
        refuse("labels", f"{len(x)} labels, one per embedding", describe(labels))
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    count = torch.zeros((), dtype=torch.int64, device=x.device)
    for start in range(0, len(x), TILE_ROWS):
        rows = slice(start, start + TILE_ROWS)
        positives, _, _ = pairs.block(rows, slice(None))
        total += mask_out(_squared_distances(x[rows], x), positives, 0.0).sum(dtype=torch.float64)
        count += torch.as_tensor(positives).sum()
    return total / count


@torch.no_grad()
def uniformity(embeddings: Float[Tensor, "n d"], *, validate: bool = True) -> Float[Tensor, ""]:
    """`log mean e^(-2 ||x - x'||^2)` over all pairs of different examples of unit vectors, in [-8, 0]; lower is evener.

    NaN for a single example.

    Source: Wang and Isola 2020, arXiv 2005.10242, as used by arXiv 2106.04990, section 4.
    """
    x = _unit("embeddings", embeddings, validate)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for start, rows in zip(range(0, len(x), TILE_ROWS), x.split(TILE_ROWS), strict=True):
        kernel = _squared_distances(rows, x).mul_(-2).exp_()  # at least e^-8: nothing underflows
        kernel.diagonal(start).zero_()
        total += kernel.sum(dtype=torch.float64)
    return (total / (len(x) * (len(x) - 1))).log() if len(x) > 1 else total * math.nan


def acts_as_positive(form: PairForm, scores: Float[Tensor, "..."], lam: float) -> Bool[Tensor, "..."]:
    """Whether a mixture of label `lam` is pulled towards its anchor, at each similarity; ties count as pulled.

    The sign is that of the mixture's own term, `lam rho+'(s) + (1 - lam) rho-'(s) <= 0` with the constants that `sigma`
    multiplies, the logarithms left out. For a plain sum it must be below zero: no force is no pull.

    Args:
        form: the pair loss.
        scores: similarities of anchors and mixtures.
        lam: label of the mixtures, in [0, 1].

    Source: Venkataramanan et al. 2021, arXiv 2106.04990, section 3.5 and appendix.
    """
    probability("lam", lam)
    if isinstance(form.positive, ExponentialSum) and isinstance(form.negative, ExponentialSum):
        return scores <= positivity_threshold(form, lam)
    with torch.enable_grad():
        leaf = scores.detach().reshape(-1, 1).requires_grad_()
        (slope,) = torch.autograd.grad(generic_pair_loss(form, leaf, lam).sum(), leaf)
    return (slope < 0).view(scores.shape)


def positivity_threshold(form: PairForm, lam: float) -> float:
    """The similarity up to which a mixture of label `lam` is pulled towards its anchor.

    With multi-similarity, `threshold + log(lam / (1 - lam)) / (beta + gamma)`; for `lam` 0 and 1 it is minus and plus
    infinity.

    Args:
        form: multi-similarity, proxy anchor or lifted structure, whose terms are exponentials.
        lam: label of the mixtures, in [0, 1].

    Raises:
        ValueError: a form without such a threshold.

    Source: Venkataramanan et al. 2021, arXiv 2106.04990, section 3.5.
    """
    probability("lam", lam)
    pull, push = form.positive, form.negative
    if not isinstance(pull, ExponentialSum) or not isinstance(push, ExponentialSum) or form.blind_to_equal_labels:
        refuse("form", "one of exponentials that mixtures move", form.name)
    if lam in (0, 1):
        return math.inf if lam == 1 else -math.inf
    odds = math.log(lam / (1 - lam)) + math.log(-pull.factor * pull.scale / (push.factor * push.scale))
    return (odds + pull.shift - push.shift) / (push.scale - pull.scale)


def positivity_probability(form: PairForm, scores: Float[Tensor, "..."], lam: float) -> Float[Tensor, ""]:
    """`P(positive | lam)`: the share of mixtures of weight `lam` that are pulled towards their anchor.

    For multi-similarity it is `F_lam(threshold + log(lam / (1 - lam)) / (beta + gamma))`, `F_lam` being the empirical
    distribution of the similarities of anchors and mixtures.

    Args:
        form: the pair loss.
        scores: similarities of anchors and their mixtures of weight `lam` (`mixed_scores`).
        lam: label of the mixtures, in [0, 1].
    """
    return acts_as_positive(form, scores, lam).double().mean()


def _unit(name: str, embeddings: Tensor, validate: bool) -> Tensor:
    score = Cosine()
    score.check(name, embeddings, validate=validate)
    return score.prepare(embeddings)


def _squared_distances(x: Tensor, y: Tensor) -> Float[Tensor, "r c"]:
    """`||x - y||^2` of unit vectors."""
    return (2 - 2 * (x @ y.T)).clamp_(min=0)
