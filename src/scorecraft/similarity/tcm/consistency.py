"""OPIS, the Operating-Point-Inconsistency Score: how much classes differ at one common threshold.

Not to be confused with spreads of a score over thresholds that go by the same name elsewhere: the variance here is over
classes, and it is averaged over the thresholds one would deploy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.core.checks import choice, describe, positive_integer, probability, refuse
from scorecraft.core.scores import Cosine, ScoreMap
from scorecraft.similarity.tcm.operating import (
    OperatingCounts,
    Orientation,
    PairBlocks,
    class_indices,
    harmonic_mean,
    positions,
)

__all__ = ["OPISResult", "calibrated_range", "opis", "opis_from_counts"]

KEPT = 1 << 22
"""Scores kept at most while looking for a quantile; more are reduced to a histogram."""
CELL_BITS = 16
"""Logarithm of the number of its cells."""
SAMPLE_BLOCKS, SAMPLE_SIZE = 16, 256
"""The sample that says where to look first: squares of so many rows and columns."""
GUESS_ERRORS = 4.0
"""Half-width of the first window, in standard errors."""


@dataclass(frozen=True, slots=True, eq=False)
class OPISResult:
    """OPIS with what it must be read together with. Lower is better for `opis` and `epsilon_opis`; 0 = one curve."""

    opis: float
    """Variance over classes of the utility, averaged over the thresholds; in [0, 1/4]."""
    epsilon_opis: float
    """Mean squared gap between the mean utility of the best and of the worst classes; in [0, 1]."""
    threshold_min: float
    """The strictest threshold: where the pooled false accept rate is the lower end of the range."""
    threshold_max: float
    """The most lenient threshold."""
    mean_utility: float
    """Utility averaged over classes and thresholds; in [0, 1], higher is better."""
    recall_at_1: float
    """Share of the queries with a positive whose nearest other item is one."""
    classes_used: int
    """Classes with at least one positive pair."""
    classes_without_positives: int
    """Classes without a positive pair: left out, but their items serve as negatives."""
    thresholds: Float[Tensor, " g"]
    classes: Int[Tensor, " t"]
    """Labels of the classes used, in increasing order."""
    utility: Float[Tensor, "t g"]
    """`U_i` on the grid, for each class used."""
    per_class: Float[Tensor, " t"]
    """Utility of each class averaged over the thresholds: what epsilon-OPIS ranks by."""
    counts: OperatingCounts
    """The pair counts everything above is read off."""

    def floor(self, *, replicates: int = 100, seed: int = 0) -> float:
        """What sampling noise alone contributes to `opis`: `(1/T) sum_i Var(U_i)`, averaged over the thresholds.

        Few positive pairs make `phi_i` a coarse step function, so that `opis` is above 0 even when all classes share
        one curve. The variance is estimated by bootstrap over the pairs of each class. Pairs share items, so it is a
        lower estimate; compare models on the same pairs, whatever the floor.

        Args:
            replicates: bootstrap replicates, at least 2.
            seed: non-negative seed of the resampling.
        """
        if positive_integer("replicates", replicates) < 2:
            refuse("replicates", "an integer >= 2", replicates)
        random = np.random.default_rng(seed)
        used = self.counts.has_positives
        positives, negatives = (counts[used].cpu().numpy() for counts in (self.counts.positives, self.counts.negatives))
        curves = np.stack(
            [
                _utility(_resampled(positives, random), _resampled(negatives, random))
                for _ in range(positive_integer("replicates", replicates))
            ]
        )
        noise = torch.from_numpy(curves.var(axis=0, ddof=1).mean(axis=0))
        return float(_mean_over(noise, self.thresholds.cpu()))


def opis(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    reference: Float[Tensor, "m d"] | None = None,
    reference_labels: Int[Tensor, " m"] | None = None,
    far_range: tuple[float, float] = (1e-2, 1e-1),
    thresholds: int | Sequence[float] | Float[Tensor, " g"] = 101,
    fraction: float = 0.1,
    score: ScoreMap | None = None,
    orientation: Orientation = "distance",
    validate: bool = True,
) -> OPISResult:
    """OPIS and epsilon-OPIS of embeddings: do all classes work equally well at one common threshold?

    With `phi_i` the accepted share of class `i`'s positive pairs (both items in `i`) and `psi_i` the refused share of
    its negative pairs (exactly one item in `i`) at threshold `t`, over `T` classes:

        U_i(t)   = 2 phi_i psi_i / (phi_i + psi_i)                        utility
        OPIS     = (1/T) sum_i mean_t (U_i(t) - mean_i U_i(t))^2
        eps-OPIS = mean_t (mean U of the top g classes - mean U of the bottom g classes)^2,   g = ceil(fraction T)

    where `mean_t` is the integral over the calibration range (trapezoid rule) divided by its length. The range runs
    between the thresholds at which the pooled false accept rate, over all negative pairs, equals `far_range`: exactly
    the k-th smallest negative distance, `k = floor(FAR * pairs)`. Classes are ranked by their utility averaged over the
    range, ties in class order. Classes without a positive pair are left out and counted; their items are negatives.

    One sweep over the scores finds the range and another counts; memory is that of a block plus `T x g` counts.

    Args:
        embeddings: `[n, d]`; scores are computed in float32, or in float64 when they are float64.
        labels: integers `[n]`.
        reference: `[m, d]`; the pairs are then those between embeddings and reference.
        reference_labels: integers `[m]`.
        far_range: the pooled false accept rates at both ends of the range, `0 < lower < upper <= 1`.
        thresholds: number of evenly spaced thresholds in the range; or the thresholds themselves, from strict to
            lenient, which leaves `far_range` unused.
        fraction: share of the classes in each of the two groups of epsilon-OPIS, in (0, 1].
        score: score map, cosine by default.
        orientation: "distance": thresholds on `sqrt(2 - 2 cos)`, in [0, 2] (for another score map, on minus the score);
            "similarity": thresholds on the score. The two give different numbers, as the integral is over the
            threshold.
        validate: read input values.

    Raises:
        ValueError: bad embeddings, labels or arguments; fewer negative pairs than `1 / far_range[0]`; a range of length
            zero; no class with two items.

    Source: Zhang et al. 2023, arXiv 2307.04047, section 3. The paper does not state the grid and the ranking's ties.
    """
    _check_fraction(fraction)
    choice("orientation", orientation, ("distance", "similarity"))
    score = Cosine() if score is None else score
    if isinstance(thresholds, int):
        _check_far_range(far_range)
        if positive_integer("thresholds", thresholds) < 2:
            refuse("thresholds", "at least 2 thresholds", thresholds)
    classes, own, others = class_indices(labels, reference_labels)
    pairs = PairBlocks(embeddings, own, reference, others, score=score, validate=validate)
    if not bool((pairs.pair_totals(len(classes))[0] > 0).any()):
        refuse("labels", "at least one class with a positive pair", f"none in {describe(labels)}")
    if isinstance(thresholds, int):
        first, last = _calibrated(pairs, len(classes), far_range, orientation)
        thresholds = torch.linspace(first, last, thresholds, dtype=torch.float64)
    counts = OperatingCounts(len(classes), thresholds, score=score, orientation=orientation, device=embeddings.device)
    return opis_from_counts(counts.add(pairs), fraction=fraction, classes=classes)


def opis_from_counts(
    counts: OperatingCounts, *, fraction: float = 0.1, classes: Int[Tensor, " t"] | None = None
) -> OPISResult:
    """OPIS read off counts at fixed thresholds, which may be the sum of several processes' counts.

    Args:
        counts: at least two thresholds, at least one class with a positive pair.
        fraction: share of the classes in each of the two groups of epsilon-OPIS, in (0, 1].
        classes: labels of the class indices (default: the indices). Class indices that never occurred are not counted
            among the classes without positives.
    """
    _check_fraction(fraction)
    if len(counts.thresholds) < 2:
        refuse("thresholds", "at least 2 thresholds", len(counts.thresholds))
    used = counts.has_positives
    total = int(used.sum())
    if total == 0:
        refuse("labels", "at least one class with a positive pair", "none")
    seen = used | (counts.negatives.sum(dim=1) > 0)
    if classes is None:
        classes = torch.arange(counts.classes, device=used.device)
    # Without any negative pair (one class only) nothing can be wrongly accepted.
    utility = harmonic_mean(counts.sensitivity(), counts.specificity().nan_to_num(nan=1.0))[used]
    mean_curve = utility.mean(dim=0)
    per_class = _mean_over(utility, counts.thresholds)
    size = max(1, math.ceil(fraction * total - 1e-9))
    ranked = per_class.argsort(stable=True)
    gap = utility[ranked[-size:]].mean(dim=0) - utility[ranked[:size]].mean(dim=0)
    return OPISResult(
        opis=float(_mean_over((utility - mean_curve).square().mean(dim=0), counts.thresholds)),
        epsilon_opis=float(_mean_over(gap.square(), counts.thresholds)),
        threshold_min=float(counts.thresholds[0]),
        threshold_max=float(counts.thresholds[-1]),
        mean_utility=float(per_class.mean()),
        recall_at_1=counts.recall_at_1(),
        classes_used=total,
        classes_without_positives=int(seen.sum()) - total,
        thresholds=counts.thresholds,
        classes=classes[used],
        utility=utility,
        per_class=per_class,
        counts=counts,
    )


def calibrated_range(
    embeddings: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    reference: Float[Tensor, "m d"] | None = None,
    reference_labels: Int[Tensor, " m"] | None = None,
    far_range: tuple[float, float] = (1e-2, 1e-1),
    score: ScoreMap | None = None,
    orientation: Orientation = "distance",
    validate: bool = True,
) -> tuple[float, float]:
    """The thresholds at which the pooled false accept rate equals the two ends of `far_range`, strict one first.

    Arguments and errors as for `opis`. A range found once (on validation data, say) can be given to `OperatingCounts`,
    whose state adds up over processes.
    """
    _check_far_range(far_range)
    choice("orientation", orientation, ("distance", "similarity"))
    classes, own, others = class_indices(labels, reference_labels)
    score = Cosine() if score is None else score
    pairs = PairBlocks(embeddings, own, reference, others, score=score, validate=validate)
    return _calibrated(pairs, len(classes), far_range, orientation)


def _calibrated(
    pairs: PairBlocks, classes: int, far_range: tuple[float, float], orientation: Orientation
) -> tuple[float, float]:
    total = int(pairs.pair_totals(classes)[1].sum()) // 2  # each negative pair belongs to two classes
    ranks = [math.floor(rate * total + 1e-9) for rate in far_range]
    if ranks[0] < 1:
        refuse(
            "far_range", f"at least {math.ceil(1 / far_range[0])} negative pairs for a rate of {far_range[0]:g}", total
        )
    scores = torch.stack(_kth_largest(pairs, ranks, total))
    if orientation == "distance":
        like = OperatingCounts(1, [0.0], score=pairs.score, orientation=orientation)
        scores = like.distance_(scores)
    first, last = scores.tolist()
    if first == last:
        refuse("far_range", "rates reached at two different thresholds", f"{orientation} {first:g} for both")
    return first, last


@torch.no_grad()
def _kth_largest(pairs: PairBlocks, ranks: Sequence[int], total: int) -> list[Float[Tensor, ""]]:
    """The k-th largest scores among the `total` negative pairs, exactly, with bounded memory.

    Each sweep counts the pairs above a window of scores and keeps those within. Should the window hold too many, it is
    narrowed by a histogram and swept again. The first window comes from a sample, so that one sweep is enough as a
    rule; a window that misses costs another sweep, never the result.
    """
    searches = [_Search(rank, pairs.x.dtype) for rank in ranks]
    if total > KEPT:
        sample = pairs.sample(SAMPLE_BLOCKS, SAMPLE_SIZE).cpu().numpy()
        in_order = np.sort(sample, axis=None)
        in_order = in_order[np.searchsorted(in_order, -np.inf, side="right") :]
        for search in searches:
            if len(in_order):
                search.guess(sample, in_order, search.rank / total)
    while open_searches := [search for search in searches if search.found is None]:
        for seen in pairs.each(lambda block, looking=open_searches: [search.look(block.scores) for search in looking]):
            for search, (above, inside) in zip(open_searches, seen, strict=True):
                search.keep(above, inside)
        for search in open_searches:
            search.narrow()
    return [search.found for search in searches if search.found is not None]


class _Search:
    """The search for the `rank`-th largest of many scores, which come in blocks and in repeated sweeps.

    The window is kept as integers in the order of the floating-point numbers, so that narrowing ends at one number.
    """

    def __init__(self, rank: int, dtype: torch.dtype) -> None:
        self.rank = rank
        self.dtype = dtype
        self.smallest = self._position(torch.finfo(dtype).min)
        self.largest = -self.smallest
        self.found: Tensor | None = None
        self._open(self.smallest, self.largest)

    def _open(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.bounds = tuple(float(_at_position(position, self.dtype)) for position in (low, high))
        self.shift = max(0, (high - low).bit_length() - CELL_BITS)
        self.above: int | Tensor = 0
        self.kept: list[Tensor] = []
        self.kept_count = 0
        self.histogram: Tensor | None = None

    def guess(self, sample: Float[np.ndarray, "b r c"], in_order: Float[np.ndarray, " s"], share: float) -> None:
        """Start with a window that most likely holds the score exceeded by `share` of the pairs."""

        def quantile(exceeded: float) -> float:
            return float(in_order[min(max(int(len(in_order) * (1 - exceeded)), 0), len(in_order) - 1)])

        # Pairs share items: the error of the share is that of a mean over rows plus that of a mean over columns.
        exceeds = sample > quantile(share)
        by_row, by_column = exceeds.mean(axis=2).ravel(), exceeds.mean(axis=1).ravel()
        error = GUESS_ERRORS * math.sqrt(by_row.var() / len(by_row) + by_column.var() / len(by_column))
        low = self._position(quantile(share + error)) if share + error < 1 else self.smallest
        high = self._position(quantile(share - error)) if share - error > 0 else self.largest
        self._open(low, high)

    def _position(self, value: float) -> int:
        return int(_positions(torch.tensor([value], dtype=self.dtype)))

    def look(self, scores: Float[Tensor, "r c"]) -> tuple[int | Tensor, Float[Tensor, " p"]]:
        """How many scores are above the window, and those within."""
        low, high = self.bounds
        on_cpu = scores.device.type == "cpu"  # where numpy compares several times faster
        above = int(np.count_nonzero(scores.numpy() > high)) if on_cpu else (scores > high).sum()
        return above, scores.view(-1).index_select(0, positions(scores, low, high))

    def keep(self, above: int | Tensor, inside: Float[Tensor, " p"]) -> None:
        """Take note of what a look at a block found."""
        self.above = self.above + above
        self.kept.append(inside)
        self.kept_count += len(inside)
        if self.kept_count > KEPT or self.histogram is not None:
            self._fold()

    def _fold(self) -> None:
        """Replace the kept scores by their histogram over cells of `2^shift` neighbouring numbers."""
        first = self.low >> self.shift
        cells = (_positions(torch.cat(self.kept)) >> self.shift) - first
        counts = torch.bincount(cells, minlength=(self.high >> self.shift) - first + 1)
        self.histogram = counts if self.histogram is None else self.histogram + counts
        self.kept, self.kept_count = [], 0

    def narrow(self) -> None:
        """After a sweep: the answer, or the next window."""
        rank = self.rank - int(self.above)  # counted from the top of the window
        kept = torch.cat(self.kept) if self.histogram is None else None
        inside = len(kept) if kept is not None else int(self.histogram.sum()) if self.histogram is not None else 0
        if rank < 1:
            self._open(self.high + 1, self.largest)
        elif rank > inside:
            self._open(self.smallest, self.low - 1)
        elif kept is not None:
            self.found = kept.kthvalue(inside - rank + 1).values
        elif self.histogram is not None:
            below = self.histogram.cumsum(0)  # the answer's cell: the first that reaches its rank from the bottom
            cell = int((below < inside - rank + 1).sum()) + (self.low >> self.shift)
            low, high = max(self.low, cell << self.shift), min(self.high, ((cell + 1) << self.shift) - 1)
            if low == high:
                self.found = _at_position(low, self.dtype).to(self.histogram.device)
            else:
                self._open(low, high)


def _positions(values: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Integers in the order of floating-point numbers, one apart for neighbours; both zeros at 0."""
    integer = torch.int64 if values.dtype == torch.float64 else torch.int32
    bits = values.view(integer).long()
    return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)


def _at_position(position: int, dtype: torch.dtype) -> Float[Tensor, ""]:
    """The floating-point number at a position."""
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    bits = position if position >= 0 else torch.iinfo(integer).min - position
    return torch.tensor([bits], dtype=integer).view(dtype)[0]


def _mean_over(curves: Float[Tensor, "... g"], thresholds: Float[Tensor, " g"]) -> Float[Tensor, "..."]:
    """Average of curves over the range of thresholds, by the trapezoid rule."""
    return torch.trapezoid(curves, thresholds) / (thresholds[-1] - thresholds[0])


def _resampled(counts: Int[np.ndarray, "t bins"], random: np.random.Generator) -> Float[np.ndarray, "t g"]:
    """Accepted share at each threshold when each class draws its pairs anew, with replacement; 0 without pairs."""
    totals = counts.sum(axis=1, keepdims=True)
    drawn = random.multinomial(totals[:, 0], counts / np.maximum(totals, 1))
    return drawn.cumsum(axis=1)[:, :-1] / np.maximum(totals, 1)


def _utility(accepted_positives: np.ndarray, accepted_negatives: np.ndarray) -> np.ndarray:
    return harmonic_mean(torch.from_numpy(accepted_positives), torch.from_numpy(1 - accepted_negatives)).numpy()


def _check_fraction(fraction: float) -> None:
    if probability("fraction", fraction) == 0:
        refuse("fraction", "a share of the classes in (0, 1]", fraction)


def _check_far_range(far_range: tuple[float, float]) -> None:
    if not isinstance(far_range, (tuple, list)) or len(far_range) != 2:
        refuse("far_range", "two false accept rates (lower, upper)", repr(far_range))
    lower, upper = (probability("far_range", rate) for rate in far_range)
    if not 0 < lower < upper:
        refuse("far_range", "two false accept rates with 0 < lower < upper <= 1", repr(far_range))
