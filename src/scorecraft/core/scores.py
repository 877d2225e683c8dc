"""Score maps: from two sets of embeddings to a block of scores, and back from pair weights to embeddings.

A map has three parts. `prepare` acts on each embedding alone and is differentiated by autograd, once per batch (a
cosine normalises there). `scores` makes a block; `pull` adds `sum_ij w_ij d s_ij` to the gradients of both sides, and
is what lets the engine work on blocks without recording a graph. Higher scores always mean *more similar*.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.checks import check_embeddings, check_values, positive, positive_integer


class ScoreMap(ABC):
    """A symmetric score of two embeddings, in one or several channels."""

    channels: int = 1
    dimensions: int = 2
    """Axes of an embedding tensor: 2 for `[n, d]`, 3 for `[n, heads, d]`."""

    def check(self, name: str, embeddings: Tensor, *, validate: bool) -> None:
        """Refuse embeddings this score is not defined on."""
        check_embeddings(name, embeddings, dimensions=self.dimensions, validate=validate)

    def prepare(self, embeddings: Tensor) -> Tensor:
        """The differentiable per-row part, in float32 at least."""
        return embeddings if embeddings.dtype == torch.float64 else embeddings.float()

    @abstractmethod
    def scores(self, x: Tensor, y: Tensor, out: Tensor | None = None) -> tuple[Float[Tensor, "r c"], ...]:
        """The scores of prepared rows against prepared columns, one `[r, c]` block per channel.

        `out` is a flat buffer of at least `channels * r * c` elements to write into (outside autograd only).
        """

    @abstractmethod
    def pull(self, weights: tuple[Tensor, ...], scores: tuple[Tensor, ...], x: Tensor, y: Tensor,
             x_grad: Tensor, y_grad: Tensor | None) -> None:  # fmt: skip
        """Add `sum_j w_ij ds_ij/dx_i` to `x_grad` and `sum_i w_ij ds_ij/dy_j` to `y_grad`, in place.

        `y_grad` is `None` when the columns need no gradient (a memory queue).
        """

    def __rmul__(self, scale: float) -> Scaled:
        return Scaled(self, scale)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class Dot(ScoreMap):
    """`s_ij = <x_i, y_j>`, in R."""

    def scores(self, x: Tensor, y: Tensor, out: Tensor | None = None) -> tuple[Float[Tensor, "r c"], ...]:
        if out is None:
            return (x @ y.T,)
        return (torch.mm(x, y.T, out=_block(out, x, y)),)

    def pull(self, weights: tuple[Tensor, ...], scores: tuple[Tensor, ...], x: Tensor, y: Tensor,
             x_grad: Tensor, y_grad: Tensor | None) -> None:  # fmt: skip
        x_grad.addmm_(weights[0], y)
        if y_grad is not None:
            y_grad.addmm_(weights[0].T, x)


class Cosine(Dot):
    """`s_ij = <x_i, y_j> / (|x_i| |y_j|)`, in [-1, 1]; a row of norm zero is refused."""

    def check(self, name: str, embeddings: Tensor, *, validate: bool) -> None:
        super().check(name, embeddings, validate=validate)
        if validate:
            check_values(name, "rows of non-zero norm, which a cosine needs",
                         lambda: (embeddings != 0).any(dim=-1).all(), embeddings)  # fmt: skip

    def prepare(self, embeddings: Tensor) -> Tensor:
        return F.normalize(super().prepare(embeddings), dim=-1)


class Scaled(ScoreMap):
    """`s_ij = scale * score(x_i, y_j)`, an inverse temperature; written `20 * Cosine()`."""

    def __init__(self, score: ScoreMap, scale: float) -> None:
        self.score = score
        self.scale = positive("scale", scale)
        self.channels, self.dimensions = score.channels, score.dimensions

    def check(self, name: str, embeddings: Tensor, *, validate: bool) -> None:
        self.score.check(name, embeddings, validate=validate)

    def prepare(self, embeddings: Tensor) -> Tensor:
        return self.score.prepare(embeddings)

    def scores(self, x: Tensor, y: Tensor, out: Tensor | None = None) -> tuple[Float[Tensor, "r c"], ...]:
        scores = self.score.scores(x, y, out)
        return tuple(channel * self.scale if out is None else channel.mul_(self.scale) for channel in scores)

    def pull(self, weights: tuple[Tensor, ...], scores: tuple[Tensor, ...], x: Tensor, y: Tensor,
             x_grad: Tensor, y_grad: Tensor | None) -> None:  # fmt: skip
        scaled = tuple(weight * self.scale for weight in weights)
        self.score.pull(scaled, tuple(channel / self.scale for channel in scores), x, y, x_grad, y_grad)

    def __repr__(self) -> str:
        return f"{self.scale:g} * {self.score!r}"


class NegativeSquaredDistance(ScoreMap):
    """`s_ij = -|x_i - y_j|^2`, in (-inf, 0], by the Gram form (no `[r, c, d]` broadcast)."""

    def scores(self, x: Tensor, y: Tensor, out: Tensor | None = None) -> tuple[Float[Tensor, "r c"], ...]:
        norms = -(x * x).sum(dim=1, keepdim=True) - (y * y).sum(dim=1)
        if out is None:
            return (torch.addmm(norms, x, y.T, alpha=2).clamp(max=0),)
        return (torch.addmm(norms, x, y.T, alpha=2, out=_block(out, x, y)).clamp_(max=0),)

    def pull(self, weights: tuple[Tensor, ...], scores: tuple[Tensor, ...], x: Tensor, y: Tensor,
             x_grad: Tensor, y_grad: Tensor | None) -> None:  # fmt: skip
        (weight,) = weights
        weight = weight * 2
        x_grad.addmm_(weight, y).sub_(weight.sum(dim=1, keepdim=True) * x)
        if y_grad is not None:
            y_grad.addmm_(weight.T, x).sub_(weight.sum(dim=0).unsqueeze(1) * y)


class NegativeDistance(NegativeSquaredDistance):
    """`s_ij = -|x_i - y_j|`, in (-inf, 0]; the slope at distance zero is taken as zero."""

    def scores(self, x: Tensor, y: Tensor, out: Tensor | None = None) -> tuple[Float[Tensor, "r c"], ...]:
        (negative_square,) = super().scores(x, y, out)
        if out is None:
            apart = negative_square < 0
            return (-torch.where(apart, -negative_square, 1.0).sqrt() * apart,)
        return (negative_square.neg_().sqrt_().neg_(),)

    def pull(self, weights: tuple[Tensor, ...], scores: tuple[Tensor, ...], x: Tensor, y: Tensor,
             x_grad: Tensor, y_grad: Tensor | None) -> None:  # fmt: skip
        distance = -scores[0]
        halved = torch.where(distance > 0, weights[0] / (2 * distance), 0.0)  # super() doubles it
        super().pull((halved,), scores, x, y, x_grad, y_grad)


class PerHead(ScoreMap):
    """One channel per head: embeddings `[n, heads, d]`, `s^h_ij = score(x_i^h, y_j^h)`."""

    dimensions = 3

    def __init__(self, score: ScoreMap, heads: int) -> None:
        self.score = score
        self.channels = positive_integer("heads", heads)

    def check(self, name: str, embeddings: Tensor, *, validate: bool) -> None:
        super().check(name, embeddings, validate=validate)
        if embeddings.shape[1] != self.channels:
            raise ValueError(f"argument `{name}`: expected {self.channels} heads on axis 1, got {embeddings.shape[1]}")
        for head in embeddings.unbind(1):
            self.score.check(name, head, validate=validate)

    def prepare(self, embeddings: Tensor) -> Tensor:
        return self.score.prepare(embeddings)

    def scores(self, x: Tensor, y: Tensor, out: Tensor | None = None) -> tuple[Float[Tensor, "r c"], ...]:
        size = x.shape[0] * y.shape[0]
        return tuple(
            self.score.scores(x[:, head], y[:, head], None if out is None else out[head * size :])[0]
            for head in range(self.channels)
        )

    def pull(self, weights: tuple[Tensor, ...], scores: tuple[Tensor, ...], x: Tensor, y: Tensor,
             x_grad: Tensor, y_grad: Tensor | None) -> None:  # fmt: skip
        for head in range(self.channels):
            self.score.pull((weights[head],), (scores[head],), x[:, head], y[:, head],
                            x_grad[:, head], None if y_grad is None else y_grad[:, head])  # fmt: skip

    def __repr__(self) -> str:
        return f"PerHead({self.score!r}, heads={self.channels})"


def _block(buffer: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The front of a flat buffer as a contiguous `[r, c]` block."""
    return buffer[: x.shape[0] * y.shape[0]].view(x.shape[0], y.shape[0])
