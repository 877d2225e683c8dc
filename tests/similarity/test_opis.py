"""OPIS against the definition, its check value, its properties, and the counting machinery underneath."""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from scorecraft.core import Cosine, Dot, NegativeDistance, NegativeSquaredDistance
from scorecraft.similarity.recall import recall_at_k
from scorecraft.similarity.tcm.consistency import _kth_largest, calibrated_range, opis, opis_from_counts
from scorecraft.similarity.tcm.operating import (
    Block,
    OperatingCounts,
    PairBlocks,
    _Intervals,
    false_accept_reject,
    positions,
)

operating_module = importlib.import_module("scorecraft.similarity.tcm.operating")
opis_module = importlib.import_module("scorecraft.similarity.tcm.consistency")

Pairs = list[tuple[int, int, float]]


@pytest.fixture(params=[1024, 7], ids=["one block", "many blocks"])
def block_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(operating_module, "BLOCK_ROWS", request.param)
    return request.param


def items(n: int = 40, d: int = 5, classes: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64):
    """Items of classes of very different sizes, the last class with a single item, in random order."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) ** 2 * (classes - 1)).long()
    labels[0] = classes - 1
    centres = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    x = centres[labels] + 0.7 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    order = torch.randperm(n, generator=generator)
    return x[order].to(dtype), labels[order] * 3 - 5  # any integers may be labels


def blocks_of(pairs: PairBlocks) -> Iterator[Block]:
    return pairs.each(lambda block: block._replace(scores=block.scores.clone()))


def unit_distance(a: Tensor, b: Tensor) -> float:
    return math.sqrt(max(0.0, 2 - 2 * float(a @ b / (a.norm() * b.norm()))))


def all_pairs(x: Tensor, y: Tensor, reference: Tensor | None = None, others: Tensor | None = None) -> Pairs:
    """Label, label and distance of every pair, each unordered pair once."""
    if reference is None or others is None:
        return [(int(y[i]), int(y[j]), unit_distance(x[i], x[j])) for i in range(len(x)) for j in range(i + 1, len(x))]
    return [
        (int(y[i]), int(others[j]), unit_distance(x[i], reference[j]))
        for i in range(len(x))
        for j in range(len(reference))
    ]


def rates(pairs: Pairs, label: int, threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity of one class."""
    positives = [d for a, b, d in pairs if a == label and b == label]
    negatives = [d for a, b, d in pairs if (a == label) != (b == label)]
    return (
        sum(d <= threshold for d in positives) / len(positives) if positives else math.nan,
        sum(d > threshold for d in negatives) / len(negatives),
    )


def plain_opis(pairs: Pairs, far_range: tuple[float, float], grid: int, fraction: float) -> dict[str, float]:
    """The specification read aloud, with loops over everything."""
    negatives = sorted(d for a, b, d in pairs if a != b)
    low, high = (negatives[math.floor(rate * len(negatives) + 1e-9) - 1] for rate in far_range)
    thresholds = [low + (high - low) * g / (grid - 1) for g in range(grid - 1)] + [high]
    classes = sorted({a for a, b, _ in pairs if a == b})
    curves = []
    for label in classes:
        curve = []
        for threshold in thresholds:
            phi, psi = rates(pairs, label, threshold)
            curve.append(2 * phi * psi / (phi + psi) if phi + psi > 0 else 0.0)
        curves.append(curve)

    def mean_over_range(values: list[float]) -> float:
        steps = zip(thresholds, thresholds[1:], values, values[1:], strict=False)
        return sum((t1 - t0) * (v0 + v1) / 2 for t0, t1, v0, v1 in steps) / (high - low)

    mean = [sum(column) / len(classes) for column in zip(*curves, strict=True)]
    variances = [mean_over_range([(u - m) ** 2 for u, m in zip(curve, mean, strict=True)]) for curve in curves]
    ranked = sorted(curves, key=mean_over_range)
    size = max(1, math.ceil(fraction * len(classes) - 1e-9))
    bottom = [sum(column) / size for column in zip(*ranked[:size], strict=True)]
    top = [sum(column) / size for column in zip(*ranked[-size:], strict=True)]
    return {
        "opis": sum(variances) / len(classes),
        "epsilon_opis": mean_over_range([(t - b) ** 2 for t, b in zip(top, bottom, strict=True)]),
        "threshold_min": low,
        "threshold_max": high,
        "mean_utility": sum(map(mean_over_range, curves)) / len(classes),
        "classes_used": len(classes),
    }


LINE = torch.tensor([0, 0.2, 0.5, 1, 1.1, 1.6, 2.5, 2.6, 2.9], dtype=torch.float64).unsqueeze(1)
LINE_LABELS = torch.arange(9) // 3


@pytest.mark.usefixtures("block_rows")
def test_check_value() -> None:
    result = opis(
        LINE, LINE_LABELS, thresholds=[0.25, 0.45, 0.65, 0.85], fraction=1 / 3, score=NegativeDistance()
    )  # fmt: skip
    expected = torch.tensor(
        [[0.5, 0.8, 0.9411764706, 0.9090909091], [0.5, 0.5, 0.9411764706, 0.9090909091], [0.5, 1, 1, 1]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(result.utility, expected, atol=1e-9, rtol=0)
    integrated = torch.tensor([0.4891443850, 0.4291443850, 0.55], dtype=torch.float64)
    torch.testing.assert_close(result.per_class * 0.6, integrated, atol=1e-9, rtol=0)
    assert result.opis == pytest.approx(0.0146364770, abs=1e-9)
    assert result.epsilon_opis == pytest.approx(0.0858641463, abs=1e-9)
    assert result.mean_utility == pytest.approx(float(integrated.mean()) / 0.6, abs=1e-9)
    assert (result.threshold_min, result.threshold_max) == (0.25, 0.85)


@pytest.mark.usefixtures("block_rows")
@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize(
    ("far_range", "grid", "fraction"), [((0.01, 0.1), 101, 0.1), ((0.05, 0.5), 11, 1 / 3), ((0.2, 1.0), 2, 1.0)]
)
def test_equals_the_definition(
    far_range: tuple[float, float], grid: int, fraction: float, with_reference: bool
) -> None:
    x, y = items()
    reference, others = items(n=30, seed=1)
    if with_reference:
        others[others == others.max()] += 3  # a class that only the reference has
        pairs, call = all_pairs(x, y, reference, others), {"reference": reference, "reference_labels": others}
    else:
        pairs, call = all_pairs(x, y), {}
    expected = plain_opis(pairs, far_range, grid, fraction)
    result = opis(x, y, far_range=far_range, thresholds=grid, fraction=fraction, **call)
    for name, value in expected.items():
        assert getattr(result, name) == pytest.approx(value, abs=1e-10), name
    labels = set(y.tolist()) | (set(others.tolist()) if with_reference else set())
    assert result.classes_without_positives == len(labels) - result.classes_used > 0
    recall = recall_at_k(x, y, 1, **call)
    assert result.recall_at_1 == pytest.approx(recall[1])


@pytest.mark.usefixtures("block_rows")
@pytest.mark.parametrize("thresholds", [[0.3], [0.2, 0.5, 0.50001, 1.7], np.linspace(0.1, 1.9, 37).tolist()])
def test_false_accept_and_reject_equal_the_definition(thresholds: list[float]) -> None:
    x, y = items()
    pairs = all_pairs(x, y)
    result = false_accept_reject(x, y, thresholds)
    assert result.classes.tolist() == sorted(set(y.tolist()))
    for row, label in enumerate(result.classes.tolist()):
        for column, threshold in enumerate(thresholds):
            phi, psi = rates(pairs, label, threshold)
            assert float(result.false_reject[row, column]) == pytest.approx(1 - phi, nan_ok=True, abs=1e-12)
            assert float(result.false_accept[row, column]) == pytest.approx(1 - psi, abs=1e-12)
    negatives = [d for a, b, d in pairs if a != b]
    positives = [d for a, b, d in pairs if a == b]
    for column, threshold in enumerate(thresholds):
        accepted = sum(d <= threshold for d in negatives) / len(negatives)
        refused = sum(d > threshold for d in positives) / len(positives)
        assert float(result.pooled_false_accept[column]) == pytest.approx(accepted, abs=1e-12)
        assert float(result.pooled_false_reject[column]) == pytest.approx(refused, abs=1e-12)
    assert int(result.positive_pairs.sum()) == len(positives)
    assert int(result.negative_pairs.sum()) == 2 * len(negatives)
    assert bool(result.false_reject[-1].isnan().all())  # one item, no pair


@pytest.mark.usefixtures("block_rows")
def test_float32_counts_are_exact_on_its_own_distances() -> None:
    """Thresholds that are data points, float32 throughout, some hundred thousand pairs: not one may be misplaced."""
    x, y = items(n=500, classes=30, dtype=torch.float32)
    y = y.unique(return_inverse=True)[1]
    result = opis(x, y)
    pooled = result.counts.pooled_false_accept()
    total = int(result.counts.negatives.sum()) // 2
    assert float(pooled[0]) == math.floor(0.01 * total + 1e-9) / total
    assert float(pooled[-1]) == math.floor(0.1 * total + 1e-9) / total
    expected = torch.zeros_like(result.counts.positives), torch.zeros_like(result.counts.negatives)
    order = y.argsort(stable=True)
    for block in blocks_of(PairBlocks(x, y, score=Cosine())):
        columns, rows = y[order[block.columns]], y[order[block.rows]]
        distances = (2 - 2 * block.scores).clamp(min=0).sqrt().double()
        found = torch.searchsorted(result.thresholds, distances)
        for i, j in (block.scores > -math.inf).nonzero().tolist():
            expected[1][rows[i], found[i, j]] += 1
            expected[1][columns[j], found[i, j]] += 1
        found = torch.searchsorted(result.thresholds, (2 - 2 * block.positive_scores).clamp(min=0).sqrt().double())
        for i, place in zip(block.positive_rows.tolist(), found.tolist(), strict=True):
            expected[0][y[order[i]], place] += 1
    torch.testing.assert_close(result.counts.positives, expected[0], rtol=0, atol=0)
    torch.testing.assert_close(result.counts.negatives, expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("edges", "even"),
    [
        (np.linspace(1.2610996961593628, 1.3314223289489746, 101), True),
        (np.linspace(0.9, 1.1, 101), True),  # the spacing of float32 changes at 1
        (np.arange(9) / 8, True),
        (np.linspace(0, 2, 201), True),  # 0, and numbers that float32 has
        (1 - np.arange(4)[::-1] / 8 - 1e-16, True),  # a hair below numbers that float32 has
        ([-0.5], True),
        ([0.25, 0.45, 0.65, 0.85], True),
        ([0.1, 0.15, 0.2, 0.9], True),  # so few that they are compared one by one
        ([0.1, 0.15, 0.2, 0.21, 0.22, 0.23, 0.9], False),
        (np.linspace(1, 1 + 1e-6, 101), True),  # closer than the numbers of float32
    ],
)
def test_intervals_equal_a_search(dtype: torch.dtype, edges: list[float], even: bool) -> None:
    exact = torch.tensor(edges, dtype=torch.float64)
    intervals = _Intervals(exact, dtype)
    rounded = intervals.edges
    if dtype == torch.float32:
        assert intervals.even == even
    infinity = torch.full_like(rounded, math.inf)
    near = [rounded]
    for direction in (infinity, -infinity):
        for _ in range(3):
            near.append(torch.nextafter(near[-1], direction))
        near.append(rounded)
    values = torch.cat([*near, torch.linspace(-3, 3, 999, dtype=dtype), infinity, -infinity])
    expected = torch.searchsorted(exact, values.double())
    torch.testing.assert_close(intervals(values).long(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.5, 1.0])
def test_positions_of_scores_in_a_range(share: float) -> None:
    scores = torch.rand(37, 41, generator=torch.Generator().manual_seed(0))
    scores[0, :5] = -math.inf
    low = float(scores.quantile(1 - share))
    expected = ((scores >= low) & (scores <= 0.99)).view(-1).nonzero().view(-1)
    assert torch.equal(positions(scores, low, 0.99), expected)
    assert torch.equal(positions(scores, low), (scores >= low).view(-1).nonzero().view(-1))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_result(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operating_module, "BLOCK_ROWS", 7)
    x, y = items()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        result = opis(x, y)
        assert torch.get_num_threads() == threads
        started: list[int] = []
        thread = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert started == [threads]
    finally:
        torch.set_num_threads(before)
    assert result.opis == pytest.approx(plain_opis(all_pairs(x, y), (0.01, 0.1), 101, 0.1)["opis"], abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kept", [1 << 22, 1000, 0], ids=["kept", "first kept", "histograms"])
@pytest.mark.parametrize("guess_errors", [4.0, 0.0, -2.0], ids=["good guess", "narrow guess", "bad guess"])
def test_quantiles_are_exact(
    dtype: torch.dtype, kept: int, guess_errors: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is kept and guessed, with ties and both signs, the k-th largest score is found."""
    monkeypatch.setattr(operating_module, "BLOCK_ROWS", 50)
    monkeypatch.setattr(opis_module, "KEPT", kept)
    monkeypatch.setattr(opis_module, "CELL_BITS", 5)
    monkeypatch.setattr(opis_module, "SAMPLE_SIZE", 32)
    monkeypatch.setattr(opis_module, "GUESS_ERRORS", guess_errors)
    x, y = items(n=130, d=3, dtype=dtype)
    y = y.unique(return_inverse=True)[1]
    x[:20] = x[0].sign() * 0.5  # many equal scores
    pairs = PairBlocks(x, y, score=Dot())
    scores = (
        torch.cat([block.scores[block.scores > -math.inf] for block in blocks_of(pairs)]).sort(descending=True).values
    )
    ranks = [1, 40, len(scores) // 2, len(scores)]
    found = torch.stack(_kth_largest(pairs, ranks, len(scores)))
    torch.testing.assert_close(found, scores[torch.tensor(ranks) - 1], rtol=0, atol=0)


def test_an_exact_zero_score_is_found() -> None:
    x = torch.tensor([[1.0, 0], [0, 1], [0, -1], [-1, 0]])
    y = torch.arange(4)
    for kept in (1 << 22, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(opis_module, "KEPT", kept)
            found = _kth_largest(PairBlocks(x, y, score=Dot()), [1, 4, 6], 6)
        assert [float(value) for value in found] == [0, 0, -1]


def test_one_sweep_finds_the_range_of_many_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opis_module, "KEPT", 1 << 16)
    sweeps = []
    original = PairBlocks.each
    monkeypatch.setattr(PairBlocks, "each", lambda self, look: (sweeps.append(1), original(self, look))[1])
    x, y = items(n=2500, d=16, classes=60, dtype=torch.float32)
    low, high = calibrated_range(x, y, far_range=(0.002, 0.01))
    assert len(sweeps) == 1
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    distances = (2 - 2 * unit @ unit.T).clamp(min=0).sqrt()[(y[:, None] < y)].sort().values
    for rate, value in ((0.002, low), (0.01, high)):
        assert value == pytest.approx(float(distances[math.floor(rate * len(distances) + 1e-9) - 1]), abs=1e-6)


def test_parts_against_the_whole_merge_to_the_whole() -> None:
    """Sharded evaluation: each process measures its slice of the items against all of them."""
    x, y = items()
    y = y.unique(return_inverse=True)[1]
    whole = opis(x, y, thresholds=np.linspace(0.2, 1.5, 21).tolist()).counts
    merged = OperatingCounts(whole.classes, whole.thresholds)
    for part in (slice(0, 11), slice(11, 12), slice(12, len(x))):
        counts = OperatingCounts(whole.classes, whole.thresholds)
        merged.merge(counts.update(x[part], y[part], x, y, offset=part.start))
    torch.testing.assert_close(merged.positives, 2 * whole.positives, rtol=0, atol=0)
    torch.testing.assert_close(merged.negatives, 2 * whole.negatives, rtol=0, atol=0)
    assert (int(merged.hits), int(merged.queries)) == (int(whole.hits), int(whole.queries))
    assert opis_from_counts(merged).opis == opis_from_counts(whole).opis
    with pytest.raises(ValueError, match="`other`"):
        merged.merge(OperatingCounts(whole.classes, [0.2, 0.3]))


def test_similarities_are_thresholded_from_above() -> None:
    x, y = items()
    result = opis(x, y, orientation="similarity", far_range=(0.05, 0.4), thresholds=21)
    assert result.threshold_min > result.threshold_max
    unit = torch.nn.functional.normalize(x, dim=1)
    pairs = [(a, b, 1 - d * d / 2) for a, b, d in all_pairs(x, y)]
    negatives = sorted((s for a, b, s in pairs if a != b), reverse=True)
    assert result.threshold_min == pytest.approx(negatives[math.floor(0.05 * len(negatives) + 1e-9) - 1], abs=1e-12)
    # On the same thresholds, a similarity is a distance read backwards.
    mirrored = plain_opis([(a, b, -s) for a, b, s in pairs], (0.05, 0.4), 21, 0.1)
    assert result.opis == pytest.approx(mirrored["opis"], abs=1e-10)
    assert result.epsilon_opis == pytest.approx(mirrored["epsilon_opis"], abs=1e-10)
    far = false_accept_reject(x, y, [0.9, 0.5, -0.2], orientation="similarity")
    matches = [sum(s >= t for s in negatives) / len(negatives) for t in (0.9, 0.5, -0.2)]
    assert far.pooled_false_accept.tolist() == pytest.approx(matches)
    # The threshold axis matters: squared distance is linear in the cosine, the distance is not.
    by_square = opis(unit, y, score=NegativeSquaredDistance(), far_range=(0.05, 0.4), thresholds=21)
    assert by_square.opis == pytest.approx(result.opis, abs=1e-9)
    assert abs(opis(x, y, far_range=(0.05, 0.4), thresholds=21).opis - result.opis) > 1e-6


def test_identical_classes_have_no_inconsistency() -> None:
    one = torch.tensor([[0.0], [0.2], [0.5]], dtype=torch.float64)
    x, y = torch.cat([one, one + 4]), torch.arange(6) // 3
    result = opis(x, y, far_range=(0.2, 1.0), score=NegativeDistance())
    assert result.opis == pytest.approx(0, abs=1e-30)
    assert result.epsilon_opis == pytest.approx(0, abs=1e-30)


def test_invariances_and_bounds() -> None:
    x, y = items()
    expected = opis(x, y)
    assert 0 <= expected.opis <= 0.25
    assert 0 <= expected.epsilon_opis <= 1
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(len(x), generator=generator)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    renamed = -7 * y + 1
    for other in (opis(x[order], y[order]), opis(x, renamed), opis(x * 3, y), opis(x @ rotation, y)):
        assert other.opis == pytest.approx(expected.opis, rel=1e-9)
        assert other.epsilon_opis == pytest.approx(expected.epsilon_opis, rel=1e-9)
        assert other.recall_at_1 == expected.recall_at_1


def test_converges_to_the_closed_form() -> None:
    """Positive distances uniform on [a_i, b_i], negative ones on [c, e]: linear phi and psi, an integral to compare."""
    supports, (c, e), (low, high) = [(0.1, 0.9), (0.3, 1.1)], (0.5, 1.5), (0.55, 0.85)

    def utility(i: int, t: float) -> float:
        a, b = supports[i]
        phi, psi = (t - a) / (b - a), (e - t) / (e - c)
        return 2 * phi * psi / (phi + psi)

    exact = quad(lambda t: ((utility(0, t) - utility(1, t)) / 2) ** 2, low, high)[0] / (high - low)
    random = np.random.default_rng(0)
    errors = []
    for n in (100, 10_000, 1_000_000):
        found = []
        for _ in range(8):
            counts = OperatingCounts(2, np.linspace(low, high, 201).tolist())
            for i, (a, b) in enumerate(supports):
                for table, (left, right) in ((counts.positives, (a, b)), (counts.negatives, (c, e))):
                    drawn = torch.from_numpy(random.uniform(left, right, n))
                    table[i] = torch.bincount(torch.bucketize(drawn, counts.thresholds), minlength=202)
            found.append(opis_from_counts(counts).opis)
        errors.append(float(np.abs(np.array(found) - exact).mean()))
    assert errors[2] < 5e-5
    assert errors[1] < errors[0] / 4  # n^(-1/2) would be a tenth
    assert errors[2] < errors[1] / 4


def test_epsilon_groups_round_up_but_not_for_rounding_errors() -> None:
    """3 * 0.1 exceeds 0.3 in floating point; a group of 0.1 x 30 classes still has 3."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(90, 4, generator=generator, dtype=torch.float64), torch.arange(90) // 3
    result = opis(x, y, fraction=0.1, far_range=(0.1, 0.5))
    for fraction, size in ((0.1, 3), (0.101, 4), (1e-6, 1), (0.3, 9)):
        ranked = result.per_class.argsort(stable=True)
        gap = result.utility[ranked[-size:]].mean(0) - result.utility[ranked[:size]].mean(0)
        length = result.threshold_max - result.threshold_min
        expected = float(torch.trapezoid(gap.square(), result.thresholds)) / length
        assert opis_from_counts(result.counts, fraction=fraction).epsilon_opis == pytest.approx(expected, rel=1e-12)


def test_floor_is_what_sampling_noise_contributes() -> None:
    """Classes that share one curve: OPIS is all noise, as much as the floor says; more pairs, less of both."""
    random = np.random.default_rng(0)
    values, floors = {}, {}
    for pairs in (20, 2000):
        values[pairs], floors[pairs] = [], []
        for _ in range(20):
            counts = OperatingCounts(40, np.linspace(0.5, 1, 11).tolist())
            counts.positives += torch.from_numpy(random.multinomial(pairs, [0.3, *[0.05] * 10, 0.2], size=40))
            counts.negatives += torch.from_numpy(random.multinomial(50 * pairs, [0.01, *[0.01] * 10, 0.89], size=40))
            result = opis_from_counts(counts)
            values[pairs].append(result.opis)
            floors[pairs].append(result.floor(replicates=50))
        assert np.mean(floors[pairs]) == pytest.approx(np.mean(values[pairs]), rel=0.15)
    assert np.mean(floors[2000]) < np.mean(floors[20]) / 50
    assert result.floor(seed=1) == result.floor(seed=1) != result.floor(seed=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_float32(dtype: torch.dtype) -> None:
    x, y = items(n=80, dtype=dtype)
    expected = opis(x.float(), y)
    assert opis(x, y).opis == expected.opis
    with torch.autocast("cpu", torch.bfloat16):
        assert opis(x.float(), y).opis == expected.opis


def test_a_large_class_and_few_classes() -> None:
    """A class of more items than a block, and two classes only."""
    x, y = items(n=60, classes=3)
    y = (y > y.min()).long()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operating_module, "BLOCK_ROWS", 7)
        result = opis(x, y)
    expected = plain_opis(all_pairs(x, y), (0.01, 0.1), 101, 0.1)
    assert result.opis == pytest.approx(expected["opis"], abs=1e-10)


def test_inputs_are_left_alone() -> None:
    x, y = items()
    x.requires_grad_()
    before = x.detach().clone(), y.clone()
    result = opis(x, y, score=Dot())
    opis(x, y, score=NegativeDistance(), reference=x, reference_labels=y)
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(y, before[1])
    assert not result.utility.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"far_range": (1e-9, 0.1)}, "argument `far_range`: expected at least 1000000000 negative pairs"),
        ({"far_range": (0.1, 0.1)}, "argument `far_range`: expected two false accept rates"),
        ({"far_range": (0.1, 1.1)}, "argument `far_range`"),
        ({"far_range": 0.1}, "argument `far_range`"),
        ({"thresholds": 1}, "argument `thresholds`: expected at least 2"),
        ({"thresholds": [0.5, 0.4]}, "argument `thresholds`: expected thresholds from strict to lenient"),
        ({"thresholds": [0.5, 0.5]}, "argument `thresholds`"),
        ({"thresholds": [0.5, math.nan]}, "argument `thresholds`"),
        ({"thresholds": [0.5]}, "argument `thresholds`: expected at least 2"),
        ({"fraction": 0.0}, "argument `fraction`"),
        ({"fraction": 2.0}, "argument `fraction`"),
        ({"orientation": "sideways"}, "argument `orientation`: expected one of 'distance', 'similarity'"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "argument `labels`: expected 40 labels"),
        ({"labels": torch.zeros(40)}, "argument `labels`: expected integer labels"),
        ({"labels": torch.zeros(40, 2, dtype=torch.long)}, "argument `labels`"),
        ({"labels": torch.arange(40)}, "argument `labels`: expected at least one class with a positive pair"),
        ({"labels": torch.zeros(40, dtype=torch.long)}, "argument `far_range`: expected at least 100 negative pairs"),
        ({"embeddings": torch.full((40, 5), math.nan)}, "argument `embeddings`: expected finite values"),
        ({"embeddings": torch.zeros(40, 5)}, "argument `embeddings`: expected rows of non-zero norm"),
        ({"embeddings": torch.zeros(0, 5), "labels": torch.zeros(0, dtype=torch.long)}, "argument `embeddings`"),
        ({"reference": torch.ones(3, 4)}, "argument `reference_labels`"),
        ({"reference": torch.ones(3, 4), "reference_labels": torch.arange(3)}, "argument `reference`: expected rows"),
        ({"reference_labels": torch.arange(3)}, "argument `reference_labels`"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    x, y = items()
    call = {"embeddings": x, "labels": y, **change}
    with pytest.raises(ValueError, match=message) as caught:
        opis(call.pop("embeddings"), call.pop("labels"), **call)
    assert "\n" not in str(caught.value)


def test_a_range_of_length_zero_is_refused() -> None:
    x = torch.eye(30).repeat_interleave(2, dim=0)  # all negative pairs at distance sqrt(2)
    with pytest.raises(ValueError, match=r"expected rates reached at two different thresholds, got distance 1\.414"):
        opis(x, torch.arange(60) // 2)


def test_bad_slices_are_refused() -> None:
    x, y = items()
    y = y.unique(return_inverse=True)[1]
    counts = OperatingCounts(8, [0.5])
    with pytest.raises(ValueError, match="argument `offset`: expected equal labels"):
        counts.update(x[3:9], y[3:9], x, y, offset=0)
    with pytest.raises(ValueError, match=r"argument `offset`: expected an integer in \[0, 34\]"):
        counts.update(x[3:9], y[3:9], x, y, offset=35)
    with pytest.raises(ValueError, match="argument `offset`: expected None"):
        counts.update(x, y, offset=0)
    with pytest.raises(ValueError, match=r"argument `labels`: expected class indices in \[0, 8\)"):
        counts.update(x, y + 1)
    assert int(counts.negatives.sum()) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees() -> None:
    x, y = items(n=3000, d=16, classes=50)
    expected, result = opis(x, y), opis(x.cuda(), y.cuda())
    assert result.opis == pytest.approx(expected.opis, rel=1e-6)
    assert result.threshold_max == pytest.approx(expected.threshold_max, rel=1e-9)
    assert result.recall_at_1 == expected.recall_at_1
