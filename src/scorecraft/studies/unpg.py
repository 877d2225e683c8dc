"""Do the batch's own negatives, beside the class centres, tell unseen identities apart at low false accept rates?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.similarity.unpg import PAPER, CosFaceHead, UNPGLoss
from scorecraft.studies.embedding_training import (
    Objective,
    draw_class_vectors,
    random_batches,
    unseen_embeddings,
)
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Study, World
from scorecraft.studies.worlds import Items

_TRAINING = {"hidden": 128, "embedding": 12, "batch": 256, "learning_rate": 2e-3, "weight_decay": 0.0}
_HEAD = {"scale": 16.0, "margin": 0.2}
_IDENTITIES = {
    "train_classes": 300,
    "train_items": 8,
    "test_classes": 150,
    "test_items": 8,
    "spread": 0.35,
    "nuisance": 0.8,
}


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """Train on the seen identities, verify all pairs of the unseen ones."""
    embeddings, labels = unseen_embeddings(world, contender, seed, scale, objective=_objective, batches=random_batches)
    strict, lenient = true_accept_rates(embeddings, labels, (1e-3, 1e-2))
    return {"tar_at_far_1e_3": strict, "tar_at_far_1e_2": lenient}


def true_accept_rates(
    embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"], false_accept_rates: Sequence[float]
) -> list[float]:
    """The share of all positive pairs accepted at the cosine where that share of all negative pairs is accepted.

    The threshold is the k-th largest negative cosine, `k = floor(FAR * number of negative pairs)`.

    Raises:
        ValueError: a rate that no negative pair stands for.
    """
    x = F.normalize(embeddings)
    row, column = torch.triu_indices(len(x), len(x), offset=1)
    scores, same = (x @ x.T)[row, column], labels[row] == labels[column]
    positives, negatives = scores[same], scores[~same]
    accepted = [math.floor(rate * len(negatives) + 1e-9) for rate in false_accept_rates]
    if min(accepted) < 1:
        raise ValueError(
            f"argument `false_accept_rates`: expected at least {1 / len(negatives):.2g}, got {min(false_accept_rates)}"
        )
    hardest = negatives.topk(max(accepted)).values
    return [float((positives >= hardest[k - 1]).double().mean()) for k in accepted]


def _objective(world: World, contender: Contender, seen: Items, width: int, seed: int) -> Objective:
    told, classes = contender.settings, int(seen.labels.max()) + 1
    head = CosFaceHead(classes, width, scale=told["scale"], margin=told["margin"])
    draw_class_vectors(head.weight, seed, scale=world.settings.get("class_vector_scale", 1.0))
    return head if contender.name == "cosface" else UNPGLoss(head, whisker=told.get("whisker"))


STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "Adding UNPG to CosFace verifies unseen identities better: the true accept rate at a false accept rate of 0.001"
        " is higher by 0.08 or more.",
        metric="tar_at_far_1e_3",
        margin=0.08,
    ),
    further_claims=(
        Claim(
            "Under label noise the filter helps: the true accept rate is higher than with all batch negatives.",
            metric="tar_at_far_1e_3",
            margin=0.0,
            baseline="batch_negatives",
            world="label_noise",
        ),
    ),
    metrics=(
        Metric("tar_at_far_1e_3", "TAR at FAR 0.001"),
        Metric("tar_at_far_1e_2", "TAR at FAR 0.01"),
    ),
    worlds=(
        World(
            "generated",
            "generated identities",
            "Identities differ in 8 hidden dimensions among 24 that mean nothing; 300 identities of 8 items to learn"
            " from, all pairs of 150 unseen identities of 8 items to verify.",
            _IDENTITIES,
        ),
        World(
            "long_vectors",
            "generated identities, longer class vectors",
            "The same, with initial class vectors 12.5 times as long, about standard normal.",
            {**_IDENTITIES, "class_vector_scale": 12.5},
        ),
        World(
            "label_noise",
            "identities under two labels",
            "The first world, with a tenth of the items of half of the learnt identities under a second label for the"
            " same identity.",
            {**_IDENTITIES, "twice_labelled_classes": 0.5, "twice_labelled_share": 0.1},
        ),
        World(
            "digits",
            "handwritten digits",
            "Real 8 x 8 images; five digits to learn from, all pairs of the other five to verify, split anew by each"
            " seed.",
            {"seen_classes": 5},
        ),
    ),
    contenders=(
        Contender("cosface", "CosFace", "baseline", _HEAD),
        Contender("batch_negatives", "CosFace + all batch negatives", settings=_HEAD),
        Contender("unpg", "CosFace + UNPG", "method", {**_HEAD, "whisker": 1.5}),
        Contender("raw", "raw input", "reference"),
        Contender("oracle", "hidden truth", "reference", worlds=("generated", "long_vectors", "label_noise")),
    ),
    trial=trial,
    scales=(Scale("smoke", 2, {**_TRAINING, "steps": 20}), Scale("desk", 10, {**_TRAINING, "steps": 700})),
    notes=(
        "Class vectors start short, by Xavier's rule as in the official code: chosen after pilot runs (seeds 100 to"
        " 102), because the baseline then reaches the values known from an earlier run of this experiment. The effect"
        " depends on it, as Adam hardly turns long vectors in so few steps: see the world with longer ones.",
        "On clean labels the filter is not expected to matter: the gain comes from the batch negatives as such.",
        "Five digits are far fewer classes than a margin softmax is made for; they are reported as they come out.",
    ),
)
