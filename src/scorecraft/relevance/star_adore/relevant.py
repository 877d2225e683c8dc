"""Which documents are relevant to which query."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from scorecraft.core.checks import positive_integer, refuse


class RelevantDocuments:
    """The documents relevant to each query, `R_q`, kept flat; every query has at least one.

    Args:
        lists: for every query the rows of its relevant documents, in an order that is kept.
        documents: how many documents there are.

    Raises:
        ValueError: a query without a relevant document, a document that is not there, or one named twice.
    """

    def __init__(self, lists: Iterable[Sequence[int]], *, documents: int) -> None:
        self.documents = positive_integer("documents", documents)
        rows = [list(relevant) for relevant in lists]
        if not rows:
            refuse("lists", "the relevant documents of at least one query", "none")
        for query, relevant in enumerate(rows):
            if not relevant:
                refuse("lists", "a relevant document for every query", f"none for query {query}")
            if len(set(relevant)) != len(relevant):
                refuse("lists", "every document once per query", f"{relevant} for query {query}")
            unknown = [document for document in relevant if not 0 <= document < documents]
            if unknown:
                refuse("lists", f"documents from 0 to {documents - 1}", f"{unknown[0]} for query {query}")
        self.lengths = torch.tensor([len(relevant) for relevant in rows])
        self._starts = self.lengths.cumsum(0) - self.lengths
        self._flat = torch.tensor([document for relevant in rows for document in relevant])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, queries: Int[Tensor, " b"]) -> Int[Tensor, "b r"]:
        """The relevant documents of some queries, in stored order, padded with -1."""
        lengths = self.lengths[queries]
        place = torch.arange(int(lengths.max()))
        there = place < lengths[:, None]
        return torch.where(there, self._flat[(self._starts[queries][:, None] + place).where(there, 0)], -1)

    def sample(self, queries: Int[Tensor, " b"], *, generator: torch.Generator) -> Int[Tensor, " b"]:
        """One relevant document of each query, drawn uniformly."""
        lengths = self.lengths[queries]
        drawn = (torch.rand(len(queries), generator=generator, dtype=torch.float64) * lengths).long()
        return self._flat[self._starts[queries] + drawn.minimum(lengths - 1)]

    @property
    def fingerprint(self) -> str:
        """A hash of all of it."""
        digest = hashlib.sha256(str(self.documents).encode())
        for part in (self.lengths, self._flat):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()
