"""sentence-transformers: label-batch objectives as losses of its trainer.

A label batch is one text column and one integer label column, read with `BatchSamplers.GROUP_BY_LABEL`, which puts at
least two texts of every label into a batch. The losses here stand beside the host's `BatchAllTripletLoss`:

    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.base.sampler import BatchSamplers
    from scorecraft.integrations.sentence_transformers import MultiSimilarityLoss

    loss = MultiSimilarityLoss(model)
    arguments = SentenceTransformerTrainingArguments(batch_sampler=BatchSamplers.GROUP_BY_LABEL)
    SentenceTransformerTrainer(model, arguments, train_dataset=dataset, loss=loss).train()

`LabelBatchLoss` takes any objective that reads labels, `CachedLabelBatchLoss` does the same with the host's gradient
caching, for batches whose activations do not fit. The papers behind the objective flow into the model card.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from scorecraft.core import Objective
from scorecraft.integrations.sentence_transformers.objective_loss import CachedObjectiveLoss, Features, ObjectiveLoss
from scorecraft.similarity import multi_similarity

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class _LabelBatch:
    """One text column and one label column."""

    def read(self, columns: Sequence[Features], labels: Tensor | None) -> Tensor:
        if len(columns) != 1:
            raise ValueError(
                f"argument `sentence_features`: expected one text column beside the labels, got {len(columns)}"
            )
        if labels is None:
            raise ValueError("argument `labels`: expected a column `label` of integers in the dataset, got none")
        return labels

    def value(self, objective: Objective, columns: Sequence[Tensor], known: Tensor) -> Tensor:
        (embeddings,) = columns
        return objective(embeddings, known.squeeze(1) if known.ndim == 2 and known.shape[1] == 1 else known)


class LabelBatchLoss(ObjectiveLoss):
    """Any label-batch objective on the sentence embeddings of one text column.

    Computes `objective(embeddings, labels)`, with `embeddings` `[n, d]` from `model` and `labels` int `[n]`.

    Args:
        model: the `SentenceTransformer` being trained.
        objective: an objective, or a mapping from names to objectives. The value of a mapping is their sum, and the
            trainer logs every component under its name; a sum written with `+` is logged as one number.
        gather_across_devices: take the loss over the batches of all devices together instead of each on its own. The
            mean over devices of the returned values is then the loss of the whole batch.

    Raises:
        ValueError: at the first batch, when it has several text columns or no labels.
    """

    layout = _LabelBatch()


class CachedLabelBatchLoss(CachedObjectiveLoss):
    """`LabelBatchLoss` with gradient caching: the batch may be as large as the objective likes.

    See `CachedObjectiveLoss` for the arguments.

    Raises:
        ValueError: for a static embedding model or an objective with trainable parameters, and at the first batch when
            it has several text columns or no labels.
    """

    layout = _LabelBatch()


class MultiSimilarityLoss(LabelBatchLoss):
    """The multi-similarity loss with its own mining, on label batches of texts.

    `mean_i { 1/alpha log[1 + sum_{k in P'(i)} e^{-alpha (s_ik - threshold)}]
    + 1/beta log[1 + sum_{k in N'(i)} e^{beta (s_ik - threshold)}] }` on cosine scores, `P'` and `N'` being the pairs
    that are hard against the other group (`scorecraft.similarity.multi_similarity.MultiSimilarityLoss`).

    Args:
        model: the `SentenceTransformer` being trained.
        alpha, beta: scales of the positives and of the negatives, > 0.
        threshold: the score that positives should exceed and negatives stay below.
        mining_margin: the margin of the mining, in score units.
        mining: keep only the hard pairs, as in the paper.
        gather_across_devices: take the loss over the batches of all devices together.

    Source: Wang et al. 2019 (arXiv 1904.06627), section 4.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        alpha: float = 2.0,
        beta: float = 50.0,
        threshold: float = 0.5,
        mining_margin: float = 0.1,
        mining: bool = True,
        gather_across_devices: bool = False,
    ) -> None:
        objective = multi_similarity.MultiSimilarityLoss(
            alpha=alpha, beta=beta, threshold=threshold, mining_margin=mining_margin, mining=mining
        )
        super().__init__(model, objective, gather_across_devices)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the loss's parameters."""
        names = ("alpha", "beta", "threshold", "mining_margin", "mining")
        shown = {name: getattr(self.objective, name) for name in names}
        return shown | {"gather_across_devices": self.gather_across_devices}
