"""What there is to say about a structure: its loss in closed form, its worlds, its place, its gradient weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from scorecraft.core.checks import choice, describe, non_negative, positive, refuse
from scorecraft.preference.dpa_logic.catalogue import LINKS, Link
from scorecraft.preference.dpa_logic.formulas import truth_table
from scorecraft.preference.dpa_logic.loss import link
from scorecraft.preference.dpa_logic.order import Place, place
from scorecraft.preference.dpa_logic.polynomials import count_text, ratio_text, slope_text
from scorecraft.preference.dpa_logic.structures import WITH_REFERENCE, PreferenceStructure
from scorecraft.preference.dpa_logic.worlds import everything, world_name

SAMPLE: Final[Mapping[str, float]] = {"W": 0.7, "L": 0.4, "RW": 0.6, "RL": 0.5}
"""Probabilities at which values are shown."""

_FORMS: Final[Mapping[Link, str]] = {
    "logistic": "-log sigmoid(beta rho)",
    "squared": "(rho - 1 / (2 beta))^2",
    "margin": "max(0, beta - rho)",
}
_PREFACTORS: Final[Mapping[Link, str]] = {
    "logistic": "-beta sigmoid(-beta rho)",
    "squared": "2 (rho - 1 / (2 beta))",
    "margin": "-[rho < beta]",
}
_MOST_SHOWN = 16


@dataclass(frozen=True, slots=True)
class World:
    """A row of the truth table; `core`, `condition` and `both` are the three formulas in this world."""

    name: str
    core: bool
    condition: bool
    both: bool
    plus: bool
    minus: bool


@dataclass(frozen=True, slots=True)
class Weight:
    """How much one log-probability counts: `d loss / d log p = prefactor * slope`."""

    slope: str | None
    """`d rho / d log p` as a formula; None where it is not simple."""
    slope_value: float
    value: float
    """`d loss / d log p` at the sample point."""


@dataclass(frozen=True, slots=True)
class Description:
    """A structure and its loss, in words and numbers; `str()` of it is what the command prints."""

    formula: str
    core: str
    condition: str
    both: str
    propositions: tuple[str, ...]
    worlds: tuple[World, ...]
    ratio: str
    loss: str
    beta: float
    semantic: str | None
    """The logistic loss at beta = 1 as -log of a probability, where plus and minus share no world."""
    prefactor: str
    point: Mapping[str, float]
    rho: float
    value: float
    weights: Mapping[str, Weight]
    place: Place | None
    """None of structures over other propositions than those of the known losses."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([*self._closed_form(), "", *self._table(), "", *self._gradient(), *self._standing()])

    def _closed_form(self) -> list[str]:
        lines = [
            self.formula,
            f"  P   = {self.core}",
            f"  P_C = {self.condition}",
            f"  P_A = {self.both}",
            "",
            f"rho  = log [ {self.ratio} ]   (a name stands for its probability)",
            f"loss = {self.loss}, beta = {self.beta:g}",
        ]
        return lines if self.semantic is None else [*lines, f"     = -log [ {self.semantic} ] at beta = 1"]

    def _table(self) -> list[str]:
        names = " ".join(self.propositions)
        lines = [f"{names}   P  P_C  P_A  counted in"]
        for world in self.worlds[:_MOST_SHOWN]:
            letters = " ".join(
                f"{letter:{len(name)}}" for letter, name in zip(world.name, self.propositions, strict=True)
            )
            p, p_c, p_a = ("T" if one else "-" for one in (world.core, world.condition, world.both))
            side = {(True, True): "both", (True, False): "plus", (False, True): "minus", (False, False): "-"}
            lines.append(f"{letters}   {p}   {p_c}    {p_a}   {side[world.plus, world.minus]}")
        if len(self.worlds) > _MOST_SHOWN:
            lines.append(f"... {len(self.worlds)} worlds in all")
        return lines

    def _gradient(self) -> list[str]:
        point = ", ".join(f"{name} = {value:g}" for name, value in self.point.items())
        lines = [
            f"at {point}: rho = {self.rho:.6g}, loss = {self.value:.6g}",
            f"d loss / d log p = {self.prefactor} * d rho / d log p:",
        ]
        for name, weight in self.weights.items():
            formula = "" if weight.slope in (None, "0", "1", "-1") else f"{weight.slope} = "
            lines.append(f"  {name:3} d rho = {formula}{weight.slope_value:.6g}, d loss = {weight.value:.6g}")
        return lines

    def _standing(self) -> list[str]:
        if self.place is None:
            return []
        found = [
            ("equals", self.place.equals),
            ("same ratio as", self.place.same_loss),
            ("entails", self.place.entails),
            ("entailed by", self.place.entailed_by),
            ("incomparable with", self.place.incomparable),
        ]
        return ["", *(f"{what:18}{', '.join(names)}" for what, names in found if names)]


def describe_structure(
    structure: PreferenceStructure,
    *,
    loss: Link = "logistic",
    beta: float = 1.0,
    at: Mapping[str, float] | None = None,
) -> Description:
    """Everything about a structure and its loss.

    Args:
        structure: with a world on both sides.
        loss: the function of rho; see `LogicLoss`.
        beta: its scale.
        at: probabilities in (0, 1) at which values are taken, by proposition; 0.7 of W, 0.4 of L, 0.6 of RW, 0.5 of RL
            and of others where left out.

    Raises:
        ValueError: one line: an empty side, an unknown proposition, a probability out of range.
    """
    choice("loss", loss, LINKS)
    beta = non_negative("beta", beta) if loss == "margin" else positive("beta", beta)
    names, n = structure.propositions, structure.count
    point = _point(names, at or {})
    log_probabilities = torch.tensor([point[name] for name in names], dtype=torch.float64).log()
    rho = structure.log_ratio(log_probabilities)
    slopes = structure.slopes(log_probabilities)
    with torch.enable_grad():
        leaf = rho.detach().requires_grad_()
        value = link(leaf, loss, beta)
        (factor,) = torch.autograd.grad(value, leaf)
    constants = names[n // 2 :] if structure.reads_reference else ()
    weights = {
        name: Weight(_slope(structure, index), slopes[index].item(), (factor * slopes[index]).item() + 0.0)
        for index, name in enumerate(names)
        if name not in constants
    }
    tables = [truth_table(one, names) for one in (structure.core, structure.condition, structure.both)]
    sets = (*tables, structure.plus, structure.minus)
    return Description(
        formula=structure.text,
        core=str(structure.core),
        condition=str(structure.condition),
        both=str(structure.both),
        propositions=names,
        worlds=tuple(World(world_name(world, n), *(bool(one >> world & 1) for one in sets)) for world in range(1 << n)),
        ratio=structure.ratio,
        loss=_FORMS[loss],
        beta=beta,
        semantic=_semantic(structure) if loss == "logistic" else None,
        prefactor=_PREFACTORS[loss],
        point=point,
        rho=rho.item(),
        value=value.item(),
        weights=weights,
        place=place(structure) if names in (WITH_REFERENCE, WITH_REFERENCE[:2]) else None,
    )


def _point(names: tuple[str, ...], at: Mapping[str, float]) -> dict[str, float]:
    for name, value in at.items():
        if name not in names:
            refuse("at", f"probabilities of {', '.join(names)}", repr(name))
        if not isinstance(value, (int, float)) or not 0 < value < 1:
            refuse("at", f"a probability of {name} in (0, 1)", describe(value))
    return {name: float(at.get(name, SAMPLE.get(name, 0.5))) for name in names}


def _semantic(structure: PreferenceStructure) -> str | None:
    if structure.plus & structure.minus:
        return None
    either = structure.plus | structure.minus
    if either == everything(structure.count):
        return count_text(structure.plus, structure.propositions)
    return ratio_text(structure.plus, either, structure.propositions)


def _slope(structure: PreferenceStructure, index: int) -> str | None:
    name = structure.propositions[index]
    above, below = (slope_text(one, index, structure.propositions) for one in structure.counts)
    if above is None or below is None:
        return None
    if above == below:
        return "0"
    complement = f"-{name}/(1 - {name})"
    if (above, below) == ("1", complement):
        return f"1/(1 - {name})"
    if (above, below) == (complement, "1"):
        return f"-1/(1 - {name})"
    turned = below.removeprefix("-") if below.startswith("-") else f"-{below}"
    if below == "0" or above == "0":
        return above if below == "0" else turned
    return f"{above} + {turned}" if below.startswith("-") else f"{above} - {below}"
