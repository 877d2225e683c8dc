"""What a trial's numbers depend on, as hashes: the source it runs and the configuration it is told.

The source of a study is its own module and every module of this package that it imports, directly or through others.
Results of two different fingerprints are never mixed in one run.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scorecraft.studies.study import Experiment, Scale

_PACKAGE = "scorecraft"
_ROOT = Path(__file__).resolve().parents[1]

Fingerprint = dict[str, dict[str, dict[str, Any]]]
"""`{"code": {module: {"sha256": ...}}, "configuration": {part: settings}, "versions": {"torch": {"version": ...}}}`"""


def fingerprint(experiment: Experiment, scale: Scale) -> Fingerprint:
    """The fingerprint of a study or comparison at a scale, in a form that JSON keeps unchanged."""
    return {
        "code": {name: {"sha256": digest} for name, digest in source_hashes(experiment.trial.__module__).items()},
        "configuration": {name: dict(settings) for name, settings in experiment.configuration(scale).items()},
        "versions": {"torch": {"version": importlib.metadata.version("torch")}},
    }


def differences(recorded: Mapping[str, Mapping[str, object]], current: Fingerprint) -> list[str]:
    """What two fingerprints disagree on, one short phrase each; empty when they agree."""
    phrases = []
    for kind, parts in current.items():
        before = recorded.get(kind, {})
        for name in sorted({*parts, *before}):
            old, new = before.get(name), parts.get(name)
            if old == new:
                continue
            if kind == "code":
                change = "added" if old is None else "no longer used" if new is None else "changed"
                phrases.append(f"{name} {change}")
            elif not isinstance(old, Mapping) or new is None:
                phrases.append(f"{name} {'removed' if new is None else 'added'}")
            else:
                phrases += [
                    f"{name}: {key} {old.get(key, 'unset')} -> {new.get(key, 'unset')}"
                    for key in sorted({*old, *new})
                    if old.get(key) != new.get(key)
                ]
    return phrases


def source_hashes(module: str) -> dict[str, str]:
    """SHA-256 of the source of a module and of every module of this package it reaches by imports, by name."""
    hashes: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in hashes or path is None:
            continue
        text = path.read_bytes()
        hashes[name] = hashlib.sha256(text).hexdigest()
        waiting += _imports(name, path, ast.parse(text, str(path)))
    return dict(sorted(hashes.items()))


def _source(module: str) -> Path | None:
    """The file of a module: of this package by its place, of a study defined elsewhere by where it was loaded from."""
    if module != _PACKAGE and not module.startswith(_PACKAGE + "."):
        loaded = getattr(sys.modules.get(module), "__file__", None)
        return Path(loaded) if loaded else None
    stem = _ROOT.joinpath(*module.split(".")[1:])
    for path in (stem / "__init__.py", stem.with_suffix(".py")):
        if path.is_file() and path != _ROOT / ".py":
            return path
    return None


def _imports(module: str, path: Path, tree: ast.Module) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*base, origin] if origin else base)
            if _ours(origin):
                yield origin
                for alias in node.names:
                    if _source(f"{origin}.{alias.name}") is not None:
                        yield f"{origin}.{alias.name}"
                    elif _is_lazy(origin):
                        yield from _whole(origin)


def _ours(module: str) -> bool:
    return module == _PACKAGE or module.startswith(_PACKAGE + ".")


def _is_lazy(module: str) -> bool:
    """Whether a package hands out names through `__getattr__`, so that its imports cannot be read off its source."""
    path = _source(module)
    return path is not None and path.name == "__init__.py" and "def __getattr__" in path.read_text(encoding="utf-8")


def _whole(package: str) -> Iterator[str]:
    folder = _ROOT.joinpath(*package.split(".")[1:])
    for path in folder.rglob("*.py"):
        parts = path.relative_to(_ROOT).with_suffix("").parts
        yield ".".join([_PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)])
