"""The study of ranking accuracy: its own pieces, and from end to end at smoke scale."""

import pytest
import torch

from scorecraft.preference.ranking_accuracy import ScaledReferenceDPOLoss
from scorecraft.studies.ranking_accuracy import BOUNDS, STUDY, draw, log_ratios, sampled, sums, train
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study
from scorecraft.studies.worlds import generator

SIZES = {"train": 60, "validation": 20, "test": 10}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("ranking_accuracy"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    assert all(0 <= value <= 1 for trial in smoke.trials for value in trial.metrics.values())
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


def test_both_readings_are_of_one_model(smoke):
    def of(name, metric):
        return smoke.values("bigram", name, metric)

    for metric in ("flipped", "unlearned", "rule_agreement"):
        assert of("reward", metric) == of("ranking", metric)
    assert of("reward", "train_accuracy") != of("ranking", "train_accuracy")
    assert of("reference", "flipped") == of("reference", "unlearned") == [0, 0]
    assert smoke.trials[-1].contender == "bounds"
    assert dict(smoke.trials[-1].metrics) == BOUNDS


def test_a_trial_repeats_to_the_last_bit(smoke, as_a_worker):
    again = STUDY.trial(STUDY.worlds[0], STUDY.method, 1, STUDY.scale("smoke"))
    assert smoke.values("bigram", "reward", "train_accuracy")[1] == again["train_accuracy"]


def test_margins_and_recipe_are_those_of_the_specification():
    assert (STUDY.claim.metric, STUDY.claim.margin) == ("train_accuracy", 0.15)
    test, flips, rule, _, without = STUDY.further_claims
    assert (test.metric, test.margin) == ("test_accuracy", 0.08)
    assert BOUNDS[flips.metric] == 0.2
    assert BOUNDS[rule.metric] == 0.999
    assert (without.method, without.margin) == ("gamma_zero", 0.05)
    assert STUDY.scale("desk").seeds >= 8
    assert STUDY.scale("desk").settings == {
        "train": 2000, "validation": 500, "test": 500, "steps": 400, "learning_rate": 0.02, "beta": 0.1, "gamma": 1.0,
    }  # fmt: skip


def test_answers_are_drawn_as_described():
    data = draw(0, SIZES)
    assert data.reference.shape == (32, 32)
    assert data.reference.std().item() == pytest.approx(1.5, abs=0.1)
    assert [len(part.alpha) for part in (data.train, data.validation, data.test)] == [60, 20, 10]
    lengths = torch.cat([data.train.chosen.sum(dim=1), data.train.rejected.sum(dim=1)])
    assert 5 <= lengths.min() < lengths.max() <= 40
    # Every answer is a path: each token but the last is left as often as it is entered, the prompt once more.
    counts = data.train.chosen.view(-1, 32, 32)
    surplus = counts.sum(dim=2) - counts.sum(dim=1)
    assert set(surplus.flatten().tolist()) <= {-1.0, 0.0, 1.0}
    assert torch.equal(surplus.sum(dim=1), torch.zeros(60))
    # Both answers of a pair follow one prompt.
    starts = [part.view(-1, 32, 32).sum(dim=2) - part.view(-1, 32, 32).sum(dim=1) for part in data.train[:2]]
    both = (starts[0] == 1).any(dim=1) & (starts[1] == 1).any(dim=1)
    assert both.any()
    assert torch.equal(starts[0][both].argmax(dim=1), starts[1][both].argmax(dim=1))
    assert torch.equal(draw(0, SIZES).train.chosen, data.train.chosen)
    assert not torch.equal(draw(1, SIZES).reference, data.reference)


def test_alpha_is_the_chance_of_the_choice():
    """Of pairs with a share near 0.8 about four fifths are chosen that way: shares below a half are rarer."""
    alpha = torch.cat([draw(seed, {**SIZES, "train": 2000}).train.alpha for seed in range(2)])
    for share in (0.6, 0.8, 0.9):
        likely = ((alpha - share).abs() < 0.05).sum()
        unlikely = ((alpha - (1 - share)).abs() < 0.05).sum()
        assert float(likely / (likely + unlikely)) == pytest.approx(share, abs=0.08)


def test_samples_follow_the_model():
    logits = torch.randn(32, 32, generator=generator(0, "logits"), dtype=torch.float64)
    prompts = torch.zeros(4000, dtype=torch.long)
    counts = sampled(logits, prompts, generator(1, "samples")).view(-1, 32, 32).sum(dim=0)
    found = counts / counts.sum(dim=1, keepdim=True)
    busy = counts.sum(dim=1) > 2000
    torch.testing.assert_close(found[busy], logits.softmax(dim=1)[busy], rtol=0, atol=0.03)


def test_log_probabilities_of_counts():
    data = draw(0, SIZES)
    each = data.reference.log_softmax(dim=1)
    chosen, rejected = sums(data.reference, data.train)
    by_hand = (data.train.chosen[3].view(32, 32) * each).sum()
    assert chosen[3].item() == pytest.approx(by_hand.item(), rel=1e-5)
    torch.testing.assert_close(log_ratios(data.reference, data.train), chosen - rejected)


def test_training_lowers_the_validation_loss():
    data = draw(0, {"train": 300, "validation": 100, "test": 10})
    loss = ScaledReferenceDPOLoss()
    model, agreement = train(loss, data, {"learning_rate": 0.02, "steps": 15})
    reference = dict(
        zip(("reference_chosen", "reference_rejected"), sums(data.reference, data.validation), strict=True)
    )
    after, before = (loss(*sums(logits, data.validation), **reference) for logits in (model, data.reference))
    assert after < before
    assert agreement == 1
