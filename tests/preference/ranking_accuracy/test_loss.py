"""DPO with a scaled reference: equal to DPO, its gradient, and what may be left out."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import DPOLoss, preference_gradients
from scorecraft.preference.ranking_accuracy import ScaledReferenceDPOLoss, flip_threshold, pair_difficulty


def pairs(n: int = 40) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    logs = -50 * torch.rand(4, n, generator=generator, dtype=torch.float64) - 0.1
    answers = {"chosen": logs[0], "rejected": logs[1]}
    return answers, {"reference_chosen": logs[2], "reference_rejected": logs[3]}


def test_one_is_dpo() -> None:
    answers, reference = pairs()
    ours = ScaledReferenceDPOLoss(gamma=1.0, beta=0.3, reduction="none")(**answers, **reference)
    theirs = DPOLoss(beta=0.3, reduction="none")(**answers, **reference)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    m = answers["chosen"] - answers["rejected"]
    c = reference["reference_rejected"] - reference["reference_chosen"]
    to_chosen, to_rejected = preference_gradients(
        ScaledReferenceDPOLoss(beta=0.3, reduction="sum"), *answers.values(), **reference
    )
    torch.testing.assert_close(to_chosen, -0.3 * torch.sigmoid(-0.3 * (m + c)), rtol=0, atol=1e-14)
    torch.testing.assert_close(to_rejected, -to_chosen, rtol=0, atol=1e-14)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_value_and_weight(gamma: float, smoothing: float) -> None:
    answers, reference = pairs()
    loss = ScaledReferenceDPOLoss(gamma=gamma, beta=0.2, label_smoothing=smoothing, reduction="none")
    m = answers["chosen"] - answers["rejected"]
    u = 0.2 * (m + gamma * (reference["reference_rejected"] - reference["reference_chosen"]))
    wanted = -(1 - smoothing) * F.logsigmoid(u) - smoothing * F.logsigmoid(-u)
    torch.testing.assert_close(loss(**answers, **reference), wanted, rtol=0, atol=1e-13)
    loss.reduction = "sum"
    to_chosen, to_rejected = preference_gradients(loss, *answers.values(), **reference)
    torch.testing.assert_close(to_chosen, -0.2 * (torch.sigmoid(-u) - smoothing), rtol=0, atol=1e-14)
    torch.testing.assert_close(to_rejected, -to_chosen, rtol=0, atol=1e-14)


def test_scaling_the_reference_is_scaling_its_log_probabilities() -> None:
    answers, reference = pairs()
    scaled = {name: 0.25 * values for name, values in reference.items()}
    ours = ScaledReferenceDPOLoss(gamma=0.25)(**answers, **reference)
    torch.testing.assert_close(ours, DPOLoss(beta=0.1)(**answers, **scaled), rtol=0, atol=1e-14)


def test_without_the_reference() -> None:
    answers, reference = pairs()
    loss = ScaledReferenceDPOLoss(gamma=0.0)
    assert not loss.needs_reference
    assert ScaledReferenceDPOLoss(gamma=0.1).needs_reference
    torch.testing.assert_close(loss(**answers), loss(**answers, **reference), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"^argument `reference_chosen`: expected log-probabilities under the refer"):
        ScaledReferenceDPOLoss(gamma=0.1)(**answers)


def test_threshold_of_the_loss_is_the_ranking() -> None:
    answers, reference = pairs(400)
    gap = answers["chosen"] - answers["rejected"]
    for gamma in (0.0, 0.5, 1.0):
        loss = ScaledReferenceDPOLoss(gamma=gamma, reduction="none")(**answers, **reference)
        before = reference["reference_chosen"] - reference["reference_rejected"]
        threshold = flip_threshold(pair_difficulty(before, gamma=gamma))
        assert torch.equal(loss <= threshold, gap >= 0)


def test_per_token() -> None:
    answers, reference = pairs(5)
    tokens = {"chosen_tokens": torch.arange(1, 6), "rejected_tokens": torch.arange(3, 8)}
    found = ScaledReferenceDPOLoss(gamma=0.5, average_log_probabilities=True, reduction="none")(
        **answers, **reference, **tokens
    )
    m = answers["chosen"] / tokens["chosen_tokens"] - answers["rejected"] / tokens["rejected_tokens"]
    c = (
        reference["reference_rejected"] / tokens["rejected_tokens"]
        - reference["reference_chosen"] / tokens["chosen_tokens"]
    )
    torch.testing.assert_close(found, -F.logsigmoid(0.1 * (m + 0.5 * c)), rtol=0, atol=1e-14)


def test_extreme_margins_stay_finite() -> None:
    chosen = torch.tensor([-1e4, -1.0], requires_grad=True)
    loss = ScaledReferenceDPOLoss(gamma=2.0, beta=10.0, label_smoothing=0.1)(
        chosen, torch.tensor([-1.0, -1e4]), reference_chosen=torch.tensor([-1.0, -1e4]),
        reference_rejected=torch.tensor([-1e4, -1.0]),
    )  # fmt: skip
    loss.backward()
    assert chosen.grad is not None
    assert loss.isfinite()
    assert chosen.grad.isfinite().all()


@pytest.mark.parametrize(
    "options, line",
    [
        ({"gamma": -0.1}, "argument `gamma`: expected a finite number >= 0"),
        ({"gamma": math.nan}, "argument `gamma`: expected a finite number >= 0"),
        ({"beta": 0.0}, "argument `beta`: expected a finite number > 0"),
        ({"label_smoothing": 0.5}, "argument `label_smoothing`: expected a number in [0, 0.5)"),
        ({"label_smoothing": -0.1}, "argument `label_smoothing`: expected a number in [0, 1]"),
    ],
)
def test_refusals(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(line)):
        ScaledReferenceDPOLoss(**options)


def test_representation() -> None:
    assert repr(ScaledReferenceDPOLoss(gamma=0.5)) == "ScaledReferenceDPOLoss(gamma=0.5, beta=0.1, reduction='mean')"
    assert "label_smoothing=0.1" in repr(ScaledReferenceDPOLoss(label_smoothing=0.1))
