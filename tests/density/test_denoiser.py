"""Clean estimates behind networks of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.density.mixtures import EVERY, START, denoiser
from torch import Tensor, nn

from scorecraft.density.denoiser import (
    Flow,
    NetworkDenoiser,
    Prediction,
    Variables,
    VarianceExploding,
    VariancePreserving,
)

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
PRESERVING = VariancePreserving((1 - BETAS).cumprod(0))
SIGMAS = torch.tensor([0.1, 1.3, 9.0], dtype=torch.float64)


def network(prediction: Prediction, variables: Variables | None) -> Any:
    """What a perfect network of this kind predicts, told sigma beside its time, which is checked."""

    def predict(given: Tensor, time: Tensor, *, told: Tensor, parts: Tensor) -> Tensor:
        sigma, level = told, told[:, None]
        if variables is None:
            torch.testing.assert_close(time, sigma.log() / 4)
            total = (level.square() + 0.25).sqrt()
            x = given * total
            clean = denoiser(x, sigma, parts=parts)
            return (clean - 0.25 / total.square() * x) / (level * 0.5 / total)
        torch.testing.assert_close(time, variables.time(sigma))
        alpha = variables.alpha(sigma)[:, None]
        x = given / alpha
        clean = denoiser(x, sigma, parts=parts)
        noise = (x - clean) / level
        by_name = {
            "epsilon": noise,
            "sample": clean,
            "v": alpha * noise - (1 - alpha.square()).sqrt() * clean,
            "velocity": noise - clean,
        }
        return by_name[prediction]

    return predict


@pytest.mark.parametrize(
    ("prediction", "variables"),
    [
        ("epsilon", PRESERVING),
        ("epsilon", VarianceExploding()),
        ("epsilon", Flow()),
        ("v", PRESERVING),
        ("sample", PRESERVING),
        ("sample", Flow(1000)),
        ("velocity", Flow(1000)),
        ("edm", None),
    ],
)
def test_every_prediction_gives_the_same_clean_sample(prediction: Prediction, variables: Variables | None) -> None:
    model = NetworkDenoiser(network(prediction, variables), prediction=prediction, variables=variables)
    x = START * (1 + SIGMAS[:, None])
    found = model(x, SIGMAS, told=SIGMAS, parts=EVERY)
    torch.testing.assert_close(found, denoiser(x, SIGMAS, parts=EVERY), rtol=0, atol=1e-12)


def test_steps_of_a_discrete_schedule() -> None:
    assert torch.equal(PRESERVING.time(PRESERVING.sigmas).round(), torch.arange(1000, dtype=torch.float64))
    torch.testing.assert_close(PRESERVING.time(PRESERVING.sigmas), torch.arange(1000, dtype=torch.float64))
    between = (PRESERVING.sigmas[3] * PRESERVING.sigmas[4]).sqrt()[None]
    torch.testing.assert_close(PRESERVING.time(between), torch.tensor([3.5], dtype=torch.float64))
    outside = torch.tensor([1e-6, 1e6], dtype=torch.float64)
    assert PRESERVING.time(outside).tolist() == [0, 999]
    torch.testing.assert_close(PRESERVING.alpha(PRESERVING.sigmas), PRESERVING.alphas_cumprod.sqrt())


def test_flow_times() -> None:
    times = torch.tensor([0.25, 0.5, 0.75])
    sigmas = times / (1 - times)
    torch.testing.assert_close(Flow().time(sigmas), times)
    torch.testing.assert_close(Flow(1000).time(sigmas), 1000 * times)
    torch.testing.assert_close(Flow().alpha(sigmas), 1 - times)


def test_a_half_precision_network_is_divided_in_full_precision() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, given: Tensor, time: Tensor) -> Tensor:
            assert given.dtype == torch.bfloat16
            assert time.dtype == torch.float32
            return given * self.weight

    model = NetworkDenoiser(Half(), prediction="epsilon", variables=PRESERVING)
    found = model(torch.ones(2, 3, dtype=torch.bfloat16), torch.tensor(10.0))
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def test_an_output_with_a_sample_is_read() -> None:
    class Output:
        def __init__(self, sample: Tensor) -> None:
            self.sample = sample

    model = NetworkDenoiser(lambda given, time: Output(given), prediction="sample", variables=VarianceExploding())
    assert torch.equal(model(START, torch.tensor(2.0)), START)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"prediction": "noise", "variables": PRESERVING}, "argument `prediction`"),
        ({"prediction": "epsilon"}, "argument `variables`: expected those of the network"),
        ({"prediction": "edm", "variables": PRESERVING}, "argument `variables`: expected none beside edm"),
        ({"prediction": "v", "variables": Flow()}, "argument `variables`: expected VariancePreserving beside v"),
        ({"prediction": "velocity", "variables": PRESERVING}, "argument `variables`: expected Flow beside velocity"),
        ({"prediction": "edm", "sigma_data": 0}, "argument `sigma_data`"),
    ],
)
def test_what_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        NetworkDenoiser(nn.Identity(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schedule", [[0.5, 0.6], [1.0, 0.5], [0.5, 0.0], [[0.5]]])
def test_refused_schedules(schedule: list[float]) -> None:
    with pytest.raises(ValueError, match="argument `alphas_cumprod`: expected a strictly falling row"):
        VariancePreserving(torch.tensor(schedule))
