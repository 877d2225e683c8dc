"""The entry of the method: two views of a batch, as several heads see them, to one loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import (
    check_embeddings,
    check_values,
    choice,
    describe,
    non_negative,
    positive_integer,
    refuse,
)
from scorecraft.core.objective import Objective
from scorecraft.core.pairs import Pairs
from scorecraft.similarity.amcl.barlow import barlow_loss, cross_correlation
from scorecraft.similarity.amcl.contrast import HardestMultiHeadContrastLoss, MultiHeadContrastLoss
from scorecraft.similarity.amcl.simsiam import simsiam_loss
from scorecraft.similarity.amcl.temperature import CorrelationTemperature, PairTemperature

Base = Literal["ntxent", "infonce", "simsiam", "barlow"]
_CONTRASTIVE = ("ntxent", "infonce")
_UNIT = 1e-2  # half precision misses a length of 1 by less
_RANK_BITS = 40  # items of a rank are numbered below 2^40


class AMCLLoss(nn.Module):
    """Adaptive multi-head contrastive loss of two views `[B, C, d']`, in the form of a base method.

    With `e = s / tau - beta Omega(tau)`, `s` a cosine and `tau` the learned temperature of a pair on a head:

        ntxent    L_i = sum_c { -e_i^{c+} + log sum_N exp(e_in^c) }     N: both views of all other items (or a queue)
        infonce   the same with the positive among the candidates
        simsiam   L_i = sum_c { -s / (2 tau) - s~ / (2 tau~) + beta Omega(tau) + beta Omega(tau~) }
        barlow    entries of the cross-correlation over their temperatures, see `barlow_loss`

    The contrastive ones are averaged over the `2B` anchors (`B` with a queue). With `kappa` the log-sum-exp becomes the
    mean over the `kappa` candidates that are most similar (hard mode; 1 is the paper's table). Losses may be negative.
    Gradient flows through similarities and temperatures, of both views; queues and targets are constants, also as
    inputs of the temperature network. Everything is computed in float32 at least.

    Args:
        temperature: a `PairTemperature` (a `CorrelationTemperature` for `barlow`); it belongs to this module, give its
            parameters to the optimiser. Its interval bounds the loss from below.
        base: the base method.
        heads: `C >= 1` (3 to 5 work best).
        beta: strength of the regulariser, >= 0 (0.01 to 1).
        kappa: how many of the hardest candidates to keep, 1 to N; `None` (recommended) for the log-sum-exp of all.
        off_diagonal_weight: `lambda >= 0` of `barlow`.
        wrapper: how the contrastive part is evaluated, such as `tiled` (memory `O(B)`), `across_ranks`, or
            `lambda loss: across_ranks(tiled(loss))`; items of different ranks are different items. A queue belongs to
            its rank, and goes without `across_ranks`.
        normalise: scale the vectors to length 1; otherwise they must have it.
        reduction: over anchors (`simsiam`: over items); `barlow` is one number per batch.
        validate: read input values.

    Raises:
        ValueError: an argument is out of range, or one that the base method has no use for was given.

    Source: AMCL (arXiv 2310.05615), the table of losses.
    """

    def __init__(
        self,
        temperature: PairTemperature | CorrelationTemperature,
        *,
        base: Base = "ntxent",
        heads: int = 3,
        beta: float = 0.1,
        kappa: int | None = None,
        off_diagonal_weight: float = 0.005,
        wrapper: Callable[[Objective], Objective] | None = None,
        normalise: bool = True,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__()
        self.base: Base = choice("base", base, (*_CONTRASTIVE, "simsiam", "barlow"))  # type: ignore[assignment]
        needed = CorrelationTemperature if base == "barlow" else PairTemperature
        if not isinstance(temperature, needed):
            got = type(temperature).__name__
            raise TypeError(f"argument `temperature`: expected a {needed.__name__} for base {base!r}, got {got}")
        self.temperature = temperature
        self.heads = positive_integer("heads", heads)
        if isinstance(temperature, CorrelationTemperature) and temperature.heads != heads:
            refuse("heads", f"the {temperature.heads} of its temperature", heads)
        self.beta = non_negative("beta", beta)
        self.kappa = None if kappa is None else positive_integer("kappa", kappa)
        self.off_diagonal_weight = non_negative("off_diagonal_weight", off_diagonal_weight)
        self.normalise = normalise
        self.reduction: Reduction = choice("reduction", reduction, ("mean", "sum", "none"))  # type: ignore[assignment]
        self.validate = validate
        self.objective: Objective | None = None
        if isinstance(temperature, PairTemperature) and base in _CONTRASTIVE:
            objective = self._contrast(temperature)
            self.objective = objective if wrapper is None else wrapper(objective)
        elif kappa is not None or wrapper is not None:
            name, value = ("kappa", kappa) if kappa is not None else ("wrapper", wrapper)
            refuse(name, f"None, base {base!r} has no negatives", value)
        if base == "barlow" and reduction != "mean":
            refuse("reduction", "'mean' for base 'barlow', which is one number per batch", repr(reduction))

    def forward(
        self,
        first: Float[Tensor, "n heads d"],
        second: Float[Tensor, "n heads d"],
        *,
        queue: Float[Tensor, "m heads d"] | None = None,
        targets: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]] | None = None,
    ) -> Tensor:
        """The loss of `B` items, row `i` of both views being the same item.

        Args:
            first: what the heads make of one view.
            second: what they make of the other one.
            queue: (`ntxent`, `infonce`) `[K, C, d']`, keys of earlier batches. The first view's vectors are then the
                only anchors, the second view's their keys, constant, and the queue holds the negatives: MoCo.
            targets: (`simsiam`, required) the backbone's features `h` of the first and of the second view, of the width
                of a head's output.

        Returns:
            0-d; with `reduction="none"` `[2B]`, the first view's anchors before the second's (`[B]` with a queue or for
            `simsiam`).

        Raises:
            ValueError: views that do not fit, `kappa` above the number of negatives, missing or unneeded arguments.
        """
        for name, view in (("first", first), ("second", second), ("queue", queue)):
            if view is not None:
                self._check(name, view)
        if second.shape != first.shape:
            refuse("second", f"a view like the first, {describe(first)}", describe(second))
        if queue is not None and self.objective is None:
            refuse("queue", f"None, base {self.base!r} has no negatives", describe(queue))
        if (targets is None) == (self.base == "simsiam"):
            refuse("targets", "features of both views for base 'simsiam' and for no other", f"base {self.base!r}")
        with torch.autocast(first.device.type, enabled=False):
            if isinstance(self.temperature, CorrelationTemperature):
                return barlow_loss(
                    cross_correlation(_widened(first), _widened(second)),
                    self.temperature(),
                    beta=self.beta,
                    off_diagonal_weight=self.off_diagonal_weight,
                )
            views = self._unit(first), self._unit(second)
            if targets is not None:
                return self._simsiam(views, targets, self.temperature)
            return self._contrasted(views, queue, self.temperature)

    def _contrast(self, temperature: PairTemperature) -> Objective:
        shared: dict[str, Any] = {
            "heads": self.heads,
            "width": temperature.width,
            "features": temperature.features,
            "beta": self.beta,
            "low": temperature.low,
            "high": temperature.high,
            "with_positive": self.base == "infonce",
            "reduction": self.reduction,
            "validate": self.validate,
        }
        if self.kappa is None:
            return MultiHeadContrastLoss(**shared)
        return HardestMultiHeadContrastLoss(kappa=self.kappa, **shared)

    def _contrasted(self, views: tuple[Tensor, Tensor], queue: Tensor | None, temperature: PairTemperature) -> Tensor:
        """Both views against each other, or the first against the second and a queue."""
        assert self.objective is not None
        items = len(views[0])
        negatives = 2 * items - 2 if queue is None else len(queue)
        if self.kappa is not None and self.kappa > negatives:
            refuse("kappa", f"at most the number of negatives, {negatives}", self.kappa)
        if queue is None:
            return self.objective(_rows(torch.cat(views), temperature), _items(items, views[0].device).repeat(2))
        keys = torch.cat([views[1], self._unit(queue)]).detach()
        positives = torch.eye(items, len(keys), dtype=torch.bool, device=keys.device)
        stored = (torch.arange(len(keys), device=keys.device) >= items).expand_as(positives)
        pairs = Pairs.from_masks(positives, stored)
        return self.objective(_rows(views[0], temperature), reference=_rows(keys, temperature), pairs=pairs)

    def _simsiam(
        self, views: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], temperature: PairTemperature
    ) -> Tensor:
        """Each view against the other view's target."""
        for target in targets:
            check_embeddings("targets", target, validate=self.validate)
            if target.shape != (len(views[0]), temperature.width):
                refuse("targets", f"features [{len(views[0])}, {temperature.width}]", describe(target))
            self._check_directions("targets", target)
        constants = [F.normalize(target.detach().to(views[0].dtype), dim=-1)[:, None] for target in reversed(targets)]
        crossed = list(zip(views, constants, strict=True))
        first, second = ((view * constant).sum(dim=-1) for view, constant in crossed)
        losses = simsiam_loss(
            (first, second),
            (temperature.paired(*crossed[0]), temperature.paired(*crossed[1])),
            beta=self.beta,
            width=temperature.width,
        )
        return losses if self.reduction == "none" else losses.sum() / (len(losses) if self.reduction == "mean" else 1)

    def _check(self, name: str, view: Tensor) -> None:
        check_embeddings(name, view, dimensions=3, validate=self.validate)
        width = self.temperature.width
        if view.shape[1:] != (self.heads, width):
            refuse(name, f"the outputs [n, {self.heads}, {width}] of {self.heads} heads", describe(view))
        if self.base == "barlow":
            if len(view) < 2:
                refuse(name, "at least two items to standardise over", describe(view))
            return
        if self.normalise:
            self._check_directions(name, view)
        elif self.validate:
            check_values(name, "vectors of length 1, or normalise=True",
                         lambda: ((_widened(view).norm(dim=-1) - 1).abs() < _UNIT).all(), view)  # fmt: skip

    def _check_directions(self, name: str, vectors: Tensor) -> None:
        if self.validate:
            check_values(name, "vectors of non-zero norm, which a cosine needs",
                         lambda: (vectors != 0).any(dim=-1).all(), vectors)  # fmt: skip

    def _unit(self, view: Tensor) -> Tensor:
        return F.normalize(_widened(view), dim=-1) if self.normalise else _widened(view)

    def extra_repr(self) -> str:
        return f"base={self.base!r}, heads={self.heads}, beta={self.beta}, kappa={self.kappa}"


def _rows(vectors: Float[Tensor, "n heads d"], temperature: PairTemperature) -> Float[Tensor, "n c"]:
    """Vectors and temperature features of all heads in one row, as the objective reads them."""
    return torch.cat([vectors, temperature.phi(vectors)], dim=-1).flatten(1)


def _items(count: int, device: torch.device) -> Int[Tensor, " n"]:
    """Numbers of this process's items that no item of another process has."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return torch.arange(count, device=device) + (rank << _RANK_BITS)


def _widened(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
