"""The objectives on whole answers, exact and with held weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.ranks import run_ranks
from torch import Tensor

from scorecraft.core import NegativeLogLikelihoodLoss, across_ranks
from scorecraft.preference.dco import (
    ApproximateCoverageLoss,
    DirectCoverageLoss,
    coverage_loss,
    coverage_weight,
    proof_log_probabilities,
    sampled_coverage_weight,
    whole_proof_weights,
)


def answers(count: int = 7) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    values = -6 * torch.rand(count, generator=random, dtype=torch.float64)
    return values.requires_grad_(), torch.randint(1, 9, (count,), generator=random)


def pulls(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


def test_the_mean_over_answers() -> None:
    log_p, _ = answers()
    loss = DirectCoverageLoss(n=8)
    torch.testing.assert_close(loss(log_p), coverage_loss(8, log_p).mean(), rtol=1e-14, atol=0)
    torch.testing.assert_close(pulls(loss(log_p), log_p), -coverage_weight(8, log_p.detach()) / 7, rtol=1e-14, atol=0)


def test_one_sample_is_cross_entropy() -> None:
    log_p, _ = answers()
    assert torch.equal(DirectCoverageLoss(n=1)(log_p), NegativeLogLikelihoodLoss()(log_p))
    wanted = pulls(NegativeLogLikelihoodLoss()(log_p), log_p)
    assert torch.equal(pulls(DirectCoverageLoss(n=1)(log_p), log_p), wanted)


def test_the_token_mean_has_the_gradient_of_the_published_code() -> None:
    log_p, tokens = answers()
    published = (coverage_weight(8, log_p.detach()) * -log_p / tokens).mean()
    found = DirectCoverageLoss(n=8, token_mean=True)(log_p, tokens=tokens)
    torch.testing.assert_close(pulls(found, log_p), pulls(published, log_p), rtol=1e-13, atol=0)
    torch.testing.assert_close(found, (coverage_loss(8, log_p) / tokens).mean())


def test_the_surrogate_has_the_gradient_and_another_value() -> None:
    log_p, _ = answers()
    surrogate = ApproximateCoverageLoss()(log_p, coverage_weights=coverage_weight(8, log_p))
    exact = DirectCoverageLoss(n=8)(log_p)
    torch.testing.assert_close(pulls(surrogate, log_p), pulls(exact, log_p), rtol=1e-13, atol=0)
    assert abs((surrogate - exact).item()) > 0.1


def test_held_weights_are_constants_and_do_not_change_the_mean() -> None:
    log_p, tokens = answers()
    held = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = ApproximateCoverageLoss(token_mean=True)
    value = loss(log_p, coverage_weights=held, tokens=tokens)
    torch.testing.assert_close(value, (held.detach() * -log_p / tokens).sum() / 7)
    assert not torch.autograd.grad(value, held, allow_unused=True, materialize_grads=True)[0].any()
    assert torch.equal(ApproximateCoverageLoss()(log_p), NegativeLogLikelihoodLoss()(log_p))


def test_sampled_rates() -> None:
    rates = torch.tensor([0.0, 1 / 64, 3 / 64, 0.1, 1.0], dtype=torch.float64)
    found = sampled_coverage_weight(16, rates, threshold=0.1)
    inner = coverage_weight(16, rates[1:3].log())
    assert found.tolist() == [1.0, *inner.tolist(), 0.0, 0.0]
    assert inner.tolist() == pytest.approx([16 * p * (1 - p) ** 15 / (1 - (1 - p) ** 16) for p in (1 / 64, 3 / 64)])
    assert sampled_coverage_weight(1, rates).tolist() == [1, 1, 1, 0, 0]  # a filter of hard examples, and no more
    assert (sampled_coverage_weight(16, rates, threshold=1.0)[3:] > 0).tolist() == [True, False]


def test_whole_proofs() -> None:
    """The weight of a proof on each of its steps is the gradient of the loss of the proof."""
    log_p, _ = answers()
    proofs = torch.tensor([0, 1, 0, 2, 1, 1, 2])
    sums = proof_log_probabilities(log_p, proofs)
    for proof in range(3):
        assert sums[proof].item() == pytest.approx(log_p[proofs == proof].sum().item())
    whole = DirectCoverageLoss(n=64, reduction="sum")(sums)
    weights = whole_proof_weights(64, log_p, proofs)
    stepwise = ApproximateCoverageLoss(reduction="sum")(log_p, coverage_weights=weights)
    torch.testing.assert_close(pulls(stepwise, log_p), pulls(whole, log_p), rtol=1e-13, atol=0)
    assert not weights.requires_grad
    assert proof_log_probabilities(log_p, proofs, count=5)[3:].tolist() == [0, 0]


def test_what_is_refused() -> None:
    log_p, tokens = answers()
    proofs = torch.zeros(7, dtype=torch.long)
    calls = [
        (lambda: DirectCoverageLoss(n=0.9), "argument `n`: expected a number of samples >= 1, got 0.9"),
        (
            lambda: DirectCoverageLoss(n=2)(-log_p),
            "argument `log_probabilities`: expected finite log-probabilities <= 0",
        ),
        (
            lambda: DirectCoverageLoss(n=2, token_mean=True)(log_p),
            "argument `tokens`: expected a token count per answer",
        ),
        (
            lambda: ApproximateCoverageLoss(token_mean=True)(log_p),
            "argument `tokens`: expected a token count per answer",
        ),
        (lambda: ApproximateCoverageLoss()(log_p, coverage_weights=torch.ones(3)), "argument `coverage_weights`"),
        (
            lambda: ApproximateCoverageLoss()(log_p, coverage_weights=torch.full((7,), 1.5)),
            "argument `coverage_weights`: expected weights in [0, 1], got 1.5",
        ),
        (lambda: sampled_coverage_weight(2, torch.tensor([1.2])), "argument `success_rates`: expected rates in [0, 1]"),
        (lambda: sampled_coverage_weight(2, tokens), "argument `success_rates`: expected floating-point"),
        (lambda: sampled_coverage_weight(2, torch.ones(1), threshold=2), "argument `threshold`"),
        (lambda: sampled_coverage_weight(0, torch.ones(1)), "argument `n`"),
        (lambda: proof_log_probabilities(log_p, proofs[:3]), "argument `proofs`: expected an integer per step"),
        (
            lambda: proof_log_probabilities(log_p, proofs - 1, 2),
            "argument `proofs`: expected numbers in [0, 2), got -1",
        ),
        (lambda: whole_proof_weights(0.5, log_p, proofs), "argument `n`"),
    ]
    for call, line in calls:
        with pytest.raises(ValueError, match=r"^argument") as caught:
            call()
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)


def test_what_it_says_of_itself() -> None:
    assert repr(DirectCoverageLoss(n=256)) == "DirectCoverageLoss(n=256, reduction='mean')"
    assert (
        repr(DirectCoverageLoss(n=1.5, token_mean=True))
        == "DirectCoverageLoss(n=1.5, token_mean=True, reduction='mean')"
    )
    assert repr(ApproximateCoverageLoss()) == "ApproximateCoverageLoss(reduction='mean')"
    assert (
        repr(ApproximateCoverageLoss(token_mean=True)) == "ApproximateCoverageLoss(token_mean=True, reduction='mean')"
    )


def _on_ranks(rank: int, folder: str) -> None:
    log_p, _ = answers()
    held = torch.linspace(0, 1, 7, dtype=torch.float64)
    own = slice(0, 2) if rank == 0 else slice(2, 7)
    mine = log_p.detach()[own].requires_grad_()
    value = across_ranks(ApproximateCoverageLoss())(mine, coverage_weights=held[own])
    mean = value.detach().clone()
    dist.all_reduce(mean)
    whole = ApproximateCoverageLoss()(log_p, coverage_weights=held)
    off = [(mean / 2 - whole).abs().item(), (pulls(value, mine) / 2 - pulls(whole, log_p)[own]).abs().max().item()]
    Path(folder, f"{rank}.json").write_text(json.dumps(off))


def test_held_weights_on_two_ranks(tmp_path: Path) -> None:
    run_ranks(_on_ranks, str(tmp_path))
    for rank in range(2):
        assert max(json.loads((tmp_path / f"{rank}.json").read_text())) < 1e-12
