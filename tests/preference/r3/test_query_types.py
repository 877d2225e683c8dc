"""Labels of queries, their agreement, and a classifier that learns them."""

from __future__ import annotations

import pytest
import torch

from scorecraft.preference.r3 import ANNOTATION_PROMPT, QueryTypeClassifier, query_type, type_agreement


def test_labels_and_their_aliases() -> None:
    assert [query_type(label) for label in ("OE", "OPENENDED", "CE", "CONSTRAINED")] == ["OE", "OE", "CE", "CE"]


@pytest.mark.parametrize("label", ["oe", "open", "", None, 1])
def test_other_labels_are_refused(label: object) -> None:
    with pytest.raises(ValueError, match=r"^argument `query_type`: expected one of 'OE', 'OPENENDED', 'CE'"):
        query_type(label)  # type: ignore[arg-type]


def test_agreement() -> None:
    assert type_agreement(["OE", "CE", "OPENENDED", "CE"], ["OE", "CONSTRAINED", "OE", "OE"]) == 0.75
    with pytest.raises(ValueError, match=r"^argument `second`: expected 1 labels, one per query, got 2"):
        type_agreement(["OE"], ["OE", "OE"])
    with pytest.raises(ValueError, match=r"^argument `first`: expected at least one label, got none"):
        type_agreement([], [])


def test_the_prompt_takes_any_query() -> None:
    assert "Request: What is {x}?\n" in ANNOTATION_PROMPT.format(query="What is {x}?")


def test_a_classifier_learns_from_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(200, 8, generator=generator)
    labels = ["CE" if row[0] + 0.5 * row[1] > 0 else "OPENENDED" for row in embeddings]
    classifier = QueryTypeClassifier().fit(embeddings[:150], labels[:150])
    found = classifier(embeddings[150:].requires_grad_())
    assert set(found) == {"OE", "CE"}
    assert type_agreement(found, labels[150:]) > 0.9


def test_what_a_classifier_cannot_learn_from() -> None:
    embeddings = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"^argument `labels`: expected labels of both types, got OE alone"):
        QueryTypeClassifier().fit(embeddings, ["OE"] * 4)
    with pytest.raises(ValueError, match=r"^argument `labels`: expected 4 labels, one per query, got 2"):
        QueryTypeClassifier().fit(embeddings, ["OE", "CE"])
    with pytest.raises(ValueError, match=r"^argument `query_type`"):
        QueryTypeClassifier().fit(embeddings, ["OE", "CE", "OE", "?"])
    with pytest.raises(ValueError, match=r"^argument `embeddings`"):
        QueryTypeClassifier().fit(embeddings[0], ["OE", "CE", "OE"])
