"""torchmetrics: ranking accuracy, reward accuracy, idealized accuracy and flips, merged and over two processes."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.ranks import run_ranks
from torch import Tensor

pytest.importorskip("torchmetrics")

from torchmetrics import Metric, MetricCollection

from scorecraft.integrations.torchmetrics.preference import (
    FlipTable,
    IdealizedRankingAccuracy,
    RankingAccuracy,
    RewardAccuracy,
)
from scorecraft.preference.ranking_accuracy import (
    CATEGORIES,
    flip_table,
    idealized_ranking_accuracy,
    ranking_accuracy,
    reward_accuracy,
)

PAIRS = 40
METRICS: dict[str, Callable[[], Metric]] = {
    "ranking": RankingAccuracy,
    "ranking half": lambda: RankingAccuracy(ties="half"),
    "reward": RewardAccuracy,
    "idealized": IdealizedRankingAccuracy,
    "flips": lambda: FlipTable(beta=0.2, gamma=0.5),
}


def pairs(name: str) -> dict[str, Tensor]:
    """What a metric reads of some pairs, by the names of its arguments; some log-ratios are ties."""
    generator = torch.Generator().manual_seed(0)
    found = {
        "log_ratio": torch.randint(-9, 10, (PAIRS,), generator=generator).double(),
        "reference_log_ratio": torch.randint(-9, 10, (PAIRS,), generator=generator).double(),
        "alpha": torch.rand(PAIRS, generator=generator, dtype=torch.float64),
    }
    return {key: found[key] for key in list(inspect.signature(METRICS[name]().update).parameters)}


def expected(name: str) -> dict[str, float]:
    told = pairs(name)
    if name.startswith("ranking"):
        return {"ranking_accuracy": float(ranking_accuracy(**told, ties="half" if "half" in name else "correct"))}
    if name == "reward":
        return {"reward_accuracy": float(reward_accuracy(**told))}
    if name == "idealized":
        ideal = idealized_ranking_accuracy(**told)
        values = {"min": ideal.minimum, "median": ideal.median, "max": ideal.maximum}
        return {f"idealized_ranking_accuracy_{key}": float(value) for key, value in values.items()}
    table = flip_table(**told, beta=0.2, gamma=0.5)
    found = {"flipped": float(table.flipped), "unlearned": float(table.unlearned)}
    for place, category in enumerate(CATEGORIES):
        for key, column in (("share", table.shares), ("loss", table.losses), ("margin", table.margins)):
            found[f"{category}_{key}"] = float(column[place])
    return found


def plain(values: dict[str, Tensor]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def update(metric: Metric, name: str, part: slice) -> None:
    metric.update(**{key: value[part] for key, value in pairs(name).items()})


def test_contract_of_the_host() -> None:
    """What we rely on in torchmetrics: where a new version moves, this test says so first."""
    for make in METRICS.values():
        metric = make()
        assert metric.full_state_update is False  # otherwise forward runs update twice and merge_state refuses
        assert {function.__name__ for function in metric._reductions.values()} == {"dim_zero_sum"}


@pytest.mark.parametrize("name", METRICS)
def test_equals_the_function(name: str) -> None:
    metric = METRICS[name]()
    metric.update(**pairs(name))
    assert plain(metric.compute()) == pytest.approx(expected(name), abs=1e-12)
    metric.reset()
    assert plain(metric(**pairs(name))) == pytest.approx(expected(name), abs=1e-12)  # forward: the batch's value
    assert plain(metric.compute()) == pytest.approx(expected(name), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_updates_add_up_in_any_order_and_states_merge(name: str) -> None:
    one, other = METRICS[name](), METRICS[name]()
    for metric, parts in ((one, (slice(30, 40), slice(9, 10))), (other, (slice(10, 30), slice(0, 9)))):
        for part in parts:
            update(metric, name, part)
    one.merge_state(other)
    assert plain(one.compute()) == pytest.approx(expected(name), abs=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", METRICS)
def test_nothing_yet_is_no_number(name: str) -> None:
    metric = METRICS[name]()
    assert all(math.isnan(value) for value in plain(metric.compute()).values())
    update(metric, name, slice(0, 5))
    assert not all(math.isnan(value) for value in plain(metric.compute()).values())
    metric.reset()
    assert all(math.isnan(value) for value in plain(metric.compute()).values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", METRICS)
def test_half_precision_counts_as_its_float32_value(name: str, dtype: torch.dtype) -> None:
    half = {key: value.to(dtype) for key, value in pairs(name).items()}
    first, second = METRICS[name](), METRICS[name]()
    first.update(**half)
    second.update(**{key: value.float() for key, value in half.items()})
    assert plain(first.compute()) == pytest.approx(plain(second.compute()), abs=1e-12)


def test_a_collection_takes_arguments_by_name() -> None:
    collection = MetricCollection({name: make() for name, make in METRICS.items() if name != "ranking half"})
    collection.update(**(pairs("flips") | pairs("idealized")))
    found = plain(collection.compute())
    for name in ("ranking", "reward", "idealized", "flips"):
        for key, value in expected(name).items():
            assert found[key if key in found else f"{name}_{key}"] == pytest.approx(value, abs=1e-12)


def test_many_pairs_do_not_saturate() -> None:
    """A float32 sum of ones stops at 2^24; these are counted."""
    metric = RankingAccuracy()
    ones = torch.ones(2**20)
    for _ in range(17):
        metric.update(ones)
    metric.update(-ones)
    assert float(metric.compute()["ranking_accuracy"]) == 17 / 18


def test_bad_calls_are_refused() -> None:
    for name, make in METRICS.items():
        told = pairs(name)
        first = next(iter(told))
        with pytest.raises(ValueError, match=rf"^argument `{first}`: expected finite numbers"):
            make().update(**(told | {first: told[first] * math.nan}))
        for argument in list(told)[1:]:
            with pytest.raises(ValueError, match=rf"^argument `{argument}`: expected"):
                make().update(**(told | {argument: told[argument][:-1]}))
    for kind in (RankingAccuracy, RewardAccuracy, IdealizedRankingAccuracy):
        with pytest.raises(ValueError, match=r"^argument `ties`: expected one of"):
            kind(ties="none")
    with pytest.raises(ValueError, match=r"^argument `betas`: expected at least one"):
        IdealizedRankingAccuracy(betas=())
    with pytest.raises(ValueError, match=r"^argument `beta`: expected a finite number > 0"):
        FlipTable(beta=0)


def synchronise(rank: int, folder: str) -> None:
    found = {}
    for name, make in METRICS.items():
        metric = make()
        update(metric, name, slice(0, 11) if rank == 0 else slice(11, 40))
        found[name] = plain(metric.compute())
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def test_two_processes_equal_one(tmp_path: Path) -> None:
    run_ranks(synchronise, str(tmp_path))
    for rank in range(2):
        for name, found in json.loads((tmp_path / f"{rank}.json").read_text()).items():
            assert found == pytest.approx(expected(name), abs=1e-12)
