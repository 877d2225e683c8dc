"""The log-ratio of a pair of answers, from which everything here is decided, and the level below which it is rounding.

With `lw = log p(chosen)` and `ll = log p(rejected)`, each a sum over the tokens of its answer, the log-ratio is
`m = lw - ll`; that of the reference is `m_ref`. The paper's `c` is `-m_ref`. No probability is ever exponentiated: that
of a sequence underflows.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import check_values, choice, describe, refuse
from scorecraft.core.likelihoods import checked_log_probabilities, checked_tokens
from scorecraft.core.separable import in_working_precision


def log_ratio(
    chosen: Float[Tensor, " n"],
    rejected: Float[Tensor, " n"],
    *,
    chosen_tokens: Int[Tensor, " n"] | None = None,
    rejected_tokens: Int[Tensor, " n"] | None = None,
    validate: bool = True,
) -> Float[Tensor, " n"]:
    """`m = lw - ll`; with token counts `lw / |y_w| - ll / |y_l|`, the paper's length-normalized form.

    The log-ratio of the reference is the same of its log-probabilities.

    Args:
        chosen: `[n]`, log-probabilities of the preferred answers, at most 0: sums over the answer's tokens alone.
        rejected: `[n]`, the same of the others.
        chosen_tokens: int `[n]`, tokens of each answer, at least 1.
        rejected_tokens: int `[n]`.
        validate: read values.

    Returns:
        `[n]` in nats (per token with counts), in float32 at least.

    Raises:
        ValueError: one line: shapes, values that are no log-probabilities, an empty answer, counts of one side only.

    Source: arXiv 2405.19534, section 2 and definition 2.3.
    """
    chosen = checked_log_probabilities("chosen", chosen, None, validate=validate)
    rejected = checked_log_probabilities("rejected", rejected, chosen, validate=validate)
    chosen, rejected = _means(chosen, rejected, chosen_tokens, rejected_tokens, validate=validate)
    return chosen - rejected


def below_rounding(
    chosen: Float[Tensor, " n"],
    rejected: Float[Tensor, " n"],
    *,
    dtype: torch.dtype | None = None,
) -> Bool[Tensor, " n"]:
    """Pairs whose log-ratio is below the rounding of its terms: `|m| <= eps(dtype) max(|lw|, |ll|)`.

    Sums near -300 are 2 apart in bfloat16. What such a pair is called, right or wrong, is an accident.

    Args:
        chosen: `[n]`, sums of log-probabilities, at most 0.
        rejected: `[n]`.
        dtype: the precision they were computed in, that of `chosen` by default.

    Raises:
        ValueError: as `log_ratio`, or a dtype that is not of floating point.
    """
    dtype = chosen.dtype if dtype is None else dtype
    if not dtype.is_floating_point:
        refuse("dtype", "a floating-point type", dtype)
    gap = log_ratio(chosen, rejected)
    largest = torch.maximum(chosen.abs(), rejected.abs()).to(gap.dtype)
    return gap.abs() <= torch.finfo(dtype).eps * largest


def checked_log_ratio(name: str, values: Tensor, like: Tensor | None = None) -> Tensor:
    """Finite log-ratios `[n]`, as many as `like` has, in float32 at least."""
    if not isinstance(values, Tensor):
        raise TypeError(f"argument `{name}`: expected a tensor, got {type(values).__name__}")
    count = "[n], n >= 1" if like is None else str(tuple(like.shape))
    fits = values.ndim == 1 and len(values) > 0 if like is None else values.shape == like.shape
    if not fits or not values.is_floating_point():
        refuse(name, f"floating-point numbers of shape {count}", describe(values))
    check_values(name, "finite numbers", values.isfinite, values)
    return in_working_precision(values)


def reduced(values: Float[Tensor, " n"], reduction: Reduction) -> Tensor:
    """Mean, sum, or the values themselves."""
    choice("reduction", reduction, ("mean", "sum", "none"))
    return values if reduction == "none" else values.mean() if reduction == "mean" else values.sum()


def _means(
    chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor | None, rejected_tokens: Tensor | None, *, validate: bool
) -> tuple[Tensor, Tensor]:
    if chosen_tokens is None and rejected_tokens is None:
        return chosen, rejected
    for name, counts in (("chosen_tokens", chosen_tokens), ("rejected_tokens", rejected_tokens)):
        if counts is None:
            refuse(name, "the number of tokens of each answer, as for the other answer", "none")
    assert chosen_tokens is not None
    assert rejected_tokens is not None
    return (
        chosen / checked_tokens("chosen_tokens", chosen_tokens, chosen, validate=validate),
        rejected / checked_tokens("rejected_tokens", rejected_tokens, rejected, validate=validate),
    )
