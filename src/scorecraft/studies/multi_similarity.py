"""Does weighing pairs by all three similarities, after mining, beat the contrastive loss on unseen classes?

The contenders differ in their loss alone. Losses that are averaged in practice are averaged here too (contrastive and
triplet over active terms), so that the method does not win by the scale of its rivals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.scores import Dot
from scorecraft.similarity.multi_similarity import (
    PAPER,
    BinomialDevianceLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    NPairLoss,
)
from scorecraft.similarity.recall import recall_at_k
from scorecraft.studies.embedding_training import KAIMING, Objective, class_batches, unseen_embeddings
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Study, World
from scorecraft.studies.worlds import Items

_TRAINING = {
    "hidden": 128,
    "embedding": 16,
    "batch": 80,
    "batch_classes": 16,
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
}
_CLASSES = {
    "train_classes": 40,
    "train_items": 20,
    "test_classes": 60,
    "test_items": 10,
    "spread": 0.5,
    "nuisance": 1.2,
}
_MULTI_SIMILARITY = {"alpha": 2.0, "beta": 50.0, "threshold": 0.5}


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """Train on the seen classes with a contender's loss, measure Recall@K on the unseen ones."""
    embeddings, labels = unseen_embeddings(world, contender, seed, scale, objective=_objective, batches=class_batches)
    recall = recall_at_k(embeddings, labels, k=(1, 8))
    return {"recall_at_1": recall[1], "recall_at_8": recall[8]}


def contrastive(embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, margin: float) -> Float[Tensor, ""]:
    """`mean_{active N} (S - margin) - mean_P S`, where negatives above the margin are active."""
    scores, positives, negatives = _scores(embeddings, labels)
    excess = F.relu(scores[negatives] - margin)
    return excess.sum() / (excess > 0).sum().clamp(min=1) - scores[positives].mean()


def triplet(embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, margin: float) -> Float[Tensor, ""]:
    """The mean of `S_an - S_ap + margin` over the triplets where it is positive."""
    scores, positives, negatives = _scores(embeddings, labels)
    anchor, positive = positives.nonzero(as_tuple=True)
    excess = F.relu(scores[anchor] - scores[anchor, positive][:, None] + margin) * negatives[anchor]
    return excess.sum() / (excess > 0).sum().clamp(min=1)


def n_pair(embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, scale: float) -> Float[Tensor, ""]:
    """N-pair on `scale` times the cosine."""
    return NPairLoss(score=Dot())(F.normalize(embeddings) * scale**0.5, labels)


_OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "contrastive": lambda **settings: partial(contrastive, **settings),
    "triplet": lambda **settings: partial(triplet, **settings),
    "n_pair": lambda **settings: partial(n_pair, **settings),
    "lifted": LiftedStructureLoss,
    "binomial": BinomialDevianceLoss,
    "multi_similarity_unmined": MultiSimilarityLoss,
    "multi_similarity": MultiSimilarityLoss,
}


def _objective(world: World, contender: Contender, seen: Items, width: int, seed: int) -> Objective:
    return _OBJECTIVES[contender.name](**contender.settings)


def _scores(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines, and which of them are positive and which negative; self pairs are neither."""
    x = F.normalize(embeddings)
    same = labels[:, None] == labels
    return x @ x.T, same & ~torch.eye(len(same), dtype=torch.bool), ~same


STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "The Multi-Similarity loss finds more items of unseen classes than the contrastive loss: Recall@1 is higher by"
        " 0.015 or more.",
        metric="recall_at_1",
        margin=0.015,
    ),
    further_claims=(
        Claim(
            "Mining is part of it: Recall@1 is higher by 0.02 or more than without mining.",
            metric="recall_at_1",
            margin=0.02,
            baseline="multi_similarity_unmined",
        ),
    ),
    metrics=(Metric("recall_at_1", "Recall@1"), Metric("recall_at_8", "Recall@8")),
    worlds=(
        World(
            "generated",
            "generated world",
            "Classes differ in 8 hidden dimensions among 24 that mean nothing; 40 classes of 20 items to learn from, 60"
            " unseen classes of 10 items to retrieve.",
            _CLASSES,
        ),
        World(
            "large_weights",
            "generated world, larger initial weights",
            "The same, with the encoder's initial weights 2.4 times as large (Kaiming's rule for ReLU).",
            {**_CLASSES, "weight_scale": KAIMING},
        ),
        World(
            "digits",
            "handwritten digits",
            "Real 8 x 8 images; five digits to learn from, the other five to retrieve, split anew by each seed.",
            {"seen_classes": 5},
        ),
    ),
    contenders=(
        Contender("contrastive", "contrastive", "baseline", {"margin": 0.5}),
        Contender("lifted", "lifted structure", settings={"margin": 0.5}),
        Contender("binomial", "binomial deviance", settings={"alpha": 2.0, "beta": 40.0, "threshold": 0.5}),
        Contender("n_pair", "N-pair", settings={"scale": 16.0}),
        Contender("triplet", "triplet", settings={"margin": 0.1}),
        Contender("multi_similarity_unmined", "MS, no mining", settings={**_MULTI_SIMILARITY, "mining": False}),
        Contender("multi_similarity", "Multi-Similarity", "method", {**_MULTI_SIMILARITY, "mining_margin": 0.1}),
        Contender("raw", "raw input", "reference"),
        Contender("oracle", "hidden truth", "reference", worlds=("generated", "large_weights")),
    ),
    trial=trial,
    scales=(Scale("smoke", 2, {**_TRAINING, "steps": 20}), Scale("desk", 16, {**_TRAINING, "steps": 500})),
    notes=(
        "A triplet loss averaged over its active triplets is a strong rival here; the claim does not say that the"
        " Multi-Similarity loss beats it.",
        "PyTorch's default initial weights were chosen after pilot runs (seeds 100 to 102) of both rules, because the"
        " contenders then reach the values known from an earlier run of this experiment. How the losses rank depends on"
        " that choice: see the world with larger initial weights.",
        "The encoder is a small perceptron on low-dimensional data: this tests the mechanism, not the paper's"
        " benchmark figures.",
    ),
)
