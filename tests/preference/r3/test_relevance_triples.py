"""On-topic and short against off-topic and long."""

from __future__ import annotations

import math

import pytest
import torch

from scorecraft.preference.r3 import LengthIncentive, R3Reward, RelevanceReward, Triple, entity_triples, relevance_test

ENTITIES = ["the axolotl", "Tuvalu", "the theremin", "Ötzi"]
SHORT = [
    "The axolotl is a salamander of Mexico.",
    "Tuvalu is a country of islands.",
    "The theremin is an instrument.",
    "Ötzi is a mummy.",
]


def words(texts: list[str]) -> torch.Tensor:
    """How often each entity's last word is there, of unit length unless there is none."""
    counts = torch.tensor([[float(entity.split()[-1] in text) for entity in ENTITIES] for text in texts])
    return counts / counts.norm(dim=1, keepdim=True).clamp(min=1)


def test_triples_of_entities() -> None:
    triples = entity_triples(ENTITIES, SHORT)
    assert [triple.query for triple in triples] == [f"tell me about {entity}" for entity in ENTITIES]
    assert [triple.on_topic for triple in triples] == SHORT
    assert triples[3].off_topic == f"{SHORT[0]} {SHORT[1]}"
    assert entity_triples(["x"], ["short"], ["long"]) == [Triple("tell me about x", "short", "long")]
    with pytest.raises(ValueError, match=r"^argument `on_topic`: expected 4 answers, one per entity, got 3"):
        entity_triples(ENTITIES, SHORT[:3])
    with pytest.raises(ValueError, match=r"^argument `off_topic`: expected 4 answers, one per entity, got 1"):
        entity_triples(ENTITIES, SHORT, ["long"])
    with pytest.raises(ValueError, match=r"^argument `entities`: expected at least 3"):
        entity_triples(ENTITIES[:2], SHORT[:2])


def test_relevance_passes_and_length_fails() -> None:
    triples = entity_triples(ENTITIES, SHORT)
    assert relevance_test(RelevanceReward(words), triples).accuracy == 1
    assert relevance_test(R3Reward(words), triples).accuracy == 1
    found = relevance_test(LengthIncentive(), triples)
    assert found.accuracy == 0
    assert (found.margins < 0).all()


def test_accuracy_counts_ties_as_wrong() -> None:
    triples = [Triple("q", on_topic, off_topic) for on_topic, off_topic in (("2", "1"), ("1", "2"), ("1", "1"))]
    found = relevance_test(lambda queries, answers: [float(answer) for answer in answers], triples)
    assert found.accuracy == pytest.approx(1 / 3, abs=1e-15)
    assert found.margins.tolist() == [1.0, -1.0, 0.0]
    assert relevance_test(lambda queries, answers: torch.tensor([float(a) for a in answers]), triples)[0] == found[0]


@pytest.mark.parametrize("scores", [[1.0], [1.0, None], [1.0, math.nan], torch.ones(2, 1)])
def test_scores_are_refused(scores: list[float]) -> None:
    triples = entity_triples(["x", "y"], ["a", "b"], ["c", "d"])
    with pytest.raises(ValueError, match=r"^argument `score`: expected 2 finite scores, one per answer, got"):
        relevance_test(lambda queries, answers: scores, triples)
    with pytest.raises(ValueError, match=r"^argument `triples`: expected at least one triple"):
        relevance_test(lambda queries, answers: scores, [])
