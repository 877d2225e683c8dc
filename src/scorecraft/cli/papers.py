"""`list`, `show` and `cite`."""

from __future__ import annotations

import inspect
from pkgutil import resolve_name
from typing import Any

from rich.table import Table
from rich.text import Text

from scorecraft.catalog import Entry, UnknownPaper, entries, find, search, study_record
from scorecraft.cli import UsageError
from scorecraft.cli.recording import require_checkout
from scorecraft.cli.terminal import print_json, stdout
from scorecraft.studies import registry

STYLES = {"holds": "green", "fails": "red", "inconclusive": "yellow"}


def lookup(name: str) -> Entry:
    """The entry of a paper named on the command line."""
    try:
        return find(name)
    except UnknownPaper as error:
        raise UsageError(str(error)) from error


def list_papers(room: str | None, text: str | None, as_json: bool) -> None:
    """Print the catalogue, or the part of it that is asked for."""
    found = [
        entry for entry in (entries() if text is None else search(text)) if room is None or entry.paper.room == room
    ]
    if as_json:
        print_json([entry.row() for entry in found])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("paper", "date", "room", "status", "verdict"):
        table.add_column(heading, no_wrap=True)
    table.add_column("title")
    for entry in found:
        paper, verdict = entry.paper, entry.verdict or ""
        table.add_row(
            paper.slug,
            paper.date,
            paper.room,
            entry.status,
            Text(verdict, STYLES.get(verdict, "")),
            Text(paper.title, no_wrap=True, overflow="ellipsis"),
            style=None if entry.done else "dim",
        )
    if found:
        stdout().print(table)
    papers = "1 paper" if len(found) == 1 else f"{len(found)} papers"
    stdout().print(f"{papers}, {sum(entry.done for entry in found)} finished", style="dim")


def show_paper(name: str, as_json: bool) -> None:
    """Print everything that is known about a paper."""
    entry = lookup(name)
    paper = entry.paper
    claim = registry.find(paper.slug).claim.sentence if paper.slug in registry.slugs() else None
    record = study_record(paper.slug)
    if as_json:
        more = {"authors": paper.authors, "venue": paper.venue, "url": paper.url, "bibtex": paper.bibtex}
        print_json({**entry.row(), **more, "claim": claim, "record": record})
        return
    out = stdout()
    out.print(Text(paper.title, "bold"))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for what, value in (
        ("paper", paper.slug),
        ("authors", paper.authors.replace(" and ", "; ")),
        ("published", " · ".join(filter(None, (paper.date, paper.venue, paper.url)))),
        ("room", paper.room),
        ("kind", paper.kind),
        ("status", entry.status),
        ("plugs into", ", ".join(paper.hosts)),
        ("claim", claim),
    ):
        if value:
            facts.add_row(what, Text(value))
    if record is not None:
        facts.add_row("recorded", _recorded(record))
    out.print(facts)
    if paper.api:
        out.print()
        out.print(_api_table(paper.api))
    out.print()
    out.print(Text(paper.bibtex))
    if claim is not None:
        out.print()
        out.print(f"Reproduce: scorecraft reproduce {paper.slug.replace('_', '-')}", style="dim")


def cite_papers(names: list[str]) -> None:
    """Print BibTeX, each paper once."""
    papers = dict.fromkeys(lookup(name).paper for name in names)
    print("\n\n".join(paper.bibtex for paper in papers))


def lay_out_paper(name: str) -> None:
    """Write a planned paper's skeleton into the checkout."""
    from scorecraft.catalog.new_paper import AlreadyThere, lay_out

    root = require_checkout("new-paper")
    try:
        written = lay_out(lookup(name), root)
    except AlreadyThere as error:
        raise UsageError(str(error)) from error
    for path in written:
        stdout().print(Text(str(path.relative_to(root))), soft_wrap=True)
    stdout().print("Add the slug to studies/registry.py; CONTRIBUTING.md has the five steps.", style="dim")


def _api_table(names: tuple[str, ...]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name in names:
        summary = (inspect.getdoc(resolve_name(name)) or "").partition("\n")[0]
        table.add_row(Text(name), Text(summary, "dim"))
    return table


def _recorded(record: dict[str, Any]) -> Text:
    # scipy.stats stands behind these two; `list` and `cite` answer without waiting for it.
    from scorecraft.studies import wording
    from scorecraft.studies.result import StudyResult

    result = StudyResult.from_json(record)
    found, metric = result.claim.found, result.metric(result.claim.metric)
    return Text.assemble(
        (result.verdict, STYLES[result.verdict]),
        f": improvement {wording.improvement(found, metric)}, {wording.CONFIDENCE_TEXT} interval "
        f"{wording.improvement_interval(found, metric)}, margin {wording.margin(result.claim, metric)}, "
        f"{found.pairs} paired seeds, {result.provenance['date'][:10]}",
    )
