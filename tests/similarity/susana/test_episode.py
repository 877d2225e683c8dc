"""The losses of an episode are the plain losses on its parts, averaged."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from torch import Tensor

from scorecraft.core import citation
from scorecraft.similarity.episodic_sampler import split_episode
from scorecraft.similarity.susana import (
    EpisodeLoss,
    class_prototypes,
    icnn_loss,
    proto_triplet_loss,
    prototypical_loss,
)

WAY, SHOT, QUERIES = 4, 3, 5
TERMS = ("cross", "prototriplet", "suppicnn", "queryicnn", "fullicnn")


def episode(shot: int = SHOT, queries: int = QUERIES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    supports = torch.randn(WAY, shot, 6, generator=generator, dtype=torch.float64)
    return supports.requires_grad_(), torch.randn(
        WAY, queries, 6, generator=generator, dtype=torch.float64
    ).requires_grad_()


def parts(supports: Tensor, queries: Tensor) -> dict[str, Tensor]:
    """Every term by the plain functions on flat points and their labels."""
    s, q = supports.flatten(0, 1), queries.flatten(0, 1)
    sy = torch.arange(WAY).repeat_interleave(supports.shape[1])
    qy = torch.arange(WAY).repeat_interleave(queries.shape[1])
    prototypes = class_prototypes(s, sy, way=WAY)
    return {
        "cross": prototypical_loss(q, qy, prototypes),
        "prototriplet": proto_triplet_loss(q, qy, prototypes),
        "suppicnn": icnn_loss(s, sy, neighbours=4, fetched=5),
        "queryicnn": icnn_loss(q, qy, reference=prototypes, reference_labels=torch.arange(WAY)),
        "fullicnn": icnn_loss(torch.cat([s, q]), torch.cat([sy, qy]), fetched=supports.shape[1] + queries.shape[1]),
    }


@pytest.mark.parametrize(
    "terms", [*((term,) for term in TERMS), ("cross", "prototriplet"), ("fullicnn", "cross"), TERMS]
)
def test_the_average_of_the_active_terms(terms: tuple[str, ...]) -> None:
    supports, queries = episode()
    loss = EpisodeLoss(terms)  # type: ignore[arg-type]
    expected = parts(supports, queries)
    components = loss.components(supports, queries)
    assert tuple(components) == terms
    for term, value in components.items():
        torch.testing.assert_close(value, expected[term])
    value = loss(supports, queries)
    torch.testing.assert_close(value, sum(expected[term] for term in terms) / len(terms))
    wanted = torch.autograd.grad(
        sum(expected[term] for term in terms) / len(terms), (supports, queries), allow_unused=True
    )
    found = torch.autograd.grad(value, (supports, queries), allow_unused=True)
    torch.testing.assert_close(found, wanted)


def test_queries_may_look_among_the_supports() -> None:
    supports, queries = episode()
    s, sy = supports.flatten(0, 1), torch.arange(WAY).repeat_interleave(SHOT)
    qy = torch.arange(WAY).repeat_interleave(QUERIES)
    for drop_first in (False, True):
        loss = EpisodeLoss(("queryicnn",), query_reference="supports", drop_first=drop_first)
        expected = icnn_loss(queries.flatten(0, 1), qy, reference=s, reference_labels=sy, drop_first=drop_first)
        torch.testing.assert_close(loss(supports, queries), expected)


def test_settings_reach_their_terms() -> None:
    supports, queries = episode()
    names = ("cross", "prototriplet", "suppicnn")
    plain = EpisodeLoss(names).components(supports, queries)
    changed = EpisodeLoss(names, temperature=2.0, margin=1.5, neighbours=2).components(supports, queries)
    assert all(plain[name] != changed[name] for name in names)


def test_the_split_of_a_batch_is_an_episode() -> None:
    supports, queries = episode()
    flat = torch.cat([supports.flatten(0, 1), queries.flatten(0, 1)])
    found = EpisodeLoss()(*split_episode(flat, way=WAY, shot=SHOT, queries=QUERIES))
    assert torch.equal(found, EpisodeLoss()(supports, queries))


def test_classes_may_be_named_in_any_order() -> None:
    supports, queries = episode()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        EpisodeLoss(TERMS)(supports[order], queries[order]), EpisodeLoss(TERMS)(supports, queries)
    )


def test_gradcheck_of_all_terms() -> None:
    assert torch.autograd.gradcheck(EpisodeLoss(TERMS), episode())


@pytest.mark.parametrize("queries", [1, 2, 5])
def test_one_shot_episodes_of_any_size_are_finite(queries: int) -> None:
    supports, asked = episode(shot=1, queries=queries)
    loss = EpisodeLoss(("cross", "prototriplet", "queryicnn", "fullicnn"))(supports, asked)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, (supports, asked)))


def test_suppicnn_with_one_support_warns_once_and_says_what_to_do() -> None:
    supports, queries = episode(shot=1)
    loss = EpisodeLoss(("cross", "suppicnn"))
    with pytest.warns(UserWarning, match="use fullicnn, or more supports") as caught:
        loss(supports, queries)
    assert [warning.filename for warning in caught] == [caught[0].filename]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(supports, queries)
        EpisodeLoss(("cross", "fullicnn"))(supports, queries)
        EpisodeLoss(("cross", "suppicnn"))(*episode())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_as_float32(dtype: torch.dtype) -> None:
    supports, queries = ((300 * part).detach().to(dtype) for part in episode())
    value = EpisodeLoss(TERMS)(supports, queries)
    assert value.dtype == torch.float32
    assert torch.equal(value, EpisodeLoss(TERMS)(supports.float(), queries.float()))


def test_it_compiles_in_one_graph() -> None:
    supports, queries = episode()
    torch._dynamo.reset()
    loss = EpisodeLoss(("cross", "prototriplet", "fullicnn"))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(supports, queries), loss(supports, queries))


def test_training_separates_classes() -> None:
    """A few steps on one episode, without the help of an optimiser: every combination goes down."""
    for terms in itertools.combinations(("cross", "prototriplet", "fullicnn"), 2):
        supports, queries = episode()
        loss = EpisodeLoss(terms)
        values = []
        for _ in range(5):
            value = loss(supports, queries)
            values.append(value.item())
            with torch.no_grad():
                pulls = torch.autograd.grad(value, (supports, queries))
            supports = (supports - 0.05 * pulls[0]).detach().requires_grad_()
            queries = (queries - 0.05 * pulls[1]).detach().requires_grad_()
        assert values == sorted(values, reverse=True)


def test_it_cites_the_paper_and_shows_its_settings() -> None:
    assert "2305.09062" in citation(EpisodeLoss())
    assert "margin=0.25" in repr(EpisodeLoss(margin=0.25))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"terms": ()}, "argument `terms`: expected some of 'cross'"),
        ({"terms": ("cross", "cross")}, "argument `terms`: expected some of 'cross'"),
        ({"terms": ("triplet",)}, "argument `terms`: expected some of 'cross'"),
        ({"margin": -1}, "argument `margin`: expected a finite number >= 0"),
        ({"temperature": 0}, "argument `temperature`: expected a finite number > 0"),
        ({"neighbours": 0}, "argument `neighbours`: expected an integer >= 1"),
        ({"query_reference": "queries"}, "argument `query_reference`: expected one of 'prototypes', 'supports'"),
    ],
)
def test_bad_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpisodeLoss(**options)


SUPPORTS, ASKED = (part.detach() for part in episode())


@pytest.mark.parametrize(
    "supports, queries, message",
    [
        (SUPPORTS[:1], ASKED[:1], "argument `supports`: expected at least two classes"),
        (SUPPORTS[:, :0], ASKED, "argument `supports`: expected at least two classes, of at least one support each"),
        (SUPPORTS[0], ASKED, "argument `supports`: expected a floating-point tensor with 3 axes"),
        (SUPPORTS, ASKED[0], "argument `queries`: expected a floating-point tensor with 3 axes"),
        (SUPPORTS, ASKED[:3], r"argument `queries`: expected embeddings \[4, queries, 6\]"),
        (SUPPORTS, ASKED[:, :0], r"argument `queries`: expected embeddings \[4, queries, 6\]"),
        (SUPPORTS, ASKED[..., :5], r"argument `queries`: expected embeddings \[4, queries, 6\]"),
        (SUPPORTS * math.nan, ASKED, "argument `supports`: expected finite values only"),
        (SUPPORTS, ASKED * math.nan, "argument `queries`: expected finite values only"),
    ],
)
def test_bad_episodes_are_refused_in_one_line(supports: Tensor, queries: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        EpisodeLoss()(supports, queries)
    assert "\n" not in str(caught.value)
