"""The two-view worlds, networks, loop and judge."""

import math

import pytest
import torch
from torch import nn

from scorecraft.studies.two_views import (
    DigitViews,
    GeneratedViews,
    encoded,
    encoder,
    knn_accuracy,
    projector,
    train_two_views,
    weighted_knn,
)
from scorecraft.studies.worlds import generator

SMALL = {"classes": 5, "items": 8, "held_out": 20}


def unbent(x):
    """Undo `x = z + 0.3 tanh(2 z)`."""
    z = x.double()
    for _ in range(200):
        z = z - (z + 0.3 * torch.tanh(2 * z) - x) / 1.6
    return z


def test_a_seed_gives_one_world_and_one_stream_of_views():
    one, same, other = (GeneratedViews(seed, **SMALL) for seed in (1, 1, 2))
    torch.manual_seed(5)  # the global state of torch plays no part
    chosen = torch.tensor([3, 1])
    assert torch.equal(one.seen.features, same.seen.features)
    assert torch.equal(one.held_out.features, same.held_out.features)
    assert not torch.equal(one.seen.features, other.seen.features)
    views = [world.views(chosen, generator(0, "views")).features for world in (one, same)]
    assert views[0].shape == (2, 2, 32)
    assert torch.equal(*views)
    assert not torch.equal(views[0][0], views[0][1])


def test_held_out_items_are_of_the_same_classes():
    world = GeneratedViews(0, **SMALL)
    assert world.seen.labels.bincount().tolist() == [8] * 5
    assert world.held_out.labels.bincount().tolist() == [4] * 5
    world = GeneratedViews(0, spread=0.1)
    means = [items.identity.view(20, -1, 8).mean(dim=1) for items in (world.seen, world.held_out)]
    assert (means[0] - means[1]).abs().max() < 0.1
    assert means[0].std() == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("jitter", [0.0, 0.8])
def test_views_keep_the_identity_and_redraw_the_rest(jitter):
    world = GeneratedViews(3, jitter=jitter)
    chosen = torch.arange(1000)
    features, strong = world.views(chosen, generator(0, "views"), count=3)
    z = unbent(features) @ world.mix.double()
    moved, buried = z[..., :8] - world.seen.identity[chosen].double(), z[..., 8:]
    assert moved[~strong].abs().max() < 1e-3
    assert buried.std() == pytest.approx(1.2, rel=0.02)
    assert abs((buried[0] * buried[1]).mean()) < 0.05
    if jitter:
        assert strong.double().mean() == pytest.approx(0.5, abs=0.05)
        assert moved[strong].std() == pytest.approx(jitter, rel=0.03)
    else:
        assert not strong.any()


def test_jitter_moves_strong_views_alone():
    chosen = torch.arange(40)
    plain, moved = (GeneratedViews(0, **SMALL, jitter=j).views(chosen, generator(0, "v")) for j in (0.0, 0.8))
    assert torch.equal(plain.features[~moved.strong], moved.features[~moved.strong])
    assert not torch.equal(plain.features, moved.features)


def test_as_many_held_out_items_of_every_class():
    with pytest.raises(ValueError, match="argument `held_out`: expected a multiple of 20 classes, got 30"):
        GeneratedViews(0, held_out=30)


def test_digits_are_split_and_seen_differently_each_time():
    world = DigitViews(0)
    assert (len(world.seen.labels), len(world.held_out.labels)) == (1197, 600)
    assert not torch.equal(world.held_out.labels, DigitViews(1).held_out.labels)
    assert 0 <= world.seen.features.min() <= world.seen.features.max() <= 1
    chosen = torch.arange(500)
    features, strong = world.views(chosen, generator(0, "v"))
    assert features.shape == (2, 500, 64)
    assert not strong.any()
    assert torch.equal(features, world.views(chosen, generator(0, "v")).features)
    plain = world.seen.features[chosen]
    kept = nn.functional.cosine_similarity(features, plain.expand_as(features), dim=2).mean()
    strangers = nn.functional.cosine_similarity(features, plain.roll(1, 0).expand_as(features), dim=2).mean()
    assert strangers + 0.1 < kept < 0.95


def test_the_judge_by_hand():
    bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 2])
    queries, truth = torch.tensor([[1.0, 0.01], [0.2, 1.0]]), torch.tensor([0, 1])
    assert weighted_knn(bank, labels, queries, truth, k=1) == 1
    # Two votes of class 1 against the nearer one of class 0: the temperature decides.
    assert weighted_knn(bank, labels, queries, truth, k=3, temperature=10) == 0.5
    assert weighted_knn(bank, labels, queries, truth, k=3, temperature=1e-3) == 1
    assert weighted_knn(bank, labels, 7 * queries, truth, k=3, temperature=1e-3) == 1


def test_the_judge_refuses():
    x, y = torch.eye(4), torch.arange(4)
    for k in (0, 5):
        with pytest.raises(ValueError, match="argument `k`: expected between 1 and the 4 items of the bank"):
            weighted_knn(x, y, x, y, k=k)
    with pytest.raises(ValueError, match="argument `temperature`: expected a finite number > 0"):
        weighted_knn(x, y, x, y, k=1, temperature=0)


def test_networks_are_those_of_the_recipe():
    kinds = [type(layer).__name__ for layer in encoder((32, 128, 64), 0)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2
    assert [type(layer).__name__ for layer in encoder((64, 128, 64), 0, normalise=False)] == ["Linear", "ReLU"] * 2
    head = projector((64, 64, 32), 0)
    assert [type(layer).__name__ for layer in head] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert head[1].affine
    assert not head[4].affine
    assert torch.equal(projector((64, 64, 32), 0)[0].weight, head[0].weight)
    assert not torch.equal(projector((64, 64, 32), 1)[0].weight, head[0].weight)
    assert encoder((300, 200), 0)[0].weight.detach().std() == pytest.approx((3 * 300) ** -0.5, rel=0.02)


class Recording(nn.Module):
    """Keeps what it is shown, and asks the first feature to be large."""

    def __init__(self, factor):
        super().__init__()
        self.scale, self.factor, self.met = nn.Parameter(torch.ones(())), factor, []

    def forward(self, features):
        self.met.append(features.detach())
        return -self.factor * self.scale * features[..., 0].mean()


def test_contenders_of_a_seed_meet_the_same_views_and_train_their_head():
    one, two = Recording(1.0), Recording(-3.0)
    for objective in (one, two):
        frozen = nn.Identity()
        frozen.unused = nn.Parameter(torch.zeros(()))
        train_two_views(frozen, objective, GeneratedViews(0, **SMALL), 7, steps=3, batch=6, learning_rate=1e-2, views=3)
        assert objective.scale != 1
    assert [features.shape for features in one.met] == [(3, 6, 32)] * 3
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one.met, two.met, strict=True))
    assert not torch.equal(one.met[0], one.met[1])


def test_training_is_repeatable_and_helps_to_name_items():
    world = GeneratedViews(0)
    found = []
    for _ in range(2):
        network, head = encoder((32, 128, 64), 0), projector((64, 64, 32), 0)
        objective = Contrast(head)
        train_two_views(network, objective, world, 0, steps=40, batch=128, learning_rate=2e-3)
        found.append(knn_accuracy(encoded(network), world))
    assert found[0] == found[1]
    assert found[0] > knn_accuracy(lambda items: items.features, world) + 0.05
    assert found[0] < knn_accuracy(lambda items: items.identity, world)


class Contrast(nn.Module):
    """A plain softmax over the other items' views."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features):
        one, two = nn.functional.normalize(self.head(features.flatten(0, 1)), dim=1).chunk(2)
        return nn.functional.cross_entropy(one @ two.T / 0.2, torch.arange(len(one)))


def test_the_images_stay_where_views_leave_them():
    """A view moves an image by little: the centre of mass shifts by about a pixel at most."""
    world = DigitViews(0)
    chosen = torch.arange(300)
    features = world.views(chosen, generator(0, "v")).features
    line = torch.arange(8.0)

    def centre(images):
        images = images.view(-1, 8, 8)
        return (images.sum(dim=1) * line).sum(dim=1) / images.sum(dim=(1, 2))

    shift = (centre(features[0]) - centre(world.seen.features[chosen])).abs()
    assert shift.median() < 0.6
    assert math.isfinite(float(shift.max()))
