import pytest
import torch

from scorecraft.studies.embedding_training import KAIMING, class_batches, perceptron, random_batches, train
from scorecraft.studies.worlds import Items, generated_world, generator, handwritten_digits

SMALL = {"train_classes": 6, "train_items": 4, "test_classes": 5, "test_items": 3, "spread": 0.3, "nuisance": 0.5}


def test_the_generated_world_has_the_shape_it_was_asked_for():
    seen, unseen = generated_world(0, **SMALL)
    assert seen.features.shape == (24, 32)
    assert unseen.features.shape == (15, 32)
    assert unseen.identity.shape == (15, 8)
    assert seen.labels.bincount().tolist() == [4] * 6
    assert unseen.labels.bincount().tolist() == [3] * 5


def test_a_seed_gives_one_world():
    one, same, other = (generated_world(seed, **SMALL) for seed in (1, 1, 2))
    assert torch.equal(one.seen.features, same.seen.features)
    assert not torch.equal(one.seen.features, other.seen.features)
    torch.randn(3)  # the global state of torch plays no part
    torch.manual_seed(5)
    assert torch.equal(generated_world(1, **SMALL).unseen.features, one.unseen.features)


def test_features_are_the_rotated_and_bent_truth():
    """Undo `x = z + 0.3 tanh(2 z)`: an orthogonal map leads from z to the identity and 24 numbers of known size."""
    seen, _ = generated_world(3, **{**SMALL, "train_classes": 400, "train_items": 10})
    x = seen.features.double()
    z = x.clone()
    for _ in range(200):
        z = z - (z + 0.3 * torch.tanh(2 * z) - x) / 1.6
    map_, *_ = torch.linalg.lstsq(z, seen.identity.double())
    assert (z @ map_ - seen.identity).abs().max() < 1e-3
    assert torch.allclose(map_.T @ map_, torch.eye(8, dtype=torch.float64), atol=1e-3)
    nuisance = z - z @ map_ @ map_.T
    assert (nuisance.square().sum() / (len(z) * 24)).sqrt() == pytest.approx(0.5, rel=0.02)


def test_spreads_are_as_told():
    def spreads(**settings):
        seen, _ = generated_world(0, **{**SMALL, "train_classes": 300, "train_items": 40, **settings})
        return seen.identity.view(300, 40, 8).std(dim=1).square().mean(dim=1).sqrt()

    even = spreads()
    assert even.mean() == pytest.approx(0.3, rel=0.02)
    assert even.log().std() < 0.06
    uneven = spreads(unevenness=0.5)
    assert uneven.log().std() == pytest.approx(0.5, rel=0.15)
    assert uneven.log().mean().exp() == pytest.approx(0.3, rel=0.1)


def test_second_labels_divide_classes_and_move_nothing():
    plain = generated_world(0, **{**SMALL, "train_classes": 100, "train_items": 20})
    noisy = generated_world(
        0, **{**SMALL, "train_classes": 100, "train_items": 20}, twice_labelled_classes=0.5, twice_labelled_share=0.1
    )
    assert torch.equal(plain.seen.features, noisy.seen.features)
    assert torch.equal(plain.unseen.labels, noisy.unseen.labels)
    labels = noisy.seen.labels
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    pairs = torch.stack([plain.seen.labels, labels], dim=1).unique(dim=0)
    assert pairs[:, 1].bincount().max() == 1  # a new label belongs to one class
    parts = pairs[:, 0].bincount()
    assert parts.max() == 2
    assert 35 <= int((parts == 2).sum()) <= 50
    moved = (labels >= 100).double().mean()
    assert 0.03 < moved < 0.07


def test_digits_split_into_seen_and_unseen():
    seen, unseen = handwritten_digits(0)
    assert len(seen.labels) + len(unseen.labels) == 1797
    for part in (seen, unseen):
        assert part.features.shape[1] == 64
        assert 0 <= part.features.min() <= part.features.max() <= 1
        assert part.labels.unique().tolist() == [0, 1, 2, 3, 4]
        assert part.identity is None
    assert not torch.equal(handwritten_digits(1).seen.labels, seen.labels)
    assert torch.equal(handwritten_digits(0).unseen.features, unseen.features)


def test_streams_differ_by_seed_and_purpose():
    draws = {torch.rand(1, generator=generator(seed, purpose)).item() for seed in (0, 1) for purpose in ("a", "b")}
    assert len(draws) == 4


def test_perceptron_weights():
    encoder = perceptron((400, 300, 200), 0)
    for layer, inputs in ((encoder[0], 400), (encoder[2], 300)):
        assert layer.weight.detach().std() == pytest.approx((3 * inputs) ** -0.5, rel=0.02)
    assert perceptron((400, 300), 0, scale=KAIMING)[0].weight.detach().std() == pytest.approx(
        (2 / 400) ** 0.5, rel=0.02
    )
    assert torch.equal(perceptron((400, 300, 200), 0)[2].weight, encoder[2].weight)
    assert len(encoder) == 3


def test_batches_are_the_same_for_everyone_with_the_seed():
    labels = torch.arange(20).repeat_interleave(10)
    told = {"steps": 30, "batch": 80, "batch_classes": 16}
    for batches in (class_batches, random_batches):
        one, two = list(batches(labels, told, 3)), list(batches(labels, told, 3))
        assert len(one) == 30
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert all(len(batch.unique()) == 80 for batch in one)
    assert all(labels[batch].bincount().unique().tolist() in ([0, 5], [5]) for batch in class_batches(labels, told, 0))
    few = labels[labels < 5]
    batch = next(iter(class_batches(few.repeat(4), told, 0)))
    assert few.repeat(4)[batch].bincount().tolist() == [16] * 5


def test_training_minimises_and_trains_what_belongs_to_the_objective():
    items = Items(torch.randn(64, 4, generator=generator(0, "x")), torch.zeros(64, dtype=torch.long), None)
    target = torch.nn.Linear(4, 2)
    before = target.weight.detach().clone()

    class Fit(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.target = target

        def forward(self, embeddings, labels):
            return (embeddings - self.target.weight.sum(dim=1)).square().mean()

    encoder, objective = perceptron((4, 8, 2), 0), Fit()
    start = objective(encoder(items.features), items.labels)
    train(
        encoder,
        objective,
        items,
        random_batches(items.labels, {"steps": 100, "batch": 32}, 0),
        learning_rate=1e-2,
        weight_decay=0.0,
    )
    assert objective(encoder(items.features), items.labels) < 0.2 * start
    assert not torch.equal(target.weight, before)
