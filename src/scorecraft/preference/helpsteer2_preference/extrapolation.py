"""ExPO: a model on the line from a weak one through a strong one, beyond it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from scorecraft.core.checks import finite, positive, refuse

FACTOR = 1.52
"""The factor of the paper, chosen on RewardBench."""
_QUANTISED = tuple(
    getattr(torch, name) for name in dir(torch) if name.startswith(("float8_", "float4_")) and "_" in name
)


def extrapolate(weak: Mapping[str, Tensor], strong: Mapping[str, Tensor], factor: float = FACTOR) -> dict[str, Tensor]:
    """`weak + factor (strong - weak)` for every floating-point tensor of two state dicts.

    With ExPO's own `alpha = factor - 1` it is `strong + alpha (strong - weak)`. Computed in float32 (float64 in
    float64) and cast to the type of the strong tensor. Tensors that share their memory (tied weights) are computed once
    and share it again. Integer and bool tensors are the strong ones.

    Args:
        weak: the model that training began from (factor 0), such as the regression model.
        strong: the model that it led to (factor 1), such as the scaled Bradley-Terry model.
        factor: finite; beyond 1 extrapolates.

    Raises:
        ValueError: other keys or shapes, quantised tensors, or a result that is not finite.

    Source: Zheng et al. 2024, "Weak-to-Strong Extrapolation Expedites Alignment"; Wang et al. 2024, arXiv 2410.01257,
    section 4.
    """
    factor = finite("factor", factor)
    check_same_keys(weak, strong)
    done: dict[tuple[object, ...], Tensor] = {}
    extrapolated: dict[str, Tensor] = {}
    for name, theirs in strong.items():
        ours = weak[name]
        check_pair(name, ours.shape, theirs.shape, ours.dtype, theirs.dtype)
        memory = (*_place(ours), *_place(theirs))
        if memory not in done:
            done[memory] = extrapolated_tensor(name, ours, theirs, factor)
        extrapolated[name] = done[memory]
    return extrapolated


@torch.no_grad()
def extrapolated_tensor(name: str, weak: Tensor, strong: Tensor, factor: float) -> Tensor:
    """One tensor of `extrapolate`, in memory of its own.

    Raises:
        ValueError: integers that differ although they are no counter, or a result that is not finite.
    """
    if not strong.is_floating_point():
        if strong.ndim and not torch.equal(weak.to(strong), strong):
            refuse("strong", f"the same integers in `{name}` (a quantised weight has no extrapolation)", "others")
        return strong.clone()
    precise = torch.float64 if torch.float64 in (weak.dtype, strong.dtype) else torch.float32
    result = torch.lerp(weak.to(strong.device, precise), strong.to(precise), factor).to(strong.dtype)
    if not bool(result.isfinite().all()):
        refuse("factor", f"a factor that leaves `{name}` finite in {str(strong.dtype).removeprefix('torch.')}", factor)
    return result


class FactorSearch(NamedTuple):
    """What a search for the factor found."""

    best: float
    scores: dict[float, float]
    """The score of every factor that was tried, in ascending order of factors."""


def search_factor(
    score: Callable[[float], float],
    *,
    low: float = 1.1,
    high: float = 2.0,
    step: float = 0.1,
    fine_step: float = 0.01,
) -> FactorSearch:
    """The factor with the highest score on a grid, and then on a finer one around the best of it.

    Score on a validation set of its own: the best of thirty factors on the test set is not a test result.

    Args:
        score: called once per factor, such as the pair accuracy of the extrapolated model; higher is better.
        low: the smallest factor of the grid.
        high: the largest one.
        step: of the grid, > 0.
        fine_step: of the finer grid, which reaches from one `step` below the best to one above it; > 0.

    Raises:
        ValueError: an empty grid, or a score that is no finite number.

    Source: Wang et al. 2024, arXiv 2410.01257, section 4.
    """
    step, fine_step = positive("step", step), positive("fine_step", fine_step)
    if not finite("low", low) <= finite("high", high):
        refuse("high", f"a factor of at least low = {low:g}", high)
    scores: dict[float, float] = {}

    def best_of(begin: float, count: int, by: float) -> float:
        for number in range(count):
            factor = round(begin + number * by, 10)
            if factor not in scores:
                scores[factor] = finite("score", score(factor))
        return min(scores, key=lambda factor: (-scores[factor], factor))

    best = best_of(low, int((high - low) / step + 1e-9) + 1, step)
    around = int(step / fine_step + 1e-9)
    best = best_of(best - around * fine_step, 2 * around + 1, fine_step)
    return FactorSearch(best, dict(sorted(scores.items())))


def check_same_keys(weak: Mapping[str, object], strong: Mapping[str, object]) -> None:
    """Refuse models of different architectures: tensors that one of them does not have."""
    for name, there, other in (("strong", strong, weak), ("weak", weak, strong)):
        if missing := sorted(set(other) - set(there)):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            refuse(name, "the tensors of the other model", f"none named `{missing[0]}`{more}")


def check_pair(
    name: str, weak_shape: tuple[int, ...], strong_shape: tuple[int, ...], weak: torch.dtype, strong: torch.dtype
) -> None:
    """Refuse two tensors that have no line through them."""
    if tuple(weak_shape) != tuple(strong_shape):
        refuse("strong", f"`{name}` of shape {tuple(weak_shape)}, as in the weak model", tuple(strong_shape))
    for which, dtype in (("weak", weak), ("strong", strong)):
        if dtype in _QUANTISED or dtype.is_complex:
            refuse(which, f"real numbers that are not quantised in `{name}`", dtype)
    if weak.is_floating_point != strong.is_floating_point:
        refuse("strong", f"`{name}` of a type like {weak}, as in the weak model", strong)


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Where a tensor lies; tensors without memory of their own (empty, or on the meta device) are never tied."""
    if not tensor.numel() or tensor.is_meta:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
