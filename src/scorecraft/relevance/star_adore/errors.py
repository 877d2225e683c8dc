"""What random, hard and static negatives count: ranking errors, and how far a frozen list has been left behind."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core.checks import describe, positive_integer, refuse


def ranking_errors(scores: Float[Tensor, "b n"], relevant: Bool[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """`T_q(d)`, how many irrelevant documents are scored strictly above a relevant one; 0 at irrelevant ones.

    A negative drawn at random is an error with probability `T_q(d) / (N - |R_q|)`, so random negatives minimise the
    total `sum_q sum_d T_q(d)`, to which one query that failed at rank 10^5 adds as much as 10^5 that failed at rank 2.

    Source: Zhan et al. 2021, arXiv 2104.08051, section 4.
    """
    if relevant.shape != scores.shape or relevant.dtype != torch.bool:
        refuse("relevant", f"a bool tensor of shape {tuple(scores.shape)}", describe(relevant))
    irrelevant = torch.where(relevant, -torch.inf, scores).sort(dim=1).values.contiguous()
    not_above = torch.searchsorted(irrelevant, scores.contiguous(), right=True)
    return torch.where(relevant, scores.shape[1] - not_above, 0)


def top_errors(errors: Int[Tensor, "..."], k: int) -> Int[Tensor, "..."]:
    """`min(T_q(d), k)`: the errors that negatives from the current top `k` count, at most `k` per relevant document."""
    return errors.clamp(max=positive_integer("k", k))


def reciprocal_rank_of_errors(errors: Int[Tensor, "..."], k: int) -> Float[Tensor, "..."]:
    """`1 / (1 + T)`, and 0 where `T >= k`: the reciprocal rank within the first `k` of a query's single positive."""
    return torch.where(errors < positive_integer("k", k), 1 / (1 + errors), 0.0)


def list_overlap(frozen: Int[Tensor, "b h"], current: Int[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """`|H_q ∩ top-K_q| / K`: the share of the current top documents that a frozen list still holds, in [0, 1].

    Errors counted inside a frozen list say nothing of the documents that have risen since; the overlap falls as they
    do. -1 in either is no document; a query without current documents counts 0.
    """
    there = current >= 0
    kept = (current[:, :, None] == frozen[:, None, :]).any(dim=2) & there
    return kept.sum(dim=1) / there.sum(dim=1).clamp(min=1)
