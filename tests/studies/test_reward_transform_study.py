"""The study of transformed rewards: its own pieces, and from end to end at smoke scale."""

import pytest
import torch

from scorecraft.preference.reward_transform import log_sigmoid_centred, optimal_policy
from scorecraft.studies.report import html_report
from scorecraft.studies.reward_transform import STUDY, draw, utility
from scorecraft.studies.runner import run_study

SIZES = {"prompts": 400, "candidates": 500, "shortcut": False}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("reward_transform"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    for trial in smoke.trials:
        assert all(0 <= trial.metrics[name] <= 1 for name in ("good", "worst_prompt"))
        assert 0 <= trial.metrics["unimproved"] <= 100
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


def test_contenders_differ_in_the_utility_alone(smoke):
    """Raw rewards must win on raw rewards, at the same KL, by every seed."""
    raw, centred = (smoke.values("two_rewards", name, "reward") for name in ("raw", "centred"))
    assert all(ours > theirs for ours, theirs in zip(raw, centred, strict=True))


def test_a_trial_repeats_to_the_last_bit(smoke, as_a_worker):
    again = STUDY.trial(STUDY.worlds[0], STUDY.method, 1, STUDY.scale("smoke"))
    assert smoke.values("two_rewards", "centred", "good")[1] == again["good"]


def test_margins_and_recipe_are_those_of_the_specification():
    assert (STUDY.claim.metric, STUDY.claim.margin, STUDY.claim.relative) == ("good", 0.3, True)
    assert (STUDY.worlds[0].settings["kl"], STUDY.worlds[0].settings["shortcut"]) == (2.0, False)
    shortcut = STUDY.further_claims[0]
    assert (shortcut.metric, shortcut.margin, shortcut.relative) == ("unimproved", 0.5, True)
    assert dict(STUDY.world(shortcut.world).settings) == {"kl": 1.0, "shortcut": True}
    assert (STUDY.method.name, STUDY.baseline.name) == ("centred", "raw")
    assert STUDY.scale("desk").seeds >= 8
    assert STUDY.scale("desk").settings == {"prompts": 200, "candidates": 2000, "quantile": 0.85}


def test_rewards_are_drawn_as_described():
    truth, proxy = draw(0, SIZES)
    assert truth is proxy
    assert truth.shape == (400, 500, 2)
    mean, spread = truth.mean(dim=1), truth.std(dim=1)
    assert mean.mean().item() == pytest.approx(0, abs=0.2)
    assert mean.std().item() == pytest.approx(2, abs=0.15)
    assert spread.mean().item() == pytest.approx(1.5, abs=0.08)
    assert 0.4 < spread.min() < 0.6 < 2.4 < spread.max() < 2.8
    standard = (truth - mean[:, None]) / spread[:, None]
    assert (standard[..., 0] * standard[..., 1]).mean().item() == pytest.approx(-0.5, abs=0.01)
    assert (standard**3).mean().abs() < 0.02
    assert torch.equal(draw(0, SIZES).truth, truth)
    assert not torch.equal(draw(1, SIZES).truth, truth)


def test_the_shortcut_is_on_a_hundredth():
    truth, proxy = draw(0, {**SIZES, "shortcut": True})
    assert torch.equal(truth, draw(0, SIZES).truth[..., :1])
    gap = proxy - truth
    hit = gap > 3
    assert hit.double().mean().item() == pytest.approx(0.01, abs=0.001)
    torch.testing.assert_close(gap[hit], torch.full_like(gap[hit], 6.0))
    assert not gap[~hit].any()


def test_utilities():
    rewards = torch.tensor([[[1.0, -2.0], [3.0, 0.5]]], dtype=torch.float64)
    reference = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    centred = log_sigmoid_centred(rewards, reference[:, None]).sum(dim=2)
    assert utility("raw", rewards, reference).tolist() == [[-1.0, 3.5]]
    assert utility("truncated", rewards, reference).tolist() == [[-2.0, 0.0]]
    torch.testing.assert_close(utility("centred", rewards, reference), centred, rtol=1e-12, atol=0)
    uncentred = log_sigmoid_centred(rewards, 0.0).sum(dim=2)
    torch.testing.assert_close(utility("uncentred", rewards, reference), uncentred, rtol=1e-12, atol=0)


def test_every_contender_meets_the_kl_of_its_world(monkeypatch):
    import scorecraft.studies.reward_transform as module

    found = []

    def spy(*args):
        policy = optimal_policy(*args)
        found.append(policy.kl.mean().item())
        return policy

    monkeypatch.setattr(module, "optimal_policy", spy)
    wanted = []
    for world, contender in STUDY.meetings():
        STUDY.trial(world, contender, 0, STUDY.scale("smoke"))
        wanted.append(world.settings["kl"])
    assert found == pytest.approx(wanted, rel=1e-8)
