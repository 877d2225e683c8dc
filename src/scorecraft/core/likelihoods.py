"""The likelihood contract: a loss per example, read off the log-probability of its whole target."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.core.checks import check_values, describe, refuse
from scorecraft.core.objective import sum_of
from scorecraft.core.separable import Items, OfRanks, SeparableObjective, Summed, in_working_precision, same_reduction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class Likelihoods(Items):
    """What a likelihood objective is evaluated on."""

    log_probabilities: Float[Tensor, " n"]
    tokens: Float[Tensor, " n"] | None
    """How many tokens each target has, for objectives that average over them."""


class LikelihoodObjective(SeparableObjective[Likelihoods]):
    """A loss per example: `loss_i(log p_i)`, with `log p_i` the log-probability of the whole target."""

    def forward(
        self,
        log_probabilities: Float[Tensor, " n"],
        *,
        tokens: Int[Tensor, " n"] | None = None,
        weights: Float[Tensor, " n"] | None = None,
    ) -> Tensor:
        """The loss of examples.

        Args:
            log_probabilities: `[n]`, at most 0: sums over the tokens of the target, prompt and padding left out.
            tokens: int `[n]`, how many tokens each target has, at least 1.
            weights: non-negative weights of the examples `[n]`; the mean is the weighted mean.

        Returns:
            A scalar, or `[n]` with `reduction="none"`.

        Raises:
            ValueError: one line naming the argument, what was expected and what came.
        """
        return self.evaluate(self.likelihoods(log_probabilities, tokens=tokens, weights=weights))

    def likelihoods(
        self, log_probabilities: Tensor, *, tokens: Tensor | None = None, weights: Tensor | None = None
    ) -> Likelihoods:
        """Check the arguments of a call and put them together."""
        log_probabilities = checked_log_probabilities(
            "log_probabilities", log_probabilities, None, validate=self.validate
        )
        counts = None if tokens is None else checked_tokens("tokens", tokens, log_probabilities, validate=self.validate)
        self.check_weights(weights, log_probabilities.shape)
        return Likelihoods(log_probabilities, counts, weights=weights)

    @abstractmethod
    def answer_loss(
        self, log_probabilities: Float[Tensor, " n"], tokens: Float[Tensor, " n"] | None
    ) -> Float[Tensor, " n"]:
        """The loss of each example."""

    def evaluate(self, items: Likelihoods) -> Tensor:
        """The reduced loss of checked examples."""
        return self.reduce(self.answer_loss(items.log_probabilities, items.tokens), items)


class LikelihoodSum(Summed, LikelihoodObjective):
    """`sum_k weight_k * objective_k`, each with its own reduction; made by `+` and `*`."""

    def __init__(self, terms: list[tuple[float, LikelihoodObjective]]) -> None:
        super().__init__(reduction=same_reduction(terms))
        self.hold(terms)

    def answer_loss(self, log_probabilities: Tensor, tokens: Tensor | None) -> Tensor:
        return sum_of(factor * objective.answer_loss(log_probabilities, tokens) for factor, objective in self.parts)


class LikelihoodsAcrossRanks(OfRanks, LikelihoodObjective):
    """See `across_ranks`."""

    def __init__(self, objective: LikelihoodObjective, group: ProcessGroup | None = None) -> None:
        super().__init__(reduction=objective.reduction, validate=objective.validate)
        self.objective = objective
        self.group = group

    def answer_loss(self, log_probabilities: Tensor, tokens: Tensor | None) -> Tensor:
        return self.objective.answer_loss(log_probabilities, tokens)


LikelihoodObjective.sums, LikelihoodObjective.of_ranks = LikelihoodSum, LikelihoodsAcrossRanks


class NegativeLogLikelihoodLoss(LikelihoodObjective):
    """`-log p`: maximum likelihood, the baseline of every objective that reads likelihoods.

    Args:
        reduction: over examples.
        validate: read input values.
    """

    def answer_loss(
        self, log_probabilities: Float[Tensor, " n"], tokens: Float[Tensor, " n"] | None
    ) -> Float[Tensor, " n"]:
        return -log_probabilities


def checked_log_probabilities(name: str, values: Tensor, like: Tensor | None, *, validate: bool) -> Tensor:
    """Log-probabilities `[n]` (as many as `like` has), finite and at most 0, in float32 at least."""
    _check_vector(name, values, like, "log-probabilities")
    if validate:
        check_values(name, "finite log-probabilities <= 0", lambda: values.isfinite() & (values <= 0), values)
    return in_working_precision(values)


def checked_rewards(name: str, values: Tensor, like: Tensor | None, *, validate: bool) -> Tensor:
    """Rewards `[n]` (as many as `like` has), finite, in float32 at least."""
    _check_vector(name, values, like, "rewards")
    if validate:
        check_values(name, "finite rewards", values.isfinite, values)
    return in_working_precision(values)


def checked_tokens(name: str, values: Tensor, like: Tensor, *, validate: bool) -> Tensor:
    """Token counts `[n]`, at least 1 each, in the floating-point type of `like`."""
    if values.shape != like.shape or values.dtype == torch.bool or values.is_complex():
        refuse(name, f"{len(like)} token counts, one per answer", describe(values))
    if validate:
        check_values(name, "at least one token per answer", lambda: values >= 1, values)
    return values.to(like.dtype)


def _check_vector(name: str, values: Tensor, like: Tensor | None, what: str) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"argument `{name}`: expected a tensor, got {type(values).__name__}")
    if like is None and (values.ndim != 1 or len(values) == 0 or not values.is_floating_point()):
        refuse(name, f"floating-point {what} of shape [n], n >= 1", describe(values))
    if like is not None and (values.shape != like.shape or not values.is_floating_point()):
        refuse(name, f"floating-point {what} of shape {tuple(like.shape)}", describe(values))
