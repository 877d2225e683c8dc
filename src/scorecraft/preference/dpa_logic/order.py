"""The entailment order of structures: the place of one among others, its map, and what lies between two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scorecraft.core.checks import refuse
from scorecraft.preference.dpa_logic.catalogue import CATALOGUE, SINGLE_MODEL
from scorecraft.preference.dpa_logic.structures import MODEL, PreferenceStructure
from scorecraft.preference.dpa_logic.worlds import everything, members

MOST_FREE_WORLDS = 16
"""An interval with more choices than this has over 65,536 structures."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a structure stands among named ones: it entails those above, those below entail it."""

    equals: tuple[str, ...]
    same_loss: tuple[str, ...]
    """Other structures with the same ratio."""
    entails: tuple[str, ...]
    entailed_by: tuple[str, ...]
    incomparable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lattice:
    """The entailment order of named structures.

    `covers` are the pairs (lower, upper) with nothing between them, the transitive reduction; `levels` the names from
    the bottom up, each level above everything it is entailed by.
    """

    structures: Mapping[str, PreferenceStructure]
    covers: tuple[tuple[str, str], ...]
    levels: tuple[tuple[str, ...], ...]


def known_structures(*, reference: bool = False) -> dict[str, PreferenceStructure]:
    """The eight structures of one model, or their reference forms; that of CPO is called DPO."""
    found = {name: CATALOGUE[name.lower()].structure for name in SINGLE_MODEL}
    if not reference:
        return found
    return {"DPO" if name == "CPO" else f"{name} + reference": one.with_reference() for name, one in found.items()}


def place(structure: PreferenceStructure, among: Mapping[str, PreferenceStructure] | None = None) -> Place:
    """The place of a structure among named ones over the same propositions, by default the known ones.

    Raises:
        ValueError: `among` is over other propositions; by default, the structure is over others than W, L (RW, RL).
    """
    if among is None:
        among = known_structures(reference=len(structure.propositions) > len(MODEL))
    sorts: dict[str, list[str]] = {name: [] for name in Place.__dataclass_fields__}
    for name, other in among.items():
        up, down = structure.entails(other), other.entails(structure)
        sort = ("incomparable", "entailed_by", "entails", "equals")[2 * up + down]
        sorts[sort].append(name)
        if sort != "equals" and structure.is_finite and structure.same_loss(other):
            sorts["same_loss"].append(name)
    return Place(**{name: tuple(names) for name, names in sorts.items()})


def lattice(structures: Mapping[str, PreferenceStructure] | None = None) -> Lattice:
    """The map of named structures over the same propositions, by default of the eight known ones of one model.

    Equal structures must be given once.

    Raises:
        ValueError: two structures are equal, or not about the same propositions.
    """
    named = dict(known_structures() if structures is None else structures)
    below = {name: {other for other in named if other != name and named[other].entails(named[name])} for name in named}
    for name, others in below.items():
        for other in others:
            if name in below[other]:
                refuse("structures", "different structures", f"{other} and {name}, which are equal")
    covers = tuple(
        (lower, upper)
        for upper in named
        for lower in named
        if lower in below[upper] and not any(lower in below[between] for between in below[upper])
    )
    height: dict[str, int] = {}
    for name in sorted(named, key=lambda one: len(below[one])):  # what lies below has fewer below itself
        height[name] = max((height[other] + 1 for other in below[name]), default=0)
    levels = tuple(
        tuple(name for name in named if height[name] == level) for level in range(max(height.values(), default=-1) + 1)
    )
    return Lattice(named, covers, levels)


def interval(
    lower: PreferenceStructure, upper: PreferenceStructure, *, winner_monotone: bool = True
) -> list[PreferenceStructure]:
    """Every structure S with `lower entails S entails upper`, both ends among them, those of fewer changes first.

    Args:
        lower: entails `upper`.
        upper: over the same propositions.
        winner_monotone: only those that can be trained on: rho not constant (plus differs from minus), never falling
            with the probability of W and never rising with that of L.

    Structures with an empty side are left out.

    Raises:
        ValueError: one line: `lower` does not entail `upper`, or there are too many structures between them.
    """
    if not lower.entails(upper):
        refuse("lower", f"a structure that entails `{upper}`", f"`{lower}`")
    gained, lost = upper.plus & ~lower.plus, lower.minus & ~upper.minus
    free = gained.bit_count() + lost.bit_count()
    if free > MOST_FREE_WORLDS:
        refuse("upper", f"at most {MOST_FREE_WORLDS} worlds of difference (2^{MOST_FREE_WORLDS} structures)", free)
    found = [
        PreferenceStructure(lower.plus | more, upper.minus | kept, lower.propositions)
        for more in subsets(gained)
        for kept in subsets(lost)
    ]
    found = [one for one in found if one.is_finite and (not winner_monotone or _trainable(one))]

    def changes(one: PreferenceStructure) -> tuple[int, int, int]:
        moved = (one.plus & ~lower.plus).bit_count() + (lower.minus & ~one.minus).bit_count()
        return moved, one.plus, one.minus

    return sorted(found, key=changes)


def every_structure(propositions: Sequence[str] = MODEL) -> Iterator[PreferenceStructure]:
    """All `4^(2^n)` structures over at most three propositions, also those with an empty side."""
    names = tuple(propositions)
    if len(names) > 3:
        refuse("propositions", "at most three (4^8 structures); use `interval` for more", len(names))
    sets = range(everything(len(names)) + 1)
    return (PreferenceStructure(plus, minus, names) for plus in sets for minus in sets)


def subsets(worlds: int) -> Iterator[int]:
    """All subsets of a set, the empty one first."""
    bits = [1 << world for world in members(worlds)]
    return (sum(bit for at, bit in enumerate(bits) if number >> at & 1) for number in range(1 << len(bits)))


def _trainable(structure: PreferenceStructure) -> bool:
    return structure.plus != structure.minus and structure.winner_monotone
