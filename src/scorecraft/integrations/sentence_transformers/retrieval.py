"""Queries and passages: any objective over them as a loss of the host's trainer.

The columns are a query, its positive passage, and any number of negative passages. Every query is compared with all
passages of the batch; passages that repeat a query's positive are left out, as false negatives, and recognised by their
tokens:

    from scorecraft import InfoNCELoss
    from scorecraft.integrations.sentence_transformers import CachedRetrievalLoss, RetrievalLoss

    loss = RetrievalLoss(model, InfoNCELoss())                            # scores are 20 * cosine
    loss = CachedRetrievalLoss(model, InfoNCELoss(), mini_batch_size=32)  # batches of any size

A label column, where there is one, says also which rows are of one query: their positives are none of each other's
negatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from scorecraft.core import Cosine, ListObjective, Objective, Pairs, in_batch
from scorecraft.core.checks import positive
from scorecraft.core.ranks import world_size
from scorecraft.integrations.sentence_transformers.objective_loss import CachedObjectiveLoss, Features, ObjectiveLoss
from scorecraft.relevance import mw, star_adore

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_NO_GROUP = -(2**63)
_MULTIPLIER = 6364136223846793005  # of Knuth's generator: odd, so that its powers never vanish modulo 2^64


class _Passages:
    """A query column, a positive column, and negative columns; what is known is the identity of every passage."""

    def read(self, columns: Sequence[Features], labels: Tensor | None) -> Tensor:
        if len(columns) < 2:
            raise ValueError(
                "argument `sentence_features`: expected the columns query, positive[, negatives ...], "
                f"got {len(columns)} text column"
            )
        tokens = torch.cat([_identities(column, place) for place, column in enumerate(columns[1:])])
        if labels is None:
            return tokens
        groups = labels.reshape(-1)
        if groups.is_floating_point() or len(groups) * (len(columns) - 1) != len(tokens):
            raise ValueError(
                "argument `labels`: expected one integer per row, equal for rows with a common positive, "
                f"got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        negatives = torch.full((len(tokens) - len(groups),), _NO_GROUP, device=groups.device)
        return torch.stack([tokens.to(groups.device), torch.cat([groups.to(torch.int64), negatives])], dim=1)

    def value(self, objective: Objective, columns: Sequence[Tensor], known: Tensor) -> Tensor:
        queries, *passages = columns
        positives = torch.arange(len(queries), device=queries.device)
        pairs = Pairs.of_queries(positives, passages=known.to(queries.device))
        return objective(queries, reference=torch.cat(passages), pairs=pairs)


class RetrievalLoss(ObjectiveLoss):
    """Any objective over queries and the passages of a batch.

    Args:
        model: the `SentenceTransformer` being trained.
        objective: a list objective (`InfoNCELoss()`, each query's list being all passages of the batch), an objective
            over pairs (`MannWhitneyLoss()`), or a mapping from names to them, whose components the trainer logs.
        scale: the inverse temperature of a list objective's scores, which are `scale * cosine`; > 0. An objective over
            pairs has a score of its own (`score=20 * Cosine()`).
        gather_across_devices: compare with the passages of all devices.

    Raises:
        ValueError: at the first batch, when there are fewer than two text columns, or labels that are no integers.
    """

    layout = _Passages()

    def __init__(
        self,
        model: SentenceTransformer,
        objective: Objective | ListObjective | Mapping[str, Objective | ListObjective],
        scale: float = 20.0,
        gather_across_devices: bool = False,
    ) -> None:
        positive("scale", scale)
        if isinstance(objective, Mapping):
            over_passages: Any = {name: _over_passages(part, scale) for name, part in objective.items()}
        else:
            over_passages = _over_passages(objective, scale)
        super().__init__(model, over_passages, gather_across_devices)


class MannWhitneyLoss(RetrievalLoss):
    """The pooled pairwise logistic loss: every positive of the batch against every negative, of any query.

    `mean_{a positive, b negative} log(1 + exp(s_b - s_a))` on `s = scale * cosine`
    (`scorecraft.relevance.mw.MannWhitneyLoss`).

    Args:
        model: the `SentenceTransformer` being trained.
        scale: the inverse temperature, > 0.
        gather_across_devices: pool the batches of all devices.

    Source: arXiv 2510.00137.
    """

    def __init__(self, model: SentenceTransformer, scale: float = 20.0, gather_across_devices: bool = False) -> None:
        objective = mw.MannWhitneyLoss(score=positive("scale", scale) * Cosine())
        super().__init__(model, objective, scale, gather_across_devices)
        self.scale = scale

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the loss's parameters."""
        return {"scale": self.scale, "gather_across_devices": self.gather_across_devices}


class StarLoss(RetrievalLoss):
    """STAR: static hard negatives of all queries, steadied by the other queries' positives.

    The pairwise logistic loss of `s = scale * cosine` over the negative columns and the positives of other rows
    (`scorecraft.relevance.star_adore.StarLoss`).

    Args:
        model: the `SentenceTransformer` being trained.
        alpha: weight of the other rows' positives, or None to give every pair the same weight.
        scale: the inverse temperature, > 0.
        gather_across_devices: compare with the passages of all devices.

    Source: arXiv 2104.08051, section 5.1.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        alpha: float | None = None,
        scale: float = 20.0,
        gather_across_devices: bool = False,
    ) -> None:
        objective = star_adore.StarLoss(alpha=alpha, score=positive("scale", scale) * Cosine())
        super().__init__(model, objective, scale, gather_across_devices)
        self.alpha, self.scale = alpha, scale

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the loss's parameters."""
        return {"alpha": self.alpha, "scale": self.scale, "gather_across_devices": self.gather_across_devices}


class CachedRetrievalLoss(CachedObjectiveLoss):
    """`RetrievalLoss` with gradient caching: batches of any size, for one more forward pass.

    Args:
        model: the `SentenceTransformer` being trained; one with token inputs.
        objective: a list objective or an objective over pairs, without trainable parameters.
        scale: as in `RetrievalLoss`.
        mini_batch_size: texts embedded at a time.
        mini_batch_num_tokens: a budget of tokens per mini-batch instead of a number of texts.
        gather_across_devices: compare with the passages of all devices.
        show_progress_bar: show the mini-batches of every step.

    Raises:
        ValueError: as `CachedObjectiveLoss` and `RetrievalLoss`.
    """

    layout = _Passages()

    def __init__(
        self,
        model: SentenceTransformer,
        objective: Objective | ListObjective,
        scale: float = 20.0,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__(
            model,
            _over_passages(objective, positive("scale", scale)),
            mini_batch_size,
            mini_batch_num_tokens,
            gather_across_devices,
            show_progress_bar,
        )


def _over_passages(objective: Objective | ListObjective, scale: float) -> Objective:
    if isinstance(objective, ListObjective):
        return in_batch(objective, score=scale * Cosine())
    return objective


def token_hashes(input_ids: Int[Tensor, "n t"], attention_mask: Int[Tensor, "n t"] | None = None) -> Int[Tensor, " n"]:
    """A 64-bit fingerprint of every row of tokens, the same wherever the padding stands, and on every device."""
    mask = torch.ones_like(input_ids) if attention_mask is None else (attention_mask != 0).to(input_ids.dtype)
    place = (mask.cumsum(dim=1) - 1).clamp(min=0)
    factors = torch.full((input_ids.shape[1],), _MULTIPLIER, dtype=torch.int64, device=input_ids.device)
    powers = factors.cumprod(dim=0)  # integers wrap around, which is the arithmetic modulo 2^64
    return (mask * (input_ids.to(torch.int64) + 1) * powers[place]).sum(dim=1)


def _identities(column: Features, place: int) -> Int[Tensor, " n"]:
    tokens = column.get("input_ids")
    if isinstance(tokens, Tensor) and tokens.ndim == 2:
        return token_hashes(tokens, column.get("attention_mask"))
    # Nothing to tell passages by (images, flattened inputs): all count as different, also those of other devices.
    rows = next(len(value) for value in column.values() if isinstance(value, Tensor))
    if isinstance(column.get("offsets"), Tensor):
        rows = len(column["offsets"])
    rank = dist.get_rank() if world_size() > 1 else 0
    return torch.arange(rows) + ((rank * 1024 + place) << 32)
