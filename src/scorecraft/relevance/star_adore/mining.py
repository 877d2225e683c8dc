"""Static hard negatives: mined once with a retriever, drawn from at every step of STAR."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.core.checks import describe, positive_integer, refuse
from scorecraft.core.pairs import Pairs
from scorecraft.relevance.embedding_store import Progress
from scorecraft.relevance.star_adore.relevant import RelevantDocuments
from scorecraft.relevance.vector_index import VectorIndex


def mine_hard_negatives(
    index: VectorIndex,
    queries: Float[Tensor, "q d"],
    relevant: RelevantDocuments,
    *,
    depth: int = 200,
    batch_size: int = 1024,
    progress: Progress | None = None,
) -> Int[Tensor, "q depth"]:
    """`H_q`: the `depth` best irrelevant documents for each query, best first, padded with -1.

    `depth + max |R_q|` documents are retrieved and the relevant ones removed, so that a list is shorter only where the
    index has no more.

    Args:
        index: over the documents that `relevant` numbers.
        queries: embeddings of all queries, by the model that embedded the documents.
        relevant: of all queries.
        depth: length of a list, at least 1 (sensible 50 to 500).
        batch_size: queries searched at once.
        progress: called as `progress(done, total, what)`.

    Raises:
        ValueError: as many queries, or documents, as `relevant` knows were expected.
    """
    positive_integer("depth", depth)
    if len(queries) != len(relevant):
        refuse("queries", f"{len(relevant)} embeddings, one per query of `relevant`", describe(queries))
    if len(index) != relevant.documents:
        refuse("index", f"an index of {relevant.documents} documents, as `relevant` numbers them", len(index))
    mined = torch.empty(len(queries), depth, dtype=torch.int64)
    for start in range(0, len(queries), positive_integer("batch_size", batch_size)):
        rows = torch.arange(start, min(start + batch_size, len(queries)))
        known = relevant[rows]
        ids = index.search(queries[rows], depth + known.shape[1]).ids.cpu()
        mined[rows] = without(ids, known)[:, :depth]
        if progress is not None:
            progress(int(rows[-1]) + 1, len(queries), "queries mined")
    return mined


def sample_hard_negatives(
    mined: Int[Tensor, "b depth"], count: int, *, generator: torch.Generator
) -> Int[Tensor, "b count"]:
    """`count` different documents drawn uniformly from each list; -1 where a list is too short."""
    keys = torch.rand(mined.shape, generator=generator).masked_fill(mined < 0, -1.0)
    drawn = mined.gather(1, keys.topk(min(positive_integer("count", count), mined.shape[1]), dim=1).indices)
    return torch.nn.functional.pad(drawn, (0, count - drawn.shape[1]), value=-1)


class StarBatch(NamedTuple):
    """Some queries against the passages they are trained with."""

    queries: Int[Tensor, " b"]
    """Rows of the queries."""
    passages: Int[Tensor, " m"]
    """Rows of the documents: one positive per query, then the hard documents of all of them, query by query."""
    pairs: Pairs
    """Which passage is whose positive, and whose negative."""


def star_batch(
    queries: Int[Tensor, " b"],
    relevant: RelevantDocuments,
    mined: Int[Tensor, "q depth"] | None = None,
    *,
    hard_per_query: int = 1,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> StarBatch:
    """A batch of STAR: a positive drawn uniformly from `R_q` and hard negatives from `H_q` for each query.

        batch = star_batch(rows, relevant, mined, generator=generator)
        StarLoss()(embed_queries(batch.queries), reference=embed_passages(batch.passages), pairs=batch.pairs)

    A query whose list is too short has fewer hard documents, or none. Documents known to be relevant to a query are no
    negatives of it, whoever brought them.

    Args:
        queries: rows of the queries.
        relevant: of all queries.
        mined: hard negatives of all queries, padded with -1; None for an in-batch step.
        hard_per_query: drawn for each query, at least 1 (sensible 1 to 8).
        generator: for both draws.
        device: of the embeddings that the pairs will be used with.
    """
    passages = relevant.sample(queries, generator=generator)
    if mined is not None:
        hard = sample_hard_negatives(mined[queries], hard_per_query, generator=generator).flatten()
        passages = torch.cat([passages, hard[hard >= 0]])
    pairs = Pairs.of_queries(
        torch.arange(len(queries), device=device), passages=passages.to(device), relevant=relevant[queries].to(device)
    )
    return StarBatch(queries, passages, pairs)


def without(ids: Int[Tensor, "b k"], known: Int[Tensor, "b r"]) -> Int[Tensor, "b k"]:
    """The ids of each row that are not known, in their order, and -1 behind them."""
    gone = (ids[:, :, None] == known[:, None, :]).any(dim=2) | (ids < 0)
    order = gone.long().argsort(dim=1, stable=True)
    return ids.masked_fill(gone, -1).gather(1, order)
