import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fake_study
import pytest

from scorecraft.studies.result import StudyResult
from scorecraft.studies.run_folder import (
    RunFolder,
    RunFolderBusy,
    RunFolderDamaged,
    RunFolderMismatch,
    RunFolderUnwritable,
    write_atomically,
)
from scorecraft.studies.runner import RunInterrupted, TrialFailed, run_study
from scorecraft.studies.study import Contender, Scale, StudyError

TRIALS_PER_SEED = 7
SCRIPT = Path(__file__).with_name("run_fake_study.py")
posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


def smoke(folder, study=fake_study.STUDY, **options):
    return run_study(study, scale="smoke", folder=folder, **{"jobs": 1, **options})


def trial_files(folder):
    return sorted((Path(folder) / "trials").glob("*.json"))


@pytest.fixture
def log(tmp_path, monkeypatch):
    """How often each trial was begun: `log()` counts."""
    path = tmp_path / "log"
    monkeypatch.setenv("FAKE_STUDY_LOG", str(path))
    return lambda: Counter(line.split()[1] for line in path.read_text().splitlines()) if path.exists() else Counter()


@contextlib.contextmanager
def desk_run(folder, jobs=2, **options):
    """The made-up study in a process of its own, in its own process group; stopped at the end whatever happens."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(jobs)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(process):
    """Whether a process runs (one that ended and waits to be collected does not)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_trial_runs_once_and_is_on_disk_at_once(tmp_path, log):
    events = []

    def progress(event):
        events.append(event)
        assert len(trial_files(tmp_path)) == event.done

    result = smoke(tmp_path, progress=progress)
    assert isinstance(result, StudyResult)
    assert set(log().values()) == {1}
    assert len(result.trials) == 4 * TRIALS_PER_SEED == len(log())
    assert [event.done for event in events] == list(range(4 * TRIALS_PER_SEED + 1))
    assert events[0].trial == ""
    assert events[-1].trial == "second <world> · new & better · seed 3"
    assert result.verdict == "holds"
    assert result.values("first", "old", "accuracy") == pytest.approx([0.54, 0.51, 0.53, 0.5])


def test_more_seeds_extend_a_run_and_fewer_read_a_part_of_it(tmp_path, log):
    first = smoke(tmp_path, seeds=2)
    second = smoke(tmp_path, seeds=3)
    assert (first.seeds, second.seeds) == ((0, 1), (0, 1, 2))
    chosen = smoke(tmp_path, seeds=[2, 0])
    assert chosen.seeds == (2, 0)
    assert set(log().values()) == {1}
    assert len(log()) == 3 * TRIALS_PER_SEED


def test_workers_and_this_process_agree(tmp_path):
    here, there = smoke(tmp_path / "here"), smoke(tmp_path / "there", jobs=2)
    assert here.claim == there.claim
    assert here.comparisons == there.comparisons


def test_provenance_says_where_numbers_come_from(tmp_path):
    provenance = smoke(tmp_path, command="scorecraft reproduce made-up").provenance
    assert provenance["command"] == "scorecraft reproduce made-up"
    assert {"python", "torch", "numpy", "scipy", "scikit-learn", "scorecraft"} <= provenance["versions"].keys()
    assert {"cpu", "cores", "memory_gib", "gpu"} <= provenance["hardware"].keys()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", provenance["date"])


@posix
@pytest.mark.parametrize("jobs", [1, 2])
def test_kill_9_loses_nothing_and_repeats_nothing(tmp_path, log, jobs):
    folder = tmp_path / "run"
    with desk_run(folder, jobs) as process:
        wait_for(lambda: len(trial_files(folder)) >= 3)
        process.kill()
        process.wait()
        workers = {int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()} - {process.pid}
        wait_for(lambda: not any(map(alive, workers)), 10)  # no worker outlives what it works for
    (folder / "trials" / "first--old--0007.json.4242.part").write_text("{")  # as a kill in the middle of a write leaves
    kept = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in trial_files(folder)}
    assert 3 <= len(kept) < 8 * TRIALS_PER_SEED
    before = log()

    result = run_study(fake_study.STUDY, scale="desk", folder=folder, jobs=1, seeds=3)
    for path in trial_files(folder):
        if path.name in kept:
            assert (path.stat().st_mtime_ns, path.read_bytes()) == kept[path.name]
            assert log()[path.stem] == before[path.stem]
    assert len(result.trials) == 3 * TRIALS_PER_SEED
    assert not list(folder.rglob("*.part"))


@posix
def test_interrupt_stops_the_workers_and_says_how_to_go_on(tmp_path, log):
    folder = tmp_path / "run"
    with desk_run(folder) as process:
        wait_for(lambda: len(trial_files(folder)) >= 2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everyone
        out, err = process.communicate(timeout=30)
        workers = {int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()}
        wait_for(lambda: not any(map(alive, workers)), 10)
    assert process.returncode == 130
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert re.match(r"interrupted: stopped with \d+ of 56 trials finished in .*: the same command goes on", lines[0])
    assert out == ""
    assert f"stopped with {len(trial_files(folder))} of" in lines[0]


def test_interrupt_in_this_process_keeps_what_is_finished(tmp_path):
    with pytest.raises(RunInterrupted, match="stopped with 14 of 28 trials"):
        smoke(tmp_path, fake_study.variant(trial=fake_study.interrupted_trial))
    assert len(trial_files(tmp_path)) == 14
    assert len(smoke(tmp_path).trials) == 28


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"scales": (Scale("smoke", 4, {"seconds": 0.1}), fake_study.STUDY.scales[1])},
            "scale smoke: seconds 0.0 -> 0.1",
        ),
        (
            {"contenders": (*fake_study.STUDY.contenders[:3], Contender("truth", "t", "reference", {"level": 1.0}))},
            "contender truth: level 0.9 -> 1.0",
        ),
        ({"contenders": fake_study.STUDY.contenders[:3]}, "contender truth removed"),
    ],
)
def test_refuses_to_mix_configurations(tmp_path, changes, said):
    smoke(tmp_path)
    before = {path: path.read_bytes() for path in trial_files(tmp_path)}
    with pytest.raises(RunFolderMismatch) as caught:
        smoke(tmp_path, fake_study.variant(**changes))
    message = str(caught.value)
    assert said in message
    assert "--folder NEW" in message
    assert "--fresh" in message
    assert "\n" not in message
    assert {path: path.read_bytes() for path in trial_files(tmp_path)} == before
    smoke(tmp_path, fake_study.variant(**changes), fresh=True, seeds=1)
    assert len(trial_files(tmp_path)) in (6, 7, 8)


@pytest.mark.parametrize(
    ("kind", "name", "key", "said"),
    [
        ("code", "scorecraft.core.paper", "sha256", "scorecraft.core.paper changed"),
        ("versions", "torch", "version", "torch: version 0.4 -> "),
    ],
)
def test_refuses_to_mix_code_and_versions(tmp_path, kind, name, key, said):
    smoke(tmp_path, seeds=1)
    manifest = tmp_path / "run.json"
    content = json.loads(manifest.read_text())
    assert content[kind][name]
    content[kind][name][key] = "0.4"
    manifest.write_text(json.dumps(content))
    with pytest.raises(RunFolderMismatch, match=said):
        smoke(tmp_path, seeds=1)


def test_refuses_the_folder_of_another_study_or_of_nobody(tmp_path):
    smoke(tmp_path, seeds=1)
    with pytest.raises(RunFolderMismatch, match="holds a run of scale smoke, this is scale desk"):
        run_study(fake_study.STUDY, scale="desk", folder=tmp_path, seeds=1, jobs=1)
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunFolderMismatch, match=r"trials but no run\.json"):
        smoke(tmp_path, seeds=1)


def test_a_damaged_trial_is_named_and_not_guessed(tmp_path):
    smoke(tmp_path, seeds=1)
    path = trial_files(tmp_path)[0]
    path.write_text('{"world": ')
    with pytest.raises(RunFolderDamaged, match=f"cannot read .*{path.name}.*delete that file and run again"):
        smoke(tmp_path, seeds=1)
    path.write_text('{"world": "first"}')
    with pytest.raises(RunFolderDamaged, match="is not a finished trial"):
        smoke(tmp_path, seeds=1)
    path.unlink()
    assert len(smoke(tmp_path, seeds=1).trials) == TRIALS_PER_SEED


@posix
def test_two_processes_do_not_share_a_folder(tmp_path):
    folder = tmp_path / "run"
    with desk_run(folder, jobs=1) as process:
        wait_for(lambda: len(trial_files(folder)) >= 1)
        with pytest.raises(RunFolderBusy, match=f"in use by process {process.pid}: wait for it, or"):
            run_study(fake_study.STUDY, scale="desk", folder=folder, jobs=1)
        process.kill()
        process.wait()
    assert (folder / "lock").read_text().strip() == str(process.pid)  # left behind by the dead, and no obstacle
    quick = run_study(fake_study.STUDY, scale="desk", folder=folder, jobs=2, seeds=1)
    assert len(quick.trials) == TRIALS_PER_SEED


@posix
def test_a_full_disk_in_a_real_process_is_one_line(tmp_path):
    import resource

    folder = tmp_path / "run"
    limit = 300  # bytes per file: too little for the manifest

    def limits():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with desk_run(folder, jobs=1, preexec_fn=limits) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.strip().splitlines() == [f"error: cannot write {folder / 'run.json'}: File too large"]
    assert sorted(path.name for path in folder.rglob("*")) == ["lock"]


def test_a_disk_that_fills_up_keeps_what_is_finished(tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderUnwritable, match=r"^cannot write .*\.json: No space left on device$"):
        smoke(tmp_path, jobs=2)
    assert len(trial_files(tmp_path)) == 5
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    assert len(smoke(tmp_path).trials) == 28


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderUnwritable, match=r"cannot lock .*: Not a directory"):
        smoke(tmp_path / "file" / "run")


def test_writing_replaces_whole_files_only(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(RunFolderUnwritable):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        (
            fake_study.nan_trial,
            "trial first world · old · seed 0 failed with ValueError: expected a finite cost, got nan",
        ),
        (fake_study.broken_trial, "trial first world · new & better · seed 2 failed with ZeroDivisionError: no such"),
        (
            fake_study.forgetful_trial,
            "trial first world · old · seed 0 failed with ValueError: expected the metrics accuracy, cost, got",
        ),
    ],
)
def test_a_trial_that_fails_is_named(tmp_path, trial, said):
    with pytest.raises(TrialFailed) as caught:
        smoke(tmp_path, fake_study.variant(trial=trial))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert "Traceback" in caught.value.__notes__[0]


def test_a_trial_that_fails_in_a_worker_is_named(tmp_path):
    with pytest.raises(
        TrialFailed, match=r"^trial first world · new & better · seed 2 failed with ZeroDivisionError: no"
    ):
        smoke(tmp_path, fake_study.variant(trial=fake_study.broken_trial), jobs=2)
    kept = trial_files(tmp_path)
    assert len(kept) >= 2 * TRIALS_PER_SEED  # whatever ran before and beside it
    assert "first--new--0002.json" not in [path.name for path in kept]
    assert len(smoke(tmp_path).trials) == 28


def test_refuses_bad_requests(tmp_path):
    with pytest.raises(StudyError, match="has no scale `huge`: expected one of smoke, desk"):
        run_study(fake_study.STUDY, scale="huge", folder=tmp_path)
    for seeds in (0, [], [1, 1], [-1]):
        with pytest.raises(ValueError, match="argument `seeds`: expected"):
            smoke(tmp_path, seeds=seeds)
    with pytest.raises(ValueError, match="argument `jobs`: expected an integer >= 1, got 0"):
        smoke(tmp_path, jobs=0)
    assert not list(tmp_path.iterdir())


def test_the_lock_is_free_again_after_a_refusal(tmp_path):
    smoke(tmp_path, seeds=1)
    other = {"code": {}, "configuration": {}, "versions": {"torch": {"version": "0"}}}
    with pytest.raises(RunFolderMismatch), RunFolder(tmp_path, other, study="made_up", scale="smoke"):
        pass
    smoke(tmp_path, seeds=1)
