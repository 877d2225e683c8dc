"""`compare similarity`: which objective makes the best embedding of one's own labelled items?

Every seed splits the data: by classes where there are ten or more (embeddings are judged on classes that were never
trained on, the usual question of metric learning), else by items of each class. Each contender trains one small encoder
per learning rate of the same grid, for the same number of batches, from the same initial weights; the rate with the
best Recall@1 on the validation part is taken, and the test part is looked at once, with that encoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scorecraft.catalog.objectives import make_objective, read_spelling
from scorecraft.comparisons.comparison import TEST, TRAINING, VALIDATION, Comparison, contender_name, tuned
from scorecraft.comparisons.labelled_data import LabelledData, load_labelled
from scorecraft.core import Objective
from scorecraft.similarity.recall import recall_at_k
from scorecraft.studies.embedding_training import class_batches, perceptron, train
from scorecraft.studies.study import Contender, Metric, Scale, World
from scorecraft.studies.worlds import Items, generator

METRICS = (
    Metric("recall_at_1", "Recall@1"),
    Metric("recall_at_5", "Recall@5"),
    Metric("validation", "Recall@1 on the validation part"),
)
CLASSES_TO_SPLIT = 10
"""From how many classes on the parts have classes of their own."""
HOST = "pml"
"""Prefix of an objective of pytorch-metric-learning: `pml:TripletMarginLoss`."""
_CHANNELS = 32


def similarity_comparison(
    source: str,
    objectives: Sequence[str],
    *,
    steps: int = 300,
    batch: int = 80,
    learning_rates: Sequence[float] = (0.003, 0.001, 0.0003),
    **reading: Any,
) -> Comparison:
    """A comparison of objectives on labelled data.

    Args:
        source: the data, see `load_labelled`, which also takes `reading`.
        objectives: names of this library (`multi_similarity:alpha=2`), or `pml:NAME` for a loss of
            pytorch-metric-learning (`pml:TripletMarginLoss:margin=0.2`).
        steps: batches per training.
        batch: items per batch, of at most 16 classes.
        learning_rates: the grid of Adam's learning rates.

    Raises:
        BadData, UnknownObjective, ValueError: in one line.
    """
    data = load_labelled(source, **reading)
    given = {name: value for name, value in reading.items() if value is not None}
    for text in objectives:
        _objective(text, classes=2, dimension=4)
    shape = " x ".join(str(size) for size in data.items.shape[1:])
    own, shared = "classes of their own for training, validation and test", "items of every class in each part"
    parts = own if data.classes >= CLASSES_TO_SPLIT else shared
    return Comparison(
        task="similarity",
        metrics=METRICS,
        world=World(
            "data",
            source,
            f"{len(data.labels)} items of {shape} in {data.classes} classes; {parts}.",
            {"source": source, "sha256": data.digest(), **given},
        ),
        contenders=tuple(Contender(contender_name(text), text, settings={"objective": text}) for text in objectives),
        trial=similarity_trial,
        scale=Scale(
            "desk",
            8,
            {
                "steps": steps,
                "batch": batch,
                "batch_classes": 16,
                "learning_rates": ", ".join(f"{rate:g}" for rate in learning_rates),
                "weight_decay": 1e-4,
                "hidden": 256,
                "embedding": 64,
            },
        ),
        test_share=TEST / TRAINING,
    )


def similarity_trial(world: World, contender: Contender, seed: int, scale: Scale) -> Mapping[str, float]:
    """Train one encoder per learning rate, choose on the validation part, measure on the test part."""
    told = scale.settings
    reading = {name: value for name, value in world.settings.items() if name not in ("source", "sha256")}
    training, validation, test = split(load_labelled(world.settings["source"], **reading), seed)

    def attempt(rate: float) -> tuple[float, nn.Module]:
        encoder = make_encoder(training.items, told["hidden"], told["embedding"], seed)
        with torch.random.fork_rng(devices=[]):  # class vectors and the like start alike for every rate
            torch.manual_seed(seed)
            objective = _objective(
                contender.settings["objective"], classes=training.classes, dimension=told["embedding"]
            )
            train(
                encoder,
                objective,
                Items(training.items, training.labels, None),
                class_batches(training.labels, told, seed),
                learning_rate=rate,
                weight_decay=told["weight_decay"],
            )
        return recall_at_k(embed(encoder, validation.items), validation.labels, 1)[1], encoder

    reached, encoder = tuned(told["learning_rates"], attempt)
    found = recall_at_k(embed(encoder, test.items), test.labels, (1, 5))
    return {"recall_at_1": found[1], "recall_at_5": found[5], "validation": reached}


def split(data: LabelledData, seed: int) -> tuple[LabelledData, LabelledData, LabelledData]:
    """Training, validation and test part."""
    random = generator(seed, "split")
    if data.classes >= CLASSES_TO_SPLIT:
        order = torch.randperm(data.classes, generator=random)
        first, second = round(TRAINING * data.classes), round((TRAINING + VALIDATION) * data.classes)
        chosen = [torch.isin(data.labels, part) for part in (order[:first], order[first:second], order[second:])]
    else:
        place = torch.empty(len(data.labels))
        for label in range(data.classes):
            of_class = (data.labels == label).nonzero().squeeze(1)
            order = torch.randperm(len(of_class), generator=random)
            place[of_class[order]] = (torch.arange(len(of_class)) + 0.5) / len(of_class)
        ends = (TRAINING, TRAINING + VALIDATION)
        chosen = [place < ends[0], (place >= ends[0]) & (place < ends[1]), place >= ends[1]]
    return tuple(_part(data, mask) for mask in chosen)  # type: ignore[return-value]


def make_encoder(items: Float[Tensor, "n ..."], hidden: int, embedding: int, seed: int) -> nn.Module:
    """An encoder whose input is standardised by the training items: a perceptron, or four convolutions for images."""
    spread = items.std(dim=0) if items.ndim == 2 else items.std()
    standardise = _Standardise(items.mean(dim=0) if items.ndim == 2 else items.mean(), spread.clamp(min=1e-6))
    if items.ndim == 2:
        return nn.Sequential(standardise, perceptron((items.shape[1], hidden, hidden, embedding), seed))
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for depth in range(4):
            channels = items.shape[1] if depth == 0 else _CHANNELS
            layers += [nn.Conv2d(channels, _CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(_CHANNELS), nn.ReLU()]
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        sides = list(items.shape[2:])
        for _ in range(4):
            sides = [-(-side // 2) for side in sides]
        layers += [nn.Flatten(), nn.Linear(_CHANNELS * sides[0] * sides[1], embedding)]
    return nn.Sequential(standardise, *layers)


@torch.no_grad()
def embed(encoder: nn.Module, items: Float[Tensor, "n ..."], rows: int = 512) -> Float[Tensor, "n d"]:
    """Embeddings of items, in parts."""
    encoder.eval()
    return torch.cat([encoder(part) for part in items.split(rows)])


class _Standardise(nn.Module):
    mean: Tensor
    spread: Tensor

    def __init__(self, mean: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)

    def forward(self, items: Tensor) -> Tensor:
        return (items - self.mean) / self.spread


def _part(data: LabelledData, chosen: Tensor) -> LabelledData:
    labels = data.labels[chosen].unique(return_inverse=True)[1]
    return LabelledData(data.items[chosen], labels)


def _objective(text: str, *, classes: int, dimension: int) -> Objective:
    prefix, colon, rest = text.partition(":")
    if prefix != HOST or not colon:
        return make_objective(text, classes=classes, dimension=dimension)
    from scorecraft.integrations import pytorch_metric_learning as host

    name, options = read_spelling(rest)
    kind = getattr(host.losses, name, None)
    if kind is None:
        raise ValueError(f"objective `{text}`: pytorch-metric-learning has no loss `{name}`")
    sizes = {"num_classes": classes, "embedding_size": dimension}
    return host.from_metric_learning(kind(**{**_known(kind, sizes), **options}))


def _known(kind: type, options: Mapping[str, int]) -> dict[str, int]:
    """Those options that a class takes by name."""
    parameters = inspect.signature(kind).parameters
    return {name: value for name, value in options.items() if name in parameters}
