"""The loss of a preference structure."""

from __future__ import annotations

import math
import warnings
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import choice, describe, non_negative, positive, refuse
from scorecraft.core.preferences import AnswerPairs, PreferenceObjective
from scorecraft.preference.dpa_logic.catalogue import LINKS, Link, find_named, is_named
from scorecraft.preference.dpa_logic.structures import MODEL, WITH_REFERENCE, PreferenceStructure

_DEFAULT: Final = "L -> W given W | L"


class LogicLoss(PreferenceObjective):
    """`f(rho)` of a preference structure: `rho = log WMC(plus) - log WMC(minus)` over W, L and perhaps RW, RL.

    W says that the model deems the chosen answer valid, with probability p(chosen); L says it of the rejected answer,
    RW and RL of the reference. The functions `f` are

        logistic   -log sigmoid(beta rho)
        squared    (rho - 1 / (2 beta))^2
        margin     max(0, beta - rho)

    With a true condition, nothing counted on both sides and beta = 1 the logistic loss is the semantic loss of the
    formula, `-log WMC(P)`. Where rho has no factor 1 - p it is a difference of sums of log-probabilities, exactly as
    written by hand (CPO, DPO).

    Args:
        formula: `P [given P_C] [both P_A]`, or a structure over (W, L) or (W, L, RW, RL). The default is cCPO.
        loss: `"logistic"`, `"squared"` or `"margin"`.
        beta: > 0; of the margin also 0.
        reference: take the reference form of a structure of one model (that of CPO is DPO).
        manual_reference: `(log RW, log RL)`, both below 0: constants in place of a reference model. With DPO's
            structure `log RW - log RL` is the margin of SimPO, gamma / beta.
        average_log_probabilities: per token instead of sums; the default is per token where rho has a factor 1 - p.
            Summed log-probabilities make 1 - p equal to 1, so that such a loss is another one: asking for them warns.
        reduction: over pairs.
        validate: read input values.

    Raises:
        FormulaError: the formula cannot be read; the line names the column.
        ValueError: one line: other propositions, an empty side, hyper-parameters out of range.

    Source: arXiv 2412.17696.
    """

    def __init__(
        self,
        formula: str | PreferenceStructure = _DEFAULT,
        *,
        loss: Link = "logistic",
        beta: float = 1.0,
        reference: bool = False,
        manual_reference: tuple[float, float] | None = None,
        average_log_probabilities: bool | None = None,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        structure = PreferenceStructure.parse(formula) if isinstance(formula, str) else formula
        if not isinstance(structure, PreferenceStructure) or structure.propositions not in (MODEL, WITH_REFERENCE):
            refuse("formula", "a formula or structure over W, L or over W, L, RW, RL", describe(formula))
        if reference:
            structure = structure.with_reference()
        ratio = structure.compiled()
        lowers = _has_complement(structure)
        if average_log_probabilities is None:
            average_log_probabilities = lowers
        elif lowers and not average_log_probabilities:
            warnings.warn(
                f"`{structure}` has factors 1 - p, which are 1 for the summed log-probabilities of an answer: use "
                "average_log_probabilities=True",
                stacklevel=2,
            )
        super().__init__(average_log_probabilities=average_log_probabilities, reduction=reduction, validate=validate)
        self.structure, self.ratio = structure, ratio
        self.loss: Link = choice("loss", loss, LINKS)  # type: ignore[assignment]
        self.beta = non_negative("beta", beta) if loss == "margin" else positive("beta", beta)
        self.manual_reference = _checked_manual(manual_reference, structure)
        self.needs_reference = structure.reads_reference and manual_reference is None

    @classmethod
    def named(cls, name: str, **options: Any) -> LogicLoss:
        """A loss of the catalogue, by its name (`"orpo"`, `"ccpo"`, `"simpo"`) or TRL's `loss_type`.

        Args:
            name: capitals do not matter.
            options: those of the class, in place of the catalogue's.

        Raises:
            ValueError: one line that names the nearest losses, or says why a `loss_type` has no structure.
        """
        known = find_named(name)
        told = {
            "loss": known.loss,
            "beta": known.beta,
            "average_log_probabilities": known.average_log_probabilities,
            "manual_reference": known.manual_reference,
        }
        return cls(known.structure, **(told | options))

    @classmethod
    def read(cls, text: str, **options: Any) -> LogicLoss:
        """A loss as it is typed: a known name (see `named`), or else a formula.

        Args:
            text: `orpo`, or `L -> W given W | L`.
            options: those of the class.

        Raises:
            FormulaError, ValueError: as the class and `named`.
        """
        return cls.named(text, **options) if is_named(text) else cls(text, **options)

    def log_ratio(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        """Rho of each pair, of log-probabilities as they stand in `pairs`."""
        columns = [pairs.chosen, pairs.rejected]
        if self.manual_reference is not None:
            columns += [torch.full_like(pairs.chosen, one) for one in self.manual_reference]
        elif self.structure.reads_reference:
            assert pairs.reference_chosen is not None
            assert pairs.reference_rejected is not None
            columns += [pairs.reference_chosen, pairs.reference_rejected]
        return self.ratio.of_columns(columns)

    def pair_loss(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        return link(self.log_ratio(pairs), self.loss, self.beta)

    def extra_repr(self) -> str:
        manual = "" if self.manual_reference is None else f"manual_reference={self.manual_reference}, "
        return f"{self.structure.text!r}, loss={self.loss!r}, beta={self.beta:g}, {manual}{super().extra_repr()}"


def link(rho: Float[Tensor, "..."], loss: Link, beta: float) -> Float[Tensor, "..."]:
    """The convex function `f` of a log-ratio; see `LogicLoss`."""
    if loss == "logistic":
        return -F.logsigmoid(beta * rho)
    if loss == "squared":
        return (rho - 1 / (2 * beta)).square()
    return F.relu(beta - rho)


def _has_complement(structure: PreferenceStructure) -> bool:
    """Whether rho has a factor 1 - p: it is no quotient of products of probabilities alone."""
    literals = structure.compiled().literals
    return literals is None or any(not holds for _, holds, _ in literals)


def _checked_manual(manual: tuple[float, float] | None, structure: PreferenceStructure) -> tuple[float, float] | None:
    if manual is None:
        return None
    if not structure.reads_reference:
        refuse("manual_reference", "none for a structure that reads no reference", describe(manual))
    numbers = isinstance(manual, tuple) and len(manual) == 2 and all(isinstance(one, (int, float)) for one in manual)
    if not numbers or not all(math.isfinite(one) and one < 0 for one in manual):
        refuse("manual_reference", "two finite log-probabilities below 0, of RW and RL", describe(manual))
    return float(manual[0]), float(manual[1])
