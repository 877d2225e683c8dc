"""pytorch-metric-learning: our objectives as its losses, our miner as its miner, and its losses as objectives of ours.

Inside the host:

    from pytorch_metric_learning import losses, miners
    from scorecraft.integrations.pytorch_metric_learning import MetricLearningLoss, MultiSimilarityLoss, UNPGLoss

    loss = MultiSimilarityLoss()                                    # the paper's method: the loss with its own mining
    loss = UNPGLoss(losses.ArcFaceLoss(num_classes, dim))           # the batch's negatives for any margin softmax
    loss = MetricLearningLoss(tiled(base + 0.5 * tcm))              # any objective of this library
    loss(embeddings, labels, miners.TripletMarginMiner()(embeddings, labels))

`MultiSimilarityLoss` and `ThresholdConsistentMarginLoss` carry the host's names and arguments, so that changing the
import is enough. All of them take the host's miners, reducers, embedding regularisers, `CrossBatchMemory`,
`DistributedLossWrapper` and separate references.

**Mining.** A miner's `indices_tuple` restricts the pairs an objective sees; mining inside the objective then selects
among those. For multi-similarity the paper's method is the loss *with* mining, and there are three equal ways to write
it: the loss alone, the loss without mining after `MultiSimilarityMiner`, and both together (mining again with the same
margin keeps the same pairs, because the hardest pairs always survive).

**Self pairs.** As in the host, a batch that is its own reference (`ref_emb` left out, or the same tensor object) leaves
out the pair of an example with itself, by index. Any other tensor is a separate reference, and all its pairs count.

Outside the host, `from_metric_learning` lets its losses be called, added and compared like ours, and `logits_head` lets
its margin softmax losses serve UNPG.
"""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.core import (
    Batch,
    Cosine,
    Dot,
    Execution,
    NegativeDistance,
    NegativeSquaredDistance,
    Objective,
    Pairs,
    ScoreMap,
)
from scorecraft.core.checks import check_embeddings, check_labels, check_values, describe, refuse
from scorecraft.integrations.optional import require
from scorecraft.similarity import multi_similarity, tcm, unpg
from scorecraft.similarity.unpg.heads import LogitHead, LogitsHead

require("pytorch_metric_learning", "metric-learning")

from pytorch_metric_learning import distances, losses, miners, reducers  # noqa: E402
from pytorch_metric_learning.utils import loss_and_miner_utils  # noqa: E402

_KNOWN_HEADS = (losses.CosFaceLoss, losses.ArcFaceLoss, losses.NormalizedSoftmaxLoss, losses.SoftTripleLoss)
"""Losses whose scale, margin and weights (one parameter, `[d, C]`) `logits_head` knows; derived classes included."""

Indices: TypeAlias = tuple[Tensor, ...] | list[Tensor]
"""Triplets `(a, p, n)` or pairs `(a1, p, a2, n)` of row and reference indices, as the host's miners return them."""


class MetricLearningLoss(losses.BaseMetricLossFunction):
    """Any scorecraft objective as a loss of pytorch-metric-learning.

    Args:
        objective: an objective, a sum of objectives, or a wrapped one such as `tiled(objective)`.
        reducer: a host reducer over the losses of the anchors, for objectives with `reduction="none"`; without one such
            an objective is averaged. Other objectives reduce themselves.
        embedding_regularizer, embedding_reg_weight, collect_stats: as for every loss of the host.

    Raises:
        TypeError: `objective` is not a scorecraft objective.
        ValueError: a `reducer` for an objective that already reduces its losses.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        reducer: nn.Module | None = None,
        embedding_regularizer: nn.Module | None = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        if not isinstance(objective, Objective):
            raise TypeError(f"argument `objective`: expected a scorecraft objective, got {type(objective).__name__}")
        passes_on = isinstance(reducer, (reducers.DoNothingReducer, reducers.MultipleReducers))
        if reducer is not None and not passes_on and objective.reduction != "none":
            refuse("reducer", 'an objective with reduction="none" beside it', f"reduction={objective.reduction!r}")
        super().__init__(
            distance=_host_distance(objective.score),
            reducer=reducer,
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,  # type: ignore[arg-type]
            collect_stats=collect_stats,
        )
        self.objective = objective

    @property
    def _negatives_are_a_set(self) -> bool:
        """Whether the objective reads unordered pairs, which count once whichever way round a miner lists them."""
        return any(isinstance(part, unpg.UNPGLoss) for part in self.objective.modules())

    def compute_loss(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"] | None,
        indices_tuple: Indices | Pairs | None,
        ref_emb: Float[Tensor, "m d"],
        ref_labels: Int[Tensor, " m"] | None,
    ) -> dict[str, dict[str, Any]]:
        """The objective's losses in the form the host's reducers take.

        `indices_tuple` may be anything the host's miners return, or a `Pairs` relation.
        """
        reference = None if ref_emb is embeddings else ref_emb
        pairs = indices_tuple
        if pairs is not None and not isinstance(pairs, Pairs):
            a1, p, a2, n = _listed_pairs(pairs, labels, ref_labels)
            if reference is None and self._negatives_are_a_set:
                a2, n = torch.cat([a2, n]), torch.cat([n, a2])
            pairs = _pairs_of((a1, p, a2, n), (len(embeddings), len(ref_emb)), embeddings.device)
        if pairs is None and reference is not None:
            values = self.objective(embeddings, labels, reference=reference, reference_labels=ref_labels)
        else:
            values = self.objective(embeddings, labels, reference=reference, pairs=pairs)
        if values.ndim == 0:
            return {"loss": {"losses": values, "indices": None, "reduction_type": "already_reduced"}}
        anchors = torch.arange(len(values), device=values.device)
        return {"loss": {"losses": values, "indices": anchors, "reduction_type": "element"}}


class MultiSimilarityLoss(MetricLearningLoss):
    """The multi-similarity loss with its own mining; otherwise a replacement for the host's class of the same name.

    `mean_i { 1/alpha log[1 + sum_{k in P'(i)} e^{-alpha (s_ik - base)}]
    + 1/beta log[1 + sum_{k in N'(i)} e^{beta (s_ik - base)}] }` on cosine scores
    (`scorecraft.similarity.multi_similarity.MultiSimilarityLoss`, where `base` is called `threshold`).

    Args:
        alpha, beta: scales of the positives and of the negatives, > 0.
        base: the score that positives should exceed and negatives stay below.
        mining: select the pairs as the paper does. The host's class has no mining inside and leaves it to a miner.
        epsilon: the margin of the mining, in score units.
        skip_one_sided: leave out anchors that keep only positives or only negatives, as the authors' code does. The
            host's class counts them: `mining=False, skip_one_sided=False` is that class exactly.
        **host: `reducer`, `embedding_regularizer`, `embedding_reg_weight`, `collect_stats`.

    Source: Wang et al. 2019 (arXiv 1904.06627), section 4.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        *,
        mining: bool = True,
        epsilon: float = 0.1,
        skip_one_sided: bool = True,
        **host: Any,
    ) -> None:
        objective = multi_similarity.MultiSimilarityLoss(
            alpha=alpha,
            beta=beta,
            threshold=base,
            mining=mining,
            mining_margin=epsilon,
            skip_one_sided=skip_one_sided,
            reduction="mean" if host.get("reducer") is None else "none",
        )
        super().__init__(objective, **host)
        self.alpha, self.beta, self.base, self.epsilon = alpha, beta, base, epsilon
        self.add_to_recordable_attributes(list_of_names=["alpha", "beta", "base", "epsilon"], is_stat=False)


class ThresholdConsistentMarginLoss(MetricLearningLoss):
    """The threshold-consistent margin; a replacement for the host's class that also respects a separate reference.

    `lambda_plus * mean_{s in S+, s <= margin_plus} (margin_plus - s)
    + lambda_minus * mean_{s in S-, s >= margin_minus} (s - margin_minus)` on cosine scores
    (`scorecraft.similarity.tcm.ThresholdConsistentMarginLoss`). A regulariser: add it to a base loss, with
    `MultipleLosses` or, in one pass over the scores, `MetricLearningLoss(tiled(base + tcm))`.

    Args:
        lambda_plus, lambda_minus: weights of the two terms, >= 0.
        margin_plus, margin_minus: cosines that positives should exceed and negatives stay below.
        **host: `embedding_regularizer`, `embedding_reg_weight`, `collect_stats`.

    Source: Zhang et al. 2023 (arXiv 2307.04047), section 4.
    """

    def __init__(
        self,
        lambda_plus: float = 1.0,
        lambda_minus: float = 1.0,
        margin_plus: float = 0.9,
        margin_minus: float = 0.5,
        **host: Any,
    ) -> None:
        objective = tcm.ThresholdConsistentMarginLoss(
            positive_margin=margin_plus,
            negative_margin=margin_minus,
            positive_weight=lambda_plus,
            negative_weight=lambda_minus,
        )
        super().__init__(objective, **host)
        self.lambda_plus, self.lambda_minus = lambda_plus, lambda_minus
        self.margin_plus, self.margin_minus = margin_plus, margin_minus
        names = ["lambda_plus", "lambda_minus", "margin_plus", "margin_minus"]
        self.add_to_recordable_attributes(list_of_names=names, is_stat=False)


class UNPGLoss(MetricLearningLoss):
    """Unified negative pair generation: a margin softmax whose denominator also holds the batch's own negatives.

    `1/N sum_i [ -s z_iy + log( sum_j e^{s z_ij} + sum_{v in S'} e^{s v} ) ]`, `S'` being the cosines of all pairs of
    different labels in the batch that survive the box-and-whisker filter (`scorecraft.similarity.unpg.UNPGLoss`). As
    with the host's margin losses, the class weights are parameters of the loss: give them to an optimiser.

    A miner restricts which pairs of the batch may enter `S'`, in whichever order it lists them; it does not weigh the
    samples.

    Args:
        head: a margin softmax of the host (`losses.ArcFaceLoss(...)`, see `logits_head`), or a head of this library.
        whisker: reach of the filter in interquartile ranges, >= 0; `None` switches it off.
        **host: `reducer`, `embedding_regularizer`, `embedding_reg_weight`, `collect_stats`.

    Source: Jung et al. 2022 (arXiv 2203.11593), section 3.
    """

    def __init__(
        self, head: LogitHead | losses.BaseMetricLossFunction, whisker: float | None = 1.5, **host: Any
    ) -> None:
        if isinstance(head, losses.BaseMetricLossFunction):
            head = logits_head(head)
        reduction = "mean" if host.get("reducer") is None else "none"
        super().__init__(unpg.UNPGLoss(head, whisker=whisker, reduction=reduction), **host)
        self.whisker = whisker
        self.add_to_recordable_attributes(name="whisker", is_stat=False)


class MultiSimilarityMiner(miners.BaseMiner):
    """The mining of the multi-similarity paper as a miner of the host, without sorting rows.

    Keeps the negative `j` of an anchor iff `s_ij + epsilon > min_{k in P(i)} s_ik` and the positive `j` iff
    `s_ij - epsilon < max_{k in N(i)} s_ik`; returns `(a1, p, a2, n)`.

    Args:
        epsilon: the margin, in score units.
        distance: a host distance; cosine similarity by default. A distance proper counts as its negative.
        collect_stats: as for every miner of the host.

    Source: Wang et al. 2019 (arXiv 1904.06627), section 4.1.
    """

    def __init__(
        self, epsilon: float = 0.1, *, distance: nn.Module | None = None, collect_stats: bool | None = None
    ) -> None:
        super().__init__(distance=distance, collect_stats=collect_stats)
        self.epsilon = epsilon
        self.mining = multi_similarity.MultiSimilarityMiner(margin=epsilon)
        self.add_to_recordable_attributes(name="epsilon", is_stat=False)

    def get_default_distance(self) -> distances.BaseDistance:  # type: ignore[override]
        """Cosine similarity, the score of the paper."""
        return distances.CosineSimilarity()

    def mine(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        ref_emb: Float[Tensor, "m d"],
        ref_labels: Int[Tensor, " m"],
    ) -> Indices:
        """The kept pairs `(a1, p, a2, n)`, ordered by anchor."""
        scores = self.distance(embeddings, ref_emb)
        scores = scores if self.distance.is_inverted else -scores
        scores = scores if scores.dtype == torch.float64 else scores.float()
        itself = ref_emb is embeddings
        pairs = Pairs.from_labels(labels) if itself else Pairs.from_labels(labels, ref_labels)
        positives, negatives = self.mining(scores, *pairs.masks())
        return *positives.nonzero(as_tuple=True), *negatives.nonzero(as_tuple=True)


class CrossBatchMemory(losses.CrossBatchMemory):
    """The host's `CrossBatchMemory`, which also takes `MetricLearningLoss` and its subclasses.

    The host admits losses by a list of class names. `MultiSimilarityLoss` is on it and works in the host's own class as
    well; this one admits the others too, and hands them the relation between batch and memory by labels, not as a list
    of all pairs. The just enqueued batch stays in the memory, its self pairs are left out by index, as in the host.

    Args:
        loss, embedding_size, memory_size, miner: as in the host.
    """

    @staticmethod
    def supported_losses() -> list[str]:
        """Class names of the losses that may be wrapped."""
        return [*losses.CrossBatchMemory.supported_losses(), *_names_below(MetricLearningLoss)]

    def create_indices_tuple(
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        E_mem: Float[Tensor, "m d"],
        L_mem: Int[Tensor, " m"],
        input_indices_tuple: Indices | None,
        do_remove_self_comparisons: bool,
    ) -> Indices | Pairs:
        """Which pairs of batch and memory count; a relation by labels where neither a miner nor the caller chose."""
        ours = isinstance(self.loss, MetricLearningLoss)
        if not ours or self.miner or input_indices_tuple is not None:
            return super().create_indices_tuple(  # type: ignore[return-value]
                embeddings, labels, E_mem, L_mem, input_indices_tuple, do_remove_self_comparisons
            )
        if not do_remove_self_comparisons:
            return Pairs.from_labels(labels, L_mem)
        slots = torch.arange(len(L_mem), device=labels.device)
        return Pairs.from_labels(labels, L_mem, ids=self.curr_batch_idx, reference_ids=slots)


class HostLoss(Objective):
    """See `from_metric_learning`."""

    pairwise = False

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(  # type: ignore[override]
        self,
        embeddings: Float[Tensor, "n d"],
        labels: Int[Tensor, " n"],
        *,
        reference: Float[Tensor, "m d"] | None = None,
        reference_labels: Int[Tensor, " m"] | None = None,
    ) -> Tensor:
        """The host's loss of the pairs its miner keeps (of all pairs without a miner).

        Args:
            embeddings: `[n, d]`.
            labels: int `[n]`.
            reference: `[m, d]`, another set to compare with.
            reference_labels: int `[m]`.
        """
        check_embeddings("embeddings", embeddings)
        check_labels("labels", labels, len(embeddings))
        if (reference is None) != (reference_labels is None):
            missing = "reference" if reference is None else "reference_labels"
            refuse(missing, "`reference` and `reference_labels` together", "only one of them")
        if reference is None:
            mined = None if self.miner is None else self.miner(embeddings, labels)
            return self.loss(embeddings, labels, mined)
        mined = None if self.miner is None else self.miner(embeddings, labels, reference, reference_labels)
        return self.loss(embeddings, labels, mined, reference, reference_labels)

    def evaluate(self, batch: Batch, execution: Execution) -> Tensor:
        """The loss as a term of a sum, of a batch of embeddings and labels and nothing else."""
        del execution
        if batch.ranks > 1:
            raise ValueError(f"{type(self.loss).__name__} knows one process: use the host's DistributedLossWrapper")
        by_labels = batch.labels is not None and getattr(batch.pairs, "labels", None) is batch.labels
        if not by_labels or batch.reference is not None or batch.weights is not None or batch.kept is not None:
            raise ValueError(f"{type(self.loss).__name__} takes embeddings and labels only as a term of a sum")
        return self(batch.embeddings, batch.labels)

    def evaluate_scores(self, scores: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """Refused: the host's losses make their own scores."""
        raise ValueError(f"{type(self.loss).__name__} needs embeddings: call it on them, not on scores")

    def extra_repr(self) -> str:
        return ""


def from_metric_learning(loss: nn.Module, miner: nn.Module | None = None) -> HostLoss:
    """A loss of pytorch-metric-learning, with a miner of its own if wanted, called like an objective of this library.

        >>> peer = from_metric_learning(losses.TripletMarginLoss(), miners.TripletMarginMiner())  # doctest: +SKIP
        >>> peer(embeddings, labels, reference=gallery, reference_labels=gallery_labels)          # doctest: +SKIP

    It adds and scales with objectives; parameters of the loss (proxies, class weights) are its parameters.

    Args:
        loss: a host loss called as `loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)`.
        miner: a host miner called as `miner(embeddings, labels, ref_emb, ref_labels)`.

    Raises:
        TypeError: `miner` is not a miner of the host.
    """
    if miner is not None and not isinstance(miner, miners.BaseMiner):
        raise TypeError(f"argument `miner`: expected a pytorch-metric-learning miner, got {type(miner).__name__}")
    return HostLoss(loss, miner)


class HostHead(LogitsHead):
    """See `logits_head`."""

    def __init__(self, loss: losses.BaseMetricLossFunction, scale: float) -> None:
        super().__init__(_HostLogits(loss), scale)
        self.loss = loss

    def regulariser(self, features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """The embedding and weight regularisers of the host's loss, where it has any."""
        terms = [self.loss.embedding_regularization_loss(features)]
        if isinstance(self.loss, _KNOWN_HEADS):
            by_class = next(self.loss.parameters()).T
            terms.append(self.loss.weight_regularization_loss(by_class))
        return sum((term["losses"] for term in terms), start=super().regulariser(features))


class _HostLogits(nn.Module):
    """The scaled logits a host loss computes for its own cross-entropy."""

    def __init__(self, loss: losses.BaseMetricLossFunction) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n C"]:
        loss: Any = self.loss
        features = features.to(next(loss.parameters()).dtype)  # the host would cast its weights instead, for good
        places = labels[:, None]
        if isinstance(loss, losses.SoftTripleLoss):
            similarities = loss.get_logits(features)
            margins = torch.zeros_like(similarities).scatter(1, places, loss.margin)
            return loss.la * (similarities - margins)
        if not isinstance(loss, losses.LargeMarginSoftmaxLoss):
            return loss.get_logits(features)
        cosines = loss.get_cosine(features)
        target = loss.modify_cosine_of_target_classes(cosines.gather(1, places).squeeze(1))
        return loss.scale_logits(cosines.scatter(1, places, target[:, None]), features)


def logits_head(loss: losses.BaseMetricLossFunction, *, scale: float | None = None) -> HostHead:
    """A margin softmax of pytorch-metric-learning as a head for UNPG: `unpg.UNPGLoss(logits_head(loss))`.

    Margin and scale are the host's; its class weights are parameters of the head.

    Args:
        loss: `CosFaceLoss`, `ArcFaceLoss`, `SubCenterArcFaceLoss`, `NormalizedSoftmaxLoss`, `SoftTripleLoss`, or any
            loss whose `get_logits(embeddings)` returns cosines times `scale`.
        scale: what cosines are multiplied with; read off the losses named above, needed for any other.

    Raises:
        ValueError: the loss has no logits, no single scale (the logits of `SphereFaceLoss` and
            `LargeMarginSoftmaxLoss` grow with the norms), or does not score by cosines.
    """
    if isinstance(loss, (losses.CosFaceLoss, losses.ArcFaceLoss)):
        scale = float(loss.scale)
    elif isinstance(loss, losses.NormalizedSoftmaxLoss):
        scale = 1 / loss.temperature
    elif isinstance(loss, losses.SoftTripleLoss):
        scale = float(loss.la)
    elif scale is None or not hasattr(loss, "get_logits") or isinstance(loss, losses.LargeMarginSoftmaxLoss):
        names = ", ".join(kind.__name__ for kind in _KNOWN_HEADS)
        refuse("loss", f"one of {names}, or a loss with `get_logits` and a `scale`", type(loss).__name__)
    if not (loss.distance.is_inverted and loss.distance.normalize_embeddings):
        refuse("loss", "a loss that scores by cosines", f"one that scores by {type(loss.distance).__name__}")
    return HostHead(loss, scale)


def _listed_pairs(indices: Indices, labels: Tensor | None, ref_labels: Tensor | None) -> Indices:
    """Pairs `(a1, p, a2, n)` from what a miner returned."""
    if not isinstance(indices, (tuple, list)) or len(indices) not in (3, 4):
        refuse("indices_tuple", "triplets (a, p, n) or pairs (a1, p, a2, n)", describe(indices))
    return loss_and_miner_utils.convert_to_pairs(indices, labels, ref_labels)


def _pairs_of(indices: Indices, shape: tuple[int, int], device: torch.device) -> Pairs:
    """The relation that holds exactly these pairs."""
    a1, p, a2, n = indices
    positives = _mask("indices_tuple", a1, p, shape, device)
    negatives = _mask("indices_tuple", a2, n, shape, device)
    check_values("indices_tuple", "pairs that are positive or negative, not both",
                 lambda: ~(positives & negatives).any(), positives & negatives)  # fmt: skip
    return Pairs.from_masks(positives, negatives)


def _mask(name: str, rows: Tensor, columns: Tensor, shape: tuple[int, int], device: torch.device) -> Tensor:
    rows, columns = rows.to(device, torch.int64), columns.to(device, torch.int64)
    check_values(name, f"rows below {shape[0]} and columns below {shape[1]}",
                 lambda: ((rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])).all(),
                 torch.stack([rows, columns]))  # fmt: skip
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    mask[rows, columns] = True
    return mask


def _host_distance(score: ScoreMap) -> nn.Module:
    """What the host calls the score of an objective; cosine for scores it has no name for."""
    named = {
        Cosine(): distances.CosineSimilarity(),
        Dot(): distances.DotProductSimilarity(normalize_embeddings=False),
        NegativeDistance(): distances.LpDistance(normalize_embeddings=False),
        NegativeSquaredDistance(): distances.LpDistance(normalize_embeddings=False, power=2),
    }
    return cast(nn.Module, named.get(score, distances.CosineSimilarity()))


def _names_below(parent: type) -> list[str]:
    """The names of a class and of all classes derived from it."""
    return [parent.__name__, *(name for child in parent.__subclasses__() for name in _names_below(child))]
