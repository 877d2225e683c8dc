"""Moments in one pass."""

from __future__ import annotations

import pytest
import torch
from tests.ranks import run_ranks

from scorecraft.density.gaussian_score import GaussianStatistics

DATA = torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e6


def test_equal_to_the_whole() -> None:
    mean, covariance = GaussianStatistics().extend(DATA.split(33)).moments()
    flat = DATA.flatten(1)
    torch.testing.assert_close(mean, flat.mean(dim=0), rtol=0, atol=1e-9)
    torch.testing.assert_close(covariance, flat.T.cov(correction=0), rtol=0, atol=1e-9)


def part_of_the_data(rank: int) -> None:
    """Uneven parts, far from each other."""
    parts = (DATA[:30], DATA[30:] + 5)
    found = GaussianStatistics().extend(parts[rank].split(20)).moments()
    whole = GaussianStatistics().extend(parts).moments()
    for ours, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-8)


def test_processes_share_their_sums() -> None:
    run_ranks(part_of_the_data)


def test_a_gaussian_of_some_rank() -> None:
    found = GaussianStatistics().extend([DATA.float() - 1e6]).gaussian(rank=2)
    assert found.variances.shape == (2,)
    assert found.floor > 0


def test_what_is_refused() -> None:
    statistics = GaussianStatistics()
    with pytest.raises(ValueError, match="argument `batch`: expected at least one sample"):
        statistics.moments()
    statistics.update(DATA)
    for batch in (DATA.flatten(1), DATA.long(), DATA * float("nan"), DATA[0, 0]):
        with pytest.raises(ValueError, match="argument `batch`: expected"):
            statistics.update(batch)
