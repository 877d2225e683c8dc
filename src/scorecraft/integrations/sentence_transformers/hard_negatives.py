"""sentence-transformers: hard negatives that keep up with the model, and ADORE for its query tower.

Static or refreshed hard negatives, beside the host's `mine_hard_negatives`:

    from sentence_transformers import SentenceTransformerTrainer
    from scorecraft.integrations.sentence_transformers.hard_negatives import HardNegativeMiner, RefreshHardNegatives

    miner = HardNegativeMiner(model, corpus)
    dataset = miner.training_set(queries, positives, k=1)
    refresh = RefreshHardNegatives(miner, every=1000, background=True)
    SentenceTransformerTrainer(model, arguments, train_dataset=dataset, loss=loss, callbacks=[refresh]).train()

Then the queries alone, against documents that stay where they are:

    trainer = adore_trainer(model, corpus, positives)
    trainer.train(queries, epochs=1)
    trainer.query_encoder.model.save_pretrained("query-encoder")
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core.checks import choice, positive_integer, refuse
from scorecraft.integrations.evaluation_mode import evaluating
from scorecraft.integrations.optional import require
from scorecraft.relevance.embedding_store import EmbeddingStore, Progress, check_corpus, fingerprint_of_module
from scorecraft.relevance.star_adore import (
    AdoreTrainer,
    RelevantDocuments,
    detached_copy,
    mine_hard_negatives,
    sample_hard_negatives,
)
from scorecraft.relevance.vector_index import ExactIndex, FaissIndex, Similarity, VectorIndex, Vectors

require("sentence_transformers", "text")
require("datasets", "text")

from datasets import Dataset  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.util import batch_to_device  # noqa: E402
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments  # noqa: E402

Positives: TypeAlias = Sequence[int | str | Sequence[int | str]]
"""For every query its relevant document, or several: as rows of the corpus, or as texts that stand in it."""


class MinedNegatives(NamedTuple):
    """Hard negatives of query and positive pairs."""

    dataset: Dataset
    """Columns `query`, `positive`, `negative_1` to `negative_k`, in the order in which the host's losses take them."""
    ids: Int[Tensor, "n k+1"]
    """Rows in the corpus of the positive and of the negatives. The host would read ids in the dataset as texts."""
    skipped: int
    """Pairs left out because their query has fewer than `k` negatives."""


class HardNegativeMiner:
    """Retrieves, for every query, the documents that the model confuses with its positives.

    Documents are embedded with `encode_document`, queries with `encode_query`, compared as the model's
    `similarity_fn_name` says. A list holds the `depth` best irrelevant documents; negatives are drawn uniformly from
    it, as STAR does.

    Args:
        model: the `SentenceTransformer`, which may be in training.
        corpus: the documents.
        index: `"torch"` for exact search without faiss, else faiss's description of an index: `"Flat"` (exact),
            `"IVF1024,Flat"`, `"HNSW32"`.
        depth: length of a list, at least 1.
        parameters: of a faiss search, such as `"nprobe=16"`.
        batch_size: texts embedded at a time.
        seed: of what is drawn.
        folder: where the first embeddings are kept, so that an interrupted encoding goes on; None keeps none.
        progress: called as `progress(done, total, what)`.

    Raises:
        ValueError: an empty corpus or document, a model compared by neither cosine nor dot product, or a folder with
            the embeddings of another model or corpus.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        corpus: Sequence[str],
        index: str = "Flat",
        *,
        depth: int = 200,
        parameters: str = "",
        batch_size: int = 32,
        seed: int = 0,
        folder: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_corpus("corpus", corpus)
        self.model = model
        self.corpus = list(corpus)
        self.depth = positive_integer("depth", depth)
        self.batch_size = positive_integer("batch_size", batch_size)
        self._description, self._parameters = index, parameters
        self._progress = progress
        self._similarity: Similarity = _similarity_of(model)
        self._generator = torch.Generator().manual_seed(seed)
        self._sets: list[_TrainingSet] = []
        self._threads = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None
        vectors = _document_vectors(model, self.corpus, batch_size, folder, progress)
        self._index = _index_of(vectors, index, parameters, self._similarity)

    @property
    def index(self) -> VectorIndex:
        """Over the corpus, with the weights of the last refresh."""
        return self._index

    def mine(self, queries: Sequence[str], positives: Positives, k: int) -> MinedNegatives:
        """Draw `k` negatives for every query and positive, with the weights of the last refresh.

        A query is embedded with the model as it is now, so refresh first where the model has moved.

        Args:
            queries: texts.
            positives: the relevant documents of each query; all of them are kept out of its negatives.
            k: at least 1 and at most `depth`.

        Raises:
            ValueError: a query without a positive, a positive that is not in the corpus, or no query with `k`
                negatives.
        """
        self._check_count(k)
        pairs = _Pairs(queries, positives, self.corpus)
        negatives = self._draw(self._lists(self.model, self._index, pairs), pairs, k)
        full = (negatives >= 0).all(dim=1)
        if not full.any():
            refuse("k", "no more negatives than a query has", k)
        ids = torch.cat([pairs.documents[:, None], negatives], dim=1)[full]
        texts = [pairs.texts[row] for row in full.nonzero().flatten().tolist()]
        return MinedNegatives(self._dataset(texts, ids), ids, int((~full).sum()))

    def training_set(self, queries: Sequence[str], positives: Positives, k: int) -> Dataset:
        """A dataset like that of `mine` whose negatives are drawn anew whenever a row is read, from the newest lists.

        Lists are made now, and again by every `refresh`. Rows are read in the process of the trainer: set
        `dataloader_num_workers=0` (the host's default), for workers would keep the lists they started with.

        Raises:
            ValueError: as `mine`.
        """
        self._check_count(k)
        pairs = _Pairs(queries, positives, self.corpus)
        lists = self._lists(self.model, self._index, pairs)
        kept = (lists >= 0).sum(dim=1)[pairs.rows] >= k
        if not kept.any():
            refuse("k", "no more negatives than a query has", k)
        live = _TrainingSet(pairs, lists)
        self._sets.append(live)
        first = self._draw(lists, pairs, k)
        texts = [pairs.texts[row] for row in kept.nonzero().flatten().tolist()]
        dataset = self._dataset(texts, torch.cat([pairs.documents[:, None], first], dim=1)[kept])

        def with_new_negatives(batch: dict[str, list[str]]) -> dict[str, list[str]]:
            if "query" not in batch or "positive" not in batch:
                return batch
            asked = zip(batch["query"], batch["positive"], strict=True)
            rows = torch.tensor([live.pairs.row_of[pair] for pair in asked])
            drawn = sample_hard_negatives(live.lists[rows], k, generator=self._generator)
            columns = {name: batch[name] for name in ("query", "positive")}
            return columns | self._columns(drawn)

        return dataset.with_transform(with_new_negatives)

    def refresh(self, *, background: bool = False) -> None:
        """Embed the corpus with the current weights, and make the index and the lists of all training sets again.

        In the background a copy of the model is embedded with in a thread while training goes on; what is there stays
        in use until the new lists are complete. A refresh asked for while one is running is left out.

        Raises:
            Exception: what a refresh in the background has raised, at the next call of `refresh` or `wait`.
        """
        if self._running is not None and not self._running.done():
            return
        self.wait()
        if background:
            self._running = self._threads.submit(self._renew, copy.deepcopy(self.model))
        else:
            self._renew(self.model)

    def wait(self) -> None:
        """Until a refresh in the background has ended."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _renew(self, model: SentenceTransformer) -> None:
        vectors = _document_vectors(model, self.corpus, self.batch_size, None, self._progress)
        index = _index_of(vectors, self._description, self._parameters, self._similarity)
        lists = [self._lists(model, index, live.pairs) for live in self._sets]
        self._index = index
        for live, newest in zip(self._sets, lists, strict=False):  # a set made meanwhile has its own
            live.lists = newest

    def _lists(self, model: SentenceTransformer, index: VectorIndex, pairs: _Pairs) -> Int[Tensor, "q depth"]:
        queries = _encoded(model, "query", pairs.queries, self.batch_size)
        return mine_hard_negatives(index, queries, pairs.relevant, depth=self.depth, progress=self._progress)

    def _draw(self, lists: Int[Tensor, "q depth"], pairs: _Pairs, k: int) -> Int[Tensor, "n k"]:
        return sample_hard_negatives(lists[pairs.rows], k, generator=self._generator)

    def _dataset(self, texts: list[tuple[str, str]], ids: Int[Tensor, "n k+1"]) -> Dataset:
        columns = {"query": [query for query, _ in texts], "positive": [document for _, document in texts]}
        return Dataset.from_dict(columns | self._columns(ids[:, 1:]))

    def _columns(self, negatives: Int[Tensor, "n k"]) -> dict[str, list[str]]:
        columns = enumerate(negatives.T.tolist(), start=1)
        return {f"negative_{place}": [self.corpus[row] for row in rows] for place, rows in columns}

    def _check_count(self, k: int) -> None:
        if positive_integer("k", k) > self.depth:
            refuse("k", f"at most depth = {self.depth}", k)


class RefreshHardNegatives(TrainerCallback):
    """Refreshes a miner every so many steps of the host's trainer.

    Args:
        miner: whose `training_set` is trained on.
        every: optimiser steps between two refreshes, at least 1.
        background: embed in a thread while training goes on, with the weights of the step it began at.
    """

    def __init__(self, miner: HardNegativeMiner, every: int, *, background: bool = False) -> None:
        self.miner = miner
        self.every = positive_integer("every", every)
        self.background = background

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refresh when it is time."""
        del args, control, kwargs
        if state.global_step % self.every == 0:
            self.miner.refresh(background=self.background)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for a refresh under way, so that its errors are heard."""
        del args, state, control, kwargs
        self.miner.wait()


class QueryTower(nn.Module):
    """From texts to query embeddings with gradient, as `encode_query` makes them.

    Args:
        model: trained in place; of length 1 where the model compares by cosine.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self.similarity = _similarity_of(model)

    def forward(self, queries: Sequence[str]) -> Float[Tensor, "b d"]:
        """The embeddings of a batch of queries."""
        features = self.model.preprocess(list(queries), prompt=self.model.prompts.get("query"), task="query")
        output: Mapping[str, Tensor] = self.model(batch_to_device(features, self.model.device), task="query")
        embeddings = output["sentence_embedding"]
        return F.normalize(embeddings, dim=1) if self.similarity == "cosine" else embeddings


def adore_trainer(
    model: SentenceTransformer,
    corpus: Sequence[str],
    positives: Positives,
    *,
    index: str = "Flat",
    parameters: str = "",
    embeddings: str | Path | None = None,
    score_scale: float | None = None,
    encode_batch_size: int = 32,
    progress: Progress | None = None,
    **options: Any,
) -> AdoreTrainer:
    """ADORE for a sentence-transformers model: the documents are embedded once, a copy of the model learns the queries.

        trainer = adore_trainer(model, corpus, positives, learning_rate=5e-6)
        trainer.train(queries, epochs=1)
        trainer.query_encoder.model  # a SentenceTransformer, for queries; `model` itself has not changed

    Args:
        model: embeds the documents, and is where the query encoder starts.
        corpus: the documents.
        positives: for every query to train on its relevant documents.
        index: as for `HardNegativeMiner`.
        parameters: of a faiss search.
        embeddings: the folder the document embeddings are kept in; in memory when left out.
        score_scale: what scores are multiplied by in the loss; 20 for a model that compares by cosine, else 1.
        encode_batch_size: documents embedded at a time.
        progress: called as `progress(done, total, what)` while documents are embedded.
        options: of `AdoreTrainer`.

    Raises:
        ValueError: as `HardNegativeMiner` and `AdoreTrainer`.
    """
    check_corpus("corpus", corpus)
    similarity = _similarity_of(model)
    vectors = _document_vectors(model, list(corpus), encode_batch_size, embeddings, progress)
    relevant = RelevantDocuments(_rows_of(positives, corpus), documents=len(corpus))
    scale = score_scale if score_scale is not None else 20.0 if similarity == "cosine" else 1.0
    found_by = _index_of(vectors, index, parameters, similarity)
    tower = QueryTower(detached_copy(model))
    return AdoreTrainer(tower, vectors, found_by, relevant, score_scale=scale, **options)


class _Pairs:
    """Queries with their relevant documents, and one pair for each of those."""

    def __init__(self, queries: Sequence[str], positives: Positives, corpus: Sequence[str]) -> None:
        check_corpus("queries", queries)
        if len(positives) != len(queries):
            refuse("positives", f"those of {len(queries)} queries", len(positives))
        rows = _rows_of(positives, corpus)
        self.queries = list(queries)
        self.relevant = RelevantDocuments(rows, documents=len(corpus))
        pairs = [(query, document) for query, documents in enumerate(rows) for document in documents]
        self.rows = torch.tensor([query for query, _ in pairs])
        self.documents = torch.tensor([document for _, document in pairs])
        self.texts = [(self.queries[query], corpus[document]) for query, document in pairs]
        self.row_of = {pair: query for pair, (query, _) in zip(self.texts, pairs, strict=True)}


class _TrainingSet:
    """Pairs, and the newest lists of their queries."""

    def __init__(self, pairs: _Pairs, lists: Int[Tensor, "q depth"]) -> None:
        self.pairs, self.lists = pairs, lists


def _rows_of(positives: Positives, corpus: Sequence[str]) -> list[list[int]]:
    """Rows of the corpus for every query, in the order given, texts looked up."""
    lists = [[entry] if isinstance(entry, (int, str)) else list(entry) for entry in positives]
    rows: dict[str, int] = {}
    if any(isinstance(document, str) for documents in lists for document in documents):
        for row, text in enumerate(corpus):
            rows.setdefault(text, row)
    for documents in lists:
        for place, document in enumerate(documents):
            if isinstance(document, str):
                if document not in rows:
                    refuse("positives", "documents of the corpus", f"{document[:40]!r}, which is not in it")
                documents[place] = rows[document]
    return lists  # type: ignore[return-value]


def _similarity_of(model: SentenceTransformer) -> Similarity:
    name = choice("model.similarity_fn_name", str(model.similarity_fn_name), ("cosine", "dot"))
    return "cosine" if name == "cosine" else "dot"


def _document_vectors(
    model: SentenceTransformer,
    corpus: list[str],
    batch_size: int,
    folder: str | Path | None,
    progress: Progress | None,
) -> Vectors:
    """Of length 1 where the model compares by cosine."""

    def encode(texts: Sequence[str]) -> Tensor:
        return _encoded(model, "document", texts, batch_size)

    if folder is not None:
        store = EmbeddingStore.write(
            folder, encode, corpus, encoder=fingerprint_of_module(model), part=32 * batch_size, progress=progress
        )
        return store.vectors
    parts = []
    for start in range(0, len(corpus), 32 * batch_size):
        parts.append(encode(corpus[start : start + 32 * batch_size]))
        if progress is not None:
            progress(min(start + 32 * batch_size, len(corpus)), len(corpus), "documents embedded")
    return torch.cat(parts)


def _encoded(model: SentenceTransformer, side: str, texts: Sequence[str], batch_size: int) -> Float[Tensor, "n d"]:
    """Embeddings on the CPU; the model is left in the mode it was in, for `encode` puts it in evaluation."""
    encode = model.encode_document if side == "document" else model.encode_query
    with evaluating(model):
        found = encode(
            list(texts),
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_tensor=True,
            normalize_embeddings=_similarity_of(model) == "cosine",
        )
    assert isinstance(found, Tensor)
    # What inference made cannot enter a graph; a copy can.
    return found.float().cpu().clone()


def _index_of(vectors: Vectors, description: str, parameters: str, similarity: Similarity) -> VectorIndex:
    if description == "torch":
        return ExactIndex(vectors, similarity=similarity)
    return FaissIndex(vectors, description, similarity=similarity, parameters=parameters)
