"""Propositional formulas: reading, printing, and their truth tables.

`~ & ^ | -> <->` bind in this order, the strongest first; `->` groups to the right, all others to the left. `true` and
`false` are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from scorecraft.preference.dpa_logic.text import Reader
from scorecraft.preference.dpa_logic.worlds import everything, where_true

SIGNS: Final = ("<->", "->", "~", "&", "^", "|", "(", ")")
CONNECTIVES: Final[Mapping[str, int]] = {"<->": 1, "->": 2, "|": 3, "^": 4, "&": 5}
"""How strongly they bind."""
_ATOM = 6


@dataclass(frozen=True, slots=True)
class Proposition:
    """An atom, by its name."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Constant:
    """`true` or `false`."""

    value: bool

    def __str__(self) -> str:
        return "true" if self.value else "false"


@dataclass(frozen=True, slots=True)
class Not:
    """`~A`."""

    inner: Formula

    def __str__(self) -> str:
        return f"~{_bracketed(self.inner, _ATOM)}"


@dataclass(frozen=True, slots=True)
class Connected:
    """Two formulas and the sign between them."""

    sign: str
    left: Formula
    right: Formula

    def __str__(self) -> str:
        if self.sign == "->":
            return f"{_bracketed(self.left, CONNECTIVES['->'] + 1)} -> {_bracketed(self.right, CONNECTIVES['->'])}"
        parts, left = [], self
        while isinstance(left, Connected) and left.sign == self.sign:  # a loop: such chains may be long
            parts.append(_bracketed(left.right, CONNECTIVES[self.sign] + 1))
            left = left.left
        return f" {self.sign} ".join([_bracketed(left, CONNECTIVES[self.sign]), *reversed(parts)])


Formula: TypeAlias = Proposition | Constant | Not | Connected

TRUE, FALSE = Constant(True), Constant(False)

_TABLES: Final[Mapping[str, Callable[[int, int, int], int]]] = {
    "&": lambda a, b, all_: a & b,
    "|": lambda a, b, all_: a | b,
    "^": lambda a, b, all_: a ^ b,
    "->": lambda a, b, all_: (all_ ^ a) | b,
    "<->": lambda a, b, all_: all_ ^ a ^ b,
}


def parse_formula(text: str, propositions: Sequence[str]) -> Formula:
    """Read a formula over named propositions.

    Raises:
        FormulaError: one line that names the column, what was expected there and what came.
    """
    reader = Reader("formula", text, SIGNS)
    formula = read_formula(reader, propositions)
    reader.end("a connective (& ^ | -> <->) or the end")
    return formula


def read_formula(reader: Reader, propositions: Sequence[str], weakest: int = 1) -> Formula:
    """Read a formula as far as it goes, by the strength of its connectives."""
    left = _read_operand(reader, propositions)
    while (strength := CONNECTIVES.get(reader.token.text, 0)) >= weakest:
        sign = reader.advance().text
        with reader.nested():
            right = read_formula(reader, propositions, strength + (sign != "->"))
        left = Connected(sign, left, right)
    return left


def truth_table(formula: Formula, propositions: Sequence[str]) -> int:
    """The worlds in which a formula holds."""
    n = len(propositions)
    spine: list[Connected] = []  # to the left in a loop: chains of connectives may be long
    while isinstance(formula, Connected):
        spine.append(formula)
        formula = formula.left
    match formula:
        case Proposition(name):
            table = where_true(list(propositions).index(name), n)
        case Constant(value):
            table = everything(n) if value else 0
        case Not(inner):
            table = everything(n) ^ truth_table(inner, propositions)
    for connected in reversed(spine):
        table = _TABLES[connected.sign](table, truth_table(connected.right, propositions), everything(n))
    return table


def _read_operand(reader: Reader, propositions: Sequence[str]) -> Formula:
    token = reader.token
    if reader.take("~"):
        with reader.nested():
            return Not(_read_operand(reader, propositions))
    if reader.take("("):
        with reader.nested():
            inner = read_formula(reader, propositions)
        reader.expect(")", "a connective (& ^ | -> <->) or `)`")
        return inner
    if reader.take("true", "false"):
        return Constant(token.text == "true")
    if not token.text.isidentifier() or token.text in ("given", "both"):
        reader.complain("a proposition, `~` or `(`", token)
    reader.proposition(token, propositions)
    return Proposition(reader.advance().text)


def _bracketed(formula: Formula, weakest: int) -> str:
    strength = CONNECTIVES[formula.sign] if isinstance(formula, Connected) else _ATOM
    return str(formula) if strength >= weakest else f"({formula})"
