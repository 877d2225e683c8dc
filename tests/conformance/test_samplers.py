"""The matrix for batch samplers over labels: every one that a family holds, found by its type and its argument."""

from __future__ import annotations

import inspect

import pytest
import torch
from tests.conformance.subjects import CLASSES, members_of_families
from torch.utils.data import DataLoader, Sampler, TensorDataset

# A sampler that draws by something else (a model, say) promises something else, and its own tests hold it to that.
TYPES = [kind for kind in members_of_families(Sampler) if "labels" in inspect.signature(kind).parameters]
assert TYPES
LABELS = torch.arange(20 * CLASSES) % CLASSES
pytestmark = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)


def sampler(kind: type[Sampler], **options: int) -> Sampler:
    return kind.example(LABELS, **options)


def test_the_same_seed_gives_the_same_batches(kind: type[Sampler]) -> None:
    assert list(sampler(kind, seed=3)) == list(sampler(kind, seed=3))
    assert list(sampler(kind, seed=3)) != list(sampler(kind, seed=4))


def test_every_epoch_has_its_own_order_and_can_be_called_back(kind: type[Sampler]) -> None:
    subject = sampler(kind)
    first, second = list(subject), list(subject)
    assert first != second
    subject.set_epoch(1)
    assert list(subject) == second


def test_its_length_is_the_number_of_batches(kind: type[Sampler]) -> None:
    subject = sampler(kind)
    assert len(subject) == len(list(subject))


def test_batches_are_of_the_promised_size_and_feed_a_loader(kind: type[Sampler]) -> None:
    loader = DataLoader(TensorDataset(LABELS), batch_sampler=sampler(kind))
    assert all(len(labels) == 12 for (labels,) in loader)


def test_replicas_share_one_sequence_out(kind: type[Sampler]) -> None:
    parts = [list(sampler(kind, num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1])
    assert all(one != other for one, other in zip(*parts, strict=True))


def test_the_global_random_state_is_left_alone(kind: type[Sampler]) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(sampler(kind))
    assert torch.equal(torch.rand(3), expected)


def test_bad_arguments_are_refused_in_one_line(kind: type[Sampler]) -> None:
    for labels, options in ((LABELS.float(), {}), (LABELS[:0], {}), (LABELS, {"seed": -1})):
        with pytest.raises(ValueError, match="argument `") as caught:
            kind.example(labels, **options)
        assert "\n" not in str(caught.value)
