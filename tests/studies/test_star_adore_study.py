"""The STAR and ADORE study: its own pieces, and from end to end at smoke scale."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from scorecraft.relevance.vector_index import ExactIndex
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study
from scorecraft.studies.star_adore import STUDY, Towers, clustered_corpus, loss_with, mined
from scorecraft.studies.worlds import generator

WORLD = STUDY.worlds[0]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("star_adore"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    assert all(0 <= value <= 1 for trial in smoke.trials for value in trial.metrics.values())
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


def test_the_overlap_starts_at_one(smoke):
    assert smoke.values("clusters", "warm_up", "overlap") == [1.0, 1.0]
    assert all(value < 1 for value in smoke.values("clusters", "star", "overlap"))


def test_a_trial_repeats_to_the_last_bit(smoke, as_a_worker):
    again = STUDY.trial(WORLD, STUDY.method, 1, STUDY.scale("smoke"))
    assert smoke.values("clusters", "star_adore", "mrr")[1] == again["mrr"]


def test_margin_and_recipe_are_those_of_the_specification():
    assert (STUDY.claim.margin, STUDY.claim.relative, STUDY.claim.metric) == (0.02, False, "mrr")
    assert (STUDY.method.name, STUDY.baseline.name) == ("star_adore", "star")
    assert dict(WORLD.settings) == {"clusters": 200, "spread": 0.6, "noise": 0.35}
    assert dict(STUDY.scale("desk").settings) == {
        "documents": 4000,
        "queries": 3000,
        "batch": 64,
        "depth": 50,
        "warm_up_steps": 500,
        "both_steps": 800,
        "query_steps": 500,
    }
    assert STUDY.scale("desk").seeds == 8
    margins = [(claim.baseline, claim.margin) for claim in STUDY.further_claims]
    assert margins == [("star_static", 0.02), ("warm_up", 0.1), ("static", 0.0), ("random", 0.0), ("warm_up", 0.2)]


def test_the_corpus_is_what_it_says():
    corpus = clustered_corpus(3, WORLD.settings, queries=500, documents=3000)
    assert corpus.documents.shape == (3000, 24)
    assert corpus.queries.shape == (500, 24)
    assert corpus.test_queries.shape == (100, 24)
    nearest = torch.cdist(corpus.documents, corpus.documents).fill_diagonal_(torch.inf).amin(dim=1)
    assert 2 < nearest.mean() < 5  # neighbours of a cluster, 0.6 * sqrt(2 * 24) apart
    assert corpus.queries.std() > 0.3
    again = clustered_corpus(3, WORLD.settings, queries=500, documents=3000)
    assert torch.equal(corpus.queries, again.queries)


@pytest.fixture
def stage():
    """Towers, corpus, static lists, and both ways of embedding rows."""
    corpus = clustered_corpus(0, WORLD.settings, queries=40, documents=80)
    towers = Towers(0)
    return (
        towers,
        corpus,
        mined(towers, corpus, 6),
        lambda rows: towers.query(corpus.queries[rows]),
        lambda rows: towers.document(corpus.documents[rows]),
    )


def test_towers_start_apart_and_repeat():
    first, second, other = Towers(0), Towers(0), Towers(1)
    assert torch.equal(first.query[0][0].weight, second.query[0][0].weight)
    assert not torch.equal(first.query[0][0].weight, first.document[0][0].weight)
    assert not torch.equal(first.query[0][0].weight, other.document[0][0].weight)


def test_random_negatives_by_hand(stage):
    _, corpus, _, ask, answer = stage
    rows = torch.arange(10)
    found = loss_with("random", ask, answer, corpus, random=generator(0, "test"))(rows)
    documents = corpus.relevant[rows][:, 0]
    scores = ask(rows) @ answer(documents).T
    off = documents[:, None] != documents
    torch.testing.assert_close(found, F.softplus(scores - scores.diagonal()[:, None])[off].mean())


def test_static_and_star_use_one_document_of_the_list(stage):
    _, corpus, static, ask, answer = stage
    rows = torch.arange(10)
    alone = loss_with("static", ask, answer, corpus, static=static[:, :1], random=generator(0, "test"))(rows)
    x, known, hard = ask(rows), corpus.relevant[rows][:, 0], static[rows, 0]
    gaps = (x * (answer(hard) - answer(known))).sum(dim=1)
    torch.testing.assert_close(alone, F.softplus(gaps).mean())
    both = loss_with("star", ask, answer, corpus, static=static[:, :1], random=generator(0, "test"))(rows)
    passages = torch.cat([known, hard])
    gaps = x @ answer(passages).T - (x * answer(known)).sum(dim=1, keepdim=True)
    torch.testing.assert_close(both, F.softplus(gaps)[known[:, None] != passages].mean())


def test_adore_moves_the_query_encoder_alone(stage):
    towers, corpus, _, ask, _ = stage
    with torch.no_grad():
        frozen = towers.document(corpus.documents)
    loss = loss_with("adore", ask, frozen.__getitem__, corpus, frozen=frozen, depth=12, random=generator(0, "test"))(
        torch.arange(20)
    )
    loss.backward()
    assert all(parameter.grad is not None for parameter in towers.query.parameters())
    assert all(parameter.grad is None for parameter in towers.document.parameters())


def test_mined_lists_are_the_top_without_the_relevant(stage):
    towers, corpus, static, _, _ = stage
    with torch.no_grad():
        found = ExactIndex(towers.document(corpus.documents)).search(towers.query(corpus.queries), 7).ids
    known = corpus.relevant[torch.arange(40)]
    assert not (static == known).any()
    assert all(set(row.tolist()) <= set(top.tolist()) for row, top in zip(static, found, strict=True))
