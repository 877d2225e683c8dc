"""Threshold-Consistent Margin loss, and the OPIS metric of threshold consistency (Zhang et al. 2023)."""

from scorecraft.core.paper import Paper
from scorecraft.similarity.tcm.loss import ThresholdConsistentMarginLoss

__all__ = ["PAPER", "ThresholdConsistentMarginLoss"]

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
    api=("scorecraft.similarity.tcm.ThresholdConsistentMarginLoss",),
    hosts=("pytorch-metric-learning", "torchmetrics"),
)
