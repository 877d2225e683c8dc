"""Several projection heads at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core.checks import check_embeddings, describe, positive_integer, refuse


class HeadwiseLinear(nn.Module):
    """`heads` linear layers side by side, `y_c = x_c W_c + b_c`, as one batched product.

    Args:
        heads: `C >= 1`.
        inputs: width of `x_c`.
        outputs: width of `y_c`.
        generator: draws the weights and biases, uniform in `+- 1 / sqrt(inputs)` as those of `nn.Linear`.
    """

    def __init__(self, heads: int, inputs: int, outputs: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(heads, 1, outputs))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)

    def forward(self, x: Float[Tensor, "heads n i"]) -> Float[Tensor, "heads n o"]:
        """`[heads, n, inputs]` to `[heads, n, outputs]`."""
        return torch.baddbmm(self.bias, x, self.weight)

    def extra_repr(self) -> str:
        heads, inputs, outputs = self.weight.shape
        return f"heads={heads}, inputs={inputs}, outputs={outputs}"


class MultiHeadProjector(nn.Module):
    """`C` independent MLP heads `g^c` on one feature vector, `z_i^c = g^c(h_i)`, ReLU between their layers.

    All heads run together, one batched product per layer. They are thrown away after pre-training.

    Args:
        widths: from the features to a head's output, at least two (paper's code: 512, 512, 128).
        heads: `C >= 1` (3 to 5 work best).
        normalise: scale the outputs to length 1. `AMCLLoss` does so itself unless told otherwise.
        generator: draws the initial weights.

    Raises:
        ValueError: a width or the number of heads is no integer of at least 1, or there are fewer than two widths.

    Source: AMCL (arXiv 2310.05615).
    """

    def __init__(
        self,
        widths: Sequence[int] = (512, 512, 128),
        *,
        heads: int = 3,
        normalise: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            refuse("widths", "at least two widths, features and output", tuple(widths))
        self.widths = tuple(positive_integer("widths", width) for width in widths)
        self.heads = positive_integer("heads", heads)
        self.normalise = normalise
        self.layers = nn.ModuleList(
            HeadwiseLinear(heads, wide, narrow, generator=generator) for wide, narrow in itertools.pairwise(self.widths)
        )

    def forward(self, features: Float[Tensor, "n i"]) -> Float[Tensor, "n heads o"]:
        """What every head makes of `[n, inputs]`: `[n, heads, outputs]`."""
        check_embeddings("features", features, validate=False)
        if features.shape[1] != self.widths[0]:
            refuse("features", f"rows of width {self.widths[0]}", describe(features))
        outputs = features.expand(self.heads, *features.shape)
        for index, layer in enumerate(self.layers):
            outputs = layer(F.relu(outputs) if index else outputs)
        outputs = outputs.transpose(0, 1)
        return F.normalize(outputs, dim=-1) if self.normalise else outputs

    def extra_repr(self) -> str:
        return f"normalise={self.normalise}"
