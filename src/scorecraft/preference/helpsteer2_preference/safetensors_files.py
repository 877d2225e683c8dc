"""The safetensors format, read and written a piece at a time.

    8 bytes     length of the header, little-endian
    header      JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}}, and "__metadata__": {string: string}
    the rest    the tensors, one behind the other, in the order of their offsets

The library of that name maps whole files into memory; a checkpoint streamed through it stays resident.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from scorecraft.core.checks import refuse
from scorecraft.core.files import write_atomically

_LONGEST_HEADER = 100_000_000
_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, ours) for name, ours in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Of its data, in bytes from the start of the file."""

    @property
    def numel(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """In bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """What a file says it holds."""

    path: Path
    head: bytes
    """Length and header as they stand, to be written in front of other data of the same layout."""
    entries: tuple[Entry, ...]
    """In the order of their data."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> SafetensorsFile:
        """Read the header of a file.

        Raises:
            ValueError: it is no safetensors file, or not a whole one.
        """
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 0 < length <= min(_LONGEST_HEADER, size - 8):
                refuse("path", "a safetensors file", path)
            header = file.read(length)
        try:
            told: dict[str, Any] = json.loads(header)
            metadata = told.pop("__metadata__", {})
            entries = sorted(
                (
                    Entry(name, DTYPES[one["dtype"]], tuple(one["shape"]), 8 + length + one["data_offsets"][0])
                    for name, one in told.items()
                ),
                key=lambda entry: (entry.begin, entry.size),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"argument `path`: expected a safetensors file, got {path} ({error!r})") from error
        end = 8 + length
        for entry in entries:
            if entry.begin != end:
                refuse("path", "a safetensors file of tensors one behind the other", f"{path}, `{entry.name}`")
            end += entry.size
        if end != size:
            refuse("path", f"a whole safetensors file of {end} bytes", f"{path} of {size}")
        return cls(path, length.to_bytes(8, "little") + header, tuple(entries), metadata)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, in memory."""
        with self.path.open("rb") as file:
            return {entry.name: _read(file, entry) for entry in self.entries}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a small file whole and atomically."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts, end = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + len(data)],
        }  # fmt: skip
        parts.append(data)
        end += len(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    write_atomically(path, b"".join([len(head).to_bytes(8, "little"), head, *parts]))


def _read(file: BinaryIO, entry: Entry) -> Tensor:
    if not entry.numel:
        return torch.empty(entry.shape, dtype=entry.dtype)
    file.seek(entry.begin)
    return torch.frombuffer(bytearray(file.read(entry.size)), dtype=entry.dtype).reshape(entry.shape)
