"""The card of a paper, and the way from any object of this library to the papers behind it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

ROOMS = ("similarity", "relevance", "preference", "probability", "importance", "density")
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?")
_LATEX = str.maketrans({character: "\\" + character for character in "&%$#_"})


@dataclass(frozen=True, slots=True)
class Paper:
    """One paper: what the catalogue shows of it, and what is cited.

    Every method module holds its card as `PAPER = Paper(...)`.

    Args:
        slug: lower-case name with underscores, unique in the catalogue.
        title: as printed.
        arxiv: arXiv identifier without version, such as `1904.06627`.
        date: ISO date of the listing, or `YYYY-MM` where only the month is known.
        room: the family it belongs to, one of `ROOMS`.
        kind: what it contributes ("loss + pair miner").
        authors: in BibTeX form ("Last, First and Last, First"), empty where not recorded.
        venue: where it was published, such as "CVPR 2019".
        api: dotted names of its public objects.
        hosts: the libraries it plugs into.

    Raises:
        ValueError: a field that is not of the form above.
    """

    slug: str
    title: str
    arxiv: str
    date: str
    room: str
    kind: str
    authors: str = ""
    venue: str = ""
    api: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.slug):
            raise ValueError(f"argument `slug`: expected lower-case words joined by underscores, got {self.slug!r}")
        if not re.fullmatch(r"\d{4}\.\d{4,5}", self.arxiv):
            raise ValueError(f"argument `arxiv`: expected an identifier such as 1904.06627, got {self.arxiv!r}")
        if not _DATE.fullmatch(self.date):
            raise ValueError(f"argument `date`: expected YYYY-MM-DD or YYYY-MM, got {self.date!r}")
        if self.room not in ROOMS:
            raise ValueError(f"argument `room`: expected one of {', '.join(ROOMS)}, got {self.room!r}")

    @property
    def url(self) -> str:
        """The paper's page on arXiv."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def bibtex(self) -> str:
        """The BibTeX entry, made of nothing but the facts on this card."""
        fields = {
            "author": self.authors.translate(_LATEX),
            "title": "{" + self.title.translate(_LATEX) + "}",
            "year": self.date[:4],
            "eprint": self.arxiv,
            "archivePrefix": "arXiv",
            "url": self.url,
            "note": self.venue.translate(_LATEX),
        }
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
        return "\n".join([f"@misc{{{self.slug}{self.date[:4]},", *lines, "}"])


def papers_of(thing: object) -> list[Paper]:
    """The papers behind an objective, a class, a function or a composition of objectives, each once.

    A sum is followed into its `objectives`, a wrapper into its `objective` (one, a list or a mapping); everything else
    leads to the `PAPER` of the module that defines it, or of a package around that module. For a class the bases count
    as well, so that a subclass written elsewhere still cites what it builds on.
    """
    return list(dict.fromkeys(_papers(thing)))


def citation(thing: object) -> str:
    """BibTeX for the papers behind `thing`: one entry each, separated by a blank line.

        >>> print(citation(loss + 0.5 * tcm))  # doctest: +SKIP

    Args:
        thing: an objective, also wrapped or summed; or any class or function of this library.

    Raises:
        ValueError: there is no paper behind it.
    """
    papers = papers_of(thing)
    if not papers:
        name = getattr(thing, "__qualname__", type(thing).__qualname__)
        raise ValueError(
            f"argument `thing`: expected an object that implements a paper, got `{name}`, which cites none"
        )
    return "\n\n".join(paper.bibtex for paper in papers)


def _papers(thing: object) -> Iterator[Paper]:
    if not isinstance(thing, type):
        for part in (*_parts(getattr(thing, "objectives", None)), *_parts(getattr(thing, "objective", None))):
            yield from _papers(part)
    if inspect.isroutine(thing):
        origins = [thing.__module__]
    else:
        owner = thing if isinstance(thing, type) else type(thing)
        origins = [base.__module__ for base in owner.__mro__]
    for origin in origins:
        if (paper := _nearest_card(origin)) is not None:
            yield paper
            return


def _parts(inner: object) -> Iterable[object]:
    """What a composition holds: one object, several, several by name, or nothing."""
    if isinstance(inner, (Mapping, nn.ModuleDict)):
        return inner.values()
    if isinstance(inner, (Sequence, nn.ModuleList)):
        return inner
    return () if inner is None else (inner,)


def _nearest_card(module: str | None) -> Paper | None:
    """`PAPER` of a module, else of the closest package around it."""
    while module:
        card = getattr(sys.modules.get(module), "PAPER", None)
        if isinstance(card, Paper):
            return card
        module = module.rpartition(".")[0]
    return None
