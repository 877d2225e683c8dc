"""What a diffusion model knows: an estimate of the clean sample, whatever its network predicts.

Everything here is in variance-exploding variables, `x = x_0 + sigma noise`. A model in other variables,
`x_t = alpha x_0 + sigma_t noise`, sees `alpha x` at `sigma = sigma_t / alpha`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scorecraft.core.checks import choice, describe, positive, refuse
from scorecraft.core.separable import in_working_precision

Prediction: TypeAlias = Literal["epsilon", "v", "sample", "velocity", "edm"]
PREDICTIONS = ("epsilon", "v", "sample", "velocity", "edm")
Denoiser: TypeAlias = Callable[..., Tensor]
"""`denoiser(x, sigma, **condition)`: `E[x_0 | x_0 + sigma noise = x]` of samples `[b, ...]`, or an estimate of it, at
one noise level above 0 or at one per sample."""
Network: TypeAlias = Callable[..., Any]
"""`network(input, time, **condition)`, with one time per sample; a tensor, or something with a tensor `sample`."""


class Variables(Protocol):
    """The variables in which a network was trained."""

    def alpha(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The signal level: the network sees `alpha x`."""
        ...

    def time(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """What the network is told about the noise level."""
        ...


class VarianceExploding:
    """`x = x_0 + sigma noise`; the time is sigma itself."""

    def alpha(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """1."""
        return torch.ones_like(sigma)

    def time(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Sigma."""
        return sigma


class VariancePreserving:
    """`x_t = alpha x_0 + sqrt(1 - alpha^2) noise` at the steps of a discrete schedule.

    Args:
        alphas_cumprod: `[T]`, `alpha^2` of each step, strictly falling in (0, 1).

    Raises:
        ValueError: another schedule.

    Source: Ho et al. 2020; the reduction to variance exploding: Karras et al. 2022, appendix C.
    """

    def __init__(self, alphas_cumprod: Float[Tensor, " t"]) -> None:
        falling = alphas_cumprod.ndim == 1 and bool((alphas_cumprod[1:] < alphas_cumprod[:-1]).all())
        if not falling or not bool(((alphas_cumprod > 0) & (alphas_cumprod < 1)).all()):
            refuse("alphas_cumprod", "a strictly falling row of numbers in (0, 1)", describe(alphas_cumprod))
        self.alphas_cumprod = alphas_cumprod.double()
        self.sigmas: Float[Tensor, " t"] = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()
        """The noise level of each step."""

    def alpha(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """`1 / sqrt(1 + sigma^2)`."""
        return (1 + sigma.square()).rsqrt()

    def time(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The step of this level, between two steps by the logarithm of sigma, and the nearest one outside."""
        levels = self.sigmas.log().to(sigma.device)
        logs = sigma.double().log()
        above = torch.searchsorted(levels, logs).clamp(1, len(levels) - 1)
        low, high = levels[above - 1], levels[above]
        return (above - 1 + ((logs - low) / (high - low)).clamp(0, 1)).to(sigma.dtype)


class Flow:
    """`x_t = (1 - t) x_0 + t noise` (flow matching, rectified flow), so `t = sigma / (1 + sigma)`.

    Args:
        times: what the network is told is `times * t`; 1000 in the models of diffusers.
    """

    def __init__(self, times: float = 1.0) -> None:
        self.times = positive("times", times)

    def alpha(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """`1 / (1 + sigma)`, which is `1 - t`."""
        return 1 / (1 + sigma)

    def time(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """`times sigma / (1 + sigma)`."""
        return self.times * sigma / (1 + sigma)


class NetworkDenoiser(nn.Module):
    """The clean estimate behind a network.

    | prediction | the network gives | clean estimate |
    | --- | --- | --- |
    | `epsilon` | the noise | `x - sigma F` |
    | `v` | `alpha noise - sigma_t x_0` (variance preserving) | `alpha^2 x - sqrt(1 - alpha^2) F` |
    | `sample` | the clean sample | `F` |
    | `velocity` | `noise - x_0` (flow) | `alpha x - (1 - alpha) F` |
    | `edm` | the preconditioned residual | `c_skip x + c_out F(c_in x, log(sigma) / 4)` |

    The arithmetic is in float32 at least, whatever the network computes in; the network is given its own dtype.

    Args:
        network: `network(alpha x, time, **condition)`; what it returns, or its `.sample`, is the prediction.
        prediction: as above.
        variables: those of the network; `edm` has its own.
        sigma_data: of `edm`, the standard deviation of the data.

    Raises:
        ValueError: variables that are missing, or that do not fit the prediction.

    Source: Karras et al. 2022, table 1; Salimans and Ho 2022 (v); Lipman et al. 2023 (velocity).
    """

    def __init__(
        self,
        network: Network,
        *,
        prediction: Prediction,
        variables: Variables | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        choice("prediction", prediction, PREDICTIONS)
        if (variables is None) != (prediction == "edm"):
            expected = "none beside edm, which has its own" if prediction == "edm" else "those of the network"
            refuse("variables", expected, variables)
        for needs, kind in (("v", VariancePreserving), ("velocity", Flow)):
            if prediction == needs and not isinstance(variables, kind):
                refuse("variables", f"{kind.__name__} beside {needs}", variables)
        self.network = network
        self.prediction: Prediction = prediction
        self.variables = variables
        self.sigma_data = positive("sigma_data", sigma_data)

    def forward(
        self, x: Float[Tensor, "b *d"], sigma: Float[Tensor, ""] | Float[Tensor, " b"], **condition: Any
    ) -> Float[Tensor, "b *d"]:
        """The clean estimate; see the class."""
        x = in_working_precision(x)
        sigma = sigma.to(x).expand(len(x))
        if self.variables is None:
            total = (sigma.square() + self.sigma_data**2).sqrt()
            scale, time = 1 / total, sigma.log() / 4
        else:
            scale, time = self.variables.alpha(sigma), self.variables.time(sigma)
        rows = (-1, *[1] * (x.ndim - 1))
        scale, level = scale.reshape(rows), sigma.reshape(rows)
        found = self._predicted(scale * x, time, condition).to(x)
        match self.prediction:
            case "epsilon":
                return x - level * found
            case "v":
                return scale.square() * x - level * scale * found
            case "sample":
                return found
            case "velocity":
                return scale * x - (1 - scale) * found
            case "edm":
                return (self.sigma_data * scale).square() * x + level * self.sigma_data * scale * found

    def _predicted(self, given: Tensor, time: Tensor, condition: dict[str, Any]) -> Tensor:
        if isinstance(self.network, nn.Module):
            own = next((one.dtype for one in self.network.parameters() if one.is_floating_point()), given.dtype)
            given = given.to(own)
        found = self.network(given, time, **condition)
        return found if isinstance(found, Tensor) else found.sample

    def extra_repr(self) -> str:
        return f"prediction={self.prediction!r}"
