"""Do dynamic hard negatives weighted by a rank metric beat static ones, and are those better than random ones?

All contenders of a seed share the corpus, both encoders after the warm-up, and the order of the queries in each stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.core import PairwiseLogisticLoss
from scorecraft.relevance.star_adore import (
    PAPER,
    AdoreLoss,
    RelevantDocuments,
    StarLoss,
    list_overlap,
    mine_hard_negatives,
    reciprocal_rank,
    sample_hard_negatives,
    star_batch,
    with_missing_positives,
)
from scorecraft.relevance.vector_index import ExactIndex
from scorecraft.studies.embedding_training import perceptron
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Settings, Study, World
from scorecraft.studies.worlds import generator

DIMENSIONS, HIDDEN, EMBEDDING = 24, 48, 16

Negatives = Literal["random", "static", "star", "adore"]
Embed = Callable[[Int[Tensor, "..."]], Float[Tensor, "... d"]]
"""From rows of queries or documents to their embeddings."""
Loss = Callable[[Int[Tensor, " b"]], Float[Tensor, ""]]
"""Of a batch of training queries, given by their rows."""


class Corpus(NamedTuple):
    """Documents, and queries that each have one relevant document."""

    documents: Float[Tensor, "n d"]
    queries: Float[Tensor, "q d"]
    relevant: RelevantDocuments
    test_queries: Float[Tensor, "t d"]
    test_relevant: Int[Tensor, " t"]


class Towers(nn.Module):
    """A query encoder and a document encoder, a perceptron with a LayerNorm each."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        widths = (DIMENSIONS, HIDDEN, EMBEDDING)
        self.query = nn.Sequential(perceptron(widths, 2 * seed), nn.LayerNorm(EMBEDDING))
        self.document = nn.Sequential(perceptron(widths, 2 * seed + 1), nn.LayerNorm(EMBEDDING))


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """Warm up, train as the contender says, and rank the whole corpus for queries never trained on."""
    told, stages = scale.settings, contender.settings
    corpus = clustered_corpus(seed, world.settings, queries=told["queries"], documents=told["documents"])
    towers = Towers(seed)

    def ask(rows: Tensor) -> Tensor:
        return towers.query(corpus.queries[rows])

    def answer(rows: Tensor) -> Tensor:
        return towers.document(corpus.documents[rows])

    def learn(stage: str, module: nn.Module, loss: Loss, rate: float) -> None:
        optimizer = torch.optim.AdamW(module.parameters(), lr=rate, fused=True)
        for rows in _batches(len(corpus.queries), told["batch"], told[f"{stage}_steps"], generator(seed, stage)):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()

    learn("warm_up", towers, loss_with("random", ask, answer, corpus, random=generator(seed, "warm-up draws")), 3e-3)
    depth = told["depth"]
    static = mined(towers, corpus, depth)
    if "both" in stages:
        draws = generator(seed, "draws for both")
        learn("both", towers, loss_with(stages["both"], ask, answer, corpus, static=static, random=draws), 1e-3)
    if "query" in stages:
        with torch.no_grad():
            frozen = towers.document(corpus.documents)
        refreshed, draws = mined(towers, corpus, depth), generator(seed, "draws for the query")
        loss = loss_with(
            stages["query"], ask, frozen.__getitem__, corpus, static=refreshed, frozen=frozen, depth=depth, random=draws
        )
        learn("query", towers.query, loss, 1e-3)
    with torch.no_grad():
        found = _index(towers, corpus).search(towers.query(corpus.test_queries), 10).ids
    return {
        "mrr": reciprocal_rank(found == corpus.test_relevant[:, None]).mean().item(),
        "overlap": list_overlap(static, mined(towers, corpus, depth)).mean().item(),
    }


def loss_with(
    negatives: Negatives,
    ask: Embed,
    answer: Embed,
    corpus: Corpus,
    *,
    random: torch.Generator,
    static: Int[Tensor, "q k"] | None = None,
    frozen: Float[Tensor, "n d"] | None = None,
    depth: int = 0,
) -> Loss:
    """The loss of a batch with negatives of one kind.

    `random`: the positives of the other queries. `static`: one of the query's own static list. `star`: both of these,
    the static ones of all queries together. `adore`: the first `depth` of the frozen documents, weighted for MRR.
    """
    star, pairwise, adore = StarLoss(), PairwiseLogisticLoss(), AdoreLoss(metric_cut=max(1, depth))
    index = None if frozen is None else ExactIndex(frozen)

    def among_the_batch(rows: Tensor) -> Tensor:
        batch = star_batch(rows, corpus.relevant, static if negatives == "star" else None, generator=random)
        return star(ask(batch.queries), reference=answer(batch.passages), pairs=batch.pairs)

    def against_its_own(rows: Tensor) -> Tensor:
        assert static is not None
        hard = sample_hard_negatives(static[rows], 1, generator=random)
        scores = torch.einsum("bd,bkd->bk", ask(rows), answer(torch.cat([corpus.relevant[rows], hard], dim=1)))
        return pairwise(scores, torch.tensor([1, 0]).expand(scores.shape))

    def against_the_best(rows: Tensor) -> Tensor:
        assert index is not None
        x = ask(rows)
        lists = with_missing_positives(index.search(x.detach(), depth).ids, corpus.relevant[rows])
        scores = torch.einsum("bd,bkd->bk", x, answer(lists.ids.clamp(min=0)))
        return adore(scores, lists.relevant, lists.where)

    losses: dict[Negatives, Loss] = {
        "random": among_the_batch,
        "star": among_the_batch,
        "static": against_its_own,
        "adore": against_the_best,
    }
    return losses[negatives]


def clustered_corpus(seed: int, settings: Settings, *, queries: int, documents: int) -> Corpus:
    """Documents `z` around Gaussian centres, and queries `tanh(z R) + 0.5 (z R) W + noise` of some of them.

    Entries of `R` and `W` are `N(0, 1 / 24)`. There is one query for the test for every five to train on.
    """
    draw = generator(seed, "clustered corpus")

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    centres = gaussian(settings["clusters"], DIMENSIONS)
    cluster = torch.randint(settings["clusters"], (documents,), generator=draw)
    z = centres[cluster] + settings["spread"] * gaussian(documents, DIMENSIONS)
    turn, mix = (gaussian(DIMENSIONS, DIMENSIONS) / DIMENSIONS**0.5 for _ in range(2))

    def questions(count: int) -> tuple[Tensor, Tensor]:
        relevant = torch.randint(documents, (count,), generator=draw)
        turned = z[relevant] @ turn
        return torch.tanh(turned) + 0.5 * turned @ mix + settings["noise"] * gaussian(count, DIMENSIONS), relevant

    train, relevant = questions(queries)
    test, test_relevant = questions(queries // 5)
    return Corpus(z, train, RelevantDocuments(relevant[:, None].tolist(), documents=documents), test, test_relevant)


@torch.no_grad()
def mined(towers: Towers, corpus: Corpus, depth: int) -> Int[Tensor, "q k"]:
    """The hard negatives of all training queries for the encoders as they are."""
    return mine_hard_negatives(_index(towers, corpus), towers.query(corpus.queries), corpus.relevant, depth=depth)


@torch.no_grad()
def _index(towers: Towers, corpus: Corpus) -> ExactIndex:
    return ExactIndex(towers.document(corpus.documents))


def _batches(queries: int, batch: int, steps: int, random: torch.Generator) -> Iterator[Int[Tensor, " b"]]:
    """`steps` batches of different queries, each drawn from all."""
    for _ in range(steps):
        yield torch.randperm(queries, generator=random)[:batch]


_SIZES = {"documents": 4000, "queries": 3000, "batch": 64, "depth": 50}

STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "ADORE after STAR ranks better than STAR: full-corpus MRR@10 is higher by 0.02 or more.",
        metric="mrr",
        margin=0.02,
    ),
    further_claims=(
        Claim(
            "Dynamic negatives are better for the query encoder than static ones, refreshed once: MRR@10 is higher by"
            " 0.02 or more.",
            metric="mrr",
            margin=0.02,
            baseline="star_static",
        ),
        Claim(
            "STAR is better than its warm-up: MRR@10 is higher by 0.1 or more.",
            metric="mrr",
            margin=0.1,
            method="star",
            baseline="warm_up",
        ),
        Claim(
            "STAR is better than static hard negatives alone (a gap of about 0.014 is expected).",
            metric="mrr",
            margin=0.0,
            method="star",
            baseline="static",
        ),
        Claim(
            "Static hard negatives are better than random ones (a gap of about 0.017 is expected).",
            metric="mrr",
            margin=0.0,
            method="static",
            baseline="random",
        ),
        Claim(
            "A static list is left behind: after 800 steps on it the current top 50 hold less than 0.8 of it.",
            metric="overlap",
            margin=0.2,
            method="static",
            baseline="warm_up",
        ),
    ),
    metrics=(
        Metric("mrr", "MRR@10, whole corpus"),
        Metric("overlap", "overlap with the warm-up's top 50", better="lower"),
    ),
    worlds=(
        World(
            "clusters",
            "clustered corpus",
            "4,000 documents in 24 dimensions around 200 centres; 3,000 queries to train on and 600 for the test, each"
            " a distorted and noisy copy of its one relevant document.",
            {"clusters": 200, "spread": 0.6, "noise": 0.35},
        ),
    ),
    contenders=(
        Contender("warm_up", "warm-up, in-batch negatives"),
        Contender("random", "+ random (in-batch) negatives", settings={"both": "random"}),
        Contender("static", "+ static hard negatives only", settings={"both": "static"}),
        Contender("star", "+ STAR", "baseline", {"both": "star"}),
        Contender("star_random", "STAR + query-only, random", settings={"both": "star", "query": "random"}),
        Contender("star_static", "STAR + query-only, static", settings={"both": "star", "query": "static"}),
        Contender("random_adore", "random + ADORE", settings={"both": "random", "query": "adore"}),
        Contender("star_adore", "STAR + ADORE", "method", {"both": "star", "query": "adore"}),
    ),
    trial=trial,
    scales=(
        Scale(
            "smoke",
            2,
            {
                "documents": 200,
                "queries": 100,
                "batch": 16,
                "depth": 10,
                "warm_up_steps": 5,
                "both_steps": 5,
                "query_steps": 5,
            },
        ),
        Scale("desk", 8, {**_SIZES, "warm_up_steps": 500, "both_steps": 800, "query_steps": 500}),
    ),
    notes=(
        "An earlier run of this experiment saw the paper's order, ADORE over STAR over static over random, in the mean"
        " of three seeds; in single seeds static and random negatives tie.",
        "A contender that trains the query encoder further also takes 500 steps more than STAR alone: the comparison"
        " with equal steps is the one against query-only training with static negatives.",
        "The collapse that static negatives alone risk in a large corpus is not to be seen in one of 4,000 documents.",
        "Encoders are small perceptrons and the corpus is made up: this tests the mechanism, not the paper's margins on"
        " MS MARCO.",
    ),
)
