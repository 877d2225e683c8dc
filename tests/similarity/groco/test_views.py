"""GroCo on views: the specification's value, multi-crop, stop-gradient, and ranks that share their negatives."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from tests.ranks import run_ranks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from scorecraft.similarity.groco import GroCoLoss, group_ordering_loss

CHECKED = [[[1, 0], [0, 1], [1, 1]], [[1, 0.2], [0.1, 1], [1, 0.8]]]


def projections(views: int = 2, items: int = 9, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views, items, 5, generator=generator, dtype=torch.float64).requires_grad_()


def anchor_by_anchor(z: Tensor, negatives: int, steepness: float, full: int, stop_gradient: bool) -> Tensor:
    """The definition, one anchor after the other."""
    z = F.normalize(z, dim=2)
    others = z.detach() if stop_gradient else z
    losses = []
    for v in range(len(z)):
        for b in range(z.shape[1]):
            p = torch.stack([z[v, b] @ others[u, b] for u in range(full) if u != v])
            q = torch.stack([z[v, b] @ others[v, j] for j in range(z.shape[1]) if j != b])
            losses.append(group_ordering_loss(q.topk(negatives).values, p, steepness=steepness))
    return torch.stack(losses).view(z.shape[:2])


def test_check_value() -> None:
    views = [torch.tensor(view, dtype=torch.float64) for view in CHECKED]
    assert GroCoLoss(negatives=2)(views).item() == pytest.approx(0.3106770257, abs=1e-10)


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("views, full", [(2, None), (4, None), (5, 2), (5, 4), (3, 3)])
def test_equal_to_each_anchor_alone(views: int, full: int | None, stop_gradient: bool) -> None:
    z = projections(views)
    loss = GroCoLoss(negatives=4, steepness=2.0, full_views=full, stop_gradient=stop_gradient, reduction="none")
    expected = anchor_by_anchor(z, 4, 2.0, full or views, stop_gradient)
    found = loss(z.unbind())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    weights = torch.linspace(0.5, 2, found.numel(), dtype=torch.float64).view_as(found)
    gradients = [torch.autograd.grad((value * weights).sum(), z)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-13)
    loss.reduction = "mean"
    torch.testing.assert_close(loss(z.unbind()), expected.mean())
    loss.reduction = "sum"
    torch.testing.assert_close(loss(z.unbind()), expected.sum())


def test_only_anchors_receive_gradient() -> None:
    z = projections()
    loss = GroCoLoss(negatives=3, reduction="none")(z.unbind())
    (gradient,) = torch.autograd.grad(loss[0, 2], z)
    assert gradient[0, 2].any()
    gradient[0, 2] = 0
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(
        GroCoLoss(negatives=3, stop_gradient=False, reduction="none")(z.unbind())[0, 2], z
    )
    assert len(gradient.flatten(0, 1).any(dim=1).nonzero()) == 1 + 1 + 3


def test_gradient_is_the_derivative() -> None:
    loss = GroCoLoss(negatives=3, stop_gradient=False)
    assert torch.autograd.gradcheck(lambda z: loss(z.unbind()), (projections(3, 6),))


def test_a_bitonic_network_where_lists_are_a_power_of_two() -> None:
    z = projections()
    expected = anchor_by_anchor(z, 3, 1.0, 2, True)
    found = GroCoLoss(negatives=3, network="bitonic")(z.unbind())
    assert found.isfinite()
    assert not torch.isclose(found, expected.mean())  # another network, other chances
    with pytest.raises(ValueError, match="argument `network`: expected 'odd_even', or lists"):
        GroCoLoss(negatives=4, network="bitonic")(z.unbind())


def test_the_ordering_gap() -> None:
    z = projections(3)
    unit = F.normalize(z, dim=2)
    found = GroCoLoss(negatives=4).ordering_gap(z.unbind())
    assert found.shape == (3, 9)
    assert not found.requires_grad
    positives = min(unit[1, 0] @ unit[0, 0], unit[1, 0] @ unit[2, 0])
    negatives = max(unit[1, 0] @ unit[1, j] for j in range(1, 9))
    assert found[1, 0].item() == pytest.approx((positives - negatives).item())


def test_half_precision_and_autocast_are_float32_inside() -> None:
    z = projections().detach().float()
    expected = GroCoLoss(negatives=4)(z.unbind())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(GroCoLoss(negatives=4)(z.unbind()), expected, rtol=0, atol=0)
    half = GroCoLoss(negatives=4)(z.half().unbind())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0, atol=1e-3)


def test_it_compiles_in_one_graph() -> None:
    z = projections()
    loss = GroCoLoss(negatives=4)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z.unbind()), loss(z.unbind()))


def test_it_holds_no_state() -> None:
    assert not GroCoLoss().state_dict()
    assert "negatives=10, steepness=1.0, network='odd_even', full_views=2" in repr(GroCoLoss(full_views=2))


@pytest.mark.parametrize(
    "options, views, message",
    [
        ({}, lambda z: z[:1], "`views`: expected at least 2 views, got 1"),
        ({}, lambda z: [], "`views`: expected at least 2 views, got 0"),
        ({"full_views": 3}, lambda z: z, "`views`: expected at least 3 views, got 2"),
        ({"negatives": 9}, lambda z: z, "`views`: expected more than 9 items, one's own and its negatives, got 9"),
        ({}, lambda z: [z[0], z[1][:-1]], r"`views\[1\]`: expected the shape of the first view"),
        ({}, lambda z: [z[0], z[1] * torch.nan], r"`views\[1\]`: expected finite values only"),
        ({}, lambda z: [z[0], z[1] * 0], r"`views\[1\]`: expected rows of non-zero norm"),
        ({}, lambda z: [z[0].long(), z[1]], r"`views\[0\]`: expected a floating-point tensor"),
    ],
)
def test_bad_views_are_refused_in_one_line(options: dict[str, int], views: object, message: str) -> None:
    z = [view.detach() for view in projections()]
    with pytest.raises(ValueError, match="argument " + message) as caught:
        GroCoLoss(**{"negatives": 4, **options})(views(z))  # type: ignore[operator, arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, value",
    [("negatives", 0), ("steepness", 0), ("network", "bubble"), ("full_views", 1), ("reduction", "max")],
)
def test_hyper_parameters_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"argument `{name}`: expected "):
        GroCoLoss(**{name: value})  # type: ignore[arg-type]


class Encoder(nn.Module):
    """A linear encoder of views, with its loss."""

    def __init__(self, loss: GroCoLoss) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5, bias=False).double()
        nn.init.eye_(self.linear.weight)
        self.loss = loss

    def forward(self, views: Tensor) -> Tensor:
        return self.loss(self.linear(views).unbind())


def on_each_rank(rank: int) -> None:
    alone_here = [dist.new_group([member]) for member in range(2)][rank]
    z = projections(3, 11).detach()
    for sizes in ((5, 6), (2, 9)):
        part = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], 11)
        for options in ({}, {"stop_gradient": False}, {"full_views": 2}):
            for reduction in ("mean", "sum"):
                alone = Encoder(GroCoLoss(negatives=6, reduction=reduction, group=alone_here, **options))
                expected = alone(z)
                expected.backward()
                together = Encoder(GroCoLoss(negatives=6, reduction=reduction, **options))
                averaged = DistributedDataParallel(together)
                value = averaged(z[:, part])
                value.backward()
                mean = value.detach().clone()
                dist.all_reduce(mean)
                torch.testing.assert_close(mean / 2, expected.detach())
                torch.testing.assert_close(together.linear.weight.grad, alone.linear.weight.grad)


def test_two_ranks_equal_one_process() -> None:
    run_ranks(on_each_rank)
