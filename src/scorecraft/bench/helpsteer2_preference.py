"""ExPO of a checkpoint, streamed, against loading both models.

A weak and a strong model of bfloat16 tensors, the strong one in four shards; the largest tensor stands for an embedding
and is a quarter of the model. The peer loads both with the safetensors library, computes in float32 tensor by tensor
and saves shard by shard. Memory is taken at 1 GB per model, and time, which is mostly that of the disk, at 128 MB.
Files lie in a temporary folder of their own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from scorecraft.bench.harness import Call, Case, Entry, Figure, Shape, megabytes
from scorecraft.bench.inputs import SEED
from scorecraft.preference.helpsteer2_preference import extrapolate_checkpoint
from scorecraft.preference.helpsteer2_preference.safetensors_files import SafetensorsFile

FACTOR = 1.52
_SHARDS, _TENSORS, _WIDTH = 4, 8, 512
_INDEX = "model.safetensors.index.json"

Extrapolate = Callable[[Path, Path, Path], object]


def _ours(weak: Path, strong: Path, out: Path) -> object:
    return extrapolate_checkpoint(weak, strong, out, factor=FACTOR)


def _load_both(weak: Path, strong: Path, out: Path) -> object:
    from safetensors.torch import load_file, save_file

    files = sorted(strong.glob("*.safetensors"))
    ours = {name: tensor for file in sorted(weak.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    theirs = {file.name: load_file(file) for file in files}
    for file in files:
        part = {
            name: torch.lerp(ours[name].float(), tensor.float(), FACTOR).to(tensor.dtype)
            for name, tensor in theirs[file.name].items()
        }
        save_file(part, out / file.name)
    return None


def _extrapolation(extrapolate: Extrapolate) -> Callable[[Shape, torch.device], Call]:
    def build(shape: Shape, device: torch.device) -> Call:
        place = tempfile.TemporaryDirectory(prefix="scorecraft-bench-")
        weak, strong = Path(place.name, "weak"), Path(place.name, "strong")
        rows = shape["kilobytes"] * 1000 // 2 // _WIDTH
        _model(weak, rows, 0)
        _model(strong, rows, 1)

        def call() -> float:
            out = Path(place.name, "out")  # the folder lives as long as this call does
            out.mkdir()
            extrapolate(weak, strong, out)
            value = _mean_of_the_last(out)
            shutil.rmtree(out)
            return value

        return call

    return build


def _model(folder: Path, rows: int, number: int) -> None:
    """A model of `rows` rows in all: per shard one large tensor and some small ones, written without holding it."""
    folder.mkdir()
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(SEED + number)).bfloat16()
    data = block.view(torch.uint8).numpy().tobytes()
    told: dict[str, str] = {}
    for shard in range(_SHARDS):
        file = f"model-{shard + 1:05}-of-{_SHARDS:05}.safetensors"
        header: dict[str, dict[str, object]] = {}
        end = 0
        # The first shard is one tensor alone, as an embedding often is.
        parts = 1 if shard == 0 else _TENSORS
        for tensor in range(parts):
            name = f"layers.{shard}.{tensor}.weight"
            shape = [max(rows // _SHARDS // parts, 1), _WIDTH]
            size = 2 * shape[0] * shape[1]
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            told[name] = file
            end += size
        head = json.dumps(header).encode()
        with (folder / file).open("wb") as target:
            target.write(len(head).to_bytes(8, "little") + head)
            for start in range(0, end, len(data)):
                target.write(data[: min(len(data), end - start)])
    (folder / _INDEX).write_text(json.dumps({"weight_map": told}))


def _mean_of_the_last(out: Path) -> float:
    """The mean of squares of the last million or fewer numbers of the last shard."""
    path = sorted(out.glob("*.safetensors"))[-1]
    size = min(2_000_000, SafetensorsFile.of(path).entries[-1].size)
    with path.open("rb") as file:
        file.seek(-size, 2)
        values = torch.frombuffer(bytearray(file.read(size)), dtype=torch.bfloat16)
    return float(values.double().square().mean())


_ENTRIES = {
    "ours": Entry("extrapolate_checkpoint()", _extrapolation(_ours)),
    "peer": Entry("safetensors, both models loaded", _extrapolation(_load_both), needs=("safetensors",)),
}

CASES = (
    Case(
        name="ExPO of a checkpoint of 1 GB",
        shape={"kilobytes": 1_000_000},
        small={"kilobytes": 200},
        entries=_ENTRIES,  # type: ignore[arg-type]
        figures=(Figure("memory", (megabytes(300),)),),
        agreement=1e-9,
    ),
    Case(
        name="ExPO of a checkpoint of 128 MB",
        shape={"kilobytes": 128_000},
        small={"kilobytes": 200},
        entries=_ENTRIES,  # type: ignore[arg-type]
        figures=(Figure("time"),),
        agreement=1e-9,
    ),
)
