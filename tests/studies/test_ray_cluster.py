"""Studies on a real Ray cluster of two nodes: the same results as on this machine, also when a worker is killed."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fake_study
import pytest

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from scorecraft.studies.runner import Progress, TrialFailed, run_study  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray") / "log"


@pytest.fixture(scope="module")
def cluster(log: Path) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_STUDY_LOG", str(log))  # the nodes hand it to their workers
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the made-up study is
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        patch.setenv("RAY_ADDRESS", nodes.address)
        ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


def begun(log: Path) -> list[tuple[int, str]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def test_a_killed_worker_changes_nothing(cluster: Cluster, log: Path, tmp_path: Path) -> None:
    killed: list[tuple[int, str]] = []

    def kill_one(event: Progress) -> None:
        running = [one for one in begun(log) if not (tmp_path / "ray" / "trials" / f"{one[1]}.json").exists()]
        if event.done >= 5 and running and not killed:
            killed.append(running[-1])
            os.kill(running[-1][0], signal.SIGKILL)

    result = run_study(
        fake_study.STUDY, scale="desk", seeds=3, backend="ray", folder=tmp_path / "ray", progress=kill_one
    )
    trials = Counter(name for _, name in begun(log))
    assert len({process for process, _ in begun(log)}) >= 3  # two workers, and the one that took the place of the dead
    assert trials[killed[0][1]] == 2
    assert sum(trials.values()) == len(trials) + 1
    here = run_study(fake_study.STUDY, scale="desk", seeds=3, jobs=2, folder=tmp_path / "local")
    assert {trial.key: trial.metrics for trial in result.trials} == {trial.key: trial.metrics for trial in here.trials}
    assert result.claim == here.claim
    assert result.provenance["backend"] == "ray"


def test_more_jobs_than_cores_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="argument `jobs`: expected at most 2, the cores of the cluster, got 3"):
        run_study(fake_study.STUDY, scale="smoke", backend="ray", jobs=3, folder=tmp_path)


def test_a_failing_trial_is_told_and_the_others_kept(cluster: Cluster, tmp_path: Path) -> None:
    study = dataclasses.replace(fake_study.STUDY, trial=fake_study.broken_trial)
    with pytest.raises(TrialFailed, match="ZeroDivisionError: no such thing"):
        run_study(study, scale="smoke", seeds=4, backend="ray", folder=tmp_path)
    assert list((tmp_path / "trials").glob("*.json"))
