"""sentence-transformers: label-batch losses in its trainer, with gradient caching, Matryoshka and several devices."""

from __future__ import annotations

import copy
import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.ranks import run_ranks

pytest.importorskip("sentence_transformers")

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
)
from sentence_transformers.base.losses import CachedLossMixin, has_static_embedding_input, uses_gradient_cache
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import BatchAllTripletLoss, MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tests.integrations.tiny_models import WORDS, save_tiny_bert, training_arguments, word_tokenizer

from scorecraft.catalog.objectives import make_objective, objective_types
from scorecraft.core import RowObjective, Tile, citation, tiled
from scorecraft.core.paper import papers_of
from scorecraft.integrations.sentence_transformers import CachedLabelBatchLoss, LabelBatchLoss, MultiSimilarityLoss
from scorecraft.similarity import multi_similarity, tcm

CLASSES, PER_CLASS = 6, 8


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Bert of one layer, built on the spot."""
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def model(bert_folder: Path) -> SentenceTransformer:
    transformer = Transformer(str(bert_folder))
    return SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")


@pytest.fixture
def double_model(model: SentenceTransformer) -> SentenceTransformer:
    """In float64, still with its dropout."""
    return model.double().train()


def texts_and_labels(seed: int = 0) -> tuple[list[str], list[int]]:
    """Texts of a class share three of its eight words, between words that say nothing."""
    generator = torch.Generator().manual_seed(seed)
    texts, labels = [], []
    for label in range(CLASSES):
        for _ in range(PER_CLASS):
            own = [WORDS[4 * label + int(i)] for i in torch.randint(4, (3,), generator=generator)]
            noise = [WORDS[24 + int(i)] for i in torch.randint(24, (3,), generator=generator)]
            texts.append(" ".join([*own, *noise]))
            labels.append(label)
    return texts, labels


def batch(model: SentenceTransformer, count: int = 12, seed: int = 0) -> tuple[list[dict[str, Any]], torch.Tensor]:
    texts, labels = texts_and_labels(seed)
    picked = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [model.preprocess([texts[i] for i in picked])], torch.tensor([labels[i] for i in picked])


def dataset() -> Dataset:
    texts, labels = texts_and_labels()
    return Dataset.from_dict({"text": texts, "label": labels})


def gradients(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- what the losses compute ---------------------------------------------------------------------------------------


def test_value_is_the_objective_on_the_embeddings(model: SentenceTransformer) -> None:
    model.eval()
    features, labels = batch(model)
    value = MultiSimilarityLoss(model, alpha=3.0, beta=20.0, threshold=0.6, mining_margin=0.05)(features, labels)
    embeddings = model(features[0])["sentence_embedding"]
    expected = multi_similarity.MultiSimilarityLoss(alpha=3.0, beta=20.0, threshold=0.6, mining_margin=0.05)(
        embeddings, labels
    )
    torch.testing.assert_close(value, expected)
    assert value.requires_grad


def test_any_objective_will_do(model: SentenceTransformer) -> None:
    model.eval()
    objective = tiled(multi_similarity.MultiSimilarityLoss() + 0.5 * tcm.ThresholdConsistentMarginLoss())
    features, labels = batch(model)
    value = LabelBatchLoss(model, objective)(features, labels)
    torch.testing.assert_close(value, objective(model(features[0])["sentence_embedding"], labels))


def test_named_objectives_are_components(model: SentenceTransformer) -> None:
    model.eval()
    ms, regulariser = multi_similarity.MultiSimilarityLoss(), 0.5 * tcm.ThresholdConsistentMarginLoss()
    features, labels = batch(model)
    parts = LabelBatchLoss(model, {"ms": ms, "tcm": regulariser})(features, labels)
    assert isinstance(parts, dict)
    assert list(parts) == ["ms", "tcm"]
    total = LabelBatchLoss(model, ms + regulariser)(features, labels)
    torch.testing.assert_close(parts["ms"] + parts["tcm"], total)


def test_a_label_column_may_come_as_one_column_matrix(model: SentenceTransformer) -> None:
    model.eval()
    loss = MultiSimilarityLoss(model)
    features, labels = batch(model)
    torch.testing.assert_close(loss(features, labels[:, None]), loss(features, labels))


def test_embeddings_computed_elsewhere(model: SentenceTransformer) -> None:
    loss = MultiSimilarityLoss(model)
    embeddings, labels = torch.randn(8, 16), torch.arange(8) % 3
    torch.testing.assert_close(
        loss.compute_loss_from_embeddings([embeddings], labels), loss.objective(embeddings, labels)
    )


@pytest.mark.parametrize("kind", [LabelBatchLoss, CachedLabelBatchLoss])
def test_refusals_at_the_first_batch(model: SentenceTransformer, kind: type) -> None:
    loss = kind(model, multi_similarity.MultiSimilarityLoss())
    features, labels = batch(model)
    with pytest.raises(ValueError, match=r"argument `sentence_features`: expected one text column .*, got 2$"):
        loss(features * 2, labels)
    with pytest.raises(ValueError, match=r"argument `labels`: expected a column `label`"):
        loss(features, None)
    with pytest.raises(ValueError, match=r"argument `labels`: expected integer labels"):
        loss(features, labels.float())
    with pytest.raises(ValueError, match=r"argument `labels`: expected 12 labels"):
        loss(features, labels[:-1])


# --- in the trainer ------------------------------------------------------------------------------------------------


def separation(model: SentenceTransformer) -> float:
    """Mean cosine within classes minus mean cosine between classes."""
    texts, labels = texts_and_labels(seed=9)
    x = torch.nn.functional.normalize(model.encode(texts, convert_to_tensor=True, show_progress_bar=False), dim=1)
    same = torch.tensor(labels)[:, None] == torch.tensor(labels)
    off = ~torch.eye(len(x), dtype=torch.bool)
    cosines = x @ x.T
    return float(cosines[same & off].mean() - cosines[~same].mean())


def test_training_saving_and_the_model_card(model: SentenceTransformer, tmp_path: Path) -> None:
    loss = MultiSimilarityLoss(model)
    before = separation(model)
    data = dataset()
    trainer = SentenceTransformerTrainer(
        model, training_arguments(tmp_path), train_dataset=data, eval_dataset=data, loss=loss
    )
    trainer.train()
    assert separation(model) > before + 0.1
    assert torch.isfinite(torch.tensor(trainer.evaluate()["eval_loss"]))

    model.save_pretrained(str(tmp_path / "model"))
    reloaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    texts, _ = texts_and_labels()
    torch.testing.assert_close(
        reloaded.encode(texts[:3], convert_to_tensor=True), model.encode(texts[:3], convert_to_tensor=True)
    )

    card = (tmp_path / "model" / "README.md").read_text()
    assert "#### MultiSimilarityLoss" in card
    assert loss.citation.strip() in card
    assert "1904.06627" in card
    assert "loss:MultiSimilarityLoss" in card
    shown = card.split("scorecraft.integrations.sentence_transformers.label_batches.MultiSimilarityLoss")[1]
    shown = json.loads(shown.split("```json")[1].split("```")[0])
    assert shown == loss.get_config_dict()
    assert shown["beta"] == 50.0


def test_components_are_logged_and_all_papers_cited(model: SentenceTransformer, tmp_path: Path) -> None:
    parts = {"ms": multi_similarity.MultiSimilarityLoss(), "tcm": 0.5 * tcm.ThresholdConsistentMarginLoss()}
    options = training_arguments(tmp_path, num_train_epochs=1)
    loss = LabelBatchLoss(model, parts)
    trainer = SentenceTransformerTrainer(model, options, train_dataset=dataset(), loss=loss)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "ms" in entry]
    assert logged
    for entry in logged:
        assert entry["loss"] == pytest.approx(entry["ms"] + entry["tcm"], abs=2e-4)
    model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "1904.06627" in card
    assert "2307.04047" in card


def test_static_embeddings_train_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    static = SentenceTransformer(modules=[StaticEmbedding(word_tokenizer(), embedding_dim=16)], device="cpu")
    before = separation(static)
    loss = MultiSimilarityLoss(static)
    options = training_arguments(tmp_path, learning_rate=0.2)
    SentenceTransformerTrainer(static, options, train_dataset=dataset(), loss=loss).train()
    assert separation(static) > before + 0.1
    with pytest.raises(ValueError, match=r"argument `model`: expected token inputs.*StaticEmbedding"):
        CachedLabelBatchLoss(static, multi_similarity.MultiSimilarityLoss())


def test_descriptions_of_every_loss_are_json(model: SentenceTransformer) -> None:
    total = multi_similarity.MultiSimilarityLoss() + 0.5 * tcm.ThresholdConsistentMarginLoss()
    for loss in (LabelBatchLoss(model, total), CachedLabelBatchLoss(model, total)):
        shown = loss.get_config_dict()
        json.dumps(shown)
        assert "beta=50.0" in shown["objective"]
        assert "\n" not in shown["objective"]
        assert loss.citation == citation(total)


# --- gradient caching ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunking", [{"mini_batch_size": 5}, {"mini_batch_num_tokens": 20}, {"mini_batch_size": 64}])
def test_cached_equals_uncached(double_model: SentenceTransformer, chunking: dict[str, int]) -> None:
    double_model.eval()
    features, labels = batch(double_model)
    objective = tiled(multi_similarity.MultiSimilarityLoss() + 0.5 * tcm.ThresholdConsistentMarginLoss())

    def run(loss: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        double_model.zero_grad()
        value = loss(copy.deepcopy(features), labels)
        (3 * value).backward()
        return value.detach(), gradients(double_model)

    value, plain = run(LabelBatchLoss(double_model, objective))
    cached_value, cached = run(CachedLabelBatchLoss(double_model, objective, **chunking))
    torch.testing.assert_close(cached_value, value)
    assert cached.keys() == plain.keys()
    assert max(gradient.abs().max() for gradient in plain.values()) > 1e-4
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_cached_replays_dropout(double_model: SentenceTransformer) -> None:
    """With dropout on, the gradient is that of the very embeddings the loss was taken on: one mini-batch proves it."""
    features, labels = batch(double_model)
    objective = multi_similarity.MultiSimilarityLoss()
    found = []
    for loss in (LabelBatchLoss(double_model, objective), CachedLabelBatchLoss(double_model, objective)):
        double_model.zero_grad()
        torch.manual_seed(7)
        loss(copy.deepcopy(features), labels).backward()
        found.append(gradients(double_model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_cached_without_gradient(model: SentenceTransformer) -> None:
    model.eval()
    features, labels = batch(model)
    objective = multi_similarity.MultiSimilarityLoss()
    with torch.no_grad():
        cached = CachedLabelBatchLoss(model, objective, mini_batch_size=5)(features, labels)
        torch.testing.assert_close(cached, LabelBatchLoss(model, objective)(features, labels))
    assert not cached.requires_grad


def test_cached_in_the_trainer_with_accumulation(model: SentenceTransformer, tmp_path: Path) -> None:
    before = separation(model)
    loss = CachedLabelBatchLoss(model, multi_similarity.MultiSimilarityLoss(), mini_batch_size=6)
    options = training_arguments(
        tmp_path, per_device_train_batch_size=12, gradient_accumulation_steps=2, num_train_epochs=8
    )
    SentenceTransformerTrainer(model, options, train_dataset=dataset(), loss=loss).train()
    assert separation(model) > before + 0.1


class LearnableMean(RowObjective):
    """Mean score of the negatives, times a learnable factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))

    def row_loss(self, tile: Tile) -> torch.Tensor:
        return self.factor * torch.where(torch.as_tensor(tile.negatives), tile.score, 0.0).mean(dim=1)


def test_learnable_objectives(model: SentenceTransformer) -> None:
    features, labels = batch(model)
    objective = LearnableMean()
    LabelBatchLoss(model, objective)(features, labels).backward()
    assert objective.factor.grad is not None
    with pytest.raises(ValueError, match=r"argument `objective`: expected no trainable parameters.*got factor$"):
        CachedLabelBatchLoss(model, objective)
    objective.requires_grad_(False)
    CachedLabelBatchLoss(model, objective)


# --- every objective of the library --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", objective_types())
def test_every_objective_trains_is_cited_and_saved(model: SentenceTransformer, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    objective = make_objective(name, classes=CLASSES, dimension=16)
    loss = LabelBatchLoss(model, objective)
    assert loss.get_config_dict()["objective"].startswith(type(objective).__name__)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options = training_arguments(tmp_path / "run", num_train_epochs=1)
    SentenceTransformerTrainer(model, options, train_dataset=dataset(), loss=loss).train()
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert all(paper.arxiv in card for paper in papers_of(objective))
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    texts = texts_and_labels()[0][:3]
    torch.testing.assert_close(again.encode(texts, convert_to_tensor=True), model.encode(texts, convert_to_tensor=True))


@pytest.mark.parametrize("name", objective_types())
def test_every_objective_without_parameters_can_be_cached(double_model: SentenceTransformer, name: str) -> None:
    double_model.eval()
    objective = make_objective(name, classes=CLASSES, dimension=16).double()
    if any(parameter.requires_grad for parameter in objective.parameters()):
        pytest.skip("caching carries no gradients to parameters of the loss")
    features, labels = batch(double_model)
    found = {}
    for way, loss in {
        "plain": LabelBatchLoss(double_model, objective),
        "cached": CachedLabelBatchLoss(double_model, copy.deepcopy(objective), mini_batch_size=5),
    }.items():
        double_model.zero_grad()
        value = loss(copy.deepcopy(features), labels)
        value.backward()
        found[way] = {"value": value.detach(), **gradients(double_model)}
    for key, expected in found["plain"].items():
        torch.testing.assert_close(found["cached"][key], expected, rtol=1e-6, atol=1e-9, msg=key)


# --- Matryoshka ----------------------------------------------------------------------------------------------------


def matryoshka_by_hand(
    model: SentenceTransformer, features: list[dict[str, Any]], labels: torch.Tensor
) -> torch.Tensor:
    embeddings = model(copy.deepcopy(features[0]))["sentence_embedding"]
    objective = multi_similarity.MultiSimilarityLoss()
    return sum((weight * objective(embeddings[:, :size], labels) for size, weight in ((16, 1.0), (6, 0.5))), start=0)


@pytest.mark.parametrize("cached", [False, True])
def test_matryoshka(double_model: SentenceTransformer, cached: bool) -> None:
    double_model.eval()
    features, labels = batch(double_model)
    expected = matryoshka_by_hand(double_model, features, labels)
    expected.backward()
    by_hand = gradients(double_model)
    double_model.zero_grad()
    objective = multi_similarity.MultiSimilarityLoss()
    inner: torch.nn.Module = LabelBatchLoss(double_model, objective)
    if cached:
        inner = CachedLabelBatchLoss(double_model, objective, mini_batch_size=5)
    loss = MatryoshkaLoss(double_model, inner, matryoshka_dims=[16, 6], matryoshka_weights=[1.0, 0.5])
    value = loss(features, labels)
    torch.testing.assert_close(value.detach(), expected.detach())
    value.backward()
    for name, gradient in by_hand.items():
        torch.testing.assert_close(gradients(double_model)[name], gradient, rtol=1e-7, atol=1e-10, msg=name)


def test_matryoshka_trains_and_cites_both(model: SentenceTransformer, tmp_path: Path) -> None:
    loss = MatryoshkaLoss(model, MultiSimilarityLoss(model), matryoshka_dims=[16, 8])
    options = training_arguments(tmp_path, num_train_epochs=1)
    SentenceTransformerTrainer(model, options, train_dataset=dataset(), loss=loss).train()
    model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "1904.06627" in card
    assert "2205.13147" in card


# --- several devices -----------------------------------------------------------------------------------------------


def encode_on_each_rank(rank: int, folder: str) -> None:
    model = SentenceTransformer(f"{folder}/model", device="cpu").double().eval()
    texts = Path(folder, "texts").read_text().split("\n")
    labels = torch.tensor([int(line) for line in Path(folder, "labels").read_text().split()])
    own = slice(0, 7) if rank == 0 else slice(7, None)
    objective = tiled(multi_similarity.MultiSimilarityLoss())
    losses = {
        "plain": LabelBatchLoss(model, objective, gather_across_devices=True),
        "cached": CachedLabelBatchLoss(model, objective, mini_batch_size=3, gather_across_devices=True),
    }
    found = {}
    for name, loss in losses.items():
        model.zero_grad()
        value = loss([model.preprocess(texts[own])], labels[own])
        value.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        for what, tensor in (("value", value.detach().clone()), ("gradient", gradient)):
            dist.all_reduce(tensor)
            found[f"{name} {what}"] = tensor / 2  # what DDP does to gradients
    if rank == 0:
        save_file(found, f"{folder}/found.safetensors")


def test_two_ranks_equal_one_process(double_model: SentenceTransformer, tmp_path: Path) -> None:
    double_model.eval()
    texts, labels = texts_and_labels()
    texts, labels = texts[::4], labels[::4]
    double_model.save_pretrained(str(tmp_path / "model"))
    (tmp_path / "texts").write_text("\n".join(texts))
    (tmp_path / "labels").write_text(" ".join(map(str, labels)))
    run_ranks(encode_on_each_rank, str(tmp_path))
    found = load_file(tmp_path / "found.safetensors")

    loss = LabelBatchLoss(double_model, multi_similarity.MultiSimilarityLoss(), gather_across_devices=True)
    value = loss([double_model.preprocess(texts)], torch.tensor(labels))
    value.backward()
    gradient = torch.cat([p.grad.flatten() for p in double_model.parameters() if p.grad is not None])
    for name in ("plain", "cached"):
        torch.testing.assert_close(found[f"{name} value"], value.detach())
        torch.testing.assert_close(found[f"{name} gradient"], gradient, rtol=1e-7, atol=1e-10)


# --- the door, and what is relied on in the host -------------------------------------------------------------------


def test_without_the_host_there_is_one_clear_line() -> None:
    code = """
        import sys
        sys.modules["sentence_transformers"] = None
        try:
            import scorecraft.integrations.sentence_transformers
        except ImportError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == 'sentence_transformers is not installed: pip install "scorecraft[text]"\n'


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_contract_with_sentence_transformers() -> None:
    """The signatures and attributes of the host that the losses rely on."""
    assert parameters(BatchAllTripletLoss.forward) == ["self", "sentence_features", "labels"]
    assert parameters(BatchAllTripletLoss.compute_loss_from_embeddings) == ["self", "embeddings", "labels"]
    assert parameters(embed_columns) == ["model", "features_list", "separate_first"]
    assert parameters(CachedLossMixin.calculate_loss) == ["self", "reps", "labels", "with_backward"]
    assert inspect.signature(CachedLossMixin.calculate_loss).parameters["with_backward"].kind.name == "KEYWORD_ONLY"
    assert parameters(CachedLossMixin.forward_cached) == ["self", "sentence_features", "labels"]
    assert {"model", "mini_batch_size", "mini_batch_num_tokens", "show_progress_bar", "uses_gradient_cache"} <= set(
        CachedLossMixin.__annotations__
    )
    assert parameters(has_static_embedding_input) == ["model"]
    assert BatchSamplers.GROUP_BY_LABEL.value == "group_by_label"


def test_contract_of_our_losses(model: SentenceTransformer) -> None:
    """What the host's trainer, Matryoshka loss and model card look for on a loss."""
    objective = multi_similarity.MultiSimilarityLoss()
    plain, cached = LabelBatchLoss(model, objective), CachedLabelBatchLoss(model, objective)
    assert not uses_gradient_cache(plain)
    assert uses_gradient_cache(cached)
    for loss in (plain, cached, MultiSimilarityLoss(model)):
        assert dict(loss.named_children())["model"] is model  # the trainer puts its wrapped model here
        assert parameters(loss.forward) == ["sentence_features", "labels"]
        assert isinstance(loss.citation, str)
        assert isinstance(loss.get_config_dict(), dict)
