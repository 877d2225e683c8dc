"""Temperatures that are learned: one per pair and head, or one per entry of a correlation matrix."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scorecraft.core.checks import describe, positive_integer, refuse
from scorecraft.similarity.amcl.likelihood import bounded_temperature, check_bounds

_AT_A_BOUND = 0.01  # of the interval: a sigmoid never arrives


class TemperatureStatistics(NamedTuple):
    """Where some temperatures stand; 0-d tensors."""

    mean: Float[Tensor, ""]
    at_low: Float[Tensor, ""]
    """Share within one per cent of the interval above its lower bound."""
    at_high: Float[Tensor, ""]
    """Share within one per cent of the interval below its upper bound."""

    @classmethod
    def of(cls, temperatures: Float[Tensor, "..."], low: float, high: float) -> TemperatureStatistics:
        """The statistics of any temperatures in `[low, high]`."""
        place = (temperatures.detach() - low) / (high - low)
        shares = (place < _AT_A_BOUND, place > 1 - _AT_A_BOUND)
        return cls(temperatures.detach().mean(), *(share.to(place.dtype).mean() for share in shares))


class PairTemperature(nn.Module):
    """A temperature for every pair, `tau_ij = low + (high - low) sigmoid(<phi(z_i), phi(z_j)>)`.

    `phi` is one small network (a layer, ReLU, a layer) shared by all heads and by positives and negatives: one pass per
    vector, and one Gram product per head for all pairs. Symmetric in the pair. A large temperature weakens the pull or
    push of a pair.

    The loss can be lowered for ever through the temperatures alone, so watch where they stand (`statistics`), and do
    not read them as an uncertainty without a check: a constant temperature is a stationary compromise.

    Args:
        width: `d' >= 1`, of a head's output.
        hidden: width of `phi`'s layer in between.
        features: `r >= 1`, width of `phi`'s output.
        low, high: the interval of temperatures, `0 < low < high` (sensible 0.05, and 1 to 2; a lower bound of 1e-5 lets
            the loss explode).
        generator: draws the initial weights of `phi`.

    Raises:
        ValueError: a width is no integer of at least 1, or not `0 < low < high`.

    Source: AMCL (arXiv 2310.05615); the widths of `phi` are not published.
    """

    def __init__(
        self,
        width: int,
        *,
        hidden: int = 128,
        features: int = 64,
        low: float = 0.05,
        high: float = 1.05,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.width = positive_integer("width", width)
        self.features = positive_integer("features", features)
        self.low, self.high = check_bounds(low, high)
        self.phi = nn.Sequential(
            nn.Linear(width, positive_integer("hidden", hidden)), nn.ReLU(), nn.Linear(hidden, features)
        )
        if generator is not None:
            self._redraw(generator)

    def forward(self, x: Float[Tensor, "n heads d"], y: Float[Tensor, "m heads d"]) -> Float[Tensor, "heads n m"]:
        """The temperatures of all pairs of each head."""
        left, right = self.phi(x).transpose(0, 1), self.phi(y).transpose(0, 1)
        return bounded_temperature(left @ right.mT, self.low, self.high)

    def paired(self, x: Float[Tensor, "... d"], y: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
        """The temperatures of vectors taken two by two; leading axes broadcast."""
        return bounded_temperature((self.phi(x) * self.phi(y)).sum(dim=-1), self.low, self.high)

    @torch.no_grad()
    def statistics(
        self, first: Float[Tensor, "n heads d"], second: Float[Tensor, "n heads d"]
    ) -> tuple[TemperatureStatistics, TemperatureStatistics]:
        """Where the temperatures of positives (`i` with `i`) and of negatives (`i` with the others) stand.

        Args:
            first: unit vectors of one view of each item.
            second: unit vectors of the other view; at least two items.
        """
        if len(first) < 2 or first.shape != second.shape:
            refuse("second", f"another view of at least two items, like {describe(first)}", describe(second))
        temperatures = self(first, second)
        own = torch.eye(len(first), dtype=torch.bool, device=first.device).expand_as(temperatures)
        positives, negatives = (
            TemperatureStatistics.of(temperatures[which], self.low, self.high) for which in (own, ~own)
        )
        return positives, negatives

    def _redraw(self, generator: torch.Generator) -> None:
        for layer in self.phi:
            if isinstance(layer, nn.Linear):
                for parameter in layer.parameters():
                    nn.init.uniform_(
                        parameter, -(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator
                    )

    def extra_repr(self) -> str:
        return f"low={self.low}, high={self.high}"


class CorrelationTemperature(nn.Module):
    """A temperature for every entry of each head's cross-correlation matrix, a learned parameter of its own.

    How the paper's network would see a dimension (a column whose length is the batch size) is not published. A plain
    parameter per entry, mapped into `[low, high]` by a sigmoid, needs no fixed batch size. It starts at 1 everywhere:
    without regulariser that is plain Barlow Twins. It holds `C d'^2` numbers.

    Args:
        heads: `C >= 1`.
        width: `d' >= 1`.
        low, high: the interval, `0 < low < 1 < high`.

    Raises:
        ValueError: `heads` or `width` is no integer of at least 1, or not `0 < low < 1 < high`.
    """

    def __init__(self, heads: int, width: int, *, low: float = 0.05, high: float = 2.0) -> None:
        super().__init__()
        self.low, self.high = check_bounds(low, high)
        if not low < 1 < high:
            refuse("low", "an interval around 1, where training starts", (low, high))
        self.heads = positive_integer("heads", heads)
        self.width = positive_integer("width", width)
        start = math.log((1 - low) / (high - 1))  # the sigmoid's inverse
        self.products = nn.Parameter(torch.full((heads, width, width), start))

    def forward(self) -> Float[Tensor, "heads d d"]:
        """The temperatures."""
        return bounded_temperature(self.products, self.low, self.high)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, width={self.width}, low={self.low}, high={self.high}"
