"""Two ranks equal one process: the mean over ranks of the values, and DDP's average of the gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.conformance.subjects import CLASSES, DIMENSION, instance, objective_types
from tests.ranks import run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scorecraft.core import Objective, across_ranks, tiled

TYPES = objective_types()
SIZES = {"even": (16, 16), "uneven": (9, 24)}
WAYS = ("dense", "tiled", "reference", "weights", "sum")


class Model(nn.Module):
    """A linear encoder and an objective, so that DDP averages the gradients of both."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.encoder = nn.Linear(DIMENSION, DIMENSION, bias=False).double()
        nn.init.eye_(self.encoder.weight)
        self.objective = objective

    def forward(self, x: Tensor, labels: Tensor, **call: Tensor) -> Tensor:
        if "reference" in call:
            call["reference"] = self.encoder(call["reference"])
        return self.objective(self.encoder(x), labels, **call)


def wrapped(objective: Objective, way: str) -> Objective:
    if way == "sum":
        return tiled(0.5 * objective, block=5) + 0.5 * objective
    return objective if way == "dense" else tiled(objective, block=5)


def call_of(way: str, part: slice) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    total = sum(SIZES["even"]) + 1
    if way == "reference":
        reference = torch.randn(total, DIMENSION, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, CLASSES, (total,), generator=generator)
        return {"reference": reference[part], "reference_labels": labels[part]}
    if way == "weights":
        return {"weights": torch.rand(total, generator=generator, dtype=torch.float64)[part]}
    return {}


def compare(rank: int, folder: str) -> None:
    errors: dict[str, list[float]] = {}
    for sizes_name, sizes in SIZES.items():
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(sum(sizes), DIMENSION, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, CLASSES, (sum(sizes),), generator=generator)
        part = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], sum(sizes))
        for kind in TYPES:
            for way in WAYS:
                if way == "weights" and not getattr(kind, "takes_weights", True):
                    continue
                plain = Model(instance(kind))
                expected = plain(x, labels, **call_of(way, slice(0, sum(sizes))))
                expected.backward()
                expected = expected.detach()
                model = DistributedDataParallel(Model(across_ranks(wrapped(instance(kind), way))))
                value = model(x[part], labels[part], **call_of(way, part))
                value.backward()
                mean = value.detach().clone()
                dist.all_reduce(mean)
                pairs = zip(model.parameters(), plain.parameters(), strict=True)
                gradient_error = max(float((mine.grad - theirs.grad).abs().max()) for mine, theirs in pairs)
                errors[f"{kind.__name__} {way} {sizes_name}"] = [abs(float(mean / 2 - expected)), gradient_error]
    if rank == 0:
        Path(folder, "errors.json").write_text(json.dumps(errors))


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(compare, str(folder))
    return json.loads((folder / "errors.json").read_text())


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_two_ranks_equal_one_process(
    errors: dict[str, list[float]], kind: type[Objective], way: str, sizes: str
) -> None:
    if way == "weights" and not getattr(kind, "takes_weights", True):
        pytest.skip("a function of batch totals takes no per-example weights")
    value_error, gradient_error = errors[f"{kind.__name__} {way} {sizes}"]
    assert value_error < 1e-11
    assert gradient_error < 1e-10
