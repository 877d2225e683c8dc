"""Proto-Triplet: a hinge between a query's distance to its own prototype and to the nearest wrong one."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import check_labels, check_values, choice, describe, non_negative, refuse
from scorecraft.similarity.susana.distances import full_precision, nearest, pair_distances
from scorecraft.similarity.susana.prototypes import check_query_labels, check_sides


def proto_triplet_loss(
    queries: Float[Tensor, "q d"],
    labels: Int[Tensor, " q"],
    prototypes: Float[Tensor, "way d"],
    prototype_labels: Int[Tensor, " way"] | None = None,
    *,
    margin: float = 0.5,
    reduction: Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    """`mean_q [ delta(x_q, c_y) - min_{w != y} delta(x_q, c_w) + margin ]_+`, differentiable once.

    `delta(a, b) = sqrt(|a - b|^2 + 1e-6)`. Every query is an anchor, its prototype the positive and the nearest wrong
    prototype the negative: no triplets are listed. Queries that keep the margin count as 0 in the mean and receive no
    gradient. The margin is an absolute distance, so choose it with the scale of the embeddings, or normalise them.

    Args:
        queries: `[q, d]`; half precision is taken as float32.
        labels: int `[q]`, the classes of the queries.
        prototypes: `[way, d]`, of at least two classes. Receive gradient, and their supports through them.
        prototype_labels: int `[way]`, their classes, all different; `0 ... way - 1` when left out.
        margin: `mu >= 0`.
        reduction: over queries.
        validate: read input values.

    Returns:
        A scalar, or `[q]` with `reduction="none"`.

    Raises:
        ValueError: there is one prototype only, hence no wrong one; a label that is that of no prototype; other bad
            input.

    Source: Mendez-Ruiz et al. 2023, arXiv 2305.09062, the Proto-Triplet loss.
    """
    non_negative("margin", margin)
    choice("reduction", reduction, ("mean", "sum", "none"))
    check_sides(queries, prototypes, validate=validate)
    if len(prototypes) < 2:
        refuse("prototypes", "prototypes of at least two classes", describe(prototypes))
    own = _own_prototypes(queries, labels, prototypes, prototype_labels, validate)
    with torch.autocast(queries.device.type, enabled=False):
        x, c = full_precision(queries), full_precision(prototypes)
        closest, second = nearest(x.detach(), c.detach(), 2).unbind(dim=1)
        wrong = torch.where(closest == own, second, closest)
        to_own, to_wrong = pair_distances(x, c, torch.stack([own, wrong], dim=1)).unbind(dim=1)
        losses = F.relu(to_own - to_wrong + margin)
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


class ProtoTripletLoss(nn.Module):
    """`proto_triplet_loss` as a module: `ProtoTripletLoss()(queries, labels, prototypes)`.

    Args:
        margin: `mu >= 0`, in units of the embeddings (paper: 0.5).
        reduction: over queries.
        validate: read input values.

    Raises:
        ValueError: `margin` is no finite number >= 0.

    Source: Mendez-Ruiz et al. 2023, arXiv 2305.09062, the Proto-Triplet loss.
    """

    def __init__(self, *, margin: float = 0.5, reduction: Reduction = "mean", validate: bool = True) -> None:
        super().__init__()
        self.margin = non_negative("margin", margin)
        self.reduction: Reduction = choice("reduction", reduction, ("mean", "sum", "none"))  # type: ignore[assignment]
        self.validate = validate

    def forward(
        self,
        queries: Float[Tensor, "q d"],
        labels: Int[Tensor, " q"],
        prototypes: Float[Tensor, "way d"],
        prototype_labels: Int[Tensor, " way"] | None = None,
    ) -> Tensor:
        """The loss of queries `[q, d]` against prototypes `[way, d]`; see `proto_triplet_loss`."""
        return proto_triplet_loss(
            queries,
            labels,
            prototypes,
            prototype_labels,
            margin=self.margin,
            reduction=self.reduction,
            validate=self.validate,
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}, reduction={self.reduction!r}"


def _own_prototypes(
    queries: Tensor, labels: Tensor, prototypes: Tensor, prototype_labels: Tensor | None, validate: bool
) -> Int[Tensor, " q"]:
    """The row of each query's prototype."""
    if prototype_labels is None:
        check_query_labels(labels, len(queries), len(prototypes), validate=validate)
        return labels.long()
    check_labels("labels", labels, len(queries))
    check_labels("prototype_labels", prototype_labels, len(prototypes))
    for name, value in (("labels", labels), ("prototype_labels", prototype_labels)):
        if value.ndim != 1:
            refuse(name, "one integer label per row", describe(value))
    same = labels[:, None] == prototype_labels
    if validate:
        check_values("labels", "labels of exactly one prototype each", lambda: (same.sum(dim=1) == 1).all(), labels)
    return same.to(torch.uint8).argmax(dim=1)
