"""Refuse bad input at the door: one line that names the argument, what was expected and what came.

Shapes, dtypes and hyper-parameters are always checked. Values (non-finite entries, zero rows, label ranges) are read on
the CPU in eager mode; on other devices the check is an asynchronous assert, so that nothing waits for the device; under
`torch.compile` values are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor


def refuse(name: str, expected: str, got: object) -> NoReturn:
    """Raise the one-line `ValueError` of the house."""
    raise ValueError(f"argument `{name}`: expected {expected}, got {got}")


def describe(value: object) -> str:
    """A short description of what came: dtype and shape of a tensor, type and value of anything else."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"{value!r} ({type(value).__name__})"


def positive(name: str, value: float) -> float:
    """A finite number above zero."""
    if not _is_number(value) or not (math.isfinite(value) and value > 0):
        refuse(name, "a finite number > 0", describe(value))
    return float(value)


def non_negative(name: str, value: float) -> float:
    """A finite number of at least zero."""
    if not _is_number(value) or not (math.isfinite(value) and value >= 0):
        refuse(name, "a finite number >= 0", describe(value))
    return float(value)


def finite(name: str, value: float) -> float:
    """A finite number."""
    if not _is_number(value) or not math.isfinite(value):
        refuse(name, "a finite number", describe(value))
    return float(value)


def probability(name: str, value: float) -> float:
    """A number in [0, 1]."""
    if not _is_number(value) or not 0 <= value <= 1:
        refuse(name, "a number in [0, 1]", describe(value))
    return float(value)


def natural(name: str, value: int) -> int:
    """An integer of at least zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        refuse(name, "an integer >= 0", describe(value))
    return value


def integer_labels(labels: object) -> Tensor:
    """Integer labels `[n]` on the CPU, from a tensor, an array or a list."""
    values = torch.as_tensor(labels).detach().cpu()
    if values.ndim != 1 or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        refuse("labels", "integer labels [n]", describe(values))
    return values


def replica(num_replicas: int, rank: int) -> tuple[int, int]:
    """A number of replicas and the rank of one of them."""
    positive_integer("num_replicas", num_replicas)
    if natural("rank", rank) >= num_replicas:
        refuse("rank", f"a rank below num_replicas = {num_replicas}", rank)
    return num_replicas, rank


def positive_integer(name: str, value: int) -> int:
    """An integer of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        refuse(name, "an integer >= 1", describe(value))
    return value


def choice(name: str, value: str, options: tuple[str, ...]) -> str:
    """One of the named options."""
    if value not in options:
        refuse(name, "one of " + ", ".join(map(repr, options)), repr(value))
    return value


def check_embeddings(name: str, value: Tensor, *, dimensions: int = 2, validate: bool = True) -> None:
    """A floating-point tensor `[n, d]` (or of `dimensions` axes) with at least one row, every entry finite."""
    if not isinstance(value, Tensor):
        raise TypeError(f"argument `{name}`: expected a tensor, got {type(value).__name__}")
    if value.ndim != dimensions or not value.is_floating_point():
        refuse(name, f"a floating-point tensor with {dimensions} axes", describe(value))
    if value.shape[0] == 0:
        refuse(name, "at least one row", describe(value))
    if validate:
        check_values(name, "finite values only", lambda: torch.isfinite(value).all(), value)


def check_labels(name: str, value: Tensor, rows: int) -> None:
    """Integer labels `[rows]`, or a bool / integer multi-hot matrix `[rows, classes]`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"argument `{name}`: expected a tensor, got {type(value).__name__}")
    if value.ndim not in (1, 2) or value.shape[0] != rows:
        refuse(name, f"{rows} labels, one per embedding", describe(value))
    if value.is_floating_point() or value.is_complex() or (value.ndim == 1 and value.dtype == torch.bool):
        refuse(name, "integer labels", describe(value))


def check_values(name: str, expected: str, holds: Callable[[], Tensor], value: Tensor) -> None:
    """Check a statement about values: `holds()` returns a 0-d bool tensor, or one bool per entry of `value`.

    Eager CPU reads it, other devices assert it asynchronously, compiled code skips it.
    """
    if torch.compiler.is_compiling():
        return
    outcome = holds()
    if value.device.type == "cpu":
        if not bool(outcome.all()):
            refuse(name, expected, _offender(value, outcome))
    else:
        torch.ops.aten._assert_async.msg(outcome.all(), f"argument `{name}`: expected {expected}")


def _offender(value: Tensor, outcome: Tensor) -> str:
    """Where the first entry stands that is not as it should be (the first non-finite one, where none was named)."""
    if outcome.shape == value.shape and value.ndim:
        bad = (~outcome).nonzero()
    else:
        bad = (~torch.isfinite(value)).nonzero() if value.is_floating_point() else value.new_empty(0)
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        return f"{value.detach()[place].item()} at {list(place)} ({len(bad)} such values in a {describe(value)})"
    return describe(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
