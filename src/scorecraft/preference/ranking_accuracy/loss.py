"""DPO with the reference ratio scaled: gamma = 1 is DPO, gamma = 0 drops the reference."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import non_negative, positive, probability, refuse
from scorecraft.core.preferences import AnswerPairs, PreferenceObjective


class ScaledReferenceDPOLoss(PreferenceObjective):
    """`-(1 - s) log sigmoid(u) - s log sigmoid(-u)` with `u = beta (m - gamma m_ref)`.

    Here `m = log p(chosen) - log p(rejected)` and `m_ref` is that of the reference. The smaller gamma, the less a pair
    that the reference ranks wrong has to be moved before its ranking counts, and the less keeps the model where it was.
    With gamma = 0 no reference is read.

    The weight of a pair is `beta (sigmoid(-u) - s)`, with a minus on the chosen answer.

    Args:
        gamma: >= 0; the paper tries 0 to 2.
        beta: > 0.
        label_smoothing: `s` in [0, 1/2), the share of preferences taken to be wrong.
        average_log_probabilities: per token instead of sums.
        reduction: over pairs.
        validate: read input values.

    Source: arXiv 2405.19534, equation 4.
    """

    needs_reference = True

    def __init__(
        self,
        *,
        gamma: float = 1.0,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        average_log_probabilities: bool = False,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(average_log_probabilities=average_log_probabilities, reduction=reduction, validate=validate)
        self.gamma = non_negative("gamma", gamma)
        self.beta = positive("beta", beta)
        self.label_smoothing = probability("label_smoothing", label_smoothing)
        if self.label_smoothing >= 0.5:
            refuse("label_smoothing", "a number in [0, 0.5)", label_smoothing)
        self.needs_reference = self.gamma > 0

    def pair_loss(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        gap = pairs.log_ratio
        if self.gamma:
            gap = gap - self.gamma * pairs.reference_log_ratio
        # log sigmoid(-u) = log sigmoid(u) - u
        return -F.logsigmoid(self.beta * gap) + self.label_smoothing * self.beta * gap

    def extra_repr(self) -> str:
        smoothed = f"label_smoothing={self.label_smoothing:g}, " if self.label_smoothing else ""
        return f"gamma={self.gamma:g}, beta={self.beta:g}, {smoothed}{super().extra_repr()}"
