"""Ratios of polynomials in the probabilities of propositions: reading them, printing the counts of sets of worlds, and
comparing them exactly.

In a ratio the name of a proposition stands for its probability: `W*(1 - L) / (L*(1 - W))`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import product
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from scorecraft.core.checks import refuse
from scorecraft.preference.dpa_logic.minimal import Cube, disjoint_cover
from scorecraft.preference.dpa_logic.text import Reader
from scorecraft.preference.dpa_logic.worlds import everything, members, restricted, world_name

Terms: TypeAlias = frozenset[tuple[tuple[int, ...], int]]
"""A polynomial: `(indices, coefficient)`, an index as often as its power."""
Table: TypeAlias = npt.NDArray[np.int64]

SIGNS: Final = ("+", "-", "*", "/", "(", ")")
_ONE: Final[Terms] = frozenset({((), 1)})
_LARGEST = 2**62
_DEEPEST_BOX = 24


class Ratio(NamedTuple):
    """Products of polynomials, above and below the line."""

    above: tuple[Terms, ...]
    below: tuple[Terms, ...]


class Counts(NamedTuple):
    """The worlds whose weighted counts are the two sides of a ratio."""

    above: int
    below: int


def parse_ratio(text: str, propositions: Sequence[str]) -> Ratio:
    """Read `[log] EXPRESSION`, of probabilities, whole numbers, `+ - * /` and brackets.

    Raises:
        FormulaError: one line that names the column, what was expected there and what came.
    """
    reader = Reader("ratio", text, SIGNS)
    reader.take("log")
    ratio = _read_sum(reader, propositions)
    reader.end("one of + - * / or the end")
    return ratio


def counted_worlds(ratio: Ratio, propositions: Sequence[str]) -> Counts:
    """The sets of worlds of which both sides are the weighted counts.

    A multilinear polynomial is a weighted count if and only if it is 0 or 1 wherever all probabilities are 0 or 1, and
    then it counts the worlds at which it is 1. Equal factors of both sides are cancelled only where they must be.

    Raises:
        ValueError: one line that says why a side is no weighted count.
    """
    found: list[int | str] = [_worlds_of(side, propositions) for side in ratio]
    if any(isinstance(one, str) for one in found):
        found = [_worlds_of(side, propositions) for side in _cancelled(ratio)]
    for name, one in zip(("numerator", "denominator"), found, strict=True):
        if isinstance(one, str):
            refuse("ratio", "polynomials that count worlds", f"a {name} that does not: {one}")
    return Counts(*found)  # type: ignore[arg-type]


def count_text(worlds: int, propositions: Sequence[str]) -> str:
    """The weighted count of a set as a polynomial, as `parse_ratio` reads it."""
    n = len(propositions)
    inside, outside = (disjoint_cover(one, n) for one in (worlds, everything(n) ^ worlds))
    direct = " + ".join(_cube_text(cube, propositions) for cube in inside) or "0"
    if not outside or len(inside) == 1:
        return direct
    around = "1 - " + " - ".join(_cube_text(cube, propositions) for cube in outside)
    return around if len(around) <= len(direct) else direct


def ratio_text(above: int, below: int, propositions: Sequence[str]) -> str:
    """The ratio of two weighted counts, as `parse_ratio` reads it."""
    top, bottom = count_text(above, propositions), count_text(below, propositions)
    top = f"({top})" if {"+", "-"} & set(_outside_brackets(top)) else top
    bottom = f"({bottom})" if {"+", "-", "*"} & set(_outside_brackets(bottom)) else bottom
    return f"{top} / {bottom}"


def vertex_values(worlds: int, propositions: int) -> Table:
    """The truth table as an array with an axis of (true, false) per proposition."""
    flat = np.zeros(1 << propositions, dtype=np.int64)
    flat[list(members(worlds))] = 1
    return flat.reshape((2,) * propositions)


def product_coefficients(left: Table, right: Table) -> Table:
    """The product of two counts: coefficients of `prod_i p_i^(2 - k_i) (1 - p_i)^(k_i)`, `k_i` in 0, 1, 2."""
    found = np.zeros((3,) * left.ndim, dtype=np.int64)
    for place in np.argwhere(left):
        found[tuple(slice(int(k), int(k) + 2) for k in place)] += left[tuple(place)] * right
    return found


def same_ratio(first: Counts, second: Counts, propositions: int) -> bool:
    """Whether two ratios are equal for all probabilities."""
    a, b, c, d = (vertex_values(one, propositions) for one in (*first, *second))
    return bool((product_coefficients(a, d) == product_coefficients(c, b)).all())


def slope_coefficients(ratio: Counts, index: int, propositions: int) -> Table:
    """`t' b - t b'` of a ratio t / b by one probability, in the other ones: `t_1 b_0 - t_0 b_1`.

    `t_1` and `t_0` are `t` where the proposition holds and where it does not. The sign is that of the derivative.
    """

    def parts(worlds: int) -> tuple[Table, Table]:
        table = vertex_values(worlds, propositions)
        return np.take(table, 0, axis=index), np.take(table, 1, axis=index)

    (above_true, above_false), (below_true, below_false) = parts(ratio.above), parts(ratio.below)
    return product_coefficients(above_true, below_false) - product_coefficients(above_false, below_true)


def never_negative(coefficients: Table) -> bool:
    """Whether `sum_k c_k prod_i p_i^(2 - k_i) (1 - p_i)^(k_i)` is at least 0 for all probabilities, by halving boxes.

    Exact in whole numbers; a polynomial that touches zero inside a box so small that halving it `_DEEPEST_BOX` times
    does not settle the question counts as negative (in one variable that does not happen).
    """
    if coefficients.ndim == 1:
        high, middle, low = (int(one) for one in coefficients)
        return min(high, low) >= 0 and (middle >= 0 or middle * middle <= 4 * high * low)
    scaled = coefficients.astype(object)
    for axis in range(scaled.ndim):  # to Bernstein coefficients, times 2 per axis to stay whole
        shape = [1] * scaled.ndim
        shape[axis] = 3
        scaled = scaled * np.array([2, 1, 2], dtype=object).reshape(shape)
    return _box_never_negative(scaled, 0)


def _box_never_negative(bernstein: npt.NDArray[Any], depth: int) -> bool:
    if (bernstein >= 0).all():
        return True
    corners = (slice(None, None, 2),) * bernstein.ndim
    if (bernstein[corners] < 0).any() or depth == _DEEPEST_BOX:
        return False
    axis = depth % bernstein.ndim
    first, middle, last = (np.take(bernstein, k, axis=axis) for k in range(3))
    left, centre, right = 2 * (first + middle), first + 2 * middle + last, 2 * (middle + last)
    return _box_never_negative(np.stack([4 * first, left, centre], axis), depth + 1) and _box_never_negative(
        np.stack([centre, right, 4 * last], axis), depth + 1
    )


def slope_text(worlds: int, index: int, propositions: Sequence[str]) -> str | None:
    """`d log t / d log p` of a count t by one of its probabilities; None where it takes more than one difference."""
    n = len(propositions)
    holds, fails = restricted(worlds, index, n)
    if holds == fails:
        return "0"
    name = propositions[index]
    if not fails:
        return "1"
    if not holds:
        return f"-{name}/(1 - {name})"
    if holds & ~fails and fails & ~holds:
        return None
    sign, gained = ("", holds & ~fails) if holds & ~fails else ("-", fails & ~holds)
    change = count_text(gained, propositions)
    change = "" if change == "1" else f"*({change})" if {"+", "-"} & set(_outside_brackets(change)) else f"*{change}"
    return f"{sign}{name}{change}/({count_text(worlds, propositions)})"


def _read_sum(reader: Reader, propositions: Sequence[str]) -> Ratio:
    found = _read_product(reader, propositions)
    while (sign := reader.take("+", "-")) is not None:
        found = _added(found, _read_product(reader, propositions), -1 if sign.text == "-" else 1)
    return found


def _read_product(reader: Reader, propositions: Sequence[str]) -> Ratio:
    found = _read_factor(reader, propositions)
    while (sign := reader.take("*", "/")) is not None:
        token = reader.token
        other = _read_factor(reader, propositions)
        if sign.text == "/":
            if not all(other.above):
                reader.complain("a divisor that is not zero", token)
            other = Ratio(other.below, other.above)
        found = Ratio(found.above + other.above, found.below + other.below)
    return found


def _read_factor(reader: Reader, propositions: Sequence[str]) -> Ratio:
    token = reader.token
    if reader.take("-"):
        with reader.nested():
            inner = _read_factor(reader, propositions)
        return Ratio((*inner.above, frozenset({((), -1)})), inner.below)
    if reader.take("("):
        with reader.nested():
            inner = _read_sum(reader, propositions)
        reader.expect(")", "one of + - * / or `)`")
        return inner
    if token.text.isdigit():
        value = int(reader.advance().text)
        return Ratio((frozenset({((), value)}) if value else frozenset(),), ())
    if not token.text.isidentifier():
        reader.complain("a probability, a whole number or `(`", token)
    index = reader.proposition(token, propositions)
    reader.advance()
    return Ratio((frozenset({((index,), 1)}),), ())


def _added(left: Ratio, right: Ratio, sign: int) -> Ratio:
    """Sums are multiplied out; products stay products, so that equal factors can be seen."""
    first = _multiplied([*left.above, *right.below])
    second = _multiplied([*right.above, *left.below, frozenset({((), sign)})])
    total = Counter(dict(first))
    total.update(dict(second))  # type: ignore[arg-type]
    below = _multiplied([*left.below, *right.below])
    return Ratio((_terms(total),), () if below == _ONE else (below,))


def _multiplied(factors: Iterable[Terms]) -> Terms:
    def times(left: Terms, right: Terms) -> Terms:
        total: Counter[tuple[int, ...]] = Counter()
        for (a, x), (b, y) in product(left, right):
            total[tuple(sorted(a + b))] += x * y
        return _terms(total)

    return reduce(times, factors, _ONE)


def _terms(total: Counter[tuple[int, ...]]) -> Terms:
    return frozenset((indices, value) for indices, value in total.items() if value)


def _cancelled(ratio: Ratio) -> Ratio:
    above, below = Counter(ratio.above), Counter(ratio.below)
    common = above & below
    return Ratio(tuple((above - common).elements()), tuple((below - common).elements()))


def _worlds_of(side: tuple[Terms, ...], propositions: Sequence[str]) -> int | str:
    """The worlds that a polynomial counts, or why there are none."""
    n = len(propositions)
    terms = _multiplied(side)
    for indices, _ in terms:
        twice = [propositions[index] for index, count in Counter(indices).items() if count > 1]
        if twice:
            return f"the probability of {twice[0]} occurs with itself as a factor"
    if sum(abs(value) for _, value in terms) >= _LARGEST:
        return "its coefficients are too large"
    values = np.zeros((2,) * n, dtype=np.int64)  # coefficients first, index 0 for those with the proposition
    for indices, value in terms:
        values[tuple(0 if index in indices else 1 for index in range(n))] += value
    for axis in range(n):  # where a proposition holds, terms without it count as well
        values = np.stack([values.sum(axis=axis), values.take(1, axis=axis)], axis=axis)
    flat = values.reshape(-1)
    wrong = np.flatnonzero((flat != 0) & (flat != 1))
    if len(wrong):
        world = int(wrong[0])
        return f"it is {flat[world]} in the world {world_name(world, n)} of ({', '.join(propositions)})"
    return sum(1 << int(world) for world in np.flatnonzero(flat))


def _cube_text(cube: Cube, propositions: Sequence[str]) -> str:
    return "*".join(propositions[index] if holds else f"(1 - {propositions[index]})" for index, holds in cube) or "1"


def _outside_brackets(text: str) -> str:
    found, depth = [], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth == 0:
            found.append(character)
    return "".join(found)
