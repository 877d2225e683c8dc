"""The three metric-learning studies: their own pieces, and each from end to end at smoke scale."""

import math

import pytest
import torch
from torch.nn import functional as F

from scorecraft.studies import multi_similarity, registry, tcm, unpg
from scorecraft.studies.embedding_training import draw_class_vectors
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study

SLUGS = ("multi_similarity", "tcm", "unpg")


@pytest.fixture(scope="module", params=SLUGS)
def smoke(request, tmp_path_factory):
    study = registry.find(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    return study, run_study(study, scale="smoke", folder=folder, jobs=1), folder


def test_smoke_scale_from_end_to_end(smoke):
    study, result, _ = smoke
    assert len(result.trials) == len(list(study.meetings())) * study.scale("smoke").seeds
    for trial in result.trials:
        assert all(math.isfinite(value) for value in trial.metrics.values())
    assert result.verdict in ("holds", "fails", "inconclusive")
    assert study.claim.sentence in html_report(result)


def test_the_hidden_truth_is_the_best_there_is(smoke):
    study, result, _ = smoke
    metric = study.metric(study.claim.metric)
    sign = 1 if metric.better == "higher" else -1
    means = {
        contender.name: sign * sum(result.values("generated", contender.name, metric.name))
        for contender in study.contenders
    }
    assert max(means, key=means.get) == "oracle"


def test_a_trial_repeats_to_the_last_bit(smoke):
    study, result, _ = smoke
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(123)  # nothing may come from the global state
        again = study.trial(study.worlds[0], study.method, 1, study.scale("smoke"))
    finally:
        torch.set_num_threads(threads)
    assert {
        name: result.values(study.worlds[0].name, study.method.name, name)[1] for name in again
    } == again  # fmt: skip


@pytest.mark.parametrize("slug", SLUGS)
def test_margins_are_those_of_the_specification(slug):
    claim = registry.find(slug).claim
    assert (claim.margin, claim.relative) == {
        "multi_similarity": (0.015, False),
        "tcm": (0.25, True),
        "unpg": (0.08, False),
    }[slug]


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat_interleave(4)
    return torch.randn(20, 6, generator=random), labels


def test_contrastive_by_hand(batch):
    x, y = batch
    s = F.normalize(x) @ F.normalize(x).T
    positive = [s[i, j] for i in range(20) for j in range(20) if i != j and y[i] == y[j]]
    active = [s[i, j] - 0.2 for i in range(20) for j in range(20) if y[i] != y[j] and s[i, j] > 0.2]
    expected = sum(active) / len(active) - sum(positive) / len(positive)
    assert float(multi_similarity.contrastive(x, y, margin=0.2)) == pytest.approx(float(expected), abs=1e-6)


def test_triplet_by_hand(batch):
    x, y = batch
    s = F.normalize(x) @ F.normalize(x).T
    terms = [
        s[a, n] - s[a, p] + 0.1
        for a in range(20)
        for p in range(20)
        for n in range(20)
        if a != p and y[a] == y[p] and y[a] != y[n] and s[a, n] - s[a, p] + 0.1 > 0
    ]
    assert float(multi_similarity.triplet(x, y, margin=0.1)) == pytest.approx(float(sum(terms) / len(terms)), abs=1e-6)


def test_n_pair_by_hand(batch):
    x, y = batch
    s = 16 * F.normalize(x) @ F.normalize(x).T
    terms = []
    for a in range(20):
        p = next(j for j in range(20) if j != a and y[j] == y[a])
        terms.append(torch.log1p(sum(torch.exp(s[a, n] - s[a, p]) for n in range(20) if y[n] != y[a])))
    expected = float(sum(terms) / len(terms))
    assert float(multi_similarity.n_pair(x, y, scale=16.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [multi_similarity.contrastive, multi_similarity.triplet])
def test_losses_stay_on_the_graph_when_nothing_is_active(loss):
    x = torch.eye(4).repeat_interleave(2, dim=0).requires_grad_()
    loss(
        x, torch.arange(4).repeat_interleave(2), margin=0.5 if loss is multi_similarity.contrastive else -0.5
    ).backward()
    assert torch.isfinite(x.grad).all()


@torch.no_grad()
def test_softmax_with_tcm_is_the_sum(batch):
    x, y = batch
    regulariser = tcm.ThresholdConsistentMarginLoss()
    plain, both = (tcm.NormalisedSoftmax(5, 6, 0, 20.0, one) for one in (None, regulariser))
    logits = 20 * F.normalize(x) @ F.normalize(plain.head.weight).T
    assert float(plain(x, y)) == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    assert float(both(x, y)) == pytest.approx(float(plain(x, y) + regulariser(x, y)), rel=1e-6)
    assert torch.equal(plain.head.weight, both.head.weight)


def test_class_vectors_are_short_and_the_seeds():
    heads = [unpg.CosFaceHead(300, 12) for _ in range(3)]
    for head, seed in zip(heads, (0, 0, 1), strict=True):
        draw_class_vectors(head.weight, seed)
    assert heads[0].weight.abs().max() <= (6 / 312) ** 0.5
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)


def test_true_accept_rate_by_hand():
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 90.0, 94.0, 30.0]))
    x, y = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 1, 1, 2])
    # positives: 10 and 4 degrees; negatives from close to far: 20, 30, 60, 64, 80, 84, 90, 94
    assert unpg.true_accept_rates(x, y, (1 / 8, 1.0)) == [1.0, 1.0]
    y = torch.tensor([0, 1, 1, 1, 0])
    # positives: 4, 30, 80, 84; negatives: 10, 20, 60, 64, 90, 94
    assert unpg.true_accept_rates(x, y, (1 / 6, 3 / 6)) == [0.25, 0.5]
    with pytest.raises(ValueError, match="argument `false_accept_rates`: expected at least"):
        unpg.true_accept_rates(x, y, (0.1,))
