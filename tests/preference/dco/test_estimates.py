"""pass@k from samples, by blocks and of ensembles; confidence histograms."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from scipy import stats

from scorecraft.preference.dco import (
    block_pass_at_k,
    confidence_histogram,
    ensemble_coverage,
    mean_pass_at_k,
    pass_at_k,
)


def test_check_values() -> None:
    found = pass_at_k(torch.tensor([10, 10]), torch.tensor([1, 3]), 5)
    assert found.tolist() == pytest.approx([0.5, 1 - 21 / 252], rel=1e-14)
    assert found[1].item() == pytest.approx(0.916666666666667, abs=1e-14)


def test_equal_to_the_binomials_for_ragged_counts() -> None:
    n, c = torch.tensor([(n, c) for n in range(5, 40, 3) for c in range(0, n + 1, 2)]).T
    for k in (1, 2, 5):
        wanted = [1 - math.comb(a - b, k) / math.comb(a, k) for a, b in zip(n.tolist(), c.tolist(), strict=True)]
        assert pass_at_k(n, c, k).tolist() == pytest.approx(wanted, rel=1e-13, abs=1e-13)
    assert pass_at_k(torch.tensor([[10], [20]]), torch.tensor([[10], [0]]), 10).tolist() == [[1.0], [0.0]]


def test_many_samples() -> None:
    n, c, k = 20_000, 7, 4096
    wanted = 1 - math.prod((n - c - j) / (n - j) for j in range(k))
    assert pass_at_k(torch.tensor([n]), torch.tensor([c]), k).item() == pytest.approx(wanted, rel=1e-11)


def test_unbiased() -> None:
    """Over all draws of n samples its expectation is 1 - (1 - p)^k."""
    n, k, p = 9, 4, 0.3
    counts = torch.arange(n + 1)
    chances = torch.from_numpy(stats.binom.pmf(counts.numpy(), n, p))
    expectation = (chances * pass_at_k(torch.full((n + 1,), n), counts, k)).sum().item()
    assert expectation == pytest.approx(1 - (1 - p) ** k, rel=1e-13)


def test_blocks_have_the_same_expectation() -> None:
    """Over all orders of three right ones among eight samples, the mean of the block estimates is the unbiased one."""
    n, k, c = 8, 2, 3
    found = []
    for chosen in combinations(range(n), c):
        right = torch.zeros(1, n, dtype=torch.bool)
        right[0, list(chosen)] = True
        found.append(block_pass_at_k(right, k).mean)
    unbiased = pass_at_k(torch.tensor([n]), torch.tensor([c]), k).item()
    assert sum(found) / len(found) == pytest.approx(unbiased, rel=1e-13)


def test_blocks_and_their_error() -> None:
    right = torch.tensor([[1, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0, 1]], dtype=torch.bool)
    found = block_pass_at_k(right, 2)
    shares = [0.5, 0.0, 1.0]  # the seventh sample is left out
    assert found.blocks == 3
    assert found.mean == pytest.approx(0.5)
    assert found.standard_error == pytest.approx(torch.tensor(shares).std().item() / math.sqrt(3), rel=1e-6)
    whole = block_pass_at_k(right, 7)
    assert (whole.mean, whole.blocks) == (1.0, 1)
    assert math.isnan(whole.standard_error)


def test_interval_over_problems() -> None:
    random = torch.Generator().manual_seed(0)
    n = torch.randint(20, 60, (40,), generator=random)
    c = (torch.rand(40, generator=random) * n / 4).long()
    each = pass_at_k(n, c, 8)
    found = mean_pass_at_k(n, c, 8, confidence=0.9)
    low, high = stats.t.interval(0.9, 39, loc=each.mean().item(), scale=stats.sem(each.numpy()))
    assert (found.mean, found.low, found.high) == pytest.approx((each.mean().item(), low, high), rel=1e-10)
    assert found.standard_error == pytest.approx(stats.sem(each.numpy()), rel=1e-10)
    one = mean_pass_at_k(n[:1], c[:1], 8)
    assert (one.low, one.high) == (0, 1)
    assert math.isnan(one.standard_error)
    solved = mean_pass_at_k(n, n, 8)
    assert solved == (1.0, 0.0, 1.0, 1.0)


def test_ensembles() -> None:
    solved = torch.tensor([[True, False, False], [True, True, False]])
    assert ensemble_coverage(solved).tolist() == [1, 1, 0]
    passes = torch.tensor([[0.5, 0.0, 1.0], [0.25, 0.5, 0.0]])
    assert ensemble_coverage(passes).tolist() == [0.625, 0.5, 1.0]
    assert ensemble_coverage(passes[:1]).tolist() == [0.5, 0, 1]


def test_confidence_histogram() -> None:
    p = torch.tensor([0.05, 0.26, 0.49, 0.99, 1.0], dtype=torch.float64)
    right = torch.tensor([False, True, False, True, True])
    found = confidence_histogram(p.log(), right, bins=4)
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.counts.tolist() == [1, 2, 0, 2]
    assert found.right is not None
    assert found.right.tolist() == [0, 1, 0, 2]
    assert found.mean == pytest.approx(p.mean().item())
    assert confidence_histogram(p.log()).right is None
    impossible = confidence_histogram(torch.tensor([-math.inf, 0.0]), bins=2)
    assert impossible.counts.tolist() == [1, 1]


def test_what_is_refused() -> None:
    n, c = torch.tensor([10, 20]), torch.tensor([1, 3])
    calls = [
        (lambda: pass_at_k(n, c, 11), "argument `k`: expected at most the samples of every problem, k = 11, got 10"),
        (lambda: pass_at_k(n, c, 0), "argument `k`: expected an integer >= 1"),
        (lambda: pass_at_k(c, n, 1), "argument `correct`: expected counts from 0 to the number of samples, got 10"),
        (lambda: pass_at_k(n, c - 2, 1), "argument `correct`: expected counts from 0"),
        (lambda: pass_at_k(n, c[:1], 1), "argument `correct`: expected a count per problem"),
        (lambda: pass_at_k(n.float(), c, 1), "argument `samples`: expected integer counts"),
        (lambda: pass_at_k(n * 0, c * 0, 1), "argument `samples`: expected at least one sample"),
        (lambda: pass_at_k(n[:0], c[:0], 1), "argument `correct`"),
        (lambda: mean_pass_at_k(n, c, 1, confidence=1.0), "argument `confidence`"),
        (lambda: block_pass_at_k(n[None], 1), "argument `right`: expected a bool matrix"),
        (
            lambda: block_pass_at_k(torch.ones(2, 3, dtype=torch.bool), 4),
            "argument `k`: expected at most the 3 samples",
        ),
        (lambda: ensemble_coverage(torch.tensor([[1.2]])), "argument `coverages`: expected values in [0, 1]"),
        (lambda: ensemble_coverage(torch.zeros(0, 3)), "argument `coverages`"),
        (lambda: confidence_histogram(torch.tensor([0.5])), "argument `log_probabilities`: expected log-prob"),
        (lambda: confidence_histogram(torch.zeros(2), torch.ones(2)), "argument `right`: expected a truth value per"),
        (lambda: confidence_histogram(torch.zeros(2), bins=0), "argument `bins`"),
    ]
    for call, line in calls:
        with pytest.raises(ValueError, match=r"^argument") as caught:
            call()
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)
