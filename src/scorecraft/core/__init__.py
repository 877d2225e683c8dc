"""The ground floor: checks, masked log-domain reductions, score maps, the two objective contracts and their engine."""

from scorecraft.core.batch import Batch, Reduction
from scorecraft.core.engine import tile_mean, tile_totals
from scorecraft.core.gradient_caching import GradientCached, gradient_cached
from scorecraft.core.list_losses import InfoNCELoss, ListNetLoss, PairwiseLogisticLoss
from scorecraft.core.lists import InBatch, ListObjective, in_batch, list_score_gradients
from scorecraft.core.memory import MemoryQueue, Remembering, remembering
from scorecraft.core.objective import (
    BatchObjective,
    Execution,
    Objective,
    ObjectiveSum,
    RowObjective,
)
from scorecraft.core.pairs import Pairs, Tile
from scorecraft.core.paper import Paper, citation
from scorecraft.core.reductions import Merge
from scorecraft.core.scores import Cosine, Dot, NegativeDistance, NegativeSquaredDistance, PerHead, ScoreMap
from scorecraft.core.sweep import Context, Sweep
from scorecraft.core.wrappers import AcrossRanks, Tiled, Wrapper, across_ranks, score_gradients, tiled

__all__ = [
    "AcrossRanks",
    "Batch",
    "BatchObjective",
    "Context",
    "Cosine",
    "Dot",
    "Execution",
    "GradientCached",
    "InBatch",
    "InfoNCELoss",
    "ListNetLoss",
    "ListObjective",
    "MemoryQueue",
    "Merge",
    "NegativeDistance",
    "NegativeSquaredDistance",
    "Objective",
    "ObjectiveSum",
    "Pairs",
    "PairwiseLogisticLoss",
    "Paper",
    "PerHead",
    "Reduction",
    "Remembering",
    "RowObjective",
    "ScoreMap",
    "Sweep",
    "Tile",
    "Tiled",
    "Wrapper",
    "across_ranks",
    "citation",
    "gradient_cached",
    "in_batch",
    "list_score_gradients",
    "remembering",
    "score_gradients",
    "tile_mean",
    "tile_totals",
    "tiled",
]
