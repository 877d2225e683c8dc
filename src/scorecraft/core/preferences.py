"""The preference contract: a loss per pair of answers, of which one is preferred.

An answer is known by its log-probability under the model that is trained (and, where a loss compares with it, under a
frozen reference), or by its reward. Every pair owns its two answers: nothing is gathered.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import check_values, describe, refuse
from scorecraft.core.likelihoods import checked_log_probabilities, checked_rewards, checked_tokens
from scorecraft.core.objective import sum_of
from scorecraft.core.separable import Items, OfRanks, SeparableObjective, Summed, in_working_precision, same_reduction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Reads: TypeAlias = Literal["log_probabilities", "rewards"]


@dataclass(frozen=True, slots=True)
class AnswerPairs(Items):
    """What a preference objective is evaluated on; log-probabilities are natural logarithms."""

    chosen: Float[Tensor, " n"]
    rejected: Float[Tensor, " n"]
    reference_chosen: Float[Tensor, " n"] | None = None
    reference_rejected: Float[Tensor, " n"] | None = None
    chosen_tokens: Float[Tensor, " n"] | None = None
    rejected_tokens: Float[Tensor, " n"] | None = None
    strength: Float[Tensor, " n"] | None = None

    @property
    def log_ratio(self) -> Float[Tensor, " n"]:
        """`log p(chosen) - log p(rejected)`, or the difference of the rewards."""
        return self.chosen - self.rejected

    @property
    def reference_log_ratio(self) -> Float[Tensor, " n"]:
        """The same of the reference; of an objective that needs one."""
        assert self.reference_chosen is not None
        assert self.reference_rejected is not None
        return self.reference_chosen - self.reference_rejected

    def per_token(self) -> AnswerPairs:
        """Mean log-probabilities per token in place of sums."""
        chosen, rejected = self.chosen_tokens, self.rejected_tokens
        assert chosen is not None
        assert rejected is not None
        return replace(
            self,
            chosen=self.chosen / chosen,
            rejected=self.rejected / rejected,
            reference_chosen=None if self.reference_chosen is None else self.reference_chosen / chosen,
            reference_rejected=None if self.reference_rejected is None else self.reference_rejected / rejected,
        )


class PreferenceObjective(SeparableObjective[AnswerPairs]):
    """A loss per pair of answers: what the score of the better and of the worse one should count.

    Args:
        average_log_probabilities: read the mean log-probability per token of each answer instead of the sum; the call
            then needs the numbers of tokens.
        reduction: `"mean"`, `"sum"` or `"none"` over pairs.
        validate: read the values of the input; shapes and dtypes are always checked.
    """

    reads: ClassVar[Reads] = "log_probabilities"
    """What an answer is known by."""
    needs_reference: bool = False
    """Whether the loss compares with the log-probabilities of a reference."""
    needs_strength: bool = False
    """Whether the loss reads how strongly the chosen answer is preferred."""

    def __init__(
        self, *, average_log_probabilities: bool = False, reduction: Reduction = "mean", validate: bool = True
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.average_log_probabilities = average_log_probabilities

    @property
    def needs_tokens(self) -> bool:
        """Whether a call needs the numbers of tokens."""
        return self.average_log_probabilities

    def forward(
        self,
        chosen: Float[Tensor, " n"],
        rejected: Float[Tensor, " n"],
        *,
        reference_chosen: Float[Tensor, " n"] | None = None,
        reference_rejected: Float[Tensor, " n"] | None = None,
        chosen_tokens: Int[Tensor, " n"] | None = None,
        rejected_tokens: Int[Tensor, " n"] | None = None,
        strength: Num[Tensor, " n"] | None = None,
        weights: Float[Tensor, " n"] | None = None,
    ) -> Tensor:
        """The loss of pairs of answers.

        Args:
            chosen: `[n]`, of the preferred answers: log-probabilities summed over the answer's tokens (at most 0), or
                rewards (any finite values), as `reads` says.
            rejected: `[n]`, the same of the others.
            reference_chosen: `[n]`, log-probabilities under the frozen reference; taken as constants.
            reference_rejected: `[n]`.
            chosen_tokens: int `[n]`, how many tokens each answer has, at least 1.
            rejected_tokens: int `[n]`.
            strength: `[n]`, how strongly the chosen answer is preferred, at least 0.
            weights: non-negative weights of the pairs `[n]`; the mean is the weighted mean.

        Returns:
            A scalar, or `[n]` with `reduction="none"`.

        Raises:
            ValueError: one line naming the argument, what was expected and what came.
        """
        return self.evaluate(
            self.pairs(
                chosen,
                rejected,
                reference_chosen=reference_chosen,
                reference_rejected=reference_rejected,
                chosen_tokens=chosen_tokens,
                rejected_tokens=rejected_tokens,
                strength=strength,
                weights=weights,
            )
        )

    def pairs(
        self,
        chosen: Tensor,
        rejected: Tensor,
        *,
        reference_chosen: Tensor | None = None,
        reference_rejected: Tensor | None = None,
        chosen_tokens: Tensor | None = None,
        rejected_tokens: Tensor | None = None,
        strength: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> AnswerPairs:
        """Check the arguments of a call and put them together."""
        check = checked_log_probabilities if self.reads == "log_probabilities" else checked_rewards
        chosen = check("chosen", chosen, None, validate=self.validate)
        rejected = check("rejected", rejected, chosen, validate=self.validate)
        self._both(
            {"reference_chosen": reference_chosen, "reference_rejected": reference_rejected},
            needed=self.needs_reference,
            expected="log-probabilities under the reference",
        )
        self._both(
            {"chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens},
            needed=self.needs_tokens,
            expected="the number of tokens of each answer",
        )
        if strength is None and self.needs_strength:
            refuse("strength", f"how strongly each chosen answer is preferred ({type(self).__name__})", "none")
        if reference_chosen is not None and reference_rejected is not None:
            reference_chosen = check("reference_chosen", reference_chosen.detach(), chosen, validate=self.validate)
            reference_rejected = check(
                "reference_rejected", reference_rejected.detach(), chosen, validate=self.validate
            )
        if chosen_tokens is not None and rejected_tokens is not None:
            chosen_tokens = checked_tokens("chosen_tokens", chosen_tokens, chosen, validate=self.validate)
            rejected_tokens = checked_tokens("rejected_tokens", rejected_tokens, chosen, validate=self.validate)
        if strength is not None:
            strength = self._checked_strength(strength, chosen)
        self.check_weights(weights, chosen.shape)
        return AnswerPairs(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            chosen_tokens,
            rejected_tokens,
            strength,
            weights=weights,
        )

    def _both(self, given: Mapping[str, Tensor | None], *, needed: bool, expected: str) -> None:
        """Both of two arguments where they are needed, else both or none."""
        if needed or any(value is not None for value in given.values()):
            for name, value in given.items():
                if value is None:
                    refuse(name, f"{expected} ({type(self).__name__})", "none")

    def _checked_strength(self, strength: Tensor, like: Tensor) -> Tensor:
        if strength.shape != like.shape or strength.is_complex() or strength.dtype == torch.bool:
            refuse("strength", f"one number >= 0 per pair, shape {tuple(like.shape)}", describe(strength))
        if self.validate:
            check_values("strength", "finite numbers >= 0", lambda: strength.isfinite() & (strength >= 0), strength)
        return in_working_precision(strength).to(like.dtype)

    @abstractmethod
    def pair_loss(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        """The loss of each pair; log-probabilities are per token where the objective averages them."""

    def evaluate(self, items: AnswerPairs) -> Tensor:
        """The reduced loss of checked pairs."""
        return self.reduce(self.pair_loss(items.per_token() if self.average_log_probabilities else items), items)

    def extra_repr(self) -> str:
        averaged = "average_log_probabilities=True, " if self.average_log_probabilities else ""
        return averaged + super().extra_repr()


class PreferenceSum(Summed, PreferenceObjective):
    """`sum_k weight_k * objective_k`, each with its own reduction; made by `+` and `*`."""

    def __init__(self, terms: list[tuple[float, PreferenceObjective]]) -> None:
        objectives = [objective for _, objective in terms]
        if len({objective.reads for objective in objectives}) > 1:
            refuse("terms", "objectives that all read log-probabilities, or all rewards", repr(objectives))
        super().__init__(reduction=same_reduction(terms))
        self.hold(terms)
        self.reads = objectives[0].reads  # type: ignore[misc]
        self.needs_reference = any(objective.needs_reference for objective in objectives)
        self.needs_strength = any(objective.needs_strength for objective in objectives)

    @property
    def needs_tokens(self) -> bool:
        return any(objective.needs_tokens for _, objective in self.parts)

    def pair_loss(self, pairs: AnswerPairs) -> Tensor:
        return sum_of(
            factor * objective.pair_loss(pairs.per_token() if objective.average_log_probabilities else pairs)
            for factor, objective in self.parts
        )


class PreferencesAcrossRanks(OfRanks, PreferenceObjective):
    """See `across_ranks`."""

    def __init__(self, objective: PreferenceObjective, group: ProcessGroup | None = None) -> None:
        super().__init__(reduction=objective.reduction, validate=objective.validate)
        self.objective = objective
        self.group = group
        self.reads = objective.reads  # type: ignore[misc]
        self.needs_reference = objective.needs_reference
        self.needs_strength = objective.needs_strength

    @property
    def needs_tokens(self) -> bool:
        return self.objective.needs_tokens

    def pair_loss(self, pairs: AnswerPairs) -> Tensor:
        return self.objective.pair_loss(pairs)


PreferenceObjective.sums, PreferenceObjective.of_ranks = PreferenceSum, PreferencesAcrossRanks


def preference_gradients(
    objective: PreferenceObjective, chosen: Tensor, rejected: Tensor, **call: Any
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The pull on each answer: `d loss / d chosen` and `d loss / d rejected`; negative entries are pushed up.

    Args:
        objective: any preference objective with a scalar reduction.
        chosen: `[n]`.
        rejected: `[n]`.
        call: further arguments of the objective's call (`reference_chosen`, `chosen_tokens`, ...).
    """
    with torch.enable_grad():
        leaves = (chosen.detach().requires_grad_(), rejected.detach().requires_grad_())
        value = objective(*leaves, **call)
        to_chosen, to_rejected = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return to_chosen, to_rejected
