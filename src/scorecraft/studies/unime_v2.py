"""Do soft labels of a judge teach a retriever's ranking more than one-hot targets on the same mined negatives?

All contenders of a seed start from the same retriever and take its hard negatives in the same batches of queries; they
differ in whether the judge filters those negatives, and in the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core import Cosine, InfoNCELoss, Pairs, in_batch
from scorecraft.relevance.unime_v2 import (
    PAPER,
    Pool,
    SoftLabelAlignmentLoss,
    candidate_pool,
    cyclic_positions,
    judged_negatives,
)
from scorecraft.studies.embedding_training import perceptron
from scorecraft.studies.study import Claim, Contender, Metric, Role, Scale, Settings, Study, World
from scorecraft.studies.worlds import generator

_DIMENSIONS, _FEATURES, _CLUSTERS = 8, 24, 60
_RELEVANT = 0.85
_TEMPERATURE = 0.05
_STRIDE, _NEGATIVES = 5, 8
_RERANKED, _CUT = 50, 10

Split = tuple[Float[Tensor, "q f"], Float[Tensor, "c f"], Float[Tensor, "q c"], Int[Tensor, " q"]]
"""Features of queries and of a corpus, the truth of every pair, and the place of each query's positive."""


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """Train a retriever, mine its hard negatives, train it on them, and see how it ranks for new queries."""
    told = {**world.settings, **scale.settings}
    random = generator(seed, "judged world")
    hidden = JudgedWorld(random)
    train = hidden.draw(told["queries"], told["corpus"], random)
    test = hidden.draw(told["test_queries"], told["corpus"], random)
    towers = Towers(seed, told)
    train_retriever(towers, train, seed, told)
    first = towers.scores(test)
    if contender.role != "reference":
        verdicts = judge(train[2], generator(seed, "judge"))
        train_on_negatives(towers, train, verdicts, contender.settings, seed, told)
    return measure(first, towers.scores(test), test[2])


class JudgedWorld:
    """Items around 60 centres on a sphere, seen through a random layer, another one for queries than for the corpus.

    An item is `z = norm(centre + 0.2 n)` in 8 dimensions, a query `norm(z_positive + 0.12 n)`, and what an encoder sees
    `tanh(z A) + 0.25 n` in 24. True relevance is the cosine of the hidden vectors.
    """

    def __init__(self, random: torch.Generator) -> None:
        self.centres = F.normalize(torch.randn(_CLUSTERS, _DIMENSIONS, generator=random), dim=1)
        self.lenses = torch.randn(2, _DIMENSIONS, _FEATURES, generator=random)

    def draw(self, queries: int, corpus: int, random: torch.Generator) -> Split:
        """New queries on a new corpus."""

        def noise(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=random)

        own = torch.randint(_CLUSTERS, (corpus,), generator=random)
        items = F.normalize(self.centres[own] + 0.2 * noise(corpus, _DIMENSIONS), dim=1)
        positive = torch.randint(corpus, (queries,), generator=random)
        asked = F.normalize(items[positive] + 0.12 * noise(queries, _DIMENSIONS), dim=1)
        seen = [
            torch.tanh(hidden @ lens) + 0.25 * noise(len(hidden), _FEATURES)
            for hidden, lens in zip((asked, items), self.lenses, strict=True)
        ]
        return seen[0], seen[1], asked @ items.T, positive


class Towers(nn.Module):
    """A perceptron for queries and one for the corpus; embeddings of length one."""

    def __init__(self, seed: int, settings: Settings) -> None:
        super().__init__()
        widths = (_FEATURES, settings["hidden"], settings["embedding"])
        self.query, self.item = perceptron(widths, seed), perceptron(widths, seed + 1_000_000)

    def forward(
        self, queries: Float[Tensor, "q f"], items: Float[Tensor, "n f"]
    ) -> tuple[Float[Tensor, "q d"], Float[Tensor, "n d"]]:
        return F.normalize(self.query(queries), dim=1), F.normalize(self.item(items), dim=1)

    @torch.no_grad()
    def scores(self, split: Split) -> Float[Tensor, "q c"]:
        """Cosines of all queries and all items."""
        queries, items = self(split[0], split[1])
        return queries @ items.T


def train_retriever(towers: Towers, train: Split, seed: int, settings: Settings) -> None:
    """Stage 0: every query against the positives of its batch."""
    queries, items, _, positive = train
    loss = in_batch(InfoNCELoss(temperature=_TEMPERATURE), score=Cosine(), validate=False)
    optimiser = torch.optim.AdamW(towers.parameters(), lr=settings["learning_rate"], fused=True)
    for batch in _batches(len(queries), settings["batch"], settings["steps"], generator(seed, "stage 0")):
        own = positive[batch]
        asked, found = towers(queries[batch], items[own])
        pairs = Pairs.of_queries(torch.arange(len(batch)), passages=own)
        optimiser.zero_grad()
        loss(asked, reference=found, pairs=pairs).backward()
        optimiser.step()


def judge(truth: Float[Tensor, "q c"], random: torch.Generator) -> Float[Tensor, "q c"]:
    """Verdicts of a judge who sees the truth with some noise."""
    return ((truth - _RELEVANT) / 0.04 + 0.5 * torch.randn(truth.shape, generator=random)).sigmoid()


class Mined(NamedTuple):
    """What stage 1 learns from: lists of candidates, the positive first."""

    queries: Int[Tensor, " n"]
    """The queries that have negatives."""
    candidates: Int[Tensor, "n l"]
    verdicts: Float[Tensor, "n l"]
    distinct: Bool[Tensor, "n l"]


def mine(towers: Towers, train: Split, verdicts: Float[Tensor, "q c"], *, filtered: bool) -> Mined:
    """The retriever's hard negatives by cyclic sampling, with or without the judge's filter."""
    positive = train[3][:, None]
    scores, ids = towers.scores(train).topk(_RERANKED + 1, dim=1)
    pool: Pool = candidate_pool(ids, scores, positive, size=_RERANKED)
    of_pool, of_positive = verdicts.gather(1, pool.ids.clamp(min=0)), verdicts.gather(1, positive)
    if filtered:
        chosen = judged_negatives(of_pool, of_positive[:, 0], pool.where, stride=_STRIDE, count=_NEGATIVES)
        positions, counted, distinct = chosen.positions.clamp(min=0), chosen.counted, chosen.distinct
    else:
        positions = cyclic_positions(pool.where, stride=_STRIDE, count=_NEGATIVES)
        counted, distinct = pool.where[:, 0], torch.ones_like(positions, dtype=torch.bool)
    return Mined(
        counted.nonzero()[:, 0],
        torch.cat([positive, pool.ids.gather(1, positions)], dim=1)[counted],
        torch.cat([of_positive, of_pool.gather(1, positions)], dim=1)[counted],
        torch.cat([torch.ones_like(positive, dtype=torch.bool), distinct], dim=1)[counted],
    )


def train_on_negatives(
    towers: Towers, train: Split, verdicts: Float[Tensor, "q c"], contender: Settings, seed: int, settings: Settings
) -> None:
    """Stage 1: every query against its own mined candidates."""
    queries, items, *_ = train
    mined = mine(towers, train, verdicts, filtered=contender["filtered"])
    loss = (SoftLabelAlignmentLoss if contender["soft"] else InfoNCELoss)(temperature=_TEMPERATURE, validate=False)
    beside = in_batch(InfoNCELoss(temperature=_TEMPERATURE), score=Cosine(), validate=False)
    steps, rate = (settings[f"{name}_of_{contender['stage']}"] for name in ("steps", "learning_rate"))
    optimiser = torch.optim.AdamW(towers.parameters(), lr=rate, fused=True)
    for batch in _batches(len(mined.queries), settings["batch"], steps, generator(seed, "stage 1")):
        candidates = mined.candidates[batch]
        asked, found = towers(queries[mined.queries[batch]], items[candidates.flatten()])
        found = found.unflatten(0, candidates.shape)
        scores = torch.einsum("bd,bcd->bc", asked, found)
        relevance = mined.verdicts[batch]
        if not contender["soft"]:
            relevance = torch.zeros_like(relevance)
            relevance[:, 0] = 1
        value = loss(scores, relevance, mined.distinct[batch])
        if contender["in_batch"]:
            pairs = Pairs.of_queries(torch.arange(len(batch)), passages=candidates[:, 0])
            value = value + beside(asked, reference=found[:, 0], pairs=pairs)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimiser.step()


def measure(first: Float[Tensor, "q c"], scores: Float[Tensor, "q c"], truth: Float[Tensor, "q c"]) -> dict[str, float]:
    """nDCG@10, times 100, in the retriever's first 50 and in the whole corpus."""
    gains = ((truth - _RELEVANT) / 0.03).sigmoid()
    shortlist = first.topk(min(_RERANKED, first.shape[1]), dim=1).indices
    return {
        "ndcg": 100 * ndcg(scores.gather(1, shortlist), gains.gather(1, shortlist)),
        "ndcg_corpus": 100 * ndcg(scores, gains),
    }


def ndcg(scores: Float[Tensor, "q c"], gains: Float[Tensor, "q c"], cut: int = _CUT) -> float:
    """The mean over queries of `DCG / best DCG` with `DCG = sum_{rank <= cut} gain / log2(1 + rank)`."""
    discount = 1 / torch.arange(2, cut + 2, dtype=torch.float64).log2()
    ranked = gains.gather(1, scores.topk(cut, dim=1).indices).double() @ discount
    return float((ranked / (gains.topk(cut, dim=1).values.double() @ discount)).mean())


def _batches(rows: int, size: int, steps: int, random: torch.Generator) -> Iterator[Int[Tensor, " b"]]:
    """Batches of rows drawn without replacement, pass after pass."""
    order = torch.cat([torch.randperm(rows, generator=random) for _ in range(math.ceil(steps * size / rows))])
    yield from order[: steps * size].split(size)


def _contender(
    name: str, title: str, role: Role = "contender", *, soft: bool, filtered: bool = True, large: bool = False,
    in_batch: bool = False,
) -> Contender:  # fmt: skip
    stage = "large_step" if large else "small_step"
    return Contender(name, title, role, {"soft": soft, "filtered": filtered, "stage": stage, "in_batch": in_batch})


_TRAINING = {
    "hidden": 96, "embedding": 16, "batch": 64, "learning_rate": 2e-3,
    "learning_rate_of_small_step": 3e-4, "learning_rate_of_large_step": 1e-3,
}  # fmt: skip

STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "On the same filtered hard negatives soft labels rank better than one-hot targets: nDCG@10 is higher by 0.5"
        " points or more.",
        metric="ndcg",
        margin=0.5,
    ),
    further_claims=(
        Claim(
            "With one-hot targets the judge's filter of false negatives is worth 0.4 points of nDCG@10 or more.",
            metric="ndcg",
            margin=0.4,
            method="infonce",
            baseline="infonce_unfiltered",
        ),
        Claim(
            "With soft labels the filter gains nothing: unfiltered negatives are as good.",
            metric="ndcg",
            margin=0.0,
            method="soft_unfiltered",
            baseline="soft",
        ),
        Claim(
            "A larger step (1e-3, 800 steps) forgets the corpus: its nDCG@10 there is lower by 10 points or more.",
            metric="ndcg_corpus",
            margin=10.0,
            baseline="soft_large",
        ),
        Claim(
            "An in-batch term beside the soft labels keeps some of the corpus under the larger step.",
            metric="ndcg_corpus",
            margin=0.0,
            method="soft_large_in_batch",
            baseline="soft_large",
        ),
    ),
    metrics=(
        Metric("ndcg", "nDCG@10 x 100, in the retriever's first 50", decimals=2),
        Metric("ndcg_corpus", "nDCG@10 x 100, whole corpus", decimals=2),
    ),
    worlds=(
        World(
            "judged",
            "clusters with a noisy judge",
            "3,000 items around 60 centres in 8 hidden dimensions, seen in 24; 1,500 queries to learn from with one"
            " positive each, 500 new ones on a new corpus to rank. To the judge, who sees relevance with noise, about"
            " a tenth of the unfiltered hard negatives are false ones.",
        ),
    ),
    contenders=(
        _contender("infonce_unfiltered", "InfoNCE, unfiltered negatives", soft=False, filtered=False),
        _contender("infonce", "InfoNCE, judge-filtered negatives", "baseline", soft=False),
        _contender("soft_unfiltered", "soft labels, unfiltered negatives", soft=True, filtered=False),
        _contender("soft", "soft labels, judge-filtered negatives", "method", soft=True),
        _contender("soft_large", "soft labels, larger step", soft=True, large=True),
        _contender("soft_large_in_batch", "soft labels and InfoNCE in the batch, larger step", soft=True, large=True,
                   in_batch=True),
        Contender("retriever", "retriever before stage 1", "reference"),
    ),
    trial=trial,
    scales=(
        Scale(
            "smoke",
            2,
            {
                **_TRAINING, "queries": 200, "corpus": 300, "test_queries": 60, "steps": 30, "steps_of_small_step": 10,
                "steps_of_large_step": 15,
            },
        ),
        Scale(
            "desk",
            8,
            {
                **_TRAINING, "queries": 1500, "corpus": 3000, "test_queries": 500, "steps": 400,
                "steps_of_small_step": 300, "steps_of_large_step": 800,
            },
        ),
    ),
    notes=(
        "That the filter gains nothing under soft labels is what the specification of this experiment expects: labels"
        " that say a candidate is as good as the positive have dealt with it already.",
        "The larger step is there to show a limit of the loss: every query reads its own candidates alone, so nothing"
        " holds the geometry of the corpus, and an in-batch term holds part of it.",
        "Stage 1 need not beat the retriever it starts from; the comparison is between ways to use the same negatives.",
        "The judge is the truth with noise, encoders are perceptrons, and the paper's temperature of 0.02 is 0.05 here:"
        " this tests the mechanism, not the judge of the paper.",
    ),
)  # fmt: skip
