"""Collecting the cards, and finding one among them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from types import ModuleType
from typing import TypedDict

import scorecraft
from scorecraft.catalog.planned import PLANNED
from scorecraft.catalog.records import study_record
from scorecraft.core.paper import ROOMS, Paper


class UnknownPaper(ValueError):
    """A name that no paper of the catalogue has."""


class Row(TypedDict):
    """What `scorecraft list --json` says about one paper; scripts rely on it."""

    slug: str
    title: str
    arxiv: str
    date: str
    room: str
    kind: str
    api: list[str]
    hosts: list[str]
    status: str
    verdict: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A paper of the catalogue."""

    paper: Paper
    done: bool

    @property
    def status(self) -> str:
        """`done`: it can be used and reproduced; `planned`: there is only its card."""
        return "done" if self.done else "planned"

    @property
    def verdict(self) -> str | None:
        """What its study recorded at desk scale: `holds`, `fails` or `inconclusive`; None before that."""
        record = study_record(self.paper.slug)
        return None if record is None else record["verdict"]

    def row(self) -> Row:
        """The entry as plain data."""
        paper = self.paper
        return Row(
            slug=paper.slug,
            title=paper.title,
            arxiv=paper.arxiv,
            date=paper.date,
            room=paper.room,
            kind=paper.kind,
            api=list(paper.api),
            hosts=list(paper.hosts),
            status=self.status,
            verdict=self.verdict,
        )


@cache
def entries() -> tuple[Entry, ...]:
    """All papers, in the order of the rooms, by date within a room."""
    return collect(finished_papers(), PLANNED)


def collect(finished: Iterable[Paper], planned: Iterable[Paper]) -> tuple[Entry, ...]:
    """Put cards together; a finished paper supersedes the planned card of the same slug.

    Raises:
        ValueError: two different finished cards share a slug.
    """
    found = {paper.slug: Entry(paper, done=False) for paper in planned}
    for paper in finished:
        known = found.get(paper.slug)
        if known is not None and known.done and known.paper != paper:
            raise ValueError(f"two papers have the slug `{paper.slug}`: {known.paper.title!r} and {paper.title!r}")
        found[paper.slug] = Entry(paper, done=True)
    return tuple(sorted(found.values(), key=lambda entry: (ROOMS.index(entry.paper.room), entry.paper.date)))


def find(name: str) -> Entry:
    """The entry of a slug; hyphens and underscores are the same, and case does not matter.

    Raises:
        UnknownPaper: there is none; the message names the nearest slugs.
    """
    slug = name.strip().lower().replace("-", "_")
    known = {entry.paper.slug: entry for entry in entries()}
    if slug in known:
        return known[slug]
    near = get_close_matches(slug, known, n=3, cutoff=0.5)
    quoted = " or ".join(f"`{other}`" for other in near)
    hint = f"did you mean {quoted}?" if near else "`scorecraft list` names them all"
    raise UnknownPaper(f"unknown paper `{name}`: {hint}")


def search(text: str) -> list[Entry]:
    """The entries in which every word of `text` occurs, those that have it in slug or title first."""
    words = text.lower().split()
    hits: list[tuple[int, int, Entry]] = []
    for position, entry in enumerate(entries()):
        paper = entry.paper
        name = f"{paper.slug} {paper.slug.replace('_', ' ')} {paper.title}".lower()
        facts = (paper.kind, paper.room, paper.venue, paper.authors, paper.arxiv, *paper.api, *paper.hosts)
        rest = " ".join(facts).lower()
        if words and all(word in name or word in rest for word in words):
            hits.append((-sum(word in name for word in words), position, entry))
    return [entry for _, _, entry in sorted(hits, key=lambda hit: hit[:2])]


def finished_papers() -> Iterator[Paper]:
    """The `PAPER` of every module of the families."""
    for module in family_modules():
        card = getattr(module, "PAPER", None)
        if isinstance(card, Paper):
            yield card


def family_modules() -> Iterator[ModuleType]:
    """Every module of the six families, imported."""
    for room in pkgutil.iter_modules(scorecraft.__path__, "scorecraft."):
        if room.ispkg and room.name.rpartition(".")[2] in ROOMS:
            package = importlib.import_module(room.name)
            yield package
            for found in pkgutil.walk_packages(package.__path__, room.name + "."):
                yield importlib.import_module(found.name)
