"""The projection heads and the learned temperatures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.similarity.amcl import (
    CorrelationTemperature,
    MultiHeadProjector,
    PairTemperature,
    TemperatureStatistics,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_heads_are_separate_perceptrons() -> None:
    projector = MultiHeadProjector((6, 5, 4), heads=3).double()
    x = random(7, 6)
    outputs = projector(x)
    assert outputs.shape == (7, 3, 4)
    first, second = projector.layers
    for head in range(3):
        hidden = F.relu(x @ first.weight[head] + first.bias[head])
        torch.testing.assert_close(outputs[:, head], hidden @ second.weight[head] + second.bias[head])
    (gradient,) = torch.autograd.grad(outputs[:, 1].sum(), first.weight)
    assert gradient[1].any()
    assert not gradient[0].any()
    assert not gradient[2].any()


def test_outputs_have_unit_length_on_request() -> None:
    outputs = MultiHeadProjector((6, 4), heads=2, normalise=True).double()(random(7, 6))
    torch.testing.assert_close(outputs.norm(dim=-1), torch.ones(7, 2).double())


def test_a_generator_decides_the_initial_weights() -> None:
    def state(seed: int, kind: str) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        if kind == "heads":
            return list(MultiHeadProjector((6, 4), heads=2, generator=generator).parameters())
        return list(PairTemperature(6, generator=generator).parameters())

    for kind in ("heads", "temperature"):
        assert all(torch.equal(a, b) for a, b in zip(state(1, kind), state(1, kind), strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(state(1, kind), state(2, kind), strict=True))


def test_temperatures_are_symmetric_and_inside_their_interval() -> None:
    temperature = PairTemperature(4, hidden=9, features=5, low=0.1, high=0.7).double()
    x = F.normalize(random(8, 2, 4), dim=-1)
    tau = temperature(x, x)
    assert tau.shape == (2, 8, 8)
    torch.testing.assert_close(tau, tau.mT)
    assert ((tau > 0.1) & (tau < 0.7)).all()
    torch.testing.assert_close(temperature.paired(x, x), tau.diagonal(dim1=1, dim2=2).T)
    product = temperature.phi(x[2, 1]) @ temperature.phi(x[5, 1])
    torch.testing.assert_close(tau[1, 2, 5], 0.1 + 0.6 * product.sigmoid())


def test_the_network_is_one_relu_between_two_layers() -> None:
    shapes = [tuple(parameter.shape) for parameter in PairTemperature(16).parameters()]
    assert shapes == [(128, 16), (128,), (64, 128), (64,)]
    assert sum(isinstance(layer, nn.ReLU) for layer in PairTemperature(16).phi) == 1


def test_statistics_count_what_stands_at_the_bounds() -> None:
    found = TemperatureStatistics.of(torch.tensor([0.1, 0.1049, 0.2, 0.599, 0.6]), 0.1, 0.6)
    assert found.mean.item() == pytest.approx(0.32078, abs=1e-5)
    assert (found.at_low.item(), found.at_high.item()) == pytest.approx((0.4, 0.4))


def test_statistics_tell_positives_from_negatives() -> None:
    temperature = PairTemperature(4, low=0.1, high=1.1).double()
    first, second = F.normalize(random(2, 6, 3, 4), dim=-1)
    tau = temperature(first, second)
    own = torch.eye(6, dtype=torch.bool).expand(3, 6, 6)
    positives, negatives = temperature.statistics(first, second)
    torch.testing.assert_close(positives.mean, tau[own].mean())
    torch.testing.assert_close(negatives.mean, tau[~own].mean())
    assert not positives.mean.requires_grad
    with pytest.raises(ValueError, match="argument `second`: expected another view of at least two items"):
        temperature.statistics(first[:1], second[:1])


def test_a_correlation_starts_at_temperature_one() -> None:
    temperature = CorrelationTemperature(2, 5, low=0.05, high=2.0).double()
    torch.testing.assert_close(temperature(), torch.ones(2, 5, 5).double(), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        temperature.products.fill_(100.0)
    torch.testing.assert_close(temperature(), torch.full((2, 5, 5), 2.0).double())
    with pytest.raises(ValueError, match="argument `low`: expected an interval around 1"):
        CorrelationTemperature(2, 5, low=0.05, high=0.9)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MultiHeadProjector((6,)), "argument `widths`: expected at least two widths"),
        (lambda: MultiHeadProjector((6, 0)), "argument `widths`: expected an integer >= 1"),
        (lambda: MultiHeadProjector((6, 4), heads=0), "argument `heads`: expected an integer >= 1"),
        (lambda: MultiHeadProjector((6, 4))(torch.ones(3, 5)), "argument `features`: expected rows of width 6, got"),
        (lambda: MultiHeadProjector((6, 4))(torch.ones(6)), "argument `features`: expected a floating-point tensor"),
        (lambda: PairTemperature(0), "argument `width`: expected an integer >= 1"),
        (lambda: PairTemperature(4, hidden=0), "argument `hidden`: expected an integer >= 1"),
        (lambda: PairTemperature(4, low=0.0), "argument `low`: expected a finite number > 0"),
        (lambda: PairTemperature(4, low=0.5, high=0.4), "argument `high`: expected a number above low = 0.5, got 0.4"),
    ],
)
def test_bad_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
