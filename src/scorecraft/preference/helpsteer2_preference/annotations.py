"""From the votes of several annotators to one strength: the three most similar votes, and how far they agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scorecraft.core.checks import natural, refuse

LARGEST = 3
"""Votes and strengths go from -3 (response 1 much better) to 3."""


class Aggregated(NamedTuple):
    """What becomes of the votes on a pair."""

    triple: tuple[int, int, int] | None
    """The three most similar votes in ascending order; None with fewer than three valid votes, as all that follows."""
    spread: int | None
    """Largest minus smallest of them."""
    mean: float | None
    strength: int | None
    """The mean rounded, -3 to 3; negative where response 1 is better."""
    keep: bool
    """Whether the pair is to be used."""


def aggregate_votes(votes: Sequence[int] | NDArray[np.integer], *, max_spread: int = 2) -> Aggregated:
    """The strength of one pair from its annotators' votes.

    Votes outside -3 to 3 (such as -100: neither response is valid) are left out, and fewer than three drop the pair.
    Of all triples the one with the smallest spread is kept; among equals that whose mean is closest to the mean of all
    valid votes, then the lexicographically smallest, by exact arithmetic. The strength is its mean, rounded; the pair
    is kept if the spread is at most `max_spread` and the strength is not 0.

    Args:
        votes: integers.
        max_spread: at least 0.

    Raises:
        ValueError: votes that are no integers.

    Source: Wang et al. 2024, arXiv 2410.01257, section 2; the tie-breaking is ours.
    """
    natural("max_spread", max_spread)
    for place, vote in enumerate(votes):
        if isinstance(vote, bool) or not isinstance(vote, (int, np.integer)):
            refuse("votes", "integers", f"{vote!r} at {place}")
    valid = sorted(int(vote) for vote in votes if -LARGEST <= vote <= LARGEST)
    if len(valid) < 3:
        return Aggregated(None, None, None, None, False)
    total, count = sum(valid), len(valid)
    triple = min(
        combinations(valid, 3),
        # |mean of the triple - mean of all|, times 3 * count.
        key=lambda three: (three[2] - three[0], abs(count * sum(three) - 3 * total), three),
    )
    spread, added = triple[2] - triple[0], sum(triple)
    # Half away from zero of added / 3.
    strength = (2 * abs(added) + 3) // 6 * (1 if added >= 0 else -1)
    return Aggregated(triple, spread, added / 3, strength, spread <= max_spread and strength != 0)


def vote_agreement(items: Iterable[Sequence[int]]) -> float:
    """Cohen's kappa with quadratic weights over all pairs of votes on the same item.

    `1 - observed / expected`, the mean squared difference of two votes on one item over that of two votes drawn at
    large. Every two annotators of an item enter in both orders, because annotators have no names here. 1 is perfect
    agreement, 0 that of chance.

    Args:
        items: the votes on each item; those outside -3 to 3 are left out.

    Raises:
        ValueError: no item with two valid votes, or all votes the same.
    """
    levels = 2 * LARGEST + 1
    together = np.zeros((levels, levels))
    for votes in items:
        found = [vote + LARGEST for vote in votes if -LARGEST <= vote <= LARGEST]
        for first, second in combinations(found, 2):
            together[first, second] += 1
            together[second, first] += 1
    if not together.sum():
        refuse("items", "an item with two valid votes", "none")
    together /= together.sum()
    own = together.sum(axis=1)
    cost = np.subtract.outer(np.arange(levels), np.arange(levels)) ** 2
    expected = (np.outer(own, own) * cost).sum()
    if expected == 0:
        refuse("items", "votes that differ", "the same vote everywhere")
    return float(1 - (together * cost).sum() / expected)
