"""The box-and-whisker filter: the rule itself, and exact selection over a stream against a sorted reference."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scorecraft.similarity.unpg import filter as unpg_filter
from scorecraft.similarity.unpg.filter import keep, order_statistics, quartile_bounds, tiled_quartile_bounds

SPECIFICATION = [-0.6, 0.0, 0.05, 0.1, 0.12, 0.15, 0.2, 0.22, 0.9]
DTYPES = (torch.float32, torch.float64)

finite_floats = st.floats(allow_nan=False, allow_infinity=False, width=32)
# Few distinct values make ties, tiny and huge ones the ends of the range of the bit patterns.
tied_floats = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 3.4e38, -3.4e38])
values_lists = st.lists(finite_floats | tied_floats | st.floats(-1, 1, width=32), min_size=1, max_size=60)


class Stream:
    """Tiles of values, and how often they were asked for."""

    def __init__(self, *tiles: tuple[Tensor, int]) -> None:
        self.tiles = tiles
        self.passes = 0

    def __call__(self) -> Iterable[tuple[Tensor, int]]:
        self.passes += 1
        return iter(self.tiles)


def expected_bounds(values: list[float] | Tensor, whisker: float) -> tuple[float, float]:
    ordered = torch.as_tensor(values).flatten().sort().values
    first, third = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    return (first - whisker * (third - first)).item(), (third + whisker * (third - first)).item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_check_value(dtype: torch.dtype) -> None:
    values = torch.tensor(SPECIFICATION, dtype=dtype)
    low, high = quartile_bounds(values, 1.5)
    assert low.item() == pytest.approx(0.05 - 1.5 * 0.15)
    assert high.item() == pytest.approx(0.2 + 1.5 * 0.15)
    assert values[keep(values, 1.5)].tolist() == values[1:-1].tolist()
    shuffled = values[torch.randperm(len(values))]
    assert sorted(shuffled[keep(shuffled, 1.5)].tolist()) == values[1:-1].tolist()


@pytest.mark.parametrize(
    "values, kept",
    [
        ([], []),
        ([0.3], [0.3]),
        ([0.3, 0.5], [0.3, 0.5]),
        ([0.1, 0.2, 0.9], [0.1, 0.2, 0.9]),
        ([0.2, 0.2, 0.2, 0.2, 0.2, 0.3, -0.1], [0.2, 0.2, 0.2, 0.2, 0.2]),
    ],
)
def test_small_and_tied_sets(values: list[float], kept: list[float]) -> None:
    given_values = torch.tensor(values)
    assert given_values[keep(given_values, 1.5)].tolist() == torch.tensor(kept).tolist()


def test_an_empty_set_keeps_nothing() -> None:
    for values in (torch.empty(0), torch.full((2, 3), math.inf)):
        assert [bound.item() for bound in quartile_bounds(values, 1.5)] == [math.inf, -math.inf]
        assert not keep(values, 1.5).any()
    low, high = tiled_quartile_bounds(Stream(), 1.5, count=0)
    assert (low.item(), high.item()) == (math.inf, -math.inf)


@settings(deadline=None)
@given(values=values_lists, whisker=st.floats(0, 3), few=st.booleans(), absent=st.integers(0, 3))
def test_bounds_match_a_sorted_reference(values: list[float], whisker: float, few: bool, absent: int) -> None:
    """By either way of selection, and wherever absent entries stand."""
    expected = expected_bounds(torch.tensor(values), whisker)
    given_values = torch.tensor([math.inf] * absent + values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpg_filter, "_FEW", len(given_values) if few else 0)
        found = quartile_bounds(given_values, whisker)
    for bound, number in zip(found, expected, strict=True):
        assert bound.item() == number or (math.isnan(number) and bound.isnan())


@settings(deadline=None, max_examples=200)
@given(
    tiles=st.lists(st.tuples(values_lists, st.integers(1, 3)), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    budget=st.sampled_from([0, 1, 5, 1000]),
    data=st.data(),
)
def test_order_statistics_match_a_sorted_reference(
    tiles: list[tuple[list[float], int]], dtype: torch.dtype, budget: int, data: st.DataObject
) -> None:
    ordered = torch.tensor(sorted(value for values, times in tiles for value in values * times), dtype=dtype)
    ranks = data.draw(st.lists(st.integers(0, len(ordered) - 1), max_size=3))
    guess = st.tuples(finite_floats | st.just(-math.inf), finite_floats | st.just(math.inf))
    guesses = data.draw(st.none() | st.lists(guess, min_size=len(ranks), max_size=len(ranks)))
    stream = Stream(*((torch.tensor([*values, math.inf], dtype=dtype), times) for values, times in tiles))
    found = order_statistics(stream, ranks, guesses=guesses, dtype=dtype, budget=budget)
    assert found.dtype == dtype
    assert found.tolist() == ordered[torch.tensor(ranks, dtype=torch.int64)].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("budget", [100, unpg_filter.BUDGET])
def test_equal_values_end_the_search(dtype: torch.dtype, budget: int) -> None:
    values = torch.full((1000,), 0.3, dtype=dtype)
    stream = Stream((values, 1))
    for guesses in (None, [(0.3, 0.3)], [(0.0, 0.5)]):
        found = order_statistics(stream, [500], guesses=guesses, dtype=dtype, budget=budget)
        assert found.item() == values[0].item()
    assert stream.passes <= 3 * 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_stream_in_pieces(dtype: torch.dtype) -> None:
    """More than one chunk per tile, lengths that are no multiple of eight, non-contiguous blocks."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(641, 503, generator=generator, dtype=dtype) * 0.1
    stream = Stream((values[:400], 1), (values[400:].T, 1), (values[:100].T, 2))
    everything = torch.cat([values.flatten(), values[:100].flatten(), values[:100].flatten()]).sort().values
    count = len(everything)
    ranks = [0, count // 4, count // 2, 3 * count // 4, count - 1]
    found = order_statistics(stream, ranks, dtype=dtype)
    assert torch.equal(found, everything[ranks])
    assert stream.passes == 2
    small = order_statistics(stream, ranks, dtype=dtype, budget=50)
    assert torch.equal(small, everything[ranks])


def test_a_sample_saves_a_pass_and_a_bad_one_costs_only_time() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300_000, generator=generator) * 0.1
    expected = expected_bounds(values, 1.5)
    good = values[torch.randint(len(values), (2000,), generator=generator)]
    for sample, passes in ((good, 1), (None, 2), (good + 5, 3), (torch.empty(0), 2), (good[:3], 1)):
        stream = Stream((values, 1))
        found = tiled_quartile_bounds(stream, 1.5, count=len(values), sample=sample)
        assert tuple(bound.item() for bound in found) == expected
        assert stream.passes == passes


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 40), classes=st.integers(1, 6), seed=st.integers(0, 100))
def test_symmetric_tiles_give_the_quartiles_of_unordered_pairs(n: int, classes: int, seed: int) -> None:
    """Every unordered pair counted twice, as blocks of a Gram matrix bring it, leaves the quartiles where they are."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(n, 8, generator=generator, dtype=torch.float64))
    labels = torch.randint(classes, (n,), generator=generator)
    scores = torch.where(labels[:, None] != labels, x @ x.T, math.inf)
    scores = scores.triu() + scores.triu(1).T
    half = n // 2
    tiles = Stream((scores[:half, :half], 1), (scores[:half, half:], 2), (scores[half:, half:], 1))
    unordered = scores[torch.triu(torch.ones(n, n), 1).bool() & (scores < math.inf)]
    found = tiled_quartile_bounds(tiles, 1.5, count=2 * len(unordered), dtype=torch.float64)
    if len(unordered):
        assert tuple(bound.item() for bound in found) == expected_bounds(unordered, 1.5)
    assert [bound.item() for bound in found] == [bound.item() for bound in quartile_bounds(scores, 1.5)]


@pytest.mark.parametrize("budget", [10, unpg_filter.BUDGET])
@pytest.mark.parametrize("sampled", [False, True])
def test_across_processes(budget: int, sampled: bool) -> None:
    """Three processes, played by threads, each with its own tiles (one has none) and its own guess."""
    ranks_count = 3
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5000, generator=generator)
    parts: list[list[tuple[Tensor, int]]] = [[(values[:3000], 1)], [], [(values[3000:4000], 1), (values[4000:], 1)]]
    ordered = values.sort().values
    barrier = threading.Barrier(ranks_count)
    shelf: list[Tensor] = [torch.empty(0)] * ranks_count

    def run(rank: int) -> list[float]:
        def reduce(tensor: Tensor) -> Tensor:
            assert tensor.dtype == torch.int64
            shelf[rank] = tensor
            barrier.wait(timeout=60)
            total = torch.stack(shelf).sum(dim=0)
            barrier.wait(timeout=60)
            return total

        center = ordered[1250].item() + 0.01 * rank
        guesses = [(center - 0.05, center + 0.05), (-9.0, -8.0)] if sampled else None
        return order_statistics(
            lambda: parts[rank], [1250, 3750], guesses=guesses, reduce=reduce, budget=budget
        ).tolist()

    with ThreadPoolExecutor(ranks_count) as pool:
        found = list(pool.map(run, range(ranks_count)))
    assert found == [ordered[[1250, 3750]].tolist()] * ranks_count


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_in_float32(dtype: torch.dtype) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    low, high = quartile_bounds(values, 1.5)
    assert low.dtype == torch.float32
    assert (low.item(), high.item()) == expected_bounds(values.float(), 1.5)
    found = order_statistics(Stream((values, 1)), [250])
    assert found.item() == values.float().sort().values[250].item()


def test_no_gradient_and_one_compiled_graph() -> None:
    values = torch.randn(500, requires_grad=True)
    assert not any(bound.requires_grad for bound in quartile_bounds(values, 1.0))
    torch.compiler.reset()
    compiled = torch.compile(lambda values: keep(values, 1.0), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(values), keep(values, 1.0))


def test_refused_input() -> None:
    values = torch.tensor([0.1, math.inf, 0.2])
    stream = Stream((values, 1))
    with pytest.raises(ValueError, match="argument `whisker`: expected a finite number >= 0, got"):
        quartile_bounds(values, -1.0)
    with pytest.raises(ValueError, match="argument `whisker`: expected a finite number >= 0, got"):
        tiled_quartile_bounds(stream, math.nan, count=2)
    with pytest.raises(ValueError, match="argument `values`: expected a floating-point tensor, got"):
        keep(torch.arange(3), 1.0)
    with pytest.raises(ValueError, match="argument `ranks`: expected positions below the number of values, 2, got 2"):
        order_statistics(stream, [2])
    with pytest.raises(ValueError, match="argument `ranks`: expected positions below the number of values, 2, got 2"):
        order_statistics(stream, [2], guesses=[(0.0, math.inf)])
    with pytest.raises(ValueError, match="argument `ranks`: expected positions of at least 0, got -1"):
        order_statistics(stream, [-1])
    with pytest.raises(ValueError, match="argument `dtype`: expected"):
        order_statistics(stream, [0], dtype=torch.float16)
    with pytest.raises(ValueError, match=r"argument `tiles`: expected values of dtype torch.float32 or narrower, got"):
        order_statistics(Stream((values.double(), 1)), [0])
    for nan in (math.nan, -math.nan):
        with pytest.raises(ValueError, match="argument `tiles`: expected values that are numbers, got 1 NaN"):
            order_statistics(Stream((torch.tensor([nan, 1.0]), 1)), [0])
