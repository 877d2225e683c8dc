"""Labelled items from files, folders of images, and hub data sets: features or images, with a class each."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.integrations.optional import require

IMAGE_SIZE = 28
"""Pixels of a side to which the images of a folder or a data set are scaled."""
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
_FEATURE_NAMES = ("features", "embeddings", "images", "x", "data", "feature", "embedding", "image")
_LABEL_NAMES = ("labels", "label", "y", "classes", "class", "targets", "target")


class BadData(ValueError):
    """Data that cannot be read, said in one line."""


class LabelledData(NamedTuple):
    """Items with their classes."""

    items: Float[Tensor, "n ..."]
    """Features `[n, d]`, or images `[n, channels, height, width]` in [0, 1]."""
    labels: Int[Tensor, " n"]
    """Classes numbered from 0."""

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.labels.max()) + 1

    def digest(self) -> str:
        """SHA-256 of all values: two runs must not mix trials on different data."""
        found = hashlib.sha256(self.items.numpy().tobytes())
        found.update(self.labels.numpy().tobytes())
        return found.hexdigest()


@lru_cache(maxsize=2)
def load_labelled(
    source: str,
    *,
    features: str | None = None,
    labels: str | None = None,
    split: str | None = None,
    image_size: int = IMAGE_SIZE,
) -> LabelledData:
    """Read labelled data.

    Args:
        source: an `.npz` file of two arrays; an `.npy` file of features with `<name>_labels.npy` beside it; a `.csv`
            or `.parquet` file with a label column and numeric columns (or one column of vectors); a folder with one
            folder of images per class; or the name of a hub data set with an image or vector column.
        features: name of the array or column of items; found by its usual names when left out.
        labels: name of the array or column of classes (integers or names), likewise.
        split: of a hub data set, `train` when left out.
        image_size: pixels of a side to which images of a folder or a data set are scaled.

    Raises:
        BadData: in one line: nothing to read, an array or column that is not there or cannot be told, values that are
            not numbers or not finite, fewer than two classes.
        ImportError: an optional package is needed; the line says how to install it.
    """
    path = Path(source).expanduser()
    kind = path.suffix.lower()
    if path.is_dir():
        read = _image_folder(path, image_size)
    elif path.is_file():
        readers = {".npz": _npz, ".npy": _npy, ".csv": _csv, ".parquet": _parquet}
        if kind not in readers:
            _bad(source, f"expected a folder, or a file of {', '.join(readers)}, got {kind or 'no suffix'}")
        read = readers[kind](path, features, labels)
    elif kind in (".npz", ".npy", ".csv", ".parquet") or source.startswith((".", "/", "~")):
        _bad(source, "there is no such file or folder")
    else:
        read = _hub(source, features, labels, split or "train", image_size)
    return _checked(source, *read)


def _npz(path: Path, features: str | None, labels: str | None) -> tuple[Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            items = archive[_named(path, archive.files, features, _FEATURE_NAMES, "--features")]
            return items, archive[_named(path, archive.files, labels, _LABEL_NAMES, "--labels")]
    except (OSError, ValueError) as error:
        if isinstance(error, BadData):
            raise
        _bad(path, f"cannot read it as arrays without pickled objects ({error})")


def _npy(path: Path, features: str | None, labels: str | None) -> tuple[Any, Any]:
    del features
    beside = Path(labels) if labels else path.with_name(f"{path.stem}_labels.npy")
    if not beside.is_file():
        _bad(path, f"expected its classes in {beside} (or --labels FILE)")
    try:
        return np.load(path, allow_pickle=False), np.load(beside, allow_pickle=False)
    except (OSError, ValueError) as error:
        _bad(path, f"cannot read it as an array without pickled objects ({error})")


def _csv(path: Path, features: str | None, labels: str | None) -> tuple[Any, Any]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns: dict[str, list[str]] = {name: [] for name in rows.fieldnames or ()}
        for number, row in enumerate(rows, start=2):
            if None in row or None in row.values():
                _bad(path, f"line {number} has another number of fields than the header, {len(columns)}")
            for name, cell in row.items():
                columns[name].append(cell)
    return _from_columns(path, columns, features, labels)


def _parquet(path: Path, features: str | None, labels: str | None) -> tuple[Any, Any]:
    require("pyarrow", "text")
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        _bad(path, f"cannot read it as parquet ({error})")
    return _from_columns(path, {name: table[name].to_pylist() for name in table.column_names}, features, labels)


def _from_columns(
    path: Path, columns: Mapping[str, Sequence[Any]], features: str | None, labels: str | None
) -> tuple[Any, Any]:
    """Items from one column of vectors, or from all numeric columns but that of the classes."""
    label = _named(path, list(columns), labels, _LABEL_NAMES, "--labels")
    others = [name for name in columns if name != label]
    if features is not None:
        others = [_named(path, others, features, (), "--features")]
    elif vectors := [name for name in others if len(columns[name]) and isinstance(columns[name][0], (list, tuple))]:
        others = [_named(path, vectors, vectors[0] if len(vectors) == 1 else None, _FEATURE_NAMES, "--features")]
    if not others:
        _bad(path, "expected a column of features beside that of the classes")
    try:
        parts = [np.asarray(columns[name], dtype=np.float32) for name in others]
    except ValueError as error:
        _bad(path, f"expected numbers in the columns {', '.join(others)} ({error}); choose one with --features")
    return (parts[0] if len(parts) == 1 and parts[0].ndim > 1 else np.column_stack(parts)), columns[label]


def _image_folder(path: Path, size: int) -> tuple[Any, Any]:
    files = sorted(file for file in path.glob("*/*") if file.suffix.lower() in _IMAGES)
    if not files:
        _bad(path, "expected one folder of images per class inside")
    return _images(path, files, size), [file.parent.name for file in files]


def _images(source: object, images: Sequence[Any], size: int) -> np.ndarray:
    """Images as bytes `[n, size, size, 3]`, or `[n, size, size]` when all of them are grey."""
    from PIL import Image, UnidentifiedImageError

    grey, found = True, []
    for image in images:
        try:
            opened = Image.open(image) if isinstance(image, Path) else image
            grey = grey and opened.mode in ("1", "L")
            found.append(np.asarray(opened.convert("RGB").resize((size, size), Image.Resampling.BOX)))
        except (OSError, UnidentifiedImageError) as error:
            _bad(source, f"cannot read the image {image} ({error})")
    stacked = np.stack(found)
    return stacked[..., 0] if grey else stacked


def _hub(source: str, features: str | None, labels: str | None, split: str, size: int) -> tuple[Any, Any]:
    require("datasets", "text")
    import datasets

    try:
        table = datasets.load_dataset(source, split=split)
    except Exception as error:  # the host raises many kinds, its own and those of the network
        reason = " ".join(str(error).split())[:200]
        raise BadData(
            f"data `{source}`: neither a file, a folder nor a data set that can be loaded ({reason})"
        ) from error
    columns = list(table.column_names)  # type: ignore[arg-type]
    label = _named(source, columns, labels, _LABEL_NAMES, "--labels")
    item = _named(source, [name for name in columns if name != label], features, _FEATURE_NAMES, "--features")
    values = table[item][:]  # type: ignore[index]
    if len(values) and isinstance(values[0], str):
        _bad(source, f"column {item} holds text: embed it first, and compare on the embeddings")
    classes = table[label][:]  # type: ignore[index]
    return (_images(source, values, size) if len(values) and hasattr(values[0], "convert") else values), classes


def _named(source: object, names: Sequence[str], wanted: str | None, usual: Sequence[str], option: str) -> str:
    if wanted is not None:
        if wanted not in names:
            _bad(source, f"has no `{wanted}`: there are {', '.join(names) or 'none'}")
        return wanted
    lower = {name.lower(): name for name in names}
    for name in usual:
        if name in lower:
            return lower[name]
    _bad(source, f"cannot tell which one to take ({option}): there are {', '.join(names) or 'none'}")


def _checked(source: str, items: Any, classes: Any) -> LabelledData:
    try:
        values, names = np.asarray(items), np.asarray(classes)
    except ValueError as error:
        raise BadData(f"data `{source}`: expected items all of one shape ({error})") from error
    if values.dtype == object or not np.issubdtype(values.dtype, np.number):
        _bad(source, f"expected numbers as items, all of one shape, got {values.dtype} of shape {values.shape}")
    if values.ndim < 2 or values.ndim > 4 or names.ndim != 1 or len(values) != len(names):
        _bad(source, f"expected items [n, d] or images with n classes, got shapes {values.shape} and {names.shape}")
    if np.issubdtype(names.dtype, np.floating):
        _bad(source, f"expected integers or names as classes, got {names.dtype}")
    tensor = torch.from_numpy(values.astype(np.float32))
    if not tensor.isfinite().all():
        _bad(source, f"expected finite items, got {int((~tensor.isfinite()).sum())} values that are not")
    if values.ndim > 2:
        tensor = tensor / (255 if values.dtype == np.uint8 else max(1.0, float(tensor.abs().max())))
        if values.ndim == 3:
            tensor = tensor[:, None]
        elif values.shape[-1] <= 4:  # channels last, as image files have them
            tensor = tensor.permute(0, 3, 1, 2)
    _, labels = np.unique(names, return_inverse=True)
    data = LabelledData(tensor.contiguous(), torch.from_numpy(labels.reshape(-1)).long())
    if data.classes < 2:
        _bad(source, f"expected at least two classes, got {data.classes}")
    return data


def _bad(source: object, problem: str) -> NoReturn:
    raise BadData(f"data `{source}`: {problem}")
