"""The ground floor: checks, masked log-domain reductions, score maps, the two objective contracts and their engine."""

from scorecraft.core.batch import Batch, Reduction
from scorecraft.core.engine import tile_mean, tile_totals
from scorecraft.core.gradient_caching import GradientCached, gradient_cached
from scorecraft.core.likelihoods import LikelihoodObjective, NegativeLogLikelihoodLoss
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
from scorecraft.core.preference_losses import BradleyTerryLoss, DPOLoss, IPOLoss, SimPOLoss, SLiCLoss
from scorecraft.core.preferences import AnswerPairs, PreferenceObjective, preference_gradients
from scorecraft.core.reductions import Merge
from scorecraft.core.scores import Cosine, Dot, NegativeDistance, NegativeSquaredDistance, PerHead, ScoreMap
from scorecraft.core.separable import SeparableObjective
from scorecraft.core.sweep import Context, Sweep
from scorecraft.core.wrappers import AcrossRanks, Tiled, Wrapper, across_ranks, score_gradients, tiled

__all__ = [
    "AcrossRanks",
    "AnswerPairs",
    "Batch",
    "BatchObjective",
    "BradleyTerryLoss",
    "Context",
    "Cosine",
    "DPOLoss",
    "Dot",
    "Execution",
    "GradientCached",
    "IPOLoss",
    "InBatch",
    "InfoNCELoss",
    "LikelihoodObjective",
    "ListNetLoss",
    "ListObjective",
    "MemoryQueue",
    "Merge",
    "NegativeDistance",
    "NegativeLogLikelihoodLoss",
    "NegativeSquaredDistance",
    "Objective",
    "ObjectiveSum",
    "Pairs",
    "PairwiseLogisticLoss",
    "Paper",
    "PerHead",
    "PreferenceObjective",
    "Reduction",
    "Remembering",
    "RowObjective",
    "SLiCLoss",
    "ScoreMap",
    "SeparableObjective",
    "SimPOLoss",
    "Sweep",
    "Tile",
    "Tiled",
    "Wrapper",
    "across_ranks",
    "citation",
    "gradient_cached",
    "in_batch",
    "list_score_gradients",
    "preference_gradients",
    "remembering",
    "score_gradients",
    "tile_mean",
    "tile_totals",
    "tiled",
]
