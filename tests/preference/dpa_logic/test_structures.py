"""Structures: the catalogue's worlds, reference forms, entailment and equality."""

import itertools
import math

import pytest
import torch

from scorecraft.preference.dpa_logic import CATALOGUE, PreferenceStructure, every_structure, find_named
from scorecraft.preference.dpa_logic.catalogue import SINGLE_MODEL, TRL_LOSS_TYPES, WITHOUT_STRUCTURE

FINITE = [structure for structure in every_structure() if structure.is_finite]
WORLDS = {
    "ce": ("TT TF", "FT FF", "W", "true", "false"),
    "ceunl": ("TF", "TT FT FF", "W & ~L", "true", "false"),
    "cpo": ("TT TF", "TT FT", "L -> W", "W | L", "W & L"),
    "orpo": ("TF", "FT", "L -> W", "W ^ L", "false"),
    "ccpo": ("TT TF", "FT", "L -> W", "W | L", "false"),
    "uncpo": ("TT TF FF", "FT", "L -> W", "true", "false"),
    "funl": ("TF FF", "TT FT", "~L", "true", "false"),
    "cfunl": ("TF FF", "FT", "L -> W", "~W | ~L", "false"),
}
RATIOS = {
    "ce": lambda p, q: p / (1 - p),
    "ceunl": lambda p, q: p * (1 - q) / (q + (1 - p) * (1 - q)),
    "cpo": lambda p, q: p / q,
    "orpo": lambda p, q: p * (1 - q) / (q * (1 - p)),
    "ccpo": lambda p, q: p / ((1 - p) * q),
    "uncpo": lambda p, q: (p * q + 1 - q) / (q * (1 - p)),
    "funl": lambda p, q: (1 - q) / q,
    "cfunl": lambda p, q: (1 - q) / ((1 - p) * q),
}


def some_points(n, rows=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, n, generator=generator, dtype=torch.float64).clamp(1e-4, 1 - 1e-4)


@pytest.mark.parametrize("name", WORLDS)
def test_the_catalogue_has_the_worlds_and_formulas_of_the_paper(name):
    plus, minus, core, condition, both = WORLDS[name]
    structure = CATALOGUE[name].structure
    assert structure.worlds("plus") == plus.split()
    assert structure.worlds("minus") == minus.split()
    assert structure == PreferenceStructure.of_worlds(plus.split(), minus.split())
    assert (str(structure.core), str(structure.condition), str(structure.both)) == (core, condition, both)


@pytest.mark.parametrize("name", RATIOS)
def test_the_catalogue_has_the_ratios_of_the_paper(name):
    points = some_points(2)
    exact = RATIOS[name](*points.unbind(1)).log()
    torch.testing.assert_close(CATALOGUE[name].structure.log_ratio(points.log()), exact, rtol=1e-11, atol=1e-12)


def test_dpo_is_the_reference_form_of_cpo():
    dpo, cpo = CATALOGUE["dpo"].structure, CATALOGUE["cpo"].structure
    assert cpo.with_reference() == dpo
    assert str(dpo.core) == "L & RW -> W & RL"
    assert str(dpo.condition) == "W & RL | L & RW"
    assert str(dpo.both) == "W & L & RW & RL"
    assert dpo.worlds("plus") == ["TTTT", "TTFT", "TFTT", "TFFT"]
    assert dpo.worlds("minus") == ["TTTT", "TTTF", "FTTT", "FTTF"]
    points = some_points(4).log()
    ratio = (points[:, 0] - points[:, 1]) - (points[:, 2] - points[:, 3])
    torch.testing.assert_close(dpo.log_ratio(points), ratio, rtol=0, atol=1e-12)
    at = torch.tensor([-1.2, -0.9, -1.0, -1.1], dtype=torch.float64)
    assert dpo.log_ratio(at).item() == pytest.approx(-0.4, abs=1e-15)


@pytest.mark.parametrize("name", [name.lower() for name in SINGLE_MODEL])
def test_a_reference_form_is_the_difference_of_two_ratios_and_zero_at_the_reference(name):
    structure = CATALOGUE[name].structure
    form = structure.with_reference()
    assert form.propositions == ("W", "L", "RW", "RL")
    points = some_points(4).log()
    exact = structure.log_ratio(points[:, :2]) - structure.log_ratio(points[:, 2:])
    torch.testing.assert_close(form.log_ratio(points), exact, rtol=1e-10, atol=1e-11)
    same = points[:, [0, 1, 0, 1]]
    torch.testing.assert_close(form.log_ratio(same), torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-12)


def test_counts_of_structures():
    one = list(every_structure(("W",)))
    finite = [structure for structure in one if structure.is_finite]
    assert (len(one), len(finite)) == (16, 9)
    assert sum(a.entails(b) for a, b in itertools.permutations(finite, 2)) == 16
    assert (len(list(every_structure())), len(FINITE)) == (256, 225)
    monotone = [structure for structure in FINITE if structure.winner_monotone]
    assert len(monotone) == 67
    assert sum(structure.plus != structure.minus for structure in monotone) == 52


def test_entailment_orders_the_ratios_of_all_4000_pairs():
    points = some_points(2).log()
    rho = torch.stack([structure.log_ratio(points) for structure in FINITE])
    pairs = [(i, j) for i, j in itertools.permutations(range(225), 2) if FINITE[i].entails(FINITE[j])]
    assert len(pairs) == 4000 == 65**2 - 225
    below, above = torch.tensor(pairs).unbind(1)
    assert (rho[below] <= rho[above] + 1e-12).all()


def test_entailment_is_an_order():
    related = {(a.counts, b.counts) for a in FINITE for b in FINITE if a.entails(b)}
    for structure in FINITE:
        assert (structure.counts, structure.counts) in related
    for a, b in related:
        assert (b, a) not in related or a == b
    above = {a: {c for b, c in related if b == a} for a in {one.counts for one in FINITE}}
    assert all(above[b] <= above[a] for a, b in related)


def test_the_order_of_the_catalogue():
    named = {name: CATALOGUE[name.lower()].structure for name in SINGLE_MODEL}
    strict = {(a, b) for a, b in itertools.permutations(named, 2) if named[a].entails(named[b])}
    expected = {("CEUnl", other) for other in named if other != "CEUnl"}
    expected |= {(low, high) for low in ("CE", "CPO", "ORPO") for high in ("cCPO", "unCPO")}
    expected |= {("ORPO", "cfUNL"), ("fUNL", "cfUNL"), ("cCPO", "unCPO"), ("cfUNL", "unCPO"), ("fUNL", "unCPO")}
    assert strict == expected


def test_monotone_structures_are_those_whose_slopes_keep_their_sign():
    grid = torch.linspace(0.02, 0.98, 13, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid).log()
    for structure in FINITE:
        slopes = structure.slopes(points)
        kept = bool((slopes[:, 0] >= -1e-9).all() and (slopes[:, 1] <= 1e-9).all())
        assert kept == structure.winner_monotone, structure


@pytest.mark.parametrize("name", CATALOGUE)
def test_all_known_losses_raise_the_winner_and_lower_the_loser(name):
    assert CATALOGUE[name].structure.winner_monotone
    if not CATALOGUE[name].structure.reads_reference:
        assert CATALOGUE[name].structure.with_reference().winner_monotone


def test_swapping_the_answers_and_the_sides_negates_rho():
    points = some_points(2).log()
    exchanged = {"TT": "TT", "TF": "FT", "FT": "TF", "FF": "FF"}
    for structure in FINITE:
        torch.testing.assert_close(structure.swapped().log_ratio(points), -structure.log_ratio(points))
        sides = ([exchanged[world] for world in structure.worlds(side)] for side in ("minus", "plus"))
        other = PreferenceStructure.of_worlds(*sides)
        torch.testing.assert_close(
            other.log_ratio(points.flip(1)), -structure.log_ratio(points), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize(
    "first, second",
    [
        ("L -> W given W | L", "~L | W given ~(~W & ~L)"),
        ("L -> W given W ^ L", "W given W ^ L"),
        ("W & ~L given true both false", "~(W -> L)"),
        ("L -> W given W | L both W & L", "W given W | L both L & W"),
    ],
)
def test_equivalent_formulas_are_one_structure_with_equal_values_and_gradients(first, second):
    one, other = PreferenceStructure.parse(first), PreferenceStructure.parse(second)
    assert one == other
    assert hash(one) == hash(other)
    assert one.text == other.text
    points = some_points(2).log()
    assert torch.equal(one.log_ratio(points), other.log_ratio(points))
    assert torch.equal(one.slopes(points), other.slopes(points))


def test_the_three_formulas_give_back_every_structure():
    for structure in every_structure():
        again = PreferenceStructure.of_formulas(structure.core, structure.condition, structure.both)
        assert again == structure


def test_more_propositions_of_other_names():
    structure = PreferenceStructure.parse("A & ~B -> C given A | B both A & B & C", ("A", "B", "C"))
    assert PreferenceStructure.parse(structure.text, structure.propositions) == structure
    assert structure.log_ratio(some_points(3).log().reshape(4, 5, 3)).shape == (4, 5)
    with pytest.raises(ValueError, match="argument `winner_monotone`: expected a structure that speaks of W and L"):
        _ = structure.winner_monotone
    with pytest.raises(ValueError, match="argument `other`: expected a structure over A, B, C, got one over W, L"):
        structure.entails(CATALOGUE["cpo"].structure)


@pytest.mark.parametrize("text, side, sign", [("W & ~W", "plus", "-"), ("W given W", "minus", "+")])
def test_an_empty_side_is_refused_with_the_reason(text, side, sign):
    structure = PreferenceStructure.parse(text)
    assert not structure.is_finite
    told = f"argument `structure`: expected worlds on both sides, got .* whose {side} set is empty: rho would be"
    with pytest.raises(ValueError, match=rf"{told} \{sign}infinity everywhere"):
        structure.compiled()


def test_refusals():
    with pytest.raises(ValueError, match="argument `plus`: expected a set of worlds of 2 propositions, got 16"):
        PreferenceStructure(16, 1)
    with pytest.raises(ValueError, match="argument `minus`: expected worlds of 2 letters T or F, got 'TX'"):
        PreferenceStructure.of_worlds(["TF"], ["TX"])
    with pytest.raises(ValueError, match="argument `structure`: expected one of the model alone"):
        CATALOGUE["dpo"].structure.with_reference()
    with pytest.raises(ValueError, match="argument `propositions`: expected at most three"):
        every_structure(("A", "B", "C", "D"))
    with pytest.raises(ValueError, match=r"argument `log_probabilities`: expected finite log-probabilities <= 0"):
        CATALOGUE["cpo"].structure.log_ratio(torch.tensor([0.5, -1.0]))


def test_names_and_loss_types():
    assert find_named(" Orpo ").name == "ORPO"
    assert {name: find_named(name).name for name in TRL_LOSS_TYPES} == dict(TRL_LOSS_TYPES)
    for name in WITHOUT_STRUCTURE:
        with pytest.raises(ValueError, match="argument `name`: expected a loss that is a function of one log-ratio"):
            find_named(name)
    with pytest.raises(ValueError, match="argument `name`: expected a known loss \\(orpo"):
        find_named("orpp")


def test_the_slope_of_a_ratio():
    at = torch.tensor([0.7, 0.4], dtype=torch.float64).log()
    assert CATALOGUE["orpo"].structure.slopes(at).tolist() == pytest.approx([1 / 0.3, -1 / 0.6], rel=1e-14)
    assert math.isclose(CATALOGUE["cpo"].structure.slopes(at)[1].item(), -1.0)
