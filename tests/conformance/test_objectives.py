"""The conformance matrix: every objective, held to every rule of the engine that its traits promise."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import safetensors.torch
import torch
from tests.conformance.subjects import CLASSES, DIMENSION, instance, objective_types
from torch import Tensor, nn

from scorecraft.core import (
    BatchObjective,
    Dot,
    NegativeDistance,
    NegativeSquaredDistance,
    Objective,
    Pairs,
    RowObjective,
    Sweep,
    score_gradients,
    tiled,
)
from scorecraft.core.sweep import whole_tile

TYPES = objective_types()
assert TYPES
ROWS = [kind for kind in TYPES if issubclass(kind, RowObjective)]
pytestmark = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)


def data(n: int = 30, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, DIMENSION, generator=generator, dtype=torch.float64).to(dtype)
    return embeddings.requires_grad_(), torch.randint(0, CLASSES, (n,), generator=generator)


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value.sum(), inputs, materialize_grads=True, allow_unused=True)


def assert_same(objective: Objective, other: nn.Module, x: Tensor, labels: Tensor | None, **call: object) -> None:
    """Same value and same gradients in embeddings, reference and parameters."""
    inputs = [x, *objective.parameters()]
    if isinstance(call.get("reference"), Tensor):
        inputs.append(call["reference"])
    expected, found = objective(x, labels, **call), other(x, labels, **call)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(gradients(found, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


def as_channels(weights: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (weights,) if isinstance(weights, Tensor) else tuple(weights)


def needs_labels(kind: type[Objective]) -> bool:
    return not kind.pairwise


def test_gradient_is_the_derivative(kind: type[Objective]) -> None:
    objective = instance(kind)
    x, labels = data(12)
    assert torch.autograd.gradcheck(lambda e: objective(e, labels), (x,), eps=1e-7, atol=1e-5)


def test_tiled_gradient_is_the_derivative(kind: type[Objective]) -> None:
    objective = tiled(instance(kind), block=5)
    x, labels = data(12)
    assert torch.autograd.gradcheck(lambda e: objective(e, labels), (x,), eps=1e-7, atol=1e-5)


def test_closed_form_weights_are_the_derivative(kind: type[Objective]) -> None:
    objective = instance(kind)
    x, labels = data()
    batch = objective.batch(x, labels)
    scores = tuple(channel.detach().requires_grad_() for channel in objective.dense_scores(batch))
    tile = whole_tile(scores, batch.pairs)
    if isinstance(objective, RowObjective):
        if not objective.has_closed_form:
            pytest.skip("states no closed form: whole rows are differentiated")
        losses, weights = objective.row_weights(tile)
        torch.testing.assert_close(
            as_channels(weights), gradients(objective.row_loss(tile), *scores), rtol=1e-9, atol=1e-12
        )
        torch.testing.assert_close(losses, objective.row_loss(tile))
        return
    assert isinstance(objective, BatchObjective)
    if not objective.has_closed_form:
        pytest.skip("states no closed form: blocks are differentiated")
    context = objective.survey(Sweep(tile))
    totals = objective.terms(tile, context)
    coefficients = {
        name: 0.3 + 0.7 * index + torch.linspace(0, 1, total.numel(), dtype=torch.float64).view_as(total)
        for index, (name, total) in enumerate(totals.items())
    }
    value = sum((coefficients[name] * total).sum() for name, total in totals.items())
    detached = {name: total.detach() for name, total in totals.items()}
    weights = objective.pair_weights(tile, context, detached, coefficients)
    torch.testing.assert_close(as_channels(weights), gradients(value, *scores), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("block", [1, 4, 7, 64])
@pytest.mark.parametrize("n", [1, 2, 9, 30])
def test_tiled_equals_dense(kind: type[Objective], n: int, block: int) -> None:
    x, labels = data(n)
    objective = instance(kind)
    assert_same(objective, tiled(objective, block=block), x, labels)


def test_tiled_equals_dense_against_a_reference(kind: type[Objective]) -> None:
    x, labels = data(17)
    reference, reference_labels = data(23, seed=1)
    objective = instance(kind)
    assert_same(objective, tiled(objective, block=6), x, labels, reference=reference, reference_labels=reference_labels)
    ids, reference_ids = torch.arange(17), torch.arange(5, 28)
    call = {"reference": reference, "reference_labels": reference_labels, "ids": ids, "reference_ids": reference_ids}
    assert_same(objective, tiled(objective, block=6), x, labels, **call)


def test_a_frozen_reference_needs_no_gradient(kind: type[Objective]) -> None:
    x, labels = data(17)
    reference, reference_labels = data(23, seed=1)
    objective = instance(kind)
    call = {"reference": reference.detach(), "reference_labels": reference_labels}
    (found,) = gradients(tiled(objective, block=6)(x, labels, **call), x)
    (expected,) = gradients(objective(x, labels, **call), x)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("score", [Dot(), NegativeDistance(), NegativeSquaredDistance()], ids=repr)
def test_tiled_equals_dense_for_every_score(kind: type[Objective], score: object) -> None:
    if "score" not in inspect.signature(kind).parameters:
        pytest.skip("it fixes the score")
    x, labels = data(19)
    objective = kind(score=score).double()
    assert_same(objective, tiled(objective, block=6), x, labels)


def test_explicit_pairs_equal_labels(kind: type[Objective]) -> None:
    if needs_labels(kind):
        pytest.skip("its head reads labels")
    x, labels = data(15)
    others = ~torch.eye(15, dtype=torch.bool)
    same = labels[:, None] == labels
    pairs = Pairs.from_masks(same & others, ~same)
    objective = instance(kind)
    torch.testing.assert_close(objective(x, pairs=pairs), objective(x, labels))
    assert_same(objective, tiled(objective, block=4), x, None, pairs=pairs)


def test_explicit_pairs_may_be_asymmetric(kind: type[Objective]) -> None:
    x, labels = data(15)
    generator = torch.Generator().manual_seed(1)
    same, kept = labels[:, None] == labels, torch.rand(15, 15, generator=generator) < 0.5
    kept &= ~torch.eye(15, dtype=torch.bool)
    call = {"pairs": Pairs.from_masks(same & kept, ~same & kept)}
    objective = instance(kind)
    assert_same(objective, tiled(objective, block=4), x, labels if needs_labels(kind) else None, **call)


def test_multi_hot_labels(kind: type[Objective]) -> None:
    if needs_labels(kind):
        pytest.skip("its head reads class indices")
    x, labels = data(15)
    one_hot = nn.functional.one_hot(labels, CLASSES).bool()
    objective = instance(kind)
    torch.testing.assert_close(objective(x, one_hot), objective(x, labels))
    one_hot[:, 0] |= torch.arange(15) % 4 == 0
    assert_same(objective, tiled(objective, block=4), x, one_hot)


def test_ignored_examples_are_as_if_absent(kind: type[Objective]) -> None:
    x, labels = data(20)
    ignore = torch.arange(20) % 3 == 0
    objective = instance(kind)
    torch.testing.assert_close(objective(x, labels, ignore=ignore), objective(x[~ignore], labels[~ignore]))
    assert_same(objective, tiled(objective, block=6), x, labels, ignore=ignore)
    everything = objective(x, labels, ignore=torch.ones(20, dtype=torch.bool))
    assert everything == 0
    assert all(gradient.isfinite().all() for gradient in gradients(everything, x))


def test_weights_of_examples(kind: type[Objective]) -> None:
    x, labels = data(20)
    weights = torch.linspace(0, 2, 20, dtype=torch.float64)
    objective = instance(kind)
    if isinstance(objective, BatchObjective) and not objective.takes_weights:
        with pytest.raises(ValueError, match="argument `weights`"):
            objective(x, labels, weights=weights)
        return
    torch.testing.assert_close(objective(x, labels, weights=torch.ones(20).double()), objective(x, labels))
    assert_same(objective, tiled(objective, block=6), x, labels, weights=weights)


def test_reductions_agree(kind: type[Objective]) -> None:
    objective = instance(kind)
    if isinstance(objective, BatchObjective) and not objective.takes_weights:
        pytest.skip("one ratio of batch totals: there is nothing to reduce")
    x, labels = data(21)
    by_reduction = {}
    for reduction in ("mean", "sum", "none"):
        objective.reduction = reduction
        by_reduction[reduction] = objective(x, labels)
        assert_same(objective, tiled(objective, block=6), x, labels)
    assert by_reduction["none"].shape == (21,)
    torch.testing.assert_close(by_reduction["none"].sum(), by_reduction["sum"])
    counted = torch.ones(21, dtype=torch.bool)
    if getattr(kind, "mean_over_anchors_with_positives", False):
        counted = objective.batch(x, labels).pairs.rows_with_positives()
        assert not counted.all()
    torch.testing.assert_close(by_reduction["none"][counted].mean(), by_reduction["mean"])


def test_order_of_the_batch_does_not_matter(kind: type[Objective]) -> None:
    if not kind.order_invariant:
        pytest.skip("declares that it depends on the order of the batch")
    x, labels = data(25)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(3))
    objective = instance(kind)
    torch.testing.assert_close(objective(x[order], labels[order]), objective(x, labels))
    if kind.pairwise:
        renamed = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(4))[labels]
        torch.testing.assert_close(objective(x, renamed), objective(x, labels))


@pytest.mark.parametrize("way", ["dense", "tiled"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", ["collapsed", "opposite", "huge", "tiny"])
def test_finite_at_extreme_scores(kind: type[Objective], shape: str, dtype: torch.dtype, way: str) -> None:
    x, labels = data(16)
    x = x.detach()
    extreme = {
        "collapsed": torch.ones_like(x),
        "opposite": torch.where(labels[:, None] % 2 == 0, torch.ones_like(x), -torch.ones_like(x)),
        "huge": x * 1e4,
        "tiny": x * 1e-3,
    }[shape]
    leaf = extreme.to(dtype).requires_grad_()
    objective = instance(kind).float()
    value = (objective if way == "dense" else tiled(objective, block=5))(leaf, labels)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_autocast_changes_nothing(kind: type[Objective]) -> None:
    x, labels = data(16, dtype=torch.float32)
    objective = instance(kind).float()
    expected = objective(x, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(objective(x, labels), expected)
        torch.testing.assert_close(tiled(objective, block=5)(x, labels), expected)


@pytest.mark.parametrize("way", ["dense", "tiled"])
@pytest.mark.parametrize("labels", [[0] * 6, [0, 1, 2, 3, 4, 5], [0], [2, 2]], ids=["one class", "no pair", "1", "2"])
def test_degenerate_batches_are_finite_and_attached(kind: type[Objective], labels: list[int], way: str) -> None:
    x = data(len(labels))[0]
    objective = instance(kind)
    value = (objective if way == "dense" else tiled(objective, block=4))(x, torch.tensor(labels))
    assert value.isfinite()
    assert value.requires_grad
    (gradient,) = gradients(value, x)
    assert gradient.isfinite().all()


def test_nothing_is_swept_for_gradient_under_no_grad(kind: type[Objective], monkeypatch: pytest.MonkeyPatch) -> None:
    from scorecraft.core.blocks import BlockSweep

    def refuse_to_pull(*args: object, **kwargs: object) -> None:
        raise AssertionError("a gradient pass ran under no_grad")

    x, labels = data(16)
    objective = instance(kind)
    expected = objective(x, labels)
    monkeypatch.setattr(BlockSweep, "pull", refuse_to_pull)
    with torch.no_grad():
        found = tiled(objective, block=5)(x, labels)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach())


def test_score_gradients_are_the_pull_on_each_pair(kind: type[Objective]) -> None:
    x, labels = data(18)
    objective = instance(kind)
    pull = score_gradients(objective, x, labels)
    scores = objective.dense_scores(objective.batch(x, labels))
    assert pull.shape == ((18, 18) if len(scores) == 1 else (len(scores), 18, 18))
    assert pull.diagonal(dim1=-2, dim2=-1).abs().max() == 0
    if kind.pairwise:
        (chained,) = gradients(pull * torch.stack(scores), x)
        (direct,) = gradients(objective(x, labels), x)
        torch.testing.assert_close(chained, direct, rtol=1e-9, atol=1e-12)


def test_scores_alone_give_the_same_loss(kind: type[Objective]) -> None:
    x, labels = data(18)
    objective = instance(kind)
    scores, *further = objective.dense_scores(objective.batch(x, labels))
    if further:
        pytest.skip("several score channels")
    if needs_labels(kind):
        with pytest.raises(ValueError, match="needs embeddings"):
            objective.on_scores(scores, labels)
        return
    torch.testing.assert_close(objective.on_scores(scores, labels), objective(x, labels))


def test_it_adds_and_scales(kind: type[Objective]) -> None:
    x, labels = data(18)
    objective = instance(kind)
    expected = objective(x, labels)
    torch.testing.assert_close((objective + 0.5 * objective)(x, labels), 1.5 * expected)
    torch.testing.assert_close((2 * tiled(objective, block=5) + objective)(x, labels), 3 * expected)
    torch.testing.assert_close(tiled(objective * 3 + objective, block=5)(x, labels), 4 * expected)


def test_state_dict_round_trip(kind: type[Objective]) -> None:
    x, labels = data(18)
    objective = instance(kind)
    stored = safetensors.torch.save(dict(objective.state_dict()))
    other = instance(kind)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(safetensors.torch.load(io.BytesIO(stored).getvalue()))
    torch.testing.assert_close(other(x, labels), objective(x, labels))
    torch.testing.assert_close(copy.deepcopy(objective)(x, labels), objective(x, labels))


def test_the_dense_form_compiles_in_one_graph(kind: type[Objective]) -> None:
    x, labels = data(18, dtype=torch.float32)
    objective = instance(kind).float()
    torch._dynamo.reset()
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x, labels), objective(x, labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, x)[0], gradients(expected, x)[0])


REFUSED = {
    "nan": (lambda x, y: (x.detach().index_fill(0, torch.tensor([3]), torch.nan), y), "embeddings", "finite"),
    "infinite": (lambda x, y: (x.detach().index_fill(0, torch.tensor([3]), torch.inf), y), "embeddings", "finite"),
    "zero row": (lambda x, y: (x.detach().index_fill(0, torch.tensor([3]), 0.0), y), "embeddings", "non-zero norm"),
    "integers": (lambda x, y: (x.detach().long(), y), "embeddings", "floating-point"),
    "one axis": (lambda x, y: (x.detach()[:, 0], y), "embeddings", "2 axes"),
    "empty": (lambda x, y: (x.detach()[:0], y[:0]), "embeddings", "at least one row"),
    "labels too short": (lambda x, y: (x, y[:-1]), "labels", "one per embedding"),
    "float labels": (lambda x, y: (x, y.double()), "labels", "integer"),
    "no labels": (lambda x, y: (x, None), "labels", "(labels|one class index)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line(kind: type[Objective], case: str) -> None:
    spoil, argument, expectation = REFUSED[case]
    if case == "zero row" and instance(kind).score == Dot():
        pytest.skip("a dot product is defined on zero rows")
    with pytest.raises(ValueError, match=f"argument `{argument}`: expected .*{expectation}.*, got .+") as caught:
        instance(kind)(*spoil(*data(10)))
    assert "\n" not in str(caught.value)


def test_bad_relations_are_refused_in_one_line(kind: type[Objective]) -> None:
    x, labels = data(10)
    objective = instance(kind)
    with pytest.raises(ValueError, match="argument `reference`"):
        objective(x, labels, reference=x[:, :-1], reference_labels=labels)
    with pytest.raises(ValueError, match="argument `reference_labels`"):
        objective(x, labels, reference=x)
    with pytest.raises(ValueError, match="argument `weights`"):
        objective(x, labels, weights=torch.ones(3))
    with pytest.raises(ValueError, match="argument `weights`: expected finite weights >= 0"):
        objective(x, labels, weights=-torch.ones(10))
    with pytest.raises(ValueError, match="argument `ignore`"):
        objective(x, labels, ignore=torch.zeros(3, dtype=torch.bool))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu(kind: type[Objective]) -> None:
    x, labels = data(30)
    objective = instance(kind)
    expected = objective(x, labels)
    (gradient,) = gradients(expected, x)
    there = x.detach().cuda().requires_grad_()
    moved = copy.deepcopy(objective).cuda()
    for way in (moved, tiled(moved, block=7)):
        found = way(there, labels.cuda())
        torch.testing.assert_close(found.cpu(), expected)
        torch.testing.assert_close(gradients(found, there)[0].cpu(), gradient, rtol=1e-8, atol=1e-11)
