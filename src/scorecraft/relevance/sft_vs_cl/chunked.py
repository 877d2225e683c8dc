"""A re-ranking loss of scores that a model makes a few candidates at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from scorecraft.core.checks import positive_integer
from scorecraft.core.gradient_caching import Inputs, gradient_cached
from scorecraft.core.lists import ListObjective


class ChunkedReranking(nn.Module):
    """See `chunked_reranking`."""

    def __init__(self, objective: ListObjective, scorer: Callable[..., Tensor], chunk: int) -> None:
        super().__init__()
        self.objective = objective
        self.scorer = scorer
        self.chunk = positive_integer("chunk", chunk)

    def forward(
        self, inputs: Inputs, relevance: Num[Tensor, "..."] | Bool[Tensor, "..."], *args: Any, **call: Any
    ) -> Tensor:
        """The loss of `scorer(inputs)`.

        Args:
            inputs: the model's inputs, one per candidate, list after list: a tensor, a mapping or a sequence of them.
            relevance: `[lists, c]`, or `[n]` with `segments`.
            args: `where`.
            call: further arguments of the objective's call (`where`, `segments`, `weights`).
        """
        cached = gradient_cached(_OfFlatScores(self.objective), self._candidates_first, chunk=self.chunk)
        return cached(inputs, relevance, *args, **call)

    def _candidates_first(self, inputs: Inputs) -> Tensor:
        return self.scorer(inputs).movedim(-1, 0)

    def extra_repr(self) -> str:
        return f"chunk={self.chunk}"


def chunked_reranking(
    objective: ListObjective, scorer: Callable[..., Float[Tensor, "... k"]], *, chunk: int
) -> ChunkedReranking:
    """The same loss with the model's memory `O(chunk)`: `chunked_reranking(loss, scorer, chunk=4)(inputs, relevance)`.

    Accumulating gradients over the candidates of a query is exact for supervised fine-tuning and wrong for contrast,
    whose weights need the whole softmax. Here every chunk is scored once without keeping activations, the objective
    reads all scores and leaves the weight of each, and each chunk is scored again to carry its weights into the model:
    value and gradient of the plain call, for a third more computation. A chunk may cut through a query. The random
    state is replayed, so dropout agrees.

    Args:
        objective: any list objective, of one score channel or of the two logits.
        scorer: from the inputs of `k` candidates to their scores `[k]`, or `[channels, k]` (`two_row_logits`).
        chunk: candidates scored at once, at least 1.

    Raises:
        ValueError: a chunk below 1.

    Source: arXiv 2510.14824, the weight x direction form, with the caching of Gao et al. 2021.
    """
    return ChunkedReranking(objective, scorer, chunk)


class _OfFlatScores(nn.Module):
    """A list objective of scores that come as `[n]` or `[n, channels]`, list after list."""

    def __init__(self, objective: ListObjective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, scores: Tensor, relevance: Tensor, *args: Any, **call: Any) -> Tensor:
        return self.objective(scores.movedim(0, -1).unflatten(-1, relevance.shape), relevance, *args, **call)
