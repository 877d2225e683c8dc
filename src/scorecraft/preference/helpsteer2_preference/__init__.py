"""HelpSteer2-Preference: ratings and preference strengths in one reward model (Wang et al. 2024)."""

from scorecraft.core.paper import Paper
from scorecraft.preference.helpsteer2_preference.adapters import Adapter, extrapolate_adapter
from scorecraft.preference.helpsteer2_preference.advantages import leave_one_out_advantages, standardised_rewards
from scorecraft.preference.helpsteer2_preference.annotations import Aggregated, aggregate_votes, vote_agreement
from scorecraft.preference.helpsteer2_preference.checkpoints import Extrapolated, extrapolate_checkpoint
from scorecraft.preference.helpsteer2_preference.extrapolation import FactorSearch, extrapolate, search_factor
from scorecraft.preference.helpsteer2_preference.heads import reward_head, reward_head_state
from scorecraft.preference.helpsteer2_preference.losses import (
    MarginBradleyTerryLoss,
    MarginDPOLoss,
    ScaledBradleyTerryLoss,
    ScaledDPOLoss,
)
from scorecraft.preference.helpsteer2_preference.regression import ATTRIBUTES, MaskedRegressionLoss, attribute_rewards
from scorecraft.preference.helpsteer2_preference.strengths import (
    OrderedPairs,
    PairAccuracy,
    accuracy_by_strength,
    by_signed_strength,
    pair_accuracy,
)

__all__ = [
    "ATTRIBUTES",
    "PAPER",
    "Adapter",
    "Aggregated",
    "Extrapolated",
    "FactorSearch",
    "MarginBradleyTerryLoss",
    "MarginDPOLoss",
    "MaskedRegressionLoss",
    "OrderedPairs",
    "PairAccuracy",
    "ScaledBradleyTerryLoss",
    "ScaledDPOLoss",
    "accuracy_by_strength",
    "aggregate_votes",
    "attribute_rewards",
    "by_signed_strength",
    "extrapolate",
    "extrapolate_adapter",
    "extrapolate_checkpoint",
    "leave_one_out_advantages",
    "pair_accuracy",
    "reward_head",
    "reward_head_state",
    "search_factor",
    "standardised_rewards",
    "vote_agreement",
]

PAPER = Paper(
    slug="helpsteer2_preference",
    title="HelpSteer2-Preference: Complementing Ratings with Preferences",
    arxiv="2410.01257",
    date="2024-10-02",
    room="preference",
    kind="losses + data aggregation + training recipe",
    authors=(
        "Wang, Zhilin and Bukharin, Alexander and Delalleau, Olivier and Egert, Daniel and Shen, Gerald and"
        " Zeng, Jiaqi and Kuchaiev, Oleksii and Dong, Yi"
    ),
    venue="ICLR 2025",
    api=(
        "scorecraft.preference.helpsteer2_preference.ScaledBradleyTerryLoss",
        "scorecraft.preference.helpsteer2_preference.MarginBradleyTerryLoss",
        "scorecraft.preference.helpsteer2_preference.ScaledDPOLoss",
        "scorecraft.preference.helpsteer2_preference.MarginDPOLoss",
        "scorecraft.preference.helpsteer2_preference.MaskedRegressionLoss",
        "scorecraft.preference.helpsteer2_preference.reward_head",
        "scorecraft.preference.helpsteer2_preference.extrapolate",
        "scorecraft.preference.helpsteer2_preference.extrapolate_checkpoint",
        "scorecraft.preference.helpsteer2_preference.aggregate_votes",
        "scorecraft.preference.helpsteer2_preference.by_signed_strength",
        "scorecraft.preference.helpsteer2_preference.leave_one_out_advantages",
    ),
    hosts=("TRL",),
)
