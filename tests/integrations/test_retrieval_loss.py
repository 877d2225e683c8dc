"""sentence-transformers: queries against passages, with caching, Matryoshka, several devices, and false negatives."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.ranks import run_ranks

pytest.importorskip("sentence_transformers")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from tests.integrations.test_sentence_transformers import bert_folder, double_model, gradients, model
from tests.integrations.tiny_models import WORDS, training_arguments

from scorecraft.catalog.objectives import make_ranking_objective, ranking_objective_types
from scorecraft.core import Cosine, InfoNCELoss, ListNetLoss, Objective, Pairs, citation, in_batch
from scorecraft.integrations.sentence_transformers import (
    CachedRetrievalLoss,
    MannWhitneyLoss,
    RetrievalLoss,
    StarLoss,
)
from scorecraft.integrations.sentence_transformers.retrieval import token_hashes

__all__ = ["bert_folder", "double_model", "model"]  # fixtures
IN_BATCH = [name for name, kind in ranking_objective_types().items() if getattr(kind, "channels", 1) == 1]
assert {"info_nce", "mann_whitney", "star"} <= set(IN_BATCH)


def texts(count: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (count, 6), generator=generator)
    return [" ".join(WORDS[int(i)] for i in row[: 3 + place % 4]) for place, row in enumerate(picks)]


def columns(model: SentenceTransformer, rows: int = 8, negatives: int = 1) -> list[dict[str, Any]]:
    return [model.preprocess(texts(rows, seed)) for seed in range(2 + negatives)]


def test_info_nce_is_the_loss_of_the_host(model: SentenceTransformer) -> None:
    model.eval()
    for negatives in (0, 1, 2):
        batch = columns(model, negatives=negatives)
        expected = MultipleNegativesRankingLoss(model)(copy.deepcopy(batch), None)
        torch.testing.assert_close(RetrievalLoss(model, InfoNCELoss())(batch), expected, rtol=1e-5, atol=1e-6)


def test_repeated_passages_are_no_negatives(model: SentenceTransformer) -> None:
    model.eval()
    positives = texts(4, 1)
    positives[2] = positives[0]
    negatives = texts(4, 2)
    negatives[3] = positives[1] + ""  # padded to another length than in its own column
    negatives[0] = " ".join(WORDS[:8])
    batch = [model.preprocess(part) for part in (texts(4, 0), positives, negatives)]
    value = RetrievalLoss(model, InfoNCELoss())(batch)
    queries, *passages = (model(column)["sentence_embedding"] for column in batch)
    keep = torch.ones(4, 8, dtype=torch.bool)
    keep[0, 2] = keep[2, 0] = keep[1, 7] = False
    scores = 20 * torch.nn.functional.cosine_similarity(queries[:, None], torch.cat(passages)[None], dim=-1)
    relevance = torch.eye(4, 8)
    torch.testing.assert_close(value, InfoNCELoss()(scores, relevance, keep), rtol=1e-5, atol=1e-6)


def test_labels_say_which_rows_share_a_query(model: SentenceTransformer) -> None:
    model.eval()
    batch = columns(model, rows=4)
    value = RetrievalLoss(model, InfoNCELoss())(batch, torch.tensor([[3], [5], [3], [6]]))
    queries, *passages = (model(column)["sentence_embedding"] for column in batch)
    pairs = Pairs.of_queries(torch.arange(4), passages=torch.tensor([3, 5, 3, 6, -1, -2, -3, -4]))
    expected = in_batch(InfoNCELoss(), score=20 * Cosine())(queries, reference=torch.cat(passages), pairs=pairs)
    torch.testing.assert_close(value, expected)


def test_hashes_do_not_see_padding() -> None:
    tokens = torch.tensor([[5, 6, 7, 0], [0, 5, 6, 7], [5, 7, 6, 0], [5, 6, 7, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]])
    first, shifted, swapped, longer = token_hashes(tokens, mask).tolist()
    assert first == shifted
    assert len({first, swapped, longer}) == 3
    many = torch.randint(1000, (20000, 12), generator=torch.Generator().manual_seed(0)).unique(dim=0)
    assert token_hashes(many).unique().numel() == len(many)


@pytest.mark.parametrize("name", IN_BATCH)
@pytest.mark.parametrize("negatives", [0, 2])
def test_cached_equals_uncached(double_model: SentenceTransformer, name: str, negatives: int) -> None:
    double_model.eval()
    other = copy.deepcopy(double_model)
    objective = make_ranking_objective(name, score=20 * Cosine())
    batch = columns(double_model, negatives=negatives)
    plain = RetrievalLoss(double_model, objective)(copy.deepcopy(batch))
    cached = CachedRetrievalLoss(other, objective, mini_batch_size=3)(batch)
    plain.backward()
    cached.backward()
    torch.testing.assert_close(cached, plain)
    expected, found = gradients(double_model), gradients(other)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [MannWhitneyLoss, StarLoss])
def test_named_losses_are_described_and_cited(model: SentenceTransformer, kind: type[RetrievalLoss]) -> None:
    model.eval()
    loss = kind(model, scale=10.0)
    batch = columns(model)
    objective = loss.objective
    assert isinstance(objective, Objective)
    assert objective.score == 10 * Cosine()
    torch.testing.assert_close(loss(copy.deepcopy(batch)), RetrievalLoss(model, objective)(batch))
    assert json.loads(json.dumps(loss.get_config_dict()))["scale"] == 10.0
    assert loss.citation == citation(objective)
    assert RetrievalLoss(model, InfoNCELoss()).citation == ""


@pytest.mark.parametrize("cached", [False, True])
def test_matryoshka(double_model: SentenceTransformer, cached: bool) -> None:
    double_model.eval()
    kind = CachedRetrievalLoss if cached else RetrievalLoss
    batch = columns(double_model)
    expected = sum(
        in_batch(InfoNCELoss(), score=20 * Cosine())(
            queries[:, :size],
            reference=torch.cat(passages)[:, :size],
            pairs=Pairs.of_queries(torch.arange(8), passages=16),
        )
        for size in (16, 8)
        for queries, *passages in [[double_model(column)["sentence_embedding"] for column in copy.deepcopy(batch)]]
    )
    value = MatryoshkaLoss(double_model, kind(double_model, InfoNCELoss()), [16, 8])(batch, None)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert gradients(double_model)


@pytest.mark.parametrize("kind", [RetrievalLoss, CachedRetrievalLoss])
def test_refusals_at_the_first_batch(model: SentenceTransformer, kind: type) -> None:
    loss = kind(model, InfoNCELoss())
    with pytest.raises(ValueError, match=r"expected the columns query, positive\[, negatives \.\.\.\], got 1"):
        loss(columns(model, negatives=-1))
    with pytest.raises(ValueError, match="argument `labels`: expected one integer per row"):
        loss(columns(model), torch.rand(8))
    with pytest.raises(ValueError, match="argument `scale`"):
        kind(model, InfoNCELoss(), scale=0)


@pytest.mark.parametrize("cached", [False, True])
def test_training_and_saving(model: SentenceTransformer, tmp_path: Path, cached: bool) -> None:
    rows = {"query": texts(32, 0), "positive": texts(32, 0), "negative": texts(32, 2)}
    loss: Any = CachedRetrievalLoss(model, InfoNCELoss(), mini_batch_size=4)
    if not cached:
        loss = RetrievalLoss(model, {"infonce": InfoNCELoss(), "listnet": 0.1 * ListNetLoss()})
    options = training_arguments(tmp_path, num_train_epochs=2, batch_sampler=BatchSamplers.NO_DUPLICATES)
    trainer = SentenceTransformerTrainer(model, options, train_dataset=Dataset.from_dict(rows), loss=loss)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    if not cached:
        assert any("listnet" in entry for entry in trainer.state.log_history)
    model.save_pretrained(str(tmp_path / "model"))
    reloaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    expected = model.encode(rows["query"][:3], convert_to_tensor=True)
    torch.testing.assert_close(reloaded.encode(rows["query"][:3], convert_to_tensor=True), expected)
    assert "InfoNCELoss" in (tmp_path / "model" / "README.md").read_text()


def _on_ranks(rank: int, folder: str) -> None:
    whole = SentenceTransformer(modules=list(_tiny(folder)), device="cpu").double().eval()
    mine = copy.deepcopy(whole)
    rows = 8
    parts = [texts(rows, seed) for seed in range(3)]
    parts[1][5] = parts[1][0]  # the positive of a query on the other rank
    expected = RetrievalLoss(whole, InfoNCELoss())([whole.preprocess(part) for part in parts])
    expected.backward()
    own = slice(0, 3) if rank == 0 else slice(3, 8)
    loss = CachedRetrievalLoss(mine, InfoNCELoss(), mini_batch_size=2, gather_across_devices=True)
    value = loss([mine.preprocess(part[own]) for part in parts])
    value.backward()
    mean = value.detach().clone()
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / 2, expected.detach())
    for parameter, theirs in zip(mine.parameters(), whole.parameters(), strict=True):
        if theirs.grad is not None:
            average = parameter.grad.clone()
            dist.all_reduce(average)
            torch.testing.assert_close(average / 2, theirs.grad, rtol=1e-7, atol=1e-9)


def _tiny(folder: str) -> Any:
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    return Transformer(folder), Pooling(16)


def test_two_ranks_equal_one_process(bert_folder: Path) -> None:
    run_ranks(_on_ranks, str(bert_folder))
