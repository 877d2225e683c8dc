"""One formula for nearly all pair losses, as data: two sums per anchor and what is done with them.

    l(a) = tau( sigma+( sum_u y_u rho+(s_u) ) + sigma-( sum_u (1 - y_u) rho-(s_u) ) )

`s_u` are the similarities of an anchor to its others and `y_u` in [0, 1] their labels: 1 for a positive, 0 for a
negative, something between for a mixture of the two. Labels are what a mixture needs and a pair loss does not have;
with labels of 0 and 1 the formula is the loss it is named after.

Source: Venkataramanan et al. 2021, arXiv 2106.04990, sections 3.2 and 3.3, table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction
from scorecraft.core.checks import check_values, describe, finite, positive, probability, refuse
from scorecraft.core.objective import RowObjective
from scorecraft.core.pairs import Tile
from scorecraft.core.reductions import Mask, masked_logsumexp, masked_sum, softplus_of
from scorecraft.core.scores import ScoreMap

Labels = Float[Tensor, "a u"] | float
"""One label per pair, or one for all of them."""


@dataclass(frozen=True, slots=True)
class ExponentialSum:
    """`factor * log(sum_u w_u exp(scale s_u + shift))`, or of one plus the sum; never leaves the log domain.

    Args:
        scale: of the similarity in the exponent.
        shift: of the exponent.
        factor: what the logarithm is multiplied with.
        one_plus: whether 1 is added to the sum. Without it an empty sum has no logarithm.
    """

    scale: float
    shift: float
    factor: float = 1.0
    one_plus: bool = False

    def total(self, scores: Float[Tensor, "a u"], weights: Labels, where: Mask = True) -> Float[Tensor, " a"]:
        """The logarithm of the sum; `-inf` where no pair has a weight."""
        exponents = self.scale * scores
        if isinstance(weights, Tensor):
            weighted = weights > 0
            where = weighted if where is True else weighted & where
            # The logarithm of 1 stands in for that of 0, whose gradient would be infinite times nothing.
            exponents = exponents + torch.where(weighted, weights, 1.0).log()
            return masked_logsumexp(exponents, where) + self.shift
        return self.weighted(masked_logsumexp(exponents, where), weights)

    def weighted(self, log_mass: Float[Tensor, " a"], weight: float) -> Float[Tensor, " a"]:
        """The total of pairs of one common weight, from `log sum_u exp(scale s_u)`."""
        return log_mass + (self.shift + math.log(weight) if weight > 0 else -math.inf)

    def averaged(self, total: Float[Tensor, " a"], count: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        """The total of a mean instead of a sum over `count` pairs."""
        return total - count.log()

    def value(self, total: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        """`sigma` of the sum."""
        return self.factor * (softplus_of(total) if self.one_plus else total)

    def defined(self, total: Float[Tensor, " a"]) -> Bool[Tensor, " a"]:
        """Whether `sigma` is finite there."""
        return torch.ones_like(total, dtype=torch.bool) if self.one_plus else total > -math.inf


@dataclass(frozen=True, slots=True)
class PlainSum:
    """`sum_u w_u rho(s_u)`.

    Args:
        rho: elementwise.
    """

    rho: Callable[[Tensor], Tensor]

    def total(self, scores: Float[Tensor, "a u"], weights: Labels, where: Mask = True) -> Float[Tensor, " a"]:
        """The sum; 0 where there is no pair."""
        return masked_sum(weights * self.rho(scores), where)

    def averaged(self, total: Float[Tensor, " a"], count: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        """The mean instead of the sum over `count` pairs."""
        return total / count

    def value(self, total: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        """The sum itself."""
        return total

    def defined(self, total: Float[Tensor, " a"]) -> Bool[Tensor, " a"]:
        """Always."""
        return torch.ones_like(total, dtype=torch.bool)


@dataclass(frozen=True, slots=True)
class PairForm:
    """A pair loss in the generic form; made by the constructor of its name.

    Constants are those of the Metrix paper, whose forms differ here and there from others of the same name: all sums
    are plain sums, the lifted margin stands on the negatives, and nothing is mined.

    Args:
        name: of the loss.
        positive: `sigma+` and `rho+`.
        negative: `sigma-` and `rho-`.
        hinged: whether `tau(x) = [x]_+` instead of `x`.
        negatives_are_all: whether every other counts in full on the negative side, whatever its label (ProxyNCA++).
    """

    name: str
    positive: ExponentialSum | PlainSum
    negative: ExponentialSum | PlainSum
    hinged: bool = False
    negatives_are_all: bool = False

    @classmethod
    def contrastive(cls, *, threshold: float = 0.5) -> PairForm:
        """`-sum_P s + sum_N [s - threshold]_+`."""
        return cls("contrastive", PlainSum(torch.neg), PlainSum(partial(_excess, over=finite("threshold", threshold))))

    @classmethod
    def lifted_structure(cls, *, margin: float = 0.5) -> PairForm:
        """`[ log sum_P e^-s + log sum_N e^(s - margin) ]_+`."""
        return cls(
            "lifted_structure", ExponentialSum(-1.0, 0.0), ExponentialSum(1.0, -finite("margin", margin)), hinged=True
        )

    @classmethod
    def binomial_deviance(
        cls, *, positive_scale: float = 2.0, negative_scale: float = 50.0, threshold: float = 0.5
    ) -> PairForm:
        """`sum_P log(1 + e^(-beta (s - threshold))) + sum_N log(1 + e^(gamma (s - threshold)))`, sums and no means."""
        threshold = finite("threshold", threshold)
        pull = partial(_softplus, scale=-positive("positive_scale", positive_scale), threshold=threshold)
        push = partial(_softplus, scale=positive("negative_scale", negative_scale), threshold=threshold)
        return cls("binomial_deviance", PlainSum(pull), PlainSum(push))

    @classmethod
    def multi_similarity(
        cls, *, positive_scale: float = 2.0, negative_scale: float = 50.0, threshold: float = 0.5
    ) -> PairForm:
        """`1/beta log(1 + sum_P e^(-beta (s - m))) + 1/gamma log(1 + sum_N e^(gamma (s - m)))`, `m` the threshold."""
        pull = _soft_hinge(-positive("positive_scale", positive_scale), finite("threshold", threshold))
        return cls("multi_similarity", pull, _soft_hinge(positive("negative_scale", negative_scale), threshold))

    @classmethod
    def proxy_anchor(cls, *, scale: float = 32.0, margin: float = 0.1) -> PairForm:
        """`1/beta log(1 + sum_P e^(-beta (s - margin))) + 1/beta log(1 + sum_N e^(beta (s + margin)))`."""
        scale, margin = positive("scale", scale), finite("margin", margin)
        return cls("proxy_anchor", _soft_hinge(-scale, margin), _soft_hinge(scale, -margin))

    @classmethod
    def nca(cls, *, temperature: float = 1.0) -> PairForm:
        """`-log sum_P e^(s/T) + log sum_N e^(s/T)`: NCA between examples, ProxyNCA against proxies."""
        scale = 1 / positive("temperature", temperature)
        return cls("nca", ExponentialSum(scale, 0.0, factor=-1.0), ExponentialSum(scale, 0.0))

    @classmethod
    def proxy_nca_plus_plus(cls, *, temperature: float = 1.0) -> PairForm:
        """`-log sum_P e^(s/T) + log sum_(P and N) e^(s/T)`, against proxies."""
        scale = 1 / positive("temperature", temperature)
        sides = ExponentialSum(scale, 0.0, factor=-1.0), ExponentialSum(scale, 0.0)
        return cls("proxy_nca_plus_plus", *sides, negatives_are_all=True)

    @property
    def blind_to_equal_labels(self) -> bool:
        """Whether the loss of others that all carry one label depends on the label alone, and on no similarity.

        So with NCA, where it is `log((1 - y) / y)`: mixtures of one kind pull at nothing.
        """
        pull, push = self.positive, self.negative
        if isinstance(pull, PlainSum) or isinstance(push, PlainSum):
            return False
        return pull.scale == push.scale and pull.factor == -push.factor and not (pull.one_plus or push.one_plus)

    def of_totals(self, positive: Float[Tensor, " a"], negative: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        """`tau(sigma+ + sigma-)` of the totals of both sides; 0 for anchors where a logarithm is not defined."""
        loss = self.positive.value(positive) + self.negative.value(negative)
        loss = F.relu(loss) if self.hinged else loss
        defined = self.positive.defined(positive) & self.negative.defined(negative)
        return torch.where(defined, loss, 0.0)


def generic_pair_loss(
    form: PairForm, scores: Float[Tensor, "a u"], labels: Labels, where: Mask = True, *, average: bool = False
) -> Float[Tensor, " a"]:
    """The generic loss of each anchor, with soft labels.

    Args:
        form: the four functions.
        scores: similarities of anchors and others, finite.
        labels: in [0, 1]; a number when all others share one label.
        where: which others an anchor has. Where it has none the loss is 0 with a zero gradient.
        average: take means over the others instead of sums, so that the loss does not grow with their number.

    Raises:
        ValueError: labels of another shape or outside [0, 1].

    Source: Venkataramanan et al. 2021, arXiv 2106.04990, section 3.3.
    """
    if isinstance(labels, Tensor):
        _check_soft_labels(labels, scores)
    else:
        probability("labels", labels)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if scores.shape[1] == 0:
        return scores.sum(dim=1)
    positive = form.positive.total(scores, labels, where)
    negative = form.negative.total(scores, 1.0 if form.negatives_are_all else 1 - labels, where)
    if average:
        count = masked_sum(torch.ones_like(scores), where).clamp(min=1)
        positive, negative = form.positive.averaged(positive, count), form.negative.averaged(negative, count)
    return form.of_totals(positive, negative)


class GenericPairLoss(RowObjective):
    """Any pair loss of the generic form: positives carry label 1, negatives label 0.

        l(a) = tau( sigma+( sum_{p in P(a)} rho+(s_ap) ) + sigma-( sum_{n in N(a)} rho-(s_an) ) )

    and the mean over all anchors, to which those without a defined loss (NCA or lifted structure, one group empty)
    contribute zero. With proxies as `reference` the `nca` forms are ProxyNCA and ProxyNCA++; with proxies as anchors
    (`ProxyAnchored`) the `proxy_anchor` form is Proxy Anchor.

    Args:
        form: the loss; multi-similarity by default.
        score: score map, cosine by default.
        reduction: over anchors.
        validate: read input values.

    Source: Venkataramanan et al. 2021, arXiv 2106.04990, section 3.2, table 1.
    """

    def __init__(
        self,
        form: PairForm | None = None,
        *,
        score: ScoreMap | None = None,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(score=score, reduction=reduction, validate=validate)
        self.form = PairForm.multi_similarity() if form is None else form
        if not isinstance(self.form, PairForm):
            raise TypeError(f"argument `form`: expected a PairForm, got {describe(form)}")

    def row_loss(self, tile: Tile) -> Float[Tensor, " r"]:
        positive = self.form.positive.total(tile.score, 1.0, tile.positives)
        others = tile.positives | tile.negatives if self.form.negatives_are_all else tile.negatives
        return self.form.of_totals(positive, self.form.negative.total(tile.score, 1.0, others))

    def extra_repr(self) -> str:
        return f"form={self.form.name}, {super().extra_repr()}"


def _soft_hinge(scale: float, margin: float) -> ExponentialSum:
    """`1/|scale| log(1 + sum exp(scale (s - margin)))`."""
    return ExponentialSum(scale, -scale * margin, factor=1 / abs(scale), one_plus=True)


def _check_soft_labels(labels: Tensor, scores: Tensor) -> None:
    if labels.shape != scores.shape or not labels.is_floating_point():
        refuse("labels", f"a floating-point tensor of shape {tuple(scores.shape)}", describe(labels))
    check_values("labels", "labels in [0, 1]", lambda: ((labels >= 0) & (labels <= 1)).all(), labels)


def _excess(scores: Tensor, over: float) -> Tensor:
    """`[s - over]_+`."""
    return F.relu(scores - over)


def _softplus(scores: Tensor, scale: float, threshold: float) -> Tensor:
    """`log(1 + exp(scale (s - threshold)))`."""
    return F.softplus(scale * (scores - threshold), threshold=40)
