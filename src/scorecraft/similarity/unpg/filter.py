"""The box-and-whisker filter of UNPG: keep the similarities that are no outliers.

Of `K` values in ascending order `v_0 ... v_{K-1}` the quartiles are the plain order statistics `Q1 = v[floor(K / 4)]`
and `Q3 = v[floor(3 K / 4)]`, without interpolation, and with whisker `r` the filter keeps

    { v : Q1 - r (Q3 - Q1) <= v <= Q3 + r (Q3 - Q1) }

No sorted copy is made: quartiles are found by selection. For values that exist only block by block (the Gram matrix of
a large batch) `order_statistics` selects exactly over a stream that is read once or twice, in memory that does not grow
with the number of values.

In every function a value of `+inf` marks an absent entry, so that a matrix of similarities can be passed with the pairs
that do not count blanked out instead of being compressed. NaN and `-inf` do not belong here. Nothing in this module is
differentiable: quartiles select, they carry no gradient.

Source: UNPG (arXiv 2203.11593), section 3; the floor-index quartiles are the rule of the official code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scorecraft.core.checks import describe, non_negative, refuse

TileStream: TypeAlias = Callable[[], Iterable[tuple[Tensor, int]]]
"""Starts one pass over all values: blocks of any shape, each with how many equal blocks it stands for. Every pass must
yield bitwise the same values."""
SumOverRanks: TypeAlias = Callable[[Tensor], Tensor]
"""An int64 tensor of this process to its sum over all processes (an all-reduce)."""

BUDGET = 1 << 22
"""Candidates a selection may hold at a time (16 MB in float32)."""

_CHUNK = 1 << 17  # on the CPU: chunk, masks and bin numbers stay in the second-level cache
_CHUNK_ELSEWHERE = 1 << 24  # the largest chunk whose float32 mask still sums exactly
_BIN_BITS = 16
_FEW = 1 << 15  # below, `kthvalue` is quicker than counting bins


def quartile_bounds(values: Float[Tensor, "..."], whisker: float) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The smallest and the largest value that the filter keeps, `Q1 - r IQR` and `Q3 + r IQR`.

    Args:
        values: `K` values of any shape, entries of `+inf` being absent. Half precision is computed in float32.
        whisker: `r >= 0`, in interquartile ranges.

    Returns:
        Two 0-d tensors `(low, high)` without gradient; `(+inf, -inf)`, which keeps nothing, when there are no values.

    Raises:
        ValueError: `whisker` is negative or not finite, or `values` is not floating-point.
    """
    non_negative("whisker", whisker)
    if not values.is_floating_point():
        refuse("values", "a floating-point tensor", describe(values))
    low, high = _quartile_bounds(_widened(values.detach()).flatten(), float(whisker)).unbind()
    return low, high


def keep(values: Float[Tensor, "..."], whisker: float) -> Bool[Tensor, "..."]:
    """Which values the filter keeps: no tolerance, so that with an IQR of 0 only values equal to the quartile survive.

    Args and errors are those of `quartile_bounds`; absent entries (`+inf`) are never kept.
    """
    low, high = quartile_bounds(values, whisker)
    return (values >= low) & (values <= high)


def tiled_quartile_bounds(
    tiles: TileStream,
    whisker: float,
    *,
    count: int,
    sample: Float[Tensor, " m"] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    reduce: SumOverRanks | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`quartile_bounds` of values that are only ever seen block by block; the same numbers, bit by bit.

    Counting every unordered pair of a batch twice, as `(i, j)` and as `(j, i)`, leaves both quartiles where they are.

    Args:
        tiles: starts a pass over the values, see `order_statistics`.
        whisker: `r >= 0`.
        count: how many values there are in one pass, multiplicities and all processes included.
        sample: values drawn at random from the stream. They only say where to look first and cannot change the result:
            with a good sample (some 10^5 values) one pass is enough, without one there are two.
        dtype: of the values, float32 or float64.
        device: where the blocks live.
        reduce: sums a tensor over processes, each of which streams its own blocks.

    Returns:
        Two 0-d tensors `(low, high)`; `(+inf, -inf)` when `count` is 0.
    """
    non_negative("whisker", whisker)
    if count == 0:
        low, high = torch.tensor([math.inf, -math.inf], dtype=dtype, device=device).unbind()
        return low, high
    ranks = (count // 4, 3 * count // 4)
    guesses = None
    if sample is not None and sample.numel() > 0:
        guesses = [_bracket(sample.detach().flatten(), rank / count) for rank in ranks]
    quartiles = order_statistics(tiles, ranks, guesses=guesses, dtype=dtype, device=device, reduce=reduce)
    low, high = _bounds(quartiles, float(whisker)).unbind()
    return low, high


def order_statistics(
    tiles: TileStream,
    ranks: Sequence[int],
    *,
    guesses: Sequence[tuple[float, float]] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    reduce: SumOverRanks | None = None,
    budget: int = BUDGET,
) -> Float[Tensor, " r"]:
    """The values at the given ranks of the ascending order of a stream, exactly, without sorting or storing it.

    A radix selection on the bit patterns. A pass over the stream counts the values in the 2^16 bins that share their
    upper bits, which names the bin of every rank; as soon as a bin holds at most `budget` values, the next pass picks
    these out, and the rest of the search runs over them. Every pass counts anew what lies below its interval, so an
    interval that was guessed is either confirmed or given up. At most four further passes end any search, however many
    values are equal.

    Args:
        tiles: called for each pass; yields `(values, multiplicity)`: a tensor of any shape whose entries (other than
            `+inf`, which is an absent one) each count `multiplicity >= 1` times.
        ranks: zero-based positions in the ascending order, multiplicities and all processes included.
        guesses: for each rank an interval `(low, high)` where its value is looked for first.
        dtype: float32 or float64; float32 also serves half precision.
        device: where the blocks live (needed where a process has none).
        reduce: sums an int64 tensor over processes; all take the same number of passes and find the same values.
        budget: the largest number of candidates to hold.

    Returns:
        `[len(ranks)]`, equal to the values at these positions of the sorted stream.

    Raises:
        ValueError: a rank is negative or not below the number of values; NaN met where all values were counted.
    """
    keys = _Keys(dtype)
    everything = _Interval(-keys.magnitude, keys.magnitude)
    searches = [_Search(rank, everything) for rank in ranks]
    for search in searches:
        if search.rank < 0:
            refuse("ranks", "positions of at least 0", search.rank)
    if guesses is not None:
        for search, interval in zip(searches, _agreed(guesses, keys, device, reduce), strict=True):
            search.interval, search.collects = interval, True
    while streaming := [search for search in searches if search.stored is None and not search.done]:
        # Ranks in the same interval share their survey, and all share the pass.
        surveys = {search.plan: _Survey(search.plan, keys, device, budget) for search in streaming}
        for chunk, multiplicity in _chunks(tiles(), dtype):
            for survey in surveys.values():
                survey.add(chunk, multiplicity)
        findings = {plan: survey.finding(reduce) for plan, survey in surveys.items()}
        for search in streaming:
            search.learn(findings[search.plan], everything, budget)
    for search in searches:
        while not search.done:
            survey = _Survey(search.plan, keys, device, budget)
            for chunk, multiplicity in _chunks(search.stored or [], dtype):
                survey.add(chunk, multiplicity)
            search.learn(survey.finding(reduce), everything, budget)
    return torch.tensor([keys.value(search.interval.low) for search in searches], dtype=dtype, device=device)


class _Interval(NamedTuple):
    """A closed interval of keys, see `_Keys`."""

    low: int
    high: int

    @property
    def shift(self) -> int:
        """How many lower bits a bin of this interval spans."""
        return max(0, (self.high - self.low).bit_length() - _BIN_BITS)

    @property
    def bins(self) -> int:
        return (self.high >> self.shift) - (self.low >> self.shift) + 1

    def bin(self, index: int) -> _Interval:
        start = (index + (self.low >> self.shift)) << self.shift
        return _Interval(max(self.low, start), min(self.high, start + (1 << self.shift) - 1))


class _Plan(NamedTuple):
    """What one pass does with an interval: collect its values, or count them by bins."""

    interval: _Interval
    collects: bool


class _Finding(NamedTuple):
    """What a pass found of an interval, summed over processes."""

    below: int
    inside: int
    counts: Tensor | None
    stored: list[tuple[Tensor, int]] | None


class _Keys:
    """Floating-point numbers as integers of the same order; both zeros are 0."""

    def __init__(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.float64):
            refuse("dtype", "torch.float32 or torch.float64", dtype)
        self.dtype = dtype
        self.integer = torch.int32 if dtype == torch.float32 else torch.int64
        self.bits = torch.iinfo(self.integer).bits
        self.magnitude = (1 << (self.bits - 1)) - 1
        self.infinity = self.key(math.inf)

    def of(self, values: Tensor) -> Tensor:
        """Sign and magnitude to two's complement."""
        pattern = values.view(self.integer)
        sign = pattern >> (self.bits - 1)
        return (pattern & self.magnitude).bitwise_xor_(sign).sub_(sign)

    def key(self, value: float) -> int:
        return int(self.of(torch.tensor(value, dtype=self.dtype)))

    def value(self, key: int) -> float:
        magnitude = torch.tensor(abs(key), dtype=self.integer).view(self.dtype)
        return math.copysign(float(magnitude), key)


class _Survey:
    """One pass over one interval: how many values lie below it, and its values or their counts by bins."""

    def __init__(self, plan: _Plan, keys: _Keys, device: torch.device | str, budget: int) -> None:
        self.interval, self.keys, self.budget = plan.interval, keys, budget
        self.low, self.high = keys.value(plan.interval.low), keys.value(plan.interval.high)
        # The outermost keys are those of NaN: such an interval holds everything and is not compared with.
        self.unbounded = math.isnan(self.low) and math.isnan(self.high)
        self.below = torch.zeros((), dtype=torch.int64, device=device)
        self.inside = 0
        self.stored: list[tuple[Tensor, int]] | None = [] if plan.collects else None
        self.held = 0
        self.counts = None
        if not plan.collects:
            self.counts = torch.zeros(plan.interval.bins, dtype=torch.int64, device=device)

    def add(self, chunk: Tensor, multiplicity: int) -> None:
        candidates = chunk
        if not self.unbounded:
            below = torch.lt(chunk, self.low, out=torch.empty_like(chunk))
            self.below += below.sum().long() * multiplicity
            candidates = _picked(chunk, torch.le(chunk, self.high, out=torch.empty_like(chunk)).sub_(below))
        if self.counts is not None:
            shift = self.interval.shift
            bins = (self.keys.of(candidates) >> shift).sub_(self.interval.low >> shift)
            self.counts.add_(torch.bincount(bins, minlength=len(self.counts)), alpha=multiplicity)
            return
        self.inside += len(candidates) * multiplicity
        self.held += len(candidates)
        if self.stored is not None:
            self.stored.append((candidates, multiplicity))
            if self.held > self.budget:
                self.stored = None

    def finding(self, reduce: SumOverRanks | None) -> _Finding:
        """The result, the same on all processes but for the values stored."""
        device = self.below.device
        if self.counts is not None:
            tally = torch.cat([self.below[None], self.counts])
            tally = tally if reduce is None else reduce(tally)
            below, counts = int(tally[0]), tally[1:].cpu()
            if self.unbounded:
                self._drop_absent(counts)
            return _Finding(below, int(counts.sum()), counts, None)
        overflowed = self.stored is None
        tally = torch.cat([self.below[None], torch.tensor([self.inside, overflowed], device=device)])
        tally = tally if reduce is None else reduce(tally)
        below, inside, overflows = tally.tolist()
        return _Finding(below, inside, None, None if overflows or self.stored is None else _joined(self.stored))

    def _drop_absent(self, counts: Tensor) -> None:
        """Forget the bin of +inf; beyond the infinities on both sides lie the bins of NaN."""
        shift = self.interval.shift
        least, infinity = (-self.keys.infinity >> shift), (self.keys.infinity >> shift)
        first = self.interval.low >> shift
        numbers = counts[least - first : infinity - first]
        strange = int(counts.sum() - numbers.sum() - counts[infinity - first])
        if strange:
            refuse("tiles", "values that are numbers", f"{strange} NaN")
        counts[infinity - first :] = 0


class _Search:
    """The search for the value of one rank."""

    def __init__(self, rank: int, interval: _Interval) -> None:
        self.rank = rank
        self.interval = interval
        self.collects = False
        self.stored: list[tuple[Tensor, int]] | None = None
        """All values of the interval, once they have been collected; from then on `rank` is the one among them."""
        self.done = False
        """Whether the interval is a single key, the answer."""

    @property
    def plan(self) -> _Plan:
        return _Plan(self.interval, self.collects)

    def learn(self, finding: _Finding, everything: _Interval, budget: int) -> None:
        """Draw the conclusion of a pass: a smaller interval, its values, or the answer."""
        place = self.rank - finding.below
        if not 0 <= place < finding.inside:
            if self.interval == everything:
                refuse("ranks", f"positions below the number of values, {finding.inside}", self.rank)
            self.interval, self.collects = everything, False
        elif finding.counts is not None:
            cumulated = finding.counts.cumsum(0)
            index = int(torch.searchsorted(cumulated, place, right=True))
            self.interval = self.interval.bin(index)
            self.collects = self.stored is None and int(finding.counts[index]) <= budget
            self.done = self.interval.low == self.interval.high
        else:
            self.collects = False
            if finding.stored is not None:
                self.stored, self.rank = finding.stored, place


def _chunks(tiles: Iterable[tuple[Tensor, int]], dtype: torch.dtype) -> Iterator[tuple[Tensor, int]]:
    """The values of a stream in pieces of a size that is quick to work on."""
    for values, multiplicity in tiles:
        if torch.promote_types(values.dtype, dtype) != dtype:
            refuse("tiles", f"values of dtype {dtype} or narrower", describe(values))
        flat = values.detach().reshape(-1).to(dtype)
        for chunk in flat.split(_CHUNK if flat.device.type == "cpu" else _CHUNK_ELSEWHERE):
            yield chunk, multiplicity


def _picked(chunk: Float[Tensor, " n"], marks: Float[Tensor, " n"]) -> Float[Tensor, " k"]:
    """The values marked 1 (not 0). Finding few of them is quicker when whole groups of eight are passed over first."""
    mask = marks.bool()
    if len(mask) % 8:
        return chunk[mask]
    groups = mask.view(torch.int64).nonzero().squeeze(1)
    return chunk.view(-1, 8)[groups][mask.view(-1, 8)[groups]]


def _joined(pieces: list[tuple[Tensor, int]]) -> list[tuple[Tensor, int]]:
    """The same values in one piece for each multiplicity."""
    multiplicities = sorted({multiplicity for _, multiplicity in pieces})
    return [(torch.cat([values for values, times in pieces if times == each]), each) for each in multiplicities]


def _agreed(
    guesses: Sequence[tuple[float, float]], keys: _Keys, device: torch.device | str, reduce: SumOverRanks | None
) -> list[_Interval]:
    """The guessed intervals as keys, without +inf; where processes guess differently, the mean of their guesses."""
    edges = torch.tensor([[keys.key(low), keys.key(high)] for low, high in guesses], dtype=torch.int64, device=device)
    if reduce is not None:
        edges = reduce(edges // reduce(torch.ones_like(edges)))
    finite = [(low, min(high, keys.infinity - 1)) for low, high in edges.tolist()]
    return [_Interval(min(low, high), high) for low, high in finite]


def _bracket(sample: Float[Tensor, " m"], quantile: float) -> tuple[float, float]:
    """Where a quantile of the population lies, judging by a sample: four standard deviations of its rank each way."""
    size = sample.numel()
    reach = 4 * math.sqrt(size * quantile * (1 - quantile)) + 2
    first, last = math.floor(quantile * size - reach), math.ceil(quantile * size + reach)
    low = -math.inf if first < 0 else float(sample.kthvalue(first + 1).values)
    high = math.inf if last >= size else float(sample.kthvalue(last + 1).values)
    return low, high


def _bounds(quartiles: Float[Tensor, " 2"], whisker: float) -> Float[Tensor, " 2"]:
    first, third = quartiles.unbind()
    reach = whisker * (third - first)
    return torch.stack([first - reach, third + reach])


def _widened(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


# How many values there are decides which order statistics are wanted: an operator keeps that out of compiled graphs.
@torch.library.custom_op(
    "scorecraft::quartile_bounds", mutates_args=(), schema="(Tensor values, float whisker) -> Tensor"
)
def _quartile_bounds(values: Tensor, whisker: float) -> Tensor:
    count = int((values < math.inf).sum())
    if count == 0:
        return values.new_tensor([math.inf, -math.inf])
    ranks = (count // 4, 3 * count // 4)
    if values.numel() <= _FEW:
        quartiles = torch.stack([values.kthvalue(rank + 1).values for rank in ranks])
    else:
        quartiles = order_statistics(lambda: [(values, 1)], ranks, dtype=values.dtype, device=values.device)
    return _bounds(quartiles, whisker)


@_quartile_bounds.register_fake
def _(values: Tensor, whisker: float) -> Tensor:
    del whisker
    return values.new_empty(2)
