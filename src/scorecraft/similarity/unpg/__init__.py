"""Unified Negative Pair Generation for margin-softmax heads (Jung et al. 2022)."""

from scorecraft.core.paper import Paper
from scorecraft.similarity.unpg.filter import keep, quartile_bounds
from scorecraft.similarity.unpg.heads import ArcFaceHead, CosFaceHead, LogitHead, LogitsHead, MagFaceHead, MarginHead
from scorecraft.similarity.unpg.loss import UNPGLoss
from scorecraft.similarity.unpg.sharded import ShardedHead

__all__ = [
    "PAPER",
    "ArcFaceHead",
    "CosFaceHead",
    "LogitHead",
    "LogitsHead",
    "MagFaceHead",
    "MarginHead",
    "ShardedHead",
    "UNPGLoss",
    "keep",
    "quartile_bounds",
]

PAPER = Paper(
    slug="unpg",
    title="Unified Negative Pair Generation toward Well-discriminative Feature Space for Face Recognition",
    arxiv="2203.11593",
    date="2022-03-22",
    room="similarity",
    kind="loss (extra negatives for a margin softmax) + robust filter",
    authors="Jung, Junuk and Lee, Seonhoon and Oh, Heung-Seon and Park, Yongjun and Park, Joochan and Son, Sungbin",
    venue="BMVC 2022",
    api=(
        "scorecraft.similarity.unpg.UNPGLoss",
        "scorecraft.similarity.unpg.CosFaceHead",
        "scorecraft.similarity.unpg.ArcFaceHead",
        "scorecraft.similarity.unpg.MagFaceHead",
        "scorecraft.similarity.unpg.ShardedHead",
        "scorecraft.similarity.unpg.quartile_bounds",
    ),
    hosts=("pytorch-metric-learning",),
)
