"""Indexes: exact search against a full ranking, over arrays, tensors and ranks, and faiss beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.ranks import run_ranks
from torch import Tensor
from torch.nn import functional as F

from scorecraft.relevance.vector_index import (
    ExactIndex,
    FaissIndex,
    ShardedIndex,
    VectorIndex,
    index_recall,
    rows_of_vectors,
)


def vectors(documents: int = 70, queries: int = 9, dimension: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(documents, dimension, generator=generator), torch.randn(queries, dimension, generator=generator)


def ranking(documents: Tensor, queries: Tensor, k: int, similarity: str = "dot") -> tuple[Tensor, Tensor]:
    if similarity == "cosine":
        documents, queries = F.normalize(documents, dim=1), F.normalize(queries, dim=1)
    found = (queries @ documents.T).sort(dim=1, descending=True)
    return found.values[:, :k], found.indices[:, :k]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("k", [1, 10, 70])
def test_exact_search_is_the_full_ranking(block: int, k: int, similarity: str) -> None:
    documents, queries = vectors()
    scores, ids = ranking(documents, queries, k, similarity)
    for stored in (documents, documents.numpy()):
        found = ExactIndex(stored, similarity=similarity, block=block).search(queries, k)
        torch.testing.assert_close(found.scores, scores)
        assert torch.equal(found.ids, ids)


@pytest.mark.parametrize("make", [ExactIndex, FaissIndex, lambda stored: ShardedIndex(ExactIndex(stored))])
def test_what_is_missing_is_minus_one(make: object) -> None:
    documents, queries = vectors(5)
    index = make(documents)
    assert isinstance(index, VectorIndex)
    assert (len(index), index.dimension) == (5, 6)
    found = index.search(queries, 8)
    assert (found.ids[:, 5:] == -1).all()
    assert (found.scores[:, 5:] == -torch.inf).all()
    assert torch.equal(found.ids[:, :5], ranking(documents, queries, 5)[1])


def test_memory_maps_are_read_and_never_written(tmp_path: Path) -> None:
    documents, queries = vectors()
    np.save(tmp_path / "vectors.npy", documents.half().numpy())
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r", allow_pickle=False)
    found = ExactIndex(mapped, block=16).search(queries, 5)
    assert torch.equal(found.ids, ranking(documents.half().float(), queries, 5)[1])
    assert found.scores.dtype == torch.float32
    rows = torch.tensor([[3, 0], [69, 3]])
    read = rows_of_vectors(mapped, rows, queries)
    assert torch.equal(read, documents.half().float()[rows])
    assert torch.equal(rows_of_vectors(documents, rows, queries), documents[rows])
    read.zero_()
    assert (np.asarray(mapped[3]) == documents[3].half().numpy()).all()


def test_double_precision_is_kept_and_no_gradient_recorded() -> None:
    documents, queries = vectors()
    found = ExactIndex(documents.double()).search(queries.double().requires_grad_(), 3)
    assert found.scores.dtype == torch.float64
    assert not found.scores.requires_grad


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("factory, parameters", [("Flat", ""), ("IVF4,Flat", "nprobe=4"), ("HNSW16", "efSearch=80")])
def test_faiss_finds_the_same(factory: str, parameters: str, similarity: str) -> None:
    pytest.importorskip("faiss")
    documents, queries = vectors(400)
    index = FaissIndex(documents, factory, similarity=similarity, parameters=parameters)
    exact = ExactIndex(documents, similarity=similarity)
    assert index_recall(index, exact, queries, 10) > 0.95
    found, truth = index.search(queries, 10), exact.search(queries, 10)
    same = found.ids == truth.ids
    torch.testing.assert_close(found.scores[same], truth.scores[same])
    if factory == "Flat":
        assert same.all()


def test_approximate_search_is_told_apart_and_its_gaps_are_dropped() -> None:
    pytest.importorskip("faiss")
    documents, queries = vectors(400)
    index = FaissIndex(documents.numpy(), "IVF40,Flat", parameters="nprobe=1")
    found = index.search(queries, 60)
    assert (found.ids == -1).any()
    assert torch.equal(found.ids == -1, found.scores == -torch.inf)
    assert index_recall(index, ExactIndex(documents), queries, 60) < 0.9


def compare(rank: int, folder: str) -> None:
    """Ranks with slices of uneven size and different numbers of queries."""
    documents, queries = vectors(11, 5)
    part = (slice(0, 2), slice(2, 11))[rank]
    own = queries[(slice(0, 4), slice(4, 5))[rank]]
    index = ShardedIndex(ExactIndex(documents[part]))
    results = {"length": len(index), "dimension": index.dimension}
    for k in (3, 11):
        found, (scores, ids) = index.search(own, k), ranking(documents, own, k)
        results[f"ids {k}"] = bool(torch.equal(found.ids, ids))
        results[f"scores {k}"] = float((found.scores - scores).abs().max())
    Path(folder, f"{rank}.json").write_text(json.dumps(results))


def test_sharded_search_is_the_search_of_the_whole(tmp_path: Path) -> None:
    run_ranks(compare, str(tmp_path))
    for rank in (0, 1):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (results["length"], results["dimension"]) == (11, 6)
        assert results["ids 3"]
        assert results["ids 11"]
        assert max(results["scores 3"], results["scores 11"]) < 1e-5


def test_bad_input_is_refused() -> None:
    documents, queries = vectors()
    for make in (ExactIndex, FaissIndex):
        with pytest.raises(ValueError, match=r"argument `vectors`: expected floating-point vectors \[n, d\]"):
            make(documents.long())
        with pytest.raises(ValueError, match=r"argument `vectors`: .*got float32 array of shape"):
            make(documents[0].numpy())
        with pytest.raises(TypeError, match="argument `vectors`: expected a tensor or an array, got list"):
            make([[1.0]])
        with pytest.raises(ValueError, match="argument `similarity`: expected one of 'dot', 'cosine', got 'l2'"):
            make(documents, similarity="l2")
        with pytest.raises(ValueError, match=r"argument `queries`: expected floating-point embeddings \[b, 6\]"):
            make(documents).search(queries[:, :5], 3)
        with pytest.raises(ValueError, match="argument `k`: expected an integer >= 1, got 0"):
            make(documents).search(queries, 0)
    with pytest.raises(ValueError, match="argument `factory`: expected a faiss index description, got 'Nonsense'"):
        FaissIndex(documents, "Nonsense")
    with pytest.raises(ValueError, match="argument `parameters`: expected some of Flat, got 'nprobe=3'"):
        FaissIndex(documents, "Flat", parameters="nprobe=3")


def test_without_faiss_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'^faiss is not installed: pip install "scorecraft\[text\]"$'):
        FaissIndex(vectors()[0])
