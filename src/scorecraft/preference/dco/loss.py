"""Direct Coverage Optimization as objectives on whole answers: exact, and with weights that are held constant."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import check_values, describe, refuse
from scorecraft.core.likelihoods import LikelihoodObjective, Likelihoods, LikelihoodsAcrossRanks
from scorecraft.preference.dco.coverage import checked_budget, loss_of_checked


class DirectCoverageLoss(LikelihoodObjective):
    """`-log(1 - (1 - p)^N)`: the negative log-probability that one of `N` samples is the target (DCO).

    The pull on `log p` is `-F(N, p)` (`coverage_weight`): that of cross entropy while `N p` is small, and none once the
    target is likely enough to be drawn once in `N`. With `N = 1` it is cross entropy. On the summed log-probabilities
    of a proof's steps it is the loss of the whole proof; on those of single steps, with `N = N_eff`, it is DCO_step.

    Args:
        n: `N >= 1`, the number of samples drawn at test time (real numbers allowed).
        token_mean: divide the loss of each answer by its number of tokens, the published code's default; `F` still
            reads the probability of the whole answer.
        reduction: over answers.
        validate: read input values.

    Raises:
        ValueError: a budget below 1; no token counts where they are divided by.

    Source: arXiv 2502.07154, section 4.1.
    """

    def __init__(
        self, *, n: float, token_mean: bool = False, reduction: Reduction = "mean", validate: bool = True
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.n = checked_budget("n", n)
        self.token_mean = token_mean

    @classmethod
    def example(cls, *, n: float = 16, **options: object) -> DirectCoverageLoss:
        """An objective for sixteen samples."""
        return cls(n=n, **options)  # type: ignore[arg-type]

    def answer_loss(
        self, log_probabilities: Float[Tensor, " n"], tokens: Float[Tensor, " n"] | None
    ) -> Float[Tensor, " n"]:
        losses = loss_of_checked(log_probabilities, log_probabilities.new_full((), self.n))
        return losses / _counts(tokens) if self.token_mean else losses

    def extra_repr(self) -> str:
        return f"n={self.n:g}{_told(self.token_mean)}, {super().extra_repr()}"


@dataclass(frozen=True, slots=True)
class WeightedLikelihoods(Likelihoods):
    """Answers with a weight each that is held constant."""

    coverage_weights: Float[Tensor, " n"] | None = None


class ApproximateCoverageLoss(LikelihoodObjective):
    """`mean_i F_i (-log p_i)` with weights `F_i` that are given and held constant (DCO_a, and stored weights).

    The mean runs over the answers, not over their weights. Three ways to the weights:

    - chains of thought: `sampled_coverage_weight` of the share of right answers among some samples (DCO_a);
    - proofs whose steps are examples of their own: `whole_proof_weights`;
    - a filter: what it scored the answer with, perhaps some steps ago.

    Without weights all are 1, as in the first steps of DCO_a.

    Args:
        token_mean: divide the loss of each answer by its number of tokens.
        reduction: over answers.
        validate: read input values.

    Raises:
        ValueError: weights outside [0, 1]; no token counts where they are divided by.

    Source: arXiv 2502.07154, section 5.
    """

    class AcrossRanks(LikelihoodsAcrossRanks):
        """See `across_ranks`; it takes the weights as well."""

        def forward(self, log_probabilities: Float[Tensor, " n"], **told: Tensor | None) -> Tensor:
            return self.evaluate(self.objective.likelihoods(log_probabilities, **told))

    of_ranks = AcrossRanks

    def __init__(self, *, token_mean: bool = False, reduction: Reduction = "mean", validate: bool = True) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.token_mean = token_mean

    def forward(
        self,
        log_probabilities: Float[Tensor, " n"],
        *,
        coverage_weights: Float[Tensor, " n"] | None = None,
        tokens: Int[Tensor, " n"] | None = None,
        weights: Float[Tensor, " n"] | None = None,
    ) -> Tensor:
        """The loss of answers.

        Args:
            log_probabilities: `[n]`, at most 0, of whole reference answers.
            coverage_weights: `F` of each in [0, 1], constants.
            tokens: int `[n]`, how many tokens each answer has.
            weights: of the examples themselves; the mean is the weighted mean.

        Returns:
            A scalar, or `[n]` with `reduction="none"`.

        Raises:
            ValueError: one line naming the argument, what was expected and what came.
        """
        return self.evaluate(
            self.likelihoods(log_probabilities, tokens=tokens, weights=weights, coverage_weights=coverage_weights)
        )

    def likelihoods(
        self,
        log_probabilities: Tensor,
        *,
        tokens: Tensor | None = None,
        weights: Tensor | None = None,
        coverage_weights: Tensor | None = None,
    ) -> WeightedLikelihoods:
        """Check the arguments of a call and put them together."""
        plain = super().likelihoods(log_probabilities, tokens=tokens, weights=weights)
        held = None if coverage_weights is None else self._checked(coverage_weights, plain.log_probabilities)
        return WeightedLikelihoods(plain.log_probabilities, plain.tokens, held, weights=weights)

    def answer_loss(
        self, log_probabilities: Float[Tensor, " n"], tokens: Float[Tensor, " n"] | None
    ) -> Float[Tensor, " n"]:
        """The loss of each answer at weight 1."""
        return -log_probabilities / _counts(tokens) if self.token_mean else -log_probabilities

    def evaluate(self, items: Likelihoods) -> Tensor:
        losses = self.answer_loss(items.log_probabilities, items.tokens)
        held = items.coverage_weights if isinstance(items, WeightedLikelihoods) else None
        return self.reduce(losses if held is None else held * losses, items)

    def _checked(self, values: Tensor, like: Tensor) -> Tensor:
        if values.shape != like.shape or not values.is_floating_point():
            expected = f"floating-point weights of shape {tuple(like.shape)}"
            refuse("coverage_weights", expected, describe(values))
        if self.validate:
            inside = lambda: (values >= 0) & (values <= 1)  # noqa: E731
            check_values("coverage_weights", "weights in [0, 1]", inside, values)
        return values.detach().to(like.dtype)

    def extra_repr(self) -> str:
        return f"{_told(self.token_mean)[2:]}{', ' if self.token_mean else ''}{super().extra_repr()}"


def _counts(tokens: Tensor | None) -> Tensor:
    if tokens is None:
        refuse("tokens", "a token count per answer: the objective divides by it", None)
    return tokens


def _told(token_mean: bool) -> str:
    return ", token_mean=True" if token_mean else ""
