"""ADORE's loss, forward and backward to the query embeddings: its share of a training step, and against the plain loop.

100,000 documents and 32 queries of 384 dimensions, float32 Gaussian rows of length 1; each query has one relevant
document and is a noisy copy of it, so that most are retrieved and some are not. 200 documents are retrieved, the metric
is cut at 200.

What is timed as ours: gathering the exact rows of the lists, scoring them, the loss and its gradient. The peer computes
the same query by query, with a matrix of all `K x K` pairs each, as the official code does. The floor is the whole step
that the loss is part of: encoding the queries by a transformer of MiniLM's size (6 layers of width 384, 16 tokens), the
exact search, and then what is timed as ours, with the gradient carried on to the encoder. The loss should be at most 5%
of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.bench.harness import Bound, Call, Case, Entry, Figure, Shape
from scorecraft.bench.inputs import SEED, forward_backward, unit_gaussian
from scorecraft.relevance.star_adore import AdoreLoss, with_missing_positives
from scorecraft.relevance.star_adore.adore import RetrievedLists
from scorecraft.relevance.vector_index import ExactIndex, rows_of_vectors

NOISE = 3.5
"""Length of the noise in a query, the document's being 1."""


class _Inputs(NamedTuple):
    documents: Float[Tensor, "n d"]
    queries: Float[Tensor, "b d"]
    lists: RetrievedLists
    search: ExactIndex
    depth: int

    def lists_of(self, queries: Float[Tensor, "b d"]) -> RetrievedLists:
        """What these queries retrieve, with what they miss."""
        relevant = torch.arange(len(queries), device=queries.device)[:, None]
        return with_missing_positives(self.search.search(queries.detach(), self.depth).ids, relevant)


def _inputs(shape: Shape, device: torch.device) -> _Inputs:
    generator = torch.Generator().manual_seed(SEED + 3)
    documents = unit_gaussian(shape["documents"], shape["d"], device)
    noise = F.normalize(torch.randn(shape["batch"], shape["d"], generator=generator), dim=1).to(device)
    queries = F.normalize(documents[: shape["batch"]] + NOISE * noise, dim=1)
    inputs = _Inputs(documents, queries, RetrievedLists(queries, queries), ExactIndex(documents), shape["depth"])
    return inputs._replace(lists=inputs.lists_of(queries))


def _vectorised(x: Float[Tensor, "b d"], inputs: _Inputs, lists: RetrievedLists) -> Float[Tensor, ""]:
    rows = rows_of_vectors(inputs.documents, lists.ids.clamp(min=0), x)
    loss = AdoreLoss(metric_cut=inputs.depth)
    return loss(torch.einsum("bd,bkd->bk", x, rows), lists.relevant, lists.where)


def query_by_query(
    x: Float[Tensor, "b d"], documents: Float[Tensor, "n d"], lists: RetrievedLists, cut: int
) -> Float[Tensor, ""]:
    """The mean over queries of the weighted pair losses of all `K x K` pairs, masked to relevant before irrelevant."""
    losses = []
    for query, ids, relevant in zip(x, lists.ids, lists.relevant, strict=True):
        there = ids >= 0
        scores, labels = documents.index_select(0, ids[there]) @ query, relevant[there].float()
        losses.append(_one_list(scores, labels, cut))
    return torch.stack(losses).mean()


def _one_list(scores: Float[Tensor, " k"], labels: Float[Tensor, " k"], cut: int) -> Float[Tensor, ""]:
    places = torch.arange(1, len(scores) + 1, device=scores.device)
    gains = torch.where(places <= cut, 1 / places, 0.0)
    pairs: Bool[Tensor, "k k"] = labels[:, None] > labels
    swaps = (gains[:, None] - gains).abs()
    return (swaps * F.softplus(scores - scores[:, None]))[pairs].mean()


def _ours(shape: Shape, device: torch.device) -> Call:
    inputs = _inputs(shape, device)
    x = inputs.queries.clone().requires_grad_()
    return forward_backward(lambda: _vectorised(x, inputs, inputs.lists), x)


def _peer(shape: Shape, device: torch.device) -> Call:
    inputs = _inputs(shape, device)
    x = inputs.queries.clone().requires_grad_()
    return forward_backward(lambda: query_by_query(x, inputs.documents, inputs.lists, inputs.depth), x)


def _step(shape: Shape, device: torch.device) -> Call:
    inputs = _inputs(shape, device)
    torch.manual_seed(SEED)
    width = shape["d"]
    layer = nn.TransformerEncoderLayer(width, shape["heads"], 4 * width, dropout=0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, shape["layers"], enable_nested_tensor=False).to(device)
    tokens = torch.randn(len(inputs.queries), shape["tokens"], width, device=device)

    def loss() -> Tensor:
        # Queries that retrieve what was retrieved: what an untrained encoder says is added as next to nothing.
        x = inputs.queries + 1e-6 * encoder(tokens).mean(dim=1)
        return _vectorised(x, inputs, inputs.lists_of(x))

    return forward_backward(loss, *encoder.parameters())


CASES = (
    Case(
        name="ADORE loss, batch 32, 200 of 100,000 documents",
        shape={"documents": 100_000, "d": 384, "batch": 32, "depth": 200, "layers": 6, "heads": 12, "tokens": 16},
        small={"documents": 200, "d": 8, "batch": 4, "depth": 10, "layers": 1, "heads": 2, "tokens": 3},
        entries={
            "ours": Entry("AdoreLoss()", _ours),
            "peer": Entry("loop over queries, K x K pairs each", _peer),
            "floor": Entry("the whole step: encode, search, loss", _step),
        },
        figures=(
            Figure("time", (Bound("ratio_to_floor", 0.05, "<= 5% of the step"),)),
            Figure("memory"),
        ),
        agreement=1e-4,
    ),
)
