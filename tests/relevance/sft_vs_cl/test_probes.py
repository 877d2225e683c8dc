"""The probes: how large the weights are, how the directions lie, and rows of one's own."""

from __future__ import annotations

import pytest
import torch

from scorecraft.relevance.sft_vs_cl import LabelRows, direction_cosine, reranking_weights, weight_summary
from scorecraft.relevance.two_row_scoring import two_row_logits


def test_means_and_shares_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 4 * torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    relevance = (torch.rand(5, 6, generator=generator) < 0.3).long()
    where = torch.rand(5, 6, generator=generator) < 0.8
    for weight in ("sft", "cl", "one", "masked"):
        found = weight_summary(scores, relevance, where, weight=weight, below=0.05)  # type: ignore[arg-type]
        weights = reranking_weights(scores, relevance, where, weight=weight)  # type: ignore[arg-type]
        everyone = weights[where]
        torch.testing.assert_close(found.positive_mean, weights[where & (relevance > 0)].mean())
        torch.testing.assert_close(found.negative_mean, weights[where & (relevance == 0)].mean())
        torch.testing.assert_close(found.dead, (everyone < 0.05).double().mean())
        torch.testing.assert_close(found.dead_relative, (everyone < 0.05 * everyone.mean()).double().mean())


def test_easy_negatives_kill_the_weights_of_contrast_together() -> None:
    """One easy query: contrast weighs nobody, SFT still weighs the positive it is unsure of."""
    scores = torch.tensor([[[0.0, -9.0, -9.0]], [[0.0, 0.0, 0.0]]], dtype=torch.float64)
    relevance = torch.tensor([[True, False, False]])
    assert weight_summary(scores, relevance, weight="cl").dead == 1
    sft = weight_summary(scores, relevance, weight="sft")
    assert sft.positive_mean == 0.5
    assert sft.dead.item() == pytest.approx(2 / 3)


def test_means_over_nothing_are_zero() -> None:
    scores = torch.zeros(2, 1, 2)
    found = weight_summary(scores, torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    assert [value.item() for value in found] == [0, 0, 0, 0]


def test_direction_cosine() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert direction_cosine(rows).item() == pytest.approx(2**-0.5)
    assert direction_cosine(rows.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="argument `rows`: expected two different rows"):
        direction_cosine(rows[[0, 0]])
    with pytest.raises(ValueError, match="argument `rows`: expected two rows of the head"):
        direction_cosine(rows[0])


def test_rows_of_ones_own_are_trained() -> None:
    hidden, mask = torch.randn(4, 3, 5), torch.ones(4, 3, dtype=torch.long)
    tokens = torch.randn(2, 5)
    rows = LabelRows(tokens)
    torch.testing.assert_close(rows(hidden, mask), two_row_logits(hidden, mask, tokens))
    rows(hidden, mask).sum().backward()
    assert rows.rows.grad is not None
    with torch.no_grad():
        rows.rows.add_(1)
    copy = LabelRows.random(5)
    copy.load_state_dict(rows.state_dict())
    assert torch.equal(copy.rows, tokens + 1)


def test_random_rows_come_from_the_generator() -> None:
    first, again, other = (
        LabelRows.random(400, generator=torch.Generator().manual_seed(seed)).rows for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(400**-0.5, rel=0.1)
    with pytest.raises(ValueError, match="argument `dimension`: expected an integer >= 1"):
        LabelRows.random(0)
    with pytest.raises(ValueError, match="argument `rows`: expected two rows"):
        LabelRows(first[:1])
    assert "dimension=400" in repr(LabelRows(first))
