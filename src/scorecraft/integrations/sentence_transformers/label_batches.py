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

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.core import Objective, across_ranks, citation
from scorecraft.core.checks import positive_integer
from scorecraft.integrations.optional import require
from scorecraft.similarity import multi_similarity

require("sentence_transformers", "text")

from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.base.losses import CachedLossMixin, has_static_embedding_input  # noqa: E402
from sentence_transformers.base.losses.merged_forward import embed_columns  # noqa: E402

Features: TypeAlias = Mapping[str, Any]
"""One text column of a batch, as the host's preprocessing returns it."""


class LabelBatchLoss(nn.Module):
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

    def __init__(
        self,
        model: SentenceTransformer,
        objective: Objective | Mapping[str, Objective],
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = nn.ModuleDict(objective) if isinstance(objective, Mapping) else objective
        self.gather_across_devices = gather_across_devices

    def forward(
        self, sentence_features: Iterable[Features], labels: Int[Tensor, "n ..."] | None
    ) -> Tensor | dict[str, Tensor]:
        """The loss of one batch as the trainer hands it over: a scalar, or the named components of a mapping."""
        columns = _one_column(sentence_features)
        return self.compute_loss_from_embeddings(embed_columns(self.model, columns), labels)

    def compute_loss_from_embeddings(
        self, embeddings: list[Float[Tensor, "n d"]], labels: Int[Tensor, "n ..."] | None
    ) -> Tensor | dict[str, Tensor]:
        """The loss of embeddings that were computed already, as other losses of the host call it."""
        (column,) = embeddings
        labels = _label_vector(labels)
        if isinstance(self.objective, nn.ModuleDict):
            return {name: self._value(part, column, labels) for name, part in self.objective.items()}
        return self._value(self.objective, column, labels)

    def _value(self, objective: nn.Module, embeddings: Tensor, labels: Tensor) -> Tensor:
        spread = across_ranks(cast(Objective, objective)) if self.gather_across_devices else objective
        return spread(embeddings, labels)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the loss's parameters."""
        named = self.objective if isinstance(self.objective, nn.ModuleDict) else {"objective": self.objective}
        return {name: _one_line(part) for name, part in named.items()} | {
            "gather_across_devices": self.gather_across_devices
        }

    @property
    def citation(self) -> str:
        """BibTeX of the papers behind the objective; the host writes it into the model card."""
        if isinstance(self.objective, nn.ModuleDict):
            return "\n".join(dict.fromkeys(citation(part) for part in self.objective.values()))
        return citation(self.objective)


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


class CachedLabelBatchLoss(CachedLossMixin, nn.Module):
    """`LabelBatchLoss` with gradient caching: the batch may be as large as the objective likes.

    The texts are embedded in mini-batches without a graph, the objective is taken over the whole batch, and every
    mini-batch is embedded once more to carry the objective's gradient into the model. Value and gradient equal those of
    `LabelBatchLoss`; the encoder's activations never exceed one mini-batch, for one more forward pass.

    Args:
        model: the `SentenceTransformer` being trained; one with token inputs (a static embedding cannot be sliced).
        objective: an objective without trainable parameters. The caching carries gradients to the embeddings only, and
            those of a parameter would miss the scaling of gradient accumulation and mixed precision.
        mini_batch_size: texts embedded at a time.
        mini_batch_num_tokens: a budget of tokens per mini-batch instead of a number of texts.
        gather_across_devices: take the loss over the batches of all devices together.
        show_progress_bar: show the mini-batches of every step.

    Raises:
        ValueError: for a static embedding model or an objective with trainable parameters, and at the first batch when
            it has several text columns or no labels.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        objective: Objective,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__()
        if has_static_embedding_input(model):
            raise ValueError(
                "argument `model`: expected token inputs, which can be sliced into mini-batches, got a StaticEmbedding"
            )
        trainable = [name for name, parameter in objective.named_parameters() if parameter.requires_grad]
        if trainable:
            raise ValueError(
                "argument `objective`: expected no trainable parameters, whose gradients caching cannot carry, "
                f"got {', '.join(trainable)}"
            )
        self.model = model
        self.objective = objective
        self.mini_batch_size = positive_integer("mini_batch_size", mini_batch_size)
        if mini_batch_num_tokens is not None:
            positive_integer("mini_batch_num_tokens", mini_batch_num_tokens)
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.gather_across_devices = gather_across_devices
        self.show_progress_bar = show_progress_bar

    def forward(self, sentence_features: Iterable[Features], labels: Int[Tensor, "n ..."] | None) -> Tensor:
        """The loss of one batch as the trainer hands it over; its backward pass embeds the mini-batches again."""
        return self.forward_cached(_one_column(sentence_features), labels)

    def calculate_loss(
        self,
        reps: list[list[Float[Tensor, "_ d"]]],
        labels: Int[Tensor, "n ..."] | None = None,
        *,
        with_backward: bool = False,
    ) -> Tensor:
        """The objective over all mini-batches together; `with_backward` also leaves its gradient on each of them."""
        (column,) = reps
        objective = across_ranks(self.objective) if self.gather_across_devices else self.objective
        loss = objective(torch.cat(column), _label_vector(labels))
        if not with_backward:
            return loss
        loss.backward()
        return loss.detach()

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the loss's parameters."""
        return {
            "objective": _one_line(self.objective),
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_num_tokens": self.mini_batch_num_tokens,
            "gather_across_devices": self.gather_across_devices,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the papers behind the objective; the host writes it into the model card."""
        return citation(self.objective)


def _one_column(sentence_features: Iterable[Features]) -> list[Any]:
    columns = list(sentence_features)
    if len(columns) != 1:
        raise ValueError(
            f"argument `sentence_features`: expected one text column beside the labels, got {len(columns)}"
        )
    return columns


def _label_vector(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise ValueError("argument `labels`: expected a column `label` of integers in the dataset, got none")
    return labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _one_line(module: nn.Module) -> str:
    return " ".join(repr(module).split())
