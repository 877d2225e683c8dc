"""sentence-transformers: list objectives as losses of its cross-encoder trainer.

    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer
    from scorecraft.integrations.sentence_transformers.reranking import UnifiedRerankingLoss

    model = CrossEncoder("Qwen/Qwen3-0.6B")  # a causal language model: the host adds LogitScore("yes", "no")
    loss = UnifiedRerankingLoss(model, weight="sft", direction="sft")
    CrossEncoderTrainer(model, train_dataset=dataset, loss=loss).train()

A dataset has the columns (query, positive, negative_1, ..., negative_n), in which a negative may be missing (`None`),
or (query, docs, labels) with lists of documents and of their relevances. `ListRerankingLoss` takes any list objective
of one score, on cross-encoders of either kind; the losses of two logits need a causal one.

The host scores a causal model by its logits at the last position (`logits_to_keep=1`, rows padded on the left): all of
the vocabulary, of which `LogitScore` then reads two. For the length of a loss's forward pass the head is exchanged for
two of its rows, in float32, and `LogitScore` reads those; whatever the model does to its logits behind the head (soft
capping, scaling) stays. A head that is no plain linear layer (quantised, adapted, spread over devices) is left in its
place, and two of its logits are read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeGuard

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from scorecraft.core import ListObjective, citation
from scorecraft.core.checks import refuse
from scorecraft.integrations.optional import require
from scorecraft.relevance import sft_vs_cl
from scorecraft.relevance.sft_vs_cl.losses import Documents
from scorecraft.relevance.sft_vs_cl.weights import Direction, Weight
from scorecraft.relevance.two_row_scoring import row_logits, token_rows

require("sentence_transformers", "text")

from sentence_transformers.base.modules import Transformer  # noqa: E402
from sentence_transformers.cross_encoder import CrossEncoder  # noqa: E402
from sentence_transformers.cross_encoder.modules import LogitScore  # noqa: E402
from sentence_transformers.util import batch_to_device  # noqa: E402


class ListRerankingLoss(nn.Module):
    """Any list objective on the scores that a cross-encoder gives the documents of each query.

    Computes `objective(scores, relevance)`, one list per query of the batch. Scores are the model's own, without its
    activation function: `z_yes - z_no` (or `z_yes` alone) of a causal model, the one logit of a classifier.

    Args:
        model: the `CrossEncoder` being trained, with one output label.
        objective: a list objective of one score channel, such as `InfoNCELoss()` or `ListNetLoss()`.

    Raises:
        ValueError: a model with several labels; at the first batch, columns that are neither of the two layouts, or a
            query without a positive or without documents.
        TypeError: no list objective, or one of several channels.
    """

    channels: ClassVar[int] = 1

    def __init__(self, model: CrossEncoder, objective: ListObjective) -> None:
        super().__init__()
        if not isinstance(objective, ListObjective) or objective.channels != self.channels:
            wanted = "one score channel" if self.channels == 1 else "two logits"
            got = type(objective).__name__
            raise TypeError(f"argument `objective`: expected a list objective of {wanted}, got {got}")
        if model.num_labels != 1:
            refuse("model", "a cross-encoder with one label", f"{model.num_labels} labels")
        self.model = model
        self.objective = objective

    def forward(
        self,
        inputs: Sequence[Sequence[Any]],
        labels: Sequence[Num[Tensor, " c"]] | None = None,
        prompt: str | None = None,
        task: str | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of one batch as the trainer hands it over.

        Args:
            inputs: the columns: queries, positives and negatives; or, with labels, queries and lists of documents.
            labels: the relevances of each query's documents.
            prompt: for the model's preprocessing of the pairs.
            task: likewise.
        """
        pairs, relevance, queries = _labelled_lists(inputs, labels) if labels is not None else _tuples(inputs)
        features = self.model.preprocess(pairs, prompt=prompt, task=task)
        scores = self.scores(batch_to_device(features, self.model.device))
        return self.objective(scores, relevance.to(scores.device), segments=queries.to(scores.device))

    def scores(self, features: dict[str, Any]) -> Float[Tensor, " n"]:
        """The scores of preprocessed pairs."""
        with _two_rows_for_a_head(self.model):
            return self.model(features)["scores"].squeeze(1)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the loss's parameters."""
        return {"objective": " ".join(repr(self.objective).split())}

    @property
    def citation(self) -> str:
        """BibTeX of the papers behind the objective; the host writes it into the model card.

        Raises:
            ValueError: no paper of this library stands behind it (the host then cites none).
        """
        return citation(self.objective)


class TwoLogitRerankingLoss(ListRerankingLoss):
    """Any list objective of two logits, on those of "yes" and "no" that a causal language model gives each document.

    Args:
        model: the `CrossEncoder` being trained: a causal language model with `LogitScore(true_token_id,
            false_token_id)` behind it.
        objective: a list objective of two score channels, yes and no.

    Raises:
        ValueError: as `ListRerankingLoss`; or a model without `LogitScore`, or with one token instead of two different
            ones.
        TypeError: no list objective, or one of one channel.
    """

    channels: ClassVar[int] = 2

    def __init__(self, model: CrossEncoder, objective: ListObjective) -> None:
        super().__init__(model, objective)
        score = _logit_score(model)
        if score is None:
            refuse("model", "a causal language model with LogitScore(true_token_id, false_token_id)", "no LogitScore")
        if score.false_token_id is None or score.false_token_id == score.true_token_id:
            got = f"LogitScore({score.true_token_id}, {score.false_token_id})"
            refuse("model", "a LogitScore of two different tokens, yes and no", got)

    def scores(self, features: dict[str, Any]) -> Float[Tensor, "2 n"]:
        """The logits of yes and of no of preprocessed pairs."""
        score = _logit_score(self.model)
        assert score is not None
        with _two_rows_for_a_head(self.model):
            logits = self.model(features)[score.module_input_name][:, -1]
            return torch.stack([logits[:, score.true_token_id], logits[:, score.false_token_id]])


class UnifiedRerankingLoss(TwoLogitRerankingLoss):
    """The unified re-ranking loss: weight and direction of the gradient chosen independently.

    `mean over queries of [ -sg(W+) t_0 + sum_j sg(W-_j) t_j ]`, `t = z_yes` or `z_yes - z_no`
    (`scorecraft.relevance.sft_vs_cl.UnifiedRerankingLoss`). Its value is no loss to watch: evaluate by ranking.

    Args:
        model: the causal `CrossEncoder` being trained.
        weight: `"sft"`, `"cl"`, `"one"` or `"masked"`.
        direction: `"sft"` or `"cl"`. What `"cl"` trains is `z_yes`: set `false_token_id = None` on the model's
            `LogitScore` once it is trained (a warning says so).
        mask_threshold: of the masked constant, in [0, 1].
        documents: `"sum"` or `"mean"` over the documents of a query.

    Source: arXiv 2510.14824.
    """

    objective: sft_vs_cl.UnifiedRerankingLoss

    def __init__(
        self,
        model: CrossEncoder,
        weight: Weight = "sft",
        direction: Direction = "sft",
        mask_threshold: float = 0.1,
        documents: Documents = "sum",
    ) -> None:
        objective = sft_vs_cl.UnifiedRerankingLoss(
            weight=weight, direction=direction, mask_threshold=mask_threshold, documents=documents
        )
        super().__init__(model, objective)
        if direction == "cl":
            _warn_of_the_served_score()

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the loss's parameters."""
        return {name: getattr(self.objective, name) for name in ("weight", "direction", "mask_threshold", "documents")}


class SupervisedRerankingLoss(TwoLogitRerankingLoss):
    """Two-token supervised fine-tuning: "yes" to relevant documents, "no" to the others.

    `mean over queries and documents of softplus(-+(z_yes - z_no))`
    (`scorecraft.relevance.sft_vs_cl.SupervisedRerankingLoss`).

    Args:
        model: the causal `CrossEncoder` being trained.
        documents: `"mean"` or `"sum"` over the documents of a query.
        pos_weight: factor of the relevant documents, > 0.

    Source: arXiv 2510.14824.
    """

    objective: sft_vs_cl.SupervisedRerankingLoss

    def __init__(self, model: CrossEncoder, documents: Documents = "mean", pos_weight: float = 1.0) -> None:
        super().__init__(model, sft_vs_cl.SupervisedRerankingLoss(documents=documents, pos_weight=pos_weight))

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the loss's parameters."""
        return {name: getattr(self.objective, name) for name in ("documents", "pos_weight")}


class ContrastiveRerankingLoss(TwoLogitRerankingLoss):
    """Contrast: a softmax over `z_yes` of the relevant document and the irrelevant ones of its query.

    What it trains is `z_yes`: set `false_token_id = None` on the model's `LogitScore` once it is trained (a warning
    says so). On a model that has none from the start, take `ListRerankingLoss(model, InfoNCELoss())`: it is the same.

    Args:
        model: the causal `CrossEncoder` being trained.
        temperature: > 0, 1 as in the paper.

    Source: arXiv 2510.14824.
    """

    objective: sft_vs_cl.ContrastiveRerankingLoss

    def __init__(self, model: CrossEncoder, temperature: float = 1.0) -> None:
        super().__init__(model, sft_vs_cl.ContrastiveRerankingLoss(temperature=temperature))
        _warn_of_the_served_score()

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the loss's parameters."""
        return {"temperature": self.objective.contrast.temperature}


class _LabelRows(nn.Module):
    """A head of which some rows are left."""

    def __init__(self, head: nn.Linear, yes: int, no: int | None) -> None:
        super().__init__()
        self.head = head
        self.yes, self.no = yes, no

    def forward(self, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b t k"]:
        weight, bias = self.head.weight, self.head.bias
        if self.no is None:
            rows, offsets = weight[self.yes][None], None if bias is None else bias[self.yes][None]
        else:
            rows = token_rows(weight, self.yes, self.no)
            offsets = None if bias is None else torch.stack([bias[self.yes], bias[self.no]])
        return row_logits(states, rows, offsets).movedim(0, -1)


@contextmanager
def _two_rows_for_a_head(model: nn.Module) -> Iterator[None]:
    """Within, the head of a causal cross-encoder makes the logits of its label tokens alone, numbered from 0."""
    score = _logit_score(model)
    transformer = next((part for part in model.modules() if isinstance(part, Transformer)), None)
    head = None if score is None or transformer is None else transformer.model.get_output_embeddings()
    if score is None or transformer is None or not _is_plain(head):
        yield
        return
    yes, no = score.true_token_id, score.false_token_id
    transformer.model.set_output_embeddings(_LabelRows(head, yes, no))
    score.true_token_id, score.false_token_id = 0, None if no is None else 1
    try:
        yield
    finally:
        transformer.model.set_output_embeddings(head)
        score.true_token_id, score.false_token_id = yes, no


def _is_plain(head: nn.Module | None) -> TypeGuard[nn.Linear]:
    """A linear layer whose rows can be read: neither quantised, nor adapted, nor moved about by hooks."""
    if not isinstance(head, nn.Linear) or hasattr(head, "_hf_hook"):
        return False
    return head.weight.is_floating_point() and head.weight.shape == (head.out_features, head.in_features)


def _logit_score(model: nn.Module) -> LogitScore | None:
    """The module behind a causal model that reads its logits; also of a model wrapped for several devices."""
    return next((part for part in model.modules() if isinstance(part, LogitScore)), None)


def _tuples(inputs: Sequence[Sequence[Any]]) -> tuple[list[Any], Tensor, Int[Tensor, " n"]]:
    """Columns (query, positive, negatives...) as pairs, relevances and the query of each pair."""
    if len(inputs) < 2:
        refuse("inputs", "columns (query, positive, negatives...)", f"{len(inputs)} column")
    queries, positives, *negatives = inputs
    missing = [index for index, positive in enumerate(positives) if positive is None]
    if missing:
        refuse("inputs", "a positive for every query in the second column", f"None at row {missing[0]}")
    docs = [[row[0], *(doc for doc in row[1:] if doc is not None)] for row in zip(positives, *negatives, strict=True)]
    return _pairs(queries, docs, [torch.arange(len(row)) == 0 for row in docs])


def _labelled_lists(
    inputs: Sequence[Sequence[Any]], labels: Sequence[Tensor]
) -> tuple[list[Any], Tensor, Int[Tensor, " n"]]:
    """Columns (query, docs) with a list of labels each as pairs, relevances and the query of each pair."""
    if isinstance(labels, Tensor):
        refuse("labels", "a list of labels for each query, or no labels", "one label each")
    if len(inputs) != 2:
        refuse("inputs", "columns (query, docs) beside the labels", f"{len(inputs)} columns")
    queries, docs = inputs
    lengths, known = [len(row) for row in docs], [len(row) for row in labels]
    if lengths != known:
        refuse("labels", f"one for each document, {lengths}", str(known))
    return _pairs(queries, docs, labels)


def _pairs(
    queries: Sequence[Any], docs: Sequence[Sequence[Any]], relevances: Sequence[Tensor]
) -> tuple[list[Any], Tensor, Int[Tensor, " n"]]:
    lengths = torch.tensor([len(row) for row in docs])
    if not lengths.all():
        refuse("inputs", "a document for every query", f"none at row {lengths.tolist().index(0)}")
    pairs = [(query, doc) for query, row in zip(queries, docs, strict=True) for doc in row]
    return pairs, torch.cat(list(relevances)), torch.arange(len(lengths)).repeat_interleave(lengths)


def _warn_of_the_served_score() -> None:
    warnings.warn(
        "z_yes is trained, z_yes - z_no is served: set `false_token_id = None` on the model's LogitScore once trained",
        stacklevel=3,
    )
