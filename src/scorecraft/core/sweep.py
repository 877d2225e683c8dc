"""No-gradient passes over the scores of a batch, as an objective sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from scorecraft.core.pairs import Pairs, Tile
from scorecraft.core.reductions import Merge

Context: TypeAlias = Mapping[str, Tensor]
"""What surveys found: tensors with a leading row axis, or 0-d tensors that concern the whole batch."""
Measure: TypeAlias = Callable[[Tile, Context], dict[str, Tensor]]


class Sweep:
    """No-gradient passes over the scores of a batch; the dense form is one tile with gradient.

    An objective's `survey` uses it to measure what its weights depend on (extremes, log-sum-exps, counts), one row at a
    time (`rows`) or for the whole batch (`totals`). Every ordered pair is met once, whatever the blocks.
    """

    whole: Tile | None
    """The one tile of the dense form."""

    def __init__(self, tile: Tile) -> None:
        self.whole = self._tile = tile

    def tiles(self) -> Iterator[tuple[Tile, int]]:
        """All tiles, each with how many ordered tiles it stands for (2 when its transpose is not visited)."""
        yield self._tile, 1

    def rows(self, measure: Measure, context: Context | None = None, **merges: Merge) -> dict[str, Tensor]:
        """Measurements `[n]` of every row: `measure(tile, context)` on each block, merged along the row."""
        del merges
        return measure(self._tile, context or {})

    def totals(self, measure: Measure, context: Context | None = None, **merges: Merge) -> dict[str, Tensor]:
        """Measurements 0-d of the whole batch (of all ranks)."""
        del merges
        return measure(self._tile, context or {})

    def all_reduce(self, value: Tensor, merge: Merge = Merge.SUM) -> Tensor:
        """Merge a measurement of one's own over the ranks."""
        del merge
        return value

    def count_negatives(self) -> int:
        """Ordered negative pairs of the whole batch (of all ranks)."""
        raise NotImplementedError("the dense form has one tile, `whole`: count there")

    def sample(self, values_of: Callable[[Tile], Tensor]) -> Tensor:
        """Some values of tiles drawn at random (the same draw every time), for a first guess at a distribution.

        Empty when the batch is so small that a pass over it costs less.
        """
        raise NotImplementedError("the dense form has one tile, `whole`: nothing need be guessed")


def whole_tile(scores: tuple[Tensor, ...], pairs: Pairs) -> Tile:
    """All scores of a batch as one tile."""
    positives, negatives, grades = pairs.block(slice(None), slice(None))
    rows = torch.arange(pairs.rows, device=scores[0].device)
    columns = torch.arange(pairs.columns, device=scores[0].device)
    return Tile(scores, positives, negatives, rows, columns, grades)
