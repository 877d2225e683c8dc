"""Scores with labels: what the pooled loss, the ROC curve and its area are taken of."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from scorecraft.core.checks import check_values, describe, refuse


def check_labelled_scores(
    scores: Float[Tensor, "..."],
    relevance: Num[Tensor, "..."] | Bool[Tensor, "..."],
    where: Bool[Tensor, "..."] | None,
    *,
    validate: bool = True,
) -> tuple[Bool[Tensor, "..."], Bool[Tensor, "..."]]:
    """Which scores are positive and which negative; what is neither is left out, as are scores of `-inf`.

    Raises:
        ValueError: one line naming the argument, what was expected and what came.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        refuse("scores", "a floating-point tensor", describe(scores))
    if not isinstance(relevance, Tensor) or relevance.shape != scores.shape or relevance.is_complex():
        refuse("relevance", f"one label per score, shape {tuple(scores.shape)}", describe(relevance))
    if where is not None and (where.shape != scores.shape or where.dtype != torch.bool):
        refuse("where", f"a bool tensor of shape {tuple(scores.shape)}", describe(where))
    present = scores.detach() != -torch.inf
    where = present if where is None else where & present
    if validate:
        check_values(
            "scores", "finite values (or -inf for padding)", lambda: (scores.isfinite() | ~where).all(), scores
        )
        if relevance.dtype != torch.bool:
            known = lambda: ((relevance == 0) | (relevance == 1) | ~where).all()  # noqa: E731
            check_values("relevance", "0 or 1 (leave scores out through `where`)", known, relevance)
    relevant = relevance.bool()
    return relevant & where, ~relevant & where
