"""The folder of a run: one file per finished trial, a manifest that says what they belong to, and a lock.

    run.json                                    fingerprint of code and configuration
    trials/<world>--<contender>--<seed>.json    one finished trial each
    lock                                        held by the process that writes here

A file appears whole or not at all, so whatever kills a run, the finished trials are there and are all there is.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from scorecraft.core import files
from scorecraft.studies.fingerprint import Fingerprint, differences
from scorecraft.studies.result import TrialRecord
from scorecraft.studies.study import StudyError

if sys.platform == "win32":
    import msvcrt

    def _lock_file(file: int) -> None:
        os.lseek(file, 1 << 20, os.SEEK_SET)  # behind the text, which stays readable
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock_file(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_FORMAT = 1
_SHOWN_DIFFERENCES = 3
_WAY_OUT = "use `--folder NEW` to keep them, or `--fresh` to throw them away"


class RunFolderMismatch(StudyError):
    """The folder holds trials of other code or another configuration."""


class RunFolderBusy(StudyError):
    """Another process writes into the folder."""


class RunFolderUnwritable(StudyError):
    """A file could not be written."""


class RunFolderDamaged(StudyError):
    """A file of the folder is not what was written there."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either there as a whole or not at all, also after a crash.

    Raises:
        RunFolderUnwritable: one line with the path and the reason; nothing is left behind.
    """
    try:
        files.write_atomically(path, content)
    except OSError as error:
        raise RunFolderUnwritable(f"cannot write {path}: {error.strerror or error}") from error


class RunFolder:
    """The folder of one run, locked while it is open.

        with RunFolder(path, fingerprint) as folder:
            folder.save(record)

    Args:
        path: made when it is not there.
        fingerprint: of the code and configuration whose trials go in.
        fresh: throw away the trials that are there and begin again.

    Raises:
        RunFolderBusy, RunFolderMismatch, RunFolderDamaged, RunFolderUnwritable: each in one line.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint, *, study: str, scale: str, fresh: bool = False) -> None:
        self.path = path
        self.trials: dict[tuple[str, str, int], TrialRecord] = {}
        self._manifest = {"format": _FORMAT, "study": study, "scale": scale, **fingerprint}
        self._fingerprint = fingerprint
        self._fresh = fresh
        self._lock = _Lock(path / "lock")

    def __enter__(self) -> RunFolder:
        self._lock.acquire()
        try:
            self._sweep()
            self._check_manifest()
            self.trials = {record.key: record for record in map(_read_trial, sorted(self._trial_files()))}
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def save(self, record: TrialRecord) -> None:
        """Write a finished trial at once."""
        name = f"{record.world}--{record.contender}--{record.seed:04d}.json"
        write_atomically(self.path / "trials" / name, json.dumps(asdict(record), indent=1, allow_nan=False) + "\n")
        self.trials[record.key] = record

    def _trial_files(self) -> list[Path]:
        return list((self.path / "trials").glob("*.json"))

    def _sweep(self) -> None:
        """Remove what a killed process had begun to write, and with `fresh` the earlier trials."""
        try:
            for folder in (self.path, self.path / "trials"):
                for leftover in folder.glob(f"*{files.TEMPORARY}"):
                    if re.fullmatch(r".+\.(json|html|png)\.\d+\.part", leftover.name):
                        leftover.unlink()
            if self._fresh:
                for file in [self.path / "run.json", *self._trial_files()]:
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise RunFolderUnwritable(f"cannot clear {self.path}: {error.strerror or error}") from error

    def _check_manifest(self) -> None:
        path = self.path / "run.json"
        if not path.exists():
            if self._trial_files():
                raise RunFolderMismatch(
                    f"{self.path} holds trials but no run.json that says what they belong to: {_WAY_OUT}"
                )
            write_atomically(path, json.dumps(self._manifest, indent=1) + "\n")
            return
        recorded = _read_json(path)
        for key in ("format", "study", "scale"):
            theirs, ours = recorded.get(key), self._manifest[key]
            if theirs != ours:
                raise RunFolderMismatch(f"{self.path} holds a run of {key} {theirs}, this is {key} {ours}: {_WAY_OUT}")
        changes = differences(recorded, self._fingerprint)
        if changes:
            more = len(changes) - _SHOWN_DIFFERENCES
            told = "; ".join(changes[:_SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
            raise RunFolderMismatch(f"{self.path} holds trials of other code or configuration ({told}): {_WAY_OUT}")


class _Lock:
    """One writer per folder. The system takes a lock from a process that dies, so no lock outlives its holder; the
    process number in the file is for the reader of the message only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock_file(self._file)
            except (BlockingIOError, PermissionError):
                holder = self.path.read_text(encoding="utf-8", errors="replace").strip()
                by = f"process {holder}" if holder.isdigit() else "another process"
                raise RunFolderBusy(
                    f"{self.path.parent} is in use by {by}: wait for it, or run with `--folder NEW`"
                ) from None
            os.ftruncate(self._file, 0)
            os.write(self._file, f"{os.getpid()}\n".encode())
        except OSError as error:
            self.release()
            raise RunFolderUnwritable(f"cannot lock {self.path.parent}: {error.strerror or error}") from error
        except RunFolderBusy:
            self.release()
            raise

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderDamaged(f"cannot read {path} ({error}): delete that file and run again") from error
    if not isinstance(content, dict):
        raise RunFolderDamaged(f"{path} holds no object but {type(content).__name__}: delete that file and run again")
    return content


def _read_trial(path: Path) -> TrialRecord:
    content = _read_json(path)
    try:
        return TrialRecord(**content)
    except TypeError as error:
        raise RunFolderDamaged(f"{path} is not a finished trial ({error}): delete that file and run again") from error
