"""`compare reranking`: which objective trains the best re-ranker for one's own queries and documents?

Every query's candidates are its relevant documents and those that a pretrained bi-encoder ranks highest. Every seed
splits the queries. Each contender trains the same cross-encoder (the pretrained encoder with a new head of one logit)
on the same lists, once per learning rate of the same grid; the rate with the best nDCG@10 on the validation queries is
taken, and the test queries are looked at once, with that re-ranker.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.catalog.objectives import make_ranking_objective
from scorecraft.comparisons.comparison import Comparison, tuned
from scorecraft.comparisons.text_ranking import (
    MODEL,
    RANKING_METRICS,
    Collection,
    collection_in,
    encoder_path,
    hard_candidates_in,
    ranking_metrics,
    rounds,
    split_queries,
    text_comparison,
    text_world,
    train_quietly,
    training_options,
)
from scorecraft.core import ListObjective
from scorecraft.studies.study import Contender, Scale, World
from scorecraft.studies.worlds import generator

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

DEFAULT_OBJECTIVES = ("infonce", "listnet", "pairwise_logistic", "supervised_reranking")
METRICS = tuple(metric for metric in RANKING_METRICS if metric.name != "recall_at_100")
_BATCH = 32


class OneLogit(ListObjective):
    """An objective of the logits of yes and no on a model of one logit: no has 0, so that it is the odds that count."""

    def __init__(self, objective: ListObjective) -> None:
        super().__init__(reduction=objective.reduction, validate=objective.validate)
        self.objective = objective

    def list_loss(
        self, scores: Float[Tensor, "... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        return self.objective.list_loss(torch.stack([scores, torch.zeros_like(scores)]), relevance, where)

    def counts(self, relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]) -> Bool[Tensor, "..."]:
        return self.objective.counts(relevance, where)


def reranking_comparison(
    source: str,
    objectives: Sequence[str],
    *,
    model: str = MODEL,
    steps: int = 40,
    batch: int = 8,
    negatives: int = 4,
    learning_rates: Sequence[float] = (5e-5, 2e-4),
    candidates: int = 20,
    documents: int = 3000,
    max_tokens: int = 96,
    split: str | None = None,
    drop_incomplete: bool = False,
) -> Comparison:
    """A comparison of objectives for re-ranking.

    Args:
        source: the data, see `load_retrieval`, which also takes `split` and `drop_incomplete`.
        objectives: names of list objectives (`infonce`, `listnet`, `unified_reranking:weight=cl`).
        model: a folder or hub name, of a bi-encoder whose transformer the cross-encoder starts from.
        steps: batches per training.
        batch: queries per batch.
        negatives: per query of a batch.
        learning_rates: the grid.
        candidates: irrelevant documents to rank per query, those that the pretrained encoder ranks highest.
        documents: how many the candidates are taken from (all relevant ones, and others drawn once).
        max_tokens: at which pairs are cut.

    Raises:
        BadData, UnknownObjective, ValueError: in one line.
    """
    for text in objectives:
        list_objective(text)
    world = text_world(
        source, model=model, documents=documents, max_tokens=max_tokens, split=split, drop_incomplete=drop_incomplete
    )
    return text_comparison(
        "reranking",
        METRICS,
        world,
        objectives,
        reranking_trial,
        learning_rates=learning_rates,
        steps=steps,
        batch=batch,
        negatives=negatives,
        candidates=candidates,
    )


def list_objective(text: str) -> ListObjective:
    """A list objective of one logit from how it is typed.

    Raises:
        UnknownObjective, ValueError: in one line.
    """
    objective = make_ranking_objective(text)
    if not isinstance(objective, ListObjective):
        raise ValueError(f"objective `{text}` compares the pairs of a batch: for `compare retrieval`, not re-ranking")
    return OneLogit(objective) if objective.channels == 2 else objective


class Candidates(NamedTuple):
    """The lists to rank."""

    documents: Int[Tensor, "q c"]
    relevance: Float[Tensor, "q c"]
    where: Bool[Tensor, "q c"]


def candidates_of(collection: Collection, hard: Int[Tensor, "q k"]) -> Candidates:
    """For every query its relevant documents, then the irrelevant ones that the pretrained encoder ranks highest."""
    relevant = [row.nonzero()[:, 0] for row in collection.relevance]
    lists = [torch.cat(parts) for parts in zip(relevant, hard, strict=True)]
    lengths = torch.tensor([len(found) for found in lists])
    documents = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True)
    where = torch.arange(documents.shape[1]) < lengths[:, None]
    return Candidates(documents, collection.relevance.gather(1, documents).masked_fill(~where, 0), where)


def reranking_trial(world: World, contender: Contender, seed: int, scale: Scale) -> Mapping[str, float]:
    """Train one cross-encoder per learning rate, choose on the validation queries, measure on the test queries."""
    told = scale.settings
    collection = collection_in(world)
    lists = candidates_of(collection, hard_candidates_in(world, told["candidates"]))
    parts = split_queries(len(collection.queries), seed)

    def attempt(rate: float) -> tuple[float, CrossEncoder]:
        model = cross_encoder(world.settings["model"], world.settings["max_tokens"], seed)
        _train(model, contender.settings["objective"], collection, lists, parts.training, rate, told, seed)
        return _measured(model, collection, lists, parts.validation)["ndcg_at_10"], model

    reached, model = tuned(told["learning_rates"], attempt)
    return {**_measured(model, collection, lists, parts.test), "validation": reached}


def cross_encoder(name: str, max_tokens: int, seed: int) -> CrossEncoder:
    """The pretrained transformer with a new head of one logit."""
    from sentence_transformers import CrossEncoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CrossEncoder(
            encoder_path(name),
            num_labels=1,
            max_length=max_tokens,
            activation_fn=torch.nn.Identity(),
            device="cuda" if torch.cuda.is_available() else "cpu",
        )


def _train(
    model: CrossEncoder,
    objective: str,
    collection: Collection,
    lists: Candidates,
    training: Int[Tensor, " t"],
    rate: float,
    told: Mapping[str, Any],
    seed: int,
) -> None:
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments

    from scorecraft.integrations.sentence_transformers.reranking import ListRerankingLoss

    random = generator(seed, "rows")
    pairs = ((lists.relevance > 0) & lists.where)[training].nonzero()
    order = rounds(len(pairs), told["steps"] * told["batch"], random)
    rows: dict[str, list[str]] = {"query": [], "positive": []}
    rows |= {f"negative_{place}": [] for place in range(1, told["negatives"] + 1)}
    for place, column in pairs[order].tolist():
        query = int(training[place])
        others = lists.documents[query, (lists.where[query] & (lists.relevance[query] <= 0))]
        drawn = others[torch.randperm(len(others), generator=random)[: told["negatives"]]]
        rows["query"].append(collection.queries[query])
        rows["positive"].append(collection.documents[int(lists.documents[query, column])])
        for number, document in enumerate(drawn.tolist(), start=1):
            rows[f"negative_{number}"].append(collection.documents[document])
    with tempfile.TemporaryDirectory() as folder:
        arguments = CrossEncoderTrainingArguments(output_dir=folder, **training_options(told, rate, seed, model.device))
        loss = ListRerankingLoss(model, list_objective(objective))
        train_quietly(CrossEncoderTrainer(model, arguments, train_dataset=Dataset.from_dict(rows), loss=loss))


def _measured(
    model: CrossEncoder, collection: Collection, lists: Candidates, queries: Int[Tensor, " s"]
) -> dict[str, float]:
    where = lists.where[queries]
    pairs = [
        (collection.queries[query], collection.documents[document])
        for query in queries.tolist()
        for document in lists.documents[query][lists.where[query]].tolist()
    ]
    scores = torch.zeros(where.shape)
    found = model.predict(pairs, batch_size=_BATCH, convert_to_tensor=True, show_progress_bar=False)
    scores[where] = torch.as_tensor(found).float().cpu().reshape(-1)
    metrics = ranking_metrics(scores, lists.relevance[queries], where)
    return {name: value for name, value in metrics.items() if name != "recall_at_100"}
