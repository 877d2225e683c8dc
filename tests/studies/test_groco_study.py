"""The GroCo study: its own pieces, and from end to end at smoke scale."""

import math

import pytest
import torch
from torch.nn import functional as F

from scorecraft.studies.groco import STUDY, OfProjections, SimCLR, SimCLRHardest
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("groco"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    assert all(0 <= value <= 1 for trial in smoke.trials for value in trial.metrics.values())
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


def test_the_hidden_truth_is_the_best_there_is(smoke):
    means = {c.name: sum(smoke.values("generated", c.name, "knn_accuracy")) for c in STUDY.contenders}
    assert max(means, key=means.get) == "oracle"


@pytest.mark.parametrize("world", STUDY.worlds, ids=lambda world: world.name)
def test_a_trial_repeats_to_the_last_bit(smoke, world, as_a_worker):
    again = STUDY.trial(world, STUDY.method, 1, STUDY.scale("smoke"))
    assert smoke.values(world.name, "groco", "knn_accuracy")[1] == again["knn_accuracy"]


def test_margin_and_recipe_are_those_of_the_specification():
    assert (STUDY.claim.margin, STUDY.claim.relative) == (0.008, False)
    assert STUDY.method.settings == {"negatives": 10, "steepness": 1.0}
    assert STUDY.baseline.settings == {"temperature": 0.5}
    desk = STUDY.scale("desk")
    assert (desk.settings["steps"], desk.settings["batch"], desk.settings["learning_rate"]) == (300, 128, 2e-3)
    assert round(desk.settings["steps"] * STUDY.world("digits").settings["steps"]) == 800


@pytest.fixture
def views():
    return torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_simclr_by_hand(views):
    z = F.normalize(views.detach().flatten(0, 1))
    terms = []
    for i in range(12):
        mass = sum(math.exp(float(z[i] @ z[j]) / 0.5) for j in range(12) if j != i)
        terms.append(math.log(mass) - float(z[i] @ z[(i + 6) % 12]) / 0.5)
    assert SimCLR(0.5)(views.unbind()).item() == pytest.approx(sum(terms) / 12, rel=1e-5)


def test_simclr_on_hardest_by_hand(views):
    z = F.normalize(views.detach(), dim=2)
    terms = []
    for v in range(2):
        for i in range(6):
            positive = float(z[v, i] @ z[1 - v, i]) / 0.2
            negatives = sorted(float(z[v, i] @ z[v, j]) / 0.2 for j in range(6) if j != i)[-3:]
            terms.append(math.log(sum(map(math.exp, [positive, *negatives]))) - positive)
    loss = SimCLRHardest(0.2, 3)(views.unbind())
    assert loss.item() == pytest.approx(sum(terms) / 12, rel=1e-5)
    alone = SimCLRHardest(0.2, 3)((views[0], views[1].detach()))
    (together,), (first,) = (torch.autograd.grad(value, views) for value in (loss, alone))
    torch.testing.assert_close(together[0], first[0])  # what is compared with is held constant


def test_a_loss_of_projections_is_one_of_features(views):
    head = torch.nn.Linear(4, 3)
    objective = OfProjections(head, SimCLR(0.5))
    torch.testing.assert_close(objective(views), SimCLR(0.5)(head(views).unbind()))
    assert len(list(objective.parameters())) == 2
