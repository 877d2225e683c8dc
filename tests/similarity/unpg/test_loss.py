"""The check values and properties of UNPG as a whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import tiled
from scorecraft.similarity.unpg import ArcFaceHead, CosFaceHead, MagFaceHead, UNPGLoss, keep

X = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)
W = torch.tensor([[1, 0], [0.8, 0.6], [0, 2]], dtype=torch.float64)
Y = torch.tensor([0, 1, 2])


def with_weight(head: torch.nn.Module, weight: Tensor = W) -> torch.nn.Module:
    head = head.double()
    with torch.no_grad():
        head.weight.copy_(weight)  # type: ignore[operator, union-attr]
    return head


def batch(n: int = 40, classes: int = 9) -> tuple[Tensor, Tensor, CosFaceHead]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64).requires_grad_()
    head = CosFaceHead(classes, 6, scale=16, margin=0.2, generator=generator).double()
    return x, torch.randint(0, classes, (n,), generator=generator), head


@pytest.mark.parametrize("block", [None, 1, 2])
@pytest.mark.parametrize(
    "head, expected",
    [
        (CosFaceHead(3, 2, scale=4, margin=0.2), 1.2821008845),
        (CosFaceHead(3, 2, scale=64, margin=0.5), 20.5154346770),
        (ArcFaceHead(3, 2, scale=4, margin=0.2), 0.8685754004),
        (ArcFaceHead(3, 2, scale=64, margin=0.5), 2.1959990120),
    ],
)
def test_check_values(head: torch.nn.Module, expected: float, block: int | None) -> None:
    loss = UNPGLoss(with_weight(head))  # type: ignore[arg-type]
    assert (loss if block is None else tiled(loss, block=block))(X, Y).item() == pytest.approx(expected, abs=1e-9)


def test_check_value_of_magface() -> None:
    x = torch.tensor([[20, 0], [30, 40], [0, 5]], dtype=torch.float64)
    loss = UNPGLoss(with_weight(MagFaceHead(3, 2, scale=4)))  # type: ignore[arg-type]
    assert loss(x, Y).item() == pytest.approx(3.3109203062, abs=1e-9)


def broadcast_form(x: Tensor, labels: Tensor, head: CosFaceHead, whisker: float | None) -> Tensor:
    """The definition: every kept pair is one more logit of every sample."""
    features = F.normalize(x, dim=1)
    negatives = (features @ features.T)[(labels[:, None] != labels).triu(1)]
    kept = negatives if whisker is None else negatives[keep(negatives, whisker)]
    logits = torch.cat([head.logits(x, labels), (head.scale * kept).expand(len(x), -1)], dim=1)
    return F.cross_entropy(logits, labels)


@pytest.mark.parametrize("whisker", [None, 0.0, 0.3, 1.5])
@pytest.mark.parametrize("block", [None, 7])
def test_the_scalar_form_equals_the_broadcast_form(whisker: float | None, block: int | None) -> None:
    x, labels, head = batch()
    loss = UNPGLoss(head, whisker=whisker)
    found = (loss if block is None else tiled(loss, block=block))(x, labels)
    expected = broadcast_form(x, labels, head, whisker)
    torch.testing.assert_close(found, expected)
    inputs = [x, head.weight]
    torch.testing.assert_close(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs))


def test_negatives_of_the_batch_never_lower_the_loss() -> None:
    x, labels, head = batch()
    plain = head(x, labels)
    filtered, everything = UNPGLoss(head)(x, labels), UNPGLoss(head, whisker=None)(x, labels)
    assert plain < filtered <= everything


@pytest.mark.parametrize("block", [None, 4])
def test_without_a_negative_pair_it_is_the_head_alone(block: int | None) -> None:
    x, _, head = batch(10)
    labels = torch.full((10,), 3)
    loss = UNPGLoss(head)
    found = (loss if block is None else tiled(loss, block=block))(x, labels)
    torch.testing.assert_close(found, head(x, labels))
    inputs = [x, head.weight]
    torch.testing.assert_close(torch.autograd.grad(found, inputs), torch.autograd.grad(head(x, labels), inputs))


@pytest.mark.parametrize("block", [None, 4])
def test_a_sample_without_a_class_is_ignored(block: int | None) -> None:
    x, labels, head = batch(20)
    unlabelled = torch.arange(20) % 4 == 0
    loss = UNPGLoss(head)
    found = (loss if block is None else tiled(loss, block=block))(x, labels.masked_fill(unlabelled, -1))
    torch.testing.assert_close(found, loss(x[~unlabelled], labels[~unlabelled]))


def test_refused_arguments() -> None:
    x, labels, head = batch(10)
    with pytest.raises(ValueError, match="argument `whisker`: expected a finite number >= 0"):
        UNPGLoss(head, whisker=-1)
    with pytest.raises(TypeError, match="argument `head`: expected a margin head"):
        UNPGLoss(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    for wrong in (labels.masked_fill(labels == labels[0], 9), labels.masked_fill(labels == labels[0], -2)):
        with pytest.raises(ValueError, match="argument `labels`"):
            UNPGLoss(head)(x, wrong)
    with pytest.raises(ValueError, match="argument `scale`"):
        CosFaceHead(3, 2, scale=0)
    with pytest.raises(ValueError, match="argument `embeddings`"):
        UNPGLoss(head)(x.detach().fill_(math.nan), labels)
