"""Does the threshold-consistent margin make one threshold serve all unseen classes alike?"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.similarity.tcm import PAPER, ThresholdConsistentMarginLoss
from scorecraft.similarity.tcm.consistency import opis
from scorecraft.similarity.unpg import CosFaceHead
from scorecraft.studies.embedding_training import (
    KAIMING,
    Objective,
    class_batches,
    draw_class_vectors,
    unseen_embeddings,
)
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Study, World
from scorecraft.studies.worlds import Items

_TRAINING = {
    "hidden": 128,
    "embedding": 32,
    "batch": 80,
    "batch_classes": 16,
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "far_min": 0.01,
    "far_max": 0.1,
    "thresholds": 41,
    "fraction": 0.1,
}
_SIZES = {"train_classes": 60, "train_items": 20, "test_classes": 60, "test_items": 10}
_SOFTMAX = {"scale": 20.0}
_TCM = {"positive_margin": 0.9, "negative_margin": 0.5, "positive_weight": 1.0, "negative_weight": 1.0}


class NormalisedSoftmax(nn.Module):
    """Cross-entropy of `scale` times the cosines with one learnable vector per class, plus TCM where there is one."""

    def __init__(self, classes: int, width: int, seed: int, scale: float, tcm: ThresholdConsistentMarginLoss | None):
        super().__init__()
        self.head = CosFaceHead(classes, width, scale=scale, margin=0.0)
        draw_class_vectors(self.head.weight, seed)
        self.tcm = tcm

    def forward(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        base = self.head(embeddings, labels)
        return base if self.tcm is None else base + self.tcm(embeddings, labels)


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """Train on the seen classes, compare the operating curves of the unseen ones at common thresholds."""
    told = scale.settings
    embeddings, labels = unseen_embeddings(world, contender, seed, scale, objective=_objective, batches=class_batches)
    found = opis(
        embeddings,
        labels,
        far_range=(told["far_min"], told["far_max"]),
        thresholds=told["thresholds"],
        fraction=told["fraction"],
    )
    return {
        "opis": found.opis,
        "opis_10_percent": found.epsilon_opis,
        "mean_utility": found.mean_utility,
        "recall_at_1": found.recall_at_1,
    }


def _objective(world: World, contender: Contender, seen: Items, width: int, seed: int) -> Objective:
    margins = dict(contender.settings)
    scale = margins.pop("scale")
    tcm = ThresholdConsistentMarginLoss(**margins) if margins else None
    return NormalisedSoftmax(int(seen.labels.max()) + 1, width, seed, scale, tcm)


STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "Adding TCM to a normalised softmax lets unseen classes share a threshold: their OPIS falls by 25 % or more.",
        metric="opis",
        margin=0.25,
        relative=True,
    ),
    further_claims=(
        Claim(
            "The same where classes differ in tightness: OPIS falls by 25 % or more.",
            metric="opis",
            margin=0.25,
            relative=True,
            world="uneven",
        ),
    ),
    metrics=(
        Metric("opis", "OPIS", better="lower", decimals=4),
        Metric("opis_10_percent", "10 %-OPIS", better="lower"),
        Metric("mean_utility", "mean utility"),
        Metric("recall_at_1", "Recall@1"),
    ),
    worlds=(
        World(
            "generated",
            "generated world",
            "Classes of one tightness differ in 8 hidden dimensions among 24 that mean nothing; 60 classes of 20 items"
            " to learn from, 60 unseen classes of 10 items to verify.",
            {**_SIZES, "spread": 0.3, "nuisance": 0.5},
        ),
        World(
            "large_weights",
            "generated world, larger initial weights",
            "The same, with the encoder's initial weights 2.4 times as large (Kaiming's rule for ReLU).",
            {**_SIZES, "spread": 0.3, "nuisance": 0.5, "weight_scale": KAIMING},
        ),
        World(
            "uneven",
            "uneven classes",
            "The first world with classes of different tightness, 0.2 exp(0.5 g).",
            {**_SIZES, "spread": 0.2, "nuisance": 0.5, "unevenness": 0.5},
        ),
        World(
            "noisy",
            "noisy, uneven classes",
            "That with looser and more uneven classes, 0.3 exp(0.7 g), and more nuisance: the margins are out of"
            " reach there.",
            {**_SIZES, "spread": 0.3, "nuisance": 0.6, "unevenness": 0.7},
        ),
        World(
            "digits",
            "handwritten digits",
            "Real 8 x 8 images; five digits to learn from, the other five to verify, split anew by each seed. With five"
            " classes OPIS is a variance over five curves.",
            {"seen_classes": 5},
        ),
    ),
    contenders=(
        Contender("softmax", "normalised softmax", "baseline", _SOFTMAX),
        Contender("softmax_tcm", "softmax + TCM", "method", {**_SOFTMAX, **_TCM}),
        Contender("raw", "raw input", "reference"),
        Contender("oracle", "hidden truth", "reference", worlds=("generated", "large_weights", "uneven", "noisy")),
    ),
    trial=trial,
    scales=(Scale("smoke", 2, {**_TRAINING, "steps": 20}), Scale("desk", 16, {**_TRAINING, "steps": 400})),
    notes=(
        "PyTorch's default initial weights were chosen after pilot runs (seeds 100 to 102) of both rules, because the"
        " baseline then reaches the Recall@1 known from an earlier run of this experiment: see the world with larger"
        " initial weights.",
        "The margins 0.9 and 0.5 are absolute cosines: where classes cannot be brought that close (the noisy world) TCM"
        " is not expected to help.",
        "With a base loss that sets absolute levels itself, such as Multi-Similarity, the effect is not reliable; the"
        " claim is about a softmax base.",
        "OPIS also falls when all classes become equally bad: read it together with mean utility and Recall@1.",
        "OPIS has a floor from finitely many pairs per class, so compare values within one world only.",
    ),
)
