"""sentence-transformers: losses, evaluators and miners for its trainers."""

from scorecraft.integrations.sentence_transformers.label_batches import (
    CachedLabelBatchLoss,
    LabelBatchLoss,
    MultiSimilarityLoss,
)
from scorecraft.integrations.sentence_transformers.retrieval import CachedRetrievalLoss, RetrievalLoss

__all__ = [
    "CachedLabelBatchLoss",
    "CachedRetrievalLoss",
    "LabelBatchLoss",
    "MultiSimilarityLoss",
    "RetrievalLoss",
]
