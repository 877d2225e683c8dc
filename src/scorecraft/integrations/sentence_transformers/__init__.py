"""sentence-transformers: losses, evaluators and miners for its trainers."""

from scorecraft.integrations.sentence_transformers.evaluation import RocEvaluator
from scorecraft.integrations.sentence_transformers.hard_negatives import (
    HardNegativeMiner,
    QueryTower,
    RefreshHardNegatives,
    adore_trainer,
)
from scorecraft.integrations.sentence_transformers.judged_mining import SoftLabelLoss, mine_judged_negatives
from scorecraft.integrations.sentence_transformers.label_batches import (
    CachedLabelBatchLoss,
    LabelBatchLoss,
    MultiSimilarityLoss,
)
from scorecraft.integrations.sentence_transformers.reranking import (
    ContrastiveRerankingLoss,
    ListRerankingLoss,
    SupervisedRerankingLoss,
    TwoLogitRerankingLoss,
    UnifiedRerankingLoss,
)
from scorecraft.integrations.sentence_transformers.retrieval import (
    CachedRetrievalLoss,
    MannWhitneyLoss,
    RetrievalLoss,
    StarLoss,
)

__all__ = [
    "CachedLabelBatchLoss",
    "CachedRetrievalLoss",
    "ContrastiveRerankingLoss",
    "HardNegativeMiner",
    "LabelBatchLoss",
    "ListRerankingLoss",
    "MannWhitneyLoss",
    "MultiSimilarityLoss",
    "QueryTower",
    "RefreshHardNegatives",
    "RetrievalLoss",
    "RocEvaluator",
    "SoftLabelLoss",
    "StarLoss",
    "SupervisedRerankingLoss",
    "TwoLogitRerankingLoss",
    "UnifiedRerankingLoss",
    "adore_trainer",
    "mine_judged_negatives",
]
