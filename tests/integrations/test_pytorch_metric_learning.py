"""pytorch-metric-learning: our objectives under its miners, reducers, memory and wrappers; its losses as ours."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tests.ranks import run_ranks
from torch import Tensor

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from pytorch_metric_learning.utils import distributed, loss_and_miner_utils

from scorecraft.catalog.objectives import make_objective, objective_types
from scorecraft.core import Cosine, Dot, NegativeDistance, NegativeSquaredDistance, Objective, Pairs, citation, tiled
from scorecraft.integrations.pytorch_metric_learning import (
    CrossBatchMemory,
    MetricLearningLoss,
    MultiSimilarityLoss,
    MultiSimilarityMiner,
    ThresholdConsistentMarginLoss,
    UNPGLoss,
    from_metric_learning,
    logits_head,
)
from scorecraft.similarity import multi_similarity, tcm, unpg
from scorecraft.similarity.unpg.heads import CosFaceHead, LogitHead

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "multi_similarity": multi_similarity.MultiSimilarityLoss,
    "tcm": tcm.ThresholdConsistentMarginLoss,
    "sum": lambda: multi_similarity.MultiSimilarityLoss() + 0.5 * tcm.ThresholdConsistentMarginLoss(),
}
each_objective = pytest.mark.parametrize("build", OBJECTIVES.values(), ids=OBJECTIVES)


def batch(n: int = 24, classes: int = 5, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(n, generator=generator) % classes
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    x = centres[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), labels


def value_and_gradient(
    call: Callable[..., Tensor], *arguments: Any, of: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    value = call(*arguments, **options)
    (gradient,) = torch.autograd.grad(value, of)
    return value.detach(), gradient


def assert_same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one[1], other[1], rtol=1e-8, atol=1e-12)


# --- the adapter ---------------------------------------------------------------------------------------------------


@each_objective
@pytest.mark.parametrize("wrap", [lambda objective: objective, tiled], ids=["dense", "tiled"])
def test_calls_of_the_host(build: Callable[[], Objective], wrap: Callable[[Objective], Objective]) -> None:
    objective = build()
    loss = MetricLearningLoss(wrap(objective))
    x, y = batch()
    reference, reference_y = batch(n=17, seed=1)
    alone = value_and_gradient(objective, x, y, of=x)
    assert_same(value_and_gradient(loss, x, y, of=x), alone)
    assert_same(value_and_gradient(loss, x, y, None, x, y, of=x), alone)

    against = {"reference": reference, "reference_labels": reference_y}
    for side in (x, reference):
        expected = value_and_gradient(objective, x, y, of=side, **against)
        assert_same(value_and_gradient(loss, x, y, None, reference, reference_y, of=side), expected)


@each_objective
def test_all_pairs_of_the_host_are_all_pairs(build: Callable[[], Objective]) -> None:
    objective = build()
    loss = MetricLearningLoss(objective)
    x, y = batch()
    reference, reference_y = batch(n=17, seed=1)
    pairs = loss_and_miner_utils.get_all_pairs_indices(y)
    triplets = loss_and_miner_utils.get_all_triplets_indices(y)
    expected = value_and_gradient(objective, x, y, of=x)
    for indices in (pairs, triplets, list(pairs)):
        assert_same(value_and_gradient(loss, x, y, indices, of=x), expected)
    assert_same(value_and_gradient(loss, x, None, pairs, of=x), expected)

    between = loss_and_miner_utils.get_all_pairs_indices(y, reference_y)
    expected = value_and_gradient(objective, x, y, reference=reference, reference_labels=reference_y, of=x)
    assert_same(value_and_gradient(loss, x, y, between, reference, reference_y, of=x), expected)
    assert_same(value_and_gradient(loss, x, None, between, reference, of=x), expected)


MINERS: dict[str, Callable[[], miners.BaseMiner]] = {
    "pairs": lambda: miners.PairMarginMiner(pos_margin=0.3, neg_margin=0.9),
    "batch hard": miners.BatchHardMiner,
    "triplets": lambda: miners.TripletMarginMiner(margin=0.2),
    "host multi-similarity": miners.MultiSimilarityMiner,
    "ours": MultiSimilarityMiner,
}


@each_objective
@pytest.mark.parametrize("miner", MINERS.values(), ids=MINERS)
@pytest.mark.parametrize("against_reference", [False, True], ids=["itself", "reference"])
def test_miners_restrict_the_pairs(
    build: Callable[[], Objective], miner: Callable[[], miners.BaseMiner], against_reference: bool
) -> None:
    x, y = batch()
    reference, reference_y = batch(n=17, seed=1) if against_reference else (None, None)
    indices = miner()(x, y, reference, reference_y)
    a1, p, a2, n = loss_and_miner_utils.convert_to_pairs(indices, y, reference_y)
    shape = (len(x), len(x) if reference is None else len(reference))
    positives, negatives = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for anchor, other in zip(a1.tolist(), p.tolist(), strict=True):
        positives[anchor, other] = True
    for anchor, other in zip(a2.tolist(), n.tolist(), strict=True):
        negatives[anchor, other] = True
    pairs = Pairs.from_masks(positives, negatives)

    objective = build()
    expected = value_and_gradient(objective, x, pairs=pairs, reference=reference, of=x)
    for ours in (objective, tiled(objective, block=7)):
        loss = MetricLearningLoss(ours)
        assert_same(value_and_gradient(loss, x, y, indices, reference, reference_y, of=x), expected)


@each_objective
def test_a_miner_that_finds_nothing(build: Callable[[], Objective]) -> None:
    x, y = batch()
    nothing = torch.empty(0, dtype=torch.int64)
    for indices in ((nothing,) * 4, (nothing,) * 3):
        value = MetricLearningLoss(build())(x, y, indices)
        value.backward()
        assert value.item() == 0
        assert x.grad is not None
        assert not x.grad.any()


@each_objective
def test_classes_without_pairs(build: Callable[[], Objective]) -> None:
    x, _ = batch()
    for y in (torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64)):
        value = MetricLearningLoss(build())(x, y)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(x.grad).all()


def test_half_precision() -> None:
    x, y = batch()
    half = x.detach().half().requires_grad_()
    loss = MultiSimilarityLoss()
    value = loss(half, y, MultiSimilarityMiner()(half, y))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(half.grad).all()
    torch.testing.assert_close(value.double(), loss(x, y).detach(), rtol=0.02, atol=1e-3)


def test_refusals() -> None:
    x, y = batch()
    loss = MetricLearningLoss(multi_similarity.MultiSimilarityLoss())
    one = torch.tensor([0])
    with pytest.raises(ValueError, match=r"argument `indices_tuple`: expected triplets \(a, p, n\) or pairs"):
        loss(x, y, (one, one))
    with pytest.raises(ValueError, match=r"argument `indices_tuple`: expected rows below 24 and columns below 24"):
        loss(x, y, (one, torch.tensor([24]), one, one))
    with pytest.raises(ValueError, match=r"argument `indices_tuple`: expected pairs that are positive or negative"):
        loss(x, y, (one, torch.tensor([3]), one, torch.tensor([3])))
    with pytest.raises(ValueError, match=r"argument `labels`: expected labels or pairs"):
        loss(x)
    with pytest.raises(ValueError, match=r"argument `embeddings`: expected finite values only"):
        loss(torch.full_like(x, torch.nan), y)
    with pytest.raises(
        TypeError, match=r"argument `objective`: expected a scorecraft objective, got TripletMarginLoss"
    ):
        MetricLearningLoss(losses.TripletMarginLoss())
    with pytest.raises(ValueError, match="Number of embeddings must equal number of labels"):
        loss(x, y[:-1])


def test_the_host_knows_the_score() -> None:
    for score, distance, inverted in (
        (Cosine(), distances.CosineSimilarity, True),
        (Dot(), distances.DotProductSimilarity, True),
        (NegativeDistance(), distances.LpDistance, False),
        (NegativeSquaredDistance(), distances.LpDistance, False),
    ):
        loss = MetricLearningLoss(multi_similarity.MultiSimilarityLoss(score=score))
        assert type(loss.distance) is distance
        assert loss.distance.is_inverted is inverted
        x = torch.randn(4, 3)
        matrix = loss.distance(x)
        prepared = score.prepare(x)
        torch.testing.assert_close(
            matrix if inverted else -matrix, score.scores(prepared, prepared)[0], atol=2e-3, rtol=0
        )


# --- replacements of the host's classes ----------------------------------------------------------------------------


def test_multi_similarity_without_mining_is_the_hosts() -> None:
    x, y = batch()
    y[0] = 77  # an anchor without positives, which the host counts and the authors' code leaves out
    for arguments in ((), (3.0, 30.0, 0.7)):
        ours = MultiSimilarityLoss(*arguments, mining=False, skip_one_sided=False)
        host = losses.MultiSimilarityLoss(*arguments)
        assert_same(value_and_gradient(ours, x, y, of=x), value_and_gradient(host, x, y, of=x))
        reference, reference_y = batch(n=30, seed=1)
        call = (x, y, None, reference, reference_y)
        assert_same(value_and_gradient(ours, *call, of=reference), value_and_gradient(host, *call, of=reference))
        assert MultiSimilarityLoss(*arguments, mining=False)(x, y) < host(x, y)


def test_three_ways_to_mine_are_one() -> None:
    for seed in range(5):
        x, y = batch(seed=seed)
        miner = MultiSimilarityMiner(epsilon=0.05)
        paper = value_and_gradient(MultiSimilarityLoss(epsilon=0.05), x, y, of=x)
        without = MultiSimilarityLoss(mining=False)
        assert_same(value_and_gradient(without, x, y, miner(x, y), of=x), paper)
        assert_same(value_and_gradient(MultiSimilarityLoss(epsilon=0.05), x, y, miner(x, y), of=x), paper)
        assert not torch.equal(value_and_gradient(without, x, y, of=x)[0], paper[0])


def test_tcm_is_the_hosts_and_respects_a_reference() -> None:
    x, y = batch()
    for arguments in ((), (2.0, 0.5, 0.7, 0.25)):
        ours, host = ThresholdConsistentMarginLoss(*arguments), losses.ThresholdConsistentMarginLoss(*arguments)
        assert_same(value_and_gradient(ours, x, y, of=x), value_and_gradient(host, x, y, of=x))
        mined = miners.PairMarginMiner(0.3, 0.9)(x, y)
        assert_same(value_and_gradient(ours, x, y, mined, of=x), value_and_gradient(host, x, y, mined, of=x))
        reference, reference_y = batch(n=17, seed=1)
        joint = torch.cat([x, reference])
        a1, p, a2, n = loss_and_miner_utils.get_all_pairs_indices(y, reference_y)
        by_hand = host(joint, None, (a1, p + len(x), a2, n + len(x)))
        torch.testing.assert_close(ours(x, y, ref_emb=reference, ref_labels=reference_y), by_hand)


def test_replacements_are_recorded_and_composed_like_the_hosts() -> None:
    x, y = batch()
    ms, margin = MultiSimilarityLoss(alpha=3.0), ThresholdConsistentMarginLoss()
    assert (ms.alpha, ms.beta, ms.base, ms.epsilon) == (3, 50, 0.5, 0.1)
    assert set(ms._record_these) >= {"alpha", "beta", "base", "epsilon"}
    together = losses.MultipleLosses([ms, margin], miners=[MultiSimilarityMiner(), None], weights=[1, 0.5])
    expected = multi_similarity.MultiSimilarityLoss(alpha=3.0) + 0.5 * tcm.ThresholdConsistentMarginLoss()
    assert_same(value_and_gradient(together, x, y, of=x), value_and_gradient(expected, x, y, of=x))
    assert "1904.06627" in citation(ms)
    assert "2307.04047" in citation(margin)


def test_reducers_and_regularisers() -> None:
    x, y = batch()
    rows = multi_similarity.MultiSimilarityLoss(reduction="none")(x, y)
    assert (rows == 0).any(), "an anchor without loss, or the reducers would agree"
    for reducer, expected in (
        (reducers.MeanReducer(), rows.mean()),
        (reducers.SumReducer(), rows.sum()),
        (reducers.AvgNonZeroReducer(), rows[rows > 0].mean()),
        (reducers.ThresholdReducer(low=0.3), rows[rows > 0.3].mean()),
    ):
        torch.testing.assert_close(MultiSimilarityLoss(reducer=reducer)(x, y), expected)
    torch.testing.assert_close(MultiSimilarityLoss()(x, y), rows.mean())
    nothing = MultiSimilarityLoss(reducer=reducers.DoNothingReducer())(x, y)
    torch.testing.assert_close(nothing["loss"]["losses"], rows)
    assert nothing["loss"]["reduction_type"] == "element"

    regularised = MultiSimilarityLoss(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.1)
    torch.testing.assert_close(regularised(x, y), rows.mean() + 0.1 * x.norm(dim=1).mean())
    with pytest.raises(ValueError, match=r"argument `reducer`: .* got reduction='mean'$"):
        MetricLearningLoss(multi_similarity.MultiSimilarityLoss(), reducer=reducers.AvgNonZeroReducer())


# --- the miner -----------------------------------------------------------------------------------------------------


def as_set(indices: tuple[Tensor, ...]) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    a1, p, a2, n = (part.tolist() for part in indices)
    assert len(set(zip(a1, p, strict=True))) == len(a1)
    assert len(set(zip(a2, n, strict=True))) == len(a2)
    return set(zip(a1, p, strict=True)), set(zip(a2, n, strict=True))


DISTANCES: dict[str, Callable[[], distances.BaseDistance]] = {
    "cosine": distances.CosineSimilarity,
    "dot": lambda: distances.DotProductSimilarity(normalize_embeddings=False),
    "euclidean": distances.LpDistance,
}


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_miner_finds_the_pairs_of_the_hosts(distance: Callable[[], distances.BaseDistance]) -> None:
    for seed in range(4):
        x, y = batch(seed=seed)
        reference, reference_y = batch(n=17, seed=10 + seed)
        for epsilon in (0.1, 0.0, -0.05):
            ours = MultiSimilarityMiner(epsilon, distance=distance())
            host = miners.MultiSimilarityMiner(epsilon, distance=distance())
            assert as_set(ours(x, y)) == as_set(host(x, y))
            assert as_set(ours(x, y, reference, reference_y)) == as_set(host(x, y, reference, reference_y))


def test_miner_edge_cases() -> None:
    x, y = batch()
    miner = MultiSimilarityMiner(collect_stats=True)
    for labels in (torch.zeros_like(y), torch.arange(len(y))):
        assert [len(part) for part in miner(x, labels)] == [0, 0, 0, 0]
    kept = miner(x.detach().half(), y)
    assert miner.num_pos_pairs == len(kept[0]) > 0
    assert miner.num_neg_pairs == len(kept[2]) > 0
    assert miner.epsilon == 0.1
    assert all(part.dtype == torch.int64 for part in kept)
    copies = torch.ones(4, 3)
    positives, _ = as_set(miner(copies, torch.tensor([0, 0, 1, 1])))
    assert positives == {(0, 1), (1, 0), (2, 3), (3, 2)}, "equal embeddings are no self pairs"


# --- memory --------------------------------------------------------------------------------------------------------

MEMORY_LOSSES: dict[str, Callable[[], losses.BaseMetricLossFunction]] = {
    "multi_similarity": MultiSimilarityLoss,
    "tcm": ThresholdConsistentMarginLoss,
    "sum": lambda: MetricLearningLoss(OBJECTIVES["sum"]()),
    "tiled sum": lambda: MetricLearningLoss(tiled(OBJECTIVES["sum"](), block=8)),
}


@pytest.mark.parametrize("build", MEMORY_LOSSES.values(), ids=MEMORY_LOSSES)
@pytest.mark.parametrize("mined", [False, True], ids=["all pairs", "mined"])
def test_cross_batch_memory(build: Callable[[], losses.BaseMetricLossFunction], mined: bool) -> None:
    """Against a memory kept by hand; 10 does not divide 25, so batches wrap around its end."""
    miner = miners.PairMarginMiner(0.3, 0.9) if mined else None
    loss = build()
    memory = CrossBatchMemory(loss, embedding_size=6, memory_size=25, miner=miner)
    kept_x, kept_y = torch.zeros(25, 6, dtype=torch.float64), torch.zeros(25, dtype=torch.int64)
    for step in range(6):
        x, y = batch(n=10, seed=step)
        slots = torch.arange(10 * step, 10 * step + 10) % 25
        kept_x[slots], kept_y[slots] = x.detach(), y
        filled = min(25, 10 * step + 10)
        past_x, past_y = kept_x[:filled], kept_y[:filled]
        positives = y[:, None] == past_y
        negatives = ~positives
        if miner is not None:
            a1, p, a2, n = miner(x, y, past_x, past_y)
            positives, negatives = torch.zeros_like(positives), torch.zeros_like(negatives)
            positives[a1, p] = negatives[a2, n] = True
        positives[torch.arange(10), slots] = False
        pairs = Pairs.from_masks(positives, negatives)
        expected = value_and_gradient(loss.objective, x, pairs=pairs, reference=past_x, of=x)
        assert_same(value_and_gradient(memory, x, y, of=x), expected)


def test_cross_batch_memory_as_the_hosts() -> None:
    replacement = MultiSimilarityLoss(mining=False, skip_one_sided=False)
    ours = CrossBatchMemory(replacement, 6, memory_size=30)
    hosts_with_ours = losses.CrossBatchMemory(replacement, 6, memory_size=30)
    host = losses.CrossBatchMemory(losses.MultiSimilarityLoss(), 6, memory_size=30)
    for step in range(5):
        x, y = batch(n=12, seed=step)
        expected = value_and_gradient(host, x, y, of=x)
        assert_same(value_and_gradient(hosts_with_ours, x, y, of=x), expected)
        assert_same(value_and_gradient(ours, x, y, of=x), expected)
    extra = miners.BatchHardMiner()(x, y)
    assert_same(value_and_gradient(ours, x, y, extra, of=x), value_and_gradient(host, x, y, extra, of=x))
    mask = torch.arange(12) < 5
    expected = value_and_gradient(host, x, y, enqueue_mask=mask, of=x)
    assert_same(value_and_gradient(ours, x, y, enqueue_mask=mask, of=x), expected)


def test_cross_batch_memory_with_a_batch_of_one() -> None:
    memory = CrossBatchMemory(MetricLearningLoss(multi_similarity.MultiSimilarityLoss()), 6, memory_size=8)
    x, y = batch(n=1)
    assert memory(x, y).item() == 0, "the only pair in the memory is the anchor with itself"


def test_cross_batch_memory_admits_what_it_can_serve() -> None:
    class Mine(MetricLearningLoss):
        pass

    CrossBatchMemory(Mine(multi_similarity.MultiSimilarityLoss()), 6)
    CrossBatchMemory(losses.ContrastiveLoss(), 6)
    with pytest.raises(Exception, match="not supported for ArcFaceLoss"):
        CrossBatchMemory(losses.ArcFaceLoss(3, 6), 6)


@pytest.mark.parametrize("name", objective_types())
def test_every_objective_is_a_loss_of_the_host(name: str) -> None:
    x, y = batch()
    objective = make_objective(name, classes=int(y.max()) + 1, dimension=x.shape[1]).double()
    loss = MetricLearningLoss(copy.deepcopy(objective))
    assert_same(value_and_gradient(loss, x, y, of=x), value_and_gradient(objective, x, y, of=x))
    assert citation(loss) == citation(objective)


# --- several processes ---------------------------------------------------------------------------------------------


def wrap_on_each_rank(rank: int, folder: str) -> None:
    data = load_file(f"{folder}/data.safetensors")
    own = slice(12 * rank, 12 * rank + 12)
    y, reference, reference_y = data["y"][own], data["reference"][own], data["reference_y"][own]
    ms = MultiSimilarityLoss
    found = {}

    def record(name: str, loss: Callable[..., Tensor], *call: Any) -> None:
        x = data["x"][own].clone().requires_grad_()
        value = loss(x, y, *call)
        value.backward()
        gradients = [torch.empty_like(x.grad) for _ in range(2)]
        dist.all_gather(gradients, x.grad)
        found[name + " gradient"] = torch.cat(gradients) / 2  # what DDP does
        value = value.detach().clone()
        dist.all_reduce(value)
        found[name + " value"] = value / 2

    record("multi_similarity", distributed.DistributedLossWrapper(ms()))
    record("tiled sum", distributed.DistributedLossWrapper(MetricLearningLoss(tiled(OBJECTIVES["sum"](), block=8))))
    record("reference", distributed.DistributedLossWrapper(ms()), None, reference, reference_y)
    record("efficient", distributed.DistributedLossWrapper(ms(), efficient=True))
    mined = distributed.DistributedMinerWrapper(MultiSimilarityMiner())(data["x"][own], y)
    record("mined", distributed.DistributedLossWrapper(ms(mining=False)), mined)
    memory = CrossBatchMemory(MetricLearningLoss(OBJECTIVES["sum"]()), 6, memory_size=64)
    record("memory", distributed.DistributedLossWrapper(memory))
    if rank == 0:
        save_file(found, f"{folder}/found.safetensors")


def test_distributed_wrappers_of_the_host(tmp_path: Path) -> None:
    """The wrapper returns the world size times the global loss, so that DDP's average is the global gradient."""
    x, y = batch()
    reference, reference_y = batch(seed=1)
    data = {"x": x.detach(), "y": y, "reference": reference.detach(), "reference_y": reference_y}
    save_file(data, tmp_path / "data.safetensors")
    run_ranks(wrap_on_each_rank, str(tmp_path))
    found = load_file(tmp_path / "found.safetensors")

    ms, total = MultiSimilarityLoss(), MetricLearningLoss(OBJECTIVES["sum"]())
    memory = CrossBatchMemory(total, 6, memory_size=64)
    for name, loss, call in (
        ("multi_similarity", ms, ()),
        ("tiled sum", total, ()),
        ("reference", ms, (None, reference, reference_y)),
        ("mined", ms, ()),
        ("memory", memory, ()),
    ):
        value, gradient = value_and_gradient(loss, x, y, *call, of=x)
        torch.testing.assert_close(found[f"{name} value"], 2 * value, msg=name)
        torch.testing.assert_close(found[f"{name} gradient"], gradient, rtol=1e-8, atol=1e-12, msg=name)
    # The efficient form scores each rank's own rows, and loses the gradient that other ranks' rows would send.
    torch.testing.assert_close(found["efficient value"], 2 * ms(x, y).detach())
    indices = torch.arange(len(x))
    for own in (slice(0, 12), slice(12, 24)):
        mine = x.detach()[own].requires_grad_()
        everyone = x.detach().clone()
        everyone[own] = mine
        anchors = {"labels": y[own], "ids": indices[own]}
        loss = ms.objective(mine, **anchors, reference=everyone, reference_labels=y, reference_ids=indices)
        (gradient,) = torch.autograd.grad(loss, mine)
        torch.testing.assert_close(found["efficient gradient"][own], gradient, rtol=1e-8, atol=1e-12)


# --- the host's losses as ours -------------------------------------------------------------------------------------


def test_host_losses_called_like_ours() -> None:
    x, y = batch()
    reference, reference_y = batch(n=17, seed=1)
    host, miner = losses.TripletMarginLoss(margin=0.2), miners.TripletMarginMiner(margin=0.2)
    peer = from_metric_learning(host, miner)
    assert_same(value_and_gradient(peer, x, y, of=x), value_and_gradient(host, x, y, miner(x, y), of=x))
    expected = host(x, y, miner(x, y, reference, reference_y), reference, reference_y)
    torch.testing.assert_close(peer(x, y, reference=reference, reference_labels=reference_y), expected)
    plain = from_metric_learning(host)
    torch.testing.assert_close(plain(x, y), host(x, y))
    torch.testing.assert_close(
        plain(x, y, reference=reference, reference_labels=reference_y), host(x, y, None, reference, reference_y)
    )


def test_host_losses_add_to_ours_and_keep_their_parameters() -> None:
    x, y = batch()
    torch.manual_seed(0)
    softmax = losses.NormalizedSoftmaxLoss(5, 6).double()
    base = from_metric_learning(softmax)
    regulariser = tcm.ThresholdConsistentMarginLoss()
    total = base + 0.5 * regulariser
    assert_same(
        value_and_gradient(total, x, y, of=x),
        value_and_gradient(lambda: softmax(x, y) + 0.5 * regulariser(x, y), of=x),
    )
    assert [id(p) for p in total.parameters()] == [id(softmax.W)]
    assert total.state_dict().keys() == {"objectives.0.loss.W"}


def test_host_losses_refuse_what_they_cannot_do() -> None:
    x, y = batch()
    peer = from_metric_learning(losses.TripletMarginLoss())
    with pytest.raises(ValueError, match=r"TripletMarginLoss needs embeddings"):
        peer.on_scores(x @ x.T, y)
    total = peer + tcm.ThresholdConsistentMarginLoss()
    explicit = Pairs.from_masks(torch.zeros(24, 24, dtype=torch.bool))
    for call in ({"reference": x.detach(), "reference_labels": y}, {"ignore": y == 0}, {"pairs": explicit}):
        with pytest.raises(ValueError, match=r"TripletMarginLoss takes embeddings and labels only as a term of a sum"):
            total(x, y, **call)
    with pytest.raises(ValueError, match=r"argument `reference_labels`: expected `reference` and"):
        peer(x, y, reference=x)
    with pytest.raises(ValueError, match=r"argument `labels`: expected 24 labels"):
        peer(x, y[:-1])
    with pytest.raises(TypeError, match=r"argument `miner`: expected a pytorch-metric-learning miner, got Linear"):
        from_metric_learning(losses.TripletMarginLoss(), torch.nn.Linear(1, 1))


# --- UNPG over the host's margin losses ------------------------------------------------------------------------------

HEADS: dict[str, Callable[[], losses.BaseMetricLossFunction]] = {
    "cosface": lambda: losses.CosFaceLoss(5, 6, margin=0.2, scale=8),
    "arcface": lambda: losses.ArcFaceLoss(5, 6, margin=20, scale=8),
    "sub-center arcface": lambda: losses.SubCenterArcFaceLoss(num_classes=5, embedding_size=6, scale=8),
    "normalised softmax": lambda: losses.NormalizedSoftmaxLoss(5, 6, temperature=0.125),
    "soft triple": lambda: losses.SoftTripleLoss(5, 6, centers_per_class=2, la=8, margin=0.1),
}


@pytest.mark.parametrize("build", HEADS.values(), ids=HEADS)
def test_a_head_is_the_hosts_softmax(build: Callable[[], losses.BaseMetricLossFunction]) -> None:
    torch.manual_seed(0)
    x, y = batch()
    host = build().double()
    head = logits_head(host)
    assert isinstance(head, LogitHead)
    assert head.scale == 8
    assert_same(value_and_gradient(lambda: head.cross_entropy(x, y).mean(), of=x), value_and_gradient(host, x, y, of=x))
    (weight,) = head.parameters()
    assert_same(
        value_and_gradient(lambda: head.cross_entropy(x, y).mean(), of=weight),
        value_and_gradient(host, x, y, of=weight),
    )
    # One more logit for every sample, by the definition.
    losses_with = head.cross_entropy(x, y, torch.tensor(5.0, dtype=torch.float64))
    logits = head.logits_fn(x, y)
    column = torch.full((len(x), 1), 5.0, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(torch.cat([logits, column], dim=1), y, reduction="none")
    torch.testing.assert_close(losses_with, expected)


@pytest.mark.parametrize("wrap", [lambda objective: objective, lambda o: tiled(o, block=7)], ids=["dense", "tiled"])
def test_unpg_over_a_host_loss_equals_unpg_over_our_head(wrap: Callable[[Objective], Objective]) -> None:
    torch.manual_seed(0)
    x, y = batch()
    host = losses.CosFaceLoss(5, 6, margin=0.2, scale=8).double()
    head = CosFaceHead(5, 6, margin=0.2, scale=8.0).double()
    with torch.no_grad():
        head.weight.copy_(host.W.T)
    ours = unpg.UNPGLoss(head)
    expected = value_and_gradient(ours, x, y, of=x)
    assert_same(value_and_gradient(UNPGLoss(host), x, y, of=x), expected)
    assert_same(value_and_gradient(UNPGLoss(head), x, y, of=x), expected)
    assert_same(value_and_gradient(MetricLearningLoss(wrap(unpg.UNPGLoss(logits_head(host)))), x, y, of=x), expected)
    assert expected[0] > host(x, y)
    assert [id(p) for p in UNPGLoss(host).parameters()] == [id(host.W)]
    assert "2203.11593" in citation(UNPGLoss(host))


def test_check_value_of_the_specification_through_the_host() -> None:
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([0, 1, 2])
    for host, expected, alone in (
        (losses.CosFaceLoss(3, 2, margin=0.2, scale=4).double(), 1.2821008845, 0.7019033059),
        (losses.CosFaceLoss(3, 2, margin=0.5, scale=64).double(), 20.5154346770, None),
        (
            losses.ArcFaceLoss(3, 2, margin=torch.rad2deg(torch.tensor(0.2)).item(), scale=4).double(),
            0.8685754004,
            None,
        ),
    ):
        with torch.no_grad():
            host.W.copy_(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 2.0]], dtype=torch.float64).T)
        assert UNPGLoss(host)(x, y).item() == pytest.approx(expected, abs=1e-6)
        if alone is not None:
            assert host(x, y).item() == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize("wrap", [lambda objective: objective, lambda o: tiled(o, block=7)], ids=["dense", "tiled"])
def test_unpg_with_a_miner(wrap: Callable[[Objective], Objective]) -> None:
    """Pairs of the batch count once, whichever way round and however often the miner lists them."""
    torch.manual_seed(0)
    x, y = batch()
    head = CosFaceHead(5, 6, scale=8.0).double()
    loss = MetricLearningLoss(wrap(unpg.UNPGLoss(head, whisker=None)))
    a, n = torch.tensor([0, 1, 3, 0]), torch.tensor([2, 2, 5, 2])
    a, n = a[y[a] != y[n]], n[y[a] != y[n]]
    nothing = torch.empty(0, dtype=torch.int64)
    listed = {(min(i, j), max(i, j)) for i, j in zip(a.tolist(), n.tolist(), strict=True)}
    unit = torch.nn.functional.normalize(x, dim=1)
    cosines = torch.stack([unit[i] @ unit[j] for i, j in sorted(listed)])
    expected = head.cross_entropy(x, y, (8 * cosines).logsumexp(0)).mean()
    for anchors, others in ((a, n), (n, a), (torch.cat([a, n]), torch.cat([n, a]))):
        torch.testing.assert_close(loss(x, y, (nothing, nothing, anchors, others)), expected)
    torch.testing.assert_close(loss(x, y, (nothing,) * 4), head.cross_entropy(x, y).mean())


def test_unpg_reducers_and_regularisers_of_the_head() -> None:
    torch.manual_seed(0)
    x, y = batch()
    host = losses.CosFaceLoss(
        5, 6, scale=8, weight_regularizer=regularizers.LpRegularizer(), weight_reg_weight=0.3
    ).double()
    rows = unpg.UNPGLoss(logits_head(host), reduction="none")(x, y)
    torch.testing.assert_close(UNPGLoss(host)(x, y), rows.mean())
    torch.testing.assert_close(UNPGLoss(host, reducer=reducers.SumReducer())(x, y), rows.sum())
    plain = logits_head(host).cross_entropy(x, y)
    assert plain.mean() < host(x, y)
    torch.testing.assert_close(plain.mean() + logits_head(host).regulariser(x), host(x, y))


def test_unpg_in_half_precision_keeps_the_hosts_weights() -> None:
    torch.manual_seed(0)
    x, y = batch()
    host = losses.ArcFaceLoss(5, 6)
    half = x.detach().half().requires_grad_()
    value = UNPGLoss(host)(half, y)
    value.backward()
    assert host.W.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(half.grad).all()


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
def test_heads_that_are_refused() -> None:
    for loss in (
        losses.SphereFaceLoss(5, 6),
        losses.LargeMarginSoftmaxLoss(5, 6),
        losses.ProxyAnchorLoss(5, 6),
        losses.TripletMarginLoss(),
    ):
        with pytest.raises(
            ValueError, match=rf"argument `loss`: expected one of CosFaceLoss, .* got {type(loss).__name__}$"
        ):
            UNPGLoss(loss)
    with pytest.raises(ValueError, match=r"argument `loss`: expected one of"):
        logits_head(losses.SphereFaceLoss(5, 6), scale=4.0)
    euclidean = losses.NormalizedSoftmaxLoss(5, 6, distance=distances.LpDistance())
    with pytest.raises(ValueError, match=r"argument `loss`: expected a loss that scores by cosines, .* LpDistance$"):
        logits_head(euclidean)


class MyHead(losses.BaseMetricLossFunction):
    """A loss somebody wrote: cosines times 12."""

    def __init__(self) -> None:
        super().__init__(distance=distances.CosineSimilarity())
        self.weight = torch.nn.Parameter(torch.randn(5, 6, dtype=torch.float64))

    def get_logits(self, embeddings: Tensor) -> Tensor:
        return 12 * self.distance(embeddings, self.weight)


def test_any_other_head_with_its_scale() -> None:
    torch.manual_seed(0)
    x, y = batch()
    mine = MyHead()
    head = logits_head(mine, scale=12.0)
    expected = torch.nn.functional.cross_entropy(mine.get_logits(x), y, reduction="none")
    torch.testing.assert_close(head.cross_entropy(x, y), expected)
    assert head.regulariser(x).item() == 0
    with pytest.raises(ValueError, match=r"or a loss with `get_logits` and a `scale`, got MyHead$"):
        logits_head(mine)


# --- the door, and what is relied on in the host -------------------------------------------------------------------


def test_without_the_host_there_is_one_clear_line() -> None:
    code = """
        import sys
        sys.modules["pytorch_metric_learning"] = None
        try:
            import scorecraft.integrations.pytorch_metric_learning
        except ImportError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    expected = 'pytorch_metric_learning is not installed: pip install "scorecraft[metric-learning]"\n'
    assert done.stdout == expected


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_contract_with_pytorch_metric_learning() -> None:
    """The signatures and attributes of the host that this integration relies on."""
    base, wrapped = losses.BaseMetricLossFunction, ["embeddings", "labels", "indices_tuple", "ref_emb", "ref_labels"]
    assert parameters(base.forward) == ["self", *wrapped]
    assert parameters(base.compute_loss) == ["self", *wrapped]
    assert parameters(miners.BaseMiner.forward) == ["self", "embeddings", "labels", "ref_emb", "ref_labels"]
    assert parameters(miners.BaseMiner.mine) == ["self", "embeddings", "labels", "ref_emb", "ref_labels"]
    memory = losses.CrossBatchMemory
    assert parameters(memory.__init__) == ["self", "loss", "embedding_size", "memory_size", "miner", "kwargs"]
    assert parameters(memory.forward) == ["self", "embeddings", "labels", "indices_tuple", "enqueue_mask"]
    assert parameters(memory.create_indices_tuple) == [
        "self", "embeddings", "labels", "E_mem", "L_mem", "input_indices_tuple", "do_remove_self_comparisons",
    ]  # fmt: skip
    assert "MultiSimilarityLoss" in memory.supported_losses()
    assert "ThresholdConsistentMarginLoss" not in memory.supported_losses()
    assert "curr_batch_idx" in inspect.getsource(memory.add_to_memory)
    assert parameters(loss_and_miner_utils.convert_to_pairs) == ["indices_tuple", "labels", "ref_labels"]
    assert parameters(distributed.DistributedLossWrapper.__init__) == ["self", "loss", "efficient"]
    with pytest.raises(TypeError):
        distributed.DistributedLossWrapper(torch.nn.Identity())
    assert parameters(losses.MultiSimilarityLoss.__init__)[:4] == parameters(MultiSimilarityLoss.__init__)[:4]
    assert parameters(miners.MultiSimilarityMiner.__init__)[:2] == parameters(MultiSimilarityMiner.__init__)[:2]
    margin = losses.LargeMarginSoftmaxLoss
    assert parameters(margin.get_cosine) == ["self", "embeddings"]
    assert parameters(margin.modify_cosine_of_target_classes) == ["self", "cosine_of_target_classes"]
    assert parameters(margin.scale_logits) == ["self", "logits", "embeddings"]
    assert parameters(margin.weight_regularization_loss) == ["self", "weights"]
    assert parameters(base.embedding_regularization_loss) == ["self", "embeddings"]
    hosts = parameters(losses.ThresholdConsistentMarginLoss.__init__)[:5]
    assert hosts == parameters(ThresholdConsistentMarginLoss.__init__)[:5]


def test_contract_a_batch_is_its_own_reference_by_identity() -> None:
    """The host hands a loss the very tensor it was called with when there is no separate reference."""
    seen = {}

    class Probe(losses.BaseMetricLossFunction):
        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):  # type: ignore[no-untyped-def]
            seen["itself"] = ref_emb is embeddings
            return {"loss": {"losses": embeddings.sum(), "indices": None, "reduction_type": "already_reduced"}}

    x, y = batch()
    Probe()(x, y)
    assert seen.pop("itself")
    Probe()(x, y, None, x.clone(), y)
    assert not seen.pop("itself")
