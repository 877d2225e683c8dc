"""The optimum of DPO and RLHF in closed form, and the accuracy it would have."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from scorecraft.preference.ranking_accuracy import (
    BETAS,
    alignment_gap,
    idealized_log_ratio,
    idealized_ranking_accuracy,
    preference_logit,
    ranking_accuracy,
)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, *values: float) -> None:
    torch.testing.assert_close(found, vector(*values), rtol=0, atol=1e-12)


def test_check_values() -> None:
    reference, alpha = vector(-5), vector(0.75)  # rw = -40, rl = -35
    close(idealized_log_ratio(reference, alpha, beta=0.1), 5.986122886681098)
    close(idealized_log_ratio(reference, alpha, beta=1.0), -3.901387711331890)
    close(idealized_log_ratio(vector(-6.9), vector(1.0), beta=1.0), 0.007755278982137)
    complement = idealized_log_ratio(vector(-6.9), vector(1.0), beta=1.0, unanimous_odds="complement")
    close(complement, 0.006754778648554)


def test_logits() -> None:
    found = preference_logit(vector(0.0, 0.25, 0.5, 0.75, 1.0))
    close(found, -math.log(1000), -math.log(3), 0.0, math.log(3), math.log(1000))
    close(preference_logit(vector(1.0, 0.0), unanimous=0.01, unanimous_odds="complement"), math.log(99), -math.log(99))
    assert preference_logit(vector(1e-12))[0] == pytest.approx(math.log(1e-12), rel=1e-12)  # only 0 and 1 are replaced
    assert preference_logit(torch.tensor([1.0, 0.3])).dtype == torch.float32


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("alpha", [0.6, 0.9, 0.3])
def test_any_optimizer_lands_at_the_closed_form(beta: float, alpha: float) -> None:
    """The loss of a free log-ratio is strictly convex, and theorem 3.1 is its stationary point."""
    c = 1.7

    def loss(m: float) -> float:
        u = beta * (m + c)
        return alpha * math.log1p(math.exp(-u)) + (1 - alpha) * math.log1p(math.exp(u))

    found = minimize_scalar(loss, bracket=(-3, 3), tol=1e-12).x
    closed = float(idealized_log_ratio(vector(-c), vector(alpha), beta=beta))
    assert found == pytest.approx(closed, abs=1e-5 / beta)
    m = torch.tensor(closed, dtype=torch.float64, requires_grad=True)
    u = beta * (m + c)
    value = -alpha * torch.nn.functional.logsigmoid(u) - (1 - alpha) * torch.nn.functional.logsigmoid(-u)
    (slope,) = torch.autograd.grad(value, m)
    assert float(slope) == pytest.approx(0, abs=1e-12)


def test_the_policy_optimum_of_rlhf_is_the_same() -> None:
    """`pi* ~ pi_ref e^(r / beta)` with Bradley-Terry rewards."""
    reference, rewards, beta = vector(0.1, 0.3, 0.6).log(), vector(1.2, -0.4, 0.3), 0.7
    optimum = (reference + rewards / beta).log_softmax(dim=0)
    alpha = (rewards[0] - rewards[1]).sigmoid()
    closed = idealized_log_ratio((reference[0] - reference[1])[None], alpha[None], beta=beta)
    close(closed, float(optimum[0] - optimum[1]))


def test_accuracy_over_betas() -> None:
    reference, alpha = vector(-5, -5, 1, 100), vector(0.75, 0.55, 0.9, 0.6)
    found = idealized_ranking_accuracy(reference, alpha)
    close(found.betas, *BETAS)
    # Pair 1 is right below beta = ln 3 / 5, pair 2 below 0.0401; the others always.
    close(found.accuracies, 1.0, 0.75, 0.5, 0.5, 0.5)
    assert (found.minimum, found.median, found.maximum) == (0.5, 0.5, 1.0)
    even = idealized_ranking_accuracy(reference, alpha, betas=(0.01, 0.1))
    assert even.median == pytest.approx(0.875)
    assert float(alignment_gap(found, 0.25)) == pytest.approx(25.0)
    assert float(alignment_gap(found, ranking_accuracy(vector(-1, 1)))) == pytest.approx(0.0)


def test_monotone_in_beta_and_its_limits() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = 10 * torch.randn(500, generator=generator, dtype=torch.float64)
    alpha = 0.5 + 0.5 * torch.rand(500, generator=generator, dtype=torch.float64)
    betas = [10.0**power for power in range(-4, 6)]
    found = idealized_ranking_accuracy(reference, alpha, betas=betas).accuracies
    assert bool((found.diff() <= 0).all())  # betas ascend
    assert found[0] == 1
    assert found[-1] == ranking_accuracy(reference)
    assert found[0] > found[-1]


def test_strict_at_a_tie() -> None:
    even = idealized_ranking_accuracy(vector(0.0), vector(0.5))
    assert even.maximum == 0
    assert idealized_ranking_accuracy(vector(0.0), vector(0.5), ties="half").median == 0.5


def test_small_betas_do_not_overflow() -> None:
    """`999^(1 / 0.01)` is 10^300, and its square is not a number of any precision."""
    found = idealized_log_ratio(torch.tensor([-3000.0]), torch.tensor([1.0]), beta=1e-4)
    assert found.isfinite().all()
    assert found > 0


def test_dead_zone_of_the_official_code() -> None:
    reference, alpha = vector(0.04, -0.04, 0.06, 0.3, 0.0), vector(0.5, 0.5, 0.5, 0.5, 0.51)
    found = idealized_ranking_accuracy(reference, alpha, betas=(1.0,), dead_zone=0.05)
    # Ties of raters and optimum agree, a ratio of 1.06 or 1.35 is no tie; odds of 1.04 are.
    close(found.accuracies, 3 / 5)
    assert idealized_ranking_accuracy(vector(-9.0), vector(0.2), betas=(1.0,), dead_zone=0.05).median == 1
    assert idealized_ranking_accuracy(vector(-9.0), vector(0.2), betas=(1.0,)).median == 0


@pytest.mark.parametrize(
    "call, line",
    [
        (lambda: preference_logit(vector(1.1)), "argument `alpha`: expected shares in [0, 1], got 1.1"),
        (lambda: preference_logit(vector(math.nan)), "argument `alpha`: expected shares in [0, 1], got nan"),
        (lambda: preference_logit(torch.tensor([1])), "argument `alpha`: expected floating-point shares"),
        (lambda: preference_logit(vector(1), unanimous=0.5), "argument `unanimous`: expected a share in (0, 0.5)"),
        (lambda: preference_logit(vector(1), unanimous=0), "argument `unanimous`: expected a finite number > 0"),
        (lambda: preference_logit(vector(1), unanimous_odds="x"), "argument `unanimous_odds`: expected one of"),
        (lambda: idealized_log_ratio(vector(1), vector(1, 1)), "argument `alpha`: expected floating-point shares of"),
        (lambda: idealized_log_ratio(vector(1), vector(1), beta=0), "argument `beta`: expected a finite number > 0"),
        (lambda: idealized_log_ratio(vector(math.inf), vector(1)), "argument `reference_log_ratio`: expected finite"),
        (lambda: idealized_ranking_accuracy(vector(1), vector(1), betas=()), "argument `betas`: expected at least one"),
        (lambda: idealized_ranking_accuracy(vector(1), vector(1), dead_zone=1), "argument `dead_zone`: expected"),
        (
            lambda: alignment_gap(idealized_ranking_accuracy(vector(1), vector(1)), 50.0),
            "argument `accuracy`: expected a number in [0, 1], got 50.0",
        ),
    ],
)  # fmt: skip
def test_refusals(call: Any, line: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(line)):
        call()
