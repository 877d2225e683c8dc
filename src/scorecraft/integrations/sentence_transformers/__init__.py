"""sentence-transformers: losses, evaluators and miners for its trainers."""

from scorecraft.integrations.sentence_transformers.label_batches import (
    CachedLabelBatchLoss,
    LabelBatchLoss,
    MultiSimilarityLoss,
)

__all__ = ["CachedLabelBatchLoss", "LabelBatchLoss", "MultiSimilarityLoss"]
