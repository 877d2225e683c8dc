"""Does learning by sorting, which has no temperature, find better neighbours than SimCLR with one left untuned?

All contenders share networks, batches and views of a seed and differ in their loss on the projections alone.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.similarity.groco import PAPER, GroCoLoss
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Study, World
from scorecraft.studies.two_views import (
    DigitViews,
    GeneratedViews,
    ViewWorld,
    encoded,
    encoder,
    knn_accuracy,
    projector,
    train_two_views,
)
from scorecraft.studies.worlds import Items

_TRAINING = {"hidden": 128, "features": 64, "projection": 32, "batch": 128, "learning_rate": 2e-3}
_GENERATED = {"classes": 20, "items": 100, "spread": 0.5, "nuisance": 1.2}


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """Train on views of the seen items, count how many held-out ones their neighbours among them name."""
    told = scale.settings
    items = _items(world, seed)
    k = world.settings["neighbours"]
    if contender.name == "raw":
        return {"knn_accuracy": knn_accuracy(_features, items, k=k)}
    if contender.name == "oracle":
        return {"knn_accuracy": knn_accuracy(_identity, items, k=k)}
    network = encoder(
        (items.seen.features.shape[1], told["hidden"], told["features"]), seed, normalise=world.settings["normalise"]
    )
    head = projector((told["features"], told["features"], told["projection"]), seed)
    train_two_views(
        network,
        OfProjections(head, _loss(contender)),
        items,
        seed,
        steps=round(told["steps"] * world.settings["steps"]),
        batch=told["batch"],
        learning_rate=told["learning_rate"],
    )
    return {"knn_accuracy": knn_accuracy(encoded(network), items, k=k)}


class OfProjections(nn.Module):
    """A loss of projected views, as an objective of features."""

    def __init__(self, head: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.head, self.loss = head, loss

    def forward(self, features: Float[Tensor, "v n k"]) -> Float[Tensor, ""]:
        projections = self.head(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return self.loss(projections.unbind())


class SimCLR(nn.Module):
    """NT-Xent: every projection of a batch must find the other view of its item among all others, by softmax.

    Args:
        temperature: that scores are divided by.

    Source: Chen et al. 2020, arXiv 2002.05709, section 2.1.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, views: tuple[Float[Tensor, "n d"], ...]) -> Float[Tensor, ""]:
        first, _ = views
        z = F.normalize(torch.cat(views))
        scores = (z @ z.T / self.temperature).fill_diagonal_(-math.inf)
        return F.cross_entropy(scores, torch.arange(len(z), device=z.device).roll(len(first)))


class SimCLRHardest(nn.Module):
    """Softmax over what GroCo reads: the other view, and the hardest negatives of the same view, all held constant.

    Args:
        temperature: that scores are divided by.
        negatives: how many of the most similar other items take part.
    """

    def __init__(self, temperature: float, negatives: int) -> None:
        super().__init__()
        self.temperature, self.negatives = temperature, negatives

    def forward(self, views: tuple[Float[Tensor, "n d"], ...]) -> Float[Tensor, ""]:
        z = F.normalize(torch.stack(views), dim=2)
        others = z.detach()
        positives = (z * others.flip(0)).sum(dim=2, keepdim=True)
        itself = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
        hardest = (z @ others.mT).masked_fill(itself, -math.inf).topk(self.negatives, dim=2).values
        logits = torch.cat([positives, hardest], dim=2).flatten(0, 1) / self.temperature
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def _items(world: World, seed: int) -> ViewWorld:
    if world.name == "digits":
        return DigitViews(seed, held_out=world.settings["held_out"])
    settings = {name: world.settings[name] for name in (*_GENERATED, "held_out")}
    return GeneratedViews(seed, **settings)


def _loss(contender: Contender) -> nn.Module:
    told = contender.settings
    if contender.name.startswith("groco"):
        return GroCoLoss(negatives=told["negatives"], steepness=told["steepness"])
    if "negatives" in told:
        return SimCLRHardest(told["temperature"], told["negatives"])
    return SimCLR(told["temperature"])


def _features(items: Items) -> Tensor:
    return items.features


def _identity(items: Items) -> Tensor:
    assert items.identity is not None
    return items.identity


STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "GroCo finds better neighbours than SimCLR with the untuned temperature 0.5: weighted k-NN accuracy is higher"
        " by 0.008 or more.",
        metric="knn_accuracy",
        margin=0.008,
    ),
    further_claims=(
        Claim(
            "Without a temperature GroCo is better than SimCLR with a tuned one, 0.2 (a tie is expected).",
            metric="knn_accuracy",
            margin=0.0,
            baseline="simclr_tuned",
        ),
        Claim(
            "On digits GroCo is better than SimCLR with the same 10 negatives and stop-gradient.",
            metric="knn_accuracy",
            margin=0.0,
            baseline="simclr_hardest",
            world="digits",
        ),
    ),
    metrics=(Metric("knn_accuracy", "weighted k-NN accuracy"),),
    worlds=(
        World(
            "generated",
            "generated views",
            "Classes differ in 8 hidden dimensions among 24 that every view draws anew; 20 classes of 100 items to"
            " learn from without labels, 600 further items to name by their 20 nearest.",
            {**_GENERATED, "held_out": 600, "neighbours": 20, "normalise": True, "steps": 1.0},
        ),
        World(
            "digits",
            "handwritten digits",
            "Real 8 x 8 images, turned, resized, shifted, partly hidden and noisy in every view; 600 held-out images to"
            " name by their 5 nearest. No batch normalisation in the encoder, and 8/3 as many steps.",
            {"held_out": 600, "neighbours": 5, "normalise": False, "steps": 8 / 3},
        ),
    ),
    contenders=(
        Contender("simclr", "SimCLR, temperature 0.5", "baseline", {"temperature": 0.5}),
        Contender("simclr_tuned", "SimCLR, temperature 0.2", settings={"temperature": 0.2}),
        Contender(
            "simclr_hardest",
            "SimCLR, 0.2, 10 hardest negatives, stop-gradient",
            settings={"temperature": 0.2, "negatives": 10},
        ),
        Contender("groco_steep", "GroCo, steepness 5", settings={"negatives": 10, "steepness": 5.0}),
        Contender("groco", "GroCo", "method", {"negatives": 10, "steepness": 1.0}),
        Contender("raw", "raw input", "reference"),
        Contender("oracle", "hidden truth", "reference", worlds=("generated",)),
    ),
    trial=trial,
    scales=(Scale("smoke", 2, {**_TRAINING, "steps": 15}), Scale("desk", 10, {**_TRAINING, "steps": 300})),
    notes=(
        "What is claimed is a good result without a temperature to tune, not a better one: against the tuned"
        " temperature a tie is expected.",
        "On digits an earlier run of this experiment saw GroCo below full SimCLR and above SimCLR with equal negatives,"
        " the latter not in every seed; it is reported as it comes out.",
        "Encoder, data and batches are small and Adam takes the place of SGD: this tests the mechanism, and the paper's"
        " margins on ImageNet cannot show at this scale.",
    ),
)
