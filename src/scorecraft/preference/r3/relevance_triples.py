"""Does a reward see whether an answer is about the question? On-topic and short against off-topic and long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import describe, refuse


class Triple(NamedTuple):
    """A query and two answers, of which the first should score higher."""

    query: str
    on_topic: str
    """Short, about the query."""
    off_topic: str
    """Long, about something else."""


class RelevanceTest(NamedTuple):
    """What came out."""

    accuracy: float
    """The share of triples whose on-topic answer scores higher; ties count as wrong."""
    margins: Float[Tensor, " n"]
    """Score of the on-topic answer less that of the off-topic one."""


def entity_triples(
    entities: Sequence[str], on_topic: Sequence[str], off_topic: Sequence[str] | None = None
) -> list[Triple]:
    """Triples with the query "tell me about <entity>".

    Args:
        entities: names, rare ones at best.
        on_topic: for each a short answer.
        off_topic: for each a long answer about something else; where left out, the on-topic answers of the next two
            entities joined.

    Raises:
        ValueError: lists of different lengths, or fewer than three entities without off-topic answers.
    """
    count = len(entities)
    if len(on_topic) != count:
        refuse("on_topic", f"{count} answers, one per entity", len(on_topic))
    if off_topic is None:
        if count < 3:
            refuse("entities", "at least 3, to answer one with two others", count)
        off_topic = [f"{on_topic[(i + 1) % count]} {on_topic[(i + 2) % count]}" for i in range(count)]
    if len(off_topic) != count:
        refuse("off_topic", f"{count} answers, one per entity", len(off_topic))
    queries = (f"tell me about {entity}" for entity in entities)
    return [Triple(*three) for three in zip(queries, on_topic, off_topic, strict=True)]


def relevance_test(
    score: Callable[[list[str], list[str]], Sequence[float] | Float[Tensor, " n"]], triples: Sequence[Triple]
) -> RelevanceTest:
    """The share of triples with `score(query, on_topic) > score(query, off_topic)`.

    Args:
        score: `(queries, answers)`, such as a reward function of `(prompts, completions)`; the larger, the better.
        triples: at least one.

    Raises:
        ValueError: no triples, or scores that are not finite, not applicable, or of another number.

    Source: arXiv 2402.03469, the relevance test of reward models.
    """
    if not triples:
        refuse("triples", "at least one triple", "none")
    queries = [triple.query for triple in triples]
    on_topic, off_topic = (_scores(score(queries, answers), len(triples)) for answers in (
        [triple.on_topic for triple in triples], [triple.off_topic for triple in triples]))  # fmt: skip
    margins = on_topic - off_topic
    return RelevanceTest((margins > 0).double().mean().item(), margins)


def _scores(found: Sequence[float] | Tensor, count: int) -> Float[Tensor, " n"]:
    if not isinstance(found, Tensor) and None in found:
        refuse("score", f"{count} finite scores, one per answer", "None")
    values = torch.as_tensor(found, dtype=torch.float64)
    if values.shape != (count,) or not bool(torch.isfinite(values).all()):
        refuse("score", f"{count} finite scores, one per answer", describe(values))
    return values
