"""`doctor`: what is installed, what it runs on, and what is missing."""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import typer
from rich.table import Table
from rich.text import Text

import scorecraft
from scorecraft.catalog.records import checkout, results_folder
from scorecraft.cli import FAILED
from scorecraft.cli.terminal import print_json, stdout

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(\[[^]]*\])?\s*(>=\s*(?P<least>[\d.]+))?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w.-]+)['"]""")
_BUNDLES = ("all",)


@dataclass(frozen=True, slots=True)
class Package:
    """A requirement, and what is there of it."""

    name: str
    extra: str | None
    least: str | None
    installed: str | None

    @property
    def state(self) -> str:
        """`ok`, `missing` or `too old`."""
        if self.installed is None:
            return "missing"
        return "too old" if self.least and _numbers(self.installed) < _numbers(self.least) else "ok"


def doctor(as_json: bool) -> None:
    """Print the report; exit code 1 when something that scorecraft cannot do without is not there."""
    packages = list(_packages())
    extras = dict.fromkeys(package.extra for package in packages if package.extra)
    missing = {
        extra: [package for package in packages if package.extra == extra and package.state != "ok"] for extra in extras
    }
    broken = [package for package in packages if package.extra is None and package.state != "ok"]
    parts = [
        {"extra": extra, "packages": [package.name for package in lacking], "install": _install_line(extra)}
        for extra, lacking in missing.items()
        if lacking
    ]
    root = checkout()
    facts = {
        "scorecraft": scorecraft.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "checkout": None if root is None else str(root),
        "results": str(results_folder()),
        "devices": _devices(),
    }
    if as_json:
        rows = [{**asdict(package), "state": package.state} for package in packages]
        print_json({**facts, "packages": rows, "missing": parts})
    else:
        _print_report(facts, packages, parts)
    if broken:
        _refuse(broken)


def _print_report(facts: dict[str, object], packages: list[Package], parts: list[dict[str, object]]) -> None:
    out = stdout()
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        for text in value if isinstance(value, list) else [value]:
            if text is not None:
                grid.add_row(Text(name, "dim"), Text(str(text)))
    out.print(grid)
    out.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("package", "installed", "needed", "for", ""):
        table.add_column(heading, no_wrap=True)
    for package in packages:
        needed = f">= {package.least}" if package.least else ""
        state = Text(package.state, "green" if package.state == "ok" else "yellow" if package.extra else "red")
        table.add_row(package.name, package.installed or "", needed, package.extra or "everything", state)
    out.print(table)
    out.print()
    if not parts:
        out.print("All optional parts are installed.")
    for part in parts:
        names = ", ".join(part["packages"]) if isinstance(part["packages"], list) else ""
        out.print(Text(f"Optional part `{part['extra']}` lacks {names}. To install it:"))
        out.print(Text(f"    {part['install']}"), soft_wrap=True)


def _refuse(broken: list[Package]) -> NoReturn:
    names = ", ".join(f"{package.name} ({package.state})" for package in broken)
    typer.echo(f"scorecraft: cannot work without {names}: {_install_line(None)}", err=True)
    raise typer.Exit(FAILED)


def _packages() -> Iterator[Package]:
    """The direct requirements of the installed distribution: base first, then by extra, each as it is there now."""
    seen = set()
    for line in metadata.requires("scorecraft") or []:
        requirement, _, condition = line.partition(";")
        found = _REQUIREMENT.match(requirement.strip())
        extra = _EXTRA.search(condition)
        part = extra.group(1) if extra else None
        if found is None or part in _BUNDLES or found["name"] == "scorecraft" or (found["name"], part) in seen:
            continue
        seen.add((found["name"], part))
        yield Package(found["name"], part, found["least"], _installed(found["name"]))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _install_line(extra: str | None) -> str:
    part, root = f"[{extra}]" if extra else "", checkout()
    if root is None:
        return f'pip install "scorecraft{part}"'
    place = "" if Path.cwd() == root else f"cd {shlex.quote(str(root))} && "
    return f'{place}pip install -c constraints.txt -e ".{part}"'


def _devices() -> list[str]:
    import torch

    from scorecraft.studies.provenance import cpu_model

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [f"cpu: {cpu_model()}, {cores} cores, {torch.get_num_threads()} torch threads"]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index}: {card.name}, {card.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        devices.append("mps: Apple graphics")
    return devices


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing with a lower bound."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].strip(".").split(".") if part)  # type: ignore[index]
