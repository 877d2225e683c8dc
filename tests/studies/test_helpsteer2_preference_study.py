"""The HelpSteer2-Preference study: its own pieces, and from end to end at smoke scale."""

import pytest
import torch

from scorecraft.studies.helpsteer2_preference import STUDY, Utility, annotated, reward_model, strengths, used
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study
from scorecraft.studies.worlds import generator


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("helpsteer2_preference"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    assert all(0 < value <= 1 for trial in smoke.trials for value in trial.metrics.values())
    assert min(smoke.values("annotated", "scaled", "accuracy")) > 0.6
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


def test_a_trial_repeats_to_the_last_bit(smoke, as_a_worker):
    again = STUDY.trial(STUDY.worlds[0], STUDY.contender("expo_1_5"), 1, STUDY.scale("smoke"))
    assert smoke.values("annotated", "expo_1_5", "accuracy")[1] == again["accuracy"]


def test_margins_and_recipe_are_those_of_the_specification():
    assert (STUDY.claim.margin, STUDY.claim.metric) == (0.0, "accuracy")
    assert (STUDY.method.name, STUDY.baseline.name) == ("scaled", "regular")
    pairs = [(claim.method, claim.baseline) for claim in STUDY.further_claims]
    assert {("init_scaled", "scaled"), ("init_scaled", "init_regular")} <= set(pairs)
    assert all(claim.margin == 0 for claim in STUDY.further_claims)
    desk = STUDY.scale("desk")
    assert desk.seeds == 12
    assert [desk.settings[name] for name in ("pairs", "test_pairs", "batch")] == [400, 4000, 64]
    steps = ("rating_steps", "steps_from_scratch", "steps_after_ratings")
    assert [desk.settings[name] for name in steps] == [300, 150, 60]
    rates = ("learning_rate", "learning_rate_from_scratch", "learning_rate_after_ratings")
    assert [desk.settings[name] for name in rates] == [1e-2, 1e-2, 3e-3]
    different = {name for name, value in STUDY.method.settings.items() if STUDY.baseline.settings[name] != value}
    assert different == {"loss"}


def test_the_utility_by_hand():
    utility = Utility(generator(0, "test"))
    answers = torch.randn(3, 2, 16)
    expected = 1.5 * torch.tanh(answers @ utility.weights[0]) + answers @ utility.weights[1]
    torch.testing.assert_close(utility(answers), expected)
    spread = torch.stack([Utility(generator(seed, "test")).weights for seed in range(50)]).std()
    assert spread == pytest.approx(0.375, rel=0.1)


def test_annotations_follow_the_utility():
    random = generator(0, "test")
    utility = Utility(random)
    train = annotated(utility, 2000, random)
    assert set(train.votes.unique().tolist()) == {-3, -2, -1, 1, 2, 3}
    assert set(train.ratings.unique().tolist()) == {0, 1, 2, 3, 4}
    truth = utility(train.answers)
    told = strengths(train.votes, 6)
    kept = told != 0
    assert ((truth[1] - truth[0] > 0) == (told > 0))[kept].float().mean() > 0.8
    assert torch.corrcoef(torch.stack([truth.flatten(), train.ratings.flatten()]))[0, 1] > 0.6


def test_strengths_and_the_filter():
    votes = torch.tensor([[1, 2, 2], [-3, -3, -1], [3, -1, -1], [1, -1, -1], [3, 3, -3]])
    assert strengths(votes, 6).tolist() == [2, -2, 0, 0, 1]
    assert strengths(votes, 2).tolist() == [2, -2, 0, 0, 0]
    train = annotated(Utility(generator(0, "test")), 400, generator(1, "test"))
    assert used(train, 2) < used(train, 6) < 1


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_stream_alone():
    torch.manual_seed(5)
    first = reward_model(3)
    drawn = torch.randn(1)
    torch.manual_seed(5)
    assert drawn == torch.randn(1)
    assert torch.equal(first[0].weight, reward_model(3)[0].weight)
    assert not torch.equal(first[0].weight, reward_model(4)[0].weight)
