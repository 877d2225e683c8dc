"""What is promised about installing: the quick start, the pinned set, the import time, the public names."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import scorecraft

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
QUICKSTART = (
    "pip install -c constraints.txt -e . && scorecraft reproduce multi-similarity",
    'pip install -c constraints.txt -e ".[dev]" && pytest',
)


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, _, version in pins}


def requirements(extra: str | None = None) -> list[str]:
    return PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]


def test_quickstart_is_what_it_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", readme, flags=re.MULTILINE)
    (quickstart,) = [part for part in section if part.startswith("Quickstart")]
    blocks = re.findall(r"^```bash\n(.*?)^```", quickstart, flags=re.MULTILINE | re.DOTALL)
    assert tuple(block.strip() for block in blocks[:2]) == QUICKSTART


def test_ci_runs_the_second_quickstart_line() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for command in QUICKSTART[1].split(" && "):
        assert command in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("extra", [None, *PROJECT["optional-dependencies"]])
def test_everything_that_is_required_is_pinned(extra: str | None) -> None:
    names = [normal(re.match(r"[\w.-]+", line)[0]) for line in requirements(extra)]  # type: ignore[index]
    assert {name for name in names if name != "scorecraft"} <= pinned().keys()


def test_pins_are_plain_versions_of_allowed_packages() -> None:
    pins = pinned()
    assert pins["torch"] == "2.13.0"
    assert not {"torchvision", "timm", "scorecraft"} & pins.keys()
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in pins.values())


def test_torch_has_no_upper_bound() -> None:
    (torch,) = [line for line in requirements() if line.startswith("torch")]
    assert re.fullmatch(r"torch>=[\d.]+", torch)


def test_installed_version() -> None:
    assert metadata.version("scorecraft") == scorecraft.__version__


def test_typed() -> None:
    assert (Path(scorecraft.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", scorecraft.__all__)
def test_public_names_are_there(name: str) -> None:
    value = getattr(scorecraft, name)
    assert isinstance(value, str) if name == "__version__" else callable(value)
    assert name in dir(scorecraft)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(scorecraft.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == scorecraft._HOME
    assert {*seen, "__version__"} == {*scorecraft.__all__}


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'MultiSimilarityLos'"):
        scorecraft.MultiSimilarityLos  # noqa: B018


def seconds(statement: str) -> float:
    """Processor time of a fresh interpreter that runs a statement; other processes do not add to it."""
    program = (
        f"import resource\n{statement}\nu = resource.getrusage(resource.RUSAGE_SELF)\nprint(u.ru_utime + u.ru_stime)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(run.stdout)


@pytest.mark.skipif(importlib.util.find_spec("resource") is None, reason="needs the resource module of POSIX systems")
def test_import_costs_little() -> None:
    assert min(seconds("import scorecraft") for _ in range(2)) < 0.2
    # In turns: a busy machine slows both down alike.
    turns = [(seconds("import scorecraft; scorecraft.MultiSimilarityLoss"), seconds("import torch")) for _ in range(4)]
    ours, torch = (min(times) for times in zip(*turns, strict=True))
    assert ours <= torch + 0.3


def test_import_is_lazy() -> None:
    program = "import sys, scorecraft; print('torch' in sys.modules or 'typer' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
