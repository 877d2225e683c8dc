"""The pooled AUC of a stream of scores in constant memory, with an interval that is guaranteed to hold it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from scorecraft.core.checks import positive_integer, refuse
from scorecraft.relevance.mw.labelled import check_labelled_scores

MIN_BITS, MAX_BITS = 8, 24


class BoundedAUC(NamedTuple):
    """An area that is known to lie in `auc - error ... auc + error`; NaN without a positive or without a negative."""

    auc: Float[Tensor, ""]
    aoc: Float[Tensor, ""]
    """`1 - AUC`, from counts of its own."""
    error: Float[Tensor, ""]


class AUCHistogram:
    """Counts of positive and of negative scores in bins, from which the pooled AUC is known up to pairs within a bin.

        AUC = sum_{i > j} p_i n_j / (n_P n_N) + 1/2 sum_i p_i n_i / (n_P n_N)   +-   1/2 sum_i p_i n_i / (n_P n_N)

    The bins are the leading bits of a float32 in the order of numbers, so no range need be known: at 16 bits about
    seven binary digits of every score are told apart, at 20 eleven. Scores are rounded to float32, which keeps their
    order. Counts of parts of a stream, or of several processes, add up.

    Args:
        bits: `2^bits` bins, in [8, 24].
        device: where the counts live.

    Raises:
        ValueError: bad arguments.

    Source: arXiv 2510.00137 (the pooled AUC); the interval is arithmetic.
    """

    def __init__(self, *, bits: int = 16, device: torch.device | str | None = None) -> None:
        if not MIN_BITS <= positive_integer("bits", bits) <= MAX_BITS:
            refuse("bits", f"an integer in [{MIN_BITS}, {MAX_BITS}]", bits)
        self.bits = bits
        self.positives = torch.zeros(1 << bits, dtype=torch.int64, device=device)
        self.negatives = torch.zeros_like(self.positives)

    def update(
        self,
        scores: Float[Tensor, "..."],
        relevance: Num[Tensor, "..."] | Bool[Tensor, "..."],
        where: Bool[Tensor, "..."] | None = None,
        *,
        validate: bool = True,
    ) -> AUCHistogram:
        """Count scores (arguments as of `pooled_auc`); returns itself."""
        positives, negatives = check_labelled_scores(scores, relevance, where, validate=validate)
        bins = bin_of(scores.detach(), self.bits)
        for counts, mask in ((self.positives, positives), (self.negatives, negatives)):
            counts += torch.bincount(bins[mask], minlength=len(counts)).to(counts.device)
        return self

    def merge(self, other: AUCHistogram) -> AUCHistogram:
        """Add the counts of another part of the stream; returns itself."""
        if self.bits != other.bits:
            refuse("other", f"a histogram of {self.bits} bits", f"one of {other.bits}")
        self.positives += other.positives.to(self.positives.device)
        self.negatives += other.negatives.to(self.negatives.device)
        return self

    def result(self) -> BoundedAUC:
        """What the counts say of the AUC."""
        p, n = self.positives.double(), self.negatives.double()
        pairs = p.sum() * n.sum()
        within = (p * n).sum() / 2
        won = (p * (n.cumsum(0) - n)).sum()
        lost = (n * (p.cumsum(0) - p)).sum()
        return BoundedAUC((won + within) / pairs, (lost + within) / pairs, within / pairs)

    def __repr__(self) -> str:
        return f"AUCHistogram(bits={self.bits})"


def bin_of(scores: Float[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """The leading bits of each score as a float32, so ordered that larger scores have larger bins."""
    pattern = (scores.float() + 0.0).contiguous().view(torch.int32)  # adding 0 makes -0 equal to 0
    # A negative number counts downwards from its sign bit on: turn the others around.
    ordered = torch.where(pattern < 0, pattern ^ 0x7FFFFFFF, pattern).long() + (1 << 31)
    return ordered >> (32 - bits)
