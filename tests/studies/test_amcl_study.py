"""The AMCL study: its baseline, what it measures of temperatures, and the whole at smoke scale."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.similarity.amcl import AMCLLoss, MultiHeadProjector, PairTemperature
from scorecraft.studies import amcl
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study
from scorecraft.studies.two_views import GeneratedViews, encoder

STUDY = amcl.STUDY


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_smoke_scale_from_end_to_end(tmp_path: Path) -> None:
    result = run_study(STUDY, scale="smoke", folder=tmp_path, jobs=1)
    assert len(result.trials) == len(list(STUDY.meetings())) * 2
    for trial in result.trials:
        assert all(0 <= value <= 1 for value in trial.metrics.values())
    assert result.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(result)
    accuracy = {one.name: sum(result.values("generated", one.name, "accuracy")) for one in STUDY.contenders}
    assert max(accuracy, key=accuracy.get) == "oracle"  # type: ignore[arg-type]


@pytest.mark.parametrize("contender", STUDY.contenders, ids=lambda contender: contender.name)
def test_a_trial_repeats_to_the_last_bit(contender) -> None:
    found = []
    for state in (1, 2):
        torch.manual_seed(state)  # nothing may come from the global state
        found.append(STUDY.trial(STUDY.worlds[0], contender, 1, STUDY.scale("smoke")))
    assert found[0] == found[1]
    assert all(math.isfinite(value) for value in found[0].values())


def test_margins_and_recipe_are_those_of_the_specification() -> None:
    assert [(claim.margin, claim.relative) for claim in (STUDY.claim, *STUDY.further_claims)] == [
        (0.01, False), (0.005, False), (0.0, False), (0.1, False)]  # fmt: skip
    assert dict(STUDY.method.settings) == {"heads": 3, "beta": 0.1, "low": 0.05, "high": 1.05}
    assert dict(STUDY.baseline.settings) == {"heads": 1, "temperature": 0.2}
    assert STUDY.contender("amcl_hard").settings["kappa"] == 10
    told = STUDY.scale("desk").settings
    assert (told["steps"], told["batch"], told["learning_rate"]) == (250, 128, 2e-3)
    assert (told["hidden"], told["features"], told["projection"]) == (128, 64, 32)


def test_the_baseline_by_hand() -> None:
    first, second = random(2, 5, 3, 4)
    expected = 0.0
    for head in range(3):
        x = F.normalize(torch.cat([first[:, head], second[:, head]]), dim=1)
        for anchor in range(10):
            logits = [float(x[anchor] @ x[other]) / 0.2 for other in range(10) if other != anchor]
            positive = float(x[anchor] @ x[(anchor + 5) % 10]) / 0.2
            expected += (math.log(sum(map(math.exp, logits))) - positive) / 10
    assert float(amcl.nt_xent(first, second, temperature=0.2)) == pytest.approx(expected, rel=1e-5)


def test_contenders_differ_as_they_say() -> None:
    scale = STUDY.scale("desk")
    heads = {one.name: amcl.make_heads(one, scale, 3) for one in STUDY.contenders if one.role != "reference"}
    assert {name: one.projector.heads for name, one in heads.items()} == {
        "simclr": 1, "constant_temperature": 3, "amcl_one_head": 1, "amcl_hard": 3, "amcl": 3}  # fmt: skip
    assert isinstance(heads["simclr"].objective, partial)
    learned = [heads[name].objective for name in ("amcl_one_head", "amcl_hard", "amcl")]
    assert [loss.kappa for loss in learned if isinstance(loss, AMCLLoss)] == [None, 10, None]
    same = zip(heads["amcl"].projector.parameters(), heads["constant_temperature"].projector.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in same)
    same = zip(*(loss.temperature.parameters() for loss in learned[1:]), strict=True)  # type: ignore[union-attr]
    assert all(torch.equal(mine, theirs) for mine, theirs in same)


class Flat(PairTemperature):
    """Temperatures that are what the test says."""

    def __init__(self, told: Tensor) -> None:
        super().__init__(4)
        self.told = told

    def paired(self, x: Tensor, y: Tensor) -> Tensor:
        return self.told.expand(x.shape[1], -1).T


@pytest.mark.parametrize("sign, expected", [(1.0, 1.0), (-1.0, 0.0)])
def test_the_area_is_that_of_pairs_of_two_strong_views(sign: float, expected: float) -> None:
    world = GeneratedViews(0, classes=4, items=30, held_out=4, jitter=0.8)
    strong = world.views(torch.arange(120), amcl.generator(7, "views to judge")).strong
    told = torch.where(strong[0] == strong[1], sign * strong[0].float(), 99.0)  # mixed pairs must not matter
    heads = amcl.Heads(MultiHeadProjector((6, 4), heads=2), AMCLLoss(Flat(told), heads=2))
    found = amcl.strength_auc(encoder((32, 6), 0), heads, world, 7)
    assert found["temperature_auc"] == expected
    assert 0 < found["dissimilarity_auc"] < 1


def test_a_constant_temperature_knows_nothing() -> None:
    world = GeneratedViews(0, classes=4, items=30, held_out=4, jitter=0.8)
    heads = amcl.Heads(MultiHeadProjector((32, 4), heads=1), partial(amcl.nt_xent, temperature=0.2))
    assert amcl.strength_auc(nn.Identity(), heads, world, 7)["temperature_auc"] == 0.5
