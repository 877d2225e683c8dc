"""Is a query open-ended or constrained? Labels, how well two annotations agree, and a classifier distilled from one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import check_embeddings, choice, refuse

QueryType: TypeAlias = Literal["OE", "CE"]
OPEN_ENDED: QueryType = "OE"
CONSTRAINED: QueryType = "CE"
_NAMES: dict[str, QueryType] = {"OE": "OE", "OPENENDED": "OE", "CE": "CE", "CONSTRAINED": "CE"}

ANNOTATION_PROMPT = """\
Decide what kind of request this is.

OE (open-ended): many different answers are good, such as advice, explanations, opinions and creative writing.
CE (constrained): there is one answer, or the request fixes its content, such as facts, calculations, translations,
classifications and rewriting.

Request: {query}

Answer with OE or CE only."""
"""For a strong language model, with `.format(query=...)`; our wording, since the paper's is not public."""


def query_type(label: str) -> QueryType:
    """`"OE"` or `"CE"` of a label, with the public data's `OPENENDED` and `CONSTRAINED` as aliases.

    Raises:
        ValueError: any other label.
    """
    return _NAMES[choice("query_type", label, tuple(_NAMES))]


def type_agreement(first: Sequence[str], second: Sequence[str]) -> float:
    """The share of queries that two annotations label alike; the paper saw 0.83 of a language model with people.

    Args:
        first, second: labels of the same queries, at least one.

    Raises:
        ValueError: no labels, another number of them, or unknown ones.
    """
    if not first:
        refuse("first", "at least one label", "none")
    if len(first) != len(second):
        refuse("second", f"{len(first)} labels, one per query", len(second))
    return sum(query_type(a) == query_type(b) for a, b in zip(first, second, strict=True)) / len(first)


class QueryTypeClassifier:
    """Query types from embeddings: logistic regression, distilled from labels that a strong model gave.

        classifier = QueryTypeClassifier().fit(encode(queries), labels)
        classifier(encode(more_queries))

    Source: arXiv 2402.03469, which distils the labels into a smaller model.
    """

    def __init__(self) -> None:
        from sklearn.linear_model import LogisticRegression

        self.model: Any = LogisticRegression(max_iter=1000)

    def fit(self, embeddings: Float[Tensor, "n d"], labels: Sequence[str]) -> QueryTypeClassifier:
        """Learn from labelled queries.

        Args:
            embeddings: `[n, d]`, of the queries, finite.
            labels: one per query, of both types.

        Raises:
            ValueError: labels of another number, unknown ones, or of one type only.
        """
        check_embeddings("embeddings", embeddings)
        types = [query_type(label) for label in labels]
        if len(types) != len(embeddings):
            refuse("labels", f"{len(embeddings)} labels, one per query", len(types))
        if len(set(types)) != 2:
            refuse("labels", "labels of both types", f"{types[0]} alone")
        self.model.fit(embeddings.detach().cpu().double().numpy(), types)
        return self

    @torch.no_grad()
    def __call__(self, embeddings: Float[Tensor, "n d"]) -> list[QueryType]:
        """The types of queries, once it is fitted."""
        check_embeddings("embeddings", embeddings)
        return [query_type(str(label)) for label in self.model.predict(embeddings.cpu().double().numpy())]
