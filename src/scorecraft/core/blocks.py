"""Passes over the scores of a batch in blocks that are made, read and forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scorecraft.core.pairs import Pairs, Tile
from scorecraft.core.reductions import Merge
from scorecraft.core.scores import ScoreMap
from scorecraft.core.sweep import Context, Measure, Sweep

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SAMPLED_BLOCKS, _SAMPLED_ROWS = 512, 64
_WORTH_SAMPLING = 1 << 22  # scores; below, two passes cost less than the sample


class Visit(NamedTuple):
    rows: slice
    columns: slice
    mirrored: bool
    """Whether the block also stands for its transpose, which is not visited."""


class WeightsOf:
    """What a gradient pass asks of an objective: the weights of one block (of both its orders, when mirrored)."""

    def __call__(self, tile: Tile, visit: Visit) -> tuple[Tensor, ...]:
        raise NotImplementedError


class BlockSweep(Sweep):
    """Passes over the scores of prepared embeddings, block by block.

    Rows and columns are addressed in the sweep's own order (sorted by label when that helps); `arrange_*` and
    `restore_rows` translate.
    """

    def __init__(
        self,
        score: ScoreMap,
        pairs: Pairs,
        *,
        against_itself: bool,
        block: int,
        order_invariant: bool = True,
        whole_rows: bool = False,
        group: ProcessGroup | None = None,
        ranks: int = 1,
    ) -> None:
        order = pairs.sorted() if order_invariant else None
        self.score = score
        self.pairs = pairs if order is None else order.pairs
        self.row_order = None if order is None else order.rows
        self.column_order = None if order is None else order.columns
        self.against_itself = against_itself
        self.symmetric = against_itself and pairs.symmetric and not whole_rows
        self.row_block, self.column_block = block, block
        if whole_rows:
            self.column_block = pairs.columns
            self.row_block = max(1, min(block, 4 * block * block // pairs.columns))
        self.group, self.ranks = group, ranks
        self.whole = None
        self.x = self.y = self._buffer = torch.empty(0)

    def load(self, x: Tensor, y: Tensor | None) -> None:
        """Take the prepared embeddings the next passes run over."""
        self.x = x.detach() if self.row_order is None else x.detach()[self.row_order]
        if y is None:
            self.y = self.x
        else:
            self.y = y.detach() if self.column_order is None else y.detach()[self.column_order]
        size = min(self.row_block, len(self.x)) * min(self.column_block, len(self.y)) * self.score.channels
        if self._buffer.numel() != size or self._buffer.dtype != x.dtype or self._buffer.device != x.device:
            self._buffer = torch.empty(size, dtype=x.dtype, device=x.device)

    def unload(self) -> None:
        """Let go of embeddings and buffer between forward and backward."""
        self.x = self.y = self._buffer = torch.empty(0)

    def arrange_rows(self, values: Tensor) -> Tensor:
        """Row values `[n]` in the sweep's order."""
        return values if self.row_order is None else values[self.row_order]

    def restore_rows(self, values: Tensor) -> Tensor:
        """Row values of the sweep in the batch's order."""
        return _restore(values, self.row_order)

    def restore_columns(self, values: Tensor) -> Tensor:
        """Column values of the sweep in the batch's order."""
        return _restore(values, self.column_order)

    def visits(self) -> Iterator[Visit]:
        """The blocks of one pass."""
        for row in range(0, self.pairs.rows, self.row_block):
            rows = slice(row, min(row + self.row_block, self.pairs.rows))
            for column in range(row if self.symmetric else 0, self.pairs.columns, self.column_block):
                columns = slice(column, min(column + self.column_block, self.pairs.columns))
                yield Visit(rows, columns, self.symmetric and column > row)

    def tile(self, visit: Visit) -> Tile:
        """The block of a visit; its scores live in the shared buffer until the next one."""
        positives, negatives, grades = self.pairs.block(visit.rows, visit.columns)
        scores = self.score.scores(self.x[visit.rows], self.y[visit.columns], out=self._buffer)
        rows = self._indices(visit.rows, self.row_order)
        return Tile(scores, positives, negatives, rows, self._indices(visit.columns, self.column_order), grades)

    def _indices(self, part: slice, order: Tensor | None) -> Tensor:
        return torch.arange(part.start, part.stop, device=self.x.device) if order is None else order[part]

    def tiles(self) -> Iterator[tuple[Tile, int]]:
        for visit in self.visits():
            yield self.tile(visit), 2 if visit.mirrored else 1

    def rows(self, measure: Measure, context: Context | None = None, **merges: Merge) -> dict[str, Tensor]:
        context = context or {}
        dtype = self.x.dtype
        found = {
            name: torch.full((self.pairs.rows,), merge.neutral, dtype=dtype, device=self.x.device)
            for name, merge in merges.items()
        }

        def record(tile: Tile, rows: slice) -> None:
            for name, value in measure(tile, rows_of(context, rows)).items():
                found[name][rows] = merges[name].combine(found[name][rows], value)

        for visit in self.visits():
            tile = self.tile(visit)
            record(tile, visit.rows)
            if visit.mirrored:
                record(tile.transposed(), visit.columns)
        return found

    def totals(self, measure: Measure, context: Context | None = None, **merges: Merge) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for visit in self.visits():
            values = measure(self.tile(visit), rows_of(context or {}, visit.rows))
            for name, value in values.items():
                repeated = merges[name].repeat(value, 2 if visit.mirrored else 1)
                found[name] = merges[name].combine(found[name], repeated) if name in found else repeated
        return {name: self.all_reduce(value, merges[name]) for name, value in found.items()}

    def all_reduce(self, value: Tensor, merge: Merge = Merge.SUM) -> Tensor:
        return value if self.ranks == 1 else merge.all_reduce(value, self.group)

    def count_negatives(self) -> int:
        count = torch.zeros((), dtype=torch.int64, device=self.x.device)
        for visit in self.visits():
            _, negatives, _ = self.pairs.block(visit.rows, visit.columns)
            size = (visit.rows.stop - visit.rows.start) * (visit.columns.stop - visit.columns.start)
            inside = size * negatives if isinstance(negatives, bool) else negatives.sum()
            count += inside * (2 if visit.mirrored else 1)
        return int(self.all_reduce(count))

    def sample(self, values_of: Callable[[Tile], Tensor]) -> Tensor:
        # Pairs of one block resemble each other when rows are sorted by label: of each small random block only the
        # diagonal is taken, so that no two pairs share a row.
        if self.pairs.rows * self.pairs.columns < _WORTH_SAMPLING:
            return self.x.new_empty(0)
        generator = torch.Generator().manual_seed(0)
        values = []
        for _ in range(_SAMPLED_BLOCKS):
            rows = torch.randint(self.pairs.rows, (_SAMPLED_ROWS,), generator=generator).to(self.x.device)
            columns = torch.randint(self.pairs.columns, (_SAMPLED_ROWS,), generator=generator).to(self.x.device)
            positives, negatives, grades = self.pairs.block(rows, columns)
            scores = self.score.scores(self.x[rows], self.y[columns])
            values.append(values_of(Tile(scores, positives, negatives, rows, columns, grades)).diagonal())
        return torch.cat(values)

    def pull(self, weights_of: WeightsOf, needs_columns: bool) -> tuple[Tensor, Tensor | None]:
        """One pass that turns pair weights into gradients of the prepared rows and columns."""
        x_grad = torch.zeros_like(self.x)
        y_grad = x_grad if self.against_itself else torch.zeros_like(self.y) if needs_columns else None
        for visit in self.visits():
            tile = self.tile(visit)
            weights = weights_of(tile, visit)
            x, y = self.x[visit.rows], self.y[visit.columns]
            columns_grad = None if y_grad is None else y_grad[visit.columns]
            self.score.pull(weights, tile.scores, x, y, x_grad[visit.rows], columns_grad)
        x_grad = self.restore_rows(x_grad)
        if self.against_itself or y_grad is None:
            return x_grad, None
        return x_grad, self.restore_columns(y_grad)


def rows_of(context: Context, rows: slice) -> Context:
    """The part of a context that concerns some rows; what is 0-d concerns them all."""
    return {name: value if value.ndim == 0 else value[rows] for name, value in context.items()}


def _restore(values: Tensor, order: Tensor | None) -> Tensor:
    if order is None:
        return values
    restored = torch.empty_like(values)
    restored[order] = values
    return restored
