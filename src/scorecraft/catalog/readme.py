"""The tables of README.md, written from what is recorded under `results/`.

    python -m scorecraft.catalog.readme            # rewrite them
    python -m scorecraft.catalog.readme --check    # exit code 1 when they are not what the records say

A table stands between `<!-- generated:NAME -->` and `<!-- /generated -->`; everything else is left alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scorecraft.catalog.entries import Entry, entries
from scorecraft.catalog.records import bench_record, checkout, comparison_records, study_path, study_record
from scorecraft.studies import wording
from scorecraft.studies.result import StudyResult
from scorecraft.studies.run_folder import write_atomically

_BLOCK = re.compile(r"(<!-- generated:(?P<name>[a-z]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
_DEVICES = ("cpu", "cuda")


class BadReadme(ValueError):
    """A README that lacks a table's markers, or has markers of a table nobody writes."""


def refreshed(text: str) -> str:
    """The README with its tables written anew.

    Raises:
        BadReadme: the markers are not those of the tables there are.
    """
    found = [block["name"] for block in _BLOCK.finditer(text)]
    if sorted(found) != sorted(_TABLES):
        raise BadReadme(
            f"README.md: expected one block for each of {', '.join(_TABLES)}, got {', '.join(found) or 'none'}"
        )
    return _BLOCK.sub(lambda block: f"{block[1]}{_TABLES[block['name']]()}\n{block[3]}", text)


def verdicts(papers: str = "docs/papers/", plots: str | None = "results/studies/") -> str:
    """The finished papers with what their desk study found.

    Args:
        papers: where the link to a paper's page leads.
        plots: where that to the verdict's plot leads; none when left out.
    """
    rows = [_verdict_row(entry, papers, plots) for entry in entries() if entry.done]
    head = ("paper", "claim", f"improvement, {wording.CONFIDENCE_TEXT} interval", "margin", "paired seeds", "verdict")
    return table(head, rows) + "\n\n" + _origins([study_record(entry.paper.slug) for entry in entries() if entry.done])


def benchmarks() -> str:
    """The recorded benchmarks, one table per device."""
    parts = []
    for device in _DEVICES:
        record = bench_record(device)
        if record is not None:
            head = ("bench", "case", "what", "ours", "peer", "floor", "ours / peer", "ours / floor", "bound", "kept")
            parts += [table(head, [_bench_row(row) for row in record["rows"]]), _peers(record), _origins([record])]
    return "\n\n".join(parts) or "Not recorded yet."


def comparisons() -> str:
    """What the recorded comparisons answered."""
    records = [record for _, record in comparison_records()]
    rows = [
        (record["task"], f"`{record['data']['title']}`", record["answer"], str(len(record["ranking"])))
        for record in records
    ]
    return table(("task", "data", "answer", "contenders"), rows) + "\n\n" + _origins(records)


_TABLES: Mapping[str, Callable[[], str]] = {
    "verdicts": verdicts,
    "comparisons": comparisons,
    "benchmarks": benchmarks,
}


def _verdict_row(entry: Entry, papers: str, plots: str | None) -> Sequence[str]:
    paper = entry.paper
    name = f"[{paper.slug}]({papers}{paper.slug}.md): [{paper.title}]({paper.url})"
    record = study_record(paper.slug)
    if record is None:
        return name, "", "", "", "", "not recorded yet"
    result = StudyResult.from_json(record)
    claim, metric = result.claim, result.metric(result.claim.metric)
    plot = f"{result.scale}-{claim.world}.png"
    drawn = plots is not None and study_path(paper.slug).with_name(plot).is_file()
    linked = f"[{result.verdict}]({plots}{paper.slug}/{plot})" if drawn else result.verdict
    found = f"{wording.improvement(claim.found, metric)} {wording.improvement_interval(claim.found, metric)}"
    return name, claim.sentence, found, wording.margin(claim, metric), str(claim.found.pairs), f"**{linked}**"


def _bench_row(row: Mapping[str, Any]) -> Sequence[str]:
    amounts = [_amount(row[entry], row["unit"]) for entry in ("ours", "peer", "floor")]
    ratios = [_figure(row[ratio]) for ratio in ("ratio_to_peer", "ratio_to_floor")]
    kept = {True: "yes", False: "**no**", None: ""}[row["within_limit"]]
    return row["bench"], row["case"], row["what"], *amounts, *ratios, row["limit"] or "", kept


def _peers(record: Mapping[str, Any]) -> str:
    names = dict.fromkeys(row["peer_name"] for row in record["rows"] if row["peer_name"])
    return "Peers: " + "; ".join(names) + ". The floor is one `x @ x.T` with its backward."


def _origins(records: Sequence[Mapping[str, Any] | None]) -> str:
    """One line for each machine and day that the records come from."""
    lines = dict.fromkeys(origin(record["provenance"]) for record in records if record is not None)
    return "\n".join(lines) or "Nothing is recorded yet."


def origin(provenance: Mapping[str, Any]) -> str:
    """When and on what something was recorded."""
    hardware, versions = provenance["hardware"], provenance["versions"]
    machine = f"{hardware['cpu']}, {hardware['cores']} cores" + (f", {hardware['gpu']}" if hardware["gpu"] else "")
    return f"Recorded {provenance['date'][:10]} on {machine}, torch {versions['torch']}."


def _amount(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_figure(value)} {unit}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main(arguments: Sequence[str]) -> int:
    """Rewrite or check the README of the checkout; returns the exit code."""
    root = checkout()
    if root is None or list(arguments) not in ([], ["--check"]):
        print("usage, in a checkout: python -m scorecraft.catalog.readme [--check]", file=sys.stderr)
        return 2
    path = root / "README.md"
    text = path.read_text(encoding="utf-8")
    fresh = refreshed(text)
    if fresh == text:
        return 0
    if arguments:
        print("README.md is stale: run `python -m scorecraft.catalog.readme`", file=sys.stderr)
        return 1
    write_atomically(path, fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
