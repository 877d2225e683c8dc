"""The small training loop of the metric-learning studies: a perceptron, Adam, a fixed number of batches.

Contenders with the same seed start from the same weights and see the same batches, so that they differ in nothing but
their objective.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.similarity.pk_sampler import PKSampler
from scorecraft.studies.study import Contender, Scale, Settings, World
from scorecraft.studies.worlds import Items, generator, meet

KAIMING = 6**0.5
"""The `weight_scale` that makes initial weights those of Kaiming's rule for ReLU, of variance `2 / inputs`."""

_OF_TRAINING = ("weight_scale", "class_vector_scale")

Objective = Callable[[Float[Tensor, "n d"], Int[Tensor, " n"]], Float[Tensor, ""]]
Batches = Callable[[Int[Tensor, " n"], Settings, int], Iterable[Int[Tensor, " b"]]]


def unseen_embeddings(
    world: World,
    contender: Contender,
    seed: int,
    scale: Scale,
    *,
    objective: Callable[[World, Contender, Items, int, int], Objective],
    batches: Batches,
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """What a contender makes of a world's unseen items, and their classes.

    Args:
        world: its settings are those of `worlds.meet`, and of training in it: `weight_scale` of the encoder's initial
            weights (default 1), `class_vector_scale` of those of a head.
        contender: `raw` and `oracle` take the items as they are, the others are trained.
        seed: of weights and batches.
        scale: with the settings `hidden`, `embedding` (widths), `learning_rate`, `weight_decay` and those of `batches`.
        objective: makes an objective from world, contender, seen items, width of the embeddings and seed.
        batches: `class_batches` or `random_batches`.
    """
    settings = {name: value for name, value in world.settings.items() if name not in _OF_TRAINING}
    seen, unseen = meet(world.name, seed, settings)
    if contender.name == "raw":
        return unseen.features, unseen.labels
    if contender.name == "oracle" and unseen.identity is not None:
        return unseen.identity, unseen.labels
    told = scale.settings
    width = told["embedding"]
    widths = (seen.features.shape[1], told["hidden"], told["hidden"], width)
    encoder = perceptron(widths, seed, scale=world.settings.get("weight_scale", 1.0))
    train(
        encoder,
        objective(world, contender, seen, width, seed),
        seen,
        batches(seen.labels, told, seed),
        learning_rate=told["learning_rate"],
        weight_decay=told["weight_decay"],
    )
    with torch.no_grad():
        return encoder(unseen.features), unseen.labels


def perceptron(widths: Sequence[int], seed: int, *, scale: float = 1.0) -> nn.Sequential:
    """Linear layers with ReLU between them, `widths` from input to embedding.

    Weights and biases start uniform in `+- 1 / sqrt(inputs)`, PyTorch's default; weights `scale` times as wide.
    """
    random = generator(seed, "weights")
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layer, bound = nn.Linear(wide, narrow), wide**-0.5
        nn.init.uniform_(layer.weight, -scale * bound, scale * bound, generator=random)
        nn.init.uniform_(layer.bias, -bound, bound, generator=random)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def draw_class_vectors(vectors: Float[Tensor, "c d"], seed: int, *, scale: float = 1.0) -> None:
    """Fill a head's class vectors by Xavier's rule, uniform in `+- scale sqrt(6 / (classes + width))`.

    Their length does not matter to the loss but to Adam, whose steps turn short vectors further than long ones. The
    official code of UNPG starts its heads so.
    """
    nn.init.xavier_uniform_(vectors, gain=scale, generator=generator(seed, "class vectors"))


def class_batches(labels: Int[Tensor, " n"], settings: Settings, seed: int) -> Iterator[Int[Tensor, " b"]]:
    """`steps` index batches of `batch` items from `batch_classes` classes (from all, where there are fewer) alike."""
    classes = min(settings["batch_classes"], len(labels.unique()))
    per_class = settings["batch"] // classes
    sampler = PKSampler(labels, classes * per_class, per_class=per_class, seed=seed)
    epochs = itertools.chain.from_iterable(itertools.repeat(sampler))
    for batch in itertools.islice(epochs, settings["steps"]):
        yield torch.as_tensor(batch)


def random_batches(labels: Int[Tensor, " n"], settings: Settings, seed: int) -> Iterator[Int[Tensor, " b"]]:
    """`steps` index batches of `batch` different items, each drawn from all."""
    random = generator(seed, "batches")
    for _ in range(settings["steps"]):
        yield torch.randperm(len(labels), generator=random)[: settings["batch"]]


def train(
    encoder: nn.Module,
    objective: Objective,
    items: Items,
    batches: Iterable[Int[Tensor, " b"]],
    *,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Minimise `objective(encoder(features), labels)` over the batches with Adam, in place.

    An objective that is a module is trained along with the encoder.
    """
    parameters = list(encoder.parameters())
    if isinstance(objective, nn.Module):
        parameters += list(objective.parameters())
    optimiser = torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    for batch in batches:
        optimiser.zero_grad()
        objective(encoder(items.features[batch]), items.labels[batch]).backward()
        optimiser.step()
