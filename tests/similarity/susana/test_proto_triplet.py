"""The check values and properties of Proto-Triplet, and of the prototypes it is taken to."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import citation
from scorecraft.similarity.susana import (
    ProtoTripletLoss,
    class_prototypes,
    proto_triplet_loss,
    prototype_logits,
    prototypical_loss,
)

QUERIES = torch.tensor([[0, 0], [2, 1], [5, 5]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 2])
PROTOTYPES = torch.tensor([[0, 1], [3, 1], [4, 4]], dtype=torch.float64)


def random_task(way: int = 4, queries: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(way, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, way, (queries,), generator=generator)
    x = prototypes[labels] + torch.randn(queries, 6, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), labels, prototypes.requires_grad_()


@pytest.mark.parametrize("margin, expected", [(0.5, 0.4999999167), (3.0, 1.6125741439)])
def test_check_values(margin: float, expected: float) -> None:
    value = proto_triplet_loss(QUERIES, LABELS, PROTOTYPES, margin=margin)
    assert value.item() == pytest.approx(expected, abs=1e-10)
    assert ProtoTripletLoss(margin=margin)(QUERIES, LABELS, PROTOTYPES).item() == value.item()


def test_equals_the_definition_and_has_its_gradient() -> None:
    x, labels, prototypes = random_task()
    distances = ((x[:, None] - prototypes).square().sum(dim=2) + 1e-6).sqrt()
    own = F.one_hot(labels, len(prototypes)).bool()
    gaps = distances[own] - torch.where(own, torch.inf, distances).amin(dim=1)
    expected = F.relu(gaps + 0.5)
    found = proto_triplet_loss(x, labels, prototypes, reduction="none")
    torch.testing.assert_close(found, expected)
    assert 0 < (expected == 0).sum() < len(x)
    wanted = torch.autograd.grad(expected.mean(), (x, prototypes))
    torch.testing.assert_close(torch.autograd.grad(found.mean(), (x, prototypes)), wanted)
    assert torch.autograd.gradcheck(lambda x, c: proto_triplet_loss(x, labels, c), (x, prototypes))


def test_reductions() -> None:
    x, labels, prototypes = random_task()
    rows = proto_triplet_loss(x, labels, prototypes, reduction="none")
    torch.testing.assert_close(proto_triplet_loss(x, labels, prototypes), rows.mean())
    torch.testing.assert_close(proto_triplet_loss(x, labels, prototypes, reduction="sum"), rows.sum())
    torch.testing.assert_close(ProtoTripletLoss(reduction="none")(x, labels, prototypes), rows)


def test_prototypes_may_carry_labels_of_their_own() -> None:
    x, labels, prototypes = random_task()
    names = torch.tensor([70, -3, 12, 5])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        proto_triplet_loss(x, names[labels], prototypes[order], names[order]), proto_triplet_loss(x, labels, prototypes)
    )


def test_an_inactive_query_receives_no_gradient() -> None:
    x = QUERIES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(proto_triplet_loss(x, LABELS, PROTOTYPES), x)
    assert torch.equal(gradient[[0, 2]], torch.zeros(2, 2, dtype=torch.float64))
    assert (gradient[1] != 0).any()


def test_zero_when_every_query_keeps_the_margin() -> None:
    x = PROTOTYPES.repeat_interleave(3, dim=0).clone().requires_grad_()
    loss = proto_triplet_loss(x, torch.arange(3).repeat_interleave(3), PROTOTYPES)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


def test_a_query_on_its_prototype_has_a_finite_gradient() -> None:
    x = PROTOTYPES.clone().requires_grad_()
    loss = proto_triplet_loss(x, torch.arange(3), PROTOTYPES, margin=100.0)
    assert torch.isfinite(torch.autograd.grad(loss, x)[0]).all()


def test_distances_are_exact_far_from_the_origin() -> None:
    """In float32 the Gram form of these points is wrong by more than the distances themselves."""
    x, labels, prototypes = (part.float() if part.is_floating_point() else part for part in random_task())
    x, prototypes = 1e-2 * x + 100, 1e-2 * prototypes + 100
    for loss in (partial(proto_triplet_loss, margin=10), prototypical_loss):
        exact = loss(x.double(), labels, prototypes.double()).float()
        torch.testing.assert_close(loss(x, labels, prototypes), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_as_float32(dtype: torch.dtype) -> None:
    x, labels, prototypes = random_task()
    x, prototypes = (300 * x).to(dtype).detach().requires_grad_(), (300 * prototypes).to(dtype).detach()
    for loss in (proto_triplet_loss, prototypical_loss):
        value = loss(x, labels, prototypes)
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(x.float(), labels, prototypes.float()))
        assert torch.isfinite(torch.autograd.grad(value, x)[0]).all()


def test_losses_compile_in_one_graph() -> None:
    x, labels, prototypes = random_task()
    for loss in (proto_triplet_loss, prototypical_loss):
        torch._dynamo.reset()
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, labels, prototypes), loss(x, labels, prototypes))


def test_prototypes_are_class_means_and_carry_gradient_to_the_supports() -> None:
    x, labels, _ = random_task()
    found = class_prototypes(x, labels, way=4)
    torch.testing.assert_close(found, torch.stack([x[labels == c].mean(dim=0) for c in range(4)]))
    assert torch.autograd.gradcheck(lambda x: class_prototypes(x, labels, way=4), (x,))
    assert class_prototypes(x.half(), labels, way=4).dtype == torch.float32


def test_logits_are_negative_squared_distances() -> None:
    x, labels, prototypes = random_task()
    expected = -(x[:, None] - prototypes).square().sum(dim=2) / 2
    torch.testing.assert_close(prototype_logits(x, prototypes, temperature=2.0), expected)
    torch.testing.assert_close(
        prototypical_loss(x, labels, prototypes, temperature=2.0, reduction="none"),
        F.cross_entropy(expected, labels, reduction="none"),
    )
    assert torch.autograd.gradcheck(lambda x, c: prototypical_loss(x, labels, c), (x, prototypes))


def test_it_cites_the_paper_and_shows_its_settings() -> None:
    assert "2305.09062" in citation(ProtoTripletLoss())
    assert "margin=0.25" in repr(ProtoTripletLoss(margin=0.25))


X, Y, C = (part.detach() for part in random_task())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prototypes": C[:1]}, "argument `prototypes`: expected prototypes of at least two classes"),
        ({"prototypes": C[:, :3]}, "argument `prototypes`: expected rows of dimension 6"),
        ({"queries": X * math.nan}, "argument `queries`: expected finite values only"),
        ({"queries": X[:0], "labels": Y[:0]}, "argument `queries`: expected at least one row"),
        ({"labels": Y + 1}, r"argument `labels`: expected labels in \[0, 4\)"),
        ({"labels": Y[:-1]}, "argument `labels`: expected 15 labels"),
        ({"labels": Y.double()}, "argument `labels`: expected integer labels"),
        ({"labels": Y[:, None]}, "argument `labels`: expected one integer label per query"),
        ({"prototype_labels": torch.tensor([0, 1, 2, 2])}, "argument `labels`: expected labels of exactly one"),
        ({"prototype_labels": torch.tensor([0, 1, 2, 7])}, "argument `labels`: expected labels of exactly one"),
        ({"prototype_labels": torch.arange(3)}, "argument `prototype_labels`: expected 4 labels"),
        ({"margin": -0.5}, "argument `margin`: expected a finite number >= 0"),
        ({"reduction": "median"}, "argument `reduction`: expected one of"),
    ],
)  # fmt: skip
def test_bad_input_of_proto_triplet_is_refused_in_one_line(change: dict, message: str) -> None:
    call = {"queries": X, "labels": Y, "prototypes": C, **change}
    with pytest.raises(ValueError, match=message) as caught:
        proto_triplet_loss(**call)
    assert "\n" not in str(caught.value)


def test_bad_input_of_prototypes_is_refused() -> None:
    for attempt, message in (
        (lambda: class_prototypes(X, Y, way=3), r"argument `labels`: expected labels in \[0, 3\)"),
        (lambda: class_prototypes(X, Y, way=5), "argument `labels`: expected supports of each of 5 classes"),
        (lambda: class_prototypes(X, Y, way=0), "argument `way`: expected an integer >= 1"),
        (lambda: class_prototypes(X, Y[:, None], way=4), "argument `labels`: expected one integer label per support"),
        (lambda: prototype_logits(X, C, temperature=0), "argument `temperature`: expected a finite number > 0"),
        (lambda: prototypical_loss(X, Y + 1, C), r"argument `labels`: expected labels in \[0, 4\)"),
        (lambda: prototypical_loss(X, Y, C, reduction="all"), "argument `reduction`"),  # type: ignore[arg-type]
        (lambda: ProtoTripletLoss(margin=math.nan), "argument `margin`: expected a finite number >= 0"),
        (lambda: ProtoTripletLoss(reduction="all"), "argument `reduction`"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=message):
            attempt()
