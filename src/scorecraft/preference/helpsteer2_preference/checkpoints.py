"""ExPO of folders as transformers and peft write them, in the memory of a few megabytes and not of a model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from scorecraft.core.checks import finite, refuse
from scorecraft.core.files import TEMPORARY, write_atomically
from scorecraft.preference.helpsteer2_preference.adapters import PREFIX, Adapter, extrapolate_adapter
from scorecraft.preference.helpsteer2_preference.extrapolation import (
    FACTOR,
    check_pair,
    check_same_keys,
    extrapolated_tensor,
)
from scorecraft.preference.helpsteer2_preference.safetensors_files import (
    Entry,
    SafetensorsFile,
    write_safetensors,
)

MANIFEST = "extrapolation.json"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER, _ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_FORMAT = 1
_PIECE = 1 << 21
# Weights in any format, what a trainer needs to go on, and the card, which is of another model.
_LEFT_BEHIND = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json", ".md",
    "trainer_state.json", MANIFEST, TEMPORARY,
)  # fmt: skip
# What two models of equal tensors may still differ in.
_ARCHITECTURE = (
    "model_type", "architectures", "num_attention_heads", "num_key_value_heads", "hidden_act", "tie_word_embeddings",
)  # fmt: skip

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, what)`, in bytes."""


class Extrapolated(NamedTuple):
    """What was written."""

    folder: Path
    shards: int
    kept: int
    """Shards that an earlier, interrupted call had written."""
    tensors: int
    """Floating-point tensors that were extrapolated."""
    size: int
    """Of all weights, in bytes."""


def extrapolate_checkpoint(
    weak: str | Path,
    strong: str | Path,
    out: str | Path,
    *,
    factor: float = FACTOR,
    progress: Progress | None = None,
) -> Extrapolated:
    """`weak + factor (strong - weak)` of two model folders, written as a third one.

    Folders hold `model.safetensors`, or shards with `model.safetensors.index.json`; the two may be sharded differently.
    The new one has the shards, types and further files (configuration, tokenizer) of the strong one, and a file
    `extrapolation.json` that says where it comes from. Pieces of a few megabytes are read, extrapolated in float32 (or
    float64) and written, so that memory does not grow with the model. Integer and bool tensors are the strong ones.

    Shards appear whole and are kept when a call is interrupted: the same call goes on behind the last of them. The
    files that make the folder loadable come last.

    Adapters of peft (LoRA) are extrapolated as `extrapolate_adapter` says: `strong` is the folder of an adapter, and
    `weak` the folder of its base model or of another adapter on the same base.

    Args:
        weak: the folder that training began from (factor 0).
        strong: the folder that it led to (factor 1).
        out: made when it is not there; else empty, or begun by the same call.
        factor: finite; beyond 1 extrapolates.
        progress: called after every piece.

    Raises:
        ValueError: one line: a folder without such weights, models of different architectures, tensors or shapes,
            quantised weights, weights that do not stay finite, or an `out` with something else in it.
        OSError: not enough room, or a file that cannot be written.

    Source: as `extrapolate`.
    """
    factor = finite("factor", factor)
    weak, strong, out = Path(weak), Path(strong), Path(out)
    for name, folder in (("weak", weak), ("strong", strong)):
        if not folder.is_dir():
            refuse(name, "a model folder", folder)
        if out.resolve() == folder.resolve():
            refuse("out", f"another folder than {name}", out)
    if (strong / _ADAPTER_CONFIG).exists():
        return _adapter(weak, strong, out, factor, progress)
    if (weak / _ADAPTER_CONFIG).exists():
        refuse("strong", "an adapter, as weak is one (or merge weak into its base)", strong)
    return _model(weak, strong, out, factor, progress)


class _Weights(NamedTuple):
    """The weights of a model folder, by their headers."""

    files: tuple[SafetensorsFile, ...]
    place: Mapping[str, tuple[Path, Entry]]

    @classmethod
    def of(cls, name: str, folder: Path) -> _Weights:
        if (folder / _INDEX).exists():
            told = _json(folder / _INDEX).get("weight_map")
            if not isinstance(told, dict) or not told:
                refuse(name, f"a weight_map in {_INDEX}", folder)
            names = sorted(set(told.values()))
            if any(Path(one).name != one for one in names):
                refuse(name, "shards beside their index", folder)
        elif (folder / _SINGLE).exists():
            told, names = None, [_SINGLE]
        else:
            refuse(name, f"a folder with {_SINGLE} or {_INDEX}", folder)
        for one in names:
            if not (folder / one).exists():
                refuse(name, f"all shards of {_INDEX}", f"{folder} without {one}")
        files = tuple(SafetensorsFile.of(folder / one) for one in names)
        place = {entry.name: (file.path, entry) for file in files for entry in file.entries}
        if told is not None and {key: path.name for key, (path, _) in place.items()} != told:
            refuse(name, f"shards that hold what {_INDEX} says", folder)
        return cls(files, place)

    @property
    def fingerprint(self) -> str:
        """Of headers, sizes and times of change."""
        digest = hashlib.sha256()
        for file in self.files:
            state = file.path.stat()
            digest.update(file.head + f"{file.path.name} {state.st_size} {state.st_mtime_ns}".encode())
        return digest.hexdigest()


def _model(weak: Path, strong: Path, out: Path, factor: float, progress: Progress | None) -> Extrapolated:
    _check_configs(weak, strong)
    ours, theirs = _Weights.of("weak", weak), _Weights.of("strong", strong)
    check_same_keys(ours.place, theirs.place)
    for name, (_, entry) in theirs.place.items():
        other = ours.place[name][1]
        check_pair(name, other.shape, entry.shape, other.dtype, entry.dtype)
    _check_integers(ours, theirs)
    asked = {"format": _FORMAT, "factor": factor, "weak": ours.fingerprint, "strong": theirs.fingerprint}
    shards = _begun(out, asked)
    total = sum(entry.size for file in theirs.files for entry in file.entries)
    remaining = [file for file in theirs.files if not _is_whole(out / file.path.name, shards.get(file.path.name))]
    _check_room(out, sum(file.path.stat().st_size for file in remaining))
    done = total - sum(entry.size for file in remaining for entry in file.entries)
    manifest = {**asked, "weak_folder": str(weak), "strong_folder": str(strong), "shards": shards}
    with _Sources() as sources:
        for file in remaining:
            name = file.path.name
            if progress is not None:
                progress(done, total, name)
            with _written(out / name) as target:
                target.write(file.head)
                for entry in file.entries:
                    other_path, other = ours.place[entry.name]
                    for piece in _pieces(sources[other_path], other, sources[file.path], entry, factor):
                        target.write(piece)
                        done += len(piece)
                        if progress is not None:
                            progress(done, total, name)
            shards[name] = {"size": target.size, "sha256": target.digest.hexdigest()}
            write_atomically(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    if progress is not None and not remaining:
        progress(total, total, "all shards were there")
    _copy_the_rest(strong, out)
    if (strong / _INDEX).exists():
        write_atomically(out / _INDEX, (strong / _INDEX).read_bytes())
    floating = sum(entry.dtype.is_floating_point for _, entry in theirs.place.values())
    return Extrapolated(out, len(theirs.files), len(theirs.files) - len(remaining), floating, total)


def _check_integers(weak: _Weights, strong: _Weights) -> None:
    """Refuse quantised weights before anything is written."""
    with _Sources() as sources:
        for name, (path, entry) in strong.place.items():
            if not entry.dtype.is_floating_point:
                other_path, other = weak.place[name]
                for _ in _pieces(sources[other_path], other, sources[path], entry, 1.0):
                    pass


def _pieces(
    weak_file: BinaryIO, weak: Entry, strong_file: BinaryIO, strong: Entry, factor: float
) -> Iterator[memoryview]:
    """The bytes of the extrapolated tensor."""
    weak_file.seek(weak.begin)
    strong_file.seek(strong.begin)
    for start in range(0, strong.numel, _PIECE):
        count = min(_PIECE, strong.numel - start)
        ours = _elements(weak_file, weak, count)
        theirs = _elements(strong_file, strong, count)
        if not strong.shape:
            ours, theirs = ours[0], theirs[0]
        found = extrapolated_tensor(strong.name, ours, theirs, factor)
        yield found.reshape(-1).view(torch.uint8).numpy().data


def _elements(file: BinaryIO, entry: Entry, count: int) -> Tensor:
    data = bytearray(count * entry.dtype.itemsize)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise OSError(f"{file.name} ends within `{entry.name}`")
    return torch.frombuffer(data, dtype=entry.dtype)


def _adapter(weak: Path, strong: Path, out: Path, factor: float, progress: Progress | None) -> Extrapolated:
    adapter = _read_adapter("strong", strong)
    if (weak / _ADAPTER_CONFIG).exists():
        found = extrapolate_adapter(adapter, factor, weak=_read_adapter("weak", weak))
        fingerprint = _digest(weak / _ADAPTER)
    else:
        weights = _Weights.of("weak", weak)
        fingerprint = weights.fingerprint
        _check_fits(adapter, weights)
        found = extrapolate_adapter(adapter, factor, base=lambda name: _read_tensor(weights, name))
    asked = {"format": _FORMAT, "factor": factor, "weak": fingerprint, "strong": _digest(strong / _ADAPTER)}
    shards = _begun(out, asked)
    kept = _is_whole(out / _ADAPTER, shards.get(_ADAPTER))
    total = sum(tensor.nbytes for tensor in found.state.values())
    if not kept:
        metadata = SafetensorsFile.of(strong / _ADAPTER).metadata
        write_safetensors(out / _ADAPTER, found.state, metadata)
        shards[_ADAPTER] = {"size": (out / _ADAPTER).stat().st_size, "sha256": _digest(out / _ADAPTER)}
        manifest = {**asked, "weak_folder": str(weak), "strong_folder": str(strong), "shards": shards}
        write_atomically(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    if progress is not None:
        progress(total, total, _ADAPTER)
    _copy_the_rest(strong, out, _ADAPTER_CONFIG)
    write_atomically(out / _ADAPTER_CONFIG, json.dumps(found.config, indent=2, sort_keys=True) + "\n")
    return Extrapolated(out, 1, int(kept), len(found.state), total)


def _read_adapter(name: str, folder: Path) -> Adapter:
    if not (folder / _ADAPTER).exists():
        refuse(name, f"a folder with {_ADAPTER}", folder)
    return Adapter(_json(folder / _ADAPTER_CONFIG), SafetensorsFile.of(folder / _ADAPTER).tensors())


def _read_tensor(weights: _Weights, name: str) -> Tensor | None:
    if name not in weights.place:
        return None
    path, entry = weights.place[name]
    with path.open("rb") as file:
        file.seek(entry.begin)
        return _elements(file, entry, entry.numel).reshape(entry.shape)


def _check_fits(adapter: Adapter, weights: _Weights) -> None:
    """Refuse a base model that the adapter does not belong to."""
    for name, tensor in adapter.state.items():
        module, _, rest = name.removeprefix(PREFIX).partition(".lora_A.")
        if rest != "weight" or tensor.ndim != 2 or adapter.config.get("target_parameters"):
            continue
        entry = weights.place.get(f"{module}.weight", (None, None))[1]
        if entry is None or (entry.shape[-1] != tensor.shape[1] and entry.shape[0] != tensor.shape[1]):
            told = "none" if entry is None else entry.shape
            refuse("weak", f"the adapter's base model, with {tensor.shape[1]} inputs in `{module}.weight`", told)


def _begun(out: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The shards that an earlier call has written, by name; refuses a folder with something else in it."""
    if not out.exists() or not any(out.iterdir()):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / MANIFEST, json.dumps({**asked, "shards": {}}, indent=1) + "\n")
        return {}
    if not (out / MANIFEST).exists():
        refuse("out", "a new or empty folder, or one that this call began", out)
    told = _json(out / MANIFEST)
    for name, value in asked.items():
        if told.get(name) != value:
            other = f"of factor {told.get(name)}" if name == "factor" else f"of another {name} model"
            refuse("out", "a new folder, or one that this call began", f"{out}, an extrapolation {other}")
    for leftover in out.glob(f"*{TEMPORARY}"):
        leftover.unlink()
    return dict(told.get("shards") or {})


def _is_whole(path: Path, told: Mapping[str, Any] | None) -> bool:
    """Whether a shard is there as it was written."""
    if told is None or not path.exists():
        return False
    return path.stat().st_size == told["size"] and _digest(path) == told["sha256"]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise OSError(f"{out} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def _check_configs(weak: Path, strong: Path) -> None:
    """Refuse models that differ in what no tensor shows."""
    if not ((weak / "config.json").exists() and (strong / "config.json").exists()):
        return
    ours, theirs = _json(weak / "config.json"), _json(strong / "config.json")
    for name, config in (("weak", ours), ("strong", theirs)):
        if config.get("quantization_config"):
            refuse(name, "a model that is not quantised", "a quantization_config")
    for key in _ARCHITECTURE:
        if key in ours and key in theirs and ours[key] != theirs[key]:
            refuse("strong", f"the architecture of the weak model ({key} = {ours[key]})", theirs[key])


def _copy_the_rest(strong: Path, out: Path, *but: str) -> None:
    """Configuration, tokenizer and the like."""
    for file in sorted(strong.iterdir()):
        of_weights = file.name.endswith(_LEFT_BEHIND) or file.name.startswith(".") or file.name in but
        if file.is_file() and not of_weights:
            write_atomically(out / file.name, file.read_bytes())


def _json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(told, dict):
        raise ValueError(f"{path} is not a JSON object")
    return told


class _Target:
    """A file that is being written, and the hash of what is in it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)


@contextmanager
def _written(path: Path) -> Iterator[_Target]:
    """A file that is there as a whole in the end, or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            yield _Target(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class _Sources:
    """Files that are read from, each opened once."""

    def __init__(self) -> None:
        self.open: dict[Path, BinaryIO] = {}

    def __enter__(self) -> _Sources:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.open.values():
            file.close()

    def __getitem__(self, path: Path) -> BinaryIO:
        if path not in self.open:
            self.open[path] = path.open("rb")
        return self.open[path]
