"""SimSiam with a temperature for every pair of an anchor and its target."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from scorecraft.similarity.amcl.likelihood import omega


def simsiam_loss(
    similarities: tuple[Float[Tensor, "n heads"], Float[Tensor, "n heads"]],
    temperatures: tuple[Float[Tensor, "n heads"], Float[Tensor, "n heads"]],
    *,
    beta: float,
    width: int,
) -> Float[Tensor, " n"]:
    """AMCL's form of SimSiam, which has no negatives, for each item.

        L_i = sum_c [ -s_i / (2 tau_i) - s~_i / (2 tau~_i) + beta Omega(tau_i) + beta Omega(tau~_i) ]

    Args:
        similarities: `s` of the first view's vectors with the second view's target, and `s~` the other way round.
        temperatures: `tau` and `tau~` of the same pairs, > 0.
        beta: strength of the regulariser, >= 0.
        width: `d'`, the width of a head's output.

    Source: AMCL (arXiv 2310.05615), the table of losses.
    """
    one_way, other_way = (
        beta * omega(temperature, width) - similarity / (2 * temperature)
        for similarity, temperature in zip(similarities, temperatures, strict=True)
    )
    return (one_way + other_way).sum(dim=1)
