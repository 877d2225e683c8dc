"""`diagnose`: a group of commands, each of which reads numbers that a model left behind."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeAlias

import typer

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from scorecraft.preference.ranking_accuracy import Accuracies, PairDiagnosis

Columns: TypeAlias = dict[str, list[Any]]

LOG_PROBABILITIES = ("chosen", "rejected", "reference_chosen", "reference_rejected")
TOKENS = ("chosen_tokens", "rejected_tokens")
ALPHA, CHECKPOINT = "alpha", "checkpoint"
ADDED = ("difficulty", "threshold", "category")

diagnose = typer.Typer(rich_markup_mode="rich", no_args_is_help=True)


class BadPairs(ValueError):
    """A file that does not hold the log-probabilities of pairs, said in one line."""


class Precision(StrEnum):
    """What log-probabilities were computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@diagnose.callback(
    epilog="\n\n".join(["[bold]Examples[/]", "  scorecraft diagnose preference --data log-probabilities.csv"])
)
def diagnose_command() -> None:
    """Find out what is wrong with a model from the numbers it left behind."""


@diagnose.command(
    epilog="\n\n".join(
        [
            "[bold]Examples[/]",
            "  scorecraft diagnose preference --data log-probabilities.csv",
            "  scorecraft diagnose preference --data pairs.parquet --beta 0.05 --precision bfloat16 --json",
            "  scorecraft diagnose preference --data pairs.jsonl --reachable-loss 0.3 --out difficulties.csv",
        ]
    )
)
def preference(
    data: Annotated[
        Path,
        typer.Option(
            help="A .csv, .parquet or .jsonl file with a row per pair and columns chosen, rejected, reference_chosen, "
            "reference_rejected: log-probabilities of the answers, summed over their tokens. Optional columns: "
            "chosen_tokens and rejected_tokens (numbers of tokens), alpha (share of raters for the chosen answer), "
            "checkpoint.",
            dir_okay=False,
        ),
    ],
    beta: Annotated[float, typer.Option(help="Beta of the loss that was or will be trained.")] = 0.1,
    gamma: Annotated[float, typer.Option(help="Weight of the reference in the loss; 1 for DPO.")] = 1.0,
    ideal_beta: Annotated[
        list[float] | None,
        typer.Option(help="A beta of the idealized accuracy; 0.01, 0.1, 1, 5 and 10 when left out."),
    ] = None,
    reachable_loss: Annotated[
        float | None, typer.Option(help="A loss per pair that training may reach: which pairs are beyond it?")
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="What the log-probabilities were computed in: which differences are rounding?")
    ] = Precision.float32,
    out: Annotated[
        Path | None, typer.Option(help="Also write every pair's difficulty, threshold and category.", dir_okay=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Does a preference-tuned model itself rank the answers, and which pairs are too hard for the loss?

    Ranking accuracy and reward accuracy side by side, plain and per token, what a perfectly trained model would reach,
    how far each pair is from being ranked right, and which pairs training flipped: for each checkpoint, where there are
    several.
    """
    from scorecraft.cli.terminal import print_json, stdout
    from scorecraft.core.files import write_atomically

    columns = read_pairs(data)
    found = diagnosed(
        columns, str(data), beta=beta, gamma=gamma, betas=ideal_beta, reachable_loss=reachable_loss,
        precision=precision.value,
    )  # fmt: skip
    if out is not None:
        write_atomically(out, per_pair(columns, found))
    if as_json:
        results: list[dict[str, Any]] = [
            {"checkpoint": name, **diagnosis.as_json()} for name, (_, diagnosis) in found.items()
        ]
        print_json({"data": str(data), "beta": beta, "gamma": gamma, "checkpoints": results})
        return
    console = stdout()
    for table in tables(found, reachable_loss):
        console.print(table)


def read_pairs(path: Path) -> Columns:
    """The columns of a file, numbers where numbers are meant.

    Raises:
        BadPairs: one line: a file that cannot be read, or columns that are not there or hold something else.
    """
    readers = {".csv": _csv, ".parquet": _parquet, ".jsonl": _jsonl}
    if path.suffix.lower() not in readers:
        _bad(path, f"expected a file of {', '.join(readers)}, got {path.suffix or 'no suffix'}")
    if not path.is_file():
        _bad(path, "there is no such file")
    columns = readers[path.suffix.lower()](path)
    there = ", ".join(columns) or "none"
    for name in LOG_PROBABILITIES:
        if name not in columns:
            _bad(path, f"expected a column {name}, there are {there}")
    if (TOKENS[0] in columns) != (TOKENS[1] in columns):
        _bad(path, f"expected both columns {' and '.join(TOKENS)}, or neither")
    if not columns[LOG_PROBABILITIES[0]]:
        _bad(path, "expected at least one pair, got a header without rows")
    for name in (*LOG_PROBABILITIES, *TOKENS, ALPHA):
        if name in columns:
            columns[name] = _numbers(path, name, columns[name])
    return columns


def diagnosed(
    columns: Columns,
    source: str,
    *,
    beta: float,
    gamma: float,
    betas: Sequence[float] | None,
    reachable_loss: float | None,
    precision: str,
) -> dict[str | None, tuple[list[int], PairDiagnosis]]:
    """Rows and diagnosis of each checkpoint, in the order in which they first come; of None where none is named."""
    import torch

    from scorecraft.preference.ranking_accuracy import BETAS, diagnose_pairs

    rows: dict[str | None, list[int]] = {}
    if CHECKPOINT in columns:
        for row, name in enumerate(columns[CHECKPOINT]):
            rows.setdefault(str(name), []).append(row)
    else:
        rows[None] = list(range(len(columns[LOG_PROBABILITIES[0]])))
    found: dict[str | None, tuple[list[int], PairDiagnosis]] = {}
    for name, places in rows.items():

        def of(column: str, places: list[int] = places) -> Tensor:
            return torch.tensor([columns[column][place] for place in places], dtype=torch.float64)

        more = {column: of(column) for column in (*TOKENS, ALPHA) if column in columns}
        try:
            diagnosis = diagnose_pairs(
                *map(of, LOG_PROBABILITIES), **more, beta=beta, gamma=gamma, betas=BETAS if betas is None else betas,
                reachable_loss=reachable_loss, dtype=getattr(torch, precision),
            )  # fmt: skip
        except ValueError as error:
            where = "" if name is None else f", checkpoint {name}"
            raise BadPairs(f"data `{source}`{where}: {error}") from error
        found[name] = places, diagnosis
    return found


def per_pair(columns: Columns, found: Mapping[str | None, tuple[list[int], PairDiagnosis]]) -> str:
    """The file with `difficulty`, `threshold` and `category` of every pair behind its columns."""
    from scorecraft.preference.ranking_accuracy import CATEGORIES

    added: dict[int, list[Any]] = {}
    for places, diagnosis in found.values():
        values = (diagnosis.difficulty.tolist(), diagnosis.threshold.tolist(), diagnosis.category.tolist())
        for place, difficulty, threshold, category in zip(places, *values, strict=True):
            added[place] = [difficulty, threshold, CATEGORIES[category]]
    kept = {name: values for name, values in columns.items() if name not in ADDED}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*kept, *ADDED])
    writer.writerows([*row, *added[place]] for place, row in enumerate(zip(*kept.values(), strict=True)))
    return text.getvalue()


def tables(found: Mapping[str | None, tuple[list[int], PairDiagnosis]], reachable_loss: float | None) -> list[Table]:
    """What is printed."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from scorecraft.preference.ranking_accuracy import CATEGORIES

    several = None not in found

    def table(title: str, *heads: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for head in (*(("checkpoint",) if several else ()), *heads):
            made.add_column(head, justify="left" if head in ("checkpoint", "form", "category") else "right")
        return made

    accuracies = table(
        "Accuracy", "form", "pairs", "reward", "ranking", "reference", "ideal min", "median", "max", "gap"
    )
    changes = table("Flips", "flipped of wrong", "unlearned of right", "below rounding", "threshold rule = ranking")
    categories = table("Categories", "category", "pairs", "share", "loss", "reward margin")
    some = next(iter(found.values()))[1].difficulties
    beyond = () if reachable_loss is None else (f"threshold below {reachable_loss:g}",)
    names = [f"{100 * place:g} %" for place in some.quantiles]
    difficulties = table("Difficulty: the reward margin that ranks a pair right", *names, "wrong before", *beyond)
    for name, (_, one) in found.items():
        first = [] if name is None else [escape(name)]
        for form, read in (("plain", one.plain), ("per token", one.per_token)):
            if read is not None:
                accuracies.add_row(*first, form, str(one.pairs), *_accuracies(read))
        flips = one.flips
        changes.add_row(*first, *map(_shown, (flips.flipped, flips.unlearned, one.below_rounding, one.rule_agreement)))
        for place, category in enumerate(CATEGORIES):
            values = (flips.shares[place], flips.losses[place], flips.margins[place])
            categories.add_row(*first, category, str(int(flips.counts[place])), *map(_shown, values))
        summary = one.difficulties
        shares = [summary.wrong, *([] if summary.out_of_reach is None else [summary.out_of_reach])]
        difficulties.add_row(*first, *map(_shown, [*summary.values, *shares]))
    return [accuracies, changes, categories, difficulties]


def _accuracies(read: Accuracies) -> list[str]:
    shown = [_shown(read.reward), _shown(read.ranking), _shown(read.reference_ranking)]
    if read.idealized is None or read.alignment_gap is None:
        return [*shown, *["-"] * 4]
    ideal = read.idealized
    return [*shown, _shown(ideal.minimum), _shown(ideal.median), _shown(ideal.maximum), f"{read.alignment_gap:.1f}"]


def _shown(value: Any) -> str:
    return f"{float(value):.3f}" if math.isfinite(float(value)) else "-"


def _numbers(path: Path, name: str, values: Sequence[Any]) -> list[float]:
    found = []
    for row, value in enumerate(values):
        try:
            if isinstance(value, bool):
                raise TypeError
            found.append(float(value))
        except (TypeError, ValueError):
            _bad(path, f"expected numbers in column {name}, got {value!r} in pair {row}")
    return found


def _csv(path: Path) -> Columns:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns: Columns = {name: [] for name in rows.fieldnames or ()}
            if len(columns) != len(rows.fieldnames or ()):
                _bad(path, "has two columns of one name")
            for number, row in enumerate(rows):
                if None in row or None in row.values():
                    _bad(path, f"pair {number} has another number of fields than the header, {len(columns)}")
                for name, cell in row.items():
                    columns[name].append(cell)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        _bad(path, f"cannot read it as CSV ({error})")
    return columns


def _jsonl(path: Path) -> Columns:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        _bad(path, f"cannot read it as JSON lines ({error})")
    if not all(isinstance(row, dict) for row in rows):
        _bad(path, "expected an object in every line")
    names = list(rows[0]) if rows else list(LOG_PROBABILITIES)
    for number, row in enumerate(rows):
        if set(row) != set(names):
            _bad(path, f"pair {number} has other fields than the first, {', '.join(names)}")
    return {name: [row[name] for row in rows] for name in names}


def _parquet(path: Path) -> Columns:
    from scorecraft.integrations.optional import require

    require("pyarrow", "text")
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        _bad(path, f"cannot read it as parquet ({error})")
    return {name: table[name].to_pylist() for name in table.column_names}


def _bad(source: object, problem: str) -> NoReturn:
    raise BadPairs(f"data `{source}`: {problem}")
