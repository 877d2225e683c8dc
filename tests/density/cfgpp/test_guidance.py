"""CFG++: check values of the published samplers, and what holds for every solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.density.mixtures import EVERY, MEANS, SOME, START, denoiser
from torch import Tensor

from scorecraft.density.cfgpp import CFGPlusPlus, equivalent_scales, invert
from scorecraft.density.denoiser import VariancePreserving
from scorecraft.density.guidance import ClassifierFreeGuidance
from scorecraft.density.noise_levels import karras_levels
from scorecraft.density.solvers import (
    DPMSolver2M,
    DPMSolver2SAncestral,
    Estimate,
    Euler,
    EulerAncestral,
    Heun,
    Solver,
    ancestral_levels,
    solve,
    trajectory,
    unguided,
)

BRANCHES: dict[str, Any] = {"condition": {"parts": SOME}, "unconditional": {"parts": EVERY}}
GRID = torch.tensor([14.614641229333643, 3.168603072959619, 0.44691820937343935, 0.0], dtype=torch.float64)
ALPHAS = torch.tensor([0.10508046809056672, 0.5349620779284376, 0.99915], dtype=torch.float64)
VP_GRID = torch.cat([((1 - ALPHAS) / ALPHAS).sqrt(), torch.zeros(1, dtype=torch.float64)])
NOISE = torch.tensor(
    [
        [[1.322135, 0.81719], [-0.765839, -0.750622], [1.352548, 0.686322]],
        [[-0.327759, 0.794969], [0.28152, 0.056164], [0.522716, -0.238357]],
    ],
    dtype=torch.float64,
)
SOLVERS: list[Solver] = [Euler(), Heun(), DPMSolver2M(), EulerAncestral(), DPMSolver2SAncestral()]


def plus(scale: float) -> CFGPlusPlus:
    return CFGPlusPlus(denoiser, scale=scale, **BRANCHES)


def near(found: Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_ddim() -> None:
    start = START / ALPHAS[0].sqrt()
    first, *_, last = trajectory(plus(0.5), start, VP_GRID, solver=Euler())
    near(
        first.x * ALPHAS[1].sqrt(),
        [[1.0177659469, 0.5495127683], [2.0104808383, -1.5360889506], [-0.5102639909, 0.7939066872]],
    )
    near(last.x, [[0.6506144731, 0.3403836805], [3.2078091512, -1.0789376632], [0.1176798162, 0.3762065799]])
    strong = ClassifierFreeGuidance(denoiser, scale=7.5, **BRANCHES)
    near(
        solve(strong, start, VP_GRID, solver=Euler()),
        [[3.5278319280, -0.8676225001], [3.7696253608, -1.2730245023], [7.6844258104, -2.9369101885]],
    )


def test_euler() -> None:
    start = START * (1 + GRID[0] ** 2).sqrt()
    rows = [moment.x[0] for moment in trajectory(plus(0.5), start, GRID, solver=Euler())]
    near(
        torch.stack(rows),
        [[2.8163529238, 2.4046193460], [1.6236653679, 0.2123884490], [0.8401787058, 0.2929714291]],
    )


def test_dpm_solver_2m() -> None:
    levels = torch.tensor([2.929548754176115, 0.935509819238228, 0.04131441199678309], dtype=torch.float64)
    near(
        solve(plus(0.5), levels[0] * START, levels, solver=DPMSolver2M()),
        [[0.6217982453, 0.6735660463], [5.1313910979, -1.9034118507], [0.4008043643, 0.6152266471]],
    )


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (
            EulerAncestral(),
            [[1.1504546801, 0.1533828083], [0.6900845211, 0.1519989992], [2.1178278149, -0.3859929720]],
        ),
        (
            DPMSolver2SAncestral(),
            [[0.7650211998, 0.3923160699], [0.4964807540, 0.2095623190], [0.6455019616, 0.3229154272]],
        ),
    ],
    ids=repr,
)
def test_ancestral(monkeypatch: pytest.MonkeyPatch, solver: Solver, expected: list[list[float]]) -> None:
    drawn = iter(NOISE)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: next(drawn))
    start = START * (1 + GRID[0] ** 2).sqrt()
    near(solve(plus(0.5), start, GRID, solver=solver, generator=torch.Generator()), expected)


def test_inversion() -> None:
    clean = torch.tensor([[0.04699, 0.078875], [3.357235, -1.019664], [0.235587, 0.642871]], dtype=torch.float64)
    variables = VariancePreserving(ALPHAS.flip(0))
    levels = torch.cat([VP_GRID[:-1], VP_GRID[2:3]])
    noise = invert(plus(0.5), clean / ALPHAS[2].sqrt(), levels, variables=variables)
    near(
        noise * ALPHAS[0].sqrt(),
        [[-0.3938015115, -0.0726394413], [2.9740597055, -0.9543910287], [-0.0835071927, 0.9216733401]],
    )
    near(
        solve(plus(0.5), noise, VP_GRID, solver=Euler()),
        [[0.3520552453, 0.2634276229], [3.5246064036, -1.0270054720], [0.4289532566, 0.4030903122]],
    )
    strong = ClassifierFreeGuidance(denoiser, scale=7.5, **BRANCHES)
    noise = invert(strong, clean / ALPHAS[2].sqrt(), levels, variables=variables)
    near(solve(strong, noise, VP_GRID, solver=Euler())[0], [4.1074838781, -1.0369579246])


def test_refined_inversion_is_exact() -> None:
    levels = torch.tensor([4.0, 3.0, 2.0, 1.5, 1.0], dtype=torch.float64)
    end = solve(plus(0.4), START * 4, levels, solver=Euler())
    rough = invert(plus(0.4), end, levels)
    fine = invert(plus(0.4), end, levels, refinements=200)
    assert (rough - START * 4).abs().max() > 1e-3
    torch.testing.assert_close(fine, START * 4, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_without_scale_or_condition_it_is_the_unconditional_solver(solver: Solver) -> None:
    levels = karras_levels(5, sigma_max=10)

    def run(estimate: Any) -> Tensor:
        return solve(estimate, START * 10, levels, solver=solver, generator=torch.Generator().manual_seed(0))

    plain = run(unguided(lambda x, sigma: denoiser(torch.cat([x, x]), sigma, parts=EVERY.repeat(2, 1))[:3]))
    assert torch.equal(run(plus(0.0)), plain)
    same = {"condition": {"parts": EVERY}, "unconditional": {"parts": EVERY}}
    torch.testing.assert_close(run(CFGPlusPlus(denoiser, scale=0.8, **same)), plain, rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", [Euler(), EulerAncestral()], ids=repr)
def test_first_order_steps_are_ordinary_guidance_with_other_scales(solver: Solver) -> None:
    levels = karras_levels(6, sigma_min=0.05, sigma_max=10)
    lower = [
        ancestral_levels(sigma, target, getattr(solver, "eta", 0.0))[0]
        for sigma, target in zip(levels.tolist(), levels[1:].tolist(), strict=False)
    ]
    scales = [
        float(equivalent_scales(torch.tensor([sigma, down], dtype=torch.float64), 0.6))
        for sigma, down in zip(levels.tolist(), lower, strict=False)
    ]
    turn = iter(scales)

    def changing(x: Tensor, sigma: Tensor) -> Estimate:
        return ClassifierFreeGuidance(denoiser, scale=next(turn), **BRANCHES)(x, sigma)

    def run(estimate: Any) -> Tensor:
        return solve(estimate, START * 10, levels, solver=solver, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(run(changing), run(plus(0.6)), rtol=0, atol=1e-12)
    assert scales[-1] == pytest.approx(0.6)


def test_the_estimate_stays_within_the_data() -> None:
    """Between two points of the hull of the means, up to the spread of a component."""
    estimate = plus(0.7)
    for moment in trajectory(estimate, START * 10, karras_levels(20, sigma_max=10), solver=Euler()):
        low, high = MEANS.amin(dim=0) - 0.9, MEANS.amax(dim=0) + 0.9
        assert ((moment.estimate.clean > low) & (moment.estimate.clean < high)).all()


def test_a_scale_out_of_habit_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="CFG\\+\\+ with scale = 7.5: scales are in"):
        plus(7.5)


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf")])
def test_refused_scales(scale: float) -> None:
    with pytest.raises(ValueError, match="argument `scale`"):
        plus(scale)


def test_refused_branches() -> None:
    with pytest.raises(ValueError, match="argument `unconditional`: expected the keywords of the condition"):
        CFGPlusPlus(denoiser, condition={"parts": SOME}, unconditional={})
    with pytest.raises(ValueError, match="argument `unconditional`: expected parts of shape"):
        CFGPlusPlus(denoiser, condition={"parts": SOME}, unconditional={"parts": EVERY[:2]})
    with pytest.raises(ValueError, match="argument `condition`: expected a tensor for `label`"):
        CFGPlusPlus(denoiser, condition={"label": 1}, unconditional={"label": 0})
