"""Margin heads: check values of the specification, the one-scalar form of shared negatives, and the numerical traps."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.similarity.unpg.heads import (
    ArcFaceHead,
    CosFaceHead,
    LogitHead,
    LogitsHead,
    MagFaceHead,
    MarginHead,
    OtherClasses,
    sine,
)

X = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
LONG_X = torch.tensor([[20.0, 0.0], [30.0, 40.0], [0.0, 5.0]], dtype=torch.float64)
W = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 2.0]], dtype=torch.float64)
Y = torch.tensor([0, 1, 2])
BATCH_NEGATIVES = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)

HEADS: dict[str, Callable[..., MarginHead]] = {
    "cosface": CosFaceHead,
    "arcface": ArcFaceHead,
    "arcface monotone": lambda *args, **kwargs: ArcFaceHead(*args, monotone=True, **kwargs),
    "magface": lambda *args, **kwargs: MagFaceHead(*args, norm_range=(1.0, 4.0), **kwargs),
}


class CrossEntropy(nn.Module):
    """Makes the losses a module's call, as `functional_call` wants it."""

    def __init__(self, head: MarginHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, labels: Tensor, mass: Tensor) -> Tensor:
        return self.head.cross_entropy(features, labels, mass)


def with_weight(head: MarginHead, weight: Tensor = W) -> MarginHead:
    head.double()
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def shared(scale: float) -> Tensor:
    return torch.logsumexp(scale * BATCH_NEGATIVES, 0)


def random_batch(n: int = 7, classes: int = 5, dim: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=generator)
    mass = torch.randn((), generator=generator, dtype=torch.float64)
    return features, labels, mass


def random_head(name: str, classes: int = 5, dim: int = 4, seed: int = 0, **options: float) -> MarginHead:
    generator = torch.Generator().manual_seed(seed)
    return HEADS[name](classes, dim, generator=generator, **{"scale": 4.0, **options}).double()


@pytest.mark.parametrize(
    "head, expected",
    [
        (CosFaceHead(3, 2, scale=4.0, margin=0.2), 1.2821008845),
        (CosFaceHead(3, 2, scale=64.0, margin=0.5), 20.5154346770),
        (ArcFaceHead(3, 2, scale=4.0, margin=0.2), 0.8685754004),
        (ArcFaceHead(3, 2, scale=64.0, margin=0.5), 2.1959990120),
    ],
)
def test_check_values_with_shared_negatives(head: MarginHead, expected: float) -> None:
    losses = with_weight(head).cross_entropy(X, Y, shared(head.scale))
    assert losses.mean().item() == pytest.approx(expected, abs=1e-9)


def test_check_value_without_shared_negatives() -> None:
    head = with_weight(CosFaceHead(3, 2, scale=4.0, margin=0.2))
    assert head.cross_entropy(X, Y).mean().item() == pytest.approx(0.7019033059, abs=1e-9)
    assert head(X, Y).item() == pytest.approx(0.7019033059, abs=1e-9)


def test_check_value_of_magface() -> None:
    head = with_weight(MagFaceHead(3, 2, scale=4.0))
    cross_entropy = head.cross_entropy(LONG_X, Y, shared(4.0)).mean().item()
    regulariser = head.regulariser(LONG_X).mean().item()
    assert cross_entropy == pytest.approx(1.2504519866, abs=1e-9)
    assert regulariser == pytest.approx(2.0604683196, abs=1e-9)
    assert cross_entropy + regulariser == pytest.approx(3.3109203062, abs=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_one_scalar_equals_the_broadcast_form(name: str) -> None:
    head, (features, labels, _) = random_head(name), random_batch()
    negatives = torch.linspace(-0.5, 0.9, 11, dtype=torch.float64)
    wide = torch.cat([head.logits(features, labels), (head.scale * negatives).expand(len(features), -1)], dim=1)
    losses = head.cross_entropy(features, labels, torch.logsumexp(head.scale * negatives, 0))
    torch.testing.assert_close(losses, F.cross_entropy(wide, labels, reduction="none"))


@pytest.mark.parametrize("name", HEADS)
def test_without_shared_negatives_it_is_cross_entropy(name: str) -> None:
    head, (features, labels, _) = random_head(name), random_batch()
    plain = F.cross_entropy(head.logits(features, labels), labels, reduction="none")
    nothing = torch.tensor(-math.inf, requires_grad=True)
    for mass in (None, nothing):
        torch.testing.assert_close(head.cross_entropy(features, labels, mass), plain)
    head.cross_entropy(features, labels, nothing).sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.item() == 0
    assert head.weight.grad is not None
    assert head.weight.grad.isfinite().all()


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(HEADS)),
    seed=st.integers(0, 1000),
    negatives=st.lists(st.floats(-1, 1), min_size=1, max_size=8),
    scale=st.floats(0.5, 64),
)
def test_every_negative_raises_the_loss(name: str, seed: int, negatives: list[float], scale: float) -> None:
    head, (features, labels, _) = random_head(name, seed=seed, scale=scale), random_batch(seed=seed)
    before = head.cross_entropy(features, labels)
    assert (before >= 0).all()
    for count in range(1, len(negatives) + 1):
        mass = torch.logsumexp(scale * torch.tensor(negatives[:count], dtype=torch.float64), 0)
        after = head.cross_entropy(features, labels, mass)
        assert (after >= before - 1e-12).all()
        before = after


@pytest.mark.parametrize("class_block", [None, 1, 2, 5, 64])
@pytest.mark.parametrize("name", HEADS)
def test_gradcheck(name: str, class_block: int | None) -> None:
    features, labels, mass = random_batch()
    labels[2] = -1
    head = random_head(name)
    head.class_block = class_block

    def loss(features: Tensor, weight: Tensor, mass: Tensor) -> Tensor:
        return torch.func.functional_call(CrossEntropy(head), {"head.weight": weight}, (features, labels, mass))

    inputs = (features.requires_grad_(), head.weight.detach().clone().requires_grad_(), mass.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("class_block", [1, 3, 4])
def test_blocks_of_classes_change_nothing_and_keep_no_matrix(class_block: int) -> None:
    features, labels, mass = random_batch(n=9, classes=11)
    saved: dict[int | None, list[tuple[int, ...]]] = {}
    results = {}
    for block in (None, class_block):
        head = random_head("arcface", classes=11)
        head.class_block = block
        x = features.clone().requires_grad_()
        shapes = saved.setdefault(block, [])

        def note(tensor: Tensor, shapes: list[tuple[int, ...]] = shapes) -> Tensor:
            shapes.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = head.cross_entropy(x, labels, mass)
        losses.sum().backward()
        results[block] = (losses.detach(), x.grad, head.weight.grad)
    torch.testing.assert_close(results[None], results[class_block])
    assert saved[None].count((9, 11)) == 1
    assert saved[class_block].count((9, 11)) == 0


def test_backward_may_run_again_but_not_be_differentiated() -> None:
    head, (features, labels, _) = random_head("cosface"), random_batch()
    x = features.requires_grad_()
    loss = head.cross_entropy(x, labels).sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x, create_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


@pytest.mark.parametrize("class_block", [None, 2])
def test_frozen_sides(class_block: int | None) -> None:
    features, labels, mass = random_batch()
    x = features.clone().requires_grad_()
    whole = random_head("cosface")
    whole.cross_entropy(x, labels, mass).sum().backward()
    frozen = random_head("cosface")
    frozen.class_block = class_block
    frozen.cross_entropy(features, labels, mass).sum().backward()
    torch.testing.assert_close(frozen.weight.grad, whole.weight.grad)
    frozen.weight.requires_grad_(False)
    again = features.clone().requires_grad_()
    frozen.cross_entropy(again, labels, mass).sum().backward()
    torch.testing.assert_close(again.grad, x.grad)


@pytest.mark.parametrize("name", HEADS)
def test_ignored_samples_contribute_nothing(name: str) -> None:
    features, labels, mass = random_batch()
    some = labels.clone()
    some[[1, 4]] = -1
    kept = some >= 0
    x = features.clone().requires_grad_()
    head = random_head(name)
    losses = head.cross_entropy(x, some, mass)
    losses.sum().backward()
    assert x.grad is not None
    assert (losses[~kept] == 0).all()
    assert (x.grad[~kept] == 0).all()
    alone = random_head(name)
    reference = alone.cross_entropy(features[kept], labels[kept], mass)
    reference.sum().backward()
    torch.testing.assert_close(losses[kept], reference)
    torch.testing.assert_close(head.weight.grad, alone.weight.grad)
    plain = head.logits(features, some)
    torch.testing.assert_close(plain[~kept], head.logits(features)[~kept])
    mean = F.cross_entropy(plain, some, ignore_index=-1) + head.regulariser(features[kept]).mean()
    torch.testing.assert_close(head(features, some), mean)


def test_all_samples_ignored() -> None:
    head, (features, labels, _) = random_head("cosface"), random_batch()
    x = features.requires_grad_()
    loss = head(x, torch.full_like(labels, -1))
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert (x.grad == 0).all()


@pytest.mark.parametrize("name", HEADS)
def test_order_of_the_batch_does_not_matter(name: str) -> None:
    head, (features, labels, mass) = random_head(name), random_batch()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        head.cross_entropy(features, labels, mass)[order], head.cross_entropy(features[order], labels[order], mass)
    )


@pytest.mark.parametrize("name", HEADS)
def test_a_single_class_leaves_only_the_shared_negatives(name: str) -> None:
    features, labels, mass = random_batch(classes=1)
    for class_block in (None, 1):
        head = random_head(name, classes=1)
        head.class_block = class_block
        x = features.clone().requires_grad_()
        losses = head.cross_entropy(x, labels)
        losses.sum().backward()
        assert (losses == 0).all()
        assert x.grad is not None
        assert (x.grad == 0).all()
        target = head.logits(features, labels).squeeze(1)
        torch.testing.assert_close(head.cross_entropy(features, labels, mass), F.softplus(mass - target))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", HEADS)
def test_finite_at_extremes(name: str, dtype: torch.dtype) -> None:
    """Exactly parallel and opposed features, near both ends of the range of float16, at full scale."""
    directions = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 1e-3]])
    features = torch.cat([directions * 6e4, directions * 1e-3]).to(dtype).requires_grad_()
    labels = torch.tensor([0, 0, 1, 2, 0, 0, 0, 1, 2, -1])
    head = with_weight(HEADS[name](3, 2, scale=64.0)).to(dtype)
    for mass in (torch.tensor(-1e4, dtype=dtype), torch.tensor(6e4, dtype=dtype)):
        mass.requires_grad_()
        head.zero_grad()
        features.grad = None
        losses = head.cross_entropy(features, labels, mass)
        (losses + head.regulariser(features)).mean().backward()
        assert losses.dtype == torch.float32
        for tensor in (losses, features.grad, head.weight.grad, mass.grad):
            assert tensor is not None
            assert tensor.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_autocast_computes_in_float32(name: str) -> None:
    features, labels, mass = random_batch(n=16, dim=4)
    results = []
    for enabled in (False, True):
        head = random_head(name).float()
        x = features.float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = head.cross_entropy(x, labels, mass)
            losses.sum().backward()
            results.append((losses.detach(), x.grad, head.weight.grad, head.logits(features.float(), labels).detach()))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_arcface_is_exact_at_the_ends_of_the_range() -> None:
    """No clamp moves the target logit of a perfectly aligned sample, and its slope is finite."""
    head = with_weight(ArcFaceHead(2, 2, scale=64.0, margin=0.5), torch.eye(2, dtype=torch.float64))
    features = torch.tensor([[3.0, 0.0], [-2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    target = head.logits(features, torch.tensor([0, 0]))[:, 0]
    expected = torch.tensor([64 * math.cos(0.5), 64 * math.cos(math.pi + 0.5)], dtype=torch.float64)
    torch.testing.assert_close(target, expected, rtol=1e-15, atol=0)
    target.sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_sine_has_slope_zero_where_it_vanishes() -> None:
    cosine = torch.tensor([-1.0, 1.0, 1.0 + 1e-7, 0.6], dtype=torch.float64, requires_grad=True)
    value = sine(cosine)
    value.sum().backward()
    torch.testing.assert_close(value.detach(), torch.tensor([0, 0, 0, 0.8], dtype=torch.float64))
    assert cosine.grad is not None
    torch.testing.assert_close(cosine.grad, torch.tensor([0, 0, 0, -0.75], dtype=torch.float64))


def test_monotone_arcface_keeps_falling() -> None:
    angles = torch.linspace(0, math.pi, 200, dtype=torch.float64)
    plain = ArcFaceHead(2, 2, margin=0.5).margin_cosine(angles.cos(), angles)
    monotone = ArcFaceHead(2, 2, margin=0.5, monotone=True).margin_cosine(angles.cos(), angles)
    torch.testing.assert_close(plain, (angles + 0.5).cos(), rtol=0, atol=1e-7)
    before_turn = angles < math.pi - 0.5
    assert torch.equal(plain[before_turn], monotone[before_turn])
    assert (plain.diff() > 0).any()
    after = angles.cos()[~before_turn] - 0.5 * math.sin(0.5)
    torch.testing.assert_close(monotone[~before_turn], after)


@pytest.mark.parametrize("name", ["CosFaceLoss", "ArcFaceLoss"])
def test_agrees_with_pytorch_metric_learning(name: str) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    features, labels, _ = random_batch(n=40)
    if name == "CosFaceLoss":
        peer = losses.CosFaceLoss(5, 4, margin=0.35, scale=16.0)
        head: MarginHead = CosFaceHead(5, 4, margin=0.35, scale=16.0)
    else:
        peer = losses.ArcFaceLoss(5, 4, margin=math.degrees(0.5), scale=16.0)
        head = ArcFaceHead(5, 4, margin=0.5, scale=16.0, monotone=True)
    with_weight(head, peer.W.detach().T.double())
    value = head(features, labels)
    torch.testing.assert_close(value, peer(features, labels), rtol=1e-6, atol=1e-6)


def test_magface_margin_grows_with_the_norm_and_pulls_on_it() -> None:
    head = MagFaceHead(2, 2, scale=4.0)
    cosine = torch.full((5,), 0.7, dtype=torch.float64)
    norms = torch.tensor([5.0, 10.0, 60.0, 110.0, 500.0], dtype=torch.float64, requires_grad=True)
    value = head.margin_cosine(cosine, norms)
    expected = [math.cos(math.acos(0.7) + margin) for margin in (0.45, 0.45, 0.625, 0.8, 0.8)]
    torch.testing.assert_close(value.detach(), torch.tensor(expected, dtype=torch.float64))
    value.sum().backward()
    assert norms.grad is not None
    assert norms.grad[2] < 0
    assert norms.grad[0] == norms.grad[4] == 0
    opposed = head.margin_cosine(-cosine, norms)
    assert torch.equal(opposed, -cosine)


@pytest.mark.parametrize("name", ["arcface monotone", "magface"])
def test_compiles_to_one_graph(name: str) -> None:
    head, (features, labels, mass) = random_head(name), random_batch()
    torch.compiler.reset()

    def loss(features: Tensor, labels: Tensor, mass: Tensor) -> Tensor:
        return (head.cross_entropy(features, labels, mass) + head.regulariser(features)).mean()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        head.zero_grad()
        x = features.clone().requires_grad_()
        value = function(x, labels, mass)
        value.backward()
        results.append((value.detach(), x.grad, head.weight.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("name", HEADS)
def test_any_callable_serves_as_a_head(name: str) -> None:
    features, labels, mass = random_batch()
    labels[3] = -1
    head, inner = random_head(name), random_head(name)
    adapter = LogitsHead(inner.logits, inner.scale)
    results = []
    for each, weight in ((head, head.weight), (adapter, inner.weight)):
        x, m = features.clone().requires_grad_(), mass.clone().requires_grad_()
        losses = each.cross_entropy(x, labels, m)
        losses.sum().backward()
        results.append((losses.detach(), x.grad, m.grad, weight.grad))
        torch.testing.assert_close(each.cross_entropy(features, labels), F.cross_entropy(
            head.logits(features, labels), labels, ignore_index=-1, reduction="none"))  # fmt: skip
    torch.testing.assert_close(results[0], results[1])
    assert isinstance(adapter, LogitHead)
    assert isinstance(head, LogitHead)
    assert adapter.regulariser(features).item() == 0


def test_a_module_given_as_callable_is_trained_with_the_head() -> None:
    class Classifier(nn.Linear):
        def forward(self, features: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
            del labels
            return super().forward(features)

    assert len(list(LogitsHead(Classifier(4, 5), 1.0).parameters())) == 2


def test_state_round_trip_and_seed() -> None:
    first = CosFaceHead(5, 4, generator=torch.Generator().manual_seed(3))
    same = CosFaceHead(5, 4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first.weight, same.weight)
    other = CosFaceHead(5, 4)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.weight, other.weight)
    assert "5, 4, scale=64, margin=0.4" in repr(first)
    assert "monotone" in repr(ArcFaceHead(2, 2, monotone=True))
    assert "norm_range" in repr(MagFaceHead(2, 2))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: CosFaceHead(3, 2, scale=0.0), "scale"),
        (lambda: CosFaceHead(3, 2, scale=-1.0), "scale"),
        (lambda: CosFaceHead(3, 2, scale=math.nan), "scale"),
        (lambda: CosFaceHead(0, 2), "num_classes"),
        (lambda: CosFaceHead(3, 0), "dim"),
        (lambda: CosFaceHead(3, 2, margin=-0.1), "margin"),
        (lambda: CosFaceHead(3, 2, class_block=0), "class_block"),
        (lambda: ArcFaceHead(3, 2, margin=4.0), "margin"),
        (lambda: MagFaceHead(3, 2, margin=(0.8, 0.4)), "margin"),
        (lambda: MagFaceHead(3, 2, margin=(0.8, 4.0)), "margin"),
        (lambda: MagFaceHead(3, 2, norm_range=(0.0, 1.0)), "norm_range"),
        (lambda: MagFaceHead(3, 2, regulariser_weight=-1.0), "regulariser_weight"),
        (lambda: LogitsHead(torch.matmul, 0.0), "scale"),
    ],
)
def test_refused_hyper_parameters(make: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=f"argument `{name}`: expected .*, got "):
        make()


@pytest.mark.parametrize(
    "features, labels, mass, name",
    [
        (X * math.nan, Y, None, "features"),
        (X * torch.tensor([[1.0], [math.inf], [1.0]]), Y, None, "features"),
        (X * torch.tensor([[1.0], [0.0], [1.0]]), Y, None, "features"),
        (X[:0], Y[:0], None, "features"),
        (X[:, :1], Y, None, "features"),
        (X.long(), Y, None, "features"),
        (X, Y[:2], None, "labels"),
        (X, Y.float(), None, "labels"),
        (X, Y - 2, None, "labels"),
        (X, Y + 1, None, "labels"),
        (X, F.one_hot(Y), None, "labels"),
        (X, Y, torch.zeros(1), "shared_negatives"),
        (X, Y, torch.tensor(1), "shared_negatives"),
    ],
)
def test_refused_input(features: Tensor, labels: Tensor, mass: Tensor | None, name: str) -> None:
    head = with_weight(CosFaceHead(3, 2))
    with pytest.raises(ValueError, match=f"argument `{name}`: expected .*, got "):
        head.cross_entropy(features, labels, mass)
    with pytest.raises(ValueError, match=f"argument `{name}`: expected .*, got "):
        LogitsHead(with_weight(CosFaceHead(3, 2)).logits, 64.0).cross_entropy(features, labels, mass)


def test_refused_logits() -> None:
    with pytest.raises(ValueError, match=r"argument `logits_fn`: expected a callable returning logits \[3, C\], got "):
        LogitsHead(lambda features, labels: features.sum(dim=1), 1.0).cross_entropy(X, Y)


def test_validation_can_be_switched_off() -> None:
    head = with_weight(CosFaceHead(3, 2, validate=False))
    assert head.cross_entropy(X * torch.tensor([[1.0], [0.0], [1.0]]), Y).isfinite().all()


def test_targets_outside_leave_no_class_out() -> None:
    """What a shard computes for samples whose class another rank holds."""
    features, _, _ = random_batch()
    x, w = F.normalize(features), F.normalize(random_head("cosface").weight.detach())
    for target in (-1, -7, 5, 9):
        for block in (None, 2):
            found = OtherClasses.apply(x, w, torch.full((len(x),), target), 4.0, block)
            torch.testing.assert_close(found, torch.logsumexp(4.0 * x @ w.T, 1))
