"""sentence-transformers: the ROC evaluator against all scores at once, in the host's trainer and its model card."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers")

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator, SentenceEvaluator
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from scorecraft.integrations.sentence_transformers import evaluation
from scorecraft.integrations.sentence_transformers.evaluation import RocEvaluator
from scorecraft.relevance.mw import per_query_auc, pooled_aoc, pooled_auc, roc_curve

WORDS = [f"w{number}" for number in range(30)]
RATES = (0.0, 0.01, 0.2, 1.0)


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    vocabulary = {word: index for index, word in enumerate(["[UNK]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = torch.randn(len(vocabulary), 12, generator=torch.Generator().manual_seed(0)).numpy()
    return SentenceTransformer(modules=[StaticEmbedding(words, embedding_weights=weights)], device="cpu")


def collection() -> tuple[dict[str, str], dict[str, str], dict[str, set[str]]]:
    """Queries share words with what is relevant to them; one has nothing relevant."""
    random = torch.Generator().manual_seed(1)

    def text(own: int) -> str:
        return " ".join([WORDS[own], *(WORDS[int(i)] for i in torch.randint(30, (3,), generator=random))])

    corpus = {f"d{i}": text(i % 10) for i in range(35)}
    queries = {f"q{i}": text(i) for i in range(10)}
    relevant = {f"q{i}": {f"d{j}" for j in range(34) if j % 10 == i and (j < 20 or i % 2)} for i in range(9)}
    return queries, corpus, relevant


def all_at_once(model: SentenceTransformer) -> tuple[torch.Tensor, torch.Tensor]:
    queries, corpus, relevant = collection()
    ids = [query for query in queries if relevant.get(query)]
    scores = model.similarity(
        model.encode_query([queries[q] for q in ids]), model.encode_document(list(corpus.values()))
    )
    return scores, torch.tensor([[passage in relevant[query] for passage in corpus] for query in ids])


@pytest.mark.parametrize("chunk", [50_000, 7, 1])
@pytest.mark.parametrize("block", [1 << 22, 20])
def test_equals_all_scores_at_once(
    model: SentenceTransformer, chunk: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_SCORES", block)
    evaluator = RocEvaluator(*collection(), false_positive_rates=RATES, corpus_chunk_size=chunk)
    found = evaluator(model)
    scores, relevance = all_at_once(model)
    curve = roc_curve(scores, relevance)
    expected = {
        "cosine_pooled_auc": pooled_auc(scores, relevance),
        "cosine_pooled_aoc": pooled_aoc(scores, relevance),
        "cosine_per_query_auc": per_query_auc(scores, relevance),
    }
    for rate in RATES:
        expected[f"cosine_threshold@fpr={rate:g}"] = curve.threshold_at(rate)
        expected[f"cosine_tpr@fpr={rate:g}"] = curve.true_positive_rate_at(rate)
    assert found == pytest.approx({key: float(value) for key, value in expected.items()}, abs=1e-6)
    assert 0.5 < found["cosine_pooled_auc"] < 1
    assert found["cosine_pooled_auc"] != pytest.approx(found["cosine_per_query_auc"], abs=1e-3)


def test_dot_products_of_the_model(model: SentenceTransformer) -> None:
    model.similarity_fn_name = "dot"
    try:
        found = RocEvaluator(*collection(), name="dev")(model)
        scores, relevance = all_at_once(model)
    finally:
        model.similarity_fn_name = "cosine"
    assert found["dev_dot_pooled_auc"] == pytest.approx(float(pooled_auc(scores, relevance)), abs=1e-9)


def test_contract_of_the_host(model: SentenceTransformer, tmp_path: Path) -> None:
    """The host's three dictionaries in its order, a primary metric, a row per call, the model card."""
    assert list(inspect.signature(InformationRetrievalEvaluator).parameters)[:3] == [
        "queries",
        "corpus",
        "relevant_docs",
    ]
    call = list(inspect.signature(SentenceEvaluator.__call__).parameters)
    assert call == ["self", "model", "output_path", "epoch", "steps"]
    evaluator = RocEvaluator(*collection(), name="dev", false_positive_rates=(0.1,))
    for epoch in range(2):
        found = evaluator(model, str(tmp_path), epoch=epoch, steps=5)
    assert evaluator.primary_metric == "dev_cosine_pooled_auc"
    assert evaluator.primary_metric in found
    assert evaluator.greater_is_better
    assert evaluator.description == "Roc"
    lines = (tmp_path / "roc_evaluation_dev_results.csv").read_text().splitlines()
    assert lines[0] == ("epoch,steps,cosine_pooled_auc,cosine_pooled_aoc,cosine_per_query_auc,"
                        "cosine_threshold@fpr=0.1,cosine_tpr@fpr=0.1")  # fmt: skip
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1"]
    assert float(lines[1].split(",")[2]) == found["dev_cosine_pooled_auc"]
    assert "pooled_auc" in str(model.model_card_data.eval_results_dict[evaluator])
    assert evaluator.get_config_dict() == {"false_positive_rates": [0.1]}


def test_everything_relevant_has_no_area(model: SentenceTransformer) -> None:
    found = RocEvaluator({"q": "w1"}, {"a": "w1", "b": "w2"}, {"q": {"a", "b"}})(model)
    assert all(torch.tensor(found[f"cosine_{key}"]).isnan() for key in ("pooled_auc", "pooled_aoc", "per_query_auc"))


@pytest.mark.parametrize(
    "options, argument, expectation",
    [
        ({"relevant_docs": {}}, "relevant_docs", "at least one of the queries"),
        ({"relevant_docs": {"q1": {"elsewhere"}}}, "relevant_docs", "passages of the corpus, got 'elsewhere'"),
        ({"false_positive_rates": (2.0,)}, "false_positive_rates", r"\[0, 1\]"),
        ({"corpus_chunk_size": 0}, "corpus_chunk_size", ">= 1"),
        ({"batch_size": 0}, "batch_size", ">= 1"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], argument: str, expectation: str) -> None:
    queries, corpus, relevant = collection()
    call = {"queries": queries, "corpus": corpus, "relevant_docs": relevant} | options
    with pytest.raises(ValueError, match=f"argument `{argument}`: expected .*{expectation}") as caught:
        RocEvaluator(**call)
    assert "\n" not in str(caught.value)
