"""torchmetrics: the unbiased pass@k inside the host, merged, collected and over two processes."""

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

from torchmetrics import MetricCollection

from scorecraft.integrations.torchmetrics.coverage import PassAtK
from scorecraft.preference.dco import mean_pass_at_k

KS = (1, 4, 16)


def problems(m: int = 30) -> tuple[Tensor, Tensor]:
    """Ragged numbers of samples, and of right ones among them."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(16, 200, (m,), generator=generator)
    return samples, (samples * torch.rand(m, generator=generator) ** 3).long()


def expected(part: slice = slice(None)) -> dict[str, float]:
    samples, correct = (one[part] for one in problems())
    found = {}
    for k in KS:
        estimate = mean_pass_at_k(samples, correct, k)
        found |= {f"pass_at_{k}": estimate.mean, f"pass_at_{k}_low": estimate.low, f"pass_at_{k}_high": estimate.high}
    return found


def plain(values: dict[str, Tensor]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def update(metric: PassAtK, part: slice) -> None:
    metric.update(*(value[part] for value in problems()))


def test_contract_of_the_host() -> None:
    """What we rely on in torchmetrics: where a new version moves, this test says so first."""
    metric = PassAtK(KS)
    assert metric.full_state_update is False  # otherwise forward runs update twice and merge_state refuses
    assert list(inspect.signature(metric.update).parameters) == ["samples", "correct"]
    assert {function.__name__ for function in metric._reductions.values()} == {"dim_zero_sum"}


def test_equals_the_function() -> None:
    metric = PassAtK(KS)
    assert plain(metric(*problems())) == pytest.approx(expected(), abs=1e-12)  # forward: the batch's value
    assert plain(metric.compute()) == pytest.approx(expected(), abs=1e-12)
    metric.reset()
    update(metric, slice(0, 5))
    assert plain(metric.compute()) == pytest.approx(expected(slice(0, 5)), abs=1e-12)


def test_updates_add_up_and_states_merge() -> None:
    one, other = PassAtK(KS), PassAtK(KS)
    for metric, parts in ((one, (slice(0, 9), slice(9, 10))), (other, (slice(10, 30),))):
        for part in parts:
            update(metric, part)
    one.merge_state(other)
    assert plain(one.compute()) == pytest.approx(expected(), abs=1e-12)


def test_in_a_collection() -> None:
    collection = MetricCollection([PassAtK(KS)])
    collection.update(*problems())
    assert plain(collection.compute()) == pytest.approx(expected(), abs=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_yet_is_no_number() -> None:
    assert all(math.isnan(value) for value in plain(PassAtK(KS).compute()).values())


def test_the_confidence_is_that_of_the_interval() -> None:
    narrow, wide = PassAtK((4,), confidence=0.5), PassAtK((4,), confidence=0.99)
    for metric in (narrow, wide):
        metric.update(*problems())
    assert wide.compute()["pass_at_4_low"] < narrow.compute()["pass_at_4_low"] < narrow.compute()["pass_at_4"]


def test_bad_calls_are_refused() -> None:
    samples, correct = problems()
    calls = [
        (lambda: PassAtK((16, 300)).update(samples, correct), "argument `k`: expected at most the samples of every"),
        (lambda: PassAtK().update(correct, samples), "argument `"),
        (lambda: PassAtK().update(samples, samples + 1), "argument `correct`: expected counts from 0 to the number"),
        (lambda: PassAtK().update(samples.float(), correct), "argument `samples`: expected integer counts"),
        (lambda: PassAtK((0,)), "argument `ks`: expected an integer >= 1"),
        (lambda: PassAtK((2, 2)), "argument `ks`: expected one number of samples or more, all different"),
        (lambda: PassAtK(()), "argument `ks`"),
        (lambda: PassAtK(confidence=1.0), "argument `confidence`"),
    ]
    for call, line in calls:
        with pytest.raises(ValueError, match=r"^argument") as caught:
            call()
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)


def synchronise(rank: int, folder: str) -> None:
    metric = PassAtK(KS)
    update(metric, slice(0, 11) if rank == 0 else slice(11, 30))
    Path(folder, f"{rank}.json").write_text(json.dumps(plain(metric.compute())))


def test_two_processes_equal_one(tmp_path: Path) -> None:
    run_ranks(synchronise, str(tmp_path))
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected(), abs=1e-12)
