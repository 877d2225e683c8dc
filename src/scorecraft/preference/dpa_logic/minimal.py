"""A short formula for a set of worlds: what is simplified is the set, not the text, so equal sets give equal ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

from scorecraft.preference.dpa_logic.formulas import (
    FALSE,
    TRUE,
    Connected,
    Constant,
    Formula,
    Not,
    Proposition,
    truth_table,
)
from scorecraft.preference.dpa_logic.worlds import depends_on, everything, halves, where_true

Cube = tuple[tuple[int, bool], ...]
"""A conjunction of literals `(index, holds)`."""


def short_formula(worlds: int, propositions: Sequence[str]) -> Formula:
    """A short formula that holds in exactly these worlds.

    Of two propositions or fewer the shortest; of more an irredundant disjunction of conjunctions, or the negation of
    one, pushed inwards, where that has fewer literals.
    """
    n = len(propositions)
    if worlds in (0, everything(n)):
        return TRUE if worlds else FALSE
    matters = [propositions[index] for index in depends_on(worlds, n)]
    if len(matters) <= 2:
        return next(formula for formula in _small(matters) if truth_table(formula, propositions) == worlds)
    either, neither = cover(worlds, n), cover(everything(n) ^ worlds, n)
    if _size(either) <= _size(neither):
        return _joined("|", (_joined("&", (_literal(one, propositions) for one in cube)) for cube in either))
    opposites = (tuple((index, not holds) for index, holds in cube) for cube in neither)
    return _joined("&", (_joined("|", (_literal(one, propositions) for one in cube)) for cube in opposites))


def cover(worlds: int, propositions: int) -> tuple[Cube, ...]:
    """An irredundant set of cubes whose union is the set (Minato and Morreale's recursion)."""
    memo: dict[tuple[int, int, int], tuple[tuple[Cube, ...], int]] = {}

    def between(lower: int, upper: int, n: int) -> tuple[tuple[Cube, ...], int]:
        """Cubes over the last `n` propositions that cover `lower` and stay in `upper`, and what they cover."""
        if not lower:
            return (), 0
        if upper == everything(n):
            return ((),), upper
        key = (lower, upper, n)
        if key not in memo:
            first, half = propositions - n, 1 << (n - 1)
            (low_true, low_false), (up_true, up_false) = halves(lower, n), halves(upper, n)
            with_it, covered_true = between(low_true & ~up_false, up_true, n - 1)
            without, covered_false = between(low_false & ~up_true, up_false, n - 1)
            rest = (low_true & ~covered_true) | (low_false & ~covered_false)
            either, covered = between(rest, up_true & up_false, n - 1)
            cubes = (
                *(((first, True), *cube) for cube in with_it),
                *(((first, False), *cube) for cube in without),
                *either,
            )
            memo[key] = cubes, (covered_true | covered) | (covered_false | covered) << half
        return memo[key]

    return between(worlds, worlds, propositions)[0]


def disjoint_cover(worlds: int, propositions: int) -> tuple[Cube, ...]:
    """Cubes that do not overlap and whose union is the set: the paths of its decision diagram."""
    memo: dict[tuple[int, int], tuple[Cube, ...]] = {}

    def paths(part: int, n: int) -> tuple[Cube, ...]:
        if part in (0, everything(n)):
            return ((),) if part else ()
        if (part, n) not in memo:
            first, (holds, fails) = propositions - n, halves(part, n)
            if holds == fails:
                memo[part, n] = paths(holds, n - 1)
            else:
                memo[part, n] = (
                    *(((first, True), *cube) for cube in paths(holds, n - 1)),
                    *(((first, False), *cube) for cube in paths(fails, n - 1)),
                )
        return memo[part, n]

    return paths(worlds, propositions)


def cube_worlds(cube: Cube, propositions: int) -> int:
    """The worlds of a cube."""
    found = everything(propositions)
    for index, holds in cube:
        side = where_true(index, propositions)
        found &= side if holds else ~side
    return found


def _small(names: Sequence[str]) -> list[Formula]:
    """The formulas of two propositions that depend on both, or of one, the plainest first."""
    a = Proposition(names[0])
    if len(names) == 1:
        return [a, Not(a)]
    b = Proposition(names[1])
    return [
        Connected("&", a, b),
        Connected("|", a, b),
        Connected("->", a, b),
        Connected("->", b, a),
        Connected("^", a, b),
        Connected("<->", a, b),
        Connected("&", a, Not(b)),
        Connected("&", Not(a), b),
        Connected("&", Not(a), Not(b)),
        Connected("|", Not(a), Not(b)),
    ]


def _literal(literal: tuple[int, bool], propositions: Sequence[str]) -> Formula:
    atom = Proposition(propositions[literal[0]])
    return atom if literal[1] else Not(atom)


def _joined(sign: str, parts: Iterable[Formula]) -> Formula:
    found = list(parts)
    return reduce(lambda left, right: Connected(sign, left, right), found) if found else Constant(sign == "&")


def _size(cubes: Iterable[Cube]) -> int:
    return sum(map(len, cubes))
