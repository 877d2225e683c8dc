"""The study of SuSana's losses: its own pieces, and from end to end at smoke scale."""

from __future__ import annotations

import math

import pytest
import torch

from scorecraft.similarity.episodic_sampler import EpisodicBatchSampler
from scorecraft.studies import susana
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study

STUDY = susana.STUDY
TASK = {"way": 3, "shot": 2, "queries": 4, "episodes": 6, "seed": 1}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("susana"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    for trial in smoke.trials:
        assert all(math.isfinite(value) and 0 <= value <= 1 for value in trial.metrics.values())
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


def test_the_hidden_truth_is_the_best_there_is(smoke):
    for world in STUDY.worlds:
        for metric in STUDY.metrics:
            means = {
                contender.name: sum(smoke.values(world.name, contender.name, metric.name))
                for contender in STUDY.contenders
            }
            assert max(means, key=means.get) == "oracle"


def test_a_trial_repeats_to_the_last_bit(smoke, as_a_worker):
    again = STUDY.trial(STUDY.worlds[0], STUDY.method, 1, STUDY.scale("smoke"))
    for name, value in again.items():
        assert smoke.values(STUDY.worlds[0].name, STUDY.method.name, name)[1] == value


def test_every_combination_of_terms_is_trained_on(smoke):
    """No two contenders end with the same encoder."""
    scores = [
        smoke.values("one_shot", contender.name, "icnn_score")[0]
        for contender in STUDY.contenders
        if contender.role != "reference"
    ]
    assert len(set(scores)) == len(scores) == 5


def test_sizes_and_margin_are_those_of_the_specification():
    assert (STUDY.claim.margin, STUDY.claim.relative, STUDY.claim.metric) == (0.004, False, "accuracy")
    desk = STUDY.scale("desk").settings
    assert (desk["train_episodes"], desk["train_way"], desk["train_queries"]) == (400, 10, 10)
    assert (desk["test_episodes"], desk["test_way"], desk["test_queries"]) == (400, 5, 15)
    assert (desk["hidden"], desk["embedding"], desk["learning_rate"]) == (128, 16, 1e-3)
    assert [world.settings["shot"] for world in STUDY.worlds] == [1, 5]


def test_accuracy_by_hand():
    labels = torch.arange(5).repeat_interleave(8)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + 0.5 * labels[:, None]
    right = 0
    sampler = EpisodicBatchSampler(labels, way=3, shot=2, queries=4, episodes=6, seed=1)
    for batch in sampler:
        prototypes = [x[batch[2 * c : 2 * c + 2]].mean(dim=0) for c in range(3)]
        for place, item in enumerate(batch[6:]):
            distances = [float((x[item] - prototype).norm()) for prototype in prototypes]
            right += min(range(3), key=distances.__getitem__) == place // 4
    found = susana.few_shot_accuracy(x, labels, **TASK)
    assert found == pytest.approx(right / (6 * 3 * 4))
    assert 1 / 3 < found < 1


def test_well_separated_classes_are_all_right():
    labels = torch.arange(5).repeat_interleave(8)
    assert susana.few_shot_accuracy(torch.eye(5)[labels], labels, **TASK) == 1.0
