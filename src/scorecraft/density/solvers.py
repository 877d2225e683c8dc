"""Solvers of the probability-flow ODE, and their ancestral forms, on pairs of estimates.

A step consumes an `Estimate`: where the sample is going (`clean`), and the clean estimate that its noise is measured
from (`origin`), so that the noise direction is `(x - origin) / sigma`. Where the two are one, a step is the plain step
`S(x; D)` of its solver. Where they differ it is

    S(x; origin) + (clean - origin) at the last evaluation of the step,

the form to which guidance on a manifold, teleportation and changed networks all reduce. The history of a multistep
solver holds origins.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core.checks import describe, probability, refuse
from scorecraft.density.denoiser import Denoiser
from scorecraft.density.noise_levels import check_levels


class Estimate(NamedTuple):
    """What a step reads at `(x, sigma)`."""

    clean: Float[Tensor, "b *d"]
    """The clean sample that is aimed at."""
    origin: Float[Tensor, "b *d"]
    """The clean sample that the noise in `x` is measured from."""


Estimator: TypeAlias = Callable[[Tensor, Tensor], Estimate]
"""`estimate(x, sigma)`, with sigma a scalar tensor above 0."""


class Moment(NamedTuple):
    """Where a step ended, and what it saw at its start."""

    step: int
    x: Float[Tensor, "b *d"]
    sigma: float
    estimate: Estimate


class Memory(NamedTuple):
    """What a multistep solver keeps of the step before."""

    origin: Tensor
    sigma: float


class Solver(ABC):
    """One step from `sigma` to a lower `target`."""

    stochastic: bool = False
    """Whether a step draws noise."""

    @abstractmethod
    def step(
        self,
        estimate: Callable[[Tensor, float], Estimate],
        x: Float[Tensor, "b *d"],
        sigma: float,
        target: float,
        *,
        memory: Memory | None = None,
        noise: Callable[[], Tensor] | None = None,
    ) -> tuple[Tensor, Estimate]:
        """The sample at `target`, and the estimate at the start of the step.

        Args:
            estimate: of the pair at a sample and a level above 0.
            x: at `sigma`.
            sigma: above 0.
            target: from 0 to below `sigma`.
            memory: of the step before; None at the first one and wherever a trajectory is taken up again.
            noise: draws what a stochastic solver adds.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Euler(Solver):
    """`x' = clean + (sigma'/sigma) (x - origin)`; DDIM in variance-exploding variables.

    Source: Song et al. 2021; Karras et al. 2022.
    """

    def step(self, estimate: Any, x: Tensor, sigma: float, target: float, **_: Any) -> tuple[Tensor, Estimate]:
        """See the base class."""
        found = estimate(x, sigma)
        return _euler(found, x, sigma, target), found


class Heun(Solver):
    """The second-order step of EDM: a second evaluation at the end of an Euler step; none at level 0.

    Source: Karras et al. 2022, algorithm 1 without churn.
    """

    def step(self, estimate: Any, x: Tensor, sigma: float, target: float, **_: Any) -> tuple[Tensor, Estimate]:
        """See the base class."""
        first = estimate(x, sigma)
        if target == 0:
            return first.clean, first
        direction = (x - first.origin) / sigma
        ahead = x + (target - sigma) * direction
        second = estimate(ahead, target)
        mean = (direction + (ahead - second.origin) / target) / 2
        return x + (target - sigma) * mean + (second.clean - second.origin), first


class DPMSolver2M(Solver):
    """DPM-Solver++(2M): the origin extrapolated from that of the step before, in `log sigma`.

    Its first step, and the last one to level 0, are Euler's.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2.
    """

    def step(
        self, estimate: Any, x: Tensor, sigma: float, target: float, *, memory: Memory | None = None, **_: Any
    ) -> tuple[Tensor, Estimate]:
        """See the base class."""
        found = estimate(x, sigma)
        moved = _euler(found, x, sigma, target)
        if memory is None or target == 0:
            return moved, found
        span = math.log(sigma / target)
        ratio = math.log(memory.sigma / sigma) / span
        return moved - math.expm1(-span) / (2 * ratio) * (found.origin - memory.origin), found


class EulerAncestral(Solver):
    """Euler's step to a level below the target, and fresh noise up to it.

    Args:
        eta: in [0, 1], how much of the noise is fresh; at 0 it is Euler's step.

    Source: Song et al. 2021, equation 16, in variance-exploding variables.
    """

    stochastic = True

    def __init__(self, *, eta: float = 1.0) -> None:
        self.eta = probability("eta", eta)

    def step(
        self, estimate: Any, x: Tensor, sigma: float, target: float, *, noise: Any = None, **_: Any
    ) -> tuple[Tensor, Estimate]:
        """See the base class."""
        found = estimate(x, sigma)
        down, up = ancestral_levels(sigma, target, self.eta)
        return _renoised(_euler(found, x, sigma, down), up, noise), found

    def __repr__(self) -> str:
        return f"{type(self).__name__}(eta={self.eta:g})"


class DPMSolver2SAncestral(EulerAncestral):
    """DPM-Solver++(2S) to a level below the target, with an evaluation half-way in `log sigma`, and fresh noise.

    Args:
        eta: in [0, 1]; at 0 it is DPM-Solver++(2S).

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 1.
    """

    def step(
        self, estimate: Any, x: Tensor, sigma: float, target: float, *, noise: Any = None, **_: Any
    ) -> tuple[Tensor, Estimate]:
        """See the base class."""
        first = estimate(x, sigma)
        down, up = ancestral_levels(sigma, target, self.eta)
        if down == 0:
            return _renoised(first.clean, up, noise), first
        span, middle = math.log(sigma / down), math.sqrt(sigma * down)
        half = (middle / sigma) * x - math.expm1(-span / 2) * first.origin
        second = estimate(half, middle)
        moved = second.clean - math.exp(-span) * second.origin + (down / sigma) * x
        return _renoised(moved, up, noise), first


def ancestral_levels(sigma: float, target: float, eta: float) -> tuple[float, float]:
    """The level to go down to, and the noise to add from there: `down^2 + up^2 = target^2`."""
    up = min(target, eta * math.sqrt(max(target**2 * (sigma**2 - target**2), 0.0)) / sigma)
    return math.sqrt(max(target**2 - up**2, 0.0)), up


def unguided(denoiser: Denoiser, **condition: Any) -> Estimator:
    """The estimate of a denoiser by itself."""

    def estimate(x: Tensor, sigma: Tensor) -> Estimate:
        clean = denoiser(x, sigma, **condition)
        return Estimate(clean, clean)

    return estimate


def trajectory(
    estimate: Estimator,
    x: Float[Tensor, "b *d"],
    levels: Float[Tensor, " n"],
    *,
    solver: Solver,
    generator: torch.Generator | None = None,
) -> Iterator[Moment]:
    """The samples at `levels[1:]`, one after the other.

    Args:
        estimate: such as `unguided(denoiser)`.
        x: at `levels[0]`.
        levels: strictly falling; the last one may be 0.
        solver: without state, so that one serves many trajectories.
        generator: of a stochastic solver's noise, which is drawn on the generator's device.

    Raises:
        ValueError: levels that no solver can follow, a sample that is not floating point, or a stochastic solver
            without a generator.
    """
    check_levels(levels)
    if not x.is_floating_point():
        refuse("x", "a floating-point sample", describe(x))
    if solver.stochastic and generator is None:
        refuse("generator", f"a torch.Generator beside {solver!r}", generator)

    def noise() -> Tensor:
        assert generator is not None
        return torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)

    def at(sample: Tensor, sigma: float) -> Estimate:
        return estimate(sample, torch.tensor(sigma, dtype=torch.float64).to(sample))

    sigmas = levels.tolist()
    memory = None
    for index, (sigma, target) in enumerate(itertools.pairwise(sigmas)):
        x, found = solver.step(at, x, sigma, target, memory=memory, noise=noise)
        memory = Memory(found.origin, sigma)
        yield Moment(index, x, target, found)


def solve(
    estimate: Estimator,
    x: Float[Tensor, "b *d"],
    levels: Float[Tensor, " n"],
    *,
    solver: Solver,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b *d"]:
    """The sample at the last level; see `trajectory`."""
    for moment in trajectory(estimate, x, levels, solver=solver, generator=generator):
        x = moment.x
    return x


def _euler(found: Estimate, x: Tensor, sigma: float, target: float) -> Tensor:
    if target == 0:
        return found.clean
    return found.clean + (target / sigma) * (x - found.origin)


def _renoised(x: Tensor, up: float, noise: Callable[[], Tensor] | None) -> Tensor:
    if up == 0:
        return x
    assert noise is not None
    return x + up * noise()
