"""The AFT study: its own pieces, and from end to end at smoke scale."""

import pytest
import torch

from scorecraft.preference.aft import AFTLoss
from scorecraft.studies.aft import STUDY, bigrams, corrupted, draw, log_probabilities, measure, sampled, train
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("aft"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    assert all(trial.metrics["divergence"] > 0 for trial in smoke.trials)
    assert all(0 <= trial.metrics["assessment"] <= 1 for trial in smoke.trials)
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


def test_a_trial_repeats_to_the_last_bit(smoke, as_a_worker):
    again = STUDY.trial(STUDY.worlds[0], STUDY.method, 1, STUDY.scale("smoke"))
    assert smoke.values("chain", "detached_20", "divergence")[1] == again["divergence"]


def test_margins_and_recipe_are_those_of_the_specification():
    assert (STUDY.claim.metric, STUDY.claim.margin, STUDY.claim.relative) == ("divergence", 0.8, True)
    assert STUDY.further_claims[0].margin == 0.8
    assert STUDY.method.settings == {"constraint": "detach", "weight": 20}
    assert STUDY.baseline.settings == {"constraint": "none", "weight": 20}
    assert dict(STUDY.scale("desk").settings) == {
        "first_steps": 60, "steps": 200, "learning_rate": 0.02, "beta": 0.15, "questions": 400, "pairs": 500,
    }  # fmt: skip
    assert STUDY.scale("desk").seeds == 8


def test_the_data_are_as_described():
    told = {"questions": 300, "pairs": 200}
    chain = draw(0, told)
    assert chain.train.references.shape == (300, 576)
    assert chain.train.answers.shape == (300, 6, 576)
    assert chain.held_out.answers.shape == (200, 2, 576)
    assert (chain.train.answers.sum(dim=2) == 16).all()
    torch.testing.assert_close(chain.truth.exp().sum(dim=1), torch.ones(24))
    # A replaced token touches two bigrams at most, so that four of sixteen differ at most.
    right, wrong = chain.train.answers[:, :3], chain.train.answers[:, 3:]
    touched = (right - wrong).clamp(min=0).sum(dim=2)
    assert touched.max() <= 4
    assert touched.mean() > 2
    truth = measure(chain.truth, chain)
    assert truth["divergence"] == pytest.approx(0, abs=1e-6)
    assert truth["assessment"] > 0.95
    assert truth["right"] > truth["wrong"] + 0.3
    assert torch.equal(draw(0, told).train.answers, chain.train.answers)
    assert not torch.equal(draw(1, told).truth, chain.truth)


def test_log_probabilities_are_those_of_the_sequence():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(24, 24, generator=random)
    tokens = sampled(logits.log_softmax(dim=1), 5, random)
    each = logits.log_softmax(dim=1)[tokens[:, :-1], tokens[:, 1:]]
    torch.testing.assert_close(log_probabilities(logits, bigrams(tokens)), each.sum(dim=1))
    changed = (corrupted(tokens, random) != tokens).sum(dim=1)
    assert changed.max() <= 2


def test_training_goes_down_the_objective():
    chain = draw(0, {"questions": 50, "pairs": 20})
    told = {"learning_rate": 0.02, "reference": "mean", "weight": 20.0}
    start = torch.zeros(24, 24)
    alone = train(start, chain.train, 30, None, told)
    pushed = train(start, chain.train, 30, AFTLoss(constraint="none"), told)
    assert (
        log_probabilities(alone, chain.train.references).mean()
        > log_probabilities(start, chain.train.references).mean()
    )
    wrong = chain.train.answers[:, 3:]
    assert log_probabilities(pushed, wrong).mean() < log_probabilities(alone, wrong).mean()
    assert not start.any()
