"""The losses of an episode, averaged: ProtoNet's cross-entropy, Proto-Triplet, and ICNN on parts of the episode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.core.checks import check_embeddings, choice, describe, non_negative, positive, positive_integer, refuse
from scorecraft.similarity.susana.distances import full_precision
from scorecraft.similarity.susana.icnn import icnn_loss
from scorecraft.similarity.susana.proto_triplet import proto_triplet_loss
from scorecraft.similarity.susana.prototypes import prototypical_loss

Term: TypeAlias = Literal["cross", "prototriplet", "suppicnn", "queryicnn", "fullicnn"]
QueryReference: TypeAlias = Literal["prototypes", "supports"]


class _Episode(NamedTuple):
    """An episode's embeddings, class-major, and the classes `0 ... way - 1`."""

    supports: Float[Tensor, "s d"]
    support_labels: Int[Tensor, " s"]
    queries: Float[Tensor, "q d"]
    query_labels: Int[Tensor, " q"]
    prototypes: Float[Tensor, "way d"]
    per_class: int
    """Supports and queries of one class."""


class EpisodeLoss(nn.Module):
    """The average of an episode's active losses: `L = 1 / #terms sum_terms L_term`.

        loss = EpisodeLoss(terms=("cross", "prototriplet"))
        supports, queries = split_episode(encoder(x), way=5, shot=1, queries=15)
        loss(supports, queries).backward()

    | term | loss |
    |---|---|
    | `cross` | cross-entropy over `-squared distance / temperature` to the prototypes (`prototypical_loss`) |
    | `prototriplet` | `proto_triplet_loss` of the queries |
    | `suppicnn` | `icnn_loss` of the supports among themselves, `neighbours + 1` fetched |
    | `queryicnn` | `icnn_loss` of the queries among the prototypes or the supports, `neighbours + 1` fetched |
    | `fullicnn` | `icnn_loss` of supports and queries together, as many fetched as a class has of both |

    With one support per class `suppicnn` only evens the distances between classes out; it warns once. Differentiable
    once.

    Args:
        terms: the active losses, each at most once.
        margin: of `prototriplet`, in units of the embeddings, >= 0.
        temperature: of `cross`, > 0.
        neighbours: of the ICNN terms, at least 1.
        query_reference: what `queryicnn` finds neighbours in, "prototypes" or "supports".
        drop_first: drop the nearest reference in the ICNN terms, as the official code does; see `icnn_score`.
        validate: read input values.

    Raises:
        ValueError: no terms, unknown or repeated ones; other bad hyper-parameters.

    Source: Mendez-Ruiz et al. 2023, arXiv 2305.09062; the averaging is that of the official code.
    """

    def __init__(
        self,
        terms: Sequence[Term] = ("cross", "prototriplet"),
        *,
        margin: float = 0.5,
        temperature: float = 1.0,
        neighbours: int = 4,
        query_reference: QueryReference = "prototypes",
        drop_first: bool = False,
        validate: bool = True,
    ) -> None:
        super().__init__()
        known = get_args(Term)
        if not terms or len(set(terms)) != len(terms) or not set(terms) <= set(known):
            refuse("terms", "some of " + ", ".join(map(repr, known)) + ", each at most once", repr(terms))
        self.terms: tuple[Term, ...] = tuple(terms)
        self.margin = non_negative("margin", margin)
        self.temperature = positive("temperature", temperature)
        self.neighbours = positive_integer("neighbours", neighbours)
        self.query_reference = choice("query_reference", query_reference, get_args(QueryReference))
        self.drop_first = drop_first
        self.validate = validate
        self._warned = False

    def forward(
        self, supports: Float[Tensor, "way shot d"], queries: Float[Tensor, "way queries d"]
    ) -> Float[Tensor, ""]:
        """The average of the active losses of one episode.

        Args:
            supports: `[way, shot, d]`, the embeddings of each class's supports, at least two classes.
            queries: `[way, queries, d]`, of the same classes in the same order.

        Raises:
            ValueError: one class only, or supports and queries that do not fit together.
        """
        return torch.stack(list(self.components(supports, queries).values())).mean()

    def components(
        self, supports: Float[Tensor, "way shot d"], queries: Float[Tensor, "way queries d"]
    ) -> dict[Term, Float[Tensor, ""]]:
        """The active losses by name, not yet averaged; arguments as of a call."""
        episode = self._episode(supports, queries)
        losses: dict[Term, Callable[[_Episode], Tensor]] = {
            "cross": self._cross,
            "prototriplet": self._prototriplet,
            "suppicnn": self._suppicnn,
            "queryicnn": self._queryicnn,
            "fullicnn": self._fullicnn,
        }
        return {term: losses[term](episode) for term in self.terms}

    def _episode(self, supports: Tensor, queries: Tensor) -> _Episode:
        check_embeddings("supports", supports, dimensions=3, validate=self.validate)
        check_embeddings("queries", queries, dimensions=3, validate=self.validate)
        way, shot, dimension = supports.shape
        if way < 2 or shot < 1:
            refuse("supports", "at least two classes, of at least one support each", describe(supports))
        if queries.shape[0] != way or queries.shape[1] < 1 or queries.shape[2] != dimension:
            refuse("queries", f"embeddings [{way}, queries, {dimension}], as the supports", describe(queries))
        if shot == 1 and "suppicnn" in self.terms and not self._warned:
            self._warned = True
            warnings.warn(
                "suppicnn with one support per class has no neighbour of the same class to draw near: "
                "use fullicnn, or more supports",
                stacklevel=4,
            )
        supports, queries = full_precision(supports), full_precision(queries)
        classes = torch.arange(way, device=supports.device)
        return _Episode(
            supports.flatten(0, 1),
            classes.repeat_interleave(shot),
            queries.flatten(0, 1),
            classes.repeat_interleave(queries.shape[1]),
            supports.mean(dim=1),
            shot + queries.shape[1],
        )

    def _cross(self, episode: _Episode) -> Tensor:
        return prototypical_loss(
            episode.queries,
            episode.query_labels,
            episode.prototypes,
            temperature=self.temperature,
            validate=False,
        )

    def _prototriplet(self, episode: _Episode) -> Tensor:
        return proto_triplet_loss(
            episode.queries, episode.query_labels, episode.prototypes, margin=self.margin, validate=False
        )

    def _suppicnn(self, episode: _Episode) -> Tensor:
        return self._icnn(episode.supports, episode.support_labels)

    def _queryicnn(self, episode: _Episode) -> Tensor:
        if self.query_reference == "supports":
            reference, labels = episode.supports, episode.support_labels
        else:
            reference = episode.prototypes
            labels = torch.arange(len(reference), device=reference.device)
        return self._icnn(episode.queries, episode.query_labels, reference=reference, reference_labels=labels)

    def _fullicnn(self, episode: _Episode) -> Tensor:
        return self._icnn(
            torch.cat([episode.supports, episode.queries]),
            torch.cat([episode.support_labels, episode.query_labels]),
            # Of very small classes not fewer than are scored.
            fetched=max(self.neighbours, episode.per_class),
        )

    def _icnn(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        fetched: int | None = None,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        return icnn_loss(
            embeddings,
            labels,
            neighbours=self.neighbours,
            fetched=fetched,
            reference=reference,
            reference_labels=reference_labels,
            drop_first=self.drop_first,
            validate=False,
        )

    def extra_repr(self) -> str:
        return f"terms={self.terms}, margin={self.margin}, temperature={self.temperature}, neighbours={self.neighbours}"
