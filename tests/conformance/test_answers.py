"""The conformance matrix of objectives on answers: what every loss per pair of answers, or per answer, promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from tests.conformance.subjects import likelihood_types, preference_types
from tests.ranks import run_ranks
from torch import Tensor

from scorecraft.core import LikelihoodObjective, PreferenceObjective, across_ranks, preference_gradients

Kind: TypeAlias = "type[PreferenceObjective] | type[LikelihoodObjective]"
PREFERENCES, LIKELIHOODS = preference_types(), likelihood_types()
TYPES: list[Kind] = [*PREFERENCES, *LIKELIHOODS]
assert len(PREFERENCES) >= 5
assert len(LIKELIHOODS) >= 1
SIZES = {"even": (4, 4), "uneven": (3, 7)}
per_kind = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
per_preference = pytest.mark.parametrize("kind", PREFERENCES, ids=lambda kind: kind.__name__)


def data(kind: Kind, answers: int = 6, seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """What is differentiated, and all that the objective needs beside it."""
    random = torch.Generator().manual_seed(seed)

    def drawn(scale: float) -> Tensor:
        values = scale * torch.rand(answers, generator=random, dtype=torch.float64)
        return values if getattr(kind, "reads", "") == "rewards" else -values - 1e-3

    def counts() -> Tensor:
        return torch.randint(1, 9, (answers,), generator=random)

    if issubclass(kind, LikelihoodObjective):
        return (drawn(4).requires_grad_(),), {"tokens": counts()}
    leaves = (drawn(4).requires_grad_(), drawn(4).requires_grad_())
    objective = kind.example()
    keywords = {}
    if objective.needs_reference:
        keywords |= {"reference_chosen": drawn(4), "reference_rejected": drawn(4)}
    if objective.needs_tokens:
        keywords |= {"chosen_tokens": counts(), "rejected_tokens": counts()}
    if objective.needs_strength:
        keywords |= {"strength": torch.randint(1, 4, (answers,), generator=random)}
    return leaves, keywords


def rows(values: dict[str, Tensor], own: slice | Tensor) -> dict[str, Tensor]:
    return {name: value[own] for name, value in values.items()}


def gradients(value: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value.sum(), leaves, allow_unused=True, materialize_grads=True)


def close(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@per_kind
def test_gradient_is_the_derivative_or_the_stated_pull(kind: Kind) -> None:
    objective = kind.example()
    if not objective.value_is_the_loss:
        pytest.skip("part of it is held constant: the value is not what descends")
    leaves, keywords = data(kind, answers=4)
    assert torch.autograd.gradcheck(lambda *inputs: objective(*inputs, **keywords), leaves, eps=1e-7, atol=1e-5)


@per_kind
def test_every_item_owns_its_loss(kind: Kind) -> None:
    leaves, keywords = data(kind)
    losses = kind.example(reduction="none")(*leaves, **keywords)
    assert losses.shape == (6,)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    again = kind.example(reduction="none")(*(leaf[order] for leaf in leaves), **rows(keywords, order))
    torch.testing.assert_close(again, losses[order])
    alone = kind.example()(*(leaf[2:3] for leaf in leaves), **rows(keywords, slice(2, 3)))
    torch.testing.assert_close(alone, losses[2])


@per_kind
def test_reductions_and_weights(kind: Kind) -> None:
    leaves, keywords = data(kind)
    weights = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weights[2] = 0
    losses = kind.example(reduction="none")(*leaves, **keywords)
    torch.testing.assert_close(kind.example(reduction="sum")(*leaves, **keywords), losses.sum())
    torch.testing.assert_close(kind.example()(*leaves, **keywords), losses.mean())
    weighted = kind.example()(*leaves, **keywords, weights=weights)
    torch.testing.assert_close(weighted, (losses * weights).sum() / weights.sum())


@per_kind
def test_objectives_add_and_scale(kind: Kind) -> None:
    objective = kind.example()
    leaves, keywords = data(kind)
    total = objective + 0.5 * objective
    torch.testing.assert_close(total(*leaves, **keywords), 1.5 * objective(*leaves, **keywords))
    wanted = gradients(1.5 * objective(*leaves, **keywords), leaves)
    close(gradients(total(*leaves, **keywords), leaves), wanted)
    if isinstance(total, PreferenceObjective):
        close(preference_gradients(total, *leaves, **keywords), wanted)


@per_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_values_of_half_precision(kind: Kind, dtype: torch.dtype) -> None:
    objective = kind.example()
    for scale in (1e-3, 1.0, 6e4):
        leaves, keywords = data(kind)
        extreme = tuple((scale * leaf.detach() / 4).to(dtype).requires_grad_() for leaf in leaves)
        keywords = {name: one.to(dtype) if one.is_floating_point() else one for name, one in keywords.items()}
        value = objective(*extreme, **keywords)
        assert value.dtype == torch.float32
        assert value.isfinite()
        for pull in gradients(value, extreme):
            assert pull.isfinite().all()


@per_kind
def test_compiles_in_one_graph(kind: Kind) -> None:
    objective = kind.example()
    leaves, keywords = data(kind)
    torch._dynamo.reset()  # or the kinds before it count towards its limit of recompilations
    value = torch.compile(objective, fullgraph=True, backend="aot_eager")(*leaves, **keywords)
    torch.testing.assert_close(value, objective(*leaves, **keywords))
    close(gradients(value, leaves), gradients(objective(*leaves, **keywords), leaves))


@per_kind
def test_state_round_trip(kind: Kind) -> None:
    objective = kind.example()
    kind.example().load_state_dict(safetensors.torch.load(safetensors.torch.save(dict(objective.state_dict()))))
    assert kind.__name__ in repr(objective)
    assert "reduction" in repr(objective)


@per_kind
def test_what_is_refused(kind: Kind) -> None:
    objective = kind.example()
    leaves, keywords = data(kind)
    first = "log_probabilities" if isinstance(objective, LikelihoodObjective) else "chosen"
    values, others = leaves[0].detach(), leaves[1:]
    bad = values.clone()
    bad[1] = torch.nan
    calls = [
        (lambda: objective(bad, *others, **keywords), f"argument `{first}`: expected finite"),
        (lambda: objective(values.long(), *others, **keywords), f"argument `{first}`: expected floating-point"),
        (lambda: objective(values[:0], *others, **keywords), f"argument `{first}`"),
        (lambda: objective(*leaves, **keywords, weights=torch.ones(3)), "argument `weights`"),
        (lambda: objective(*leaves, **keywords, weights=-torch.ones(6)), "argument `weights`: expected finite weights"),
        (lambda: kind.example(reduction="median"), "argument `reduction`"),
    ]
    if others:
        calls.append((lambda: objective(values, others[0][:2], **keywords), "argument `rejected`"))
    if getattr(objective, "reads", "log_probabilities") == "log_probabilities":
        line = f"argument `{first}`: expected finite log-probabilities <= 0, got"
        calls.append((lambda: objective(-values, *others, **keywords), line))
    if getattr(objective, "needs_tokens", True):
        name = "tokens" if isinstance(objective, LikelihoodObjective) else "chosen_tokens"
        empty = {**keywords, name: torch.zeros(6, dtype=torch.long)}
        calls.append((lambda: objective(*leaves, **empty), f"argument `{name}`: expected at least one token"))
    for name in keywords if isinstance(objective, PreferenceObjective) else ():
        missing = {other: value for other, value in keywords.items() if other != name}
        calls.append((lambda missing=missing: objective(*leaves, **missing), f"argument `{name}`: expected"))
    for call, message in calls:
        with pytest.raises(ValueError, match=r"^argument") as caught:
            call()
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


@per_preference
def test_references_are_constants(kind: type[PreferenceObjective]) -> None:
    leaves, keywords = data(kind)
    if not kind.example().needs_reference:
        pytest.skip("it compares with no reference")
    fixed = {name: value.requires_grad_() for name, value in keywords.items() if name.startswith("reference")}
    value = kind.example()(*leaves, **{**keywords, **fixed})
    assert all((one == 0).all() for one in gradients(value, tuple(fixed.values())))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@per_kind
def test_cuda_equals_cpu(kind: Kind) -> None:
    leaves, keywords = data(kind)
    wanted = kind.example()(*leaves, **keywords)
    there = tuple(leaf.detach().cuda().requires_grad_() for leaf in leaves)
    found = kind.example().cuda()(*there, **{name: value.cuda() for name, value in keywords.items()})
    torch.testing.assert_close(found.cpu(), wanted)
    close(tuple(one.cpu() for one in gradients(found, there)), gradients(wanted, leaves))


def _on_ranks(rank: int, folder: str) -> None:
    errors: dict[str, float] = {}
    for name, sizes in SIZES.items():
        own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        for kind in TYPES:
            leaves, keywords = data(kind, answers=sum(sizes))
            whole = kind.example()(*leaves, **keywords)
            expected = gradients(whole, leaves)
            mine = tuple(leaf.detach()[own].requires_grad_() for leaf in leaves)
            value = across_ranks(kind.example())(*mine, **rows(keywords, own))
            mean = value.detach().clone()
            dist.all_reduce(mean)
            off = [float((mean / len(sizes) - whole).abs())]
            for pull, wanted in zip(gradients(value, mine), expected, strict=True):
                off.append(float((pull / len(sizes) - wanted[own]).abs().max()))  # the average of DDP
            errors[f"{kind.__name__} {name}"] = max(off)
    Path(folder, f"{rank}.json").write_text(json.dumps(errors))


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    run_ranks(_on_ranks, tmp_path)
    for rank in range(2):
        errors: dict[str, Any] = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(errors) == 2 * len(TYPES)
        assert {name: error for name, error in errors.items() if not error < 1e-10} == {}
