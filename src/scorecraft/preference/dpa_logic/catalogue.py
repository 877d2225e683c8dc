"""The losses that have a name, each as a structure, a convex function of its log-ratio and a scale."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from scorecraft.core.checks import refuse
from scorecraft.preference.dpa_logic.structures import PreferenceStructure

Link: TypeAlias = Literal["logistic", "squared", "margin"]
LINKS: Final[tuple[Link, ...]] = ("logistic", "squared", "margin")


@dataclass(frozen=True, slots=True)
class NamedLoss:
    """A loss of the literature, or of the paper.

    `formula` is read by `PreferenceStructure.parse`; `ratio` is the one it was known by, as `decompile` reads it.
    """

    name: str
    formula: str
    ratio: str
    what: str
    loss: Link = "logistic"
    beta: float = 1.0
    average_log_probabilities: bool | None = None
    manual_reference: tuple[float, float] | None = None

    @property
    def structure(self) -> PreferenceStructure:
        """Its structure."""
        return PreferenceStructure.parse(self.formula)


_CPO, _CPO_RATIO = "L -> W given W | L both W & L", "W / L"
_DPO = "L & RW -> W & RL given W & RL | L & RW both W & L & RW & RL"
_DPO_RATIO = "W*RL / (L*RW)"

CATALOGUE: Final[Mapping[str, NamedLoss]] = {
    loss.name.lower(): loss
    for loss in (
        NamedLoss("CE", "W", "W / (1 - W)", "cross entropy on the winner"),
        NamedLoss(
            "CEUnl",
            "W & ~L",
            "W*(1 - L) / (L + (1 - W)*(1 - L))",
            "cross entropy on the winner, unlikelihood on the loser",
        ),
        NamedLoss("CPO", _CPO, _CPO_RATIO, "its preference term, beside which its paper trains on the winner"),
        NamedLoss(
            "ORPO",
            "L -> W given W ^ L",
            "W*(1 - L) / (L*(1 - W))",
            "its odds-ratio term, beside which its paper trains on the winner",
        ),
        NamedLoss(
            "cCPO",
            "L -> W given W | L",
            "W / ((1 - W)*L)",
            "of the paper: CPO that keeps the winner whole and drops what the loser shares with it",
        ),
        NamedLoss("unCPO", "L -> W", "(W*L + 1 - L) / (L*(1 - W))", "of the paper: the implication, unconditioned"),
        NamedLoss("fUNL", "~L", "(1 - L) / L", "unlikelihood of the loser"),
        NamedLoss("cfUNL", "L -> W given ~W | ~L", "(1 - L) / ((1 - W)*L)", "unlikelihood, conditioned"),
        NamedLoss("DPO", _DPO, _DPO_RATIO, "the reference form of CPO", beta=0.1),
        NamedLoss(
            "IPO",
            _DPO,
            _DPO_RATIO,
            "the square on log-ratios per token of DPO's structure",
            loss="squared",
            beta=0.1,
            average_log_probabilities=True,
        ),
        NamedLoss(
            "SimPO",
            _DPO,
            _DPO_RATIO,
            "DPO with a manual reference; gamma = beta log(RW / RL)",
            beta=2.0,
            average_log_probabilities=True,
            manual_reference=(math.log(0.5), math.log(0.5) - 0.5),
        ),
        NamedLoss("SLiC", _CPO, _CPO_RATIO, "its hinge, with delta = beta", loss="margin"),
        NamedLoss(
            "RRHF",
            _CPO,
            _CPO_RATIO,
            "its ranking term",
            loss="margin",
            beta=0.0,
            average_log_probabilities=True,
        ),
        NamedLoss(
            "DPO-hinge",
            _DPO,
            _DPO_RATIO,
            "the hinge on DPO's ratio; TRL's with its beta is 1 / beta of this one's, times that beta",
            loss="margin",
            beta=10.0,
        ),
        NamedLoss(
            "DPO-norm", _DPO, _DPO_RATIO, "DPO on log-probabilities per token", beta=0.1, average_log_probabilities=True
        ),
    )
}
"""By lower-case name."""

SINGLE_MODEL: Final = ("CE", "CEUnl", "CPO", "ORPO", "cCPO", "unCPO", "fUNL", "cfUNL")
"""The losses of one model with a structure of their own: the places of the map."""

SAME_STRUCTURE: Final[Mapping[str, str]] = {"CPO": "SLiC, RRHF; with a reference DPO, IPO, SimPO"}
"""What else is known by a structure of the map."""

TRL_LOSS_TYPES: Final[Mapping[str, str]] = {
    "sigmoid": "DPO",
    "hinge": "DPO-hinge",
    "ipo": "IPO",
    "sigmoid_norm": "DPO-norm",
    "sft": "CE",
    "simpo": "SimPO",
}
"""`loss_type` of TRL's trainers, as far as it is one of these losses."""

_NO_CONVEX_FUNCTION = "it is another function of DPO's log-ratio (structure of `dpo`), none of " + ", ".join(LINKS)
_TWO_TERMS = "it is a sum of terms of the winner and of the loser, and no function of one log-ratio"
_SORTED = "it sorts the log-ratios of a batch before it pairs them"
WITHOUT_STRUCTURE: Final[Mapping[str, str]] = {
    "exo_pair": _NO_CONVEX_FUNCTION,
    "robust": _NO_CONVEX_FUNCTION,
    "discopop": _NO_CONVEX_FUNCTION,
    "nca_pair": _TWO_TERMS,
    "bco_pair": _TWO_TERMS,
    "sppo_hard": _TWO_TERMS,
    "apo_zero": _TWO_TERMS,
    "apo_down": _TWO_TERMS,
    "aot": _SORTED,
    "aot_unpaired": _SORTED,
}
"""`loss_type` of TRL's trainers that is none of these losses, and why."""


def find_named(name: str) -> NamedLoss:
    """The loss of a name, whatever its capitals; also of a `loss_type` of TRL.

    Raises:
        ValueError: one line: there is none, and the nearest names or the reason.
    """
    word = name.strip().lower()
    if word in CATALOGUE:
        return CATALOGUE[word]
    if word in TRL_LOSS_TYPES:
        return CATALOGUE[TRL_LOSS_TYPES[word].lower()]
    if word in WITHOUT_STRUCTURE:
        refuse("name", "a loss that is a function of one log-ratio", f"{name!r}: {WITHOUT_STRUCTURE[word]}")
    known = [*CATALOGUE, *TRL_LOSS_TYPES]
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5) or list(CATALOGUE)
    refuse("name", f"a known loss ({', '.join(near)})", repr(name))


def is_named(text: str) -> bool:
    """Whether a text is a name and no formula."""
    word = text.strip().lower()
    return word in CATALOGUE or word in TRL_LOSS_TYPES or word in WITHOUT_STRUCTURE
