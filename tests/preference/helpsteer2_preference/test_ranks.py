"""Two ranks with uneven batches give the loss and the gradient of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.ranks import run_ranks
from torch import Tensor

from scorecraft.core import SeparableObjective, across_ranks
from scorecraft.preference.helpsteer2_preference import (
    MarginBradleyTerryLoss,
    MaskedRegressionLoss,
    ScaledBradleyTerryLoss,
)

LOSSES: dict[str, SeparableObjective] = {
    "regression": MaskedRegressionLoss(),
    "margin": MarginBradleyTerryLoss(),
    "scaled": ScaledBradleyTerryLoss(),
    "scaled by weights": ScaledBradleyTerryLoss(normalize="weights"),
    "half": ScaledBradleyTerryLoss(ties="half", normalize="weights"),
}


def found(name: str, rows: slice, *, ranks: bool) -> Tensor:
    """Loss and gradient over nine rows, of which the first two hold no rating and only ties."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(9, 3, generator=generator, dtype=torch.float64).requires_grad_()
    ratings = torch.randint(0, 5, (9, 3), generator=generator).double()
    ratings[torch.rand(9, 3, generator=generator) < 0.6] = -100
    ratings[:2] = -100
    strength = torch.tensor([0, 0, 1, 3, 0, 2, 2, 0, 1])
    loss = across_ranks(LOSSES[name]) if ranks else LOSSES[name]
    if name == "regression":
        value = loss(values[rows], ratings[rows])
    else:
        value = loss(values[rows, 0], values[rows, 1], strength=strength[rows])
    (pull,) = torch.autograd.grad(value, values)
    return torch.stack([value.detach(), *pull.flatten()])


def _on_ranks(rank: int, folder: Path) -> None:
    rows = slice(0, 2) if rank == 0 else slice(2, 9)
    for name in LOSSES:
        mean = found(name, rows, ranks=True) / dist.get_world_size()
        dist.all_reduce(mean)
        (folder / f"{name} {rank}.json").write_text(json.dumps(mean.tolist()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    run_ranks(_on_ranks, place)
    return place


@pytest.mark.parametrize("name", LOSSES)
def test_ranks_count_together(name: str, folder: Path) -> None:
    expected = found(name, slice(0, 9), ranks=False)
    assert expected[1:].any()
    for rank in range(2):
        values = json.loads((folder / f"{name} {rank}.json").read_text())
        torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected, rtol=0, atol=1e-12)
