"""AMCL as a whole: each base method against its definition, what carries gradient, and what is refused."""

from __future__ import annotations

import copy
import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from tests.ranks import run_ranks
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import across_ranks, tiled
from scorecraft.similarity.amcl import (
    AMCLLoss,
    CorrelationTemperature,
    PairTemperature,
    barlow_loss,
    cross_correlation,
    omega,
    simsiam_loss,
)

ITEMS, HEADS, WIDTH = 7, 2, 4
BASES = ("ntxent", "infonce", "simsiam", "barlow")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_views(items: int = ITEMS, seed: int = 0) -> tuple[Tensor, Tensor]:
    first, second = random(2, items, HEADS, WIDTH, seed=seed).unbind()
    return first.clone().requires_grad_(), second.clone().requires_grad_()


def loss_of(base: str, **options: Any) -> AMCLLoss:
    generator = torch.Generator().manual_seed(5)
    temperature: PairTemperature | CorrelationTemperature = (
        CorrelationTemperature(HEADS, WIDTH)
        if base == "barlow"
        else PairTemperature(WIDTH, hidden=6, features=3, generator=generator)
    )
    with torch.no_grad():  # so that temperatures differ
        for parameter in temperature.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.7)
    return AMCLLoss(temperature, base=base, heads=HEADS, **options).double()  # type: ignore[arg-type]


def extra(base: str) -> dict[str, Any]:
    """What the base method needs beside the views."""
    return {"targets": tuple(random(2, ITEMS, WIDTH, seed=9))} if base == "simsiam" else {}


def call(loss: AMCLLoss, base: str, **more: Any) -> Tensor:
    return loss(*two_views(), **extra(base), **more)


def by_definition(loss: AMCLLoss, anchors: Tensor, others: Tensor, own: list[int], positive: list[int]) -> Tensor:
    """The mean over anchors, pair by pair; `own` and `positive` are columns, the rest are negatives."""
    temperature, total = loss.temperature, torch.zeros((), dtype=torch.float64)
    assert isinstance(temperature, PairTemperature)
    x, y = F.normalize(anchors, dim=-1), F.normalize(others, dim=-1)
    for anchor in range(len(x)):
        for head in range(HEADS):
            sims = y[:, head] @ x[anchor, head]
            tau = temperature.paired(x[anchor, head].expand_as(y[:, head]), y[:, head])
            exponents = sims / tau - loss.beta * omega(tau, WIDTH)
            out = {own[anchor]} if loss.base == "infonce" else {own[anchor], positive[anchor]}
            kept = [column for column in range(len(y)) if column not in out]
            if loss.kappa is None:
                pushed = exponents[kept].logsumexp(dim=0)
            else:
                pushed = exponents[kept][sims[kept].argsort(descending=True)[: loss.kappa]].mean()
            total = total + pushed - exponents[positive[anchor]]
    return total / len(x)


@pytest.mark.parametrize("wrapper", [None, partial(tiled, block=5)], ids=["dense", "tiled"])
@pytest.mark.parametrize("kappa", [None, 1, 3])
@pytest.mark.parametrize("base", ["ntxent", "infonce"])
def test_contrastive_bases_are_their_definitions(base: str, kappa: int | None, wrapper: Any) -> None:
    loss = loss_of(base, kappa=kappa, wrapper=wrapper)
    first, second = two_views()
    both, count = torch.cat([first, second]), 2 * ITEMS
    positive = [(anchor + ITEMS) % count for anchor in range(count)]
    expected = by_definition(loss, both, both, list(range(count)), positive)
    found = loss(first, second)
    torch.testing.assert_close(found, expected)
    inputs = [first, second, *loss.parameters()]
    for mine, theirs in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("wrapper", [None, partial(tiled, block=5)], ids=["dense", "tiled"])
@pytest.mark.parametrize("kappa", [None, 2])
@pytest.mark.parametrize("base", ["ntxent", "infonce"])
def test_a_queue_holds_the_negatives_and_is_constant(base: str, kappa: int | None, wrapper: Any) -> None:
    loss = loss_of(base, kappa=kappa, wrapper=wrapper)
    first, second = two_views()
    queue = random(9, HEADS, WIDTH, seed=3).requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for item in range(ITEMS):
        others = torch.cat([second[item : item + 1], queue]).detach()
        expected = expected + by_definition(loss, first[item : item + 1], others, [-1], [0]) / ITEMS
    found = loss(first, second, queue=queue)
    torch.testing.assert_close(found, expected)
    inputs = [first, *loss.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, retain_graph=True), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)
    assert torch.autograd.grad(found, (second, queue), allow_unused=True) == (None, None)


def test_check_value_of_simsiam() -> None:
    s, t, tau, tau_back = (torch.tensor([[value]], dtype=torch.float64) for value in (0.6, 0.5, 0.4, 0.25))
    found = simsiam_loss((s, t), (tau, tau_back), beta=0.1, width=8)
    assert found.item() == pytest.approx(-2.0210340372, abs=1e-9)


def test_simsiam_meets_the_target_of_the_other_view_which_is_constant() -> None:
    loss = loss_of("simsiam", reduction="none")
    first, second = two_views()
    targets = tuple(target.clone().requires_grad_() for target in random(2, ITEMS, WIDTH, seed=9))
    found = loss(first, second, targets=targets)
    assert found.shape == (ITEMS,)
    temperature = loss.temperature
    assert isinstance(temperature, PairTemperature)
    expected = torch.zeros(ITEMS, dtype=torch.float64)
    for view, target in ((first, targets[1]), (second, targets[0])):
        goal = F.normalize(target.detach(), dim=-1)
        for head in range(HEADS):
            unit = F.normalize(view[:, head], dim=-1)
            tau = temperature.paired(unit, goal)
            expected = expected - (unit * goal).sum(dim=-1) / (2 * tau) + loss.beta * omega(tau, WIDTH)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.grad(found.sum(), targets, retain_graph=True, allow_unused=True) == (None, None)
    inputs = [first, second, *loss.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_check_value_of_barlow() -> None:
    correlation = torch.tensor([[[0.9, 0.2], [-0.1, 0.8]]], dtype=torch.float64)
    tau = torch.tensor([[[0.5, 0.7], [0.4, 0.8]]], dtype=torch.float64)
    found = barlow_loss(correlation, tau, beta=0.1, off_diagonal_weight=0.005)
    assert found.item() == pytest.approx(0.6082210658, abs=1e-9)


def test_at_its_start_and_without_regulariser_it_is_plain_barlow_twins() -> None:
    first, second = two_views(12)
    loss = AMCLLoss(CorrelationTemperature(HEADS, WIDTH), base="barlow", heads=HEADS, beta=0.0).double()
    expected = torch.zeros((), dtype=torch.float64)
    for head in range(HEADS):
        x, y = ((v[:, head] - v[:, head].mean(0)) / v[:, head].std(0, correction=0) for v in (first, second))
        correlation = x.T @ y / 12
        off = correlation - correlation.diag().diag()
        expected = expected + (1 - correlation.diag()).square().sum() + 0.005 * off.square().sum()
    torch.testing.assert_close(loss(first, second), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4])
def test_a_constant_column_correlates_with_nothing(constant: float) -> None:
    first, second = (view.detach().float() for view in two_views())
    first[:, 1, 2] = constant
    first.requires_grad_()
    correlation = cross_correlation(first, second)
    assert not correlation[1, 2].any()
    (gradient,) = torch.autograd.grad(correlation.square().sum(), first)
    assert gradient.isfinite().all()
    assert not gradient[:, 1, 2].any()


@pytest.mark.parametrize("base", BASES)
def test_gradient_is_the_derivative(base: str) -> None:
    loss = loss_of(base)
    first, second = two_views()
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, **extra(base)), (first, second), eps=1e-7, atol=1e-5)
    for parameter in loss.parameters():
        assert torch.autograd.gradcheck(lambda _: call(loss, base), (parameter,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("base", BASES)
def test_the_dense_form_compiles_in_one_graph(base: str) -> None:
    loss = loss_of(base)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    first, second = two_views()
    found, expected = compiled(first, second, **extra(base)), loss(first, second, **extra(base))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, first)[0] for value in (found, expected)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("base", BASES)
def test_half_precision_is_computed_in_float32(base: str, dtype: torch.dtype) -> None:
    loss = loss_of(base).float()
    views = [(100 * view.detach()).to(dtype).requires_grad_() for view in two_views()]
    value = loss(*views, **extra(base))
    assert value.dtype == torch.float32
    value.backward()
    assert all(view.grad is not None and view.grad.isfinite().all() for view in views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(*views, **extra(base)), value)


@pytest.mark.parametrize("base", ["ntxent", "infonce", "simsiam"])
def test_reductions_agree(base: str) -> None:
    each, mean, total = (call(loss_of(base, reduction=how), base) for how in ("none", "mean", "sum"))
    assert each.shape == ((ITEMS,) if base == "simsiam" else (2 * ITEMS,))
    torch.testing.assert_close(each.mean(), mean)
    torch.testing.assert_close(each.sum(), total)


@pytest.mark.parametrize("base", ["ntxent", "infonce"])
def test_one_item_has_no_negatives_and_costs_nothing(base: str) -> None:
    first, second = two_views(1)
    value = loss_of(base)(first, second)
    assert value.item() == 0
    assert not torch.autograd.grad(value, first)[0].any()


def test_the_length_of_vectors_does_not_matter_unless_it_is_promised() -> None:
    first, second = two_views()
    unit = F.normalize(first.detach(), dim=-1), F.normalize(second.detach(), dim=-1)
    expected = loss_of("ntxent")(first, second)
    torch.testing.assert_close(loss_of("ntxent")(3 * first, second), expected)
    torch.testing.assert_close(loss_of("ntxent", normalise=False)(*unit), expected)
    with pytest.raises(ValueError, match="argument `second`: expected vectors of length 1, or normalise=True, got"):
        loss_of("ntxent", normalise=False)(unit[0], second)


@pytest.mark.parametrize("base", BASES)
def test_state_dict_round_trip(base: str) -> None:
    loss, other = loss_of(base), loss_of(base)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(safetensors.torch.load(io.BytesIO(safetensors.torch.save(loss.state_dict())).getvalue()))
    torch.testing.assert_close(call(other, base), call(loss, base))
    torch.testing.assert_close(call(copy.deepcopy(loss), base), call(loss, base))


def of_one_rank(rank: int, folder: str) -> None:
    """Each rank its own items, three and four of them; what comes out is added up."""
    first, second = two_views()
    part = slice(0, 3) if rank == 0 else slice(3, ITEMS)
    results = []
    for wrapper in (across_ranks, lambda loss: across_ranks(tiled(loss, block=3))):
        loss = loss_of("ntxent", wrapper=wrapper)
        value = loss(first[part], second[part])
        gradients = torch.autograd.grad(value, [first, second, *loss.parameters()])
        for tensor in (value.detach(), *gradients):
            dist.all_reduce(tensor)
        results.append([value.detach() / 2, *(gradient / 2 for gradient in gradients)])
    if rank == 0:
        torch_free = {f"{way} {index}": tensor.contiguous() for way, result in enumerate(results)
                      for index, tensor in enumerate(result)}  # fmt: skip
        safetensors.torch.save_file(torch_free, f"{folder}/results.safetensors")


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    run_ranks(of_one_rank, str(tmp_path))
    found = safetensors.torch.load_file(tmp_path / "results.safetensors")
    first, second = two_views()
    loss = loss_of("ntxent")
    value = loss(first, second)
    expected = [value.detach(), *torch.autograd.grad(value, [first, second, *loss.parameters()])]
    for way in range(2):
        for index, tensor in enumerate(expected):
            torch.testing.assert_close(found[f"{way} {index}"], tensor, rtol=1e-9, atol=1e-11)


FIRST, SECOND = (view.detach() for view in two_views())
REFUSED = {
    "base": (lambda: AMCLLoss(PairTemperature(WIDTH), base="clip"), "argument `base`: expected one of 'ntxent'"),  # type: ignore[arg-type]
    "beta": (lambda: loss_of("ntxent", beta=-0.1), "argument `beta`: expected a finite number >= 0, got -0.1"),
    "kappa": (lambda: loss_of("ntxent", kappa=0), "argument `kappa`: expected an integer >= 1, got 0"),
    "too many": (
        lambda: loss_of("ntxent", kappa=13)(FIRST, SECOND),
        "argument `kappa`: expected at most the number of negatives, 12, got 13",
    ),
    "one item": (
        lambda: loss_of("ntxent", kappa=1)(FIRST[:1], SECOND[:1]),
        "argument `kappa`: expected at most the number of negatives, 0, got 1",
    ),
    "queue too short": (
        lambda: loss_of("infonce", kappa=3)(FIRST, SECOND, queue=FIRST[:2]),
        "argument `kappa`: expected at most the number of negatives, 2, got 3",
    ),
    "no negatives": (lambda: loss_of("simsiam", kappa=1), "argument `kappa`: expected None, base 'simsiam' has no"),
    "no pairs": (lambda: loss_of("barlow", wrapper=tiled), "argument `wrapper`: expected None, base 'barlow' has no"),
    "reduction": (lambda: loss_of("barlow", reduction="none"), "argument `reduction`: expected 'mean' for base"),
    "heads": (
        lambda: loss_of("ntxent")(FIRST[:, :1], SECOND[:, :1]),
        r"argument `first`: expected the outputs \[n, 2, 4\] of 2 heads, got",
    ),
    "heads of the temperature": (
        lambda: AMCLLoss(CorrelationTemperature(2, WIDTH), base="barlow", heads=3),
        "argument `heads`: expected the 2 of its temperature, got 3",
    ),
    "other view": (lambda: loss_of("ntxent")(FIRST, SECOND[:-1]), "argument `second`: expected a view like the first"),
    "not a number": (lambda: loss_of("ntxent")(FIRST, SECOND / 0), "argument `second`: expected finite values only"),
    "no direction": (
        lambda: loss_of("ntxent")(FIRST * 0, SECOND),
        "argument `first`: expected vectors of non-zero norm",
    ),
    "no targets": (lambda: loss_of("simsiam")(FIRST, SECOND), "argument `targets`: expected features of both views"),
    "targets": (
        lambda: loss_of("ntxent")(FIRST, SECOND, targets=(FIRST[:, 0], SECOND[:, 0])),
        "argument `targets`: expected features of both views for base 'simsiam' and for no other",
    ),
    "target": (
        lambda: loss_of("simsiam")(FIRST, SECOND, targets=(FIRST[:, 0], SECOND[:, 0, :-1])),
        r"argument `targets`: expected features \[7, 4\], got",
    ),
    "silent target": (
        lambda: loss_of("simsiam")(FIRST, SECOND, targets=(FIRST[:, 0], 0 * SECOND[:, 0])),
        "argument `targets`: expected vectors of non-zero norm",
    ),
    "queue": (lambda: loss_of("barlow")(FIRST, SECOND, queue=FIRST), "argument `queue`: expected None, base 'barlow'"),
    "one item to correlate": (
        lambda: loss_of("barlow")(FIRST[:1], SECOND[:1]),
        "argument `first`: expected at least two items",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused_in_one_line(case: str) -> None:
    act, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_the_temperature_must_be_of_the_kind_the_base_needs() -> None:
    with pytest.raises(TypeError, match="argument `temperature`: expected a PairTemperature for base 'ntxent', got"):
        AMCLLoss(CorrelationTemperature(HEADS, WIDTH))
    with pytest.raises(TypeError, match="argument `temperature`: expected a CorrelationTemperature for base 'barlow'"):
        AMCLLoss(PairTemperature(WIDTH), base="barlow")


def test_the_representation_states_the_constants() -> None:
    assert "base='ntxent', heads=2, beta=0.1, kappa=3" in repr(loss_of("ntxent", kappa=3))
