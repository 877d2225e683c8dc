"""LAMB as STAR was trained with: layer-wise trust ratios, and no bias correction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from scorecraft.core.checks import non_negative, positive, refuse


class Lamb(torch.optim.Optimizer):
    """`w -= lr * trust * u` with `u = m / (sqrt(v) + eps) + weight_decay * w`, per parameter tensor.

        m = beta_1 m + (1 - beta_1) g          v = beta_2 v + (1 - beta_2) g^2          both 0 at the start
        trust = clip(|w|, 0, 10) / |u|         1 where either norm is 0

    Norms are those before the update. `m` and `v` are not corrected for their start.

    Args:
        params: parameters or groups of them; see `decay_groups`.
        lr: learning rate, >= 0.
        betas: decay of the two averages, in [0, 1).
        eps: added to the root, > 0.
        weight_decay: >= 0.

    Raises:
        ValueError: a hyper-parameter out of its range.

    Source: You et al. 2019, arXiv 1904.00962, in the variant of the official code of arXiv 2104.08051.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            refuse("betas", "two numbers in [0, 1)", betas)
        defaults = {
            "lr": non_negative("lr", lr),
            "betas": betas,
            "eps": positive("eps", eps),
            "weight_decay": non_negative("weight_decay", weight_decay),
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient, state = parameter.grad, self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                m = state["exp_avg"].mul_(first).add_(gradient, alpha=1 - first)
                v = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                update = m / (v.sqrt() + group["eps"]) + group["weight_decay"] * parameter
                parameter.sub_(group["lr"] * _trust(parameter, update) * update)
        return loss


def _trust(parameter: Tensor, update: Tensor) -> Tensor:
    weight, step = parameter.norm(), update.norm()
    known = (weight > 0) & (step > 0)
    return torch.where(known, weight.clamp(max=10) / torch.where(known, step, 1.0), 1.0)


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters of a module in two groups: biases and the weights of LayerNorms do not decay."""
    still = {id(parameter) for layer in module.modules() if isinstance(layer, nn.LayerNorm)
             for parameter in layer.parameters(recurse=False)}  # fmt: skip
    decaying, constant = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            kept = id(parameter) in still or name.rpartition(".")[2] == "bias"
            (constant if kept else decaying).append(parameter)
    groups = [(decaying, non_negative("weight_decay", weight_decay)), (constant, 0.0)]
    return [{"params": members, "weight_decay": decay} for members, decay in groups if members]
