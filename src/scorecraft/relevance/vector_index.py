"""Nearest neighbours of query embeddings among document embeddings: exactly in torch, over several ranks, or by faiss.

Every index answers `search(queries, k)` with scores and ids, best first; what it returns is the order that counts, and
among equal scores it is arbitrary. Where an index finds fewer than `k`, ids are -1 and scores `-inf`, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.checks import choice, describe, positive_integer, refuse
from scorecraft.core.ranks import gather_rows, rows_per_rank, world_size

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Vectors: TypeAlias = "Tensor | NDArray[np.floating]"
"""Document embeddings `[n, d]`: a tensor, or an array, memory-mapped or not."""
Similarity = Literal["dot", "cosine"]

_BLOCK = 1 << 14
_TRAINING_VECTORS = 1 << 18
"""At most this many vectors teach a faiss index its clusters."""


class Found(NamedTuple):
    """What a search found for each query, best first."""

    scores: Float[Tensor, "b k"]
    """`-inf` where there is nothing."""
    ids: Int[Tensor, "b k"]
    """Rows of the document embeddings; -1 where there is nothing."""


@runtime_checkable
class VectorIndex(Protocol):
    """Anything that finds the documents with the highest scores."""

    @property
    def dimension(self) -> int:
        """Of the embeddings."""
        ...

    def __len__(self) -> int:
        """How many documents there are."""
        ...

    def search(self, queries: Float[Tensor, "b d"], k: int) -> Found:
        """The `k` best documents for each query."""
        ...


class ExactIndex:
    """Exact search in torch, block by block: memory `O(b (block + k))` beside the vectors.

    Vectors stay where they are and are not copied; blocks of an array (a `np.memmap`, say) are read as they are needed.
    Queries are brought to the vectors' device, scores are float32 at least, and results come back to the queries.

    Args:
        vectors: `[n, d]`, any floating-point type.
        similarity: `"dot"` or `"cosine"`.
        block: documents scored at once.

    Raises:
        ValueError: vectors that are no floating-point matrix with at least one row.
    """

    def __init__(self, vectors: Vectors, *, similarity: Similarity = "dot", block: int = _BLOCK) -> None:
        check_vectors("vectors", vectors)
        self.vectors = vectors
        self.similarity: Similarity = choice("similarity", similarity, ("dot", "cosine"))  # type: ignore[assignment]
        self.block = positive_integer("block", block)

    @property
    def dimension(self) -> int:
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.vectors)

    @torch.no_grad()
    def search(self, queries: Float[Tensor, "b d"], k: int) -> Found:
        """The `k` best documents for each query, ids -1 beyond the number of documents.

        Raises:
            ValueError: queries of another dimension, or `k` below 1.
        """
        check_queries(queries, self.dimension, k)
        device = self.vectors.device if isinstance(self.vectors, Tensor) else queries.device
        x = _full_precision(queries.to(device))
        x = F.normalize(x, dim=1) if self.similarity == "cosine" else x
        best = _nothing(x, k)
        for start in range(0, len(self), self.block):
            block = rows_of_vectors(self.vectors, slice(start, start + self.block), x)
            block = F.normalize(block, dim=1) if self.similarity == "cosine" else block
            scores, places = (x @ block.T).topk(min(k, len(block)), dim=1)
            best = merged(best, Found(scores, places + start), k) if start else _padded(Found(scores, places), k)
        return Found(best.scores.to(queries.device), best.ids.to(queries.device))


class ShardedIndex:
    """One index over all ranks of `torch.distributed`, each holding a slice of the documents.

    Documents are numbered through in rank order. Every rank asks for its own queries, as many as it likes, and all must
    ask together: queries are gathered, each rank searches its slice, and the best of all slices are kept.

    Args:
        index: of this rank's slice.
        group: the process group; the default group when left out.
    """

    def __init__(self, index: VectorIndex, *, group: ProcessGroup | None = None) -> None:
        self.index = index
        self.group = group
        sizes = [len(index)] if world_size(group) == 1 else rows_per_rank(len(index), torch.device("cpu"), group)
        self.offset = sum(sizes[: dist.get_rank(group)]) if world_size(group) > 1 else 0
        self._length = sum(sizes)

    @property
    def dimension(self) -> int:
        return self.index.dimension

    def __len__(self) -> int:
        return self._length

    @torch.no_grad()
    def search(self, queries: Float[Tensor, "b d"], k: int) -> Found:
        """The `k` best documents of all ranks for this rank's queries."""
        ranks = world_size(self.group)
        if ranks == 1:
            return self.index.search(queries, k)
        check_queries(queries, self.dimension, k)
        everyone = gather_rows(queries.detach().contiguous(), self.group)
        sizes = rows_per_rank(len(queries), queries.device, self.group)
        start = sum(sizes[: dist.get_rank(self.group)])
        own = slice(start, start + len(queries))
        scores, ids = self.index.search(everyone, k)
        ids = torch.where(ids >= 0, ids + self.offset, -1)
        best: Found | None = None
        for part in zip(_from_all(scores, ranks, self.group), _from_all(ids, ranks, self.group), strict=True):
            found = Found(part[0][own], part[1][own])
            best = found if best is None else merged(best, found, k)
        assert best is not None
        return best


class FaissIndex:
    """A faiss index made from its factory string, such as `"Flat"`, `"IVF4096,Flat"`, `"HNSW32"` or `"IVF1024,PQ32"`.

    Approximate indexes find most of the best documents, not all: look at `index_recall`. Scores of compressed indexes
    are those of the compressed vectors; take the exact ones from the vectors themselves.

    Args:
        vectors: `[n, d]`; read in blocks, and not kept.
        factory: faiss's description of the index.
        similarity: `"dot"` or `"cosine"`.
        parameters: of the search, as faiss writes them: `"nprobe=16"`, `"efSearch=64"`.
        seed: of the vectors drawn to train an index that must be trained.

    Raises:
        ValueError: vectors that are no floating-point matrix with at least one row, or a description or parameter that
            faiss does not know.
        ImportError: faiss is not installed; the message is the line that installs it.
    """

    def __init__(
        self,
        vectors: Vectors,
        factory: str = "Flat",
        *,
        similarity: Similarity = "dot",
        parameters: str = "",
        seed: int = 0,
    ) -> None:
        check_vectors("vectors", vectors)
        self.similarity: Similarity = choice("similarity", similarity, ("dot", "cosine"))  # type: ignore[assignment]
        self.factory, self.parameters = factory, parameters
        faiss = _faiss()
        try:
            self._index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ValueError(f"argument `factory`: expected a faiss index description, got {factory!r}") from error
        if not self._index.is_trained:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randperm(len(vectors), generator=generator)[:_TRAINING_VECTORS].sort().values
            self._index.train(self._array(rows_of_vectors(vectors, drawn, torch.empty(0))))
        for part in _blocks(len(vectors), _BLOCK):
            self._index.add(self._array(rows_of_vectors(vectors, part, torch.empty(0))))
        if parameters:
            try:
                faiss.ParameterSpace().set_index_parameters(self._index, parameters)
            except RuntimeError as error:
                raise ValueError(f"argument `parameters`: expected some of {factory}, got {parameters!r}") from error

    @property
    def dimension(self) -> int:
        return self._index.d

    def __len__(self) -> int:
        return self._index.ntotal

    @torch.no_grad()
    def search(self, queries: Float[Tensor, "b d"], k: int) -> Found:
        """The `k` best documents that faiss finds for each query; see `ExactIndex.search`."""
        check_queries(queries, self.dimension, k)
        scores, ids = (torch.from_numpy(found) for found in self._index.search(self._array(queries), k))
        return Found(torch.where(ids >= 0, scores, -torch.inf).to(queries.device), ids.to(queries.device))

    def _array(self, rows: Tensor) -> NDArray[np.float32]:
        rows = rows.detach().to("cpu", torch.float32)
        return (F.normalize(rows, dim=1) if self.similarity == "cosine" else rows).contiguous().numpy()


def index_recall(index: VectorIndex, exact: VectorIndex, queries: Float[Tensor, "b d"], k: int) -> Float[Tensor, ""]:
    """The share of the truly `k` best documents that an index finds, over some queries; in [0, 1]."""
    truth, found = exact.search(queries, k).ids, index.search(queries, k).ids
    hits = (truth[:, :, None] == found[:, None, :]).any(dim=2) & (truth >= 0)
    return hits.sum() / (truth >= 0).sum()


def merged(left: Found, right: Found, k: int) -> Found:
    """The `k` best of two findings over different documents."""
    scores = torch.cat([left.scores, right.scores], dim=1)
    scores, kept = scores.topk(min(k, scores.shape[1]), dim=1)
    return Found(scores, torch.cat([left.ids, right.ids], dim=1).gather(1, kept))


def rows_of_vectors(vectors: Vectors, rows: slice | Int[Tensor, "..."], like: Tensor) -> Float[Tensor, "... d"]:
    """Some rows in float32 at least, on the device of `like`: what is memory-mapped is read for them alone."""
    if isinstance(vectors, Tensor):
        if isinstance(rows, slice):
            return _full_precision(vectors[rows]).to(like.device)
        # Several times faster than indexing with a matrix, which does not know that rows are whole.
        chosen = vectors.index_select(0, rows.to(vectors.device).flatten())
        return _full_precision(chosen).unflatten(0, rows.shape).to(like.device)
    read = vectors[rows if isinstance(rows, slice) else rows.cpu().numpy()]
    precision = np.float64 if read.dtype == np.float64 else np.float32
    # A copy of its own: a slice of a read-only map must not become a tensor.
    return torch.from_numpy(np.array(read, dtype=precision)).to(like.device)


def check_vectors(name: str, vectors: Vectors) -> None:
    """Refuse what is no floating-point matrix with at least one row."""
    if isinstance(vectors, Tensor):
        good, shown = vectors.is_floating_point(), describe(vectors)
    elif isinstance(vectors, np.ndarray):
        good, shown = np.issubdtype(vectors.dtype, np.floating), f"{vectors.dtype} array of shape {vectors.shape}"
    else:
        raise TypeError(f"argument `{name}`: expected a tensor or an array, got {type(vectors).__name__}")
    if not good or vectors.ndim != 2 or len(vectors) == 0:
        refuse(name, "floating-point vectors [n, d], at least one", shown)


def check_queries(queries: Tensor, dimension: int, k: int) -> None:
    """Refuse queries that do not fit the vectors of an index, and a `k` below 1."""
    positive_integer("k", k)
    if queries.ndim != 2 or queries.shape[1] != dimension or not queries.is_floating_point():
        refuse("queries", f"floating-point embeddings [b, {dimension}], as the index holds", describe(queries))


def _full_precision(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _nothing(queries: Tensor, k: int) -> Found:
    shape = (len(queries), k)
    return Found(queries.new_full(shape, -torch.inf), torch.full(shape, -1, device=queries.device))


def _padded(found: Found, k: int) -> Found:
    missing = k - found.ids.shape[1]
    return Found(F.pad(found.scores, (0, missing), value=-torch.inf), F.pad(found.ids, (0, missing), value=-1))


def _from_all(values: Tensor, ranks: int, group: ProcessGroup | None) -> list[Tensor]:
    everyone = [torch.empty_like(values) for _ in range(ranks)]
    dist.all_gather(everyone, values.contiguous(), group=group)
    return everyone


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _faiss() -> ModuleType:
    try:
        return import_module("faiss")
    except ModuleNotFoundError as error:
        raise ImportError('faiss is not installed: pip install "scorecraft[text]"') from error
