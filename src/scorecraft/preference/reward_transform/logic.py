"""Good in all, in any, in at least k properties: logic on log-probabilities of independent properties.

Along the last axis stand the properties of one answer. A `Judgement` holds the log-probabilities of good and of not
good, both of full relative precision however close to 0 or 1 the probability is, so that connectives can be nested.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.checks import check_values, describe, natural, refuse
from scorecraft.core.reductions import log1mexp
from scorecraft.preference.reward_transform.transform import centred

_UNDERFLOW = -1e-30
"""Above it `1 - e^t` is `-t` to every digit, while `t` itself may have lost its own."""


class Judgement(NamedTuple):
    """Whether answers are good: two log-probabilities whose exponentials add up to 1."""

    good: Float[Tensor, "*shape"]
    """`log P(good)`, at most 0: the utility to align with."""
    bad: Float[Tensor, "*shape"]
    """`log P(not good)`, at most 0; `-inf` where nothing was asked."""


def judged(
    rewards: Float[Tensor, "*shape"],
    reference: Tensor | float,
    *,
    scale: Tensor | float = 1.0,
    where: Bool[Tensor, "*shape"] | None = None,
) -> Judgement:
    """`log sigmoid(z)` and `log sigmoid(-z)` with `z = scale (r - r_ref)`.

    Args:
        rewards: finite, of any shape.
        reference: of each reward, broadcast against them.
        scale: of the log-odds, one or one per reward.
        where: bool, the rewards there are; what stands outside is not read.
    """
    odds = centred(rewards, reference, scale=scale, where=where)
    return Judgement(F.logsigmoid(odds), F.logsigmoid(-odds))


def log_sigmoid_sum(
    rewards: Float[Tensor, "*shape n"],
    reference: Tensor | float,
    *,
    scale: Tensor | float = 1.0,
    weights: Float[Tensor, " n"] | None = None,
    where: Bool[Tensor, "*shape n"] | None = None,
) -> Float[Tensor, "*shape"]:
    """`u = sum_i w_i log sigmoid(a_i (r_i - r_ref_i))`: the log-probability that an answer is good in every property.

    One bad property dominates the sum, where in a sum of raw rewards a very good one buys it off. A property that does
    not apply adds 0.

    Args:
        rewards: `[..., n]`, the rewards of `n` properties.
        reference: of each reward, broadcast against them.
        scale: of the log-odds, one or one per property.
        weights: `[n]`, exponents of the probabilities, at least 0.
        where: bool `[..., n]`, the properties that apply.

    Raises:
        ValueError: values that are not finite, shapes that do not fit, or weights below 0.

    Source: arXiv 2402.00742, the combination of rewards.
    """
    return all_of(judged(rewards, reference, scale=scale, where=where), weights=weights, where=where).good


def all_of(
    judgement: Judgement,
    *,
    weights: Float[Tensor, " n"] | None = None,
    where: Bool[Tensor, "*shape n"] | None = None,
) -> Judgement:
    """AND: `log P = sum_i w_i log p_i` over the last axis; nothing to be good in is good for certain.

    Args:
        judgement: of `n` properties, `[..., n]`.
        weights: `[n]`, exponents, at least 0.
        where: bool `[..., n]`, the properties that apply.
    """
    good, bad = _checked(judgement, where)
    count = good.shape[-1]
    exponents = torch.ones(count).to(good) if weights is None else torch.as_tensor(weights).to(good)
    if exponents.shape != (count,):
        refuse("weights", f"one per property, shape ({count},)", describe(exponents))
    check_values("weights", "finite numbers >= 0", lambda: torch.isfinite(exponents) & (exponents >= 0), exponents)
    if where is not None:
        good, bad = torch.where(where, good, 0.0), torch.where(where, bad, -torch.inf)
    together = (exponents * good).sum(dim=-1)
    lost = together > _UNDERFLOW
    some = torch.where(lost, -1.0, together)
    first_order = _logsumexp(torch.where(exponents > 0, bad + exponents.log(), -torch.inf))
    return Judgement(together, torch.where(lost, first_order, log1mexp(some)))


def any_of(judgement: Judgement, *, where: Bool[Tensor, "*shape n"] | None = None) -> Judgement:
    """OR: `log P = log(1 - prod_i (1 - p_i))` over the last axis, of the properties that apply.

    Where none applies nothing was asked, and that is good for certain, as in `all_of`.

    Args:
        judgement: of `n` properties, `[..., n]`.
        where: bool `[..., n]`, the properties that apply.
    """
    found = negated(all_of(negated(judgement), where=where))
    if where is None:
        return found
    some = where.any(dim=-1)
    return Judgement(torch.where(some, found.good, 0.0), torch.where(some, found.bad, -torch.inf))


def negated(judgement: Judgement) -> Judgement:
    """NOT: good where it was not, `log sigmoid(r_ref - r)`."""
    return Judgement(judgement.bad, judgement.good)


def at_least(judgement: Judgement, count: int, *, where: Bool[Tensor, "*shape n"] | None = None) -> Judgement:
    """At least `count` of `n`: the upper tail of a Poisson-binomial distribution over the last axis.

    With `T(i, j)` the probability that at least `j` of the first `i` properties hold,
    `T(i, j) = p_i T(i - 1, j - 1) + (1 - p_i) T(i - 1, j)`: sums of positive terms, taken in the log domain. One of `n`
    is `any_of`, `n` of `n` is `all_of`.

    Args:
        judgement: of `n` properties, `[..., n]`.
        count: from 0 to `n`.
        where: bool `[..., n]`, the properties that apply; where fewer than `count` do, all of those.

    Raises:
        ValueError: a count outside of its range.
    """
    good, bad = _checked(judgement, where)
    properties = good.shape[-1]
    if natural("count", count) > properties:
        refuse("count", f"at most the {properties} properties there are", count)
    there = torch.ones_like(good, dtype=torch.bool) if where is None else where
    applying = there.sum(dim=-1)
    needed = applying.clamp(max=count)
    reached = _tail(good, bad, there, needed)
    missed = _tail(bad, good, there, applying - needed + 1)
    # Of the two, the one below 1/2 has lost nothing; the other is its complement.
    likely = reached > missed
    safe = torch.where(likely, missed, reached).clamp(max=-0.5)
    complement = log1mexp(safe)
    found = Judgement(torch.where(likely, complement, reached), torch.where(likely, missed, complement))
    asked = needed > 0
    return Judgement(torch.where(asked, found.good, 0.0), torch.where(asked, found.bad, -torch.inf))


def _tail(
    good: Float[Tensor, "*shape n"],
    bad: Float[Tensor, "*shape n"],
    where: Bool[Tensor, "*shape n"],
    needed: Int[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """`log P(at least needed)`; a large negative number where more are needed than there are."""
    properties = good.shape[-1]
    impossible = torch.finfo(good.dtype).min / 4
    certain = torch.zeros_like(good[..., 0])
    table = [certain, *(torch.full_like(certain, impossible) for _ in range(properties + 1))]
    for place in range(properties):
        p, q, there = good[..., place], bad[..., place], where[..., place]
        # From the back: every entry reads the one before it as it was.
        for needs in range(place + 1, 0, -1):
            either = torch.logaddexp(p + table[needs - 1], q + table[needs])
            table[needs] = torch.where(there, either, table[needs])
    return torch.stack(table, dim=-1).gather(-1, needed.unsqueeze(-1)).squeeze(-1)


def _checked(judgement: Judgement, where: Tensor | None) -> tuple[Tensor, Tensor]:
    good, bad = judgement
    if good.ndim < 1 or good.shape[-1] == 0 or good.shape != bad.shape:
        refuse("judgement", "log-probabilities [..., n] of at least one property", describe(good))
    if where is not None and (where.shape != good.shape or where.dtype != torch.bool):
        refuse("where", f"a bool tensor of shape {tuple(good.shape)}", describe(where))
    return good, bad


def _logsumexp(values: Float[Tensor, "*shape n"]) -> Float[Tensor, "*shape"]:
    """Over the last axis, with a zero gradient where everything is `-inf`."""
    none = (values == -torch.inf).all(dim=-1)
    return torch.where(none, -torch.inf, torch.where(none.unsqueeze(-1), 0.0, values).logsumexp(dim=-1))
