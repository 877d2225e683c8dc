"""The matrix for metrics: every torchmetrics.Metric of the library, found by its type."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

torchmetrics = pytest.importorskip("torchmetrics")

from tests.conformance.subjects import CLASSES, DIMENSION  # noqa: E402

import scorecraft.integrations.torchmetrics as integration  # noqa: E402

TYPES = [
    kind
    for kind in vars(integration).values()
    if isinstance(kind, type)
    and issubclass(kind, torchmetrics.Metric)
    and kind.__module__.startswith(integration.__name__)
    and not kind.__name__.startswith("_")
]
assert TYPES
REQUIRED = {"num_classes": CLASSES, "thresholds": [0.8, 1.0, 1.2]}
pytestmark = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)


def metric(kind: type[torchmetrics.Metric]) -> torchmetrics.Metric:
    parameters = inspect.signature(kind).parameters.values()
    required = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    return kind(**{name: REQUIRED[name] for name in required})


def reads_scores(kind: type[torchmetrics.Metric]) -> bool:
    """Whether it is given scores with their relevance, and not embeddings with their labels."""
    return "relevance" in inspect.signature(kind.update).parameters


def data(kind: type[torchmetrics.Metric], n: int = 90) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(n, DIMENSION, generator=generator)
    if reads_scores(kind):
        return values, (torch.rand(n, DIMENSION, generator=generator) < 0.3).long()
    return values, torch.arange(n) % CLASSES


def computed(kind: type[torchmetrics.Metric], *parts: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    subject = metric(kind)
    for part in parts:
        subject.update(*part)
    return subject.compute()


def test_the_state_needs_no_second_update(kind: type[torchmetrics.Metric]) -> None:
    assert kind.full_state_update is False


def test_the_order_of_the_items_does_not_matter(kind: type[torchmetrics.Metric]) -> None:
    x, labels = data(kind)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(computed(kind, (x[order], labels[order])), computed(kind, (x, labels)), equal_nan=True)


def test_merged_states_equal_one_state_updated_twice(kind: type[torchmetrics.Metric]) -> None:
    x, labels = data(kind)
    parts = ((x[:30], labels[:30]), (x[30:], labels[30:]))
    first, second = metric(kind), metric(kind)
    first.update(*parts[0])
    second.update(*parts[1])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), computed(kind, *parts), equal_nan=True)


def test_reset_forgets(kind: type[torchmetrics.Metric]) -> None:
    x, labels = data(kind)
    subject = metric(kind)
    subject.update(-x, labels.flip(0))
    subject.reset()
    subject.update(x, labels)
    torch.testing.assert_close(subject.compute(), computed(kind, (x, labels)), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_as_its_float32_value(kind: type[torchmetrics.Metric], dtype: torch.dtype) -> None:
    x, labels = data(kind)
    half = x.to(dtype)
    torch.testing.assert_close(computed(kind, (half, labels)), computed(kind, (half.float(), labels)), equal_nan=True)


def test_bad_input_is_refused_in_one_line(kind: type[torchmetrics.Metric]) -> None:
    x, labels = data(kind)
    no_labels = (x, labels + 2) if reads_scores(kind) else (x, labels.float())
    nothing = () if reads_scores(kind) else ((x[:0], labels[:0]),)  # of no scores there is nothing to say
    for wrong in ((x * torch.nan, labels), (x, labels[:-1]), no_labels, *nothing):
        with pytest.raises(ValueError, match="argument `") as caught:
            metric(kind).update(*wrong)
        assert "\n" not in str(caught.value)
