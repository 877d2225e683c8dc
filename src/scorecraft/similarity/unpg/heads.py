"""Logit heads: a cosine-margin softmax over class weight vectors, with room for negatives that all samples share.

With normalised features and class weights, `c_ij = <x_i, w_j>`, scale `s`, and the target cosine lowered by a margin,

    z_i,y_i = CosFace:  c - m
              ArcFace:  cos(arccos(c) + m)
              MagFace:  cos(arccos(c) + m(|x_i|)) where c > 0, else c
    z_ij    = c_ij                                                    (j != y_i)

    L_i = -s z_i,y_i + log( sum_j e^{s z_ij} + e^M )

`M = log sum_{v in S'} e^{s v}` stands for the whole shared set S' by one number, one more column of the logits: nothing
of size `n (C + |S'|)` is made. As a function of the other classes alone the loss is

    L_i = log( 1 + e^{R_i - s z_i,y_i} ),    R_i = log( sum_{j != y_i} e^{s c_ij} + e^M ),

so the margin acts on `[n]` vectors, and `R` is the only thing computed on `[n, C]`, in one buffer.

Source: UNPG (arXiv 2203.11593), sections 2 and 3; CosFace (arXiv 1801.09414), ArcFace (arXiv 1801.07698), MagFace
(arXiv 2103.06627).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from scorecraft.core.checks import (
    check_embeddings,
    check_labels,
    check_values,
    describe,
    non_negative,
    positive,
    positive_integer,
    refuse,
)
from scorecraft.core.reductions import masked_logsumexp, softplus_of

IGNORED = -1
"""The label of a sample without a class: it has no target, and its loss is 0."""


@runtime_checkable
class LogitHead(Protocol):
    """What UNPG asks of a head."""

    scale: float

    def cross_entropy(
        self,
        features: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        shared_negatives: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, " n"]:
        """The loss of each sample, with `shared_negatives` as one more logit of every sample (`None` or -inf: none)."""
        ...

    def regulariser(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"] | Float[Tensor, ""]:
        """A term of the head's own, to be added to the losses: one per sample, or one for all of them."""
        ...


class MarginHead(nn.Module):
    """A learnable class matrix, cosines, and a margin on the target; subclasses state the margin.

    Args:
        num_classes: `C >= 1`.
        dim: `d >= 1`, the width of the features.
        scale: `s > 0`, multiplies every cosine.
        class_block: how many classes to compute at a time, `None` for all at once. In blocks the head needs
            `O(n * class_block)` instead of `O(n C)` memory, and computes the logits a second time for the gradient.
        generator: draws the initial class vectors, see `reset_parameters`.
        validate: read the values of the input (finite features of non-zero norm, labels in range); shapes and dtypes
            are always checked.

    Everything is computed in float32 at least, also under autocast.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scale: float = 64.0,
        class_block: int | None = None,
        generator: torch.Generator | None = None,
        validate: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = positive_integer("num_classes", num_classes)
        self.dim = positive_integer("dim", dim)
        self.scale = positive("scale", scale)
        self.class_block = None if class_block is None else positive_integer("class_block", class_block)
        self.validate = validate
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None, *, classes: int | None = None) -> None:
        """Draw the class vectors anew, uniform in `+- sqrt(6 / (classes + dim))`: Xavier's rule, as the official code.

        Their length does not enter the loss, but an adaptive optimiser turns short vectors faster than long ones.

        Args:
            generator: draws them.
            classes: of the whole head, when this one holds a shard.
        """
        bound = math.sqrt(6 / ((self.num_classes if classes is None else classes) + self.dim))
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)

    @abstractmethod
    def margin_cosine(self, cosine: Float[Tensor, " n"], norms: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """`z_i,y_i` from the target cosine `c_i,y_i` in [-1, 1] and the norm of the feature, differentiable in both."""

    def regulariser(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"] | Float[Tensor, ""]:
        """0: this head has no term of its own."""
        return widened(features).new_zeros(())

    def forward(self, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Plain margin softmax: the mean of cross-entropy and regulariser over the samples that are not ignored."""
        losses = self.cross_entropy(features, labels) + self.regulariser(features)
        kept = labels != IGNORED
        return (losses * kept).sum() / kept.sum().clamp(min=1)

    def cross_entropy(
        self,
        features: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        shared_negatives: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, " n"]:
        """`-s z_i,y_i + log( sum_j e^{s z_ij} + e^M )` for each sample; gradient flows to features, weights and `M`.

        Args:
            features: `[n, d]`, of any non-zero norm.
            labels: `[n]` in `0 ... C-1`, or -1 for a sample without a class, whose loss and gradient are 0.
            shared_negatives: `M = log sum_v e^{s v}` over negatives that every sample shares, 0-d; `None` or -inf when
                there are none.

        Returns:
            `[n]`, each at least 0.

        Raises:
            ValueError: features or labels of another shape or dtype, non-finite or zero features, labels out of range.
        """
        check_inputs(features, labels, self.dim, self.num_classes, validate=self.validate)
        with torch.autocast(features.device.type, enabled=False):
            x, w, norms = self.normalised(features)
            targets = labels.clamp(min=0)
            others = OtherClasses.apply(x, w, targets, self.scale, self.class_block)
            target = self.scale * self.margin_cosine(cosine_of_rows(x, w[targets]), norms)
            return margin_loss(target, others, shared_negatives) * (labels != IGNORED)

    def logits(self, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n C"]:
        """`s z_ij`; without labels, or for the label -1, the plain `s c_ij` that a classifier uses."""
        check_inputs(features, labels, self.dim, self.num_classes, validate=self.validate)
        with torch.autocast(features.device.type, enabled=False):
            x, w, norms = self.normalised(features)
            cosines = x @ w.T
            if labels is None:
                return self.scale * cosines
            places = labels.clamp(min=0)[:, None]
            target = cosines.gather(1, places).squeeze(1)
            target = torch.where(labels == IGNORED, target, self.margin_cosine(target, norms))
            return self.scale * cosines.scatter(1, places, target[:, None])

    def normalised(
        self, features: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "C d"], Float[Tensor, " n"]]:
        """Unit features and class vectors of one dtype, and the norms of the features."""
        dtype = torch.promote_types(widened(features).dtype, widened(self.weight).dtype)
        x = features.to(dtype)
        return F.normalize(x, dim=1), F.normalize(self.weight.to(dtype), dim=1), x.norm(dim=1)

    def extra_repr(self) -> str:
        return f"{self.num_classes}, {self.dim}, scale={self.scale:g}"


class CosFaceHead(MarginHead):
    """`z_i,y_i = c - m`.

    Args:
        margin: `m >= 0`; 0.4 in the paper, 0.5 in the official configuration.
        num_classes, dim, scale, class_block, generator, validate: as in `MarginHead`.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scale: float = 64.0,
        margin: float = 0.4,
        class_block: int | None = None,
        generator: torch.Generator | None = None,
        validate: bool = True,
    ) -> None:
        super().__init__(num_classes, dim, scale=scale, class_block=class_block, generator=generator, validate=validate)
        self.margin = non_negative("margin", margin)

    def margin_cosine(self, cosine: Float[Tensor, " n"], norms: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        del norms
        return cosine - self.margin

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, margin={self.margin:g}"


class ArcFaceHead(MarginHead):
    """`z_i,y_i = cos(theta + m)`, `theta = arccos(c)`.

    Args:
        margin: `m` in [0, pi] radians; 0.5 in paper and code.
        monotone: beyond `theta = pi - m`, where `cos(theta + m)` rises again, use `c - m sin m` instead, as common
            implementations do. The official code does not.
        num_classes, dim, scale, class_block, generator, validate: as in `MarginHead`.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scale: float = 64.0,
        margin: float = 0.5,
        monotone: bool = False,
        class_block: int | None = None,
        generator: torch.Generator | None = None,
        validate: bool = True,
    ) -> None:
        super().__init__(num_classes, dim, scale=scale, class_block=class_block, generator=generator, validate=validate)
        self.margin = non_negative("margin", margin)
        if self.margin > math.pi:
            refuse("margin", "an angle in [0, pi]", margin)
        self.monotone = monotone

    def margin_cosine(self, cosine: Float[Tensor, " n"], norms: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        del norms
        turned = cosine * math.cos(self.margin) - sine(cosine) * math.sin(self.margin)
        if not self.monotone:
            return turned
        return torch.where(cosine >= -math.cos(self.margin), turned, cosine - self.margin * math.sin(self.margin))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, margin={self.margin:g}" + (", monotone=True" if self.monotone else "")


class MagFaceHead(MarginHead):
    """`z_i,y_i = cos(theta + m(a_i))` where `c > 0`, else `c`; longer features, those of easy faces, get more margin.

        a_i = clamp(|x_i|, l_a, u_a),   m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a)
        regulariser_i = lambda_g ( a_i / u_a^2 + 1 / a_i )

    Args:
        norm_range: `(l_a, u_a)`, `0 < l_a < u_a`; inside it margin and regulariser carry gradient into the norm.
        margin: `(l_m, u_m)`, `0 <= l_m <= u_m <= pi` radians.
        regulariser_weight: `lambda_g >= 0`.
        num_classes, dim, scale, class_block, generator, validate: as in `MarginHead`.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scale: float = 64.0,
        margin: tuple[float, float] = (0.45, 0.8),
        norm_range: tuple[float, float] = (10.0, 110.0),
        regulariser_weight: float = 35.0,
        class_block: int | None = None,
        generator: torch.Generator | None = None,
        validate: bool = True,
    ) -> None:
        super().__init__(num_classes, dim, scale=scale, class_block=class_block, generator=generator, validate=validate)
        self.margin = _range("margin", margin)
        self.norm_range = _range("norm_range", norm_range)
        if self.margin[1] > math.pi:
            refuse("margin", "angles in [0, pi]", margin)
        if not 0 < self.norm_range[0] < self.norm_range[1]:
            refuse("norm_range", "0 < l_a < u_a", norm_range)
        self.regulariser_weight = non_negative("regulariser_weight", regulariser_weight)

    def margin_cosine(self, cosine: Float[Tensor, " n"], norms: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        shortest, longest = self.norm_range
        least, most = self.margin
        margins = least + (most - least) * (norms.clamp(shortest, longest) - shortest) / (longest - shortest)
        turned = cosine * margins.cos() - sine(cosine) * margins.sin()
        return torch.where(cosine > 0, turned, cosine)

    def regulariser(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """`lambda_g ( a_i / u_a^2 + 1 / a_i )` of each sample."""
        check_embeddings("features", features, validate=self.validate)
        shortest, longest = self.norm_range
        lengths = widened(features).norm(dim=1).clamp(shortest, longest)
        return self.regulariser_weight * (lengths / longest**2 + 1 / lengths)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, margin={self.margin}, norm_range={self.norm_range}, "
            f"regulariser_weight={self.regulariser_weight:g}"
        )


class LogitsHead(nn.Module):
    """A head made of any callable that returns scaled logits, such as the head of another library.

    Args:
        logits_fn: `(features [n, d], labels [n]) -> [n, C]`, scaled, the margin applied to the target column. Labels of
            -1 reach it as 0. A module is registered, so that its parameters are trained.
        scale: `s > 0` that the callable multiplies cosines with; the shared negatives need the same.
    """

    def __init__(self, logits_fn: Callable[[Tensor, Tensor], Tensor], scale: float) -> None:
        super().__init__()
        self.logits_fn = logits_fn
        self.scale = positive("scale", scale)

    def cross_entropy(
        self,
        features: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        shared_negatives: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, " n"]:
        """As `MarginHead.cross_entropy`, from the logits of the callable (computed as it computes them)."""
        check_embeddings("features", features)
        check_labels("labels", labels, len(features))
        targets = labels.clamp(min=0)
        logits = widened(self.logits_fn(features, targets))
        if logits.ndim != 2 or len(logits) != len(features):
            refuse("logits_fn", f"a callable returning logits [{len(features)}, C]", describe(logits))
        check_inputs(features, labels, features.shape[1], logits.shape[1])
        target = logits.gather(1, targets[:, None]).squeeze(1)
        others = logits.scatter(1, targets[:, None], -math.inf)
        return margin_loss(target, masked_logsumexp(others), shared_negatives) * (labels != IGNORED)

    def regulariser(self, features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """0: what the callable adds to its own loss is its own affair."""
        return widened(features).new_zeros(())

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"


class OtherClasses(torch.autograd.Function):
    """`R_i = log sum_{j != t_i} e^{s <x_i, w_j>}`, with one `[n, C]` buffer or, in blocks, none.

    Arguments: `x [n, d]`, `w [C, d]`, `targets t [n]` (an index outside `0 ... C-1` leaves no class out), the scale,
    and how many classes to compute at a time. Without other classes `R` is -inf. Differentiable once, in `x` and `w`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, targets: Tensor, scale: float, class_block: int | None
    ) -> Float[Tensor, " n"]:
        classes = len(w)
        block = min(class_block or classes, classes)
        peak = x.new_full((len(x),), torch.finfo(x.dtype).min)
        total = x.new_zeros(len(x))
        shares = x
        for start in range(0, classes, block):
            shares = _other_logits(x, w[start : start + block], targets - start, scale)
            highest = torch.maximum(peak, shares.amax(dim=1))
            shares.sub_(highest[:, None]).exp_()
            total = total * (peak - highest).exp() + shares.sum(dim=1)
            peak = highest
        result = peak + total.log()
        ctx.scale, ctx.block = scale, block
        if block == classes:  # the one buffer serves the backward pass as well
            ctx.save_for_backward(x, w, targets, result, total, shares)
        else:
            ctx.save_for_backward(x, w, targets, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, w, targets, result, *kept = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            if kept:
                total, shares = kept
                pull = torch.where(total > 0, ctx.scale * grads[0] / total, 0.0)[:, None]
                x_grad = (shares @ w).mul_(pull) if ctx.needs_input_grad[0] else None
                w_grad = shares.T @ (x * pull) if ctx.needs_input_grad[1] else None
                return x_grad, w_grad, None, None, None
            pull = (ctx.scale * grads[0])[:, None]
            floor = result.clamp(min=torch.finfo(x.dtype).min)[:, None]
            x_grad, w_grad, weighted = torch.zeros_like(x), torch.empty_like(w), x * pull
            for start in range(0, len(w), ctx.block):
                classes = slice(start, start + ctx.block)
                shares = _other_logits(x, w[classes], targets - start, ctx.scale).sub_(floor).exp_()
                x_grad.addmm_(shares, w[classes])
                torch.mm(shares.T, weighted, out=w_grad[classes])
        return x_grad.mul_(pull), w_grad, None, None, None


def margin_loss(
    target: Float[Tensor, " n"], others: Float[Tensor, " n"], shared_negatives: Float[Tensor, ""] | None
) -> Float[Tensor, " n"]:
    """`log(1 + e^{log(e^others + e^M) - target})`: the cross-entropy of a target logit against all negatives."""
    if shared_negatives is not None:
        if shared_negatives.ndim != 0 or not shared_negatives.is_floating_point():
            refuse("shared_negatives", "a floating-point tensor without axes", describe(shared_negatives))
        shared = shared_negatives.to(others.dtype).expand_as(others)
        others = masked_logsumexp(torch.stack([others, shared], dim=1))
    return softplus_of(others - target)


def sine(cosine: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`sqrt(1 - c^2)`, with a floor at 0 where rounding passes 1, and the slope 0 (instead of infinite) there."""
    radicand = (1 - cosine) * (1 + cosine)
    inside = radicand > 0
    return torch.where(inside, torch.where(inside, radicand, 1.0).sqrt(), 0.0)


def cosine_of_rows(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """`<x_i, y_i>`."""
    return (x * y).sum(dim=1)


def widened(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values if values.dtype == torch.float64 else values.float()


def check_inputs(features: Tensor, labels: Tensor | None, dim: int, num_classes: int, *, validate: bool = True) -> None:
    """Refuse features or labels a head of this size cannot take."""
    check_embeddings("features", features, validate=validate)
    if features.shape[1] != dim:
        refuse("features", f"features [n, {dim}]", describe(features))
    if validate:
        check_values("features", "rows of non-zero norm, which a cosine needs",
                     lambda: (features != 0).any(dim=1).all(), features)  # fmt: skip
    if labels is None:
        return
    check_labels("labels", labels, len(features))
    if labels.ndim != 1:
        refuse("labels", "one class index per sample", describe(labels))
    if validate:
        check_values("labels", f"class indices in [0, {num_classes - 1}], or {IGNORED} for none",
                     lambda: ((labels >= IGNORED) & (labels < num_classes)).all(), labels)  # fmt: skip


def _other_logits(x: Tensor, w: Tensor, targets: Tensor, scale: float) -> Tensor:
    """`s <x_i, w_j>`, -inf at the target where it is among these classes."""
    logits = (x * scale) @ w.T
    here = (targets >= 0) & (targets < len(w))
    places = targets.clamp(0, len(w) - 1)[:, None]
    return logits.scatter_(1, places, torch.where(here[:, None], -math.inf, logits.gather(1, places)))


def _range(name: str, bounds: tuple[float, float]) -> tuple[float, float]:
    if len(bounds) != 2 or not bounds[0] <= bounds[1]:
        refuse(name, "two ascending numbers", repr(bounds))
    return non_negative(name, bounds[0]), non_negative(name, bounds[1])
