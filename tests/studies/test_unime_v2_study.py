"""The UniME-V2 study: its own pieces, and from end to end at smoke scale."""

import math

import pytest
import torch

from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study
from scorecraft.studies.unime_v2 import STUDY, JudgedWorld, Towers, judge, measure, mine, ndcg, train_retriever
from scorecraft.studies.worlds import generator


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("unime_v2"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    assert all(0 < value <= 100 for trial in smoke.trials for value in trial.metrics.values())
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


def test_a_trial_repeats_to_the_last_bit(smoke, as_a_worker):
    again = STUDY.trial(STUDY.worlds[0], STUDY.method, 1, STUDY.scale("smoke"))
    assert smoke.values("judged", "soft", "ndcg")[1] == again["ndcg"]


def test_margins_and_recipe_are_those_of_the_specification():
    assert (STUDY.claim.margin, STUDY.claim.metric) == (0.5, "ndcg")
    assert (STUDY.method.name, STUDY.baseline.name) == ("soft", "infonce")
    assert STUDY.further_claims[0].margin == 0.4
    desk = STUDY.scale("desk")
    assert desk.seeds == 8
    assert [desk.settings[name] for name in ("queries", "corpus", "test_queries")] == [1500, 3000, 500]
    assert [desk.settings[f"steps{of}"] for of in ("", "_of_small_step", "_of_large_step")] == [400, 300, 800]
    assert [desk.settings[f"learning_rate{of}"] for of in ("", "_of_small_step", "_of_large_step")] == [
        2e-3,
        3e-4,
        1e-3,
    ]
    different = {name for name, value in STUDY.method.settings.items() if STUDY.baseline.settings[name] != value}
    assert different == {"soft"}


@pytest.fixture
def train():
    random = generator(0, "test")
    return JudgedWorld(random).draw(40, 120, random)


def test_the_positive_of_a_query_is_close(train):
    queries, items, truth, positive = train
    assert queries.shape == (40, 24)
    assert items.shape == (120, 24)
    assert truth.shape == (40, 120)
    assert truth.abs().max() <= 1 + 1e-6
    assert truth.gather(1, positive[:, None]).mean() > 0.9


def test_what_is_mined(train):
    settings = STUDY.scale("smoke").settings
    towers = Towers(0, settings)
    train_retriever(towers, train, 0, settings)
    verdicts = judge(train[2], generator(0, "judge"))
    filtered, unfiltered = (mine(towers, train, verdicts, filtered=flag) for flag in (True, False))
    assert len(unfiltered.queries) == 40
    assert 0 < len(filtered.queries) <= 40
    for mined in (filtered, unfiltered):
        positive = train[3][mined.queries]
        assert torch.equal(mined.candidates[:, 0], positive)
        assert mined.candidates.shape[1] == 9
        assert (mined.candidates[:, 1:] != positive[:, None]).all()
        torch.testing.assert_close(mined.verdicts, verdicts[mined.queries[:, None], mined.candidates])
    assert (filtered.verdicts[:, 1:] <= filtered.verdicts[:, :1] - 0.1 + 1e-6).all()
    assert (unfiltered.verdicts[:, 1:] > unfiltered.verdicts[:, :1] - 0.1).any()


def test_ndcg_by_hand():
    gains = torch.tensor([[1.0, 0.5, 0.0], [0.2, 0.0, 0.0]])
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.5, 0.9, 0.1]])
    first = (0.5 + 1 / 2) / (1 + 0.5 / math.log2(3))  # the best one stands third
    second = 1 / math.log2(3)
    assert ndcg(scores, gains, cut=3) == pytest.approx((first + second) / 2)
    assert ndcg(gains, gains, cut=2) == pytest.approx(1)


def test_the_shortlist_is_the_retrievers():
    truth = 2 * torch.rand(4, 200, generator=torch.Generator().manual_seed(0)) - 1
    best = measure(truth, truth, truth)
    assert best == pytest.approx({"ndcg": 100, "ndcg_corpus": 100})
    # A ranking that is perfect in the shortlist of a retriever that is not.
    upside_down = measure(-truth, truth, truth)
    assert upside_down["ndcg"] == pytest.approx(100)
    assert measure(truth, -truth, truth)["ndcg_corpus"] < 1
