"""Class-wise operating characteristics: how often each class is wrongly accepted or rejected at a common threshold.

Everything is counted in one sweep over blocks of the score matrix. Items are sorted by class first, so that a block
meets few classes and only blocks near the diagonal hold positive pairs; items against themselves visit each unordered
pair of blocks once. Nothing of size `n x n` is ever held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core.checks import check_labels, check_values, choice, describe, positive_integer, refuse
from scorecraft.core.scores import Cosine, ScoreMap

Orientation = Literal["distance", "similarity"]
Seen = TypeVar("Seen")

BLOCK_ROWS = 1536
"""Rows and columns of a block: large enough that its overhead is small, small enough for the shared cache."""

VECTOR = 16
"""Numbers in the widest vector register."""
LINE_MARGIN = 1e-9
"""In steps between thresholds: far above the rounding of float64, far below the resolution of float32."""
FEW = 0.03
"""Share of selected scores below which selecting by branches is the faster way."""
MAX_UNCLEAR = 4
"""Edges compared one by one at most; beyond that, searching is faster."""


class Block(NamedTuple):
    """Scores between a run of rows and a run of columns, both sorted by class; valid while it is looked at."""

    scores: Float[Tensor, "r c"]
    """Scores of the negative pairs; -inf where the pair is positive, a self pair, or counted in another block."""
    rows: slice
    columns: slice
    row_span: tuple[int, int]
    """First and last class of the rows."""
    column_span: tuple[int, int]
    positive_scores: Float[Tensor, " p"]
    positive_rows: Int[Tensor, " p"]
    """Sorted positions of the rows of the positive pairs."""
    positive_columns: Int[Tensor, " p"]


class PairBlocks:
    """The pairs of items with themselves (each unordered pair once) or with a reference set, as blocks of scores.

    Args:
        embeddings: `[n, d]`.
        classes: class indices `[n]`, at least 0.
        reference: `[m, d]`, or `None` for the items themselves.
        reference_classes: class indices `[m]`.
        offset: position in `reference` of the first item, when the items are a slice of it: self pairs are left out.
        score: a score map with one channel.
        validate: read input values.
    """

    def __init__(
        self,
        embeddings: Float[Tensor, "n d"],
        classes: Int[Tensor, " n"],
        reference: Float[Tensor, "m d"] | None = None,
        reference_classes: Int[Tensor, " m"] | None = None,
        *,
        offset: int | None = None,
        score: ScoreMap,
        validate: bool = True,
    ) -> None:
        if score.channels != 1:
            refuse("score", "a score map with one channel", repr(score))
        self.score = score
        score.check("embeddings", embeddings, validate=validate)
        _check_single_labels("labels", classes, len(embeddings))
        self.own = reference is None
        self.row_order = classes.argsort(stable=True)
        self.row_classes = classes[self.row_order]
        with _full_precision(embeddings):
            self.x = score.prepare(embeddings.detach())[self.row_order]
        if reference is None or reference_classes is None:
            if reference is not None or reference_classes is not None:
                refuse("reference_labels", "labels exactly when there is a reference", describe(reference_classes))
            if offset is not None:
                refuse("offset", "None without a reference", offset)
            self.column_order, self.column_classes, self.y = self.row_order, self.row_classes, self.x
        else:
            score.check("reference", reference, validate=validate)
            if reference.shape[1:] != embeddings.shape[1:]:
                refuse("reference", f"rows of shape {tuple(embeddings.shape[1:])}", describe(reference))
            _check_single_labels("reference_labels", reference_classes, len(reference))
            if offset is not None:
                _check_offset(offset, classes, reference_classes, validate)
            self.column_order = reference_classes.argsort(stable=True)
            self.column_classes = reference_classes[self.column_order]
            with _full_precision(reference):
                self.y = score.prepare(reference.detach())[self.column_order].to(self.x.dtype)
        self.offset = offset
        self._row_runs = _runs(self.row_classes)
        self._column_runs = self._row_runs if self.own else _runs(self.column_classes)
        self._largest = max(rows.stop - rows.start for rows, _ in self._row_runs) * max(
            columns.stop - columns.start for columns, _ in self._column_runs
        )

    def pair_totals(self, classes: int) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
        """Numbers of positive and of negative pairs of each class, from the class sizes alone."""
        row_sizes = torch.bincount(self.row_classes, minlength=classes)
        if self.own:
            return row_sizes * (row_sizes - 1) // 2, row_sizes * (len(self.x) - row_sizes)
        column_sizes = torch.bincount(self.column_classes, minlength=classes)
        both = row_sizes * column_sizes
        negatives = row_sizes * len(self.y) + column_sizes * len(self.x) - 2 * both
        return both - row_sizes if self.offset is not None else both, negatives

    def sample(self, blocks: int, size: int) -> Float[Tensor, "b r c"]:
        """Scores of up to `blocks` squares of `size` random rows by `size` random columns, all rows and all columns
        different; -inf between items of one class. Empty when there are fewer than `size` rows or columns."""
        generator = torch.Generator().manual_seed(0)
        rows, columns = (
            torch.randperm(count, generator=generator)[: blocks * size].to(self.x.device)
            for count in (len(self.x), len(self.y))
        )
        squares = [self.x.new_empty(0, size, size)]
        for start in range(0, min(len(rows), len(columns)) - size + 1, size):
            i, j = rows[start : start + size], columns[start : start + size]
            with _full_precision(self.x):
                (scores,) = self.score.scores(self.x[i], self.y[j])
            squares.append(scores.masked_fill(self.row_classes[i, None] == self.column_classes[j], -math.inf)[None])
        return torch.cat(squares)

    def each(self, look: Callable[[Block], Seen]) -> Iterator[Seen]:
        """`look(block)` for every block, in order; on the CPU several at a time, each in one thread."""
        jobs = [
            (i, j)
            for i in range(len(self._row_runs))
            for j in range(i if self.own else 0, len(self._column_runs))
        ]  # fmt: skip
        threads = torch.get_num_threads()
        workers = min(threads, len(jobs)) if self.x.device.type == "cpu" else 1
        buffers: SimpleQueue[Tensor] = SimpleQueue()
        for _ in range(workers):
            buffers.put(self.x.new_empty(self._largest))

        def work(job: tuple[int, int]) -> Seen:
            buffer = buffers.get()
            try:
                return look(self._block(*job, buffer))
            finally:
                buffers.put(buffer)

        if workers == 1:
            yield from map(work, jobs)
            return
        # Blocks side by side keep all cores busy where operations on one block, some of them serial, would not.
        try:
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield from pool.map(work, jobs)
        finally:
            # The workers' setting is theirs alone, except that it became the default of threads yet to start.
            torch.set_num_threads(threads)

    def _block(self, i: int, j: int, buffer: Tensor) -> Block:
        """The block of a run of rows and a run of columns."""
        (rows, row_span), (columns, column_span) = self._row_runs[i], self._column_runs[j]
        where = (rows, columns, row_span, column_span)
        with _full_precision(self.x):
            (scores,) = self.score.scores(self.x[rows], self.y[columns], buffer)
        if row_span[1] < column_span[0] or column_span[1] < row_span[0]:
            nothing = self.row_order.new_empty(0)
            return Block(scores, *where, scores.new_empty(0), nothing, nothing)
        same = self.row_classes[rows, None] == self.column_classes[columns]
        counted = self._counted(rows, columns)
        positive_rows, positive_columns = (same if counted is None else same & counted).nonzero(as_tuple=True)
        positive_scores = scores[positive_rows, positive_columns]
        scores.masked_fill_(same if counted is None else same | ~counted, -math.inf)
        return Block(scores, *where, positive_scores, positive_rows + rows.start, positive_columns + columns.start)

    def _counted(self, rows: slice, columns: slice) -> Bool[Tensor, "r c"] | None:
        """The pairs of a block that count here: not a self pair (by index), not already met the other way round."""
        if self.own:
            if rows != columns:
                return None
            size = rows.stop - rows.start
            return torch.ones(size, size, dtype=torch.bool, device=self.x.device).triu_(diagonal=1)
        if self.offset is not None:
            return self.row_order[rows, None] + self.offset != self.column_order[columns]
        return None


class OperatingCounts:
    """Class-by-threshold counts of accepted positive and negative pairs: a state that adds up over processes.

    For class `i` and threshold `t` (a pair is accepted when its distance is at most `t`, or its similarity at least
    `t`): positive pairs have both items in `i`, negative pairs exactly one. `positives[i, g]` and `negatives[i, g]`
    count pairs by the interval between thresholds they fall in, from strict to lenient; the last column holds the pairs
    that no threshold accepts.

    `update` counts the pairs among the items it is given, or between items and a reference set. Counts over parts of
    the items against the whole reference (with `offset`, when the items are a slice of it) merge to the counts of all:
    each unordered pair is then met twice, which changes no rate.

    Args:
        classes: number of classes; labels are class indices in `[0, classes)`.
        thresholds: thresholds `[g]` from strict to lenient: increasing distances, or decreasing similarities.
        score: score map, cosine by default.
        orientation: "distance": thresholds on the distance `sqrt(2 - 2 cos)` of unit vectors (for another score map, on
            minus the score); "similarity": thresholds on the score.
        device: where the counts live.

    Raises:
        ValueError: the thresholds are not finite or not in order.

    Source: Zhang et al. 2023, arXiv 2307.04047, section 3.
    """

    def __init__(
        self,
        classes: int,
        thresholds: Sequence[float] | Float[Tensor, " g"],
        *,
        score: ScoreMap | None = None,
        orientation: Orientation = "distance",
        device: torch.device | str | None = None,
    ) -> None:
        self.classes = positive_integer("classes", classes)
        choice("orientation", orientation, ("distance", "similarity"))
        self.orientation: Orientation = orientation
        self.score = Cosine() if score is None else score
        grid = torch.as_tensor(thresholds, dtype=torch.float64, device="cpu").detach()
        if grid.ndim != 1 or len(grid) == 0 or not bool(torch.isfinite(grid).all()):
            refuse("thresholds", "a non-empty list of finite numbers", _shorten(grid))
        if not bool((self._as_distance(grid).diff() > 0).all()):
            order = "increasing distances" if orientation == "distance" else "decreasing similarities"
            refuse("thresholds", f"thresholds from strict to lenient ({order}), all different", _shorten(grid))
        self.thresholds: Float[Tensor, " g"] = grid.to(device)
        shape = (self.classes, len(grid) + 1)
        self.positives: Int[Tensor, "t bins"] = torch.zeros(shape, dtype=torch.int64, device=device)
        self.negatives: Int[Tensor, "t bins"] = torch.zeros(shape, dtype=torch.int64, device=device)
        self.hits: Int[Tensor, ""] = torch.zeros((), dtype=torch.int64, device=device)
        """Queries whose best positive no negative outranks (Recall@1)."""
        self.queries: Int[Tensor, ""] = torch.zeros((), dtype=torch.int64, device=device)
        """Queries that have a positive."""

    def update(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        reference: Float[Tensor, "m d"] | None = None,
        reference_labels: Int[Tensor, " m"] | None = None,
        *,
        offset: int | None = None,
        validate: bool = True,
    ) -> OperatingCounts:
        """Count the pairs among the items, or between items and reference; returns itself.

        Args:
            embeddings: `[n, d]`.
            labels: class indices `[n]`, in `[0, classes)`.
            reference: `[m, d]`; positives and negatives then come from it alone.
            reference_labels: class indices `[m]`.
            offset: position in `reference` of the first item, when the items are a slice of it: self pairs are left
                out, by index.
            validate: read input values.
        """
        for name, indices in (("labels", labels), ("reference_labels", reference_labels)):
            if indices is not None and validate:
                check_values(
                    name,
                    f"class indices in [0, {self.classes})",
                    lambda indices=indices: ((indices >= 0) & (indices < self.classes)).all(),
                    indices,
                )
        return self.add(
            PairBlocks(
                embeddings, labels, reference, reference_labels, offset=offset, score=self.score, validate=validate
            )
        )

    @torch.no_grad()
    def add(self, pairs: PairBlocks) -> OperatingCounts:
        """Count the pairs of these blocks; returns itself."""
        device, columns = pairs.x.device, len(self.thresholds) + 1
        edges = self._as_distance(self.thresholds).to(device)
        intervals, bound = _Intervals(edges, pairs.x.dtype), self._score_at(float(edges[-1]), pairs.x.dtype)
        positives = torch.zeros(self.classes, columns, dtype=torch.int64, device=device)
        negatives = torch.zeros_like(positives)
        best_negative = pairs.x.new_full((len(pairs.x),), -math.inf)
        best_positive = torch.full_like(best_negative, -math.inf)

        def look(block: Block) -> tuple[Block, Tensor, Tensor, Tensor | None, list[Tensor]]:
            """Of a block: interval of each positive pair, best negative of each row and column, negatives by class."""
            found = intervals(self.distance_(block.positive_scores.clone()))
            of_rows = block.scores.amax(dim=1)
            of_columns = block.scores.amax(dim=0) if pairs.own else None
            places = positions(block.scores, bound)
            accepted = intervals(self.distance_(block.scores.view(-1).index_select(0, places)))
            width = block.scores.shape[1]
            row_starts = torch.arange(0, block.scores.numel() + 1, width, device=device)
            rows = torch.repeat_interleave(torch.searchsorted(places, row_starts).diff())
            tables = []
            for classes, (first, last), items in (
                (pairs.row_classes[block.rows], block.row_span, rows),
                (pairs.column_classes[block.columns], block.column_span, places.sub_(rows * width)),
            ):
                # Sorted by class, a block spans few: the table stays in the cache.
                keys = ((classes - first) * columns).index_select(0, items).add_(accepted)
                tables.append(torch.bincount(keys, minlength=(last - first + 1) * columns).view(-1, columns))
            return block, found, of_rows, of_columns, tables

        for block, found, of_rows, of_columns, tables in pairs.each(look):
            for (first, last), table in zip((block.row_span, block.column_span), tables, strict=True):
                negatives[first : last + 1] += table
            best = best_negative[block.rows]
            torch.maximum(best, of_rows, out=best)
            if of_columns is not None:
                best = best_negative[block.columns]
                torch.maximum(best, of_columns, out=best)
            if len(found):
                keys = pairs.row_classes[block.positive_rows] * columns + found
                positives += torch.bincount(keys, minlength=positives.numel()).view_as(positives)
                best_positive.scatter_reduce_(0, block.positive_rows, block.positive_scores, "amax")
                if pairs.own:
                    best_positive.scatter_reduce_(0, block.positive_columns, block.positive_scores, "amax")
        # Pairs that no threshold accepts were not looked at; the class sizes tell how many there are.
        for counts, total in zip((positives, negatives), pairs.pair_totals(self.classes), strict=True):
            counts[:, -1] = total - counts[:, :-1].sum(dim=1)
        has_positive = best_positive > -math.inf
        self.positives += positives.to(self.positives.device)
        self.negatives += negatives.to(self.negatives.device)
        self.hits += ((best_negative <= best_positive) & has_positive).sum().to(self.hits.device)
        self.queries += has_positive.sum().to(self.queries.device)
        return self

    def merge(self, other: OperatingCounts) -> OperatingCounts:
        """Add the counts of another process or another part of the items; returns itself."""
        mine = (self.classes, self.score, self.orientation, self.thresholds.tolist())
        if mine != (other.classes, other.score, other.orientation, other.thresholds.tolist()):
            refuse("other", "counts of the same classes, thresholds, score and orientation", repr(other))
        for name in ("positives", "negatives", "hits", "queries"):
            getattr(self, name).add_(getattr(other, name).to(self.positives.device))
        return self

    def distance_(self, scores: Tensor) -> Tensor:
        """The distance that thresholds cut, from scores, in place; smaller is more similar."""
        if self.orientation == "distance" and isinstance(self.score, Cosine):
            two = torch.full((), 2.0, dtype=scores.dtype, device=scores.device)
            return torch.add(two, scores, alpha=-2, out=scores).clamp_(min=0).sqrt_()
        return scores.neg_()

    def _score_at(self, distance: float, dtype: torch.dtype) -> float:
        """A finite score that every pair within this distance has at least, up to rounding."""
        lowest = torch.finfo(dtype).min
        if self.orientation == "distance" and isinstance(self.score, Cosine):
            return max(1 - max(distance, 0) ** 2 / 2 - 8 * torch.finfo(dtype).eps, lowest)
        return max(-distance, lowest)

    @property
    def has_positives(self) -> Bool[Tensor, " t"]:
        """Classes with at least one positive pair: those that operating characteristics are defined for."""
        return self.positives.sum(dim=1) > 0

    def sensitivity(self) -> Float[Tensor, "t g"]:
        """`phi_i(t)`: accepted share of the positive pairs, 1 - false reject rate; NaN without positive pairs."""
        return _accepted_share(self.positives)

    def specificity(self) -> Float[Tensor, "t g"]:
        """`psi_i(t)`: refused share of the negative pairs, 1 - false accept rate; NaN without negative pairs."""
        return 1 - _accepted_share(self.negatives)

    def pooled_false_accept(self) -> Float[Tensor, " g"]:
        """Accepted share of all negative pairs; NaN without negative pairs."""
        return _accepted_share(self.negatives.sum(dim=0))  # a negative pair stands under both of its classes

    def utility(self) -> Float[Tensor, "t g"]:
        """`U_i(t) = 2 phi psi / (phi + psi)`, 0 if both are 0, in [0, 1]; NaN without positive or negative pairs."""
        return harmonic_mean(self.sensitivity(), self.specificity())

    def recall_at_1(self) -> float:
        """Share of the queries with a positive whose nearest other item is one; NaN without such queries."""
        queries = int(self.queries)
        return int(self.hits) / queries if queries else math.nan

    def _as_distance(self, thresholds: Tensor) -> Tensor:
        return thresholds if self.orientation == "distance" else -thresholds

    def __repr__(self) -> str:
        return (
            f"OperatingCounts(classes={self.classes}, thresholds={_shorten(self.thresholds)}, "
            f"score={self.score!r}, orientation={self.orientation!r})"
        )


@dataclass(frozen=True, slots=True, eq=False)
class FalseAcceptReject:
    """Error rates of each class at each threshold."""

    thresholds: Float[Tensor, " g"]
    classes: Int[Tensor, " t"]
    """The label of each row below, in increasing order."""
    false_accept: Float[Tensor, "t g"]
    """Accepted share of the pairs with exactly one item in the class; NaN where there is no such pair."""
    false_reject: Float[Tensor, "t g"]
    """Refused share of the pairs within the class; NaN where there is no such pair."""
    pooled_false_accept: Float[Tensor, " g"]
    """Accepted share of all negative pairs."""
    pooled_false_reject: Float[Tensor, " g"]
    """Refused share of all positive pairs."""
    positive_pairs: Int[Tensor, " t"]
    negative_pairs: Int[Tensor, " t"]

    @staticmethod
    def from_counts(counts: OperatingCounts, classes: Int[Tensor, " t"] | None = None) -> FalseAcceptReject:
        """Read the rates off counts; `classes` are the labels of the class indices (default: the indices)."""
        return FalseAcceptReject(
            thresholds=counts.thresholds,
            classes=torch.arange(counts.classes, device=counts.positives.device) if classes is None else classes,
            false_accept=1 - counts.specificity(),
            false_reject=1 - counts.sensitivity(),
            pooled_false_accept=counts.pooled_false_accept(),
            pooled_false_reject=1 - _accepted_share(counts.positives.sum(dim=0)),
            positive_pairs=counts.positives.sum(dim=1),
            negative_pairs=counts.negatives.sum(dim=1),
        )


def false_accept_reject(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    thresholds: Sequence[float] | Float[Tensor, " g"],
    *,
    reference: Float[Tensor, "m d"] | None = None,
    reference_labels: Int[Tensor, " m"] | None = None,
    score: ScoreMap | None = None,
    orientation: Orientation = "distance",
    validate: bool = True,
) -> FalseAcceptReject:
    """False accept and false reject rates of each class at common thresholds.

        FAR_i(t) = #{pairs with exactly one item in class i, accepted at t} / #{such pairs}
        FRR_i(t) = #{pairs with both items in class i, refused at t} / #{such pairs}

    A pair is accepted when its distance is at most `t` (or its similarity at least `t`).

    Args:
        embeddings: `[n, d]`.
        labels: integers `[n]`.
        thresholds: `[g]` from strict to lenient: increasing distances, or decreasing similarities.
        reference: `[m, d]`; the pairs are then those between embeddings and reference.
        reference_labels: integers `[m]`.
        score: score map, cosine by default.
        orientation: "distance": thresholds on `sqrt(2 - 2 cos)`, in [0, 2] (for another score map, on minus the score);
            "similarity": thresholds on the score.
        validate: read input values.

    Raises:
        ValueError: bad embeddings, labels or thresholds.

    Source: Zhang et al. 2023, arXiv 2307.04047, section 3.
    """
    classes, own, others = class_indices(labels, reference_labels)
    score = Cosine() if score is None else score
    pairs = PairBlocks(embeddings, own, reference, others, score=score, validate=validate)
    counts = OperatingCounts(len(classes), thresholds, score=score, orientation=orientation, device=embeddings.device)
    counts.add(pairs)
    return FalseAcceptReject.from_counts(counts, classes)


def class_indices(
    labels: Int[Tensor, " n"], reference_labels: Int[Tensor, " m"] | None
) -> tuple[Int[Tensor, " t"], Int[Tensor, " n"], Int[Tensor, " m"] | None]:
    """The different labels of both sides in increasing order, and every label as an index into them."""
    _check_single_labels("labels", labels, len(labels))
    if reference_labels is None:
        classes, indices = labels.unique(return_inverse=True)
        return classes, indices, None
    _check_single_labels("reference_labels", reference_labels, len(reference_labels))
    classes, indices = torch.cat([labels, reference_labels]).unique(return_inverse=True)
    return classes, indices[: len(labels)], indices[len(labels) :]


def harmonic_mean(a: Tensor, b: Tensor) -> Tensor:
    """`2 a b / (a + b)`, 0 where both are 0."""
    total = a + b
    return 2 * a * b / total.masked_fill(total == 0, 1)


class _Intervals:
    """Which of the intervals between edges `(e_{k-1}, e_k]` a value lies in: the number of edges below it.

    Evenly spaced edges are found by arithmetic, many times faster than by search. The arithmetic is monotone, so it
    puts everything on the right side of an edge if it does so with the edge and the next larger number. The few edges
    where these are too close to tell apart (an edge at 0, say) are compared one by one.

    Args:
        edges: increasing edges `[g]`, float64.
        dtype: the type of the values; comparisons with the edges are exact.
    """

    def __init__(self, edges: Float[Tensor, " g"], dtype: torch.dtype) -> None:
        self.edges = _round_down(edges, dtype)
        above = torch.nextafter(self.edges, torch.full_like(self.edges, math.inf))
        span = float(edges[-1] - edges[0])
        self.scale = (len(edges) - 1) / span if span > 0 else 1.0
        # Value x is `x * scale + offset` steps past the first edge; a little less, so that edges stay on their side.
        offset = -float(edges[0]) * self.scale - 2 * LINE_MARGIN
        steps = torch.arange(len(edges), dtype=torch.float64, device=edges.device)
        clear = (self.edges.double() * self.scale + offset <= steps - LINE_MARGIN) & (
            above.double() * self.scale + offset >= steps + LINE_MARGIN
        )
        self.unclear = (~clear).nonzero().flatten().tolist()
        self.even = len(self.unclear) <= MAX_UNCLEAR
        self.shift = torch.full((), 1 + offset, dtype=torch.float64, device=edges.device)

    def __call__(self, values: Tensor) -> Int[Tensor, "..."]:
        """Interval of every value, as int32."""
        if not self.even:
            return torch.bucketize(values, self.edges, out_int32=True)
        steps = torch.add(self.shift, values.double(), alpha=self.scale)
        found = steps.clamp_(0, len(self.edges)).int()  # towards zero
        corrections = [(values > self.edges[edge]).int() - (found > edge).int() for edge in self.unclear]
        for correction in corrections:
            found.add_(correction)
        return found


def positions(scores: Float[Tensor, "r c"], low: float, high: float = math.inf) -> Int[Tensor, " p"]:
    """Flat positions, in order, of the scores in `[low, high]`."""
    if scores.device.type != "cpu":
        return ((scores >= low) & (scores <= high)).view(-1).nonzero().view(-1)
    # On the CPU numpy compares and compacts several times faster. It has one way for few positions, by branches, and
    # one for many, without: positions that are always taken, appended here, make it use the latter where it is faster.
    array, size = scores.numpy().reshape(-1), scores.numel()
    taken = np.ones(size + size // 8, dtype=np.bool_)
    np.greater_equal(array, low, out=taken[:size])
    if high < math.inf:
        taken[:size] &= array <= high
    count = int(np.count_nonzero(taken[:size]))
    if count < FEW * size:
        taken = taken[:size]
    return torch.from_numpy(np.flatnonzero(taken)[:count])


def _accepted_share(counts: Int[Tensor, "... bins"]) -> Float[Tensor, "... g"]:
    """Share of the pairs accepted at each threshold, float64; NaN where there is no pair."""
    accepted = counts.cumsum(dim=-1)
    return accepted[..., :-1].double() / accepted[..., -1:].double()


def _runs(classes: Int[Tensor, " n"]) -> list[tuple[slice, tuple[int, int]]]:
    """Runs of at most `BLOCK_ROWS` sorted items, each with its first and last class.

    About even, but multiples of a vector's width: products of odd sizes take a third longer.
    """
    count = -(-len(classes) // BLOCK_ROWS)
    size = min(BLOCK_ROWS, -(-len(classes) // (count * VECTOR)) * VECTOR)
    bounds = [*range(0, len(classes), size), len(classes)]
    starts, stops = torch.tensor(bounds[:-1], device=classes.device), torch.tensor(bounds[1:], device=classes.device)
    ends = torch.stack([classes[starts], classes[stops - 1]]).tolist()  # one wait for the device, not one per block
    return [
        (slice(start, stop), (first, last))
        for start, stop, first, last in zip(bounds[:-1], bounds[1:], *ends, strict=True)
    ]


def _round_down(values: Float[Tensor, " g"], dtype: torch.dtype) -> Float[Tensor, " g"]:
    """The largest numbers of a type that are at most the given float64 ones, so that comparisons stay exact."""
    nearest = values.to(dtype)
    below = torch.nextafter(nearest, torch.full_like(nearest, -math.inf))
    return torch.where(nearest.double() > values, below, nearest)


def _check_single_labels(name: str, labels: Tensor, rows: int) -> None:
    check_labels(name, labels, rows)
    if labels.ndim != 1:
        refuse(name, "one integer label per embedding", describe(labels))


def _check_offset(offset: int, classes: Tensor, reference_classes: Tensor, validate: bool) -> None:
    if (
        isinstance(offset, bool)
        or not isinstance(offset, int)
        or not 0 <= offset <= len(reference_classes) - len(classes)
    ):
        refuse("offset", f"an integer in [0, {len(reference_classes) - len(classes)}]", repr(offset))
    if validate:
        same = reference_classes[offset : offset + len(classes)]
        check_values(
            "offset", "equal labels in embeddings and their slice of reference", lambda: (same == classes).all(), same
        )


def _full_precision(like: Tensor) -> torch.autocast:
    """Scores in full precision, also under a caller's autocast."""
    return torch.autocast(like.device.type, enabled=False)


def _shorten(grid: Tensor) -> str:
    values = [f"{value:g}" for value in grid.flatten().tolist()]
    return f"[{', '.join(values if len(values) <= 6 else [*values[:3], '...', *values[-2:]])}]"
