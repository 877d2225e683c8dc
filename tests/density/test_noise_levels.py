"""Noise levels."""

from __future__ import annotations

import pytest
import torch

from scorecraft.density.denoiser import VariancePreserving
from scorecraft.density.noise_levels import flow_levels, karras_levels, preserving_levels


def test_karras() -> None:
    levels = karras_levels(18)
    assert levels.shape == (19,)
    for index, expected in {0: 80, 1: 57.585984721, 6: 8.4009353091, 8: 3.2568215198, 17: 0.002, 18: 0}.items():
        assert levels[index].item() == pytest.approx(expected, rel=1e-9)
    assert karras_levels(1).tolist() == [pytest.approx(80), 0]


def test_the_tail_of_karras_is_karras() -> None:
    levels = karras_levels(18)
    torch.testing.assert_close(karras_levels(11, sigma_max=float(levels[7])), levels[7:], rtol=1e-12, atol=0)


def test_labels_of_a_discrete_schedule() -> None:
    variables = VariancePreserving(torch.linspace(0.99, 0.01, 1000, dtype=torch.float64))
    levels = preserving_levels(3, variables)
    assert levels.tolist() == [*variables.sigmas[[666, 333, 0]].tolist(), 0]
    with pytest.raises(ValueError, match="argument `steps`: expected at most 1000"):
        preserving_levels(1001, variables)


def test_flow() -> None:
    levels = flow_levels(3)
    torch.testing.assert_close(levels / (1 + levels), torch.tensor([0.75, 0.5, 0.25, 0], dtype=torch.float64))
    shifted = flow_levels(3, shift=3)
    torch.testing.assert_close(shifted, 3 * levels)  # the shift of times is a factor of sigmas


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"sigma_min": 0}, "sigma_min"),
        ({"sigma_max": 0.001}, "sigma_max"),
        ({"rho": 0}, "rho"),
        ({"steps": 0}, "steps"),
    ],
)
def test_what_is_refused(options: dict[str, float], argument: str) -> None:
    with pytest.raises(ValueError, match=f"argument `{argument}`"):
        karras_levels(**{"steps": 3, **options})  # type: ignore[arg-type]
