"""Preference structures: the symbolic form of a loss, as a pair of sets of worlds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import describe, refuse
from scorecraft.preference.dpa_logic.counting import LogRatio, checked_probabilities
from scorecraft.preference.dpa_logic.formulas import (
    CONNECTIVES,
    FALSE,
    SIGNS,
    TRUE,
    Connected,
    Formula,
    read_formula,
    truth_table,
)
from scorecraft.preference.dpa_logic.minimal import short_formula
from scorecraft.preference.dpa_logic.polynomials import (
    Counts,
    counted_worlds,
    never_negative,
    parse_ratio,
    ratio_text,
    same_ratio,
    slope_coefficients,
)
from scorecraft.preference.dpa_logic.text import Reader
from scorecraft.preference.dpa_logic.worlds import (
    checked_propositions,
    everything,
    members,
    world_name,
)

MODEL: Final = ("W", "L")
"""What the model deems valid: the winning answer, the losing one."""
WITH_REFERENCE: Final = ("W", "L", "RW", "RL")
"""The same of the model, then of the reference."""


@dataclass(frozen=True)
class PreferenceStructure:
    """`S = (P, P_C, P_A)` as the worlds that count above and below the line.

        plus = (P or P_A) and P_C,    minus = (not P or P_A) and P_C,    rho = log WMC(plus) - log WMC(minus)

    Two structures are equal when their sets are, however they were written. Worlds are numbered with the first
    proposition slowest and true first and are the bits of an integer.

    Args:
        plus: worlds above the line.
        minus: worlds below the line.
        propositions: their names.

    Raises:
        ValueError: one line: names that are no words, sets that are not of these propositions.

    Source: arXiv 2412.17696, sections on preference structures; worlds and their numbers are ours.
    """

    plus: int
    minus: int
    propositions: tuple[str, ...] = MODEL

    def __post_init__(self) -> None:
        object.__setattr__(self, "propositions", checked_propositions(self.propositions))
        for name, worlds in (("plus", self.plus), ("minus", self.minus)):
            if isinstance(worlds, bool) or not isinstance(worlds, int) or not 0 <= worlds <= everything(self.count):
                refuse(name, f"a set of worlds of {self.count} propositions", describe(worlds))

    @classmethod
    def parse(cls, text: str, propositions: Sequence[str] | None = None) -> PreferenceStructure:
        """Read `P [given P_C] [both P_A]`, such as `L -> W given W | L both W & L`.

        Args:
            text: formulas of `~ & ^ | -> <->`, in this order of binding; `P_C` is true and `P_A` false when left out.
            propositions: the names; when left out W and L, and RW and RL where the text speaks of the reference.

        Raises:
            FormulaError: one line that names the column, what was expected there and what came.
        """
        core, condition, both, names = _read(text, propositions)
        return cls.of_formulas(core, condition, both, propositions=names)

    @classmethod
    def of_formulas(
        cls, core: Formula, condition: Formula = TRUE, both: Formula = FALSE, *, propositions: Sequence[str] = MODEL
    ) -> PreferenceStructure:
        """The structure of three formulas."""
        names = checked_propositions(propositions)
        p, p_c, p_a = (truth_table(one, names) for one in (core, condition, both))
        return cls((p | p_a) & p_c, ((everything(len(names)) ^ p) | p_a) & p_c, names)

    @classmethod
    def of_worlds(
        cls, plus: Iterable[str], minus: Iterable[str], propositions: Sequence[str] = MODEL
    ) -> PreferenceStructure:
        """The structure of worlds written as `"TF"`, a letter per proposition."""
        names = checked_propositions(propositions)
        number = {world_name(world, len(names)): world for world in range(1 << len(names))}
        sets = []
        for name, worlds in (("plus", plus), ("minus", minus)):
            chosen = list(worlds)
            if unknown := [world for world in chosen if world not in number]:
                refuse(name, f"worlds of {len(names)} letters T or F", repr(unknown[0]))
            sets.append(sum(1 << number[world] for world in set(chosen)))
        return cls(sets[0], sets[1], names)

    @classmethod
    def decompile(cls, ratio: str, propositions: Sequence[str] | None = None) -> PreferenceStructure:
        """The structure behind a log-ratio, such as `log W*(1 - L) / (L*(1 - W))`; a name stands for its probability.

        Above and below the line stand polynomials that count worlds: multilinear, and 0 or 1 wherever all probabilities
        are.

        Raises:
            FormulaError: the text cannot be read; the line names the column.
            ValueError: one line that says why a side counts no worlds.
        """
        known = WITH_REFERENCE if propositions is None else checked_propositions(propositions)
        read = parse_ratio(ratio, known)
        names = _spoken_of(ratio) if propositions is None else known
        return cls(*counted_worlds(read, names), names)

    @property
    def count(self) -> int:
        """How many propositions there are."""
        return len(self.propositions)

    @cached_property
    def core(self) -> Formula:
        """`P`, as the decompiler gives it: minus -> plus, simplified."""
        simple = short_formula((everything(self.count) ^ self.minus) | self.plus, self.propositions)
        sides = Connected("->", *(short_formula(one, self.propositions) for one in (self.minus, self.plus)))
        return min(simple, sides, key=_length)

    @cached_property
    def condition(self) -> Formula:
        """`P_C`: plus or minus."""
        return short_formula(self.plus | self.minus, self.propositions)

    @cached_property
    def both(self) -> Formula:
        """`P_A`: plus and minus."""
        return short_formula(self.plus & self.minus, self.propositions)

    @property
    def text(self) -> str:
        """The structure as `parse` reads it."""
        given = "" if self.condition == TRUE else f" given {self.condition}"
        both = "" if self.both == FALSE else f" both {self.both}"
        return f"{self.core}{given}{both}"

    @property
    def ratio(self) -> str:
        """`WMC(plus) / WMC(minus)` as a ratio of polynomials, as `decompile` reads it."""
        return ratio_text(self.plus, self.minus, self.propositions)

    @property
    def counts(self) -> Counts:
        """The two sets."""
        return Counts(self.plus, self.minus)

    @property
    def is_finite(self) -> bool:
        """Whether both sets have a world, so that rho is finite."""
        return bool(self.plus and self.minus)

    @property
    def reads_reference(self) -> bool:
        """Whether it speaks of the reference."""
        return self.propositions == WITH_REFERENCE

    @property
    def winner_monotone(self) -> bool:
        """Whether rho never falls with the probability of W and never rises with that of L, whatever the others are.

        The sign of `d rho / d p` is that of `t' b - t b'`, a polynomial without `p`, which is looked at exactly; with
        more than two propositions a polynomial that touches zero inside may count as negative.
        """
        self._check_model("winner_monotone")
        up, down = (
            slope_coefficients(self.counts, self.propositions.index(name), self.count) * sign
            for name, sign in (("W", 1), ("L", -1))
        )
        return never_negative(up) and never_negative(down)

    def worlds(self, side: str) -> list[str]:
        """The worlds of `"plus"` or `"minus"`, a letter per proposition."""
        return [world_name(world, self.count) for world in members(getattr(self, side))]

    def entails(self, other: PreferenceStructure) -> bool:
        """Whether plus lies in the other's plus and the other's minus in minus: then rho is nowhere above the other's.

        Raises:
            ValueError: the two are not about the same propositions.
        """
        self._check_same(other)
        return not (self.plus & ~other.plus or other.minus & ~self.minus)

    def same_loss(self, other: PreferenceStructure) -> bool:
        """Whether both ratios are equal for all probabilities; equal structures have equal ratios, not only they.

        `{TT}` over `{TF}` and `{TT, FT}` over `{TF, FF}` are both q / (1 - q), because W cancels.
        """
        self._check_same(other)
        return self.counts == other.counts or same_ratio(self.counts, other.counts, self.count)

    def swapped(self) -> PreferenceStructure:
        """Plus and minus exchanged: rho with the other sign."""
        return type(self)(self.minus, self.plus, self.propositions)

    def with_reference(self) -> PreferenceStructure:
        """The reference form: rho of the model minus rho of the reference, over twice as many propositions.

        Plus are the worlds with a plus world of the model and a minus world of the reference, minus the reverse. The
        names of the reference's propositions have an R in front. The reference form of CPO is DPO.

        Raises:
            ValueError: it has propositions of the reference already.
        """
        names = (*self.propositions, *("R" + name for name in self.propositions))
        if self.reads_reference:
            refuse("structure", "one of the model alone", f"`{self.text}`, which reads the reference")
        checked_propositions(names)
        block = 1 << self.count

        def both(model: int, reference: int) -> int:
            return sum(reference << world * block for world in members(model))

        return type(self)(both(self.plus, self.minus), both(self.minus, self.plus), names)

    def compiled(self) -> LogRatio:
        """Rho as a module on log-probabilities `[..., n]`.

        Raises:
            ValueError: one line: a set is empty, so that rho is infinite.
        """
        if not self.is_finite:
            side, sign = ("plus", "-") if not self.plus else ("minus", "+")
            refuse(
                "structure",
                "worlds on both sides",
                f"`{self.text}`, whose {side} set is empty: rho would be {sign}infinity everywhere",
            )
        return LogRatio(self.plus, self.minus, self.count)

    def log_ratio(self, log_probabilities: Float[Tensor, "... n"], *, validate: bool = True) -> Float[Tensor, "..."]:
        """Rho of log-probabilities `[..., n]`, in the order of the propositions.

        Raises:
            ValueError: one line: shapes, values above 0, an empty set.
        """
        module = self.compiled()
        values = checked_probabilities(log_probabilities, self.count, validate=validate)
        return module.to(values.device)(values)

    def slopes(self, log_probabilities: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """`d rho / d log p` of every proposition."""
        with torch.enable_grad():
            leaf = checked_probabilities(log_probabilities, self.count, validate=True).detach().requires_grad_()
            (found,) = torch.autograd.grad(self.log_ratio(leaf).sum(), leaf, materialize_grads=True, allow_unused=True)
        return found

    def __str__(self) -> str:
        return self.text

    def _check_same(self, other: PreferenceStructure) -> None:
        if other.propositions != self.propositions:
            refuse(
                "other", f"a structure over {', '.join(self.propositions)}", f"one over {', '.join(other.propositions)}"
            )

    def _check_model(self, what: str) -> None:
        if not set(MODEL) <= set(self.propositions):
            refuse(what, "a structure that speaks of W and L", f"one over {', '.join(self.propositions)}")


def _read(text: str, propositions: Sequence[str] | None) -> tuple[Formula, Formula, Formula, tuple[str, ...]]:
    reader = Reader("formula", text, SIGNS)
    known = WITH_REFERENCE if propositions is None else checked_propositions(propositions)
    core, condition, both = read_formula(reader, known), TRUE, FALSE
    if reader.take("given"):
        condition = read_formula(reader, known)
    if reader.take("both"):
        both = read_formula(reader, known)
    reader.end(f"one of {' '.join(CONNECTIVES)}, `given`, `both` or the end")
    return core, condition, both, _spoken_of(text) if propositions is None else known


def _spoken_of(text: str) -> tuple[str, ...]:
    """W and L, and those of the reference where a text names one."""
    return WITH_REFERENCE if re.search(r"\bR[WL]\b", text) else MODEL


def _length(formula: Formula) -> int:
    return len(str(formula))
