"""Large contrastive batches through an encoder whose activations do not fit: gradient caching."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scorecraft.core.checks import describe, positive_integer, refuse

Inputs: TypeAlias = "Tensor | Mapping[str, Tensor] | Sequence[Tensor]"


class GradientCached(nn.Module):
    """See `gradient_cached`."""

    def __init__(self, objective: nn.Module, encoder: Callable[..., Tensor], chunk: int) -> None:
        super().__init__()
        self.objective = objective
        self.encoder = encoder
        self.chunk = positive_integer("chunk", chunk)

    def forward(self, inputs: Inputs, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """The loss of `encoder(inputs)`; further arguments go to the loss."""
        embeddings = [checkpoint(self.encoder, part, use_reentrant=False) for part in _chunks(inputs, self.chunk)]
        return self.objective(torch.cat(embeddings), *args, **kwargs)


def gradient_cached(objective: nn.Module, encoder: Callable[..., Tensor], *, chunk: int = 64) -> GradientCached:
    """The same loss with encoder memory `O(chunk)`: `gradient_cached(loss, encoder, chunk=64)(inputs, labels)`.

    The encoder runs on one chunk at a time and keeps no activations; the loss sees all embeddings at once; the backward
    pass runs the encoder on each chunk again with the gradient the loss left for it. The random state is replayed, so
    dropout agrees. The gradient is exact for encoders that treat examples independently (batch normalisation does not).

    Args:
        objective: any loss called as `objective(embeddings, *args, **kwargs)`.
        encoder: maps a chunk of the inputs to embeddings `[chunk, d]`.
        chunk: examples encoded at once, at least 1.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
    """
    return GradientCached(objective, encoder, chunk)


def _chunks(inputs: Inputs, size: int) -> list[Any]:
    """The inputs cut along the first axis: a tensor, a mapping of tensors, or a sequence of tensors."""
    if isinstance(inputs, Tensor):
        return list(inputs.split(size))
    parts = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    if not parts or len({len(part) for part in parts}) != 1:
        refuse("inputs", "tensors of the same number of examples", ", ".join(map(describe, parts)) or "nothing")
    cut = zip(*(part.split(size) for part in parts), strict=True)
    if isinstance(inputs, Mapping):
        return [dict(zip(inputs, chunk, strict=True)) for chunk in cut]
    return list(cut)
