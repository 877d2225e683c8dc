"""Chunks of candidates: value and gradient of the plain call, where accumulation alone would be wrong for contrast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scorecraft.core import InfoNCELoss, citation
from scorecraft.relevance.sft_vs_cl import (
    ContrastiveRerankingLoss,
    SupervisedRerankingLoss,
    UnifiedRerankingLoss,
    chunked_reranking,
    first_is_relevant,
)

LISTS, CANDIDATES = 3, 5


class Scorer(nn.Module):
    """States to the logits of yes and no, through a dropout; remembers how many states it saw at once."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2)).double()
        self.seen: list[int] = []

    def forward(self, states: Tensor) -> Tensor:
        self.seen.append(len(states))
        return self.network(states).T


@pytest.fixture
def states() -> Tensor:
    return torch.randn(LISTS * CANDIDATES, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(module: nn.Module) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    module.zero_grad()
    return found


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("loss", [ContrastiveRerankingLoss(), SupervisedRerankingLoss(), UnifiedRerankingLoss()],
                         ids=lambda loss: type(loss).__name__)  # fmt: skip
def test_equal_to_the_plain_call(loss: nn.Module, chunk: int, states: Tensor) -> None:
    scorer = Scorer()
    relevance = first_is_relevant(torch.zeros(LISTS, CANDIDATES))
    plain = loss(scorer(states).unflatten(1, (LISTS, CANDIDATES)), relevance)
    plain.backward()
    expected = gradients(scorer)
    scorer.seen.clear()
    chunked = chunked_reranking(loss, scorer, chunk=chunk)(states, relevance)  # type: ignore[arg-type]
    chunked.backward()
    torch.testing.assert_close(chunked, plain)
    for found, right in zip(gradients(scorer), expected, strict=True):
        torch.testing.assert_close(found, right)
    assert max(scorer.seen) == min(chunk, len(states))
    assert sum(scorer.seen) == 2 * len(states)  # once for the weights, once for the gradient


def test_dropout_is_replayed(states: Tensor) -> None:
    scorer = Scorer(dropout=0.5)
    relevance = first_is_relevant(torch.zeros(LISTS, CANDIDATES))
    torch.manual_seed(3)
    plain = ContrastiveRerankingLoss()(
        torch.cat([scorer(part) for part in states.split(4)], dim=1).unflatten(1, (LISTS, CANDIDATES)), relevance
    )
    plain.backward()
    expected = gradients(scorer)
    torch.manual_seed(3)
    chunked_reranking(ContrastiveRerankingLoss(), scorer, chunk=4)(states, relevance).backward()
    for found, right in zip(gradients(scorer), expected, strict=True):
        torch.testing.assert_close(found, right)


def test_adding_up_over_documents_is_exact_for_sft_and_wrong_for_contrast(states: Tensor) -> None:
    """The reason for the second pass: a part of a query does not know the query's softmax."""
    scorer = Scorer()
    relevance = first_is_relevant(torch.zeros(1, LISTS * CANDIDATES))
    for loss, exact in ((SupervisedRerankingLoss(documents="sum"), True), (ContrastiveRerankingLoss(), False)):
        loss(scorer(states)[:, None], relevance).backward()
        expected = gradients(scorer)
        for part, known in zip(states.split(8), relevance.split(8, dim=1), strict=True):
            loss(scorer(part)[:, None], known).backward()
        parted = gradients(scorer)
        agree = all(torch.allclose(found, right) for found, right in zip(parted, expected, strict=True))
        assert agree is exact


def test_ragged_lists_and_one_channel(states: Tensor) -> None:
    scorer = Scorer()
    segments = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3])
    relevance = torch.rand(15, generator=torch.Generator().manual_seed(0)) < 0.4

    def yes(part: Tensor) -> Tensor:
        return scorer(part)[0]

    expected = InfoNCELoss()(yes(states), relevance, segments=segments)
    found = chunked_reranking(InfoNCELoss(), yes, chunk=2)(states, relevance, segments=segments)
    torch.testing.assert_close(found, expected)


def test_inputs_of_a_model(states: Tensor) -> None:
    """A mapping of tensors, as a tokeniser makes them, and a mask as in the plain call."""
    scorer = Scorer()
    relevance = first_is_relevant(torch.zeros(LISTS, CANDIDATES))
    where = torch.rand(LISTS, CANDIDATES, generator=torch.Generator().manual_seed(0)) < 0.7
    loss = chunked_reranking(ContrastiveRerankingLoss(), lambda part: scorer(part["states"]), chunk=3)
    expected = ContrastiveRerankingLoss()(scorer(states).unflatten(1, (LISTS, CANDIDATES)), relevance, where)
    torch.testing.assert_close(loss({"states": states}, relevance, where), expected)
    torch.testing.assert_close(loss({"states": states}, relevance, where=where), expected)


def test_at_the_door_and_in_print() -> None:
    with pytest.raises(ValueError, match="argument `chunk`: expected an integer >= 1"):
        chunked_reranking(ContrastiveRerankingLoss(), Scorer(), chunk=0)
    loss = chunked_reranking(ContrastiveRerankingLoss(), Scorer(), chunk=4)
    assert "chunk=4" in repr(loss)
    assert "2510.14824" in citation(loss)
    assert len(list(loss.parameters())) == 4
