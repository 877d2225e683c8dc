"""What the conformance matrix is run on: the members of every family, found by their types, never named."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

import scorecraft.core.likelihoods
import scorecraft.core.list_losses
import scorecraft.core.preference_losses
import scorecraft.preference
import scorecraft.relevance
import scorecraft.similarity
from scorecraft.core import (
    BatchObjective,
    LikelihoodObjective,
    ListObjective,
    Objective,
    PreferenceObjective,
    RowObjective,
)

FAMILIES = (scorecraft.similarity, scorecraft.relevance, scorecraft.preference)
CLASSES, DIMENSION = 7, 6
T = TypeVar("T")


def members_of_families(*kinds: type) -> list[type]:
    """All classes of these kinds that the families define, in a stable order."""
    found = {
        member
        for family in FAMILIES
        for module in _modules(family.__name__)
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, kinds) and member.__module__ == module.__name__
    }
    return sorted(found, key=lambda kind: kind.__name__)


def objective_types() -> list[type[Objective]]:
    """All objectives of the families."""
    return members_of_families(RowObjective, BatchObjective)


def list_objective_types() -> list[type[ListObjective]]:
    """All list objectives of the families and the classical ones of the core."""
    return _with_classical(ListObjective, scorecraft.core.list_losses)


def preference_types() -> list[type[PreferenceObjective]]:
    """All preference objectives of the families and the classical ones of the core."""
    return _with_classical(PreferenceObjective, scorecraft.core.preference_losses)


def likelihood_types() -> list[type[LikelihoodObjective]]:
    """All likelihood objectives of the families and the classical one of the core."""
    return _with_classical(LikelihoodObjective, scorecraft.core.likelihoods)


def _with_classical(contract: type[T], classical: ModuleType) -> list[type[T]]:
    found = members_of_families(contract)
    found += [
        member
        for member in vars(classical).values()
        if isinstance(member, type) and issubclass(member, contract) and member.__name__.endswith("Loss")
    ]
    return sorted(found, key=lambda kind: kind.__name__)


def instance(kind: type[Objective]) -> Objective:
    """A float64 instance in evaluation of the default hyper-parameters."""
    return kind.example(classes=CLASSES, dimension=DIMENSION).double()


def _modules(package: str) -> Iterator[ModuleType]:
    root = importlib.import_module(package)
    yield root
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        yield importlib.import_module(info.name)
