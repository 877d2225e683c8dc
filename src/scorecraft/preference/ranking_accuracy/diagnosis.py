"""Everything this paper says about some pairs and a checkpoint, in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.preference.ranking_accuracy.accuracy import ranking_accuracy, reward_accuracy
from scorecraft.preference.ranking_accuracy.flips import (
    CATEGORIES,
    FlipTable,
    flip_categories,
    flip_table,
    rule_agreement,
)
from scorecraft.preference.ranking_accuracy.idealized import (
    BETAS,
    IdealizedAccuracy,
    alignment_gap,
    idealized_ranking_accuracy,
)
from scorecraft.preference.ranking_accuracy.log_ratios import below_rounding, log_ratio
from scorecraft.preference.ranking_accuracy.thresholds import (
    DifficultySummary,
    difficulty_summary,
    flip_threshold,
    pair_difficulty,
)


@dataclass(frozen=True)
class Accuracies:
    """Accuracies of one form, plain or per token, each in [0, 1]."""

    reward: float
    ranking: float
    reference_ranking: float
    """Ranking accuracy of the reference."""
    idealized: IdealizedAccuracy | None
    """Of the perfect optimum; where the raters' shares are known."""
    alignment_gap: float | None
    """In points."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        found: dict[str, Any] = {
            "reward_accuracy": self.reward,
            "ranking_accuracy": self.ranking,
            "reference_ranking_accuracy": self.reference_ranking,
            "idealized": None,
            "alignment_gap": self.alignment_gap,
        }
        if self.idealized is not None:
            found["idealized"] = {
                "betas": self.idealized.betas.tolist(),
                "accuracies": self.idealized.accuracies.tolist(),
                "minimum": float(self.idealized.minimum),
                "median": float(self.idealized.median),
                "maximum": float(self.idealized.maximum),
            }
        return found


@dataclass(frozen=True)
class PairDiagnosis:
    """What the log-probabilities of some pairs say; see `diagnose_pairs`."""

    pairs: int
    plain: Accuracies
    per_token: Accuracies | None
    below_rounding: float
    """Share of pairs whose log-ratio is below the rounding of its terms."""
    difficulties: DifficultySummary
    flips: FlipTable
    rule_agreement: float
    """Share of pairs on which the threshold of the loss says what the ranking says."""
    difficulty: Float[Tensor, " n"]
    threshold: Float[Tensor, " n"]
    category: Int[Tensor, " n"]
    """A place in `CATEGORIES`."""

    def as_json(self) -> dict[str, Any]:
        """Plain data, without what belongs to single pairs; a mean or rate over nothing is None."""
        flips, out_of_reach = self.flips, self.difficulties.out_of_reach
        return {
            "pairs": self.pairs,
            "plain": self.plain.as_json(),
            "per_token": None if self.per_token is None else self.per_token.as_json(),
            "below_rounding": self.below_rounding,
            "difficulty": {
                "quantiles": dict(zip(map(str, self.difficulties.quantiles), self.difficulties.values.tolist(),
                                      strict=True)),
                "wrong_under_reference": float(self.difficulties.wrong),
                "out_of_reach": None if out_of_reach is None else float(out_of_reach),
            },
            "flips": {
                name: {
                    "pairs": int(flips.counts[place]),
                    "share": float(flips.shares[place]),
                    "loss": _number(flips.losses[place]),
                    "margin": _number(flips.margins[place]),
                }
                for place, name in enumerate(CATEGORIES)
            },
            "flipped": _number(flips.flipped),
            "unlearned": _number(flips.unlearned),
            "rule_agreement": self.rule_agreement,
        }  # fmt: skip


def diagnose_pairs(
    chosen: Float[Tensor, " n"],
    rejected: Float[Tensor, " n"],
    reference_chosen: Float[Tensor, " n"],
    reference_rejected: Float[Tensor, " n"],
    *,
    chosen_tokens: Int[Tensor, " n"] | None = None,
    rejected_tokens: Int[Tensor, " n"] | None = None,
    alpha: Float[Tensor, " n"] | None = None,
    beta: float = 0.1,
    gamma: float = 1.0,
    betas: Sequence[float] = BETAS,
    reachable_loss: float | None = None,
    dtype: torch.dtype | None = None,
) -> PairDiagnosis:
    """Accuracies, idealized accuracies, difficulties and flips of pairs of answers.

    Args:
        chosen: `[n]`, log-probabilities of the preferred answers under the checkpoint, sums, at most 0.
        rejected: `[n]`, of the others.
        reference_chosen: `[n]`, under the reference.
        reference_rejected: `[n]`.
        chosen_tokens: int `[n]`, tokens of each answer; adds the form per token.
        rejected_tokens: int `[n]`.
        alpha: `[n]` in [0, 1], the share of raters who prefer the chosen answer; adds the idealized accuracy.
        beta: > 0, of the loss that was trained.
        gamma: >= 0, of that loss; 1 for DPO.
        betas: of the idealized accuracy.
        reachable_loss: > 0, a loss per pair that training is expected to reach.
        dtype: the precision the log-probabilities were computed in, that of `chosen` by default.

    Raises:
        ValueError: one line naming the argument.

    Source: arXiv 2405.19534.
    """
    gap, reference = log_ratio(chosen, rejected), log_ratio(reference_chosen, reference_rejected)
    per_token = None
    if chosen_tokens is not None or rejected_tokens is not None:
        per_token = _accuracies(
            log_ratio(chosen, rejected, chosen_tokens=chosen_tokens, rejected_tokens=rejected_tokens),
            log_ratio(
                reference_chosen, reference_rejected, chosen_tokens=chosen_tokens, rejected_tokens=rejected_tokens
            ),
            alpha,
            betas,
        )
    difficulty = pair_difficulty(reference, beta=beta, gamma=gamma)
    return PairDiagnosis(
        pairs=len(gap),
        plain=_accuracies(gap, reference, alpha, betas),
        per_token=per_token,
        below_rounding=float(below_rounding(chosen, rejected, dtype=dtype).double().mean()),
        difficulties=difficulty_summary(difficulty, reachable_loss=reachable_loss),
        flips=flip_table(gap, reference, beta=beta, gamma=gamma),
        rule_agreement=float(rule_agreement(gap, reference, beta=beta, gamma=gamma)),
        difficulty=difficulty,
        threshold=flip_threshold(difficulty),
        category=flip_categories(gap, reference),
    )


def _accuracies(gap: Tensor, reference: Tensor, alpha: Tensor | None, betas: Sequence[float]) -> Accuracies:
    ranking = ranking_accuracy(gap)
    idealized = None if alpha is None else idealized_ranking_accuracy(reference, alpha, betas=betas)
    return Accuracies(
        reward=float(reward_accuracy(gap, reference)),
        ranking=float(ranking),
        reference_ranking=float(ranking_accuracy(reference)),
        idealized=idealized,
        alignment_gap=None if idealized is None else float(alignment_gap(idealized, ranking)),
    )


def _number(value: Tensor) -> float | None:
    return float(value) if math.isfinite(float(value)) else None
