"""Embeddings on disk: written in parts, continued after an interruption, never mixed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scorecraft.relevance.embedding_store import (
    EmbeddingStore,
    fingerprint_of_corpus,
    fingerprint_of_module,
)

CORPUS = [f"document {number}" for number in range(10)]


class Encoder:
    """Three numbers per text; stops with an error at the call numbered `fails`."""

    def __init__(self, fails: int = -1) -> None:
        self.calls: list[list[str]] = []
        self.fails = fails

    def __call__(self, texts: Sequence[str]) -> Tensor:
        if len(self.calls) == self.fails:
            raise KeyboardInterrupt
        self.calls.append(list(texts))
        return torch.tensor([[float(text.split()[1]), len(text), 0.5] for text in texts])


def expected() -> np.ndarray:
    return Encoder()(CORPUS).numpy()


def test_written_in_parts_and_read_mapped(tmp_path: Path) -> None:
    told, encoder = [], Encoder()
    store = EmbeddingStore.write(
        tmp_path / "a", encoder, CORPUS, encoder="e1", part=4, progress=lambda *args: told.append(args)
    )
    assert isinstance(store.vectors, np.memmap)
    assert not store.vectors.flags.writeable
    np.testing.assert_array_equal(store.vectors, expected())
    assert (len(store), store.dimension, store.encoder) == (10, 3, "e1")
    assert store.corpus == fingerprint_of_corpus(CORPUS)
    assert [len(call) for call in encoder.calls] == [4, 4, 2]
    assert told == [(4, 10, "documents embedded"), (8, 10, "documents embedded"), (10, 10, "documents embedded")]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["vectors.json", "vectors.npy"]


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_an_interrupted_encoding_goes_on(tmp_path: Path, finished: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore.write(tmp_path, Encoder(finished), CORPUS, encoder="e1", part=4)
    if finished:
        with pytest.raises(
            ValueError, match=rf"argument `folder`: expected finished .*, got {4 * finished} of 10 rows"
        ):
            EmbeddingStore(tmp_path)
    rest = Encoder()
    store = EmbeddingStore.write(tmp_path, rest, CORPUS, encoder="e1", part=4)
    assert sum(map(len, rest.calls)) == 10 - 4 * finished
    np.testing.assert_array_equal(store.vectors, expected())


def test_a_finished_store_is_not_made_again(tmp_path: Path) -> None:
    EmbeddingStore.write(tmp_path, Encoder(), CORPUS, encoder="e1")
    again = Encoder()
    store = EmbeddingStore.write(tmp_path, again, CORPUS, encoder="e1", part=3)
    assert again.calls == []
    np.testing.assert_array_equal(store.vectors, expected())


def test_half_precision_on_disk(tmp_path: Path) -> None:
    store = EmbeddingStore.write(tmp_path, Encoder(), CORPUS, encoder="e1", dtype="float16")
    assert store.vectors.dtype == np.float16
    np.testing.assert_array_equal(store.vectors, expected().astype(np.float16))


def test_other_embeddings_are_never_mixed_in(tmp_path: Path) -> None:
    EmbeddingStore.write(tmp_path, Encoder(), CORPUS, encoder="e1")
    with pytest.raises(ValueError, match="argument `encoder`: expected e1, of the"):
        EmbeddingStore.write(tmp_path, Encoder(), CORPUS, encoder="e2")
    with pytest.raises(ValueError, match=r"argument `corpus`: expected .*, of the embeddings in "):
        EmbeddingStore.write(tmp_path, Encoder(), [*CORPUS[:-1], "document 99"], encoder="e1")
    with pytest.raises(ValueError, match=r"argument `dtype`: expected float32, of the embeddings in .*, got float16"):
        EmbeddingStore.write(tmp_path, Encoder(), CORPUS, encoder="e1", dtype="float16")
    with pytest.raises(ValueError, match=r"argument `encoder`: expected e1, of the embeddings in .*, got e2"):
        EmbeddingStore(tmp_path, encoder="e2")
    with pytest.raises(ValueError, match=r"argument `dimension`: expected 3, of the embeddings in .*, got 4"):
        EmbeddingStore(tmp_path, dimension=4)
    with pytest.raises(ValueError, match="argument `corpus`"):
        EmbeddingStore(tmp_path, corpus="another")
    assert len(EmbeddingStore(tmp_path, encoder="e1", dimension=3, corpus=fingerprint_of_corpus(CORPUS))) == 10


def test_bad_input_is_refused(tmp_path: Path) -> None:
    def write(encode: object, corpus: Sequence[str] = CORPUS, **options: object) -> None:
        EmbeddingStore.write(tmp_path / "new", encode, corpus, encoder="e1", **options)

    with pytest.raises(ValueError, match="argument `corpus`: expected at least one document, got none"):
        write(Encoder(), [])
    with pytest.raises(
        ValueError, match="argument `corpus`: expected documents that are not empty, got an empty one at 1"
    ):
        write(Encoder(), ["document 1", "  "])
    with pytest.raises(ValueError, match="argument `encode`: expected finite values only"):
        write(lambda texts: torch.full((len(texts), 3), torch.nan))
    with pytest.raises(ValueError, match="argument `encode`: expected a floating-point tensor with 2 axes"):
        write(lambda texts: torch.zeros(len(texts)))
    with pytest.raises(ValueError, match=r"argument `encode`: expected embeddings of shape \(10, 3\), got \(9, 3\)"):
        write(lambda texts: torch.zeros(len(texts) - 1, 3))
    widths = iter([3, 4])
    with pytest.raises(ValueError, match=r"argument `encode`: expected embeddings of shape \(5, 3\), got \(5, 4\)"):
        write(lambda texts: torch.zeros(len(texts), next(widths)), part=5)
    with pytest.raises(ValueError, match="argument `folder`: expected a folder of embeddings"):
        EmbeddingStore(tmp_path / "nowhere")
    (tmp_path / "new" / "vectors.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*vectors.json"):
        EmbeddingStore(tmp_path / "new")
    (tmp_path / "new" / "vectors.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="argument `folder`: expected embeddings of format 1, got 99"):
        EmbeddingStore(tmp_path / "new")


def test_fingerprints() -> None:
    torch.manual_seed(0)
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert fingerprint_of_module(module) != fingerprint_of_module(other)
    other.load_state_dict(module.state_dict())
    assert fingerprint_of_module(module) == fingerprint_of_module(other)
    assert fingerprint_of_module(module) != fingerprint_of_module(module.bfloat16())
    assert fingerprint_of_corpus(["ab", "c"]) != fingerprint_of_corpus(["a", "bc"])
    rows = torch.arange(6).reshape(3, 2)
    assert fingerprint_of_corpus(rows) == fingerprint_of_corpus(rows.clone())
    assert fingerprint_of_corpus(rows) != fingerprint_of_corpus(rows + 1)
