"""GroCo: the group ordering loss of several views of a batch, without labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import choice, describe, positive, positive_integer, refuse
from scorecraft.core.ranks import gather_rows, offset_of_rank, world_size
from scorecraft.core.scores import Cosine
from scorecraft.similarity.groco.groups import group_ordering_loss, ordering_gap
from scorecraft.similarity.groco.sorting import NETWORKS, Network

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_COSINE = Cosine()


class GroCoLoss(nn.Module):
    """Learning by sorting: each item's other views above the most similar other items, without a temperature.

        loss = GroCoLoss()
        loss([projector(encoder(first)), projector(encoder(second))])

    Item `b` in view `v` is an anchor with one list of cosines `c`,

        positives:  c(z_v[b], sg z_u[b])  for the full views u != v
        negatives:  the K largest of  c(z_v[b], sg z_v[j]),  j != b,  of the same view

    and the loss is the mean of `group_ordering_loss` over all anchors of all views. Only anchors receive gradient
    (`sg`), and every view takes its turn. With small crops beside full ones, the full ones come first and alone are
    positives: a full crop has `full_views - 1` of them, a small crop `full_views`.

    Across ranks of `torch.distributed` the negatives are those of the global batch, gathered here, and the contract is
    that of the engine: *the mean over ranks of the returned values is the global loss, and DDP's average of gradients
    is its gradient*, also for uneven batches. All ranks must call it, and its backward, together.

    The loss does not come near zero (see `group_ordering_loss`), and its gradients are small: the paper's learning
    rates are accordingly large. Duplicates of an item in the batch are negatives to it.

    Args:
        negatives: `K`, how many of an anchor's negatives take part (sensible 5 to 50).
        steepness: of the comparators, > 0 (sensible 1 to 10).
        network: `"odd_even"`, or `"bitonic"` when `K` plus the positives of every anchor is a power of two.
        full_views: how many of the views, the first ones, are positives; all when left out. At least 2.
        stop_gradient: whether only the anchors receive gradient.
        reduction: over anchors.
        validate: read input values (finite, non-zero projections).
        group: the process group whose ranks share their negatives; the default group when left out.

    Raises:
        ValueError: `negatives` below 1, a steepness not above zero, or fewer than two full views.

    Source: Shvetsova et al. 2023, arXiv 2301.02009, section 3.
    """

    def __init__(
        self,
        *,
        negatives: int = 10,
        steepness: float = 1.0,
        network: Network = "odd_even",
        full_views: int | None = None,
        stop_gradient: bool = True,
        reduction: Reduction = "mean",
        validate: bool = True,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.negatives = positive_integer("negatives", negatives)
        self.steepness = positive("steepness", steepness)
        self.network: Network = choice("network", network, NETWORKS)  # type: ignore[assignment]
        if full_views is not None and positive_integer("full_views", full_views) < 2:
            refuse("full_views", "at least 2 views that are each other's positives", full_views)
        self.full_views = full_views
        self.stop_gradient = stop_gradient
        self.reduction: Reduction = choice("reduction", reduction, ("mean", "sum", "none"))  # type: ignore[assignment]
        self.validate = validate
        self.group = group

    def forward(self, views: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, ""] | Float[Tensor, "v n"]:
        """The loss of the views of a batch.

        Args:
            views: projections `[n, d]`, one tensor per view with the same items in the same order, full ones first;
                any length but zero.

        Returns:
            A scalar, or `[views, n]` with `reduction="none"`.

        Raises:
            ValueError: one view only, fewer views than are full, views of different shapes, projections that are not
                finite or of norm zero, or a (global) batch of no more than `negatives` items.
        """
        self._check(views)
        with torch.autocast(views[0].device.type, enabled=False):
            own, everyone, offset = self._projections(views)
            losses = torch.cat(
                [
                    group_ordering_loss(*lists, steepness=self.steepness, network=self.network, reduction="none")
                    for lists in self._lists(own, everyone, offset)
                ]
            )
        if self.reduction == "none":
            return losses
        total = losses.sum() * world_size(self.group)
        return total if self.reduction == "sum" else total / (everyone.shape[0] * everyone.shape[1])

    @torch.no_grad()
    def ordering_gap(self, views: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, "v n"]:
        """`min positive - max negative` of every anchor, what to watch in place of the loss: above 0 is in order."""
        self._check(views)
        with torch.autocast(views[0].device.type, enabled=False):
            return torch.cat([ordering_gap(*lists) for lists in self._lists(*self._projections(views))])

    def _check(self, views: Sequence[Tensor]) -> None:
        fewest = 2 if self.full_views is None else self.full_views
        if len(views) < fewest:
            refuse("views", f"at least {fewest} views", len(views))
        for index, view in enumerate(views):
            _COSINE.check(f"views[{index}]", view, validate=self.validate)
            if view.shape != views[0].shape:
                refuse(f"views[{index}]", f"the shape of the first view, {tuple(views[0].shape)}", describe(view))

    def _projections(self, views: Sequence[Tensor]) -> tuple[Float[Tensor, "v n d"], Float[Tensor, "v m d"], int]:
        """Unit projections of this rank, those of all ranks to compare them with, and where its own begin there."""
        own = torch.stack([_COSINE.prepare(view) for view in views])
        everyone = own.detach() if self.stop_gradient else own
        offset = 0
        if world_size(self.group) > 1:
            offset = offset_of_rank(own.shape[1], own.device, self.group)
            everyone = gather_rows(everyone.transpose(0, 1), self.group).transpose(0, 1)
        if everyone.shape[1] <= self.negatives:
            refuse("views", f"more than {self.negatives} items, one's own and its negatives", everyone.shape[1])
        return own, everyone, offset

    def _lists(
        self, own: Float[Tensor, "v n d"], everyone: Float[Tensor, "v m d"], offset: int
    ) -> Iterator[tuple[Float[Tensor, "u n k"], Float[Tensor, "u n p"]]]:
        """Hardest negatives and positives of every anchor, for the full views and then for the small crops."""
        views, items, _ = own.shape
        full = views if self.full_views is None else self.full_views
        scores = own @ everyone.transpose(1, 2)
        item = torch.arange(items, device=own.device)
        itself = item[:, None] + offset == torch.arange(everyone.shape[1], device=own.device)
        hardest = scores.masked_fill(itself, -math.inf).topk(self.negatives, dim=2).values
        positives = torch.einsum("vnd, und -> vnu", own, everyone[:full, offset : offset + items])
        other = torch.arange(full - 1, device=own.device)
        other = other + (other >= torch.arange(full, device=own.device)[:, None])  # all full views but one's own
        yield hardest[:full], positives[:full].gather(2, other[:, None].expand(-1, items, -1))
        if views > full:
            yield hardest[full:], positives[full:]

    def extra_repr(self) -> str:
        full = "" if self.full_views is None else f", full_views={self.full_views}"
        return (
            f"negatives={self.negatives}, steepness={self.steepness}, network={self.network!r}{full}, "
            f"stop_gradient={self.stop_gradient}, reduction={self.reduction!r}"
        )
