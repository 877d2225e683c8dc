"""Prototypes of classes, and the classifier by squared distances to them (Prototypical Networks)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import (
    check_embeddings,
    check_labels,
    check_values,
    choice,
    describe,
    positive,
    positive_integer,
    refuse,
)
from scorecraft.core.scores import NegativeSquaredDistance
from scorecraft.similarity.susana.distances import full_precision


def class_prototypes(
    supports: Float[Tensor, "s d"], labels: Int[Tensor, " s"], *, way: int, validate: bool = True
) -> Float[Tensor, "way d"]:
    """The mean of the supports of each class: `c_w = mean { x_i : y_i = w }`, for `w = 0 ... way - 1`.

    Args:
        supports: `[s, d]`; half precision is taken as float32.
        labels: int `[s]`, each below `way`, every class at least once.
        way: number of classes, at least 1.
        validate: read input values.

    Raises:
        ValueError: bad supports; labels outside of `[0, way)`, or a class without supports.

    Source: Snell et al. 2017, "Prototypical Networks for Few-shot Learning", equation 1.
    """
    positive_integer("way", way)
    check_embeddings("supports", supports, validate=validate)
    check_labels("labels", labels, len(supports))
    if labels.ndim != 1:
        refuse("labels", "one integer label per support", describe(labels))
    if validate:
        check_values("labels", f"labels in [0, {way})", lambda: ((labels >= 0) & (labels < way)).all(), labels)
    points = full_precision(supports)
    members = F.one_hot(labels.long(), way).to(points.dtype)
    counts = members.sum(dim=0)
    if validate:
        check_values("labels", f"supports of each of {way} classes", lambda: (counts > 0).all(), labels)
    with torch.autocast(supports.device.type, enabled=False):
        return members.T @ points / counts[:, None]


def prototype_logits(
    queries: Float[Tensor, "q d"], prototypes: Float[Tensor, "way d"], *, temperature: float = 1.0,
    validate: bool = True,
) -> Float[Tensor, "q way"]:  # fmt: skip
    """`-|x_q - c_w|^2 / temperature`, by the Gram form around the mean prototype, not above 0.

    Args:
        queries: `[q, d]`; half precision is taken as float32.
        prototypes: `[way, d]`.
        temperature: > 0.
        validate: read input values.

    Raises:
        ValueError: bad queries, prototypes or temperature.

    Source: Snell et al. 2017, equation 2.
    """
    positive("temperature", temperature)
    check_sides(queries, prototypes, validate=validate)
    with torch.autocast(queries.device.type, enabled=False):
        x, c = full_precision(queries), full_precision(prototypes)
        # Neither distances nor their gradients change with the origin, but the Gram form cancels least around this one.
        centre = c.detach().mean(dim=0)
        (scores,) = NegativeSquaredDistance().scores(x - centre, c - centre)
        return scores / temperature


def prototypical_loss(
    queries: Float[Tensor, "q d"],
    labels: Int[Tensor, " q"],
    prototypes: Float[Tensor, "way d"],
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    """The cross-entropy of queries over `prototype_logits`, ProtoNet's loss.

    Args:
        queries: `[q, d]`; half precision is taken as float32.
        labels: int `[q]`, the row of each query's prototype.
        prototypes: `[way, d]`.
        temperature: > 0.
        reduction: over queries.
        validate: read input values.

    Returns:
        A scalar, or `[q]` with `reduction="none"`.

    Raises:
        ValueError: bad queries, prototypes, temperature or reduction; labels outside of `[0, way)`.

    Source: Snell et al. 2017, algorithm 1.
    """
    choice("reduction", reduction, ("mean", "sum", "none"))
    logits = prototype_logits(queries, prototypes, temperature=temperature, validate=validate)
    check_query_labels(labels, len(queries), len(prototypes), validate=validate)
    return F.cross_entropy(logits, labels.long(), reduction=reduction)


def check_sides(queries: Tensor, prototypes: Tensor, *, validate: bool) -> None:
    """Refuse queries and prototypes that cannot be compared."""
    check_embeddings("queries", queries, validate=validate)
    check_embeddings("prototypes", prototypes, validate=validate)
    if queries.shape[1] != prototypes.shape[1]:
        refuse("prototypes", f"rows of dimension {queries.shape[1]}, as of the queries", describe(prototypes))


def check_query_labels(labels: Tensor, queries: int, way: int, *, validate: bool) -> None:
    """Refuse labels that are no rows of the prototypes."""
    check_labels("labels", labels, queries)
    if labels.ndim != 1:
        refuse("labels", "one integer label per query", describe(labels))
    if validate:
        check_values("labels", f"labels in [0, {way})", lambda: ((labels >= 0) & (labels < way)).all(), labels)
