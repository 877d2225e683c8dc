"""The data of the metric-learning studies: a generated world whose truth is known, and real handwritten digits."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.studies.study import Settings

IDENTITY_DIMENSIONS = 8
NUISANCE_DIMENSIONS = 24


class Items(NamedTuple):
    """Some examples with their classes."""

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    """Classes numbered from 0."""
    identity: Float[Tensor, "n k"] | None
    """The part of the features that the class decides, where it is known: what a perfect encoder would keep."""


class SeenAndUnseen(NamedTuple):
    """Items to learn from, and items of classes never seen in learning."""

    seen: Items
    unseen: Items


def generator(seed: int, purpose: str) -> torch.Generator:
    """A stream of random numbers of its own for every pair of seed and purpose."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def generated_world(
    seed: int,
    *,
    train_classes: int,
    train_items: int,
    test_classes: int,
    test_items: int,
    spread: float,
    nuisance: float,
    unevenness: float = 0.0,
    twice_labelled_classes: float = 0.0,
    twice_labelled_share: float = 0.0,
) -> SeenAndUnseen:
    """Classes that differ in 8 hidden dimensions, buried among 24 that mean nothing.

    With a random orthogonal `Q` (32 x 32), item `i` of class `c` is

        x = z + 0.3 tanh(2 z),   z = Q [mu_c + s_c e_i ; nuisance * n_i],   s_c = spread * exp(unevenness * g_c)

    where `mu_c ~ N(0, I_8)`, `e_i ~ N(0, I_8)`, `n_i ~ N(0, I_24)` and `g_c ~ N(0, 1)`. The hidden 8 coordinates are
    the `identity` of an item.

    Args:
        seed: of this world; the same seed gives the same numbers.
        train_classes, train_items: classes to learn from, and items of each.
        test_classes, test_items: other classes, and items of each.
        spread: standard deviation within a class.
        nuisance: standard deviation of the dimensions that mean nothing.
        unevenness: how much the spread differs from class to class; 0 for one spread for all.
        twice_labelled_classes: share of the classes to learn from that have items under a second label.
        twice_labelled_share: share of the items of such a class that do.
    """
    random = generator(seed, "generated world")
    dimensions = IDENTITY_DIMENSIONS + NUISANCE_DIMENSIONS
    q, r = torch.linalg.qr(torch.randn(dimensions, dimensions, generator=random, dtype=torch.float64))
    mix = (q * r.diagonal().sign()).float()

    def draw(classes: int, items: int) -> Items:
        means = torch.randn(classes, 1, IDENTITY_DIMENSIONS, generator=random)
        spreads = spread * (unevenness * torch.randn(classes, 1, 1, generator=random)).exp()
        identity = means + spreads * torch.randn(classes, items, IDENTITY_DIMENSIONS, generator=random)
        noise = nuisance * torch.randn(classes, items, NUISANCE_DIMENSIONS, generator=random)
        z = torch.cat([identity, noise], dim=2).flatten(0, 1) @ mix.T
        labels = torch.arange(classes).repeat_interleave(items)
        return Items(z + 0.3 * torch.tanh(2 * z), labels, identity.flatten(0, 1))

    seen, unseen = draw(train_classes, train_items), draw(test_classes, test_items)
    if twice_labelled_classes:
        seen = _with_second_labels(seen, seed, classes=twice_labelled_classes, share=twice_labelled_share)
    return SeenAndUnseen(seen, unseen)


def handwritten_digits(seed: int, *, seen_classes: int = 5) -> SeenAndUnseen:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn, pixels in [0, 1]; the seed splits the classes.

    Every item of the seen classes is for learning, every item of the others for the test.
    """
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    features = torch.from_numpy(pixels).float() / 16
    labels = torch.from_numpy(digits).long()
    order = torch.randperm(10, generator=generator(seed, "digits"))

    def part(classes: Int[Tensor, " k"]) -> Items:
        chosen = torch.isin(labels, classes)
        return Items(features[chosen], torch.searchsorted(classes, labels[chosen]), None)

    return SeenAndUnseen(part(order[:seen_classes].sort().values), part(order[seen_classes:].sort().values))


def _with_second_labels(items: Items, seed: int, *, classes: float, share: float) -> Items:
    """The same items, some under a second label for the same class: the label noise of face collections."""
    random = generator(seed, "second labels")
    count = int(items.labels.max()) + 1
    hit = torch.randperm(count, generator=random)[: round(classes * count)]
    moved = torch.isin(items.labels, hit) & (torch.rand(len(items.labels), generator=random) < share)
    labels = torch.where(moved, items.labels + count, items.labels)
    return items._replace(labels=labels.unique(return_inverse=True)[1])


def meet(name: str, seed: int, settings: Settings) -> SeenAndUnseen:
    """The data of a study's world: `handwritten_digits` for `digits`, `generated_world` for every other."""
    make = handwritten_digits if name == "digits" else generated_world
    return make(seed, **settings)
