"""What the conformance matrix is run on: every objective of every family, found by its type, never named."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from torch import Tensor

import scorecraft.similarity
from scorecraft.core import Batch, BatchObjective, Objective, RowObjective

FAMILIES = (scorecraft.similarity,)
CLASSES, DIMENSION = 7, 6


def objective_types() -> list[type[Objective]]:
    """All concrete objectives of the families, in a stable order."""
    found = {
        member
        for family in FAMILIES
        for module in _modules(family.__name__)
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, (RowObjective, BatchObjective)) and _is_home(member, module)
    }
    return sorted(found, key=lambda kind: kind.__name__)


def instance(kind: type[Objective]) -> Objective:
    """A float64 instance in evaluation of the default hyper-parameters."""
    return kind.example(classes=CLASSES, dimension=DIMENSION).double()


def dense_batch(objective: Objective, embeddings: Tensor, labels: Tensor) -> Batch:
    return objective.batch(embeddings, labels)


def _modules(package: str) -> Iterator[object]:
    root = importlib.import_module(package)
    yield root
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        yield importlib.import_module(info.name)


def _is_home(member: type, module: object) -> bool:
    return member.__module__ == getattr(module, "__name__", None)
