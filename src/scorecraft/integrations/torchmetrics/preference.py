"""torchmetrics: ranking accuracy, reward accuracy, idealized accuracy and flips of preference pairs.

    from torchmetrics import MetricCollection
    from scorecraft.integrations.torchmetrics.preference import FlipTable, RankingAccuracy, RewardAccuracy

    metrics = MetricCollection([RankingAccuracy(), RewardAccuracy(), FlipTable(beta=0.1)])
    for batch in loader:
        metrics.update(log_ratio=log_ratio(chosen, rejected), reference_log_ratio=log_ratio(...))
    metrics.compute()                  # {"ranking_accuracy": ..., "reward_accuracy": ..., "flipped": ..., ...}

Every update brings log-ratios (`scorecraft.preference.ranking_accuracy.log_ratio`), plain or per token. Sums and counts
are kept, so that uneven batches and processes weigh as many pairs as they have. Before any pair a value is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import non_negative, positive
from scorecraft.integrations.optional import require
from scorecraft.preference.ranking_accuracy import (
    BETAS,
    CATEGORIES,
    idealized_ranking_accuracy,
    ranking_accuracy,
    reward_accuracy,
)
from scorecraft.preference.ranking_accuracy.accuracy import Ties, above_zero
from scorecraft.preference.ranking_accuracy.flips import flip_sums, table_of_sums
from scorecraft.preference.ranking_accuracy.idealized import UNANIMOUS, UnanimousOdds, summarized

require("torchmetrics", "metric-learning")

from torchmetrics import Metric  # noqa: E402


class _Share(Metric):
    """A mean over pairs, from its sum and their count."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    total: Tensor
    pairs: Tensor

    def __init__(self, *, shape: tuple[int, ...] = (), **host: Any) -> None:
        super().__init__(**host)
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, total: Tensor, pairs: int) -> None:
        self.total = self.total + total.double()
        self.pairs = self.pairs + pairs


class RankingAccuracy(_Share):
    """How often the model ranks a pair as it is preferred, as `scorecraft.preference.ranking_accuracy`.

    `compute` returns `ranking_accuracy`.

    Args:
        ties: what equal likelihoods count, "correct", "wrong" or "half".
        **host: the host's own arguments (`sync_on_compute`, `process_group`, ...).

    Raises:
        ValueError: bad log-ratios or options.

    Source: arXiv 2405.19534, definition 2.3.
    """

    def __init__(self, *, ties: Ties = "correct", **host: Any) -> None:
        super().__init__(**host)
        above_zero(torch.zeros(1), ties)
        self.ties: Ties = ties

    def update(self, log_ratio: Float[Tensor, " n"]) -> None:
        """Count the pairs of log-ratios `[n]` of the model."""
        self._add(ranking_accuracy(log_ratio, ties=self.ties, reduction="sum"), len(log_ratio))

    def compute(self) -> dict[str, Tensor]:
        """The share."""
        return {"ranking_accuracy": self.total / self.pairs}


class RewardAccuracy(_Share):
    """How often the log-ratio of a pair is above the reference's: what trainers log.

    `compute` returns `reward_accuracy`.

    Args:
        ties: what no movement counts, "correct", "wrong" or "half".
        **host: the host's own arguments (`sync_on_compute`, `process_group`, ...).

    Raises:
        ValueError: bad log-ratios or options.

    Source: arXiv 2405.19534, section 2.
    """

    def __init__(self, *, ties: Ties = "wrong", **host: Any) -> None:
        super().__init__(**host)
        above_zero(torch.zeros(1), ties)
        self.ties: Ties = ties

    def update(self, log_ratio: Float[Tensor, " n"], reference_log_ratio: Float[Tensor, " n"]) -> None:
        """Count the pairs of log-ratios `[n]` of the model and of the reference."""
        found = reward_accuracy(log_ratio, reference_log_ratio, ties=self.ties, reduction="sum")
        self._add(found, len(log_ratio))

    def compute(self) -> dict[str, Tensor]:
        """The share."""
        return {"reward_accuracy": self.total / self.pairs}


class IdealizedRankingAccuracy(_Share):
    """What the perfect optimum of DPO or RLHF would rank right, as `idealized_ranking_accuracy`.

    `compute` returns `idealized_ranking_accuracy_min`, `_median` and `_max` over the betas.

    Args:
        betas: each > 0, at least one.
        ties: what a log-ratio of zero counts, "correct", "wrong" or "half".
        unanimous: the share left to the minority of unanimous raters.
        unanimous_odds: "inverse" or "complement".
        **host: the host's own arguments (`sync_on_compute`, `process_group`, ...).

    Raises:
        ValueError: bad log-ratios, shares or options.

    Source: arXiv 2405.19534, corollary 3.3.
    """

    def __init__(
        self,
        *,
        betas: Sequence[float] = BETAS,
        ties: Ties = "wrong",
        unanimous: float = UNANIMOUS,
        unanimous_odds: UnanimousOdds = "inverse",
        **host: Any,
    ) -> None:
        super().__init__(shape=(len(betas),), **host)
        self.options: dict[str, Any] = {
            "betas": tuple(betas), "ties": ties, "unanimous": unanimous, "unanimous_odds": unanimous_odds,
        }  # fmt: skip
        idealized_ranking_accuracy(torch.zeros(1), torch.ones(1), **self.options)

    def update(self, reference_log_ratio: Float[Tensor, " n"], alpha: Float[Tensor, " n"]) -> None:
        """Count pairs by log-ratios `[n]` of the reference and the shares `[n]` of raters for the chosen answer."""
        found = idealized_ranking_accuracy(reference_log_ratio.double(), alpha, **self.options)
        pairs = len(reference_log_ratio)
        self._add(found.accuracies * pairs, pairs)

    def compute(self) -> dict[str, Tensor]:
        """Minimum, median and maximum over the betas."""
        found = summarized(self.total / self.pairs, self.options["betas"])
        name = "idealized_ranking_accuracy"
        return {f"{name}_min": found.minimum, f"{name}_median": found.median, f"{name}_max": found.maximum}


class FlipTable(Metric):
    """Right or wrong under the reference, right or wrong under the model, as `flip_table`.

    `compute` returns `flipped` and `unlearned` (rates among the pairs wrong and right before), and of each of the
    categories kept, unlearned, flipped and unflipped `<category>_share`, `<category>_loss` and `<category>_margin`; NaN
    over nothing.

    Args:
        beta: > 0, of the loss.
        gamma: >= 0, of the loss; 1 for DPO.
        **host: the host's own arguments (`sync_on_compute`, `process_group`, ...).

    Raises:
        ValueError: bad log-ratios or options.

    Source: arXiv 2405.19534, section 4.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    sums: Tensor

    def __init__(self, *, beta: float = 0.1, gamma: float = 1.0, **host: Any) -> None:
        super().__init__(**host)
        self.beta, self.gamma = positive("beta", beta), non_negative("gamma", gamma)
        self.add_state("sums", torch.zeros(4, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, log_ratio: Float[Tensor, " n"], reference_log_ratio: Float[Tensor, " n"]) -> None:
        """Count the pairs of log-ratios `[n]` of the model and of the reference."""
        self.sums = self.sums + flip_sums(log_ratio, reference_log_ratio, beta=self.beta, gamma=self.gamma)

    def compute(self) -> dict[str, Tensor]:
        """The rates and the table."""
        table = table_of_sums(self.sums)
        found = {"flipped": table.flipped, "unlearned": table.unlearned}
        for place, name in enumerate(CATEGORIES):
            found[f"{name}_share"] = table.shares[place]
            found[f"{name}_loss"] = table.losses[place]
            found[f"{name}_margin"] = table.margins[place]
        return found
