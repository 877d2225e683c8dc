"""The classical losses on pairs of answers: DPO, IPO, the hinge of SLiC, SimPO, and Bradley-Terry on rewards."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import finite, positive
from scorecraft.core.preferences import AnswerPairs, PreferenceObjective, Reads


class DPOLoss(PreferenceObjective):
    """`-log sigmoid(beta (m - m_ref))`, with `m = log p(chosen) - log p(rejected)`, `m_ref` that of the reference.

    The weight of a pair is `beta sigmoid(-beta (m - m_ref))`, with a minus on the chosen answer.

    Args:
        beta: > 0; how closely the optimum keeps to the reference (smaller moves further).
        average_log_probabilities: per token instead of sums.
        reduction: over pairs.
        validate: read input values.

    Source: Rafailov et al. 2023, "Direct Preference Optimization", equation 7.
    """

    needs_reference = True

    def __init__(
        self,
        *,
        beta: float = 0.1,
        average_log_probabilities: bool = False,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(average_log_probabilities=average_log_probabilities, reduction=reduction, validate=validate)
        self.beta = positive("beta", beta)

    def pair_loss(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        return -F.logsigmoid(self.beta * (pairs.log_ratio - pairs.reference_log_ratio))

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, {super().extra_repr()}"


class IPOLoss(PreferenceObjective):
    """`(m - m_ref - 1 / (2 beta))^2` on log-probabilities per token, the reading its authors confirmed.

    Args:
        beta: > 0, the paper's regulariser tau; the margin that is asked for is `1 / (2 beta)`.
        average_log_probabilities: per token (the default) or sums.
        reduction: over pairs.
        validate: read input values.

    Source: Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    equation 17.
    """

    needs_reference = True

    def __init__(
        self,
        *,
        beta: float = 0.1,
        average_log_probabilities: bool = True,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(average_log_probabilities=average_log_probabilities, reduction=reduction, validate=validate)
        self.beta = positive("beta", beta)

    def pair_loss(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        return (pairs.log_ratio - pairs.reference_log_ratio - 1 / (2 * self.beta)).square()

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, {super().extra_repr()}"


class SLiCLoss(PreferenceObjective):
    """`max(0, delta - m)`, the hinge on the log-ratio of the model alone.

    Args:
        delta: > 0, the margin.
        average_log_probabilities: per token instead of sums.
        reduction: over pairs.
        validate: read input values.

    Source: Zhao et al. 2023, "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", equation 2.
    """

    def __init__(
        self,
        *,
        delta: float = 1.0,
        average_log_probabilities: bool = False,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(average_log_probabilities=average_log_probabilities, reduction=reduction, validate=validate)
        self.delta = positive("delta", delta)

    def pair_loss(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        return F.relu(self.delta - pairs.log_ratio)

    def extra_repr(self) -> str:
        return f"delta={self.delta:g}, {super().extra_repr()}"


class SimPOLoss(PreferenceObjective):
    """`-log sigmoid(beta m - gamma)` on log-probabilities per token, without a reference.

    Args:
        beta: > 0.
        gamma: the margin that the scaled log-ratio has to exceed.
        reduction: over pairs.
        validate: read input values.

    Source: Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", equation 6.
    """

    def __init__(
        self, *, beta: float = 2.0, gamma: float = 1.0, reduction: Reduction = "mean", validate: bool = True
    ) -> None:
        super().__init__(average_log_probabilities=True, reduction=reduction, validate=validate)
        self.beta = positive("beta", beta)
        self.gamma = finite("gamma", gamma)

    def pair_loss(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        return -F.logsigmoid(self.beta * pairs.log_ratio - self.gamma)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, gamma={self.gamma:g}, {super().extra_repr()}"


class BradleyTerryLoss(PreferenceObjective):
    """`-log sigmoid(r(chosen) - r(rejected))`, the likelihood of a reward model.

    Args:
        reduction: over pairs.
        validate: read input values.

    Source: Bradley and Terry 1952, "Rank Analysis of Incomplete Block Designs".
    """

    reads: ClassVar[Reads] = "rewards"

    def __init__(self, *, reduction: Reduction = "mean", validate: bool = True) -> None:
        super().__init__(reduction=reduction, validate=validate)

    def pair_loss(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        return -F.logsigmoid(pairs.log_ratio)
