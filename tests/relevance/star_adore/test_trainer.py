"""AdoreTrainer: one step against the definition, exact overlap and resumption, and that the documents stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scorecraft.core import PairwiseLogisticLoss
from scorecraft.relevance.star_adore import AdoreLoss, AdoreTrainer, RelevantDocuments, detached_copy
from scorecraft.relevance.vector_index import ExactIndex, Found

QUERIES, DOCUMENTS, DIMENSION = 22, 60, 4


@pytest.fixture
def world() -> tuple[Tensor, Tensor, RelevantDocuments]:
    """Queries near the last of their relevant documents, turned away by a fixed map."""
    generator = torch.Generator().manual_seed(0)
    documents = torch.randn(DOCUMENTS, DIMENSION, generator=generator)
    lists = [torch.randperm(DOCUMENTS, generator=generator)[: 1 + q % 2].tolist() for q in range(QUERIES)]
    turn = torch.randn(DIMENSION, DIMENSION, generator=generator)
    noise = 0.1 * torch.randn(QUERIES, DIMENSION, generator=generator)
    queries = documents[[relevant[-1] for relevant in lists]] @ turn + noise
    return queries, documents, RelevantDocuments(lists, documents=DOCUMENTS)


def encoder(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(DIMENSION, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, DIMENSION))


def trainer(world: tuple[Tensor, Tensor, RelevantDocuments], module: nn.Module | None = None, **options: Any):
    _, documents, relevant = world
    told = {"depth": 10, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 0} | options
    module = encoder() if module is None else module
    return AdoreTrainer(module, documents, ExactIndex(documents), relevant, **told)


def test_one_step_is_the_definition(world: tuple[Tensor, Tensor, RelevantDocuments]) -> None:
    queries, documents, relevant = world
    module = encoder()
    adore = trainer(world, module, max_norm=1e9, loss=AdoreLoss(metric_cut=5), score_scale=2.0)
    rows = torch.tensor([3, 0, 11])
    twin = detached_copy(module)
    losses, ranks, hits = [], [], []
    for row in rows.tolist():
        x = twin(queries[row])
        known = [document for document in relevant[torch.tensor([row])][0].tolist() if document >= 0]
        ids = (documents @ x).argsort(descending=True)[:10].tolist()
        places = [k for k, document in enumerate(ids, start=1) if document in known]
        ranks.append(1 / places[0] if places else 0.0)
        hits.append(float(bool(places)))
        ids = ids if places else ids + known
        labels = [document in known for document in ids]
        gains = [1 / k if k <= 5 else 0.0 for k in range(1, len(ids) + 1)]
        scores = 2 * documents[ids] @ x
        terms = [
            abs(gains[i] - gains[j]) * nn.functional.softplus(scores[j] - scores[i])
            for i in range(len(ids))
            for j in range(len(ids))
            if labels[i] and not labels[j]
        ]
        losses.append(torch.stack(terms).mean())
    expected = torch.stack(losses).mean()
    expected.backward()
    done = adore.step(queries[rows], rows)
    assert done.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert done.reciprocal_rank.item() == pytest.approx(sum(ranks) / 3)
    assert done.hit_rate.item() == pytest.approx(sum(hits) / 3)
    assert 0 < sum(hits) < 3  # both kinds of lists
    for mine, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_training_raises_the_ranks_and_leaves_the_documents(world: tuple[Tensor, Tensor, RelevantDocuments]) -> None:
    before = world[1].clone()
    told: list[tuple[int, int, str]] = []
    history = trainer(world).train(world[0], epochs=30, progress=lambda *args: told.append(args))
    assert len(history) == 30
    assert history[-1].reciprocal_rank > history[0].reciprocal_rank + 0.3
    assert history[-1].hit_rate > history[0].hit_rate
    assert history[-1].loss < history[0].loss
    assert torch.equal(world[1], before)
    assert told[0] == (1, 90, "steps")
    assert told[-1] == (90, 90, "steps")


class FrozenLayer(nn.Module):
    """Its parameter must never get a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = encoder()
        self.fixed = nn.Parameter(torch.ones(DIMENSION), requires_grad=False)

    def forward(self, queries: Tensor) -> Tensor:
        return self.inner(queries * self.fixed)


def test_frozen_parameters_stay(world: tuple[Tensor, Tensor, RelevantDocuments]) -> None:
    module = FrozenLayer()
    trainer(world, module).train(world[0], epochs=1)
    assert (module.fixed == 1).all()


def test_the_search_sees_the_embedding_whose_gradient_is_taken(
    world: tuple[Tensor, Tensor, RelevantDocuments],
) -> None:
    """With dropout on: what was searched with is what the encoder gave, detached, in float32."""
    queries, documents, relevant = world
    given: list[Tensor] = []
    searched: list[Tensor] = []

    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = encoder(0.5)

        def forward(self, batch: Tensor) -> Tensor:
            given.append(self.inner(batch))
            return given[-1]

    class Index(ExactIndex):
        def search(self, queries: Tensor, k: int) -> Found:
            searched.append(queries)
            return super().search(queries, k)

    adore = AdoreTrainer(Recording(), documents, Index(documents), relevant, depth=10)
    adore.step(queries[:8], torch.arange(8))
    assert torch.equal(searched[0], given[0])
    assert not searched[0].requires_grad
    with torch.no_grad():
        assert not torch.equal(adore.query_encoder.inner(queries[:8]), given[0])  # dropout is on


@pytest.mark.parametrize("parts", [2, 3, 100])
def test_parts_change_neither_value_nor_gradient(world: tuple[Tensor, Tensor, RelevantDocuments], parts: int) -> None:
    modules = [encoder(), encoder()]
    losses = []
    for module, number in zip(modules, (1, parts), strict=True):
        done = trainer(world, module, parts=number).step(world[0][:8], torch.arange(8))
        losses.append(done.loss)
    torch.testing.assert_close(losses[1], losses[0])
    for whole, cut in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(cut.grad, whole.grad)


def test_an_approximate_index_does_not_lend_its_scores(world: tuple[Tensor, Tensor, RelevantDocuments]) -> None:
    class Rough(ExactIndex):
        def search(self, queries: Tensor, k: int) -> Found:
            found = super().search(queries, k)
            return Found(found.scores * 0 + 7, found.ids)

    queries, documents, relevant = world
    exact = trainer(world).step(queries[:5], torch.arange(5)).loss
    rough = AdoreTrainer(encoder(), documents, Rough(documents), relevant, depth=10).step(queries[:5], torch.arange(5))
    torch.testing.assert_close(rough.loss, exact)


def test_ids_that_an_index_lacks_are_dropped(world: tuple[Tensor, Tensor, RelevantDocuments]) -> None:
    class Gappy(ExactIndex):
        def search(self, queries: Tensor, k: int) -> Found:
            scores, ids = super().search(queries, k // 2)
            missing = torch.full_like(ids, -1)
            return Found(torch.cat([scores, scores], dim=1), torch.cat([ids, missing], dim=1))

    queries, documents, relevant = world
    half = trainer(world, depth=5).step(queries[:6], torch.arange(6)).loss
    gappy = AdoreTrainer(encoder(), documents, Gappy(documents), relevant, depth=10).step(queries[:6], torch.arange(6))
    torch.testing.assert_close(gappy.loss, half)


def test_memory_maps_and_texts(world: tuple[Tensor, Tensor, RelevantDocuments], tmp_path: Path) -> None:
    queries, documents, relevant = world
    np.save(tmp_path / "vectors.npy", documents.numpy())
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r", allow_pickle=False)

    class OfNumbers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = encoder()

        def forward(self, texts: list[str]) -> Tensor:
            return self.inner(queries[[int(text) for text in texts]])

    module, plain = OfNumbers(), encoder()
    texts = [str(number) for number in range(QUERIES)]
    told = {"depth": 10, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 0}
    first = AdoreTrainer(module, mapped, ExactIndex(mapped), relevant, **told).train(texts, epochs=2)
    assert first == trainer(world, plain).train(queries, epochs=2)
    assert torch.equal(module.inner[0].weight, plain[0].weight)


def test_other_losses_and_metrics(world: tuple[Tensor, Tensor, RelevantDocuments]) -> None:
    for loss in (PairwiseLogisticLoss(), AdoreLoss(metric="ndcg", metric_cut=10), AdoreLoss(metric="ndcg")):
        for add_missing in ("if_none", "always"):
            done = trainer(world, loss=loss, add_missing=add_missing).step(world[0][:8], torch.arange(8))
            assert done.loss.isfinite()
            assert done.loss > 0


def test_short_last_batch_counts_by_its_queries(world: tuple[Tensor, Tensor, RelevantDocuments]) -> None:
    """One epoch without learning: the mean over an epoch is the mean over its queries, however it is cut."""
    tiny = {"learning_rate": 1e-30, "weight_decay": 0.0}
    (uneven,) = trainer(world, **tiny, batch_size=8).train(world[0], epochs=1)
    (whole,) = trainer(world, **tiny, batch_size=QUERIES).train(world[0], epochs=1)
    assert uneven == pytest.approx(whole, rel=1e-5)


def test_schedule(world: tuple[Tensor, Tensor, RelevantDocuments]) -> None:
    def rates(**options: Any) -> list[float]:
        adore, seen = trainer(world, learning_rate=1.0, **options), []
        for step in range(6):
            adore._set_learning_rate(step, 6)
            seen.append(adore.optimizer.param_groups[0]["lr"])
        return seen

    assert rates(warmup_steps=2) == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert rates(warmup_steps=2, schedule="constant") == pytest.approx([0.5, 1, 1, 1, 1, 1])
    assert rates() == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


# --- interrupted and continued ---------------------------------------------------------------------------------------


def interrupted_after(steps: int):
    def progress(done: int, total: int, what: str) -> None:
        if done == steps:
            raise KeyboardInterrupt

    return progress


# States are written after steps 2, 3 (the end of an epoch), 4, 6, 8 and 9, each after its step was reported.
@pytest.mark.parametrize("steps, kept", [(1, 0), (2, 0), (3, 2), (4, 3), (6, 4), (8, 6)])
def test_training_goes_on_to_the_last_bit(
    world: tuple[Tensor, Tensor, RelevantDocuments], tmp_path: Path, steps: int, kept: int
) -> None:
    def run(module: nn.Module, progress: Any = None, **options: Any) -> Any:
        torch.manual_seed(5)  # of dropout
        return trainer(world, module, save_every=2, **options).train(world[0], epochs=3, progress=progress)

    whole = encoder(0.3)
    expected = run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(encoder(0.3), interrupted_after(steps), folder=tmp_path)
    continued, seen = encoder(0.3), []
    found = run(continued, lambda done, total, what: seen.append(done), folder=tmp_path)
    assert seen == list(range(kept + 1, 10))
    assert found == expected
    for mine, theirs in zip(continued.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_finished_training_is_read_back(world: tuple[Tensor, Tensor, RelevantDocuments], tmp_path: Path) -> None:
    module = encoder()
    expected = trainer(world, module, folder=tmp_path).train(world[0], epochs=2)
    again, seen = encoder(), []
    found = trainer(world, again, folder=tmp_path).train(world[0], epochs=2, progress=lambda *told: seen.append(told))
    assert found == expected
    assert seen == []
    assert torch.equal(again[0].weight, module[0].weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-6.safetensors", "training.json"]
    assert json.loads((tmp_path / "training.json").read_text())["step"] == 6


def test_a_state_of_another_training_is_refused(
    world: tuple[Tensor, Tensor, RelevantDocuments], tmp_path: Path
) -> None:
    queries, documents, relevant = world
    trainer(world, folder=tmp_path).train(queries, epochs=1)
    with pytest.raises(ValueError, match="argument `folder`: expected a state with the same depth, or an empty folder"):
        trainer(world, folder=tmp_path, depth=9).train(queries, epochs=1)
    with pytest.raises(ValueError, match="with the same epochs"):
        trainer(world, folder=tmp_path).train(queries, epochs=2)
    with pytest.raises(ValueError, match="with the same loss"):
        trainer(world, folder=tmp_path, loss=AdoreLoss(metric_cut=3)).train(queries, epochs=1)
    other = encoder()
    with torch.no_grad():
        other[0].bias.add_(1)
    with pytest.raises(ValueError, match="with the same encoder"):
        trainer(world, other, folder=tmp_path).train(queries, epochs=1)
    moved = (queries, documents + 1, relevant)
    with pytest.raises(ValueError, match="with the same documents"):
        trainer(moved, folder=tmp_path).train(queries, epochs=1)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused(world: tuple[Tensor, Tensor, RelevantDocuments]) -> None:
    queries, documents, relevant = world
    with pytest.raises(ValueError, match=r"argument `index`: expected an index of vectors \(60, 4\), as documents"):
        AdoreTrainer(encoder(), documents, ExactIndex(documents[:, :3]), relevant)
    with pytest.raises(ValueError, match="argument `index`"):
        AdoreTrainer(encoder(), documents, ExactIndex(documents[:50]), relevant)
    with pytest.raises(ValueError, match="argument `relevant`: expected numbers of 60 documents, got of 61"):
        AdoreTrainer(encoder(), documents, ExactIndex(documents), RelevantDocuments([[0]], documents=61))
    with pytest.raises(ValueError, match="argument `documents`: expected floating-point vectors"):
        AdoreTrainer(encoder(), documents.long(), ExactIndex(documents), relevant)
    with pytest.raises(
        ValueError, match="argument `queries`: expected 22 queries, as many as `relevant` knows, got 21"
    ):
        trainer(world).train(queries[1:])
    with pytest.raises(ValueError, match=r"argument `query_encoder`: expected a module that gives embeddings \[b, 4\]"):
        trainer(world, nn.Linear(DIMENSION, 5)).step(queries[:2], torch.arange(2))
    with pytest.raises(
        ValueError, match="argument `query_encoder`: expected a module with trainable parameters, got Id"
    ):
        trainer(world, nn.Identity())
    for option, value in {"depth": 0, "max_norm": 0.0, "score_scale": -1.0, "schedule": "cosine", "parts": 0}.items():
        with pytest.raises(ValueError, match=f"argument `{option}`: expected "):
            trainer(world, **{option: value})
