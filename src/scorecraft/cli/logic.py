"""`logic`: preference formulas and the losses they stand for.

The command's options are here too; what it needs is imported when it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast

import typer

from scorecraft.cli import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scorecraft.preference.dpa_logic import Lattice, PreferenceStructure
    from scorecraft.preference.dpa_logic.catalogue import Link, NamedLoss

EPILOG = "\n\n".join(
    [
        "[bold]Examples[/]",
        "  scorecraft logic 'L -> W given W | L both W & L'",
        "  scorecraft logic orpo --at W=0.6,L=0.5 --json",
        "  scorecraft logic 'L -> W given W | L' --reference --beta 0.1",
        "  scorecraft logic --decompile 'log W*(1 - L) / (L*(1 - W))'",
        "  scorecraft logic --lattice map.svg",
        "  scorecraft logic --enumerate orpo uncpo",
        "  scorecraft logic 'L -> W given W | L' --train pairs.jsonl",
    ]
)
_PICTURES = (".png", ".svg")


def logic_command(
    formula: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FORMULA [PICTURE]",
            help="'P \\[given P_C] \\[both P_A]' of W, L (RW, RL of the reference) with ~ & ^ | -> <->, or a known "
            "name; with --lattice also a .png or .svg file to draw into.",
            show_default=False,
        ),
    ] = None,
    decompile: Annotated[
        str | None,
        typer.Option(metavar="RATIO", help="The formula behind a known loss or a ratio such as 'W*(1 - L) / L'."),
    ] = None,
    lattice: Annotated[
        bool, typer.Option("--lattice", help="The map of losses, as text or into PICTURE; FORMULA has a place on it.")
    ] = False,
    enumerate_: Annotated[
        tuple[str, str] | None,
        typer.Option("--enumerate", metavar="LOWER UPPER", help="The losses between two: names or formulas."),
    ] = None,
    unfiltered: Annotated[
        bool,
        typer.Option(
            "--unfiltered", help="With --enumerate, also those that may push the winner down or the loser up."
        ),
    ] = False,
    loss: Annotated[
        str | None, typer.Option(help="logistic, squared or margin; the name's own or logistic when left out.")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Its scale; the name's own or 1 when left out.")] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Take the reference form: the model's log-ratio minus the reference's.")
    ] = False,
    at: Annotated[
        str | None, typer.Option(metavar="W=P,L=P", help="Probabilities at which values and weights are shown.")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Then train with it, against DPO: `compare preference` on these pairs."),
    ] = None,
    model: Annotated[str, typer.Option(help="With --train: a folder or hub name; tiny is built on the spot.")] = "tiny",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say what a preference formula means as a loss, and what a loss means as a formula.

    Prints the loss in closed form, its worlds, its gradient weights and its place among the known losses.
    """
    logic(
        formula or [],
        decompile=decompile,
        lattice=lattice,
        between=enumerate_,
        unfiltered=unfiltered,
        loss=loss,
        beta=beta,
        reference=reference,
        at=at,
        train=train,
        model=model,
        as_json=json,
    )


def logic(
    arguments: list[str],
    *,
    decompile: str | None,
    lattice: bool,
    between: tuple[str, str] | None,
    unfiltered: bool,
    loss: str | None,
    beta: float | None,
    reference: bool,
    at: str | None,
    train: str | None,
    model: str,
    as_json: bool,
) -> None:
    """Do what the command was asked for: one of describing, decompiling, drawing and enumerating."""
    texts = list(arguments)
    picture = Path(texts.pop()) if lattice and texts and "." in texts[-1] else None  # no formula has a dot
    if picture is not None and picture.suffix.lower() not in _PICTURES:
        raise UsageError(f"--lattice: expected a file name that ends in {' or '.join(_PICTURES)}, got {picture}")
    if len(texts) > 1:
        wanted = "one formula and a picture" if lattice else "one formula"
        raise UsageError(f"expected {wanted}, got {' '.join(map(repr, texts))} (quote a formula as a whole)")
    if lattice + (between is not None) + (decompile is not None) > 1 or (texts and (decompile or between)):
        raise UsageError("expected one of FORMULA, --decompile, --lattice and --enumerate")
    if unfiltered and between is None:
        raise UsageError("--unfiltered goes with --enumerate")
    if train is not None and (lattice or not texts):
        raise UsageError("--train goes with a formula")
    if train is not None and as_json:
        raise UsageError("--train prints a comparison, without --json; compare preference has one")
    if lattice:
        _show_map(texts[0] if texts else None, reference, picture, as_json)
    elif between is not None:
        _show_interval(between, reference, unfiltered, as_json)
    elif decompile is not None or texts:
        text = texts[0] if decompile is None else decompile
        _show_one(read_asked(text, loss, beta, reference, ratio=decompile is not None), _point(at), as_json)
        if train is not None:
            _train(text, {"loss": loss, "beta": beta, "reference": reference or None}, train, model)
    else:
        raise UsageError("expected a formula, --decompile, --lattice or --enumerate (see `scorecraft logic --help`)")


def _train(text: str, options: Mapping[str, object], data: str, model: str) -> None:
    """Compare the formula with DPO on pairs of answers."""
    from scorecraft.cli.comparing import Running, compare_preference

    given = ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)
    objective = f"logic: {text}; {given}" if given else f"logic: {text}"
    running = Running(seeds=8, jobs=None, folder=None, fresh=False, record=False, as_json=False)
    compare_preference(data, [objective, "dpo"], running, model=model)


class Asked(NamedTuple):
    """A loss as it was typed."""

    structure: PreferenceStructure
    known: NamedLoss | None
    """The one that was named."""
    loss: Link
    beta: float


def read_asked(
    text: str, loss: str | None = None, beta: float | None = None, reference: bool = False, *, ratio: bool = False
) -> Asked:
    """A loss from a formula (or, with `ratio`, a ratio) or a known name, and options that replace the name's own.

    Raises:
        ValueError: one line; of a text that cannot be read it names the column.
    """
    from scorecraft.preference.dpa_logic import PreferenceStructure, find_named
    from scorecraft.preference.dpa_logic.catalogue import is_named

    known = find_named(text) if is_named(text) else None
    if known is not None:
        structure = known.structure
    else:
        structure = PreferenceStructure.decompile(text) if ratio else PreferenceStructure.parse(text)
    own = ("logistic", 1.0) if known is None else (known.loss, known.beta)
    return Asked(
        structure.with_reference() if reference else structure,
        known,
        cast("Link", loss or own[0]),
        own[1] if beta is None else beta,
    )


def lattice_text(found: Lattice, also: Mapping[str, str]) -> str:
    """The map as text, the top first: every loss with the nearest ones above it, which it entails."""
    width = max(map(len, found.structures))
    lines = []
    for level in reversed(found.levels):
        for name in level:
            above = [upper for lower, upper in found.covers if lower == name]
            note = f"  ({also[name]})" if name in also else ""
            lines.append(f"{name:{width}}  {found.structures[name].text}{note}")
            if above:
                lines.append(f"{'':{width}}    entails {', '.join(above)}")
        lines.append("")
    return "\n".join(lines[:-1])


def lattice_figure(found: Lattice, also: Mapping[str, str], *, marked: str = "") -> Figure:
    """The map as a Hasse diagram: a line leads from a loss up to the nearest ones it entails."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from scorecraft.studies.plots import LIGHT

    widest = max(map(len, found.levels))
    figure = Figure(figsize=(2.6 * widest + 0.6, 1.5 * len(found.levels) + 0.5), facecolor=LIGHT.background)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-0.5, widest - 0.5)
    axes.set_ylim(-0.5, len(found.levels) - 0.4)
    places = _places(found)
    for lower, upper in found.covers:
        (x, y), (to_x, to_y) = places[lower], places[upper]
        axes.plot([x, to_x], [y, to_y], color=LIGHT.contender, linewidth=1.1, zorder=1)
    for name, (x, y) in places.items():
        colour = LIGHT.method if name == marked else LIGHT.ink
        lines = [name, _broken(found.structures[name].text), found.structures[name].ratio]
        lines += [also[name].replace("; ", "\n")] if name in also else []
        axes.text(
            x,
            y,
            "\n".join(lines),
            ha="center",
            va="center",
            fontsize=8,
            color=colour,
            linespacing=1.35,
            bbox={
                "boxstyle": "round,pad=0.45",
                "facecolor": LIGHT.background,
                "edgecolor": colour if name == marked else LIGHT.contender,
            },
            zorder=2,
        )
    return figure


def _places(found: Lattice) -> dict[str, tuple[float, float]]:
    """Every level spread around the middle, in the order of the places of what lies below."""
    widest = max(map(len, found.levels))
    places: dict[str, tuple[float, float]] = {}
    for height, level in enumerate(found.levels):
        below = {name: [places[lower][0] for lower, upper in found.covers if upper == name] for name in level}
        ordered = sorted(level, key=lambda name, of=below: sum(of[name]) / max(len(of[name]), 1))
        # Spread wider than one apart where there is room, so that lines do not run behind boxes.
        step = 1.0 if len(ordered) == 1 else min((widest - 1) / (len(ordered) - 1), 1.6)
        left = (widest - 1 - step * (len(ordered) - 1)) / 2
        places |= {name: (left + step * at, float(height)) for at, name in enumerate(ordered)}
    return places


def _broken(text: str) -> str:
    return text.replace(" given ", "\ngiven ").replace(" both ", "\nboth ")


def _show_one(asked: Asked, at: Mapping[str, float], as_json: bool) -> None:
    from rich.text import Text

    from scorecraft.cli.terminal import print_json, stdout
    from scorecraft.preference.dpa_logic import describe_structure

    known = asked.known
    if known is not None and known.manual_reference is not None:
        at = {name: math.exp(one) for name, one in zip(("RW", "RL"), known.manual_reference, strict=True)} | dict(at)
    described = describe_structure(asked.structure, loss=asked.loss, beta=asked.beta, at=at)
    if as_json:
        print_json({"name": None if known is None else known.name, **described.as_json()})
        return
    out = stdout()
    if known is not None:
        out.print(Text(f"{known.name}: {known.what}", "bold"), soft_wrap=True)
    out.print(Text(str(described)), soft_wrap=True)


def _show_map(text: str | None, reference: bool, picture: Path | None, as_json: bool) -> None:
    from rich.text import Text

    from scorecraft.cli.terminal import print_json, stdout
    from scorecraft.preference.dpa_logic import known_structures, lattice, place
    from scorecraft.preference.dpa_logic.catalogue import SAME_STRUCTURE

    given = None if text is None else read_asked(text, reference=reference).structure
    reference = reference or (given is not None and given.reads_reference)
    named, also, marked = known_structures(reference=reference), {} if reference else dict(SAME_STRUCTURE), ""
    if given is not None:
        equals = place(given, named).equals
        marked = equals[0] if equals else "yours"
        named.setdefault(marked, given)
    found = lattice(named)
    if picture is not None:
        from scorecraft.core.files import write_atomically
        from scorecraft.studies.plots import png, svg

        figure = lattice_figure(found, also, marked=marked)
        write_atomically(picture, svg(figure) if picture.suffix.lower() == ".svg" else png(figure))
    if as_json:
        losses = [
            {
                "name": name,
                "formula": found.structures[name].text,
                "ratio": found.structures[name].ratio,
                "plus": found.structures[name].worlds("plus"),
                "minus": found.structures[name].worlds("minus"),
                "covered_by": [upper for lower, upper in found.covers if lower == name],
            }
            for level in reversed(found.levels)
            for name in level
        ]
        print_json({"losses": losses, "given": marked or None, "picture": None if picture is None else str(picture)})
    elif picture is None:
        stdout().print(Text(lattice_text(found, also)), soft_wrap=True)
    else:
        stdout().print(Text(f"Drawn into {picture}"), soft_wrap=True)


def _show_interval(between: tuple[str, str], reference: bool, unfiltered: bool, as_json: bool) -> None:
    from rich.text import Text

    from scorecraft.cli.terminal import print_json, stdout
    from scorecraft.preference.dpa_logic import interval, known_structures

    lower, upper = (read_asked(text, reference=reference).structure for text in between)
    found = interval(lower, upper, winner_monotone=not unfiltered)
    known = known_structures(reference=lower.reads_reference) if lower.count in (2, 4) else {}
    rows = []
    for structure in found:
        names = [name for name, one in known.items() if one == structure]
        twins = [name for name, one in known.items() if one != structure and one.same_loss(structure)]
        rows.append(
            {
                "formula": structure.text,
                "ratio": structure.ratio,
                "plus": structure.worlds("plus"),
                "minus": structure.worlds("minus"),
                "name": names[0] if names else None,
                "same_ratio_as": twins,
                "winner_monotone": structure.winner_monotone,
            }
        )
    if as_json:
        print_json(rows)
        return
    width = max((len(row["formula"]) for row in rows), default=0)
    out = stdout()
    for row in rows:
        notes = [row["name"] or "new", *(f"same ratio as {name}" for name in row["same_ratio_as"])]
        notes += [] if row["winner_monotone"] else ["not monotone in the winner"]
        out.print(Text(f"{row['formula']:{width}}  {row['ratio']}  ({', '.join(notes)})"), soft_wrap=True)
    new = sum(row["name"] is None and not row["same_ratio_as"] for row in rows)
    out.print(Text(f"{len(rows)} structures, {new} of them new", "dim"))


def _point(text: str | None) -> dict[str, float]:
    if text is None:
        return {}
    found = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            raise UsageError(f"--at: expected probabilities such as W=0.7,L=0.4, got {part.strip()!r}") from None
    return found
