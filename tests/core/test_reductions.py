"""Masked log-domain reductions against plain float64 arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from scorecraft.core.reductions import (
    Merge,
    excess_over,
    masked_logsumexp,
    masked_max,
    masked_min,
    masked_sum,
    scaled_exp,
    softplus_of,
)

FINITE = st.floats(-80, 80, allow_nan=False, width=64)


@st.composite
def masked_values(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 7)))
    values = draw(hnp.arrays(np.float64, shape, elements=FINITE))
    mask = draw(hnp.arrays(np.bool_, shape))
    return torch.from_numpy(values), torch.from_numpy(mask)


@given(masked_values(), st.floats(0.1, 5))
def test_logsumexp_is_the_logarithm_of_the_sum(given_values: tuple[Tensor, Tensor], scale: float) -> None:
    values, mask = given_values
    found = masked_logsumexp(values, mask, scale)
    for row, (entries, kept) in enumerate(zip(values.tolist(), mask.tolist(), strict=True)):
        inside = [scale * value for value, keep in zip(entries, kept, strict=True) if keep]
        expected = -math.inf if not inside else max(inside) + math.log(sum(math.exp(v - max(inside)) for v in inside))
        assert found[row] == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(masked_values())
def test_gradient_of_logsumexp_is_a_softmax_and_never_nan(given_values: tuple[Tensor, Tensor]) -> None:
    values, mask = given_values
    values.requires_grad_()
    total = softplus_of(masked_logsumexp(values, mask))
    (gradient,) = torch.autograd.grad(total.sum(), values)
    exponentials = torch.where(mask, values.detach(), -math.inf)
    expected = (exponentials - softplus_of(masked_logsumexp(exponentials))[:, None]).exp()
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@given(masked_values())
def test_extremes_and_sums_of_masked_rows(given_values: tuple[Tensor, Tensor]) -> None:
    values, mask = given_values
    rows = [
        [v for v, keep in zip(*row, strict=True) if keep] for row in zip(values.tolist(), mask.tolist(), strict=True)
    ]
    assert masked_max(values, mask).tolist() == [max(row, default=-math.inf) for row in rows]
    assert masked_min(values, mask).tolist() == [min(row, default=math.inf) for row in rows]
    assert masked_sum(values, mask).tolist() == pytest.approx([math.fsum(row) for row in rows], abs=1e-10)


@given(masked_values(), st.integers(1, 6))
@pytest.mark.parametrize("merge", list(Merge))
def test_a_row_is_the_merge_of_its_parts(merge: Merge, given_values: tuple[Tensor, Tensor], cut: int) -> None:
    reduce = {
        Merge.SUM: masked_sum,
        Merge.MAX: masked_max,
        Merge.MIN: masked_min,
        Merge.LOGSUMEXP: masked_logsumexp,
    }[merge]
    values, mask = given_values
    parts = [reduce(v, m) for v, m in zip(values.split(cut, 1), mask.split(cut, 1), strict=True)]
    found = torch.full((len(values),), merge.neutral, dtype=torch.float64)
    for part in parts:
        found = merge.combine(found, part)
    torch.testing.assert_close(found, reduce(values, mask), rtol=1e-10, atol=1e-10)
    twice = merge.combine(found, found)
    torch.testing.assert_close(merge.repeat(found, 2), twice, rtol=1e-12, atol=1e-12)


@given(masked_values())
def test_a_plain_bool_is_a_full_mask(given_values: tuple[Tensor, Tensor]) -> None:
    values, mask = given_values
    for reduce in (masked_sum, masked_max, masked_min, masked_logsumexp):
        torch.testing.assert_close(reduce(values, True), reduce(values, torch.ones_like(mask)))
        torch.testing.assert_close(reduce(values, False), reduce(values, torch.zeros_like(mask)))


@given(masked_values())
def test_excess_is_what_lies_strictly_above_the_floor(given_values: tuple[Tensor, Tensor]) -> None:
    values, _ = given_values
    floor = values.mean(dim=1)
    expected = torch.where(values > floor[:, None], values - floor[:, None], -math.inf)
    assert torch.equal(excess_over(values, floor), expected)
    assert (excess_over(values, torch.full_like(floor, math.inf)) == -math.inf).all()


@given(masked_values(), st.floats(0.1, 3))
def test_scaled_exponential(given_values: tuple[Tensor, Tensor], scale: float) -> None:
    values, mask = given_values
    shift = -scale * values.amax(dim=1)
    kept = torch.where(mask, values, -math.inf)
    expected = torch.where(mask, (scale * values + shift[:, None]).exp(), 0.0)
    torch.testing.assert_close(scaled_exp(kept, scale, shift), expected, rtol=1e-10, atol=1e-300)
    assert (scaled_exp(values, scale, torch.full_like(shift, -math.inf)) == 0).all()
