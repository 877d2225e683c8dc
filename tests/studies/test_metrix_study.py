"""The Metrix study: its data, its losses, and the whole at smoke scale."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from scorecraft.similarity.metrix import MetrixLoss
from scorecraft.similarity.multi_similarity import MultiSimilarityLoss
from scorecraft.studies import metrix
from scorecraft.studies.embedding_training import perceptron
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study
from scorecraft.studies.worlds import handwritten_digits

STUDY = metrix.STUDY


def test_smoke_scale_from_end_to_end(tmp_path: Path) -> None:
    result = run_study(STUDY, scale="smoke", folder=tmp_path, jobs=1)
    assert len(result.trials) == len(list(STUDY.meetings())) * 2
    for trial in result.trials:
        assert 0 <= trial.metrics["recall_at_1"] <= 1
        assert 0 <= trial.metrics["utilization"] <= 4
    assert result.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(result)


@pytest.mark.parametrize("contender", STUDY.contenders, ids=lambda contender: contender.name)
def test_a_trial_repeats_to_the_last_bit(contender) -> None:
    found = []
    for state in (1, 2):
        torch.manual_seed(state)  # nothing may come from the global state
        found.append(STUDY.trial(STUDY.worlds[0], contender, 1, STUDY.scale("smoke")))
    assert found[0] == found[1]
    assert all(math.isfinite(value) for value in found[0].values())


def test_the_margin_is_that_of_the_specification() -> None:
    assert (STUDY.claim.margin, STUDY.claim.relative) == (0.02, False)
    assert STUDY.parties(STUDY.claim)[1].name == "multi_similarity_embed"


def test_digits_are_noisy_once_and_few() -> None:
    world = STUDY.world("few_digits")
    seen, unseen = metrix.items(world, 3)
    assert torch.bincount(seen.labels).tolist() == [20] * 5
    _, clean = handwritten_digits(3)
    assert torch.equal(unseen.labels, clean.labels)
    noise = unseen.features - clean.features
    assert noise.std().item() == pytest.approx(0.35, rel=0.02)
    assert torch.equal(metrix.items(world, 3).unseen.features, unseen.features)
    many = metrix.items(STUDY.worlds[0], 3)
    assert torch.bincount(many.seen.labels).tolist() == [80] * 5
    assert torch.equal(many.unseen.features, unseen.features)


def test_contenders_minimise_what_they_are_called() -> None:
    seen, _ = metrix.items(STUDY.worlds[0], 0)
    x, y = seen.features[::16], seen.labels[::16]
    encoder = perceptron((64, 16, 8), 0)
    base = MultiSimilarityLoss(alpha=2, beta=40, threshold=0.5, mining_margin=0.1)
    losses = {
        contender.name: metrix.batch_loss(contender, 5)(encoder, x, y).item()
        for contender in STUDY.contenders
        if contender.name != "raw"
    }
    assert losses["multi_similarity"] == pytest.approx(base(encoder(x), y).item())
    mixed = MetrixLoss(base, smallest_share=0.02, kind="positive_negative", seed=5)(encoder(x), y)
    assert losses["multi_similarity_embed"] == pytest.approx(mixed.item())
    assert len(set(losses.values())) == len(losses)
