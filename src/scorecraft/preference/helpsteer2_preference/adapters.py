"""ExPO of LoRA adapters: weights are extrapolated, not factors.

A LoRA weight is `W + s B A`, and `B A` is not linear in its two factors, so that extrapolating them one by one is
something else. Where the weak model is the base itself, `W + f s B A` is the same adapter with its scaling multiplied.
Where both are adapters on one base,

    W + (1 - f) s_w B_w A_w + f s_s B_s A_s

is an adapter of the added ranks. Heads and biases that an adapter holds whole are extrapolated as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scorecraft.core.checks import finite, refuse
from scorecraft.preference.helpsteer2_preference.extrapolation import check_pair, check_same_keys, extrapolated_tensor

PREFIX = "base_model.model."
_FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")

Base = Callable[[str], Tensor | None]
"""The tensor of a name of the base model, or None."""


class Adapter(NamedTuple):
    """A LoRA adapter as peft saves it: `adapter_config.json`, and the tensors of `adapter_model.safetensors`."""

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]


def extrapolate_adapter(
    strong: Adapter, factor: float, *, weak: Adapter | None = None, base: Base | None = None
) -> Adapter:
    """The adapter of the extrapolated model.

    Args:
        strong: the adapter of the strong model (factor 1).
        factor: finite; beyond 1 extrapolates.
        weak: the adapter of the weak model (factor 0), on the same base; without one the base itself is the weak model.
        base: the base model's tensors by name, for the heads and biases that the adapter holds whole; needed where it
            holds any and there is no weak adapter.

    Raises:
        ValueError: no LoRA, or a kind of it that is not `W + s B A` (DoRA, initialisations that change the base,
            trained tokens); two adapters that do not adapt the same modules, or have patterns of ranks; a head of
            which the base has none.
    """
    factor = finite("factor", factor)
    _check_lora("strong", strong)
    if weak is None:
        return _scaled(strong, factor, base)
    _check_lora("weak", weak)
    return _added(weak, strong, factor)


def _scaled(strong: Adapter, factor: float, base: Base | None) -> Adapter:
    state = dict(strong.state)
    for name, tensor in strong.state.items():
        if _factor_of(name) is None:
            of_base = name.removeprefix(PREFIX)
            theirs = None if base is None else base(of_base)
            if theirs is None:
                refuse("weak", f"a base model with `{of_base}`, which the adapter holds whole", "none")
            check_pair(of_base, tuple(theirs.shape), tuple(tensor.shape), theirs.dtype, tensor.dtype)
            state[name] = extrapolated_tensor(of_base, theirs, tensor, factor)
    config = dict(strong.config)
    config["lora_alpha"] = factor * config["lora_alpha"]
    config["alpha_pattern"] = {where: factor * alpha for where, alpha in (config.get("alpha_pattern") or {}).items()}
    return Adapter(config, state)


def _added(weak: Adapter, strong: Adapter, factor: float) -> Adapter:
    for name, adapter in (("weak", weak), ("strong", strong)):
        for option in ("rank_pattern", "alpha_pattern", "target_parameters", "lora_bias"):
            if adapter.config.get(option):
                refuse(name, f"an adapter without {option}, to be added to another", adapter.config[option])
    check_same_keys(weak.state, strong.state)
    state: dict[str, Tensor] = {}
    shares = {"weak": (1 - factor) * _scaling(weak.config), "strong": factor * _scaling(strong.config)}
    for name, theirs in strong.state.items():
        ours, kind = weak.state[name], _factor_of(name)
        if kind is None:
            check_pair(name, tuple(ours.shape), tuple(theirs.shape), ours.dtype, theirs.dtype)
            state[name] = extrapolated_tensor(name, ours, theirs, factor)
        elif kind.endswith("A"):
            state[name] = torch.cat([ours.to(theirs), theirs], dim=0)
        else:
            parts = [shares["weak"] * ours.float(), shares["strong"] * theirs.float()]
            state[name] = torch.cat(parts, dim=1).to(theirs.dtype)
    rank = weak.config["r"] + strong.config["r"]
    return Adapter({**strong.config, "r": rank, "lora_alpha": rank, "use_rslora": False}, state)


def _scaling(config: Mapping[str, Any]) -> float:
    return config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])


def _factor_of(name: str) -> str | None:
    """Which factor of a LoRA product a tensor is; None for one that is held whole."""
    parts = name.split(".")
    return next((factor for factor in _FACTORS if factor in parts), None)


def _check_lora(name: str, adapter: Adapter) -> None:
    config = adapter.config
    if config.get("peft_type") != "LORA":
        refuse(name, "a LoRA adapter", f"one of type {config.get('peft_type')!r}")
    if config.get("use_dora"):
        refuse(name, "an adapter whose weight is W + s B A", "DoRA, which is not: merge it into its base")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGES_BASE):
        refuse(name, "an adapter on an unchanged base", f"one that began as {start}: merge it into its base")
    if config.get("trainable_token_indices"):
        refuse(name, "an adapter without trained tokens", "trainable_token_indices: merge it into its base")
