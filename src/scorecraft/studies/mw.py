"""Does comparing every positive with every negative of the batch make one threshold fit all queries, as InfoNCE cannot?

Two encoders learn to put the two halves of an item close; contenders share data, initial weights and batches of a seed
and differ in the loss of the score matrix alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import Cosine, Dot, InfoNCELoss
from scorecraft.relevance.mw import PAPER, mann_whitney_loss, per_query_auc, pooled_aoc
from scorecraft.studies.embedding_training import perceptron
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Study, World
from scorecraft.studies.worlds import generator

_SHARED, _OWN = 16, 4
"""Dimensions that a query and its passage share in the generated world, and those that each has to itself."""


class Pairs(NamedTuple):
    """Queries and the passage of each, row by row."""

    queries: Float[Tensor, "n d"]
    passages: Float[Tensor, "n d"]


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """Train both encoders, score every test query against every test passage."""
    told = scale.settings
    train, test = generated_pairs(seed, **world.settings) if world.name == "generated" else digit_halves(seed)
    widths = (train.queries.shape[1], told["hidden"], told["embedding"])
    # The weights of the passage encoder are those that a seed below zero, which is no study's own, would give.
    of_queries, of_passages = perceptron(widths, seed), perceptron(widths, -1 - seed)
    score = 20 * Cosine() if contender.settings["cosine"] else Dot()
    optimiser = torch.optim.Adam(
        [*of_queries.parameters(), *of_passages.parameters()], lr=told["learning_rate"], fused=True
    )
    random = generator(seed, "batches")

    def scores_of(pairs: Pairs) -> Float[Tensor, "n n"]:
        queries, passages = score.prepare(of_queries(pairs.queries)), score.prepare(of_passages(pairs.passages))
        return score.scores(queries, passages)[0]

    for _ in range(told["steps"]):
        batch = torch.randperm(len(train.queries), generator=random)[: told["batch"]]
        optimiser.zero_grad()
        loss_of(contender.settings["loss"], scores_of(Pairs(train.queries[batch], train.passages[batch]))).backward()
        optimiser.step()
    with torch.no_grad():
        return measures(scores_of(test))


def loss_of(name: str, scores: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """InfoNCE, the pairwise logistic loss of each query on its own, or that of all pairs."""
    own = torch.eye(len(scores), dtype=torch.bool)
    if name == "infonce":
        return InfoNCELoss()(scores, own)
    if name == "per_query":
        gap = scores - scores.diagonal()[:, None]
        return F.softplus(gap[~own]).mean()
    return mann_whitney_loss(scores, own)


def measures(scores: Float[Tensor, "n n"]) -> dict[str, float]:
    """Pooled AoC, mean reciprocal rank and per-query AUC, the positives on the diagonal."""
    own = torch.eye(len(scores), dtype=torch.bool)
    rank = 1 + (scores > scores.diagonal()[:, None]).sum(dim=1)
    return {
        "pooled_aoc": float(pooled_aoc(scores, own)),
        "mrr": float((1 / rank.double()).mean()),
        "per_query_auc": float(per_query_auc(scores, own)),
    }


def generated_pairs(seed: int, *, train: int, test: int, noise: float) -> tuple[Pairs, Pairs]:
    """Pairs with 16 dimensions in common, seen through a random map and noise, and 4 of their own.

    query = [z, N(0, I_4)],   passage = [z R + noise N(0, I_16), N(0, I_4)],   z ~ N(0, I_16),   R ~ N(0, 1/16)
    """
    random = generator(seed, "generated pairs")
    mix = torch.randn(_SHARED, _SHARED, generator=random) / 4
    z = torch.randn(train + test, _SHARED, generator=random)
    seen = z @ mix + noise * torch.randn(train + test, _SHARED, generator=random)
    queries = torch.cat([z, torch.randn(train + test, _OWN, generator=random)], dim=1)
    passages = torch.cat([seen, torch.randn(train + test, _OWN, generator=random)], dim=1)
    return Pairs(queries[:train], passages[:train]), Pairs(queries[train:], passages[train:])


def digit_halves(seed: int, *, test: int = 500) -> tuple[Pairs, Pairs]:
    """The left and the right half of the 1,797 digits that come with scikit-learn, pixels in [0, 1]."""
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 8, 8) / 16
    images = images[torch.randperm(len(images), generator=generator(seed, "digit halves"))]
    left, right = images[:, :, :4].flatten(1), images[:, :, 4:].flatten(1)
    return Pairs(left[test:], right[test:]), Pairs(left[:test], right[:test])


def _contender(name: str, title: str, role: str, loss: str, *, cosine: bool = False) -> Contender:
    return Contender(name, title, role, {"loss": loss, "cosine": cosine})  # type: ignore[arg-type]


_TRAINING = {"hidden": 64, "embedding": 32, "learning_rate": 2e-3, "batch": 128}

STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "With dot products the Mann-Whitney loss leaves at least 40% less area over the pooled ROC curve than InfoNCE.",
        metric="pooled_aoc",
        margin=0.4,
        relative=True,
    ),
    further_claims=(
        Claim(
            "The same on the halves of digits.",
            metric="pooled_aoc",
            margin=0.4,
            relative=True,
            world="digits",
        ),
        *(
            Claim(
                f"Ranking within a query gets better as well: MRR is higher than InfoNCE's {where}.",
                metric="mrr",
                margin=0.0,
                world=world,
            )
            for world, where in (("generated", "on generated pairs"), ("digits", "on digits"))
        ),
        Claim(
            "Comparing across queries is what helps: the same logistic loss within queries has a larger area.",
            metric="pooled_aoc",
            margin=0.0,
            baseline="per_query",
        ),
        Claim(
            "It helps with cosines x 20, too.",
            metric="pooled_aoc",
            margin=0.0,
            method="mw_cosine",
            baseline="infonce_cosine",
        ),
    ),
    metrics=(
        Metric("pooled_aoc", "pooled AoC", "lower", decimals=4),
        Metric("mrr", "MRR"),
        Metric("per_query_auc", "per-query AUC", decimals=4),
    ),
    worlds=(
        World(
            "generated",
            "generated pairs",
            "A query and its passage share 16 hidden dimensions, seen through a random map and noise; each has 4 of its"
            " own. 2,000 pairs to learn from, 500 queries against 500 passages to test.",
            {"train": 2000, "test": 500, "noise": 0.5},
        ),
        World(
            "digits",
            "halves of digits",
            "The left half of a real 8 x 8 image retrieves its right half; 1,297 images to learn from, 500 to test.",
        ),
    ),
    contenders=(
        _contender("infonce", "InfoNCE", "baseline", "infonce"),
        _contender("per_query", "pairwise logistic within queries", "contender", "per_query"),
        _contender("mw", "Mann-Whitney", "method", "mw"),
        _contender("infonce_cosine", "InfoNCE, cosine x 20", "contender", "infonce", cosine=True),
        _contender("mw_cosine", "Mann-Whitney, cosine x 20", "contender", "mw", cosine=True),
    ),
    trial=trial,
    scales=(Scale("smoke", 2, {**_TRAINING, "steps": 10}), Scale("desk", 10, {**_TRAINING, "steps": 600})),
    notes=(
        "The paper reports a higher MRR as well; small runs beforehand saw a lower one, by about 0.02 on generated"
        " pairs and 0.08 on digits. It is reported as it comes out.",
        "Beforehand, cosines x 20 took most of the freedom to shift scores per query away, and the Mann-Whitney loss"
        " did not help there: the effect lives where scores can shift.",
        "Two small perceptrons and 600 steps test the mechanism; the paper trains language models on retrieval"
        " collections, and its figures could not be recovered.",
    ),
)
