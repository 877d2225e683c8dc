"""`compare retrieval`: which objective fine-tunes the best retriever for one's own queries and documents?

Every seed splits the queries. Each contender fine-tunes the same pretrained bi-encoder with the same rows (query,
positive, hard negatives of the pretrained encoder), once per learning rate of the same grid; the rate with the best
nDCG@10 on the validation queries is taken, and the test queries are looked at once, with that encoder.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.catalog.objectives import make_ranking_objective, read_spelling
from scorecraft.comparisons.comparison import Comparison, tuned
from scorecraft.comparisons.text_ranking import (
    MODEL,
    RANKING_METRICS,
    Collection,
    bi_encoder,
    collection_in,
    embed_texts,
    hard_candidates_in,
    ranking_metrics,
    rounds,
    split_queries,
    text_comparison,
    text_world,
    train_quietly,
    training_options,
)
from scorecraft.core import Cosine
from scorecraft.studies.study import Contender, Scale, World
from scorecraft.studies.worlds import generator

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

RECIPE = "star_adore"
"""A contender that is more than a loss: STAR on both encoders for half of the steps, then ADORE on the queries'."""
DEFAULT_OBJECTIVES = ("infonce", "mw", RECIPE)
_SCALE = 20.0
_DEPTH = 50


class Retriever(NamedTuple):
    """An encoder of queries, and the kept documents as unit vectors."""

    queries: SentenceTransformer
    documents: Float[Tensor, "n d"]


def retrieval_comparison(
    source: str,
    objectives: Sequence[str],
    *,
    model: str = MODEL,
    steps: int = 40,
    batch: int = 32,
    hard_negatives: int = 1,
    learning_rates: Sequence[float] = (2e-5, 1e-4),
    documents: int = 3000,
    max_tokens: int = 64,
    split: str | None = None,
    drop_incomplete: bool = False,
) -> Comparison:
    """A comparison of objectives for retrieval.

    Args:
        source: the data, see `load_retrieval`, which also takes `split` and `drop_incomplete`.
        objectives: names (`infonce`, `mw`, `star:alpha=0.5`), or `star_adore` for the whole recipe.
        model: a folder or hub name of sentence-transformers.
        steps: batches per training.
        batch: queries per batch.
        hard_negatives: per query, drawn from the 50 documents that the pretrained encoder ranks highest.
        learning_rates: the grid.
        documents: how many are ranked (all relevant ones, and others drawn once).
        max_tokens: at which texts are cut.

    Raises:
        BadData, UnknownObjective, ValueError: in one line.
    """
    for text in objectives:
        make_ranking_objective(text)
    world = text_world(
        source, model=model, documents=documents, max_tokens=max_tokens, split=split, drop_incomplete=drop_incomplete
    )
    return text_comparison(
        "retrieval",
        RANKING_METRICS,
        world,
        objectives,
        retrieval_trial,
        learning_rates=learning_rates,
        steps=steps,
        batch=batch,
        hard_negatives=hard_negatives,
    )


def retrieval_trial(world: World, contender: Contender, seed: int, scale: Scale) -> Mapping[str, float]:
    """Fine-tune one bi-encoder per learning rate, choose on the validation queries, measure on the test queries."""
    told = scale.settings
    collection = collection_in(world)
    parts = split_queries(len(collection.queries), seed)
    rows = training_rows(
        collection, parts.training, hard_candidates_in(world, _DEPTH), told["steps"] * told["batch"],
        told["hard_negatives"], seed,
    )  # fmt: skip
    pretrained = bi_encoder(world.settings["model"], world.settings["max_tokens"])
    judged = torch.cat([parts.validation, parts.test])
    queries = [collection.queries[row] for row in judged.tolist()]
    relevance, first_test = collection.relevance[judged], len(parts.validation)

    def attempt(rate: float) -> tuple[float, Tensor]:
        trained = fine_tuned(
            pretrained, contender.settings["objective"], rows, collection, parts.training, rate, told, seed
        )
        scores = embed_texts(trained.queries, queries, queries=True) @ trained.documents.T
        return ranking_metrics(scores[:first_test], relevance[:first_test])["ndcg_at_10"], scores[first_test:]

    reached, scores = tuned(told["learning_rates"], attempt)
    return {**ranking_metrics(scores, relevance[first_test:]), "validation": reached}


class Rows(NamedTuple):
    """Rows to train on, as indices."""

    queries: Int[Tensor, " n"]
    positives: Int[Tensor, " n"]
    negatives: Int[Tensor, "n h"]


def training_rows(
    collection: Collection,
    queries: Int[Tensor, " t"],
    hard: Int[Tensor, "q depth"],
    count: int,
    negatives: int,
    seed: int,
) -> Rows:
    """Queries, each with one of its positives and some of its hard negatives, in an order that goes round all pairs."""
    random = generator(seed, "rows")
    pairs = (collection.relevance[queries] > 0).nonzero()
    order = rounds(len(pairs), count, random)
    drawn = queries[pairs[order, 0]]
    places = torch.rand(count, hard.shape[1], generator=random).argsort(dim=1)[:, :negatives]
    return Rows(drawn, pairs[order, 1], hard[drawn].gather(1, places))


def fine_tuned(
    pretrained: SentenceTransformer,
    objective: str,
    rows: Rows,
    collection: Collection,
    training: Int[Tensor, " t"],
    rate: float,
    told: Mapping[str, Any],
    seed: int,
) -> Retriever:
    """The pretrained encoder after `steps` batches."""
    model = copy.deepcopy(pretrained)
    name, _ = read_spelling(objective)
    if re.sub(r"[-_]", "", name.lower()) != RECIPE.replace("_", ""):
        _train_both(model, objective, rows, collection, rate, told, seed)
        return Retriever(model, embed_texts(model, collection.documents, queries=False))
    first = told["steps"] // 2 * told["batch"]
    _train_both(model, objective, Rows(*(part[:first] for part in rows)), collection, rate, told, seed)
    return _train_queries(model, collection, training, rate, told, seed)


def _train_both(
    model: SentenceTransformer,
    objective: str,
    rows: Rows,
    collection: Collection,
    rate: float,
    told: Mapping[str, Any],
    seed: int,
) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    from scorecraft.integrations.sentence_transformers import RetrievalLoss

    if not len(rows.queries):
        return
    columns = {
        "query": [collection.queries[row] for row in rows.queries.tolist()],
        "positive": [collection.documents[row] for row in rows.positives.tolist()],
    }
    for place, negatives in enumerate(rows.negatives.unbind(1), start=1):
        columns[f"negative_{place}"] = [collection.documents[row] for row in negatives.tolist()]
    data = Dataset.from_dict({**columns, "label": rows.queries.tolist()})
    loss = RetrievalLoss(model, make_ranking_objective(objective, score=_SCALE * Cosine()), scale=_SCALE)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder, **training_options(told, rate, seed, model.device)
        )
        train_quietly(SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss))


def _train_queries(
    model: SentenceTransformer,
    collection: Collection,
    training: Int[Tensor, " t"],
    rate: float,
    told: Mapping[str, Any],
    seed: int,
) -> Retriever:
    """ADORE for the other half of the steps; the documents and `model` stay."""
    from scorecraft.integrations.sentence_transformers.hard_negatives import adore_trainer

    queries = [collection.queries[row] for row in training.tolist()]
    positives = [
        list(dict.fromkeys(collection.documents[place] for place in collection.relevance[row].nonzero()[:, 0].tolist()))
        for row in training.tolist()
    ]
    batch = min(told["batch"], len(queries))
    steps = told["steps"] - told["steps"] // 2
    trainer = adore_trainer(
        model,
        list(collection.documents),
        positives,
        index="torch",
        score_scale=_SCALE,
        depth=min(200, len(collection.documents)),
        learning_rate=rate,
        weight_decay=told["weight_decay"],
        warmup_steps=max(1, steps // 10),
        batch_size=batch,
        seed=seed,
    )
    trainer.train(queries, epochs=max(1, steps // -(-len(queries) // batch)))
    documents = F.normalize(torch.as_tensor(trainer.documents), dim=1)  # as `trainer` embedded them
    return Retriever(trainer.query_encoder.model, documents)  # type: ignore[arg-type]
