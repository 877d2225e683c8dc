"""Threshold-Consistent Margin loss, and the OPIS metric of threshold consistency (Zhang et al. 2023)."""

from scorecraft.core.paper import Paper
from scorecraft.similarity.tcm.consistency import OPISResult, calibrated_range, opis, opis_from_counts
from scorecraft.similarity.tcm.loss import ThresholdConsistentMarginLoss
from scorecraft.similarity.tcm.operating import (
    FalseAcceptReject,
    OperatingCounts,
    false_accept_reject,
)

__all__ = [
    "PAPER",
    "FalseAcceptReject",
    "OPISResult",
    "OperatingCounts",
    "ThresholdConsistentMarginLoss",
    "calibrated_range",
    "false_accept_reject",
    "opis",
    "opis_from_counts",
]

PAPER = Paper(
    slug="tcm",
    title="Threshold-Consistent Margin Loss for Open-World Deep Metric Learning",
    arxiv="2307.04047",
    date="2023-07-08",
    room="similarity",
    kind="loss regulariser + evaluation metric",
    authors="Zhang, Qin and Xu, Linghan and Tang, Qingming and Fang, Jun and Wu, Ying Nian and Tighe, Joe "
    "and Xing, Yifan",
    venue="ICLR 2024",
    api=(
        "scorecraft.similarity.tcm.ThresholdConsistentMarginLoss",
        "scorecraft.similarity.tcm.opis",
        "scorecraft.similarity.tcm.false_accept_reject",
    ),
    hosts=("pytorch-metric-learning", "torchmetrics"),
)
