"""sentence-transformers: hard negatives that keep up with the model, in its trainer, and ADORE for its query tower."""

from __future__ import annotations

import inspect
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("sentence_transformers")

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tests.integrations.tiny_models import WORDS, save_tiny_bert
from transformers import TrainerCallback

from scorecraft.integrations.sentence_transformers.hard_negatives import (
    HardNegativeMiner,
    QueryTower,
    RefreshHardNegatives,
    adore_trainer,
)

TOPICS, PER_TOPIC = 6, 5


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Bert of one layer, built on the spot."""
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(params=["cosine", "dot"])
def model(bert_folder: Path, request: pytest.FixtureRequest) -> SentenceTransformer:
    transformer = Transformer(str(bert_folder))
    return SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu", similarity_fn_name=request.param)


@pytest.fixture
def cosine_model(bert_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(modules=[Transformer(str(bert_folder)), Pooling(16)], device="cpu")


def collection() -> tuple[list[str], list[str], list[list[int]]]:
    """Documents of a topic share words; a query has words of one document, and that one is relevant to it."""
    generator = torch.Generator().manual_seed(0)
    corpus, queries, positives = [], [], []
    for topic in range(TOPICS):
        for _ in range(PER_TOPIC):
            own = [WORDS[4 * topic + int(i)] for i in torch.randint(4, (3,), generator=generator)]
            rare = [WORDS[24 + int(i)] for i in torch.randperm(24, generator=generator)[:3]]
            queries.append(" ".join([*rare, own[0]]))
            positives.append([len(corpus)])
            corpus.append(" ".join([*own, *rare, f"{WORDS[len(corpus) % 48]}"]))
    return corpus, queries, positives


def expected_lists(model: SentenceTransformer, depth: int) -> list[list[int]]:
    """The best documents but the positive, by the host's own similarity."""
    corpus, queries, positives = collection()
    scores = model.similarity(
        model.encode_query(queries, convert_to_tensor=True), model.encode_document(corpus, convert_to_tensor=True)
    )
    order = scores.argsort(dim=1, descending=True).tolist()
    return [[d for d in row if d not in known][:depth] for row, known in zip(order, positives, strict=True)]


# --- mining ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["torch", "Flat"])
def test_mining_everything_in_a_list_is_the_hosts_ranking(model: SentenceTransformer, index: str) -> None:
    corpus, queries, positives = collection()
    mined = HardNegativeMiner(model, corpus, index, depth=4).mine(queries, positives, 4)
    assert mined.dataset.column_names == ["query", "positive", "negative_1", "negative_2", "negative_3", "negative_4"]
    assert mined.skipped == 0
    assert mined.ids[:, 0].tolist() == [known for (known,) in positives]
    for row, ids, wanted in zip(mined.dataset, mined.ids.tolist(), expected_lists(model, 4), strict=True):
        assert sorted(ids[1:]) == sorted(wanted)
        assert [row["positive"], *(row[f"negative_{k}"] for k in range(1, 5))] == [corpus[i] for i in ids]


def test_several_positives_are_kept_out_and_may_be_texts(cosine_model: SentenceTransformer) -> None:
    corpus, queries, _ = collection()
    miner = HardNegativeMiner(cosine_model, corpus, "torch", depth=28)
    mined = miner.mine(queries[:2], [[corpus[3], 8], corpus[1]], 28)
    assert mined.ids[:, 0].tolist() == [3, 8, 1]
    assert mined.dataset["query"][:] == [queries[0], queries[0], queries[1]]
    for ids, known in zip(mined.ids.tolist(), ({3, 8}, {3, 8}, {1}), strict=True):
        assert len(set(ids[1:])) == 28
        assert not known & set(ids[1:])


def test_draws_repeat_with_a_seed(cosine_model: SentenceTransformer) -> None:
    corpus, queries, positives = collection()
    first, second, other = (
        HardNegativeMiner(cosine_model, corpus, "torch", depth=10, seed=seed).mine(queries, positives, 2).ids
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_model_keeps_its_mode_and_no_gradient_is_recorded(cosine_model: SentenceTransformer) -> None:
    corpus, queries, positives = collection()
    cosine_model.train()
    miner = HardNegativeMiner(cosine_model, corpus, "torch")
    miner.mine(queries, positives, 1)
    assert cosine_model.training
    assert all(parameter.grad is None for parameter in cosine_model.parameters())


def test_an_interrupted_encoding_goes_on_from_its_folder(cosine_model: SentenceTransformer, tmp_path: Path) -> None:
    corpus, queries, positives = collection()

    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        HardNegativeMiner(cosine_model, corpus, batch_size=1, folder=tmp_path, progress=stop)
    seen: list[int] = []
    miner = HardNegativeMiner(
        cosine_model, corpus, batch_size=1, folder=tmp_path, progress=lambda done, total, what: seen.append(done)
    )
    whole = HardNegativeMiner(cosine_model, corpus)
    assert torch.equal(miner.mine(queries, positives, 3).ids, whole.mine(queries, positives, 3).ids)
    with torch.no_grad():
        next(cosine_model.parameters()).add_(0.1)
    with pytest.raises(ValueError, match=r"argument `encoder`: expected .*, of the embeddings in "):
        HardNegativeMiner(cosine_model, corpus, folder=tmp_path)


def test_bad_input_is_refused(cosine_model: SentenceTransformer) -> None:
    corpus, queries, positives = collection()
    with pytest.raises(
        ValueError, match="argument `corpus`: expected documents that are not empty, got an empty one at 1"
    ):
        HardNegativeMiner(cosine_model, [corpus[0], ""])
    miner = HardNegativeMiner(cosine_model, corpus, "torch", depth=5)
    with pytest.raises(ValueError, match="argument `lists`: expected a relevant document for every query, got none"):
        miner.mine(queries, [*positives[:-1], []], 1)
    with pytest.raises(ValueError, match=r"argument `lists`: expected documents from 0 to 29, got 30 for query 0"):
        miner.mine(queries[:1], [30], 1)
    with pytest.raises(ValueError, match="argument `positives`: expected documents of the corpus, got 'unheard of'"):
        miner.mine(queries[:1], ["unheard of"], 1)
    with pytest.raises(ValueError, match="argument `positives`: expected those of 30 queries, got 29"):
        miner.mine(queries, positives[1:], 1)
    with pytest.raises(ValueError, match="argument `k`: expected at most depth = 5, got 6"):
        miner.mine(queries, positives, 6)
    with pytest.raises(ValueError, match="argument `k`: expected no more negatives than a query has, got 2"):
        HardNegativeMiner(cosine_model, corpus[:2], "torch").mine(queries[:1], [0], 2)
    cosine_model.similarity_fn_name = "euclidean"
    with pytest.raises(ValueError, match=r"argument `model.similarity_fn_name`: expected one of 'cosine', 'dot'"):
        HardNegativeMiner(cosine_model, corpus)


# --- refreshing ------------------------------------------------------------------------------------------------------


def move(model: SentenceTransformer) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)


@pytest.mark.parametrize("background", [False, True])
def test_a_refresh_follows_the_weights(cosine_model: SentenceTransformer, background: bool) -> None:
    corpus, queries, positives = collection()
    miner = HardNegativeMiner(cosine_model, corpus, "torch", depth=4)
    dataset = miner.training_set(queries, positives, 4)
    columns = [f"negative_{k}" for k in range(1, 5)]

    def negatives() -> list[set[str]]:
        return [{row[column] for column in columns} for row in dataset]

    before = negatives()
    assert before == [{corpus[d] for d in row} for row in expected_lists(cosine_model, 4)]
    torch.manual_seed(0)
    move(cosine_model)
    assert negatives() == before  # nothing has been refreshed
    miner.refresh(background=background)
    miner.wait()
    after = negatives()
    assert after != before
    assert after == [{corpus[d] for d in row} for row in expected_lists(cosine_model, 4)]


def test_a_refresh_in_the_background_uses_the_weights_it_began_with(
    cosine_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, queries, positives = collection()
    miner = HardNegativeMiner(cosine_model, corpus, "torch", depth=4)
    dataset = miner.training_set(queries, positives, 4)
    torch.manual_seed(0)
    move(cosine_model)
    expected = [{corpus[d] for d in row} for row in expected_lists(cosine_model, 4)]
    may_go, renew, calls = threading.Event(), miner._renew, []

    def when_allowed(model: SentenceTransformer) -> None:
        calls.append(model)
        may_go.wait(20)
        renew(model)

    monkeypatch.setattr(miner, "_renew", when_allowed)
    miner.refresh(background=True)
    miner.refresh(background=True)  # one is running: left out
    move(cosine_model)
    may_go.set()
    miner.wait()
    assert len(calls) == 1
    assert calls[0] is not cosine_model
    assert [{row[f"negative_{k}"] for k in range(1, 5)} for row in dataset] == expected


def test_what_fails_in_the_background_is_heard(
    cosine_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, _, _ = collection()
    miner = HardNegativeMiner(cosine_model, corpus, "torch")

    def fail(model: SentenceTransformer) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(miner, "_renew", fail)
    miner.refresh(background=True)
    with pytest.raises(RuntimeError, match="no more memory"):
        miner.wait()
    miner.wait()  # said once


def test_rows_without_enough_negatives_are_left_out(cosine_model: SentenceTransformer) -> None:
    corpus, queries, _ = collection()
    miner = HardNegativeMiner(cosine_model, corpus[:4], "torch")
    positives = [[0], [0, 1, 2]]
    mined = miner.mine(queries[:2], positives, 3)
    assert (len(mined.dataset), mined.skipped) == (1, 3)
    assert len(miner.training_set(queries[:2], positives, 3)) == 1


# --- in the host's trainer -------------------------------------------------------------------------------------------


def arguments(folder: Path, **options: Any) -> SentenceTransformerTrainingArguments:
    told = {
        "output_dir": str(folder),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 10,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
    }
    return SentenceTransformerTrainingArguments(**(told | options))


@pytest.mark.parametrize("background", [False, True])
def test_training_with_refreshed_negatives(cosine_model: SentenceTransformer, tmp_path: Path, background: bool) -> None:
    corpus, queries, positives = collection()
    miner = HardNegativeMiner(cosine_model, corpus, "torch", depth=10)
    dataset = miner.training_set(queries, positives, 2)
    before, first = mean_reciprocal_rank(cosine_model, cosine_model), miner.index
    trainer = SentenceTransformerTrainer(
        cosine_model,
        arguments(tmp_path),
        train_dataset=dataset,
        loss=MultipleNegativesRankingLoss(cosine_model),
        callbacks=[RefreshHardNegatives(miner, every=3, background=background)],
    )
    trainer.train()
    assert miner.index is not first
    assert mean_reciprocal_rank(cosine_model, cosine_model) > before + 0.1
    cosine_model.save_pretrained(str(tmp_path / "model"))
    assert "negative_2" in (tmp_path / "model" / "README.md").read_text()


def mean_reciprocal_rank(queries_by: SentenceTransformer, documents_by: SentenceTransformer) -> float:
    corpus, queries, positives = collection()
    scores = documents_by.similarity(
        queries_by.encode_query(queries, convert_to_tensor=True, show_progress_bar=False),
        documents_by.encode_document(corpus, convert_to_tensor=True, show_progress_bar=False),
    )
    own = scores.gather(1, torch.tensor(positives))
    return float((1 / (1 + (scores > own).sum(dim=1))).mean())


def test_what_the_host_is_expected_to_be() -> None:
    """What the callback and the miner override and call."""
    assert list(inspect.signature(TrainerCallback.on_step_end).parameters) == [
        "self",
        "args",
        "state",
        "control",
        "kwargs",
    ]
    assert list(inspect.signature(TrainerCallback.on_train_end).parameters) == [
        "self",
        "args",
        "state",
        "control",
        "kwargs",
    ]
    assert {"prompt", "kwargs"} <= set(inspect.signature(SentenceTransformer.preprocess).parameters)
    for method in (SentenceTransformer.encode_query, SentenceTransformer.encode_document):
        wanted = {"batch_size", "show_progress_bar", "convert_to_tensor", "normalize_embeddings"}
        assert wanted <= set(inspect.signature(method).parameters)


# --- ADORE -----------------------------------------------------------------------------------------------------------


def test_the_query_tower_is_encode_query_with_gradient(model: SentenceTransformer) -> None:
    _, queries, _ = collection()
    model.prompts = {"query": "w1 w2 ", "document": "w3 "}
    tower = QueryTower(model).eval()
    found = tower(queries)
    expected = model.encode_query(queries, convert_to_tensor=True)
    if model.similarity_fn_name == "cosine":
        expected = F.normalize(expected, dim=1)
    torch.testing.assert_close(found, expected.clone())
    found.sum().backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("index", ["torch", "Flat"])
def test_adore_trains_the_queries_and_leaves_the_documents(
    model: SentenceTransformer, index: str, tmp_path: Path
) -> None:
    corpus, queries, positives = collection()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = mean_reciprocal_rank(model, model)
    trainer = adore_trainer(
        model,
        corpus,
        positives,
        index=index,
        embeddings=tmp_path / "documents",
        learning_rate=3e-3,
        warmup_steps=0,
        batch_size=10,
        depth=15,
    )
    assert trainer.score_scale == (20 if model.similarity_fn_name == "cosine" else 1)
    trainer.train(queries, epochs=8)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    trained = trainer.query_encoder.model
    assert mean_reciprocal_rank(trained, model) > start + 0.1
    trained.save_pretrained(str(tmp_path / "query-encoder"))
    reloaded = SentenceTransformer(str(tmp_path / "query-encoder"), device="cpu")
    torch.testing.assert_close(reloaded.encode_query(queries[:2]), trained.encode_query(queries[:2]))
