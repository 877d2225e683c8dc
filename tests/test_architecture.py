"""The house rules that can be read off the source: imports point down only, nothing is unpickled."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import scorecraft
from scorecraft.core.paper import ROOMS

PACKAGE = Path(scorecraft.__file__).parent
HOSTS = {
    "accelerate",
    "datasets",
    "diffusers",
    "peft",
    "pytorch_metric_learning",
    "sentence_transformers",
    "torchmetrics",
    "transformers",
    "trl",
}
NEVER = {"torchvision", "timm", "pickle", "cloudpickle", "dill", "shelve", "marshal"}
UNPICKLING = {("torch", "load"), ("torch", "save"), ("joblib", "load"), ("joblib", "dump")}

# A part may import itself and what is listed; the families differ only in that none is listed for another.
BELOW = {
    "core": set(),
    **{room: {"core"} for room in ROOMS},
    "integrations": {"core", *ROOMS},
    "studies": {"core", *ROOMS, "integrations"},
    "catalog": {"core", *ROOMS, "integrations", "studies"},
    "bench": {"core", *ROOMS, "integrations", "studies"},
    "comparisons": {"core", *ROOMS, "integrations", "studies", "catalog"},
    "cli": {"core", *ROOMS, "integrations", "studies", "catalog", "comparisons", "bench"},
    "app": {"core", *ROOMS, "integrations", "studies", "catalog", "comparisons", "bench"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    """The first folder below the package, or "" for its own files."""
    inside = file.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else ""


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file, by its full name."""
    package = ("scorecraft", *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            yield module
            if module == "scorecraft":
                yield from (f"scorecraft.{name.name}" for name in node.names)


def ident(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


@pytest.mark.parametrize("file", FILES, ids=ident)
def test_imports_point_down(file: Path) -> None:
    part = part_of(file)
    if not part:
        return
    assert part in BELOW, f"{part}/ is no room of the house: say in this test what it may import"
    for module in imports(file):
        names = module.split(".")
        if names[0] != "scorecraft" or len(names) == 1:
            continue
        target = names[1]
        if target in BELOW:
            assert target == part or target in BELOW[part], (
                f"{ident(file)} imports {module}, which is not below {part}/"
            )


@pytest.mark.parametrize("file", [file for file in FILES if part_of(file) == "core"], ids=ident)
def test_core_needs_torch_and_jaxtyping_only(file: Path) -> None:
    allowed = {"scorecraft", "torch", "jaxtyping", *sys.stdlib_module_names}
    assert {module.partition(".")[0] for module in imports(file)} <= allowed


@pytest.mark.parametrize("file", FILES, ids=ident)
def test_hosts_are_met_in_integrations_only(file: Path) -> None:
    used = {module.partition(".")[0] for module in imports(file)}
    assert not used & NEVER
    if part_of(file) in {"core", *ROOMS, "catalog", "cli", ""}:
        assert not used & HOSTS


@pytest.mark.parametrize("file", FILES, ids=ident)
def test_nothing_is_pickled(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in UNPICKLING, f"{ident(file)}:{node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False, f"{ident(file)}:{node.value.lineno}"
