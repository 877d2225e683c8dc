"""The Mann-Whitney loss: AUC-driven training of retrievers, and the pooled ROC curve it bounds (2510.00137)."""

from scorecraft.core.paper import Paper
from scorecraft.relevance.mw.loss import MannWhitneyLoss, mann_whitney_loss
from scorecraft.relevance.mw.roc import RocCurve, per_query_auc, pooled_aoc, pooled_auc, roc_curve
from scorecraft.relevance.mw.streaming import AUCHistogram, BoundedAUC

__all__ = [
    "PAPER",
    "AUCHistogram",
    "BoundedAUC",
    "MannWhitneyLoss",
    "RocCurve",
    "mann_whitney_loss",
    "per_query_auc",
    "pooled_aoc",
    "pooled_auc",
    "roc_curve",
]

PAPER = Paper(
    slug="mw",
    title="Optimizing What Matters: AUC-Driven Learning for Robust Neural Retrieval",
    arxiv="2510.00137",
    date="2025-09-30",
    room="relevance",
    kind="loss + metric + analysis",
    api=(
        "scorecraft.relevance.mw.MannWhitneyLoss",
        "scorecraft.relevance.mw.mann_whitney_loss",
        "scorecraft.relevance.mw.pooled_auc",
        "scorecraft.relevance.mw.pooled_aoc",
        "scorecraft.relevance.mw.per_query_auc",
        "scorecraft.relevance.mw.roc_curve",
        "scorecraft.relevance.mw.AUCHistogram",
    ),
    hosts=("sentence-transformers", "torchmetrics"),
)
