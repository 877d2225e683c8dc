"""The pages of the documentation site that are generated: from cards, records and weight curves, never typed.

A paper's page is its hand-written text in `docs/papers/`, followed by what was recorded and the interface; papers that
are planned have a line in the catalogue page only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import getdoc
from typing import Any

from scorecraft.catalog import readme
from scorecraft.catalog.entries import Entry, entries
from scorecraft.catalog.objectives import make_pictured, pictured_types
from scorecraft.catalog.records import comparison_records, study_path, study_record
from scorecraft.catalog.weight_curves import CLASSES, DIMENSION, weight_curve, weight_figure
from scorecraft.studies import wording
from scorecraft.studies.plots import svg
from scorecraft.studies.result import StudyResult
from scorecraft.studies.study import Metric

Page = tuple[str, str | bytes]
"""A path below `docs/` and its content."""


def generated_pages() -> Iterator[Page]:
    """Everything on the site that is not a file of `docs/`."""
    yield "papers/index.md", catalogue_page()
    yield "results.md", results_page()
    yield "objectives.md", gallery_page()
    yield "choosing.md", choosing_page()
    for path, record in comparison_records():
        plot = path.with_suffix(".png")
        if plot.is_file():
            yield f"choosing/{record['task']}-{path.stem}.png", plot.read_bytes()
    for name in pictured_types():
        yield f"curves/{name}.svg", weight_curve_svg(name)
    for entry in entries():
        record = study_record(entry.paper.slug)
        if record is not None:
            result = StudyResult.from_json(record)
            for world in result.worlds:
                plot = study_path(result.slug).with_name(f"{result.scale}-{world.name}.png")
                if plot.is_file():
                    yield f"papers/{result.slug}-{world.name}.png", plot.read_bytes()


def paper_page(slug: str, text: str) -> str:
    """The hand-written page of a finished paper with what is generated below it."""
    entry = next(entry for entry in entries() if entry.paper.slug == slug)
    return "\n\n".join([text.rstrip(), _measured(entry), _curves(entry), _interface(entry), _citation(entry)]) + "\n"


def catalogue_page() -> str:
    """All papers, the finished ones linked to their pages."""
    rows = [
        (
            f"[{entry.paper.slug}]({entry.paper.slug}.md)" if entry.done else entry.paper.slug,
            f"[{entry.paper.title}]({entry.paper.url})",
            entry.paper.room,
            entry.paper.kind,
            entry.verdict or entry.status,
        )
        for entry in entries()
    ]
    done = sum(entry.done for entry in entries())
    table = readme.table(("paper", "title", "room", "what it is", "verdict or status"), rows)
    return f"# The catalogue\n\n{len(rows)} papers, {done} of them finished.\n\n{table}\n"


def results_page() -> str:
    """The verdicts and the benchmarks, as in the README."""
    return (
        "# What was measured\n\n## Studies\n\n"
        f"{wording.RULE} The margin was fixed before any run.\n\n{readme.verdicts(papers='papers/', plots=None)}\n\n"
        "## Benchmarks\n\nMedians of at least seven interleaved runs in one process; memory is the peak above the "
        "inputs, each entry in a process of its own. Ratios have ours on top: smaller is better.\n\n"
        f"{readme.benchmarks()}\n"
    )


def choosing_page() -> str:
    """Which objective should I use: the recorded comparisons."""
    parts = [
        "# Which objective should I use?",
        "The one that wins on your data: `scorecraft compare TASK --data ...` asks them, with equal budgets, the same "
        "tuning for everyone and a test part that is looked at once, and says so when the data cannot tell. Below is "
        "what it answered on public data. A difference there is a hint for similar data and no more.",
    ]
    for path, record in comparison_records():
        parts += [
            f"## {record['task'].capitalize()}: {record['data']['title']}",
            record["data"]["description"],
            f"> {record['answer']}",
            _ranking(record),
        ]
        if path.with_suffix(".png").is_file():
            parts.append(f"![every seed of every contender](choosing/{record['task']}-{path.stem}.png)")
        budget = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["budget"].items())
        parts += [
            f"{len(record['seeds'])} splits of the data; budget of every contender: {budget}.",
            readme.origin(record["provenance"]),
            f"```bash\n{record['provenance']['command']}\n```",
        ]
    return "\n\n".join(parts) + "\n"


def _ranking(record: Mapping[str, Any]) -> str:
    metrics = [Metric(**metric) for metric in record["metrics"]]
    head = ("objective", *(metric.title for metric in metrics), "against the best", "interval", "p (Holm)")
    return readme.table(head, [_ranked(row, metrics) for row in record["ranking"]])


def _ranked(row: Mapping[str, Any], metrics: Sequence[Metric]) -> list[str]:
    means = [wording.number(row["mean"][metric.name], metric) for metric in metrics]
    if "behind_best" not in row:
        return [f"**{row['title']}**", *means, "best", "", ""]
    found = row["behind_best"]
    behind, low, high = (
        "unbounded" if found[end] is None else wording.change(-found[end], metrics[0], relative=False)
        for end in ("improvement", "high", "low")
    )
    title = row["title"] if row["beaten"] else f"**{row['title']}**"
    return [title, *means, behind, f"[{low}, {high}]", wording.p_value(row["p_holm"])]


def gallery_page() -> str:
    """The weight curve of every objective."""
    parts = [
        "# Weight curves",
        "How much one pair counts while its score moves and the rest of a batch of 64 stays as it is: "
        "`n dL/ds`, above zero the pair is pushed apart, below it is pulled together. "
        "`scorecraft explain OBJECTIVE` draws the curve of any objective with any options.",
    ]
    for name, kind in pictured_types().items():
        parts += [f"## {name}", f"`{kind.__name__}`: {_summary(kind)}", f"![weight curve of {name}](curves/{name}.svg)"]
    return "\n\n".join(parts) + "\n"


def weight_curve_svg(name: str) -> bytes:
    """The picture of an objective with its default options."""
    objective = make_pictured(name, classes=CLASSES, dimension=DIMENSION)
    return svg(weight_figure(weight_curve(objective), pictured_types()[name].__name__))


def _measured(entry: Entry) -> str:
    record = study_record(entry.paper.slug)
    if record is None:
        return "## Measured here\n\nNot recorded yet."
    result = StudyResult.from_json(record)
    claim = result.claim
    metric = result.metric(claim.metric)
    found = f"{wording.improvement(claim.found, metric)} {wording.improvement_interval(claim.found, metric)}"
    lines = [
        "## Measured here",
        f"> {claim.sentence}",
        f"**{result.verdict}**: improvement {found} ({wording.CONFIDENCE_TEXT} interval), margin "
        f"{wording.margin(claim, metric)}, {claim.found.pairs} paired seeds. {readme.origin(result.provenance)}",
    ]
    for world in result.worlds:
        lines.append(f"### {world.title}")
        if world.description:
            lines.append(world.description)
        if study_path(result.slug).with_name(f"{result.scale}-{world.name}.png").is_file():
            lines.append(f"![{world.title}]({result.slug}-{world.name}.png)")
    if result.further_claims:
        rows = [
            (
                one.sentence,
                f"{wording.improvement(one.found, result.metric(one.metric))} "
                f"{wording.improvement_interval(one.found, result.metric(one.metric))}",
                one.verdict,
            )
            for one in result.further_claims
        ]
        lines += ["### Also expected, without a say in the verdict", readme.table(("expectation", "found", ""), rows)]
    if result.notes:
        lines.append("\n".join(f"- {note}" for note in result.notes))
    return "\n\n".join(lines)


def _curves(entry: Entry) -> str:
    names = [name for name, kind in pictured_types().items() if entry.paper.slug in kind.__module__.split(".")]
    if not names:
        return ""
    pictures = [f"![weight curve of {name}](../curves/{name}.svg)" for name in names]
    return "\n\n".join(["## How much a pair counts", *pictures])


def _interface(entry: Entry) -> str:
    return "\n\n".join(["## Interface", *(f"::: {name}" for name in entry.paper.api)])


def _citation(entry: Entry) -> str:
    return f"## Cite\n\n```bibtex\n{entry.paper.bibtex}\n```"


def _summary(kind: type) -> str:
    return (getdoc(kind) or "").partition("\n")[0]
