"""Gradient caching: the same numbers, one chunk of activations at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scorecraft.core import gradient_cached, tiled
from scorecraft.similarity.multi_similarity import MultiSimilarityLoss


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 4)).double()


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
@pytest.mark.parametrize("tile", [False, True])
def test_value_and_gradient_equal_the_plain_call(chunk: int, tile: bool) -> None:
    model = encoder().eval()
    x, labels = torch.randn(19, 5, dtype=torch.float64), torch.arange(19) % 5
    loss = tiled(MultiSimilarityLoss(), block=5) if tile else MultiSimilarityLoss()
    expected = loss(model(x), labels)
    expected.backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    found = gradient_cached(loss, model, chunk=chunk)(x, labels)
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], plain)


def test_dropout_is_replayed() -> None:
    model = encoder()
    x, labels = torch.randn(16, 5, dtype=torch.float64), torch.arange(16) % 4
    seen: list[Tensor] = []
    model[2].register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    gradient_cached(MultiSimilarityLoss(), model, chunk=16)(x, labels).backward()
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])


MEASURE = """
import torch
from pathlib import Path
from scorecraft.core import gradient_cached
from scorecraft.similarity.multi_similarity import MultiSimilarityLoss

def encode(x):
    wide = x[:, :1] + torch.zeros(1, 1 << 18)
    for _ in range(4):
        wide = wide.sin()  # each saves its input, 1 MB a row
    return wide[:, :4] + x

def peak():  # of this program; `ru_maxrss` would start from that of the process that started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

x, labels, loss = torch.randn(64, 4, requires_grad=True), torch.arange(64) % 8, MultiSimilarityLoss()
loss(x, labels).backward()
gradient_cached(loss, encode, chunk=4)(x[:4], labels[:4]).backward()
start = peak()
gradient_cached(loss, encode, chunk=4)(x, labels).backward()
cached = peak()
loss(encode(x), labels).backward()
print(cached - start, peak() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of resident memory from /proc")
def test_activations_of_one_chunk_at_a_time() -> None:
    """Megabytes beyond those of a single chunk: next to none, against all 64 x 4 of the plain call."""
    # With every large block mapped on its own, resident memory is what is alive and not what the allocator keeps.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    cached, plain = map(int, run.stdout.split())
    assert cached < 40
    assert plain > 200


def test_inputs_may_be_mappings_and_sequences() -> None:
    model = encoder().eval()
    x, labels = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    loss = MultiSimilarityLoss()
    expected = loss(model(x), labels)
    by_name = gradient_cached(loss, lambda batch: model(batch["x"] + batch["shift"]), chunk=5)
    torch.testing.assert_close(by_name({"x": x, "shift": torch.zeros_like(x)}, labels), expected)
    by_order = gradient_cached(loss, lambda batch: model(batch[0] + batch[1]), chunk=5)
    torch.testing.assert_close(by_order([x, torch.zeros_like(x)], labels), expected)
    with pytest.raises(ValueError, match="argument `inputs`: expected tensors of the same number of examples"):
        by_order([x, x[:3]], labels)
    with pytest.raises(ValueError, match="argument `chunk`"):
        gradient_cached(loss, model, chunk=0)
