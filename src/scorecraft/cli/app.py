"""The commands and their options. What a command does is in a module of its own, imported when the command runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import scorecraft
from scorecraft.cli.diagnosis import diagnose
from scorecraft.cli.logic import EPILOG, logic_command

app = typer.Typer(
    name="scorecraft",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


compare = typer.Typer(rich_markup_mode="rich", no_args_is_help=True)
app.add_typer(compare, name="compare")
app.add_typer(diagnose, name="diagnose")
app.command("logic", epilog=EPILOG)(logic_command)


class Room(StrEnum):
    """The families of papers."""

    similarity = "similarity"
    relevance = "relevance"
    preference = "preference"
    probability = "probability"
    importance = "importance"
    density = "density"


class Scale(StrEnum):
    """How large a study is run."""

    smoke = "smoke"
    desk = "desk"


class Backend(StrEnum):
    """Where trials are run."""

    local = "local"
    ray = "ray"


class Device(StrEnum):
    """What benchmarks run on."""

    cpu = "cpu"
    cuda = "cuda"


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Seeds = Annotated[int, typer.Option(min=2, help="Splits of the data, each with its own initial weights and order.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Trials at a time; one per core when left out.")]
Folder = Annotated[
    Path | None, typer.Option(help="Where the run is written; in scorecraft-runs/ when left out.", file_okay=False)
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming a run that is there.")]
Record = Annotated[
    bool, typer.Option("--record", help="Also write the result into results/ of the checkout, for the site.")
]
Collection = Annotated[
    str,
    typer.Option(
        "--data",
        help="A folder of corpus, queries and qrels (parquet, BEIR's jsonl and tsv, TREC qrels), a .jsonl or .parquet "
        "file of (query, positive[, negatives]), or a hub data set.",
    ),
]
RankingObjectives = Annotated[
    list[str] | None,
    typer.Option("--objective", metavar="NAME[:option=value,...]", help="An objective to compare, two or more."),
]
Split = Annotated[str | None, typer.Option(help="Split of the judgements (of a hub data set or a folder qrels/).")]
DropIncomplete = Annotated[
    bool,
    typer.Option(
        "--drop-incomplete",
        help="Leave out empty documents, queries without a relevant one and judgements of unknown ids.",
    ),
]
Documents = Annotated[
    int, typer.Option(min=1, help="Documents that are ranked: all relevant ones, and others drawn up to this number.")
]
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
PAPER_HELP = "A paper's slug, such as multi-similarity (hyphens or underscores)."


def _examples(*lines: str) -> str:
    """An epilog that keeps one line per example."""
    return "\n\n".join(["[bold]Examples[/]", *(f"  {line}" for line in lines)])


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scorecraft {scorecraft.__version__}")
        raise typer.Exit


@app.callback(
    epilog=_examples(
        "scorecraft list --room similarity",
        "scorecraft reproduce multi-similarity",
        "scorecraft COMMAND --help",
    )
)
def scorecraft_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Papers about scores: what they claim, reproduced, measured and ready to use."""


@app.command(
    "list",
    epilog=_examples(
        "scorecraft list",
        "scorecraft list --room density",
        "scorecraft list --search 'hard negatives'",
        "scorecraft list --json | jq -r '.[] | select(.status == \"done\") | .slug'",
    ),
)
def list_command(
    room: Annotated[Room | None, typer.Option(help="Only this family.")] = None,
    search: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only papers in which all these words occur.")
    ] = None,
    json: Json = False,
) -> None:
    """List all papers: what is finished, what is planned, and what was recorded."""
    from scorecraft.cli import papers

    papers.list_papers(None if room is None else room.value, search, json)


@app.command(epilog=_examples("scorecraft show multi-similarity", "scorecraft show tcm --json"))
def show(
    paper: Annotated[str, typer.Argument(metavar="PAPER", help=PAPER_HELP)],
    json: Json = False,
) -> None:
    """Show one paper: its card, its classes, its study's claim and recorded verdict, its citation."""
    from scorecraft.cli import papers

    papers.show_paper(paper, json)


@app.command(epilog=_examples("scorecraft search 'hard negatives'", "scorecraft search temperature --json"))
def search(
    text: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Words that all have to occur.")],
    json: Json = False,
) -> None:
    """Find papers by words of their title, method, authors, classes or hosts."""
    from scorecraft.cli import papers

    papers.list_papers(None, " ".join(text), json)


@app.command(
    epilog=_examples(
        "scorecraft explain multi-similarity",
        "scorecraft explain triplet:margin=0.2 --plot triplet.svg",
        "scorecraft explain simpo:gamma=0.5",
        "scorecraft explain tcm --json",
    )
)
def explain(
    objective: Annotated[
        str, typer.Argument(metavar="OBJECTIVE", help="A name such as n_pair, or n_pair:option=value,option=value.")
    ],
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the curve into this file, .png or .svg.", dir_okay=False)
    ] = None,
    json: Json = False,
) -> None:
    """Show how much a pair counts in an objective: the pull on it as a function of its score."""
    from scorecraft.cli import explanation

    explanation.explain(objective, plot, json)


@app.command(epilog=_examples("scorecraft cite multi-similarity tcm", "scorecraft cite unpg >> references.bib"))
def cite(
    papers_: Annotated[list[str], typer.Argument(metavar="PAPER...", help=PAPER_HELP)],
) -> None:
    """Print BibTeX."""
    from scorecraft.cli import papers

    papers.cite_papers(papers_)


@app.command(
    epilog=_examples(
        "scorecraft reproduce multi-similarity",
        "scorecraft reproduce tcm unpg --scale smoke",
        "scorecraft reproduce --all --jobs 8",
        "scorecraft reproduce --all --backend ray",
        "scorecraft reproduce multi-similarity --seeds 16 --json > result.json",
    )
)
def reproduce(
    names: Annotated[list[str] | None, typer.Argument(metavar="[PAPER]...", help=PAPER_HELP)] = None,
    every: Annotated[bool, typer.Option("--all", help="Every paper that has a study.")] = False,
    scale: Annotated[
        Scale, typer.Option(help="smoke: seconds, shows that it runs. desk: minutes, carries the verdict.")
    ] = (Scale.desk),
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Paired seeds; the study's own number when left out.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Trials at a time; one per core when left out.")] = None,
    backend: Annotated[
        Backend,
        typer.Option(help="local: processes of this machine. ray: the Ray cluster of the environment, or a local one."),
    ] = Backend.local,
    folder: Annotated[
        Path | None, typer.Option(help="Where runs are written; scorecraft-runs/ here when left out.", file_okay=False)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming a run that is there.")] = False,
    record: Annotated[
        bool,
        typer.Option("--record", help="Also write the result into results/ of the checkout, where `list` reads it."),
    ] = False,
    json: Json = False,
) -> None:
    """Run papers' studies and judge their claims.

    Finished trials are written at once: an interrupted run goes on where it stopped when the command is repeated.
    """
    from scorecraft.cli import reproduction

    reproduction.reproduce(
        names or [],
        every=every,
        scale=scale.value,
        seeds=seeds,
        jobs=jobs,
        backend=backend.value,
        folder=folder,
        fresh=fresh,
        record=record,
        as_json=json,
    )


@compare.callback(
    epilog=_examples(
        "scorecraft compare similarity --data items.npz --objective multi-similarity --objective triplet",
        "scorecraft compare similarity --help",
    )
)
def compare_command() -> None:
    """Compare objectives on your own data, with equal budgets and an answer that may be: cannot tell."""


@compare.command(
    epilog=_examples(
        "scorecraft compare similarity --data items.npz --objective multi-similarity --objective triplet:margin=0.2",
        "scorecraft compare similarity --data photos/ --objective unpg --objective pml:ArcFaceLoss --seeds 16",
        "scorecraft compare similarity --data table.csv --labels species --json",
    )
)
def similarity(
    data: Annotated[
        str,
        typer.Option(
            help="An .npz, .npy, .csv or .parquet file, a folder with a folder of images per class, or a hub data set."
        ),
    ],
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:option=value,...]",
            help="An objective to compare, two or more, or a sum (multi-similarity + 0.5*tcm); pml:NAME is a loss of "
            "pytorch-metric-learning. All of this library's when left out.",
        ),
    ] = None,
    features: Annotated[str | None, typer.Option(help="Array or column of the items, where it cannot be told.")] = None,
    labels: Annotated[str | None, typer.Option(help="Array or column of the classes, where it cannot be told.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set; train when left out.")] = None,
    seeds: Seeds = 8,
    steps: Annotated[int, typer.Option(min=1, help="Batches per training.")] = 300,
    jobs: Jobs = None,
    folder: Folder = None,
    fresh: Fresh = False,
    record: Record = False,
    json: Json = False,
) -> None:
    """Which objective makes the best embedding of your labelled items?

    Every seed splits the data; each objective trains one small encoder per learning rate, is tuned on the validation
    part and measured once on the test part. Interrupted, it goes on when the command is repeated.
    """
    from scorecraft.cli import comparing

    running = comparing.Running(seeds, jobs, folder, fresh, record, json)
    comparing.compare_similarity(
        data, objective or [], running, steps=steps, features=features, labels=labels, split=split
    )


@compare.command(
    epilog=_examples(
        "scorecraft compare retrieval --data vaswani/ --objective infonce --objective mw --objective star_adore",
        "scorecraft compare retrieval --data pairs.jsonl --model my-encoder/ --steps 200",
        "scorecraft compare retrieval --data BeIR/scifact --objective infonce --objective star:alpha=0.5 --json",
    )
)
def retrieval(
    data: Collection,
    objective: RankingObjectives = None,
    model: Annotated[str, typer.Option(help="The bi-encoder to fine-tune: a folder or a hub name.")] = ENCODER,
    split: Split = None,
    drop_incomplete: DropIncomplete = False,
    documents: Documents = 3000,
    seeds: Seeds = 8,
    steps: Annotated[int, typer.Option(min=1, help="Batches per training.")] = 40,
    batch: Annotated[int, typer.Option(min=2, help="Queries per batch.")] = 32,
    hard_negatives: Annotated[int, typer.Option(min=0, help="Hard negatives per query.")] = 1,
    jobs: Jobs = None,
    folder: Folder = None,
    fresh: Fresh = False,
    record: Record = False,
    json: Json = False,
) -> None:
    """Which objective fine-tunes the best retriever for your queries and documents?

    Every seed splits the queries; each objective fine-tunes the pretrained encoder once per learning rate, is tuned on
    the validation queries and measured once on the test queries. star_adore is the whole recipe: STAR on both encoders
    for half of the steps, then ADORE on the query encoder. Interrupted, it goes on when the command is repeated.
    """
    from scorecraft.cli import comparing

    comparing.compare_retrieval(
        data,
        objective or [],
        comparing.Running(seeds, jobs, folder, fresh, record, json),
        model=model,
        steps=steps,
        batch=batch,
        hard_negatives=hard_negatives,
        documents=documents,
        split=split,
        drop_incomplete=drop_incomplete,
    )


@compare.command(
    epilog=_examples(
        "scorecraft compare reranking --data cranfield/ --drop-incomplete --objective infonce --objective listnet",
        "scorecraft compare reranking --data pairs.jsonl --candidates 50 --steps 200",
    )
)
def reranking(
    data: Collection,
    objective: RankingObjectives = None,
    model: Annotated[
        str, typer.Option(help="The encoder that the cross-encoder starts from: a folder or a hub name.")
    ] = ENCODER,
    split: Split = None,
    drop_incomplete: DropIncomplete = False,
    documents: Documents = 3000,
    candidates: Annotated[int, typer.Option(min=1, help="Irrelevant documents to rank per query.")] = 20,
    seeds: Seeds = 8,
    steps: Annotated[int, typer.Option(min=1, help="Batches per training.")] = 40,
    batch: Annotated[int, typer.Option(min=1, help="Queries per batch.")] = 8,
    negatives: Annotated[int, typer.Option(min=1, help="Negatives per query of a batch.")] = 4,
    jobs: Jobs = None,
    folder: Folder = None,
    fresh: Fresh = False,
    record: Record = False,
    json: Json = False,
) -> None:
    """Which objective trains the best re-ranker for your queries and documents?

    Every query's candidates are its relevant documents and those that the pretrained encoder ranks highest; each
    objective trains a cross-encoder once per learning rate, is tuned on the validation queries and measured once on the
    test queries. Interrupted, it goes on when the command is repeated.
    """
    from scorecraft.cli import comparing

    comparing.compare_reranking(
        data,
        objective or [],
        comparing.Running(seeds, jobs, folder, fresh, record, json),
        model=model,
        steps=steps,
        batch=batch,
        negatives=negatives,
        candidates=candidates,
        documents=documents,
        split=split,
        drop_incomplete=drop_incomplete,
    )


@compare.command(
    epilog=_examples(
        "scorecraft compare preference --data pairs.jsonl --objective dpo --objective 'logic: L -> W given W | L'",
        "scorecraft compare preference --data hh-rlhf/ --objective dpo:beta=0.5 --objective ipo --seeds 16",
        "scorecraft compare preference --data trl-lib/ultrafeedback_binarized --model my-model/ --objective dpo "
        "--objective simpo",
    )
)
def preference(
    data: Annotated[
        str,
        typer.Option(
            help="A .jsonl or .parquet file of (prompt, chosen, rejected) or of two whole dialogues, a folder with one "
            "per split, or a hub data set.",
        ),
    ],
    objective: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            metavar="NAME[:option=value,...]",
            help="An objective to compare, two or more; a sum (dpo + 0.5*simpo); or a formula (logic: L -> W).",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A folder or hub name of a causal language model; tiny is built on the spot.")
    ] = "tiny",
    split: Annotated[str | None, typer.Option(help="Split of the data; train, or the only one.")] = None,
    pairs: Annotated[int, typer.Option(min=10, help="Pairs that take part, drawn once.")] = 400,
    max_tokens: Annotated[int, typer.Option(min=8, help="Tokens of a dialogue; what is before them is cut.")] = 128,
    seeds: Seeds = 8,
    steps: Annotated[int, typer.Option(min=1, help="Batches per training.")] = 40,
    batch: Annotated[int, typer.Option(min=1, help="Pairs per batch.")] = 16,
    log_probabilities: Annotated[
        Path | None,
        typer.Option(
            help="A folder for one CSV per trial of the log-probabilities of its test pairs, for diagnose preference.",
            file_okay=False,
        ),
    ] = None,
    jobs: Jobs = None,
    folder: Folder = None,
    fresh: Fresh = False,
    record: Record = False,
    json: Json = False,
) -> None:
    """Which objective aligns a language model best with your pairs of answers?

    Every seed splits the pairs; each objective trains the same model in TRL's own trainer once per learning rate, is
    tuned on the validation pairs and measured once on the test pairs. Interrupted, it goes on when the command is
    repeated.
    """
    from scorecraft.cli import comparing

    comparing.compare_preference(
        data,
        objective or [],
        comparing.Running(seeds, jobs, folder, fresh, record, json),
        model=model,
        steps=steps,
        batch=batch,
        pairs=pairs,
        max_tokens=max_tokens,
        split=split,
        log_probabilities=log_probabilities,
    )


@app.command(
    epilog=_examples(
        "scorecraft extrapolate regression-model/ scaled-model/ --out expo-model",
        "scorecraft extrapolate base-model/ lora-adapter/ --factor 1.3 --out expo-adapter --json",
    )
)
def extrapolate(
    weak: Annotated[Path, typer.Argument(metavar="WEAK", help="The model folder that training began from.")],
    strong: Annotated[Path, typer.Argument(metavar="STRONG", help="The model folder, or LoRA adapter, it led to.")],
    out: Annotated[Path, typer.Option(help="Where the new model is written.", file_okay=False)],
    factor: Annotated[
        float, typer.Option(help="0 is the weak model, 1 the strong one; choose it on validation data.")
    ] = 1.52,
    json: Json = False,
) -> None:
    """Write the model beyond a trained one: weak + factor (strong - weak), shard by shard (ExPO).

    Interrupted, it goes on behind the last finished shard when the command is repeated.
    """
    from scorecraft.cli import extrapolation

    extrapolation.extrapolate(weak, strong, factor, out, json)


@app.command(
    epilog=_examples(
        "scorecraft bench",
        "scorecraft bench multi-similarity --json",
        "scorecraft bench --device cuda --record",
    )
)
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Benches, by slug; all when left out.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    record: Annotated[
        bool,
        typer.Option("--record", help="Also write the table into results/bench/ of the checkout (all benches only)."),
    ] = False,
    json: Json = False,
) -> None:
    """Measure time and memory against the peer and against the floor."""
    from scorecraft.cli import benchmarks

    benchmarks.bench(names or [], device=device.value, record=record, as_json=json)


@app.command("new-paper", epilog=_examples("scorecraft new-paper metrix"))
def new_paper(paper: Annotated[str, typer.Argument(metavar="PAPER", help=PAPER_HELP)]) -> None:
    """Lay out the files of a planned paper in this checkout, for those who implement it."""
    from scorecraft.cli import papers

    papers.lay_out_paper(paper)


@app.command(epilog=_examples("scorecraft doctor", "scorecraft doctor --json"))
def doctor(json: Json = False) -> None:
    """Show versions and devices, and which optional parts are missing and how to install them."""
    from scorecraft.cli import installation

    installation.doctor(json)
