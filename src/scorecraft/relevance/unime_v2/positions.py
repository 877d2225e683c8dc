"""Where the positive stands in the list of a prompt: the uniform law, and the one of the released training data.

A re-ranker that reads a numbered list learns how often each number was the answer, whatever the candidates say. With a
law `p` of the positive's position its logits come out shifted by `ln p_i`: only a uniform law teaches no preference.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.core.checks import check_values, describe, positive_integer, refuse


def uniform_position_law(length: int) -> Float[Tensor, " length"]:
    """Every place of a list of `length` alike."""
    return torch.full((positive_integer("length", length),), 1 / length, dtype=torch.float64)


def released_position_law(length: int = 6, most: int = 4) -> Float[Tensor, " length"]:
    """How the official code places the positive: uniform over the first `m + 1` places, `m` uniform in 1..`most`.

    The lists always have six entries, so the sixth is never the answer and the first two are most of the time.

    Args:
        length: entries of a list, more than `most`.
        most: the largest `m`.

    Raises:
        ValueError: a list too short for the last of these places.
    """
    if positive_integer("length", length) <= positive_integer("most", most):
        refuse("length", f"more than most = {most} entries", length)
    places = torch.arange(1, length + 1)
    widths = torch.arange(2, most + 2)
    return ((places[:, None] <= widths) / widths.double()).mean(dim=1)


def draw_positions(law: Float[Tensor, " length"], count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """`count` positions, counted from 1, drawn independently from a law.

    Args:
        law: how often each place is wanted, >= 0 and not all zero; need not sum to one.
        count: how many lists.
        generator: the only source of randomness.

    Raises:
        ValueError: a law that is none.
    """
    if law.ndim != 1 or not law.is_floating_point():
        refuse("law", "floating-point frequencies [length]", describe(law))
    check_values("law", "frequencies >= 0, not all zero",
                 lambda: (law.isfinite() & (law >= 0)).all() & (law > 0).any(), law)  # fmt: skip
    return 1 + torch.multinomial(law, positive_integer("count", count), replacement=True, generator=generator)
