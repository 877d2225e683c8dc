"""The ICNN score of a labelled set of points, and the loss that is minus its logarithm.

Inter and Intra Class Nearest Neighbours: how near are a point's neighbours of its own class beside its nearest one of
another class, how far are the intruders, and how many of the neighbours are intruders at all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.core.batch import Batch
from scorecraft.core.checks import check_embeddings, check_labels, describe, positive_integer, refuse
from scorecraft.core.objective import Execution, Objective
from scorecraft.core.ranks import gather_rows
from scorecraft.core.reductions import masked_min, masked_sum
from scorecraft.core.scores import NegativeDistance
from scorecraft.similarity.susana.distances import DISTANCE_FLOOR, full_precision, nearest, pair_distances

_EPSILON = 1e-7


class ICNNScore(NamedTuple):
    """The ICNN score with its parts, each a scalar in [0, 1]."""

    score: Float[Tensor, ""]
    """`(lambda_mean + gamma) / 2`."""
    lambda_same: Float[Tensor, ""]
    """1 when neighbours of the same class are much nearer than the nearest one of another class."""
    lambda_other: Float[Tensor, ""]
    """1 when there is no intruder among the neighbours, or when all intruders are as far as the farthest one."""
    lambda_mean: Float[Tensor, ""]
    """`(lambda_same + lambda_other) / 2`."""
    gamma: Float[Tensor, ""]
    """Purity: the share of the neighbours that are of the same class. Carries no gradient."""

    @property
    def loss(self) -> Float[Tensor, ""]:
        """`-log(score)`, the score not below 1e-7."""
        return -self.score.clamp(min=_EPSILON).log()


class _Neighbourhood(NamedTuple):
    """How many neighbours a set of references affords."""

    scored: int
    fetched: int
    pure: bool
    """Whether the set is so small that purity counts as 1."""


def icnn_score(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    neighbours: int = 4,
    fetched: int | None = None,
    reference: Float[Tensor, "m d"] | None = None,
    reference_labels: Int[Tensor, " m"] | None = None,
    drop_first: bool = False,
    validate: bool = True,
) -> ICNNScore:
    """The ICNN score of points among their nearest neighbours, differentiable once.

    With `D_ij = sqrt(|x_i - z_j|^2 + 1e-6)` to the `fetched` nearest references in ascending order, `A_ij` whether the
    classes agree, and `k = neighbours`,

        u_i          = min_{j <= fetched, not A_ij} D_ij                        (+inf: none)
        R_ij         = D_ij / u_i / max(1, max_{l <= k} D_il / u_i)             (0 where there is no u_i)
        lambda_same  = 1 - mean_{i with A} mean_{j <= k, A_ij} R_ij
        lambda_other = mean_{i with not A} mean_{j <= k, not A_ij} D_ij / max_{il} (D_il (1 - A_il))   (1: no intruder)
        gamma        = mean_i mean_{j <= k} A_ij
        score        = ((lambda_same + lambda_other) / 2 + gamma) / 2

    Gradient flows through `u_i` and both maxima, so the farthest intruder of the whole set scales all others; `gamma`
    is a count and has none. The score does not change with the scale of the embeddings (above the floor of 1e-3). With
    `neighbours + 2 >= m` references, `m - 2` neighbours are scored and `gamma` is 1; with two or fewer the score is the
    constant 1. References at equal distance may be taken in any order, which matters where their classes differ.

    Distances are found by blocks of the Gram form and computed directly for the neighbours, in memory
    `O((n + m) d + n fetched)`: large sets are measured under `torch.no_grad()`, by an exact faiss index where faiss is
    installed.

    Args:
        embeddings: `[n, d]`, not normalised; half precision is taken as float32.
        labels: int `[n]`.
        neighbours: `k >= 1`, the neighbours that are scored.
        fetched: neighbours among which the nearest of another class is looked for, at least `neighbours` (fewer where
            there are fewer references); `neighbours + 1` by default. Instances per class is the natural value.
        reference: `[m, d]`, the set the neighbours come from; without it the points themselves, each left out of its
            own neighbours by index. Receives gradient.
        reference_labels: int `[m]`.
        drop_first: drop the nearest reference instead, whatever it is, as the official code does. With a reference that
            does not hold the points themselves this loses their true nearest neighbour.
        validate: read input values.

    Raises:
        ValueError: one line naming the argument, what was expected and what came.

    Source: Mendez-Ruiz et al. 2023, arXiv 2305.09062; the form that is trained.
    """
    neighbours, fetched = _check_sizes(neighbours, fetched)
    check_points("embeddings", embeddings, "labels", labels, validate=validate)
    if reference is None or reference_labels is None:
        if reference is not None or reference_labels is not None:
            missing = "reference" if reference is None else "reference_labels"
            refuse(missing, "`reference` and `reference_labels` together", "only one of them")
    else:
        check_points("reference", reference, "reference_labels", reference_labels, validate=validate)
        if reference.shape[1] != embeddings.shape[1]:
            refuse("reference", f"embeddings of shape [m, {embeddings.shape[1]}]", describe(reference))
    with torch.autocast(embeddings.device.type, enabled=False):
        x = full_precision(embeddings)
        own = reference is None
        z = x if reference is None else full_precision(reference).to(x.dtype)
        others = labels if reference_labels is None else reference_labels
        around = _neighbourhood(len(z), neighbours, fetched, skips_one=own or drop_first)
        if drop_first:
            index = nearest(x.detach(), z.detach(), around.fetched + 1)[:, 1:]
        else:
            index = nearest(x.detach(), z.detach(), around.fetched, own=own)
        return _score(pair_distances(x, z, index), others[index] == labels[:, None], around)


def icnn_loss(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    neighbours: int = 4,
    fetched: int | None = None,
    reference: Float[Tensor, "m d"] | None = None,
    reference_labels: Int[Tensor, " m"] | None = None,
    drop_first: bool = False,
    validate: bool = True,
) -> Float[Tensor, ""]:
    """`-log(score)` of `icnn_score`, which explains the arguments; the score is not taken below 1e-7."""
    return icnn_score(
        embeddings,
        labels,
        neighbours=neighbours,
        fetched=fetched,
        reference=reference,
        reference_labels=reference_labels,
        drop_first=drop_first,
        validate=validate,
    ).loss


class ICNNLoss(Objective):
    """`-log(score)` of the ICNN score, an objective on Euclidean distances: it adds to others and goes where they go.

        loss = ICNNLoss()
        loss(embeddings, labels)
        loss(queries, labels, reference=supports, reference_labels=support_labels)

    It is no mean over rows, since one maximum over the whole set scales all intruders: it knows neither weights nor
    explicit pairs. In every execution the neighbours are found in blocks. Across ranks each rank takes the score of
    the whole gathered batch. Differentiable once; on given scores (`on_scores`) as often as these are.

    Args:
        neighbours: `k >= 1`, the neighbours that are scored.
        fetched: neighbours among which the nearest of another class is looked for; `neighbours + 1` by default.
        drop_first: drop the nearest reference instead of the point itself, as the official code does.
        validate: read input values.

    Raises:
        ValueError: `neighbours` or `fetched` is no integer >= 1, or `fetched` is below `neighbours`.

    Source: Mendez-Ruiz et al. 2023, arXiv 2305.09062; the form that is trained.
    """

    def __init__(
        self, *, neighbours: int = 4, fetched: int | None = None, drop_first: bool = False, validate: bool = True
    ) -> None:
        super().__init__(score=NegativeDistance(), validate=validate)
        self.neighbours, self.fetched = _check_sizes(neighbours, fetched)
        self.drop_first = drop_first

    def batch(self, embeddings: Tensor, labels: Tensor | None = None, **call: Any) -> Batch:
        for name in ("weights", "ignore", "ids", "reference_ids", "pairs"):
            if call.get(name) is not None:
                refuse(name, f"none, {type(self).__name__} scores a set of points by its labels", describe(call[name]))
        return super().batch(embeddings, labels, **call)

    def evaluate(self, batch: Batch, execution: Execution) -> Tensor:
        del execution
        if batch.embeddings is None:
            raise ValueError(f"{type(self).__name__} needs embeddings: call it on them, not on scores")
        embeddings, reference = batch.embeddings, batch.reference
        labels, others = _labels_of(batch)
        if batch.ranks > 1 and batch.met_in_both_orders and reference is not None:
            # Gathered columns are the whole batch: its score on every rank, and each rank's share of the gradient
            # comes back multiplied by the ranks, as the mean over them needs.
            embeddings, labels, reference = reference, others, None
        elif batch.ranks > 1:
            embeddings, labels = gather_rows(embeddings, batch.group), gather_rows(labels, batch.group)
        return icnn_loss(
            embeddings,
            labels,
            neighbours=self.neighbours,
            fetched=self.fetched,
            reference=reference,
            reference_labels=None if reference is None else others,
            drop_first=self.drop_first,
            validate=False,
        )

    def evaluate_scores(self, scores: tuple[Tensor, ...], batch: Batch) -> Tensor:
        labels, others = _labels_of(batch)
        distances = (scores[0].square() + DISTANCE_FLOOR).sqrt()
        own = batch.met_in_both_orders
        around = _neighbourhood(len(others), self.neighbours, self.fetched, skips_one=own or self.drop_first)
        ranked = distances.detach()
        if own and not self.drop_first:
            ranked = ranked.clone().fill_diagonal_(torch.inf)
        skipped = int(self.drop_first)
        index = ranked.topk(around.fetched + skipped, dim=1, largest=False).indices[:, skipped:]
        return _score(distances.gather(1, index), others[index] == labels[:, None], around).loss

    def extra_repr(self) -> str:
        drop_first = ", drop_first=True" if self.drop_first else ""
        return f"neighbours={self.neighbours}, fetched={self.fetched}{drop_first}"


def check_points(name: str, points: Tensor, labels_name: str, labels: Tensor, *, validate: bool) -> None:
    """Refuse points without a class index each."""
    check_embeddings(name, points, validate=validate)
    check_labels(labels_name, labels, len(points))
    if labels.ndim != 1:
        refuse(labels_name, "one integer label per embedding", describe(labels))


def _score(distances: Float[Tensor, "n fetched"], same: Tensor, around: _Neighbourhood) -> ICNNScore:
    """The score of ascending distances to the neighbours of each point."""
    if around.scored == 0:
        one = 1 + 0 * distances.sum()
        return ICNNScore(one, one, one, one, one.detach())
    nearest_other = masked_min(distances, ~same)
    met = nearest_other < torch.inf
    near, same = distances[:, : around.scored], same[:, : around.scored]
    other = ~same

    relative = near / (torch.where(met, nearest_other, 1.0) + _EPSILON)[:, None]
    relative = torch.where(met[:, None], relative, 0.0)
    relative = relative / relative.amax(dim=1, keepdim=True).clamp(min=1)
    lambda_same = 1 - _mean_of_means(relative, same)

    intruders = torch.where(other, near, 0.0)
    farness = _mean_of_means(intruders / (intruders.amax() + _EPSILON), other)
    lambda_other = torch.where(other.any(), farness, 1 - farness)

    lambda_mean = (lambda_same + lambda_other) / 2
    gamma = torch.ones_like(lambda_mean) if around.pure else same.to(near.dtype).mean()
    return ICNNScore((lambda_mean + gamma) / 2, lambda_same, lambda_other, lambda_mean, gamma.detach())


def _mean_of_means(values: Float[Tensor, "n k"], where: Tensor) -> Float[Tensor, ""]:
    """The mean over rows of their means over a mask, of rows where it is not empty; 0 when all are."""
    counts = where.sum(dim=1).to(values.dtype)
    rows = (counts > 0).sum().to(values.dtype)
    return (masked_sum(values, where) / (counts + _EPSILON)).sum() / (rows + _EPSILON)


def _neighbourhood(references: int, neighbours: int, fetched: int | None, *, skips_one: bool) -> _Neighbourhood:
    small = neighbours + 2 >= references
    scored = max(0, references - 2) if small else neighbours
    available = references - skips_one
    return _Neighbourhood(scored, min(scored + 1 if fetched is None else fetched, available), small)


def _check_sizes(neighbours: int, fetched: int | None) -> tuple[int, int | None]:
    positive_integer("neighbours", neighbours)
    if fetched is not None and positive_integer("fetched", fetched) < neighbours:
        refuse("fetched", f"at least neighbours = {neighbours}", fetched)
    return neighbours, fetched


def _labels_of(batch: Batch) -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]]:
    """The labels of rows and columns that the pairs were made from."""
    labels, others = getattr(batch.pairs, "labels", None), getattr(batch.pairs, "others", None)
    if labels is None or others is None:
        refuse("pairs", "labels: ICNN scores a set of points by its labels", "explicit pairs")
    if labels.ndim != 1:
        refuse("labels", "one integer label per embedding", describe(labels))
    return labels, others
