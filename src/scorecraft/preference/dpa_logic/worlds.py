"""Sets of worlds as bits of an integer.

A world says of each of `n` propositions whether it holds. Worlds are numbered with the first proposition slowest and
true first, so that of (W, L) the worlds 0 to 3 are TT, TF, FT, FF; world `k` is the bit `2^k` of an integer, and an
integer below `2^(2^n)` is a set of worlds: the truth table of a formula. Equality, entailment and counting are then
exact and cost a machine operation per 64 worlds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scorecraft.core.checks import refuse

MOST_PROPOSITIONS = 20
"""A truth table of more has over a million worlds."""


def everything(propositions: int) -> int:
    """All worlds."""
    return (1 << (1 << propositions)) - 1


def where_true(index: int, propositions: int) -> int:
    """The worlds in which one proposition holds."""
    block = 1 << (propositions - 1 - index)  # that many worlds with it, as many without, and so on
    found, width = (1 << block) - 1, 2 * block
    while width < 1 << propositions:
        found |= found << width
        width *= 2
    return found


def is_true(world: int, index: int, propositions: int) -> bool:
    """Whether a proposition holds in a world."""
    return not world >> (propositions - 1 - index) & 1


def members(worlds: int) -> Iterator[int]:
    """The numbers of the worlds of a set, in order."""
    while worlds:
        lowest = worlds & -worlds
        yield lowest.bit_length() - 1
        worlds ^= lowest


def world_name(world: int, propositions: int) -> str:
    """`"TF"`: a letter per proposition."""
    return "".join("T" if is_true(world, index, propositions) else "F" for index in range(propositions))


def halves(worlds: int, propositions: int) -> tuple[int, int]:
    """A set as two sets over the propositions behind the first: where that one holds, and where it does not."""
    half = 1 << (propositions - 1)
    return worlds & ((1 << half) - 1), worlds >> half


def restricted(worlds: int, index: int, propositions: int) -> tuple[int, int]:
    """The same for any proposition, as sets over all of them that do not depend on it."""
    holds = where_true(index, propositions)
    block = 1 << (propositions - 1 - index)
    inside, outside = worlds & holds, worlds & ~holds
    return inside | inside << block, outside | outside >> block


def depends_on(worlds: int, propositions: int) -> tuple[int, ...]:
    """The propositions that matter to a set."""
    found = []
    for index in range(propositions):
        first, second = restricted(worlds, index, propositions)
        if first != second:
            found.append(index)
    return tuple(found)


def literals_of(worlds: int, propositions: int) -> tuple[tuple[int, bool], ...] | None:
    """`((index, holds), ...)` of a set that is a conjunction of literals, a cube; else None."""
    if not worlds:
        return None
    cube, literals = everything(propositions), []
    for index in range(propositions):
        holds = where_true(index, propositions)
        for side, truth in ((holds, True), (everything(propositions) ^ holds, False)):
            if not worlds & ~side:
                cube &= side
                literals.append((index, truth))
    return tuple(literals) if cube == worlds else None


def checked_propositions(names: Sequence[str]) -> tuple[str, ...]:
    """Names of propositions: between one and `MOST_PROPOSITIONS` words, each once.

    Raises:
        ValueError: one line.
    """
    found = tuple(names)
    good = all(name.isidentifier() and name not in RESERVED for name in found)
    if not good or len(set(found)) != len(found) or not 1 <= len(found) <= MOST_PROPOSITIONS:
        refuse(
            "propositions",
            f"1 to {MOST_PROPOSITIONS} different words, none of them {', '.join(sorted(RESERVED))}",
            list(found) if len(found) <= MOST_PROPOSITIONS else f"{len(found)} names",
        )
    return found


RESERVED = frozenset({"true", "false", "given", "both", "log"})
"""Words that mean something in formulas or ratios."""
