"""sentence-transformers: list objectives in its cross-encoder trainer, on a causal model and on a classifier."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

pytest.importorskip("sentence_transformers")

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import Dataset
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments, losses
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.util import batch_to_device
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from scorecraft.core import InfoNCELoss, ListNetLoss, PairwiseLogisticLoss
from scorecraft.integrations.sentence_transformers.reranking import (
    ContrastiveRerankingLoss,
    ListRerankingLoss,
    SupervisedRerankingLoss,
    TwoLogitRerankingLoss,
    UnifiedRerankingLoss,
)
from scorecraft.relevance import sft_vs_cl

WORDS = ["yes", "no", *(f"w{number}" for number in range(24))]
VOCABULARY = len(WORDS) + 2
YES, NO = 2, 3
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 32}  # fmt: skip
CAUSAL = {**SHAPE, "num_key_value_heads": 2, "pad_token_id": 0}
LOSSES = (SupervisedRerankingLoss, ContrastiveRerankingLoss, UnifiedRerankingLoss)
pytestmark = pytest.mark.filterwarnings("ignore:z_yes is trained:UserWarning")

QUERIES = ["w0 w1", "w5", "w9 w2"]
COLUMNS = [QUERIES, ["w0", "w5 w6", "w9"], ["w20 w21 w22", None, "w17"], ["w18", "w19 w1", "w3 w4 w5"]]
DOCS = [["w0", "w20 w21 w22", "w18"], ["w5 w6", "w19 w1"], ["w9", "w17", "w3 w4 w5"]]
RELEVANT = [[1, 0, 0], [1, 0], [1, 0, 0]]


def saved(folder: Path, model: PreTrainedModel) -> Path:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", model_max_length=32
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return saved(tmp_path_factory.mktemp("llama"), LlamaForCausalLM(LlamaConfig(**CAUSAL)))


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return saved(tmp_path_factory.mktemp("bert"), BertForSequenceClassification(BertConfig(**SHAPE, num_labels=1)))


@pytest.fixture
def model(causal_folder: Path) -> CrossEncoder:
    return CrossEncoder(str(causal_folder), device="cpu")


@pytest.fixture
def classifier(classifier_folder: Path) -> CrossEncoder:
    return CrossEncoder(str(classifier_folder), device="cpu").eval()


def whole_logits(model: CrossEncoder, query: str, docs: list[str]) -> Tensor:
    """`[vocabulary, docs]` by the host alone."""
    features = model.preprocess([(query, doc) for doc in docs])
    return model(batch_to_device(features, model.device))["causal_logits"][:, -1].T


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def objectives() -> list[Any]:
    unified = [
        sft_vs_cl.UnifiedRerankingLoss(weight=weight, direction=direction)  # type: ignore[arg-type]
        for weight in ("sft", "cl", "one", "masked")
        for direction in ("sft", "cl")
    ]
    return [sft_vs_cl.SupervisedRerankingLoss(), sft_vs_cl.ContrastiveRerankingLoss(), *unified]


# --- what the losses compute ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", objectives(), ids=repr)
def test_value_and_gradient_are_those_of_the_whole_head(model: CrossEncoder, objective: Any) -> None:
    each = [
        objective(whole_logits(model, query, docs)[[YES, NO]], torch.tensor(relevant))
        for query, docs, relevant in zip(QUERIES, DOCS, RELEVANT, strict=True)
    ]
    expected = torch.stack(each).mean()
    expected.backward()
    right = gradients(model)
    found = TwoLogitRerankingLoss(model, objective)(COLUMNS)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    ours = gradients(model)
    assert ours.keys() == right.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, right[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", LOSSES)
def test_columns_and_labelled_lists_are_one_thing(model: CrossEncoder, kind: type) -> None:
    loss = kind(model)
    listed = loss([QUERIES, DOCS], [torch.tensor(row) for row in RELEVANT])
    torch.testing.assert_close(loss(COLUMNS), listed)
    swapped = [QUERIES, [row[::-1] for row in DOCS]]
    torch.testing.assert_close(loss(swapped, [torch.tensor(row[::-1]) for row in RELEVANT]), listed)


def test_named_losses_are_their_objectives(model: CrossEncoder) -> None:
    for loss, objective in (
        (UnifiedRerankingLoss(model, "masked", "cl", 0.2, "mean"),
         sft_vs_cl.UnifiedRerankingLoss(weight="masked", direction="cl", mask_threshold=0.2, documents="mean")),
        (SupervisedRerankingLoss(model, "sum", 3.0), sft_vs_cl.SupervisedRerankingLoss(documents="sum", pos_weight=3)),
        (ContrastiveRerankingLoss(model, 0.5), sft_vs_cl.ContrastiveRerankingLoss(temperature=0.5)),
    ):  # fmt: skip
        torch.testing.assert_close(loss(COLUMNS), TwoLogitRerankingLoss(model, objective)(COLUMNS))


def test_supervised_is_the_hosts_binary_cross_entropy(model: CrossEncoder) -> None:
    """The host's own loss for the same model, on the same pairs: documents as one flat list."""
    pairs = [(query, doc) for query, docs in zip(QUERIES, DOCS, strict=True) for doc in docs]
    labels = torch.tensor([float(label) for row in RELEVANT for label in row])
    expected = losses.BinaryCrossEntropyLoss(model)([list(column) for column in zip(*pairs, strict=True)], labels)
    lists = [[doc] for _, doc in pairs]
    found = SupervisedRerankingLoss(model)([[query for query, _ in pairs], lists], [label[None] for label in labels])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("objective", [InfoNCELoss(), ListNetLoss(), PairwiseLogisticLoss()],
                         ids=lambda objective: type(objective).__name__)  # fmt: skip
def test_any_list_objective_on_either_kind(model: CrossEncoder, classifier: CrossEncoder, objective: Any) -> None:
    graded = [torch.tensor([2.0, 0.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0, 0.0])]
    for encoder in (model, classifier):
        each = []
        for query, docs, grades in zip(QUERIES, DOCS, graded, strict=True):
            features = encoder.preprocess([(query, doc) for doc in docs])
            each.append(objective(encoder(features)["scores"].squeeze(1), grades))
        found = ListRerankingLoss(encoder, objective)([QUERIES, DOCS], graded)
        torch.testing.assert_close(found, torch.stack(each).mean(), rtol=1e-5, atol=1e-6)


def test_listnet_is_the_hosts(classifier: CrossEncoder) -> None:
    labels = [torch.tensor([float(label) for label in row]) for row in RELEVANT]
    expected = losses.ListNetLoss(classifier)([QUERIES, DOCS], labels)
    torch.testing.assert_close(ListRerankingLoss(classifier, ListNetLoss())([QUERIES, DOCS], labels), expected)


def test_a_model_that_serves_yes_alone(model: CrossEncoder) -> None:
    """`LogitScore` without a false token: InfoNCE on its score is the contrastive loss."""
    expected = ContrastiveRerankingLoss(model)(COLUMNS)
    model[-1].false_token_id = None
    torch.testing.assert_close(ListRerankingLoss(model, InfoNCELoss())(COLUMNS), expected)


def test_what_follows_the_head_stays(tmp_path: Path) -> None:
    """Gemma caps its logits behind the head: with a cap this low it shows."""
    torch.manual_seed(0)
    config = Gemma2Config(**CAUSAL, head_dim=8, final_logit_softcapping=0.05)
    model = CrossEncoder(str(saved(tmp_path, Gemma2ForCausalLM(config))), device="cpu").eval()
    logits = whole_logits(model, QUERIES[0], DOCS[0])[[YES, NO]]
    expected = sft_vs_cl.SupervisedRerankingLoss()(logits, torch.tensor(RELEVANT[0]))
    found = SupervisedRerankingLoss(model)([[QUERIES[0]], [DOCS[0]]], [torch.tensor(RELEVANT[0])])
    torch.testing.assert_close(found, expected)
    assert logits.abs().max() < 0.05


def test_half_precision_models_have_float32_logits(model: CrossEncoder) -> None:
    model.bfloat16()
    loss = TwoLogitRerankingLoss(model, sft_vs_cl.SupervisedRerankingLoss())
    logits = loss.scores(model.preprocess([("w0", "w1"), ("w2", "w3")]))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    loss(COLUMNS).backward()


def test_a_head_that_cannot_be_read_by_rows_stays_in_its_place(model: CrossEncoder) -> None:
    """An adapter around the head, say: the host's logits are made, and two are read."""
    expected = SupervisedRerankingLoss(model)(COLUMNS)
    transformer = model.transformers_model
    transformer.set_output_embeddings(nn.Sequential(transformer.get_output_embeddings()))
    torch.testing.assert_close(SupervisedRerankingLoss(model)(COLUMNS), expected)


def test_prompt_and_task_reach_the_preprocessing(model: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    preprocess = model.preprocess

    def spy(pairs: Any, **options: Any) -> Any:
        seen.update(options)
        return preprocess(pairs, **options)

    monkeypatch.setattr(model, "preprocess", spy)
    SupervisedRerankingLoss(model)(COLUMNS, None, prompt="w7 ", task="rerank")
    assert seen == {"prompt": "w7 ", "task": "rerank"}


# --- in the trainer ------------------------------------------------------------------------------------------------


def data(layout: str) -> Dataset:
    """A document is relevant when it shares the query's word."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(32):
        own = f"w{index % 12}"
        others = [f"w{12 + int(i)}" for i in torch.randint(12, (3,), generator=generator)]
        rows.append((own, [f"{own} w23", *others]))
    if layout == "columns":
        names = ["query", "positive", "negative_1", "negative_2", "negative_3"]
        return Dataset.from_list([dict(zip(names, [query, *docs], strict=True)) for query, docs in rows])
    return Dataset.from_list([{"query": query, "docs": docs, "labels": [1, 0, 0, 0]} for query, docs in rows])


def arguments(folder: Path, **options: Any) -> CrossEncoderTrainingArguments:
    defaults: dict[str, Any] = {"output_dir": str(folder), "num_train_epochs": 4, "per_device_train_batch_size": 8,
                                "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
                                "disable_tqdm": True, "use_cpu": True, "seed": 1}  # fmt: skip
    return CrossEncoderTrainingArguments(**(defaults | options))


@pytest.mark.parametrize("layout", ["columns", "labelled lists"])
@pytest.mark.parametrize("kind", LOSSES)
def test_trains_is_cited_saved_and_loaded(model: CrossEncoder, tmp_path: Path, kind: type, layout: str) -> None:
    dataset = data(layout)
    # The host calls a loss again without prompt and task after any TypeError, which would hide ours.
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be passed.*")
        CrossEncoderTrainer(model, arguments(tmp_path / "run"), train_dataset=dataset, loss=kind(model)).train()
    if kind is ContrastiveRerankingLoss:
        model[-1].false_token_id = None
    right = [("w3", "w3 w23"), ("w7", "w7 w23")]
    wrong = [("w3", "w15"), ("w7", "w19")]
    assert model.predict(right).min() > model.predict(wrong).max()
    model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "2510.14824" in card
    assert kind.__name__ in card
    again = CrossEncoder(str(tmp_path / "model"), device="cpu")
    assert again[-1].true_token_id == YES
    assert list(again.predict(right)) == list(model.predict(right))


def test_a_classifier_trains_without_a_paper_to_cite(classifier: CrossEncoder, tmp_path: Path) -> None:
    loss = ListRerankingLoss(classifier, PairwiseLogisticLoss())
    before = copy.deepcopy(classifier.state_dict())
    options = arguments(tmp_path / "run", num_train_epochs=1)
    CrossEncoderTrainer(classifier, options, train_dataset=data("columns"), loss=loss).train()
    assert any(not torch.equal(value, before[key]) for key, value in classifier.state_dict().items())
    classifier.save_pretrained(str(tmp_path / "model"))
    assert "PairwiseLogisticLoss" in (tmp_path / "model" / "README.md").read_text()


def test_config_is_what_was_chosen(model: CrossEncoder) -> None:
    assert UnifiedRerankingLoss(model, weight="masked").get_config_dict() == {
        "weight": "masked", "direction": "sft", "mask_threshold": 0.1, "documents": "sum"}  # fmt: skip
    assert SupervisedRerankingLoss(model, pos_weight=4.0).get_config_dict() == {"documents": "mean", "pos_weight": 4.0}
    assert ContrastiveRerankingLoss(model).get_config_dict() == {"temperature": 1.0}
    assert "InfoNCELoss(" in ListRerankingLoss(model, InfoNCELoss()).get_config_dict()["objective"]


def test_inside_ddp_the_head_is_exchanged_as_well(model: CrossEncoder) -> None:
    model.eval()
    SupervisedRerankingLoss(model)(COLUMNS).backward()
    expected = gradients(model)
    loss = SupervisedRerankingLoss(model)
    called = []
    model.transformers_model.get_output_embeddings().register_forward_hook(lambda *_: called.append(True))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        wrapped.preprocess = model.preprocess  # as the host's trainer does
        loss.model = wrapped
        loss(COLUMNS).backward()
        del wrapped, loss.model
    finally:
        dist.destroy_process_group()
    assert not called
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


# --- at the door ---------------------------------------------------------------------------------------------------


def test_columns_are_checked(model: CrossEncoder) -> None:
    loss = SupervisedRerankingLoss(model)
    labels = [torch.tensor(row) for row in RELEVANT]
    refused = {
        "inputs`: expected columns .query, positive, negatives": lambda: loss(COLUMNS[:1]),
        "inputs`: expected a positive for every query in the second column, got None at row 1": lambda: loss(
            [QUERIES, ["w0", None, "w9"], ["w1", "w2", "w3"]]
        ),
        "inputs`: expected a document for every query, got none at row 0": lambda: loss(
            [QUERIES, [[], *DOCS[1:]]], [labels[0][:0], *labels[1:]]
        ),
        "inputs`: expected columns .query, docs. beside the labels": lambda: loss(COLUMNS, labels),
        "labels`: expected one for each document": lambda: loss([QUERIES, DOCS], [*labels[:2], labels[2][:1]]),
        "labels`: expected a list of labels for each query": lambda: loss([QUERIES, DOCS], torch.ones(3)),
    }
    for said, call in refused.items():
        with pytest.raises(ValueError, match=f"argument `{said}"):
            call()


def test_models_and_objectives_are_checked(model: CrossEncoder, classifier: CrossEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="argument `model`: expected a causal language model with LogitScore"):
        SupervisedRerankingLoss(classifier)
    for false in (None, YES):
        model[-1].false_token_id = false
        with pytest.raises(ValueError, match="argument `model`: expected a LogitScore of two different tokens"):
            UnifiedRerankingLoss(model)
    torch.manual_seed(0)
    several = saved(tmp_path, BertForSequenceClassification(BertConfig(**SHAPE, num_labels=3)))
    with pytest.raises(ValueError, match="argument `model`: expected a cross-encoder with one label, got 3 labels"):
        ListRerankingLoss(CrossEncoder(str(several), device="cpu"), InfoNCELoss())
    with pytest.raises(TypeError, match="expected a list objective of one score channel, got SupervisedRerankingLoss"):
        ListRerankingLoss(model, sft_vs_cl.SupervisedRerankingLoss())
    model[-1].false_token_id = NO
    with pytest.raises(TypeError, match="expected a list objective of two logits, got InfoNCELoss"):
        TwoLogitRerankingLoss(model, InfoNCELoss())
    with torch.no_grad():
        model.transformers_model.get_output_embeddings().weight[YES] = torch.nan
    with pytest.raises(ValueError, match="argument `scores`: expected finite"):
        SupervisedRerankingLoss(model)(COLUMNS)


def test_what_is_trained_and_what_is_served(model: CrossEncoder) -> None:
    for make in (lambda: ContrastiveRerankingLoss(model), lambda: UnifiedRerankingLoss(model, "sft", "cl")):
        with pytest.warns(UserWarning, match="set `false_token_id = None`"):
            make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        UnifiedRerankingLoss(model, "cl", "sft")
        SupervisedRerankingLoss(model)


# --- the host ------------------------------------------------------------------------------------------------------


def test_contract_two_logits_without_the_vocabulary(model: CrossEncoder) -> None:
    """The host makes all logits of the last position; within our losses the head is never called, and comes back."""
    features = model.preprocess([("w0", "w1 w2 w3"), ("w4", "w5")])
    assert features["logits_to_keep"] == 1
    assert features["attention_mask"][:, -1].all()  # padded on the left
    out = model(dict(features))
    assert out[model[-1].module_input_name].shape == (2, 1, VOCABULARY)
    torch.testing.assert_close(out["scores"][:, 0], out["causal_logits"][:, -1, YES] - out["causal_logits"][:, -1, NO])

    head = model.transformers_model.get_output_embeddings()
    called = []
    head.register_forward_hook(lambda *_: called.append(True))
    SupervisedRerankingLoss(model)(COLUMNS).backward()
    ListRerankingLoss(model, InfoNCELoss())(COLUMNS).backward()
    assert not called
    assert model.transformers_model.get_output_embeddings() is head
    assert (model[-1].true_token_id, model[-1].false_token_id) == (YES, NO)
    assert head.weight.grad is not None
    assert head.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [YES, NO]


def test_the_head_comes_back_after_an_error(model: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = SupervisedRerankingLoss(model)
    head = model.transformers_model.get_output_embeddings()
    monkeypatch.setattr(model[-1], "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss(COLUMNS)
    assert model.transformers_model.get_output_embeddings() is head
    assert (model[-1].true_token_id, model[-1].false_token_id) == (YES, NO)


def test_contract_with_sentence_transformers(model: CrossEncoder) -> None:
    """The signatures and attributes of the host that the losses rely on."""

    def names(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert names(LogitScore.__init__)[1:4] == ["true_token_id", "false_token_id", "module_input_name"]
    assert names(batch_to_device)[:2] == ["batch", "target_device"]
    assert names(CrossEncoder.preprocess)[:3] == ["self", "inputs", "prompt"]
    assert names(CrossEncoderTrainer.compute_loss)[:3] == ["self", "model", "inputs"]
    assert isinstance(model[0], Transformer)
    assert isinstance(model[-1], LogitScore)
    assert model.num_labels == 1
    source = inspect.getsource(CrossEncoderTrainer.compute_loss)
    assert "prompt=prompt, task=task" in source
    assert "except TypeError" in source
    assert names(ListRerankingLoss.forward) == ["self", "inputs", "labels", "prompt", "task"]
