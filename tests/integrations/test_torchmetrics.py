"""torchmetrics: the metrics inside the host, merged, collected and synchronised over two processes."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import run_ranks
from torch import Tensor

pytest.importorskip("torchmetrics")

from torchmetrics import Metric, MetricCollection

from scorecraft.core import NegativeDistance
from scorecraft.integrations.optional import require
from scorecraft.integrations.torchmetrics import ICNN, OPIS, FalseAcceptReject, RecallAtK
from scorecraft.similarity.recall import recall_at_k
from scorecraft.similarity.susana import icnn_score
from scorecraft.similarity.tcm.consistency import opis
from scorecraft.similarity.tcm.operating import false_accept_reject

CLASSES = 9
RANGE = (0.4, 1.3)
THRESHOLDS = [0.3, 0.6, 0.9, 1.2]


def items(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES - 1, (n,), generator=generator)
    labels[n // 3] = CLASSES - 1  # one item without a positive
    centres = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return centres[labels] + 0.8 * torch.randn(n, 6, generator=generator, dtype=torch.float64), labels


def metrics() -> dict[str, Metric]:
    return {
        "recall": RecallAtK(k=(1, 5)),
        "icnn": ICNN(neighbours=3),
        "opis": OPIS(thresholds=21),
        "opis at a range": OPIS(RANGE, CLASSES, thresholds=21),
        "rates": FalseAcceptReject(THRESHOLDS, CLASSES),
    }


def sharded_call(name: str, part: slice) -> dict[str, Any]:
    """What a process passes to `update`: counts need the whole reference set, gathering metrics only their items."""
    x, y = items()
    call: dict[str, Any] = {"embeddings": x[part], "labels": y[part]}
    if name in ("opis at a range", "rates"):
        call |= {"reference": x, "reference_labels": y, "offset": part.start}
    return call


def expected(name: str) -> dict[str, list[float]]:
    """The functional result on all items."""
    x, y = items()
    if name == "recall":
        result = recall_at_k(x, y, (1, 5))
        return {"recall_at_1": [result[1]], "recall_at_5": [result[5]],
                "queries_without_positive": [result.queries_without_positive]}  # fmt: skip
    if name == "icnn":
        score = icnn_score(x, y, neighbours=3)
        return {"icnn_score": [float(score.score)], "icnn_lambda": [float(score.lambda_mean)],
                "icnn_gamma": [float(score.gamma)]}  # fmt: skip
    if name == "rates":
        rates = false_accept_reject(x, y, THRESHOLDS)
        names = ("false_accept", "false_reject", "pooled_false_accept", "pooled_false_reject")
        return {key: getattr(rates, key).flatten().tolist() for key in names}
    grid: Any = 21 if name == "opis" else torch.linspace(*RANGE, 21, dtype=torch.float64)
    result = opis(x, y, thresholds=grid)
    return {
        "opis": [result.opis],
        "eps_opis": [result.epsilon_opis],
        "d_min": [result.threshold_min],
        "d_max": [result.threshold_max],
        "mean_utility": [result.mean_utility],
        "recall_at_1": [result.recall_at_1],
        "per_class": result.per_class.tolist(),
        "classes": result.classes.tolist(),
        "classes_without_positives": [result.classes_without_positives],
    }


def plain(values: dict[str, Tensor]) -> dict[str, list[float]]:
    return {key: value.flatten().tolist() for key, value in values.items()}


def assert_close(found: dict[str, list[float]], name: str) -> None:
    wanted = expected(name)
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        assert found[key] == pytest.approx(values, rel=1e-6, nan_ok=True), key


def test_contract_of_the_host() -> None:
    """What we rely on in torchmetrics: where a new version moves, this test says so first."""
    assert {"full_state_update", "is_differentiable", "higher_is_better"} <= set(vars(Metric))
    add_state = inspect.signature(Metric.add_state).parameters
    assert list(add_state) == ["self", "name", "default", "dist_reduce_fx", "persistent"]
    assert list(inspect.signature(Metric.merge_state).parameters) == ["self", "incoming_state"]
    for ours in metrics().values():
        assert ours.full_state_update is False  # otherwise forward runs update twice and merge_state refuses
        signature = inspect.signature(ours.update)
        assert list(signature.parameters)[:4] == ["embeddings", "labels", "reference", "reference_labels"]
    for name, host in (("sum", "dim_zero_sum"), ("cat", "dim_zero_cat")):
        metric = OPIS() if name == "cat" else OPIS(RANGE, CLASSES)
        assert {function.__name__ for function in metric._reductions.values()} == {host}
    counts = OPIS(RANGE, CLASSES).metric_state
    assert {value.dtype for value in counts.values()} == {torch.int64}


def test_dict_results_are_flattened_in_a_collection() -> None:
    x, y = items()
    collection = MetricCollection([RecallAtK(k=(1, 5)), FalseAcceptReject(THRESHOLDS, CLASSES)])
    collection.update(x, y)
    values = collection.compute()
    assert set(values) == {*expected("recall"), *expected("rates")}
    # Keys that two metrics share get the metric's name.
    collection = MetricCollection({"recall": RecallAtK(k=1), "opis": OPIS()}, prefix="val/")
    collection.update(x, y)
    values = collection.compute()
    assert float(values["val/recall_recall_at_1"]) == float(values["val/opis_recall_at_1"])
    assert float(values["val/opis_opis"]) == pytest.approx(opis(x, y).opis)


@pytest.mark.parametrize("name", metrics())
def test_equals_the_function(name: str) -> None:
    x, y = items()
    metric = metrics()[name]
    metric.update(x, y)
    assert_close(plain(metric.compute()), name)
    metric.reset()
    assert_close(plain(metric(x, y)), name)  # forward returns the batch's value
    assert_close(plain(metric.compute()), name)


@pytest.mark.parametrize("name", metrics())
def test_updates_add_up(name: str) -> None:
    metric = metrics()[name]
    for part in (slice(0, 25), slice(25, 26), slice(26, 60)):
        metric.update(**sharded_call(name, part))
    assert_close(plain(metric.compute()), name)


@pytest.mark.parametrize("name", metrics())
def test_merged_states_equal_one_metric(name: str) -> None:
    one, other = metrics()[name], metrics()[name]
    one.update(**sharded_call(name, slice(0, 21)))
    other.update(**sharded_call(name, slice(21, 60)))
    one.merge_state(other)
    assert_close(plain(one.compute()), name)


def test_counted_recall_against_a_reference() -> None:
    (x, y), (reference, others) = items(), items(30, seed=1)
    metric = RecallAtK(k=(1, 5))
    for part in (slice(0, 40), slice(40, 60)):
        metric.update(x[part], y[part], reference, others)
    result = recall_at_k(x, y, (1, 5), reference=reference, reference_labels=others)
    values = metric.compute()
    assert float(values["recall_at_5"]) == pytest.approx(result[5])
    assert int(values["queries_without_positive"]) == result.queries_without_positive
    assert metric.metric_state["embeddings"] == []
    with pytest.raises(ValueError, match="argument `reference`: expected a reference, as in earlier updates"):
        metric.update(x, y)
    gathering = RecallAtK()
    gathering.update(x, y)
    with pytest.raises(ValueError, match="argument `reference`: expected None, as in earlier updates"):
        gathering.update(x, y, reference, others)


def test_score_and_orientation_reach_the_counts() -> None:
    x, y = items()
    metric = FalseAcceptReject([1.0, 2.0], CLASSES, score=NegativeDistance())
    metric.update(x, y)
    wanted = false_accept_reject(x, y, [1.0, 2.0], score=NegativeDistance())
    torch.testing.assert_close(metric.compute()["false_accept"], wanted.false_accept)
    similar = OPIS((0.9, 0.1), CLASSES, orientation="similarity")
    similar.update(x, y)
    grid = torch.linspace(0.9, 0.1, 101, dtype=torch.float64)
    assert float(similar.compute()["opis"]) == pytest.approx(opis(x, y, thresholds=grid, orientation="similarity").opis)


def test_bad_calls_are_refused() -> None:
    x, y = items()
    with pytest.raises(ValueError, match="argument `num_classes`"):
        OPIS(RANGE)
    with pytest.raises(ValueError, match="argument `num_classes`"):
        OPIS(num_classes=3)
    with pytest.raises(ValueError, match="argument `thresholds`"):
        OPIS((1.0, 0.5), CLASSES)
    with pytest.raises(ValueError, match="argument `k`"):
        RecallAtK(k=())
    with pytest.raises(ValueError, match="argument `reference`: expected None without a threshold_range"):
        OPIS().update(x, y, x, y)
    with pytest.raises(ValueError, match="argument `labels`: expected 60 labels"):
        OPIS().update(x, y[:3])
    with pytest.raises(ValueError, match=r"argument `labels`: expected class indices in \[0, 9\)"):
        FalseAcceptReject(THRESHOLDS, CLASSES).update(x, y + 1)
    with pytest.raises(ValueError, match="argument `embeddings`: expected finite values only"):
        RecallAtK().update(x * math.nan, y)


def synchronise(rank: int, folder: str, sizes: tuple[int, int]) -> None:
    part = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], sum(sizes))
    found = {}
    for name, metric in metrics().items():
        metric.update(**sharded_call(name, part))
        found[name] = plain(metric.compute())
    (x, y), (reference, others) = items(), items(30, seed=1)
    counting = RecallAtK(k=1)
    counting.update(x[part], y[part], reference, others)
    found["counted recall"] = plain(counting.compute())
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.parametrize("sizes", [(30, 30), (13, 47)], ids=["even", "uneven"])
def test_two_processes_equal_one(sizes: tuple[int, int], tmp_path: Path) -> None:
    run_ranks(synchronise, str(tmp_path), sizes)
    (x, y), (reference, others) = items(), items(30, seed=1)
    counted = recall_at_k(x, y, 1, reference=reference, reference_labels=others)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in metrics():
            assert_close(found[name], name)
        assert found["counted recall"]["recall_at_1"] == pytest.approx([counted[1]])


def test_a_missing_host_is_one_line() -> None:
    with pytest.raises(ImportError) as caught:
        require("no_such_host", "text")
    assert str(caught.value) == 'no_such_host is not installed: pip install "scorecraft[text]"'
    assert require("json", "text") is json
    code = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "import scorecraft.integrations\n"
        "try:\n    import scorecraft.integrations.torchmetrics\n"
        "except ImportError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == 'torchmetrics is not installed: pip install "scorecraft[metric-learning]"\n'


def test_an_error_inside_an_installed_host_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_host.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_dependency'"):
        require("broken_host", "text")
