"""Learning without labels from two views of every item: the worlds, the networks, the loop and the k-NN judge.

A world draws as many views of an item as it is asked for; labels serve the judge alone. Contenders with the same seed
start from the same weights and meet the same items in the same views, so that they differ in nothing but what they
make of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core.checks import describe, positive, refuse
from scorecraft.studies.worlds import IDENTITY_DIMENSIONS, NUISANCE_DIMENSIONS, Items, generator

Objective = Callable[[Float[Tensor, "v n d"]], Float[Tensor, ""]]
"""A loss of the features of `v` views of `n` items."""

_IMAGE = 8
_MOST_PIXELS_SHIFTED, _MOST_TURNED, _MOST_RESIZED = 1.0, 15.0, 0.1
_HIDDEN_PATCH, _PIXEL_NOISE = 3, 0.1


class Views(NamedTuple):
    """Some views of each of some items."""

    features: Float[Tensor, "v n d"]
    strong: Bool[Tensor, "v n"]
    """Which views were augmented more than the others."""


class ViewWorld(Protocol):
    """Items of which views can be drawn."""

    @property
    def seen(self) -> Items:
        """The items to learn from, as they are."""
        ...

    @property
    def held_out(self) -> Items:
        """Other items of the same classes, to judge by."""
        ...

    def views(self, chosen: Int[Tensor, " n"], random: torch.Generator, count: int = 2) -> Views:
        """`count` fresh views of the chosen seen items."""
        ...


class GeneratedViews:
    """Classes that differ in 8 hidden dimensions, among 24 that every view draws anew.

    With a random orthogonal `Q` (32 x 32), a view of item `i` of class `c` is

        x = z + 0.3 tanh(2 z),   z = Q [mu_c + spread * e_i + jitter * b * g ; nuisance * n]

    where `mu_c ~ N(0, I_8)` and `e_i ~ N(0, I_8)` are fixed, and `n ~ N(0, I_24)`, `g ~ N(0, I_8)` and the fair coin
    `b` in {0, 1} are drawn for every view. The `identity` of an item is `mu_c + spread * e_i`; held-out items, and
    seen ones as they are, are one view each without jitter.

    Args:
        seed: of this world; the same seed gives the same items.
        classes, items: classes, and items of each to learn from.
        held_out: items in all to judge by, as many of each class; a multiple of `classes`.
        spread: standard deviation within a class.
        nuisance: standard deviation of the dimensions that mean nothing.
        jitter: standard deviation of what a strong view adds to the identity; 0 for views that are all alike.
    """

    def __init__(
        self,
        seed: int,
        *,
        classes: int = 20,
        items: int = 100,
        held_out: int = 600,
        spread: float = 0.5,
        nuisance: float = 1.2,
        jitter: float = 0.0,
    ) -> None:
        if held_out < classes or held_out % classes:
            refuse("held_out", f"a multiple of {classes} classes", held_out)
        random = generator(seed, "view world")
        dimensions = IDENTITY_DIMENSIONS + NUISANCE_DIMENSIONS
        q, r = torch.linalg.qr(torch.randn(dimensions, dimensions, generator=random, dtype=torch.float64))
        self.mix = (q * r.diagonal().sign()).float()
        self.nuisance, self.jitter = nuisance, jitter
        means = torch.randn(classes, 1, IDENTITY_DIMENSIONS, generator=random)

        def draw(each: int) -> Items:
            noise = torch.randn(classes, each, IDENTITY_DIMENSIONS, generator=random)
            identity = (means + spread * noise).flatten(0, 1)
            return Items(self._shown(identity, random), torch.arange(classes).repeat_interleave(each), identity)

        self.seen, self.held_out = draw(items), draw(held_out // classes)

    def views(self, chosen: Int[Tensor, " n"], random: torch.Generator, count: int = 2) -> Views:
        """`count` fresh views of the chosen seen items; about half are strong, where there is jitter."""
        assert self.seen.identity is not None
        identity = self.seen.identity[chosen].expand(count, -1, -1)
        strong = (torch.rand(identity.shape[:2], generator=random) < 0.5) & (self.jitter > 0)
        # Drawn at any jitter, so that worlds of one seed share all other numbers.
        moved = identity + self.jitter * strong[..., None] * torch.randn(identity.shape, generator=random)
        return Views(self._shown(moved, random), strong)

    def _shown(self, identity: Float[Tensor, "... k"], random: torch.Generator) -> Float[Tensor, "... d"]:
        """The identity, buried and bent."""
        buried = self.nuisance * torch.randn(*identity.shape[:-1], NUISANCE_DIMENSIONS, generator=random)
        z = torch.cat([identity, buried], dim=-1) @ self.mix.T
        return z + 0.3 * torch.tanh(2 * z)


class DigitViews:
    """The 1,797 handwritten digits of 8 x 8 pixels in [0, 1] that come with scikit-learn, moved, hidden and blurred.

    A view turns an image by up to 15 degrees, resizes it by up to a tenth, shifts it by up to a pixel along each axis
    (all uniform, bilinear), blackens a square of 3 x 3 pixels and adds Gaussian noise of standard deviation 0.1.

    Args:
        seed: decides which images are held out.
        held_out: how many of them.
    """

    def __init__(self, seed: int, *, held_out: int = 600) -> None:
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        features, labels = torch.from_numpy(pixels).float() / 16, torch.from_numpy(digits).long()
        order = torch.randperm(len(labels), generator=generator(seed, "held-out digits"))
        test, train = order[:held_out], order[held_out:]
        self.seen = Items(features[train], labels[train], None)
        self.held_out = Items(features[test], labels[test], None)

    def views(self, chosen: Int[Tensor, " n"], random: torch.Generator, count: int = 2) -> Views:
        """`count` fresh views of the chosen seen images, none stronger than another."""
        images = self.seen.features[chosen].view(-1, 1, _IMAGE, _IMAGE).repeat(count, 1, 1, 1)
        shown = _hidden(_moved(images, random), random)
        shown = shown + _PIXEL_NOISE * torch.randn(shown.shape, generator=random)
        features = shown.view(count, len(chosen), -1)
        return Views(features, torch.zeros(features.shape[:2], dtype=torch.bool))


def encoder(widths: Sequence[int], seed: int, *, normalise: bool = True) -> nn.Sequential:
    """Linear layers, each followed by batch normalisation (if wanted) and ReLU.

    Args:
        widths: from input to features, such as 32, 128, 64.
        seed: of the weights.
        normalise: whether to normalise over the batch.
    """
    return nn.Sequential(*_layers(widths, generator(seed, "encoder"), normalise=normalise))


def projector(widths: Sequence[int], seed: int) -> nn.Sequential:
    """A projection head: linear layers with batch normalisation and ReLU between, the last normalisation plain.

    Args:
        widths: from features to projection, such as 64, 64, 32.
        seed: of the weights.
    """
    *layers, _, _ = _layers(widths, generator(seed, "projector"), normalise=True)
    return nn.Sequential(*layers, nn.BatchNorm1d(widths[-1], affine=False))


def train_two_views(
    encoder: nn.Module,
    objective: Objective,
    world: ViewWorld,
    seed: int,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    views: int = 2,
) -> None:
    """Minimise `objective(features of the views)` with Adam, in place; the encoder sees all views as one batch.

    Args:
        encoder: from items `[n, d]` to features `[n, k]`.
        objective: takes features `[views, n, k]`. A module is trained along with the encoder: the projection head
            and a learned temperature belong there.
        world: where the views come from.
        seed: of the items in each batch and of their views.
        steps: batches.
        batch: different items in each.
        learning_rate: of Adam.
        views: of each item.
    """
    parameters = list(encoder.parameters())
    if isinstance(objective, nn.Module):
        parameters += list(objective.parameters())
    optimiser = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    order, random = generator(seed, "batches of items"), generator(seed, "views")
    encoder.train()
    for _ in range(steps):
        chosen = torch.randperm(len(world.seen.labels), generator=order)[:batch]
        shown = world.views(chosen, random, views).features
        optimiser.zero_grad()
        objective(encoder(shown.flatten(0, 1)).unflatten(0, shown.shape[:2])).backward()
        optimiser.step()


@torch.no_grad()
def knn_accuracy(
    features_of: Callable[[Items], Float[Tensor, "n d"]], world: ViewWorld, *, k: int = 20, temperature: float = 0.07
) -> float:
    """How often the seen items next to a held-out one name its class: `weighted_knn` of what `features_of` makes."""
    seen, held_out = world.seen, world.held_out
    return weighted_knn(
        features_of(seen), seen.labels, features_of(held_out), held_out.labels, k=k, temperature=temperature
    )


def weighted_knn(
    bank: Float[Tensor, "m d"],
    bank_labels: Int[Tensor, " m"],
    queries: Float[Tensor, "n d"],
    query_labels: Int[Tensor, " n"],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """The share of queries whose class gets the most votes of their `k` nearest in the bank.

    A neighbour with cosine `s` votes for its class with weight `exp(s / temperature)`.

    Raises:
        ValueError: `k` is not between 1 and the size of the bank, or the temperature is not above zero.

    Source: Wu et al. 2018, arXiv 1805.01978, section 3.4.
    """
    if not 1 <= k <= len(bank):
        refuse("k", f"between 1 and the {len(bank)} items of the bank", describe(k))
    scores, nearest = (F.normalize(queries) @ F.normalize(bank).T).topk(k)
    # Shifted by the largest: the vote is the same, and nothing overflows.
    weights = ((scores - scores[:, :1]) / positive("temperature", temperature)).exp()
    votes = weights.new_zeros(len(queries), int(bank_labels.max()) + 1)
    votes.scatter_add_(1, bank_labels[nearest], weights)
    return float((votes.argmax(dim=1) == query_labels).double().mean())


def encoded(encoder: nn.Module) -> Callable[[Items], Float[Tensor, "n d"]]:
    """The features of items by an encoder in evaluation, for `knn_accuracy`."""
    return lambda items: encoder.eval()(items.features)


def _layers(widths: Sequence[int], random: torch.Generator, *, normalise: bool) -> list[nn.Module]:
    """Weights and biases start uniform in `+- 1 / sqrt(inputs)`, PyTorch's default."""
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layer, bound = nn.Linear(wide, narrow), wide**-0.5
        nn.init.uniform_(layer.weight, -bound, bound, generator=random)
        nn.init.uniform_(layer.bias, -bound, bound, generator=random)
        layers += [layer, *([nn.BatchNorm1d(narrow)] if normalise else []), nn.ReLU()]
    return layers


def _moved(images: Float[Tensor, "n 1 h w"], random: torch.Generator) -> Float[Tensor, "n 1 h w"]:
    """Each image turned, resized and shifted by chance."""
    chance = 2 * torch.rand(4, len(images), generator=random) - 1
    angle, size = chance[0] * math.radians(_MOST_TURNED), 1 + _MOST_RESIZED * chance[1]
    shift = 2 / images.shape[-1] * _MOST_PIXELS_SHIFTED * chance[2:]  # the image spans [-1, 1]
    cos, sin = angle.cos() * size, angle.sin() * size
    affine = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    return F.grid_sample(images, F.affine_grid(affine, list(images.shape), align_corners=False), align_corners=False)


def _hidden(images: Float[Tensor, "n 1 h w"], random: torch.Generator) -> Float[Tensor, "n 1 h w"]:
    """Each image with one square blackened, wholly inside it."""
    corner = torch.randint(0, _IMAGE - _HIDDEN_PATCH + 1, (2, len(images), 1), generator=random)
    line = torch.arange(_IMAGE)
    inside = (line >= corner) & (line < corner + _HIDDEN_PATCH)
    return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)
