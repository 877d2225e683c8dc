"""LAMB as it was used: against the update written out in numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scorecraft.relevance.star_adore import Lamb, decay_groups


def by_hand(w: torch.Tensor, gradients: list[torch.Tensor], lr: float, decay: float) -> torch.Tensor:
    m = v = torch.zeros_like(w)
    for g in gradients:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = m / (v.sqrt() + 1e-8) + decay * w
        trust = min(float(w.norm()), 10.0) / float(u.norm()) if w.norm() > 0 and u.norm() > 0 else 1.0
        w = w - lr * trust * u
    return w


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0], ids=["small", "plain", "clipped"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_updates(size: float, decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = size * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    weight = nn.Parameter(start.clone())
    optimizer = Lamb([weight], lr=0.1, weight_decay=decay)
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
    torch.testing.assert_close(weight.detach(), by_hand(start, gradients, 0.1, decay))


def test_trust_is_one_where_a_norm_is_zero() -> None:
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    weight.grad = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    Lamb([weight], lr=1.0, weight_decay=0.0).step()
    ratio = 0.1 / 0.001**0.5
    torch.testing.assert_close(
        weight.detach(), torch.tensor([-ratio, ratio, 0.0], dtype=torch.float64), rtol=1e-6, atol=0
    )
    still = nn.Parameter(torch.ones(3))
    still.grad = torch.zeros(3)
    Lamb([still], lr=1.0, weight_decay=0.0).step()
    assert (still == 1).all()


def test_state_dict_goes_on_where_it_stopped() -> None:
    def run(steps: list[int], weight: nn.Parameter, optimizer: Lamb) -> None:
        for step in steps:
            weight.grad = torch.full_like(weight, float(step + 1))
            optimizer.step()

    whole = nn.Parameter(torch.tensor([1.0, -2.0]))
    run([0, 1, 2, 3], whole, Lamb([whole], lr=0.05))
    first = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Lamb([first], lr=0.05)
    run([0, 1], first, optimizer)
    second = nn.Parameter(first.detach().clone())
    resumed = Lamb([second], lr=0.05)
    resumed.load_state_dict(optimizer.state_dict())
    run([2, 3], second, resumed)
    assert torch.equal(second, whole)


def test_closure_and_parameters_without_gradient() -> None:
    weight, idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Lamb([weight, idle], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2
    assert (weight < 1).all()
    assert (idle == 1).all()


def test_biases_and_layer_norms_do_not_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 2))
    module[2].weight.requires_grad_(False)
    decaying, constant = decay_groups(module, 0.01)
    assert decaying["weight_decay"] == 0.01
    assert [id(p) for p in decaying["params"]] == [id(module[0].weight)]
    assert constant["weight_decay"] == 0
    assert {id(p) for p in constant["params"]} == {id(p) for p in (module[0].bias, *module[1].parameters())}


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": 0.0}, {"weight_decay": -1.0}])
def test_hyper_parameters_are_refused(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"argument `{name}`: expected "):
        Lamb([nn.Parameter(torch.ones(1))], **options)  # type: ignore[arg-type]
