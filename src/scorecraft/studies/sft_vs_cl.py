"""Is it the weight or the direction of supervised fine-tuning that makes a better re-ranker than contrast?

All contenders of a seed share data, initial network, the frozen rows of "yes" and "no" and the order of batches; they
differ in the weight and the direction of the unified loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scorecraft.relevance.sft_vs_cl import PAPER, UnifiedRerankingLoss, direction_score
from scorecraft.relevance.sft_vs_cl.weights import DIRECTIONS
from scorecraft.relevance.two_row_scoring import row_logits
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Settings, Study, World
from scorecraft.studies.worlds import generator

DIMENSIONS, WIDTH, STATES = 16, 64, 32
CUTOFF = 10


class Lists(NamedTuple):
    """Queries with their documents, the relevant one first."""

    queries: Float[Tensor, "q 16"]
    documents: Float[Tensor, "q c 16"]


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """Train on small lists, re-rank long ones; without a direction of its own, a contender is the mean over both."""
    told = contender.settings
    seen, unseen = draw(seed, scale.settings, hard_share=world.settings["hard_share"])
    directions = (told["direction"],) if "direction" in told else DIRECTIONS
    found = []
    for direction in directions:
        loss = UnifiedRerankingLoss(weight=told["weight"], direction=direction, mask_threshold=0.1)
        network = train(loss, seen, seed, scale.settings)
        with torch.no_grad():
            scores = direction_score(network(unseen), loss.direction)
        found.append(100 * ndcg_of_the_first(scores).mean().item())
    return {"ndcg_at_10": sum(found) / len(found)}


class Reranker(nn.Module):
    """A small perceptron of (query, document, their product) under the frozen rows of yes and no."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator(seed, "network"))))
            self.network = nn.Sequential(
                nn.Linear(3 * DIMENSIONS, WIDTH),
                nn.ReLU(),
                nn.Linear(WIDTH, WIDTH),
                nn.ReLU(),
                nn.Linear(WIDTH, STATES),
                nn.LayerNorm(STATES, elementwise_affine=False),
            )
        self.rows: Tensor
        rows = torch.randn(2, STATES, generator=generator(seed, "rows")) * 1.5 / STATES**0.5
        self.register_buffer("rows", rows)

    def forward(self, lists: Lists) -> Float[Tensor, "2 q c"]:
        """The logits of yes and no of every document."""
        queries = lists.queries[:, None].expand_as(lists.documents)
        states = self.network(torch.cat([queries, lists.documents, queries * lists.documents], dim=2))
        return row_logits(states, self.rows)


def draw(seed: int, sizes: Settings, *, hard_share: float) -> tuple[Lists, Lists]:
    """Lists to learn from and lists to re-rank.

    A query `q ~ N(0, I)` asks for `t = 1.5 tanh(q B)`; its relevant document is `t + 0.6 e`, a hard negative
    `t + 1.2 e` and an easy one `1.2 e`, with `e ~ N(0, I)` anew for each and `B ~ N(0, 1) / 4` fixed. Half of the
    training negatives are hard.
    """
    random = generator(seed, "lists")
    bilinear = torch.randn(DIMENSIONS, DIMENSIONS, generator=random) / 4

    def lists(queries: int, negatives: int, hard: int) -> Lists:
        q = torch.randn(queries, DIMENSIONS, generator=random)
        target = 1.5 * torch.tanh(q @ bilinear)
        noise = torch.randn(queries, 1 + negatives, DIMENSIONS, generator=random)
        noise *= torch.tensor([0.6] + [1.2] * negatives)[:, None]
        near = torch.arange(1 + negatives) <= hard  # the relevant one, and the hard negatives behind it
        return Lists(q, noise + target[:, None] * near[:, None])

    negatives, candidates = sizes["negatives"], sizes["candidates"]
    return (
        lists(sizes["train_queries"], negatives, negatives // 2),
        lists(sizes["test_queries"], candidates - 1, round(hard_share * (candidates - 1))),
    )


def train(loss: UnifiedRerankingLoss, seen: Lists, seed: int, told: Settings) -> Reranker:
    """AdamW with clipped gradients over some epochs."""
    network = Reranker(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=told["learning_rate"])
    relevance = torch.arange(seen.documents.shape[1]) == 0
    for rows in _batches(len(seen.queries), seed, batch=told["batch"], epochs=told["epochs"]):
        scores = network(Lists(seen.queries[rows], seen.documents[rows]))
        optimizer.zero_grad()
        loss(scores, relevance.expand(scores.shape[1:])).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network


def ndcg_of_the_first(scores: Float[Tensor, "q c"], cutoff: int = CUTOFF) -> Float[Tensor, " q"]:
    """NDCG of lists whose relevant document is the first; ties count against it."""
    above = (scores[:, 1:] >= scores[:, :1]).sum(dim=1)
    return torch.where(above < cutoff, 1 / (above + 2.0).log2(), 0.0)


def _batches(count: int, seed: int, *, batch: int, epochs: int) -> Iterator[Tensor]:
    random = generator(seed, "batches")
    for _ in range(epochs):
        yield from torch.randperm(count, generator=random).split(batch)


_TRAINING = {"negatives": 4, "candidates": 100, "batch": 16, "learning_rate": 1e-3}

STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "The weight of SFT re-ranks better than the weight of contrast, averaged over both directions: NDCG@10 is"
        " higher by 1 point or more.",
        metric="ndcg_at_10",
        margin=1.0,
    ),
    further_claims=(
        Claim(
            "Pure SFT re-ranks better than pure contrast.",
            metric="ndcg_at_10",
            margin=0.0,
            method="sft_sft",
            baseline="cl_cl",
        ),
        Claim(
            "The weight of SFT with the direction of contrast re-ranks better than the reverse (with pure SFT above"
            " pure contrast, this says that the effect of the direction is the smaller one).",
            metric="ndcg_at_10",
            margin=0.0,
            method="sft_cl",
            baseline="cl_sft",
        ),
        Claim(
            "A constant weight collapses: the weight of SFT reaches twice its NDCG@10 or more.",
            metric="ndcg_at_10",
            margin=1.0,
            relative=True,
            method="sft_sft",
            baseline="one",
        ),
        Claim(
            "A constant weight that is masked re-ranks better than the weight of SFT (the paper saw the reverse).",
            metric="ndcg_at_10",
            margin=0.0,
            method="masked",
            baseline="sft_sft",
        ),
    ),
    metrics=(Metric("ndcg_at_10", "NDCG@10 x 100", decimals=2),),
    worlds=(
        World(
            "reranking",
            "generated lists",
            "A query asks for a fixed nonlinear function of itself; the relevant document lies near it, hard negatives"
            " lie around it, easy ones anywhere. 2,000 queries with 4 negatives to learn from, 1,000 lists of 100"
            " documents to re-rank, 30 of them hard.",
            {"hard_share": 0.3},
        ),
    ),
    contenders=(
        Contender("weight_cl", "weight of contrast, both directions", "baseline", {"weight": "cl"}),
        Contender("weight_sft", "weight of SFT, both directions", "method", {"weight": "sft"}),
        Contender("sft_sft", "pure SFT", settings={"weight": "sft", "direction": "sft"}),
        Contender("sft_cl", "weight of SFT, direction of contrast", settings={"weight": "sft", "direction": "cl"}),
        Contender("cl_sft", "weight of contrast, direction of SFT", settings={"weight": "cl", "direction": "sft"}),
        Contender("cl_cl", "pure contrast", settings={"weight": "cl", "direction": "cl"}),
        Contender("masked", "masked constant, direction of SFT", settings={"weight": "masked", "direction": "sft"}),
        Contender("one", "constant weight, direction of SFT", settings={"weight": "one", "direction": "sft"}),
    ),
    trial=trial,
    scales=(
        Scale("smoke", 2, {**_TRAINING, "train_queries": 160, "test_queries": 100, "epochs": 2}),
        Scale("desk", 8, {**_TRAINING, "train_queries": 2000, "test_queries": 1000, "epochs": 4}),
    ),
    notes=(
        "The claim is about a mean over two configurations, so its two contenders train both directions and report the"
        " mean; the four single configurations stand beside them.",
        "The gap is that of a short training: earlier runs of this experiment saw it shrink with more epochs and with a"
        " learning rate tuned for each.",
        "In the paper the masked constant stays below contrast; in an earlier run of this experiment it was the best of"
        " all. It is reported as it comes out, and its threshold, 0.1, is ours.",
        "A perceptron on 16 dimensions stands in for a language model, whose last hidden state alone the analysis is"
        " about: this tests the mechanism, not the paper's margins on 40 test sets.",
    ),
)
