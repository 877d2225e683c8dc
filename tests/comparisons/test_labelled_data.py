"""Reading labelled data of every kind, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scorecraft.comparisons.labelled_data import BadData, load_labelled

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
NAMES = np.array(["b", "a", "c"] * 4)
CLASSES = torch.tensor([1, 0, 2] * 4)


@pytest.fixture(autouse=True)
def forget() -> None:
    load_labelled.cache_clear()


def written(folder: Path, kind: str) -> Path:
    path = folder / f"items.{kind}"
    if kind == "npz":
        np.savez(path, features=X, labels=NAMES)
    elif kind == "npy":
        np.save(path, X)
        np.save(folder / "items_labels.npy", NAMES)
    elif kind == "csv":
        lines = [",".join([*map(repr, map(float, row)), name]) for row, name in zip(X, NAMES, strict=True)]
        path.write_text("\n".join(["one,two,three,label", *lines]) + "\n")
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = {"embedding": [row.tolist() for row in X], "note": ["?"] * 12, "label": NAMES.tolist()}
        parquet.write_table(pyarrow.table(table), path)
    return path


@pytest.mark.parametrize("kind", ["npz", "npy", "csv", "parquet"])
def test_files(tmp_path: Path, kind: str) -> None:
    data = load_labelled(str(written(tmp_path, kind)))
    torch.testing.assert_close(data.items, torch.from_numpy(X))
    assert torch.equal(data.labels, CLASSES)
    assert data.classes == 3


def test_an_image_folder(tmp_path: Path) -> None:
    for name, shade in (("dark", 10), ("light", 240)):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("L", (40, 30), shade + index).save(tmp_path / name / f"{index}.png")
    data = load_labelled(str(tmp_path), image_size=8)
    assert data.items.shape == (6, 1, 8, 8)
    torch.testing.assert_close(data.items[0], torch.full((1, 8, 8), 10 / 255))
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "dark" / "red.png")
    load_labelled.cache_clear()
    assert load_labelled(str(tmp_path), image_size=8).items.shape == (7, 3, 8, 8)


def test_images_in_an_archive_become_channels_first(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.full((4, 5, 6, 3), 255, np.uint8), label=[0, 0, 1, 1])
    data = load_labelled(str(tmp_path / "a.npz"))
    assert data.items.shape == (4, 3, 5, 6)
    assert (data.items == 1).all()


def test_names_of_arrays_can_be_given(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mine=X, theirs=-X, group=NAMES, label=NAMES[::-1])
    data = load_labelled(str(tmp_path / "a.npz"), features="theirs", labels="group")
    torch.testing.assert_close(data.items, torch.from_numpy(-X))
    assert torch.equal(data.labels, CLASSES)


def test_the_digest_tells_data_apart(tmp_path: Path) -> None:
    first = load_labelled(str(written(tmp_path, "npz")))
    assert first.digest() == load_labelled(str(written(tmp_path, "npy"))).digest()
    other = first._replace(items=first.items + 1)
    assert first.digest() != other.digest()


def refused(source: Path | str, **options: str) -> str:
    with pytest.raises(BadData) as caught:
        load_labelled(str(source), **options)
    line = str(caught.value)
    assert line.startswith(f"data `{source}`: ")
    assert "\n" not in line
    return line


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert "there is no such file" in refused(tmp_path / "none.npz")
    (tmp_path / "a.txt").write_text("?")
    assert "expected a folder, or a file of .npz" in refused(tmp_path / "a.txt")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    assert "cannot read it" in refused(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", one=X, two=NAMES)
    assert "--features): there are one, two" in refused(tmp_path / "b.npz")
    assert "has no `three`" in refused(tmp_path / "b.npz", features="three")
    np.savez(tmp_path / "c.npz", features=X, labels=NAMES[:5])
    assert "with n classes, got shapes (12, 3) and (5,)" in refused(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", features=np.where(X > 1, np.nan, X), labels=NAMES)
    assert "finite" in refused(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", features=X, labels=np.zeros(12, int))
    assert "at least two classes" in refused(tmp_path / "e.npz")
    np.savez(tmp_path / "f.npz", features=X, labels=X[:, 0])
    assert "integers or names" in refused(tmp_path / "f.npz")
    np.save(tmp_path / "g.npy", X)
    assert "g_labels.npy" in refused(tmp_path / "g.npy")
    (tmp_path / "h.csv").write_text("a,label\n1,x\n2\n")
    assert "line 3" in refused(tmp_path / "h.csv")
    (tmp_path / "i.csv").write_text("a,label\n1,x\nword,y\n")
    assert "expected numbers in the columns a" in refused(tmp_path / "i.csv")
    (tmp_path / "empty").mkdir()
    assert "one folder of images per class" in refused(tmp_path / "empty")


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=np.array([{}, {}], dtype=object), labels=np.array([0, 1]))
    assert "without pickled objects" in refused(tmp_path / "a.npz")
