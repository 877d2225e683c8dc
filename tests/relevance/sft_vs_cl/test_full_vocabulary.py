"""Fine-tuning over the whole vocabulary: the two-token objective, and the mass that goes to other tokens."""

from __future__ import annotations

import pytest
import torch

from scorecraft.relevance.sft_vs_cl import SupervisedRerankingLoss, full_vocabulary_loss
from scorecraft.relevance.two_row_scoring import row_logits, token_rows


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_two_token_loss_and_the_mass_of_the_others(reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    head = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    relevance = torch.arange(8) % 3 == 0
    found = full_vocabulary_loss(states, head, relevance, yes=4, no=9, reduction=reduction)
    pairs = row_logits(states, token_rows(head, 4, 9))
    two = SupervisedRerankingLoss(reduction="none")(pairs[:, :, None], relevance[:, None])
    answered = (states @ head.T).softmax(dim=1)[:, [4, 9]].sum(dim=1)
    expected = two - answered.log()
    torch.testing.assert_close(found, expected if reduction == "none" else getattr(expected, reduction)())


def test_with_two_tokens_alone_it_is_the_two_token_loss() -> None:
    states, head = torch.randn(6, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    relevance = torch.tensor([1, 0, 0, 1, 0, 1])
    found = full_vocabulary_loss(states, head, relevance, yes=1, no=0)
    logits = row_logits(states, token_rows(head, 1, 0))
    torch.testing.assert_close(found, SupervisedRerankingLoss()(logits, relevance))


def test_bad_input_is_refused() -> None:
    states, head, relevance = torch.randn(6, 4), torch.randn(9, 4), torch.ones(6)
    for said, call in {
        "no`: expected another token": lambda: full_vocabulary_loss(states, head, relevance, yes=1, no=1),
        "yes`: expected one token id below 9": lambda: full_vocabulary_loss(states, head, relevance, yes=9, no=1),
        "relevance`: expected one per state": lambda: full_vocabulary_loss(states, head, relevance[1:], yes=0, no=1),
        "states`: expected floating-point states": lambda: full_vocabulary_loss(
            states[0], head, relevance, yes=0, no=1
        ),
        "reduction`: expected one of": lambda: full_vocabulary_loss(
            states, head, relevance, yes=0, no=1, reduction="max"
        ),
    }.items():
        with pytest.raises(ValueError, match=f"argument `{said}"):
            call()
