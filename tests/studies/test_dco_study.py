"""The study of coverage: its own pieces, and from end to end at smoke scale."""

import pytest
import torch

from scorecraft.studies.dco import STUDY, draw, train
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study

TOLD = {"learning_rate": 1e-2, "batch": 32}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("dco"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    for found in smoke.trials:
        passes = [found.metrics[f"pass_at_{n}"] for n in (1, 4, 16, 64)]
        assert 0 < passes[0] < passes[1] < passes[2] < passes[3] < 1
        assert 0.1 <= found.metrics["confidence"] <= 1
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


def test_a_trial_repeats_to_the_last_bit(smoke, as_a_worker):
    again = STUDY.trial(STUDY.worlds[0], STUDY.method, 1, STUDY.scale("smoke"))
    assert smoke.values("digits", "n16", "pass_at_16")[1] == again["pass_at_16"]


def test_margin_and_recipe_are_those_of_the_specification():
    assert (STUDY.claim.metric, STUDY.claim.margin, STUDY.claim.relative) == ("pass_at_16", 0.1, False)
    falls = STUDY.further_claims[0]
    assert (falls.method, falls.baseline, falls.metric, falls.margin) == ("ce_early", "ce", "pass_at_16", 0.1)
    assert (STUDY.method.settings, STUDY.baseline.settings) == ({"n": 16}, {"n": 1})
    desk = STUDY.scale("desk").settings
    assert desk == {"train": 300, "early_epochs": 2, "batch": 32, "learning_rate": 1e-2, "epochs": 60}
    seen, _ = draw(0, train=300, wrong=0.4)
    network = train(seen, 16, 0, TOLD, epochs=0)
    assert [p.shape for p in network.parameters()] == [(256, 64), (256,), (10, 256), (10,)]


def test_labels_are_as_described():
    seen, unseen = draw(0, train=300, wrong=0.4)
    clean_seen, clean = draw(0, train=300, wrong=0.0)
    assert seen.images.shape == (300, 64)
    assert unseen.images.shape == (1497, 64)
    assert torch.equal(unseen.images, clean.images)
    assert (seen.images >= 0).all()
    assert (seen.images <= 1).all()
    # 40 % are replaced, one of ten of them by the right class.
    assert (unseen.labels != clean.labels).float().mean().item() == pytest.approx(0.36, abs=0.03)
    assert (seen.labels != clean_seen.labels).float().mean().item() == pytest.approx(0.36, abs=0.07)
    assert torch.equal(draw(0, train=300, wrong=0.4)[0].labels, seen.labels)
    assert not torch.equal(draw(1, train=300, wrong=0.4)[0].images, seen.images)


def test_stopping_early_is_the_beginning_of_the_same_run():
    seen, _ = draw(0, train=64, wrong=0.4)
    runs = {}
    for epochs in (2, 3):
        batches = runs[epochs] = []
        hook = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, given, batches=batches: batches.append(given[0]) if given[0].shape[-1] == 64 else None
        )
        train(seen, 1, 0, TOLD, epochs=epochs)
        hook.remove()
    assert 0 < len(runs[2]) < len(runs[3])
    assert all(torch.equal(one, other) for one, other in zip(runs[2], runs[3], strict=False))
