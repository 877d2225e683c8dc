"""The Mann-Whitney study: its own pieces, and from end to end at smoke scale."""

import pytest
import torch

from scorecraft.studies.mw import STUDY, digit_halves, generated_pairs, loss_of, measures
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("mw"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    assert all(0 <= value <= 1 for trial in smoke.trials for value in trial.metrics.values())
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


@pytest.mark.parametrize("world", STUDY.worlds, ids=lambda world: world.name)
def test_a_trial_repeats_to_the_last_bit(smoke, world, as_a_worker):
    again = STUDY.trial(world, STUDY.method, 1, STUDY.scale("smoke"))
    assert smoke.values(world.name, "mw", "pooled_aoc")[1] == again["pooled_aoc"]


def test_margin_and_recipe_are_those_of_the_specification():
    assert (STUDY.claim.metric, STUDY.claim.margin, STUDY.claim.relative) == ("pooled_aoc", 0.4, True)
    assert not STUDY.method.settings["cosine"]
    desk = STUDY.scale("desk").settings
    assert dict(desk) == {"hidden": 64, "embedding": 32, "learning_rate": 2e-3, "batch": 128, "steps": 600}
    assert dict(STUDY.world("generated").settings) == {"train": 2000, "test": 500, "noise": 0.5}


def test_worlds_have_the_sizes_of_the_specification():
    train, test = generated_pairs(0, train=2000, test=500, noise=0.5)
    assert [part.shape for part in (*train, *test)] == [(2000, 20)] * 2 + [(500, 20)] * 2
    correlated = torch.corrcoef(torch.cat([train.queries, train.passages], dim=1).T)[:20, 20:].abs()
    assert correlated[:16, :16].mean() > 0.15
    assert correlated[16:].max() < 0.1
    train, test = digit_halves(0)
    assert [part.shape for part in (*train, *test)] == [(1297, 32)] * 2 + [(500, 32)] * 2
    assert not torch.equal(digit_halves(1)[0].queries, train.queries)


def test_losses_compare_what_they_say():
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    shifted = scores + torch.arange(6.0)[:, None]
    for name in ("infonce", "per_query"):
        torch.testing.assert_close(loss_of(name, shifted), loss_of(name, scores))
    assert loss_of("mw", shifted) > loss_of("mw", scores) + 0.01
    within = [torch.nn.functional.softplus(scores[i, j] - scores[i, i]) for i in range(6) for j in range(6) if i != j]
    torch.testing.assert_close(loss_of("per_query", scores), torch.stack(within).mean())


def test_measures_by_hand():
    found = measures(torch.tensor([[3.0, 1.0], [5.0, 4.0]]))
    assert found["mrr"] == 0.75  # ranks 1 and 2
    assert found["per_query_auc"] == 0.5
    assert found["pooled_aoc"] == 0.5  # 5 is above both positives, 1 below both
