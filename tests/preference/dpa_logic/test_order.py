"""Places, the map, intervals."""

import itertools

import pytest

from scorecraft.preference.dpa_logic import (
    CATALOGUE,
    PreferenceStructure,
    every_structure,
    interval,
    known_structures,
    lattice,
    place,
)


def of(name):
    return CATALOGUE[name].structure


def test_places():
    here = place(of("orpo"))
    assert here.equals == ("ORPO",)
    assert here.entails == ("cCPO", "unCPO", "cfUNL")
    assert here.entailed_by == ("CEUnl",)
    assert here.incomparable == ("CE", "CPO", "fUNL")
    new = place(PreferenceStructure.decompile("W*L / (W*(1 - L))").swapped())
    assert new.equals == ()
    assert new.same_loss == ("fUNL",)
    assert place(of("dpo")).equals == ("DPO",)


def test_a_structure_over_other_propositions_has_no_place():
    with pytest.raises(ValueError, match="argument `other`: expected a structure over A, B, got one over W, L"):
        place(PreferenceStructure.parse("A -> B", ("A", "B")))


def test_the_map_of_the_known_losses():
    found = lattice()
    assert found.levels == (("CEUnl",), ("CE", "CPO", "ORPO", "fUNL"), ("cCPO", "cfUNL"), ("unCPO",))
    assert set(found.covers) == {
        ("CEUnl", "CE"), ("CEUnl", "CPO"), ("CEUnl", "ORPO"), ("CEUnl", "fUNL"), ("CE", "cCPO"), ("CPO", "cCPO"),
        ("ORPO", "cCPO"), ("ORPO", "cfUNL"), ("fUNL", "cfUNL"), ("cCPO", "unCPO"), ("cfUNL", "unCPO"),
    }  # fmt: skip


def test_the_covers_of_all_finite_structures_are_their_transitive_reduction():
    named = {str(index): one for index, one in enumerate(every_structure(("W",))) if one.is_finite}
    found = lattice(named)
    strict = {(a, b) for a, b in itertools.permutations(named, 2) if named[a].entails(named[b])}
    reached = set(found.covers)
    while more := {(a, d) for a, b in reached for c, d in reached if b == c} - reached:
        reached |= more
    assert reached == strict
    for cover in found.covers:  # none of them follows from the others
        rest = strict - {cover}
        assert not any((cover[0], middle) in rest and (middle, cover[1]) in rest for middle in named)
    height = {name: level for level, names in enumerate(found.levels) for name in names}
    assert all(height[a] < height[b] for a, b in strict)


def test_equal_structures_have_one_place():
    with pytest.raises(ValueError, match="argument `structures`: expected different structures, got"):
        lattice({"CPO": of("cpo"), "SLiC": of("slic")})


def test_reference_forms_are_incomparable():
    found = lattice(known_structures(reference=True))
    assert found.covers == ()
    assert "DPO" in found.levels[0]


def test_an_interval_holds_what_lies_between_and_nothing_else():
    for lower, upper in (("ceunl", "uncpo"), ("orpo", "uncpo"), ("cpo", "ccpo")):
        expected = {
            one.counts
            for one in every_structure()
            if one.is_finite and of(lower).entails(one) and one.entails(of(upper))
        }
        assert {one.counts for one in interval(of(lower), of(upper), winner_monotone=False)} == expected
    found = interval(of("ceunl"), of("uncpo"))
    assert len(found) == 16
    assert (found[0], found[-1]) == (of("ceunl"), of("uncpo"))
    assert all(one in found for one in known_structures().values())


def test_the_filter_keeps_what_can_be_trained_on():
    bottom = PreferenceStructure.of_worlds(["TF"], ["TT", "TF", "FT", "FF"])
    top = PreferenceStructure.of_worlds(["TT", "TF", "FT", "FF"], ["FT"])
    everything, kept = interval(bottom, top, winner_monotone=False), interval(bottom, top)
    assert len(everything) == 64
    assert all(one.winner_monotone and one.plus != one.minus for one in kept)
    assert {one.counts for one in kept} == {
        one.counts for one in everything if one.winner_monotone and one.plus != one.minus
    }
    assert 16 < len(kept) < 64


def test_intervals_with_a_reference():
    lower = of("dpo")
    upper = PreferenceStructure(lower.plus | 1 << 15, lower.minus & ~2, lower.propositions)
    found = interval(lower, upper)
    assert lower in found
    assert all(lower.entails(one) and one.entails(upper) and one.winner_monotone for one in found)


def test_refused_intervals():
    with pytest.raises(ValueError, match="argument `lower`: expected a structure that entails `L -> W given W \\^ L`"):
        interval(of("cpo"), of("orpo"))
    bottom = PreferenceStructure(1, (1 << 16) - 1, ("W", "L", "RW", "RL"))
    top = PreferenceStructure((1 << 16) - 1, 2, ("W", "L", "RW", "RL"))
    with pytest.raises(ValueError, match=r"argument `upper`: expected at most 16 worlds of difference .* got 30"):
        interval(bottom, top)
