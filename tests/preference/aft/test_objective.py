"""Fine-tuning and alignment together."""

from __future__ import annotations

import pytest
import torch

from scorecraft.core import InfoNCELoss, across_ranks, citation
from scorecraft.preference.aft import AFTLoss, AlignmentFineTuning

SCORES = torch.tensor([[-0.5, -0.8, -0.6], [-0.4, -0.9, -1.0]], dtype=torch.float64)
LABELS = torch.tensor([[1, 0, 0], [1, 1, 1]])
REFERENCES = torch.tensor([-12.0, -20.0], dtype=torch.float64)


def test_a_question_without_a_group_contributes_its_reference_alone() -> None:
    total = AlignmentFineTuning(AFTLoss(constraint="boundary"), weight=2.0)
    alignment = AFTLoss(constraint="boundary", reduction="none")(SCORES, LABELS)
    assert alignment[1] == 0
    wanted = (32 + 2 * alignment.sum()) / 2
    found = total(SCORES, LABELS, reference_log_probabilities=REFERENCES)
    torch.testing.assert_close(found, wanted)
    flat = total(
        SCORES.flatten(), LABELS.flatten(), segments=torch.tensor([0, 0, 0, 1, 1, 1]),
        reference_log_probabilities=REFERENCES,
    )  # fmt: skip
    torch.testing.assert_close(flat, wanted)


def test_the_reference_per_token() -> None:
    total = AlignmentFineTuning(AFTLoss(), weight=0.0, reference="mean")
    found = total(SCORES, LABELS, reference_log_probabilities=REFERENCES, reference_tokens=torch.tensor([4, 10]))
    assert found.item() == pytest.approx(2.5)
    with pytest.raises(
        ValueError, match="argument `reference_tokens`: expected the number of tokens of each reference"
    ):
        total(SCORES, LABELS, reference_log_probabilities=REFERENCES)


def test_gradients_of_both_terms() -> None:
    scores, references = SCORES.clone().requires_grad_(), REFERENCES.clone().requires_grad_()
    AlignmentFineTuning(AFTLoss(), weight=3.0)(scores, LABELS, reference_log_probabilities=references).backward()
    assert references.grad is not None
    assert references.grad.tolist() == [-0.5, -0.5]
    (wanted,) = torch.autograd.grad(3 * AFTLoss()(scores, LABELS), scores)
    torch.testing.assert_close(scores.grad, wanted)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="argument `weight`: expected a finite number >= 0"):
        AlignmentFineTuning(AFTLoss(), weight=-1)
    with pytest.raises(ValueError, match="argument `alignment`: expected an objective reduced to one number"):
        AlignmentFineTuning(AFTLoss(reduction="none"))
    with pytest.raises(ValueError, match="argument `reference`: expected one of 'sum', 'mean'"):
        AlignmentFineTuning(AFTLoss(), reference="none")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="argument `alignment`: expected a list objective, got Linear"):
        AlignmentFineTuning(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="argument `log_probabilities`: expected finite log-prob"):
        AlignmentFineTuning(AFTLoss())(SCORES, LABELS, reference_log_probabilities=-REFERENCES)
    assert "weight=2, reference='sum'" in repr(AlignmentFineTuning(across_ranks(InfoNCELoss()), weight=2))
    assert "2309.02144" in citation(AlignmentFineTuning(AFTLoss()))
