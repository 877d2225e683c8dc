"""sentence-transformers: negatives mined by a judge, kept on disk, and learnt from by the soft-label loss."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers")

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from sentence_transformers.util import mine_hard_negatives, pairwise_dot_score
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from scorecraft.integrations.sentence_transformers.judged_mining import SoftLabelLoss, mine_judged_negatives
from scorecraft.relevance.unime_v2 import SoftLabelAlignmentLoss

WORDS = [f"w{number}" for number in range(60)]
SIZES: dict[str, Any] = {"vocab_size": len(WORDS) + 3, "hidden_size": 16, "num_hidden_layers": 1,
                         "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 24}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", sep_token="[SEP]", model_max_length=24
    )


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(BertConfig(**SIZES)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def model(bert_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(modules=[Transformer(str(bert_folder)), Pooling(16)], device="cpu")


def static_model(seed: int = 0) -> SentenceTransformer:
    torch.manual_seed(seed)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer(), embedding_dim=16)], device="cpu")


def text(topic: int, number: int) -> str:
    """Texts of a topic share two words, next to one of their own."""
    return f"w{2 * topic} w{2 * topic + 1} w{20 + (7 * topic + 3 * number) % 40}"


TOPICS, PER_TOPIC = 6, 5
CORPUS = [text(topic, number) for topic in range(TOPICS) for number in range(PER_TOPIC)]


def pairs() -> Dataset:
    """Two queries per topic; the second one has two positives, in two rows."""
    rows = []
    for topic in range(TOPICS):
        rows.append((f"w{2 * topic} w{20 + topic}", text(topic, 0)))
        rows += [(f"w{2 * topic + 1} w{30 + topic}", text(topic, number)) for number in (1, 2)]
    return Dataset.from_dict({"question": [row[0] for row in rows], "answer": [row[1] for row in rows]})


def overlap(query: str, candidate: str) -> float:
    """How many words a query and a candidate share, and how near their last words are, as a score in [0, 1]."""
    asked, found = query.split(), candidate.split()
    near = 1 - abs(int(asked[-1][1:]) - int(found[-1][1:])) / 60
    return min(1.0, 0.45 * len(set(asked) & set(found)) + 0.4 * near)


class Counting:
    """A judge that remembers what it was asked."""

    fingerprint = "overlap"

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.stop_after = stop_after

    def __call__(self, queries: list[str], candidates: list[str]) -> list[float]:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += zip(queries, candidates, strict=True)
        return [overlap(query, candidate) for query, candidate in zip(queries, candidates, strict=True)]


def mined(judge: Any = None, **options: Any) -> Dataset:
    call = {"corpus": CORPUS, "num_negatives": 4, "pool": 12} | options
    return mine_judged_negatives(pairs(), static_model(), Counting() if judge is None else judge, **call)


# --- mining --------------------------------------------------------------------------------------------------------


def by_hand(num_negatives: int, pool: int, margin: float, stride: int) -> Iterator[tuple[str, str, list[str]]]:
    """The procedure, one query after the other, in plain Python."""
    model = static_model()
    rows = pairs()
    texts = list(dict.fromkeys([*CORPUS, *rows["answer"]]))
    similarity = model.similarity(model.encode(list(dict.fromkeys(rows["question"]))), model.encode(texts))
    for place, query in enumerate(dict.fromkeys(rows["question"])):
        positives = [row["answer"] for row in rows if row["question"] == query]
        order = sorted(range(len(texts)), key=lambda i: (-similarity[place, i].item(), i))
        candidates = [texts[i] for i in order if texts[i] not in positives][:pool]
        for positive in positives:
            kept = [c for c in candidates if overlap(query, c) <= overlap(query, positive) - margin]
            strided = [kept[i] for start in range(stride) for i in range(start, len(kept), stride)]
            if strided:
                yield query, positive, [strided[i % len(strided)] for i in range(num_negatives)]


@pytest.mark.parametrize("options", [{}, {"num_negatives": 8, "stride": 3, "margin": 0.0}])
def test_mining_is_the_procedure_by_hand(options: dict[str, Any]) -> None:
    found = mined(**options)
    k = options.get("num_negatives", 4)
    assert found.column_names == ["query", "positive", *(f"negative_{n}" for n in range(1, k + 1)), "scores"]
    expected = list(by_hand(k, 12, options.get("margin", 0.1), options.get("stride", 5)))
    assert len(expected) > 10
    assert len(found) == len(expected)
    for row, (query, positive, negatives) in zip(found, expected, strict=True):
        assert (row["query"], row["positive"]) == (query, positive)
        assert [row[f"negative_{n}"] for n in range(1, k + 1)] == negatives
        assert row["scores"] == pytest.approx([overlap(query, c) for c in (positive, *negatives)], abs=1e-6)


def test_every_pair_is_judged_once_and_a_query_in_one_go() -> None:
    judge = Counting()
    mined(judge)
    assert len(set(judge.asked)) == len(judge.asked)
    assert len(judge.asked) == 12 * 12 + 18
    queries = [query for query, _ in judge.asked]
    assert len([1 for one, two in itertools.pairwise(queries) if one != two]) == 11


def test_the_cap_leaves_out_what_is_too_similar_and_fetches_more() -> None:
    model = static_model()
    found = mined(max_score=0.5, margin=0.0, pool=10)
    for row in found:
        negatives = [row[f"negative_{n}"] for n in range(1, 5)]
        similarity = model.similarity(model.encode(row["query"]), model.encode(negatives))
        assert (similarity < 0.5).all()
    judge = Counting()
    mined(judge, max_score=0.5, pool=10)
    assert len(judge.asked) == 12 * 10 + 18  # pools are full all the same


def test_columns_by_name_and_a_corpus_of_positives() -> None:
    rows = pairs().rename_columns({"question": "b", "answer": "a"}).select_columns(["a", "b"])
    judge = Counting()
    found = mine_judged_negatives(rows, static_model(), judge, "b", "a", num_negatives=3, pool=8)
    assert set(found["positive"]) <= set(pairs()["answer"])
    assert {candidate for _, candidate in judge.asked} <= set(pairs()["answer"])


@pytest.mark.parametrize("fallback", ["skip", "positive", "one"])
def test_queries_without_a_passing_candidate(fallback: str) -> None:
    def strict(queries: list[str], candidates: list[str]) -> torch.Tensor:
        return torch.tensor([0.05 if "w30" in query else overlap(query, c)
                             for query, c in zip(queries, candidates, strict=True)])  # fmt: skip

    found = mined(strict, fallback=fallback, seed=3)
    rejected = [row for row in found if "w30" in row["query"]]
    assert len(rejected) == (0 if fallback == "skip" else 2)
    for row in rejected:
        assert row["scores"] == pytest.approx([0.05] + [0.05 if fallback == "positive" else 1.0] * 4)
        assert len({row[f"negative_{n}"] for n in range(1, 5)}) == 4
    assert mined(strict, fallback=fallback, seed=3).to_dict() == found.to_dict()
    if fallback != "skip":
        assert mined(strict, fallback=fallback, seed=4).to_dict() != found.to_dict()


def test_a_cross_encoder_judges_through_a_sigmoid(bert_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    BertForSequenceClassification(BertConfig(num_labels=1, initializer_range=1.0, **SIZES)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    encoder = CrossEncoder(str(tmp_path), device="cpu", activation_fn=torch.nn.Identity())
    found = mined(encoder, margin=0.0)
    row = found[0]
    logits = encoder.predict([(row["query"], row["positive"]), (row["query"], row["negative_1"])])
    assert row["scores"][:2] == pytest.approx((1 / (1 + torch.tensor(-logits).exp())).tolist(), abs=1e-5)


@pytest.mark.parametrize("kept", [False, True])
def test_progress_names_every_step(tmp_path: Path, kept: bool) -> None:
    told: list[tuple[int, int, str]] = []
    mined(part=5, folder=tmp_path if kept else None, progress=lambda *what: told.append(what))
    ends = {what: (done, total) for done, total, what in told}
    assert all(done == total for done, total in ends.values())
    assert ends["queries judged"] == ends["queries searched"] == (12, 12)
    assert [done for done, _, what in told if what == "queries judged"] == [5, 10, 12]
    assert len(ends) >= 3


# --- on disk ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    whole = Counting()
    expected = mined(whole).to_dict()
    interrupted = Counting(stop_after=70)
    with pytest.raises(KeyboardInterrupt):
        mined(interrupted, folder=tmp_path, part=3)
    again = Counting()
    assert mined(again, folder=tmp_path, part=3).to_dict() == expected
    assert 0 < len(again.asked) < len(whole.asked)
    assert interrupted.asked + again.asked == whole.asked
    third = Counting()
    assert mined(third, folder=tmp_path, part=3).to_dict() == expected
    assert not third.asked
    assert not list(tmp_path.rglob("*.part"))


def test_what_the_judge_said_serves_other_options(tmp_path: Path) -> None:
    mined(folder=tmp_path)
    judge = Counting()
    assert mined(judge, folder=tmp_path, margin=0.2, stride=1, num_negatives=3).num_columns == 6
    assert not judge.asked


def other_corpus() -> dict[str, Any]:
    return {"corpus": [*CORPUS, "w1 w2 w3"]}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda: {"judge": lambda queries, candidates: [0.5] * len(queries)}, "`folder`: .* scores of another judge"),
        (lambda: {"pool": 9}, "`folder`: expected one for this run, or a new one: .* scores of another pairs"),
        (lambda: {"part": 7}, "`folder`: .* scores of another part"),
        (lambda: {"model": static_model(1)}, "`encoder`: expected "),
        (other_corpus, "`corpus`: expected "),
        (lambda: {"query_prompt": "w1 "}, "`encoder`: expected "),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path: Path, change: Callable[[], dict[str, Any]], message: str) -> None:
    call: dict[str, Any] = {"model": static_model(), "judge": Counting(), "corpus": CORPUS, "num_negatives": 4,
                            "pool": 12, "folder": tmp_path, "part": 5}  # fmt: skip
    mine_judged_negatives(pairs(), **call)
    with pytest.raises(ValueError, match="argument " + message) as caught:
        mine_judged_negatives(pairs(), **(call | change()))
    assert "\n" not in str(caught.value)


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    import numpy as np

    mined(folder=tmp_path)
    (file,) = (tmp_path / "judging").glob("*.npy")
    np.save(file, np.zeros(3, dtype=np.float32), allow_pickle=False)
    with pytest.raises(ValueError, match=r"argument `folder`: expected 162 scores in .*: delete that file .*, got 3"):
        mined(folder=tmp_path)


# --- the door --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, message",
    [
        (lambda n: [0.5] * (n - 1), "expected floating-point scores of shape"),
        (lambda n: [math.nan] + [0.5] * (n - 1), r"expected scores in \[0, 1\], got nan at \[0\]"),
        (lambda n: [0.5] * (n - 1) + [1.5], r"expected scores in \[0, 1\], got 1.5 at"),
        (lambda n: [-3.0] * n, r"expected scores in \[0, 1\], got -3.0"),
    ],
)
def test_a_judge_that_returns_nonsense_is_refused(answer: Callable[[int], list[float]], message: str) -> None:
    with pytest.raises(ValueError, match="argument `judge`: " + message):
        mined(lambda queries, candidates: answer(len(queries)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_negatives": 0}, "`num_negatives`: expected an integer >= 1"),
        ({"pool": 3}, "`pool`: expected at least num_negatives = 4 candidates, got 3"),
        ({"num_negatives": 30, "pool": 40}, "`corpus`: expected at least num_negatives = 30 texts besides .*, got 29"),
        ({"corpus": [*CORPUS, " "]}, "`corpus`: expected documents that are not empty, got an empty one at 30"),
        (
            {"dataset": Dataset.from_dict({"a": ["x", ""], "b": ["y", "z"]})},
            "`dataset`: expected documents that are not",
        ),
        ({"dataset": Dataset.from_dict({"a": [], "b": []})}, "`dataset`: expected rows with a column of queries"),
        ({"dataset": Dataset.from_dict({"a": ["x"]})}, "`dataset`: expected rows with a column of queries"),
        ({"dataset": Dataset.from_dict({"a": ["x"], "b": [3]})}, "`dataset`: expected columns of texts, got 3"),
        ({"anchor_column_name": "query"}, "`anchor_column_name`: expected one of 'question', 'answer', got 'query'"),
        ({"margin": 2.0}, "`margin`: expected a number in"),
        ({"fallback": "random"}, "`fallback`: expected one of"),
    ],
)
def test_bad_input_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"dataset": pairs(), "model": static_model(), "judge": Counting(), "corpus": CORPUS,
                            "num_negatives": 4, "pool": 12}  # fmt: skip
    with pytest.raises(ValueError, match="argument " + message) as caught:
        mine_judged_negatives(**(call | change))
    assert "\n" not in str(caught.value)


# --- the loss --------------------------------------------------------------------------------------------------------


def batch(model: SentenceTransformer, rows: int = 6) -> tuple[list[dict[str, Any]], torch.Tensor]:
    found = mined()[:rows]
    columns = [found[name] for name in ("query", "positive", *(f"negative_{n}" for n in range(1, 5)))]
    return [model.preprocess(column) for column in columns], torch.tensor(found["scores"])


def gradients(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_value_is_the_objective_on_the_cosines(model: SentenceTransformer) -> None:
    model.eval()
    features, labels = batch(model)
    value = SoftLabelLoss(model, temperature=0.05)(features, labels)
    unit = [torch.nn.functional.normalize(model(column)["sentence_embedding"], dim=1) for column in features]
    cosines = torch.stack([(unit[0] * other).sum(1) for other in unit[1:]], dim=1)
    torch.testing.assert_close(value, SoftLabelAlignmentLoss(temperature=0.05)(cosines, labels))
    assert value.requires_grad
    dot = SoftLabelLoss(model, pairwise_dot_score)
    assert dot.get_config_dict() == {"similarity_fct": "pairwise_dot_score", "temperature": 0.02}


def test_a_repeated_candidate_counts_once(model: SentenceTransformer) -> None:
    model.eval()
    features, labels = batch(model)
    repeated = [*features, copy.deepcopy(features[2])]
    longer = torch.cat([labels, labels[:, 1:2]], dim=1)
    # Wider padding must not make it another text.
    for key, value in repeated[-1].items():
        if isinstance(value, torch.Tensor) and value.ndim == 2:
            repeated[-1][key] = torch.nn.functional.pad(value, (0, 2))
    loss = SoftLabelLoss(model)
    torch.testing.assert_close(loss(repeated, longer), loss(features, labels))
    embeddings = [model(column)["sentence_embedding"] for column in repeated]
    assert not torch.isclose(loss.compute_loss_from_embeddings(embeddings, longer), loss(features, labels))


def test_static_embeddings_have_a_loss_too() -> None:
    model = static_model()
    features, labels = batch(model)
    value = SoftLabelLoss(model)(copy.deepcopy(features), labels)
    embeddings = [model(column)["sentence_embedding"] for column in features]
    torch.testing.assert_close(value, SoftLabelLoss(model).compute_loss_from_embeddings(embeddings, labels))
    value.backward()
    assert gradients(model)


def test_micro_batches_add_up_to_the_batch(model: SentenceTransformer) -> None:
    model.double().eval()
    features, labels = batch(model)
    labels = labels.double()
    loss = SoftLabelLoss(model)
    loss(copy.deepcopy(features), labels).backward()
    whole = gradients(model)
    model.zero_grad()
    for rows in (slice(0, 3), slice(3, 6)):
        (loss([{k: v[rows] for k, v in column.items() if isinstance(v, torch.Tensor)} for column in features],
              labels[rows]) / 2).backward()  # fmt: skip
    for name, gradient in whole.items():
        torch.testing.assert_close(gradients(model)[name], gradient, rtol=1e-8, atol=1e-11, msg=name)


def test_refusals_at_the_first_batch(model: SentenceTransformer) -> None:
    features, labels = batch(model)
    loss = SoftLabelLoss(model)
    for call, message in (
        ((features[:2], labels[:, :1]), r"`sentence_features`: expected columns \(query, positive, negative_1"),
        (
            (features, None),
            "`labels`: expected a score for each of the 5 candidates, .* in a column `scores`, got none",
        ),
        ((features, labels[:, :3]), r"`labels`: expected a score for each of the 5 candidates, shape \(6, 5\)"),
        ((features, labels.long()), "`labels`: expected a score"),
        ((features, labels - 1), "`labels`: expected finite scores >= 0"),
        ((features, labels * math.nan), "`labels`: expected finite scores >= 0, got nan"),
    ):
        with pytest.raises(ValueError, match="argument " + message):
            loss(*call)
    with pytest.raises(ValueError, match="argument `temperature`: expected a finite number > 0"):
        SoftLabelLoss(model, temperature=0.0)


def arguments(folder: Path, **options: Any) -> SentenceTransformerTrainingArguments:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 6,
        "per_device_train_batch_size": 6,
        "learning_rate": 5e-3,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
    }
    return SentenceTransformerTrainingArguments(**(defaults | options))


def test_training_on_mined_data_saving_and_the_model_card(model: SentenceTransformer, tmp_path: Path) -> None:
    data = mined()
    loss = SoftLabelLoss(model, temperature=0.05)
    trainer = SentenceTransformerTrainer(model, arguments(tmp_path), train_dataset=data, eval_dataset=data, loss=loss)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before

    model.save_pretrained(str(tmp_path / "model"))
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    torch.testing.assert_close(
        again.encode(CORPUS[:3], convert_to_tensor=True), model.encode(CORPUS[:3], convert_to_tensor=True)
    )
    card = (tmp_path / "model" / "README.md").read_text()
    assert "loss:SoftLabelLoss" in card
    assert loss.citation.strip() in card
    assert "2510.13515" in card
    shown = card.split("scorecraft.integrations.sentence_transformers.judged_mining.SoftLabelLoss")[1]
    assert json.loads(shown.split("```json")[1].split("```")[0]) == loss.get_config_dict()


def test_gradient_accumulation_in_the_trainer_is_the_large_batch(model: SentenceTransformer, tmp_path: Path) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    data = mined().select(range(12))
    found = []
    for size, micro in ((12, 1), (4, 3)):
        student = copy.deepcopy(model)
        options = arguments(tmp_path, num_train_epochs=1, per_device_train_batch_size=size,
                            gradient_accumulation_steps=micro, optim="sgd", learning_rate=1e-3)  # fmt: skip
        SentenceTransformerTrainer(student, options, train_dataset=data, loss=SoftLabelLoss(student)).train()
        found.append(student.state_dict())
    moved = [name for name, value in found[0].items() if not torch.equal(value, model.state_dict()[name])]
    assert moved
    for name in moved:
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-4, atol=1e-6, msg=name)


def test_matryoshka(model: SentenceTransformer) -> None:
    model.double().eval()
    features, labels = batch(model)
    embeddings = [model(copy.deepcopy(column))["sentence_embedding"] for column in features]
    inner = SoftLabelLoss(model, temperature=0.05)
    expected = sum(
        weight * inner.compute_loss_from_embeddings([column[:, :size] for column in embeddings], labels.double())
        for size, weight in ((16, 1.0), (6, 0.5))
    )
    loss = MatryoshkaLoss(model, inner, matryoshka_dims=[16, 6], matryoshka_weights=[1.0, 0.5])
    torch.testing.assert_close(loss(features, labels.double()), expected)


# --- what is relied on in the host -----------------------------------------------------------------------------------


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_contract_with_sentence_transformers() -> None:
    assert parameters(embed_columns) == ["model", "features_list", "separate_first"]
    assert parameters(DistillKLDivLoss.forward) == ["self", "sentence_features", "labels"]
    assert parameters(DistillKLDivLoss.compute_loss_from_embeddings) == ["self", "embeddings", "labels"]
    assert parameters(DistillKLDivLoss)[:3] == ["model", "similarity_fct", "temperature"]
    assert parameters(SoftLabelLoss) == ["model", "similarity_fct", "temperature"]
    for method in (SentenceTransformer.encode_query, SentenceTransformer.encode_document):
        assert {"prompt_name", "prompt", "batch_size", "show_progress_bar", "convert_to_tensor",
                "normalize_embeddings"} <= set(parameters(method))  # fmt: skip
    assert {"activation_fn", "convert_to_tensor", "show_progress_bar"} <= set(parameters(CrossEncoder.predict))
    shared = {"dataset", "model", "anchor_column_name", "positive_column_name", "corpus", "max_score", "num_negatives",
              "query_prompt_name", "query_prompt", "corpus_prompt_name", "corpus_prompt", "batch_size"}  # fmt: skip
    assert shared <= set(parameters(mine_hard_negatives))
    assert shared <= set(parameters(mine_judged_negatives))


def test_contract_of_our_loss(model: SentenceTransformer) -> None:
    loss = SoftLabelLoss(model)
    assert dict(loss.named_children())["model"] is model  # the trainer puts its wrapped model here
    assert parameters(loss.forward) == ["sentence_features", "labels"]
    json.dumps(loss.get_config_dict())
