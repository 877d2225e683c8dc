"""Relevance as the dot product of mean-pooled embeddings, and the range that each encoder has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core.checks import check_embeddings, check_values, describe, finite, positive_integer, refuse
from scorecraft.preference.r3.texts import LENGTH_UNIT

_Relevance = TypeVar("_Relevance", float, Tensor)
Encode: TypeAlias = Callable[[list[str]], Float[Tensor, "n d"]]
"""From texts to their embeddings."""

MAX_LENGTH = 512
"""Most tokens of a response."""
UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of a unit vector may be."""


def mean_pool(hidden: Float[Tensor, "n t d"], mask: Int[Tensor, "n t"] | Bool[Tensor, "n t"]) -> Float[Tensor, "n d"]:
    """`e = sum_k mask_k h_k / sum_k mask_k` in float32 at least; 0 where nothing is masked in.

    Args:
        hidden: `[n, t, d]`, last hidden states.
        mask: `[n, t]`, 1 at tokens and 0 at padding.
    """
    if mask.shape != hidden.shape[:-1]:
        refuse("mask", f"one entry per token, shape {tuple(hidden.shape[:-1])}", describe(mask))
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    weights = mask.to(hidden).unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def row_relevance(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """`e(x) . e(y)` row by row, in float32 at least; no matrix of all pairs is formed.

    Args:
        first, second: `[n, d]`, finite.
    """
    check_embeddings("first", first)
    check_embeddings("second", second)
    if first.shape != second.shape:
        refuse("second", f"embeddings of shape {tuple(first.shape)}", describe(second))
    if first.dtype != torch.float64:
        first, second = first.float(), second.float()
    return (first * second).sum(dim=1)


@dataclass(frozen=True)
class Calibration:
    """`F(v) = o0 + (v - i0) / (i1 - i0) (o1 - o0)`: from an encoder's relevance to the scale of open-ended rewards.

    Linear and not clamped. The input range belongs to the encoder, the output to the longest response: an open-ended
    response of `max_length` tokens has a length incentive of `max_length / 100`.

    Args:
        low, high: `i0` and `i1`, the range of relevance to a reference answer.
        output_low, output_high: `o0` and `o1`.

    Raises:
        ValueError: a range that is empty or not finite.

    Source: arXiv 2402.03469; the range from the released code.
    """

    low: float = 0.0
    high: float = 3.5
    output_low: float = 0.0
    output_high: float = MAX_LENGTH / LENGTH_UNIT

    def __post_init__(self) -> None:
        for name in ("low", "high", "output_low", "output_high"):
            finite(name, getattr(self, name))
        if not self.low < self.high:
            refuse("high", f"above low = {self.low}", self.high)
        if not self.output_low < self.output_high:
            refuse("output_high", f"above output_low = {self.output_low}", self.output_high)

    def __call__(self, relevance: _Relevance) -> _Relevance:
        """`F` of one relevance or of many."""
        slope = (self.output_high - self.output_low) / (self.high - self.low)
        return self.output_low + (relevance - self.low) * slope


def contriever(max_length: int = MAX_LENGTH) -> Calibration:
    """Of Contriever's dot products of unnormalised embeddings, about 0 to 3.5: the paper's encoder.

    Args:
        max_length: most tokens of a response.
    """
    return Calibration(0.0, 3.5, 0.0, positive_integer("max_length", max_length) / LENGTH_UNIT)


def cosine(max_length: int = MAX_LENGTH) -> Calibration:
    """Of encoders with unit vectors, such as MiniLM: relevance from 0 to 1.

    Args:
        max_length: most tokens of a response.
    """
    return Calibration(0.0, 1.0, 0.0, positive_integer("max_length", max_length) / LENGTH_UNIT)


def calibrate(
    encode: Encode,
    responses: Sequence[str],
    references: Sequence[str],
    *,
    percentile: float = 99.0,
    max_length: int = MAX_LENGTH,
) -> Calibration:
    """Fit the upper end of the input range: a percentile of the relevance of responses to their references.

    Args:
        encode: of the reward.
        responses: such as answers of the policy before training.
        references: for each of them the reference answer.
        percentile: in (0, 100].
        max_length: most tokens of a response.

    Raises:
        ValueError: no texts, another number of references, or a percentile of relevance that is not above 0.
    """
    if not responses or len(responses) != len(references):
        refuse("references", f"{max(len(responses), 1)} texts, one per response", len(references))
    if not 0 < finite("percentile", percentile) <= 100:
        refuse("percentile", "a number in (0, 100]", percentile)
    found = row_relevance(embeddings_of(encode, list(responses)), embeddings_of(encode, list(references)))
    end = torch.quantile(found.double(), percentile / 100).item()
    if end <= 0:
        refuse("references", "answers that the responses are relevant to", f"a percentile of relevance of {end:.4g}")
    return Calibration(0.0, end, 0.0, positive_integer("max_length", max_length) / LENGTH_UNIT)


class CachedEncoder:
    """Embeddings of texts that come again, kept: queries and references are embedded once.

    Args:
        encode: from texts to embeddings `[n, d]`, run without gradient.
        limit: texts that are kept; the ones not used for longest go first. A thousand vectors of 768 take 3 MB.
    """

    def __init__(self, encode: Encode, *, limit: int = 100_000) -> None:
        self.encode = encode
        self.limit = positive_integer("limit", limit)
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """The embeddings of at least one text, in float32 on the CPU."""
        if not texts:
            refuse("texts", "at least one text", "none")
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        new = dict(zip(missing, embeddings_of(self.encode, missing), strict=True)) if missing else {}
        rows = []
        for text in texts:
            if text in new:
                rows.append(new[text])
            else:
                rows.append(self._kept[text])
                self._kept.move_to_end(text)
        # Own memory for each: a row of a batch would keep the whole batch.
        self._kept.update((text, row.clone()) for text, row in new.items())
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)
        return torch.stack(rows)

    def __len__(self) -> int:
        return len(self._kept)


@torch.no_grad()
def embeddings_of(encode: Encode, texts: list[str]) -> Float[Tensor, "n d"]:
    """The embeddings of texts, seen to be finite, in float32 on the CPU."""
    found = torch.as_tensor(encode(texts))
    if found.ndim != 2 or len(found) != len(texts) or not found.is_floating_point():
        refuse("encode", f"embeddings [{len(texts)}, d], one per text", describe(found))
    found = found.detach().float().cpu()
    check_values("encode", "finite embeddings", lambda: torch.isfinite(found), found)
    return found


def are_unit_vectors(embeddings: Float[Tensor, "n d"]) -> bool:
    """Whether every row has length 1, so that dot products are cosines; rows of zeros say nothing."""
    lengths = embeddings.norm(dim=1)
    lengths = lengths[lengths > 0]
    return len(lengths) > 0 and bool(((lengths - 1).abs() < UNIT_TOLERANCE).all())
