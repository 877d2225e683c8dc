"""The study of weight and direction: its own pieces, and from end to end at smoke scale."""

import math

import pytest
import torch

from scorecraft.relevance.sft_vs_cl import UnifiedRerankingLoss
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study
from scorecraft.studies.sft_vs_cl import STUDY, Reranker, draw, ndcg_of_the_first, train

SIZES = {"train_queries": 400, "test_queries": 300, "negatives": 4, "candidates": 100}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("sft_vs_cl"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    assert all(0 <= value <= 100 for trial in smoke.trials for value in trial.metrics.values())
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


def test_contenders_without_a_direction_are_the_mean_of_both(smoke):
    def of(name):
        return smoke.values("reranking", name, "ndcg_at_10")

    for weight in ("sft", "cl"):
        both = zip(of(f"weight_{weight}"), of(f"{weight}_sft"), of(f"{weight}_cl"), strict=True)
        assert all(mean == pytest.approx((first + second) / 2) for mean, first, second in both)


def test_a_trial_repeats_to_the_last_bit(smoke, as_a_worker):
    again = STUDY.trial(STUDY.worlds[0], STUDY.method, 1, STUDY.scale("smoke"))
    assert smoke.values("reranking", "weight_sft", "ndcg_at_10")[1] == again["ndcg_at_10"]


def test_margin_and_recipe_are_those_of_the_specification():
    assert (STUDY.claim.margin, STUDY.claim.relative) == (1.0, False)
    assert (STUDY.method.settings, STUDY.baseline.settings) == ({"weight": "sft"}, {"weight": "cl"})
    desk = STUDY.scale("desk").settings
    assert desk == {
        "train_queries": 2000, "test_queries": 1000, "negatives": 4, "candidates": 100, "epochs": 4, "batch": 16,
        "learning_rate": 1e-3,
    }  # fmt: skip
    network = Reranker(0)
    assert [p.shape for p in network.parameters()] == [(64, 48), (64,), (64, 64), (64,), (32, 64), (32,)]
    assert not network.rows.requires_grad


def test_lists_are_as_described():
    seen, unseen = draw(0, SIZES, hard_share=0.3)
    assert seen.documents.shape == (400, 5, 16)
    assert unseen.documents.shape == (300, 100, 16)
    # Distances from where the hard negatives' mean lies: sqrt(16) times the noise.
    target = unseen.documents[:, 1:31].mean(dim=1, keepdim=True)
    spread = (unseen.documents - target).square().sum(dim=2).div(16).sqrt().mean(dim=0)
    assert spread[0].item() == pytest.approx(0.64, abs=0.06)
    assert spread[1:31].mean().item() == pytest.approx(1.2, abs=0.05)
    assert spread[31:].mean().item() > 1.4
    assert torch.equal(draw(0, SIZES, hard_share=0.3)[1].documents, unseen.documents)
    assert not torch.equal(draw(1, SIZES, hard_share=0.3)[1].queries, unseen.queries)


def test_ties_count_against_the_relevant_document():
    scores = torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    assert ndcg_of_the_first(scores).tolist() == pytest.approx([1 / math.log2(3), 1.0, 0.5])
    assert ndcg_of_the_first(scores, cutoff=2).tolist() == pytest.approx([1 / math.log2(3), 1.0, 0.0])


def test_training_moves_the_network_and_not_the_rows():
    seen, _ = draw(0, SIZES, hard_share=0.3)
    before = Reranker(0)
    trained = train(UnifiedRerankingLoss(), seen, 0, {"learning_rate": 1e-3, "batch": 16, "epochs": 1})
    assert torch.equal(before.rows, trained.rows)
    assert all(not torch.equal(a, b) for a, b in zip(before.parameters(), trained.parameters(), strict=True))
