"""The check values and properties of the group ordering loss of given scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from scorecraft.similarity.groco import group_ordering_loss, group_probabilities, ordering_gap
from scorecraft.similarity.groco.sorting import Network

NEGATIVES, POSITIVES = [0.2, 0.5, 0.1], [0.4, 0.9]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def lists(k: int = 6, p: int = 3, count: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, k + p, generator=generator, dtype=torch.float64)
    return x[:, :k].clone().requires_grad_(), x[:, k:].clone().requires_grad_()


@pytest.mark.parametrize(
    "negatives, positives, steepness, loss",
    [
        ([-1], [1], 1, 0.1596801599),
        ([0], [0], 1, math.log(2)),
        (NEGATIVES, POSITIVES, 1, 0.4231996720),
        (NEGATIVES, POSITIVES, 10, 0.3850304605),
        ([-1] * 10, [1], 1, 0.1469717764),
        ([1] * 10, [-1], 1, 0.2643330824),
    ],
)
def test_check_values(negatives: list[float], positives: list[float], steepness: float, loss: float) -> None:
    found = group_ordering_loss(tensor(*negatives), tensor(*positives), steepness=steepness)
    assert found.item() == pytest.approx(loss, abs=1e-10)


@pytest.mark.parametrize(
    "negatives, positives, steepness, probabilities",
    [
        ([-1], [1], 1, [0.14758362, 0.85241638]),
        (NEGATIVES, POSITIVES, 1, [0.15781614, 0.16796452, 0.48781808, 0.46630485, 0.72009642]),
        (NEGATIVES, POSITIVES, 10, [0.02039578, 0.04534734, 0.58434261, 0.39150061, 0.95841366]),
    ],
)
def test_check_probabilities(
    negatives: list[float], positives: list[float], steepness: float, probabilities: list[float]
) -> None:
    found = group_probabilities(tensor(*negatives), tensor(*positives), steepness=steepness)
    assert found.tolist() == pytest.approx(probabilities, abs=1e-8)


@pytest.mark.parametrize("network, k, p", [("odd_even", 10, 1), ("odd_even", 7, 4), ("bitonic", 12, 4)])
@pytest.mark.parametrize("steepness", [1.0, 5.0])
def test_equal_to_the_two_cross_entropies_of_the_official_form(
    network: Network, k: int, p: int, steepness: float
) -> None:
    diffsort = pytest.importorskip("diffsort")
    negatives, positives = lists(k, p)
    ordered = torch.cat([negatives.sort().values, positives.sort().values], dim=1)
    _, permutation = diffsort.DiffSortNet(network, k + p, steepness=steepness, distribution="cauchy")(ordered)
    entropies = []
    for group in (torch.arange(k + p) < k, torch.arange(k + p) >= k):
        chances = permutation[:, :, group].sum(dim=2).clamp(0, 1)
        entropies.append(nn.BCELoss()(chances, group.double().expand_as(chances)))
    expected = (entropies[0] + entropies[1]) / 2
    found = group_ordering_loss(negatives, positives, steepness=steepness, network=network)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for mine, theirs in zip(*(torch.autograd.grad(v, (negatives, positives)) for v in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_gradient_is_the_derivative_for_both_groups() -> None:
    assert torch.autograd.gradcheck(lambda q, p: group_ordering_loss(q, p, steepness=3.0), lists())


@pytest.mark.parametrize("steepness", [1.0, 10.0])
def test_probabilities_of_a_list_sum_to_its_positives(steepness: float) -> None:
    for p in (1, 3, 5):
        found = group_probabilities(*lists(p=p), steepness=steepness)
        torch.testing.assert_close(found.sum(dim=1), torch.full((5,), float(p), dtype=torch.float64))


def test_only_differences_of_scores_count() -> None:
    negatives, positives = lists()
    torch.testing.assert_close(
        group_ordering_loss(negatives + 7, positives + 7), group_ordering_loss(negatives, positives)
    )
    constant = [group_probabilities(torch.full_like(negatives, v), torch.full_like(positives, v)) for v in (-1.0, 0.3)]
    torch.testing.assert_close(constant[0], constant[1])


def test_the_order_inside_a_group_changes_nothing() -> None:
    negatives, positives = lists()
    shuffled = group_ordering_loss(negatives.flip(1), positives.roll(1, 1))
    torch.testing.assert_close(shuffled, group_ordering_loss(negatives, positives), rtol=0, atol=0)


def test_a_steep_network_is_content_with_ordered_groups_alone() -> None:
    assert group_ordering_loss(tensor(0.1, 0.3, 0.2), tensor(0.5, 0.4), steepness=1e9) < 1e-7
    assert group_ordering_loss(tensor(0.1, 0.3, 0.2), tensor(0.5, 0.25), steepness=1e9) > 1


def test_one_pair_is_a_cauchy_link() -> None:
    negatives, positives = lists(1, 1, 20)
    expected = -((2.5 * (positives - negatives)).atan() / math.pi + 0.5).log()
    found = group_ordering_loss(negatives, positives, steepness=2.5, reduction="none")
    torch.testing.assert_close(found, expected[:, 0])


def test_leading_axes_and_reductions() -> None:
    negatives, positives = lists(count=12)
    each = group_ordering_loss(negatives.view(3, 4, 6), positives.view(3, 4, 3), reduction="none")
    assert each.shape == (3, 4)
    expected = [group_ordering_loss(q, p) for q, p in zip(negatives, positives, strict=True)]
    torch.testing.assert_close(each.flatten(), torch.stack(expected))
    torch.testing.assert_close(group_ordering_loss(negatives, positives, reduction="sum"), each.sum())
    torch.testing.assert_close(group_ordering_loss(negatives, positives), each.mean())
    assert group_probabilities(negatives.view(3, 4, 6), positives.view(3, 4, 3)).shape == (3, 4, 9)


def test_tied_scores_always_receive_the_same_gradients() -> None:
    q, p = tensor(0.5, 0.5, 0.5, 0.1).requires_grad_(), tensor(0.5, 0.5).requires_grad_()
    gradients = [torch.autograd.grad(group_ordering_loss(q, p), (q, p)) for _ in range(2)]
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))
    assert len(gradients[0][0].unique()) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_finite_at_extreme_scores(dtype: torch.dtype, size: float) -> None:
    for sign in (1, -1):
        q = torch.full((2, 10), -sign * size, dtype=dtype, requires_grad=True)
        p = torch.full((2, 3), sign * size, dtype=dtype, requires_grad=True)
        loss = group_ordering_loss(q, p, steepness=10.0)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert q.grad is not None
        assert q.grad.isfinite().all()
        assert p.grad is not None
        assert p.grad.isfinite().all()


def test_no_gradient_where_the_likelihood_is_cut_off() -> None:
    q, p = tensor(1e9).requires_grad_(), tensor(-1e9).requires_grad_()
    loss = group_ordering_loss(q, p, steepness=10.0)
    assert loss.item() == pytest.approx(-math.log(1e-7))
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (q, p)))


def test_the_ordering_gap() -> None:
    assert ordering_gap(tensor(*NEGATIVES), tensor(*POSITIVES)).item() == pytest.approx(-0.1)
    negatives, positives = lists()
    assert torch.equal(ordering_gap(negatives, positives), positives.min(1).values - negatives.max(1).values)


def test_it_compiles_in_one_graph() -> None:
    negatives, positives = lists()
    compiled = torch.compile(group_ordering_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(negatives, positives), group_ordering_loss(negatives, positives))


@pytest.mark.parametrize(
    "spoil, message",
    [
        ({"negative_scores": torch.zeros(2, 0)}, "`negative_scores`: expected floating-point lists .* at least one"),
        ({"positive_scores": torch.zeros(2, 0)}, "`positive_scores`: expected floating-point lists .* at least one"),
        ({"positive_scores": torch.zeros(3, 2)}, r"`positive_scores`: expected the lists of the negatives, \[2, P\]"),
        ({"negative_scores": torch.zeros(2, 3, dtype=torch.long)}, "`negative_scores`: expected floating-point"),
        ({"positive_scores": torch.tensor(1.0)}, "`positive_scores`: expected floating-point lists"),
        ({"negative_scores": torch.full((2, 3), torch.nan)}, "`negative_scores`: expected finite values only, got nan"),
        ({"positive_scores": torch.full((2, 3), -torch.inf)}, "`positive_scores`: expected finite values only"),
        ({"steepness": 0.0}, "`steepness`: expected a finite number > 0"),
        ({"steepness": math.nan}, "`steepness`: expected a finite number > 0"),
        ({"network": "bitonic"}, "`network`: expected 'odd_even', or lists whose length is a power of two"),
        ({"reduction": "max"}, "`reduction`: expected one of"),
    ],
)
def test_bad_input_is_refused_in_one_line(spoil: dict[str, object], message: str) -> None:
    call = {"negative_scores": torch.zeros(2, 3), "positive_scores": torch.zeros(2, 2)} | spoil
    with pytest.raises(ValueError, match="argument " + message) as caught:
        group_ordering_loss(**call)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="argument `negative_scores`: expected a tensor, got list"):
        group_ordering_loss([0.1], torch.zeros(1))  # type: ignore[arg-type]
