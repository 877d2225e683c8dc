"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from scorecraft.core.files import write_atomically


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.json"
    write_atomically(path, "one")

    def refuse_to_sync(file: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", refuse_to_sync)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"two")
    assert path.read_text() == "one"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]
