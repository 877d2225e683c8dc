"""Multi-Similarity loss with General Pair Weighting (Wang et al. 2019)."""

from scorecraft.core.paper import Paper
from scorecraft.similarity.multi_similarity.classical import (
    BinomialDevianceLoss,
    ContrastiveLoss,
    LiftedStructureLoss,
    NPairLoss,
    TripletLoss,
)
from scorecraft.similarity.multi_similarity.loss import MultiSimilarityLoss
from scorecraft.similarity.multi_similarity.miner import MultiSimilarityMiner
from scorecraft.similarity.multi_similarity.weighting import PairWeights, general_pair_weighting, pair_weights

__all__ = [
    "PAPER",
    "BinomialDevianceLoss",
    "ContrastiveLoss",
    "LiftedStructureLoss",
    "MultiSimilarityLoss",
    "MultiSimilarityMiner",
    "NPairLoss",
    "PairWeights",
    "TripletLoss",
    "general_pair_weighting",
    "pair_weights",
]

PAPER = Paper(
    slug="multi_similarity",
    title="Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning",
    arxiv="1904.06627",
    date="2019-04-14",
    room="similarity",
    kind="loss + pair miner + analysis framework",
    authors="Wang, Xun and Han, Xintong and Huang, Weilin and Dong, Dengke and Scott, Matthew R.",
    venue="CVPR 2019",
    api=(
        "scorecraft.similarity.multi_similarity.MultiSimilarityLoss",
        "scorecraft.similarity.multi_similarity.MultiSimilarityMiner",
        "scorecraft.similarity.multi_similarity.pair_weights",
        "scorecraft.similarity.pk_sampler.PKSampler",
        "scorecraft.similarity.recall.recall_at_k",
    ),
    hosts=("pytorch-metric-learning", "sentence-transformers", "torchmetrics"),
)
