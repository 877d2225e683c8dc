"""Reading and printing formulas, their truth tables, and complaints that point at a column."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorecraft.preference.dpa_logic import FormulaError, PreferenceStructure, parse_formula, short_formula, truth_table
from scorecraft.preference.dpa_logic.formulas import Connected, Constant, Not, Proposition
from scorecraft.preference.dpa_logic.minimal import cover, cube_worlds, disjoint_cover
from scorecraft.preference.dpa_logic.worlds import (
    depends_on,
    everything,
    is_true,
    literals_of,
    members,
    where_true,
    world_name,
)

NAMES = ("A", "B", "C")
FORMULAS = st.recursive(
    st.sampled_from([*map(Proposition, NAMES), Constant(True), Constant(False)]),
    lambda inner: inner.map(Not) | st.builds(Connected, st.sampled_from(["&", "|", "^", "->", "<->"]), inner, inner),
    max_leaves=12,
)


def by_hand(formula, world):
    """The truth of a formula in a world, by the definition of the connectives."""
    match formula:
        case Proposition(name):
            return world[name]
        case Constant(value):
            return value
        case Not(inner):
            return not by_hand(inner, world)
    left, right = by_hand(formula.left, world), by_hand(formula.right, world)
    return {
        "&": left and right,
        "|": left or right,
        "^": left != right,
        "->": not left or right,
        "<->": left == right,
    }[formula.sign]


def test_worlds_are_numbered_with_the_first_slowest_and_true_first():
    assert [world_name(k, 2) for k in range(4)] == ["TT", "TF", "FT", "FF"]
    assert (world_name(0, 4), world_name(1, 4), world_name(15, 4)) == ("TTTT", "TTTF", "FFFF")
    for n in range(1, 6):
        for index in range(n):
            assert list(members(where_true(index, n))) == [k for k in range(2**n) if is_true(k, index, n)]


@given(FORMULAS)
def test_truth_tables_follow_the_definition(formula):
    worlds = [dict(zip(NAMES, one, strict=True)) for one in itertools.product((True, False), repeat=3)]
    assert truth_table(formula, NAMES) == sum(by_hand(formula, world) << k for k, world in enumerate(worlds))


@given(FORMULAS)
def test_what_is_printed_is_read_as_the_same_formula(formula):
    assert truth_table(parse_formula(str(formula), NAMES), NAMES) == truth_table(formula, NAMES)
    assert str(parse_formula(str(formula), NAMES)) == str(formula)


@pytest.mark.parametrize(
    "text, meant",
    [
        ("~A & B", "(~A) & B"),
        ("A & B ^ C", "(A & B) ^ C"),
        ("A ^ B | C", "(A ^ B) | C"),
        ("A | B -> C", "(A | B) -> C"),
        ("A -> B <-> C", "(A -> B) <-> C"),
        ("A -> B -> C", "A -> (B -> C)"),
        ("A <-> B <-> C", "(A <-> B) <-> C"),
        ("~~A", "A"),
        ("  A->B ", "A -> B"),
    ],
)
def test_binding(text, meant):
    assert truth_table(parse_formula(text, NAMES), NAMES) == truth_table(parse_formula(meant, NAMES), NAMES)


def test_an_implication_groups_to_the_right_and_not_to_the_left():
    assert parse_formula("A -> B -> C", NAMES) == parse_formula("A -> (B -> C)", NAMES)
    assert str(parse_formula("(A -> B) -> C", NAMES)) == "(A -> B) -> C"
    assert truth_table(parse_formula("(A -> B) -> C", NAMES), NAMES) != truth_table(
        parse_formula("A -> B -> C", NAMES), NAMES
    )


@pytest.mark.parametrize(
    "text, column, told",
    [
        ("L -> -> W", 6, "expected a proposition, `~` or `(` at column 6 of `L -> -> W`, got `->`"),
        ("L -> X", 6, "expected one of the propositions W, L, RW, RL at column 6 of `L -> X`, got `X`"),
        ("L -> (W", 8, "at column 8 of `L -> (W`, got its end"),
        ("W given", 8, "expected a proposition, `~` or `(` at column 8"),
        ("W $ L", 3, "at column 3 of `W $ L`, got `$`"),
        ("W L", 3, "`given`, `both` or the end at column 3 of `W L`, got `L`"),
        ("W both L given W", 10, "at column 10"),
        ("W )", 3, "at column 3"),
        ("", 1, "at column 1 of ``, got its end"),
        ("~" * 200 + "W", 101, "at most 100 levels of nesting at column 102"),
    ],
)
def test_complaints_point_at_the_column(text, column, told):
    with pytest.raises(FormulaError) as caught:
        PreferenceStructure.parse(text)
    line = str(caught.value)
    assert line.startswith("argument `formula`: expected ")
    assert told in line
    assert "\n" not in line
    if "nesting" not in told:
        assert caught.value.column == column
        assert caught.value.pointer() == f"{text}\n{' ' * (column - 1)}^"


def test_only_text_is_read():
    with pytest.raises(TypeError, match="argument `formula`: expected text, got int"):
        PreferenceStructure.parse(3)


def test_long_chains_are_no_trouble():
    text = " | ".join(["A & ~B"] * 5000)
    formula = parse_formula(text, NAMES)
    assert truth_table(formula, NAMES) == truth_table(parse_formula("A & ~B", NAMES), NAMES)
    assert str(formula) == text


def test_short_formulas_of_two_propositions_are_the_shortest():
    texts = {str(short_formula(worlds, ("W", "L"))) for worlds in range(16)}
    assert texts == {
        "true", "false", "W", "L", "~W", "~L", "W & L", "W & ~L", "~W & L", "~W & ~L", "W | L", "~W | ~L",
        "W -> L", "L -> W", "W ^ L", "W <-> L",
    }  # fmt: skip


@given(st.integers(1, 5).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, 2 ** (2**n) - 1))))
def test_simplification_keeps_the_worlds(case):
    n, worlds = case
    names = [f"X{index}" for index in range(n)]
    assert truth_table(short_formula(worlds, names), names) == worlds
    cubes = cover(worlds, n)
    union = 0
    for cube in cubes:
        union |= cube_worlds(cube, n)
    assert union == worlds
    paths = [cube_worlds(cube, n) for cube in disjoint_cover(worlds, n)]
    assert sum(paths) == worlds  # a sum without carries: nothing is counted twice
    assert sum(path.bit_count() for path in paths) == worlds.bit_count()
    matters = [i for i in range(n) if any(bool(worlds >> k & 1) != bool(worlds >> (k ^ 1 << n - 1 - i) & 1)
                                          for k in range(2**n))]  # fmt: skip
    assert list(depends_on(worlds, n)) == matters
    literals = literals_of(worlds, n)
    assert literals is None or cube_worlds(literals, n) == worlds
    assert (literals is not None) == (worlds != 0 and any(cube_worlds(cube, n) == worlds for cube in cubes))


def test_no_cube_of_a_cover_can_be_left_out():
    for worlds in range(256):
        cubes = [cube_worlds(cube, 3) for cube in cover(worlds, 3)]
        for index in range(len(cubes)):
            union = 0
            for other, cube in enumerate(cubes):
                union |= cube * (other != index)
            assert union != worlds


def test_everything():
    assert [everything(n) for n in (1, 2, 3)] == [3, 15, 255]
