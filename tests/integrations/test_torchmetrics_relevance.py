"""torchmetrics: pooled, per-query and streaming AUC inside the host, merged, collected and over two processes."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path

import pytest
import torch
from tests.ranks import run_ranks
from torch import Tensor

pytest.importorskip("torchmetrics")

from torchmetrics import Metric, MetricCollection

from scorecraft.integrations.torchmetrics.relevance import PerQueryAUC, PooledAUC, StreamingAUC
from scorecraft.relevance.mw import AUCHistogram, per_query_auc, pooled_aoc, pooled_auc


def queries(n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits far outside [0, 1], of queries with shifts of their own; one has no relevant candidate."""
    generator = torch.Generator().manual_seed(seed)
    relevance = (torch.rand(n, 12, generator=generator) < 0.2).long()
    relevance[n // 3] = 0
    shift = 3 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    scores = torch.randn(n, 12, generator=generator, dtype=torch.float64) + 2 * relevance + shift
    return scores, relevance, torch.rand(n, 12, generator=generator) < 0.9


def metrics() -> dict[str, Metric]:
    return {"pooled": PooledAUC(), "per query": PerQueryAUC(), "stream": StreamingAUC(bits=12)}


def expected(name: str) -> dict[str, float]:
    call = queries()
    if name == "pooled":
        return {"auc": float(pooled_auc(*call)), "aoc": float(pooled_aoc(*call))}
    if name == "per query":
        each = per_query_auc(*call, reduction="none")
        return {"per_query_auc": float(each.nanmean()), "queries_without_auc": float(each.isnan().sum())}
    found = AUCHistogram(bits=12).update(*call).result()
    return {"auc": float(found.auc), "aoc": float(found.aoc), "auc_error": float(found.error)}


def plain(values: dict[str, Tensor]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def update(metric: Metric, part: slice) -> None:
    metric.update(*(value[part] for value in queries()))


def test_contract_of_the_host() -> None:
    """What we rely on in torchmetrics: where a new version moves, this test says so first."""
    for ours in metrics().values():
        assert ours.full_state_update is False  # otherwise forward runs update twice and merge_state refuses
        assert list(inspect.signature(ours.update).parameters) == ["scores", "relevance", "where"]
    names = {"pooled": "dim_zero_cat", "per query": "dim_zero_sum", "stream": "dim_zero_sum"}
    for name, metric in metrics().items():
        assert {function.__name__ for function in metric._reductions.values()} == {names[name]}


@pytest.mark.parametrize("name", metrics())
def test_equals_the_function(name: str) -> None:
    metric = metrics()[name]
    metric.update(*queries())
    assert plain(metric.compute()) == pytest.approx(expected(name), abs=1e-12)
    metric.reset()
    assert plain(metric(*queries())) == pytest.approx(expected(name), abs=1e-12)  # forward: the batch's value
    assert plain(metric.compute()) == pytest.approx(expected(name), abs=1e-12)


@pytest.mark.parametrize("name", metrics())
def test_updates_add_up_and_states_merge(name: str) -> None:
    one, other = metrics()[name], metrics()[name]
    for metric, parts in ((one, (slice(0, 9), slice(9, 10))), (other, (slice(10, 40),))):
        for part in parts:
            update(metric, part)
    one.merge_state(other)
    assert plain(one.compute()) == pytest.approx(expected(name), abs=1e-12)


def test_the_stream_holds_the_exact_value() -> None:
    exact, stream = expected("pooled"), expected("stream")
    assert 0 < stream["auc_error"] < 0.05
    assert abs(stream["auc"] - exact["auc"]) <= stream["auc_error"]
    assert StreamingAUC().metric_state["positives"].dtype == torch.int64


def test_dict_results_are_flattened_in_a_collection() -> None:
    collection = MetricCollection([PooledAUC(), PerQueryAUC()])
    collection.update(*queries())
    assert plain(collection.compute()) == pytest.approx(expected("pooled") | expected("per query"), abs=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", metrics())
def test_nothing_yet_is_no_number(name: str) -> None:
    metric = metrics()[name]
    assert math.isnan(next(iter(plain(metric.compute()).values())))
    metric.update(torch.ones(2, 3), torch.zeros(2, 3))
    metric.reset()
    metric.update(torch.ones(2, 3), torch.zeros(2, 3))
    assert math.isnan(next(iter(plain(metric.compute()).values())))


def test_bad_calls_are_refused() -> None:
    scores, relevance, _ = queries()
    for metric in metrics().values():
        with pytest.raises(ValueError, match="argument `scores`: expected finite values"):
            metric.update(scores * math.nan, relevance)
        with pytest.raises(ValueError, match="argument `relevance`: expected 0 or 1"):
            metric.update(scores, 2 * relevance)
    with pytest.raises(ValueError, match="argument `bits`"):
        StreamingAUC(bits=40)


def synchronise(rank: int, folder: str) -> None:
    found = {}
    for name, metric in metrics().items():
        update(metric, slice(0, 11) if rank == 0 else slice(11, 40))
        found[name] = plain(metric.compute())
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def test_two_processes_equal_one(tmp_path: Path) -> None:
    run_ranks(synchronise, str(tmp_path))
    for rank in range(2):
        for name, found in json.loads((tmp_path / f"{rank}.json").read_text()).items():
            assert found == pytest.approx(expected(name), abs=1e-12)
