"""Embeddings of a whole corpus on disk: written part by part, continued after an interruption, read memory-mapped.

    vectors.npy     [n, d]
    vectors.json    which encoder and corpus they belong to, and how many of the rows are done

A part reaches the disk before the count does, so whatever ends a run, the rows counted are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn

from scorecraft.core.checks import check_embeddings, choice, positive_integer, refuse
from scorecraft.core.files import write_atomically

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called as `progress(done, total, what)` while something long runs."""
Encode: TypeAlias = Callable[[Sequence[Any]], Tensor]
"""From some items of a corpus to their embeddings `[k, d]`."""

_FORMAT = 1


class EmbeddingStore:
    """The embeddings of a corpus, `[n, d]` in one memory-mapped file, and what made them.

        store = EmbeddingStore.write(folder, encode, texts, encoder=fingerprint_of_module(model))
        index = ExactIndex(store.vectors)

    Args:
        folder: a finished store.
        encoder: the fingerprint that its encoder must have; not compared when left out.
        corpus: the fingerprint that its corpus must have; not compared when left out.
        dimension: that its vectors must have; not compared when left out.

    Raises:
        ValueError: one line: no store, an unfinished one, or one of another encoder, corpus or dimension.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        encoder: str | None = None,
        corpus: str | None = None,
        dimension: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        told = _read(self.folder)
        if told is None:
            refuse("folder", "a folder of embeddings", self.folder)
        for name, expected in (("encoder", encoder), ("corpus", corpus), ("dimension", dimension)):
            if expected is not None and told[name] != expected:
                _refuse_other(self.folder, name, told[name], expected)
        self._told: dict[str, Any] = told
        if told["done"] < told["rows"]:
            done = f"{told['done']} of {told['rows']} rows"
            refuse("folder", "finished embeddings: call `EmbeddingStore.write` again to go on", done)
        self.vectors: NDArray[np.floating] = np.load(self.folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        """`[n, d]`, read-only; rows are read from disk as they are used."""

    @property
    def encoder(self) -> str:
        """The fingerprint of the encoder."""
        return self._told["encoder"]

    @property
    def corpus(self) -> str:
        """The fingerprint of the corpus."""
        return self._told["corpus"]

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        return self._told["dimension"]

    def __len__(self) -> int:
        return self._told["rows"]

    @classmethod
    def write(
        cls,
        folder: str | Path,
        encode: Encode,
        corpus: Sequence[Any],
        *,
        encoder: str,
        dtype: Literal["float32", "float16"] = "float32",
        part: int = 4096,
        progress: Progress | None = None,
    ) -> EmbeddingStore:
        """Embed a corpus into a folder, or go on where an earlier call was interrupted; a finished one is read.

        Args:
            folder: made when it is not there.
            encode: from some items to embeddings `[k, d]` (taken without gradient).
            corpus: the items; texts are refused when one is empty.
            encoder: what identifies the encoder, such as `fingerprint_of_module(model)`.
            dtype: of the vectors on disk.
            part: items embedded and written at a time, at least 1.
            progress: called as `progress(done, total, what)`.

        Raises:
            ValueError: an empty corpus or document, embeddings that are not finite or not `[k, d]`, or a folder that
                holds embeddings of another encoder, corpus or type.
        """
        choice("dtype", dtype, ("float32", "float16"))
        positive_integer("part", part)
        check_corpus("corpus", corpus)
        folder = Path(folder)
        asked = {"encoder": encoder, "corpus": fingerprint_of_corpus(corpus), "dtype": dtype, "rows": len(corpus)}
        told = _read(folder)
        for name, expected in asked.items():
            if told is not None and told[name] != expected:
                _refuse_other(folder, name, told[name], expected)
        done = 0 if told is None else told["done"]
        if done < len(corpus):
            _write_rows(folder, encode, corpus, asked, done, told, part, progress)
        return cls(folder)


def fingerprint_of_module(module: nn.Module) -> str:
    """A hash of everything in a module's state: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of_corpus(corpus: Iterable[Any]) -> str:
    """A hash of all items, in their order: of texts and numbers by what they print, of tensors and arrays by values."""
    digest = hashlib.sha256()
    for item in corpus:
        data = item.encode() if isinstance(item, str) else _bytes(item)
        digest.update(f"{type(item).__name__} {len(data)} ".encode() + data)
    return digest.hexdigest()


def check_corpus(name: str, corpus: Sequence[Any]) -> None:
    """Refuse a corpus without documents, and one with a document that is an empty text."""
    if len(corpus) == 0:
        refuse(name, "at least one document", "none")
    for row, document in enumerate(corpus):
        if isinstance(document, str) and not document.strip():
            refuse(name, "documents that are not empty", f"an empty one at {row}")


def _write_rows(
    folder: Path,
    encode: Encode,
    corpus: Sequence[Any],
    asked: dict[str, Any],
    done: int,
    told: dict[str, Any] | None,
    part: int,
    progress: Progress | None,
) -> None:
    path = folder / "vectors.npy"
    vectors = None if told is None else open_memmap(path, mode="r+")
    while done < len(corpus):
        stop = min(done + part, len(corpus))
        with torch.no_grad():
            embeddings = encode(corpus[done:stop])
        check_embeddings("encode", embeddings)
        width = embeddings.shape[1] if vectors is None else vectors.shape[1]
        if embeddings.shape != (stop - done, width):
            refuse("encode", f"embeddings of shape {(stop - done, width)}", tuple(embeddings.shape))
        if vectors is None:
            folder.mkdir(parents=True, exist_ok=True)
            vectors = open_memmap(path, mode="w+", dtype=asked["dtype"], shape=(len(corpus), width))
        vectors[done:stop] = embeddings.detach().float().cpu().numpy()
        vectors.flush()
        done = stop
        manifest = {"format": _FORMAT, **asked, "dimension": width, "done": done}
        write_atomically(folder / "vectors.json", json.dumps(manifest, indent=1) + "\n")
        if progress is not None:
            progress(done, len(corpus), "documents embedded")


def _read(folder: Path) -> dict[str, Any] | None:
    """What a folder says of its vectors; None when there is nothing."""
    path = folder / "vectors.json"
    if not path.exists():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot read {path} ({error}): delete the folder and write it again") from error
    if told.get("format") != _FORMAT:
        refuse("folder", f"embeddings of format {_FORMAT}", f"{told.get('format')} in {path}")
    return told


def _refuse_other(folder: Path, name: str, theirs: object, ours: object) -> None:
    refuse(name, f"{_short(theirs)}, of the embeddings in {folder}", _short(ours))


def _short(value: object) -> object:
    """A fingerprint, cut to what tells it apart."""
    return value[:12] if isinstance(value, str) else value


def _bytes(item: Any) -> bytes:
    if isinstance(item, Tensor):
        item = item.detach().cpu().numpy()
    return np.ascontiguousarray(item).tobytes() if isinstance(item, np.ndarray) else repr(item).encode()
