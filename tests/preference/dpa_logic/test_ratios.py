"""Ratios of polynomials: what counts worlds, what is refused, printing and comparing."""

import itertools

import numpy as np
import pytest
import torch

from scorecraft.preference.dpa_logic import CATALOGUE, FormulaError, PreferenceStructure, every_structure
from scorecraft.preference.dpa_logic.polynomials import (
    count_text,
    never_negative,
    product_coefficients,
    slope_text,
    vertex_values,
)
from scorecraft.preference.dpa_logic.worlds import is_true, members

FINITE = [structure for structure in every_structure() if structure.is_finite]


def counted(worlds, probabilities):
    """A weighted count by its definition."""
    n = len(probabilities)
    return sum(
        np.prod([p if is_true(world, i, n) else 1 - p for i, p in enumerate(probabilities)])
        for world in members(worlds)
    )


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_known_ratio_decompiles_to_its_formula_and_back(name):
    loss = CATALOGUE[name]
    structure = PreferenceStructure.decompile(loss.ratio)
    assert structure == loss.structure == PreferenceStructure.parse(loss.formula)
    assert PreferenceStructure.decompile(structure.ratio) == structure
    assert PreferenceStructure.parse(structure.text) == structure


@pytest.mark.parametrize(
    "ratio, text",
    [
        ("W / (1 - W) / (L / (1 - L))", "L -> W given W ^ L"),
        ("log (W / (1 - W)) / (L / (1 - L))", "L -> W given W ^ L"),
        ("log W*(1 - L) / (L*(1 - W))", "L -> W given W ^ L"),
        ("W / L", "L -> W given W | L both W & L"),
        ("(W*L + 1 - L) / (L - W*L)", "L -> W"),
        ("(1 - L*(1 - W)) / (L*(1 - W))", "L -> W"),
        ("(W/RW) / (L/RL)", CATALOGUE["dpo"].structure.text),
        ("1 / (--L)", "true given W ^ W | true both L"),
        ("2*W*(1 - L) / (2*L)", "W & ~L given W & ~L | L"),
    ],
)
def test_spellings_of_ratios(ratio, text):
    assert PreferenceStructure.decompile(ratio) == PreferenceStructure.parse(text)


def test_a_factor_of_both_sides_is_kept_where_it_counts_and_cancelled_where_it_must_be():
    kept = PreferenceStructure.decompile("W*L / (W*(1 - L))")
    assert kept == PreferenceStructure.of_worlds(["TT"], ["TF"])
    cancelled = PreferenceStructure.decompile("W*W*L / (W*(1 - L)*W)")
    assert cancelled == PreferenceStructure.decompile("L / (1 - L)")
    assert kept != cancelled
    assert kept.same_loss(cancelled)


@pytest.mark.parametrize(
    "ratio, why",
    [
        ("(W + L) / L", "a numerator that does not: it is 2 in the world TT of (W, L)"),
        ("W / (W + L)", "a denominator that does not: it is 2 in the world TT of (W, L)"),
        ("(1 - W - L) / L", "it is -1 in the world TT"),
        ("W*W / L", "the probability of W occurs with itself as a factor"),
        ("3*W / L", "it is 3 in the world TT"),
    ],
)
def test_sides_that_count_no_worlds_are_refused_with_the_reason(ratio, why):
    with pytest.raises(ValueError, match="argument `ratio`: expected polynomials that count worlds") as caught:
        PreferenceStructure.decompile(ratio)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "ratio, column",
    [
        ("W / ", 4),
        ("W / (L", 7),
        ("W / 0", 5),
        ("W / (L - L)", 5),
        ("W L", 3),
        ("W / X", 5),
        ("W ** L", 4),
        ("W ? L", 3),
    ],
)
def test_ratios_that_cannot_be_read(ratio, column):
    with pytest.raises(FormulaError, match=f"argument `ratio`: expected .* at column {column} of ") as caught:
        PreferenceStructure.decompile(ratio)
    assert caught.value.column == column


def test_all_225_finite_structures_go_to_a_ratio_and_back():
    for structure in FINITE:
        assert PreferenceStructure.decompile(structure.ratio) == structure
        assert PreferenceStructure.parse(structure.text) == structure


def test_printed_counts_are_the_counts():
    names, point = ("W", "L", "RW"), (0.3, 0.8, 0.45)
    values = dict(zip(names, point, strict=True))
    for worlds in range(256):
        assert eval(count_text(worlds, names), {}, values) == pytest.approx(counted(worlds, point), abs=1e-14)


def test_printed_slopes_are_the_derivatives():
    names, point = ("W", "L", "RW"), (0.3, 0.8, 0.45)
    values = dict(zip(names, point, strict=True))
    unsaid = 0
    for worlds, index in itertools.product(range(1, 256), range(3)):
        text = slope_text(worlds, index, names)
        if text is None:
            unsaid += 1
            continue
        log_p = torch.tensor(point, dtype=torch.float64).log()
        structure = PreferenceStructure(worlds, 255, names)  # over all worlds, whose count is one
        assert eval(text, {}, values) == pytest.approx(structure.slopes(log_p)[index].item(), abs=1e-12)
    assert 0 < unsaid < 3 * 255 / 2


def test_same_loss_is_equality_at_all_probabilities():
    random = torch.Generator().manual_seed(0)
    points = torch.rand(6, 2, generator=random, dtype=torch.float64).clamp(0.01).log()
    values = torch.stack([structure.log_ratio(points) for structure in FINITE])
    for first, of_first in zip(FINITE[::8], values[::8], strict=True):
        equal = (of_first - values).abs().amax(dim=1) < 1e-9
        assert equal.tolist() == [first.same_loss(other) for other in FINITE]


def test_a_product_of_counts():
    point = (0.3, 0.8)
    for left, right in itertools.product(range(16), repeat=2):
        coefficients = product_coefficients(vertex_values(left, 2), vertex_values(right, 2))
        value = sum(
            c * np.prod([p ** (2 - k) * (1 - p) ** k for p, k in zip(point, place, strict=True)])
            for place, c in np.ndenumerate(coefficients)
        )
        assert value == pytest.approx(counted(left, point) * counted(right, point), abs=1e-14)


@pytest.mark.parametrize(
    "coefficients, expected",
    [
        ([1, -2, 1], True),  # (2 p - 1)^2
        ([1, -3, 1], False),
        ([1, -1, 1], True),
        ([0, -1, 1], False),
        ([-1, 0, 1], False),
        ([4, -4, 1], True),
        ([[1, -1, 1], [0, 0, 0], [1, -1, 1]], True),
        ([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], True),  # a product of squares
        ([[1, -3, 1], [0, 0, 0], [1, -3, 1]], False),
        ([[1, 0, 1], [0, -9, 0], [1, 0, 1]], False),
    ],
)
def test_signs_of_polynomials(coefficients, expected):
    assert never_negative(np.array(coefficients)) is expected
