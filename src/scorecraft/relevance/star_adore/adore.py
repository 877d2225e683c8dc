"""ADORE's objective: lists retrieved with the current query embedding, weighted as in LambdaRank."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.batch import Reduction, reduce_losses
from scorecraft.core.checks import choice, describe, positive_integer, refuse
from scorecraft.core.lists import ListObjective

RankMetric = Literal["mrr", "ndcg"]
AddMissing = Literal["if_none", "always"]


class AdoreLoss(ListObjective):
    """Pairwise logistic loss of a retrieved list, each pair weighted by what exchanging the two does to a rank metric.

    The candidates of a list stand in retrieved order, `k = 1` first. With `P` its relevant and `N` its irrelevant ones,

        L_q = 1 / (|P| |N|) sum_{i in P, j in N} |r_i - r_j| log(1 + exp(s_j - s_i))

        mrr:   r_k = 1 / k                          ndcg:  r_k = 1 / (log2(1 + k) sum_{l <= |P|} 1 / log2(1 + l))

    where `r_k = 0` beyond `metric_cut`, so that a pair beyond it has weight zero. Places and `r` are constants. The
    weight of a negative is the mean over `P` of `|r_i - r_j| sigmoid(s_j - s_i)`. Entries outside `where` take up no
    place. Relevance is 0 or not; a list that is all relevant contributes zero and counts.

    Only relevant candidates are paired: memory `O(relevant * c)`, not `O(c^2)` per list. How many there are is read
    from the data, for which the host waits on a GPU; compiled code cannot look and pairs every candidate.

    Args:
        metric: `"mrr"`, or `"ndcg"` (derived by the same pattern).
        metric_cut: places that count, at least 1; None counts them all. The official README cuts passages at 200.
        reduction: over lists.
        validate: read input values.

    Raises:
        ValueError: an unknown metric, or a cut below 1.

    Source: Zhan et al. 2021, arXiv 2104.08051, section 5.2; weights of Burges et al. 2006 (LambdaRank).
    """

    order_invariant: ClassVar[bool] = False

    def __init__(
        self,
        *,
        metric: RankMetric = "mrr",
        metric_cut: int | None = None,
        reduction: Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__(reduction=reduction, validate=validate)
        self.metric = choice("metric", metric, ("mrr", "ndcg"))
        self.metric_cut = None if metric_cut is None else positive_integer("metric_cut", metric_cut)

    def forward(
        self,
        scores: Float[Tensor, "... c"],
        relevance: Tensor,
        where: Bool[Tensor, "... c"] | None = None,
        *,
        relevant_counts: Int[Tensor, "..."] | None = None,
        **call: Any,
    ) -> Tensor:
        """The loss of retrieved lists; see `ListObjective.forward`.

        Args:
            scores: `[..., c]`, in retrieved order.
            relevance: `[..., c]`, above 0 for relevant candidates.
            where: bool `[..., c]`, the candidates there are.
            relevant_counts: int `[...]`, `|R_q|`, how many documents are relevant to each query, retrieved or not: it
                takes the place of `|P|` in the norm of nDCG. It changes nothing for MRR.
            call: `segments` and `weights`.
        """
        lists = self.lists(scores, relevance, where, **call)
        if relevant_counts is None or self.metric == "mrr":
            return self.evaluate(lists)
        if relevant_counts.shape != lists.where.shape[:-1] or relevant_counts.is_floating_point():
            refuse("relevant_counts", f"integers of shape {tuple(lists.where.shape[:-1])}", describe(relevant_counts))
        counted = ((lists.relevance > 0) & lists.where).sum(dim=-1)
        longest = int(relevant_counts.max()) if self.metric_cut is None else self.metric_cut
        # What `list_loss` has divided by, over what it should have.
        norm = self._ideal_gain(counted, lists.scores) / _ideal_gain(relevant_counts, longest, lists.scores)
        losses = self.list_loss(lists.scores, lists.relevance, lists.where) * norm
        weights = self.counts(lists.relevance, lists.where).to(losses.dtype)
        return reduce_losses(losses, self.reduction, weights if lists.weights is None else weights * lists.weights)

    def list_loss(
        self, scores: Float[Tensor, "... c"], relevance: Float[Tensor, "... c"], where: Bool[Tensor, "... c"]
    ) -> Float[Tensor, "..."]:
        relevant = (relevance > 0) & where
        candidates = scores.shape[-1]
        flat, gains = scores.reshape(-1, candidates), self._gains(relevant, where, scores).reshape(-1, candidates)
        positives, negatives = (mask.reshape(-1, candidates) for mask in (relevant, where & ~relevant))
        owner, place = _places(positives)
        chosen = owner * candidates + place
        swaps = gains.index_select(0, owner).sub_(gains.flatten().index_select(0, chosen)[:, None]).abs_()
        counts = positives.sum(dim=1).mul_(negatives.sum(dim=1)).clamp_(min=1).to(flat.dtype)
        share = positives.flatten().index_select(0, chosen) / counts.index_select(0, owner)
        pulls = swaps.mul_(negatives.index_select(0, owner)).mul_(share[:, None])
        gaps = flat.index_select(0, owner) - flat.flatten().index_select(0, chosen)[:, None]
        sums = torch.einsum("pc,pc->p", pulls, F.softplus(gaps, threshold=40))
        return flat.new_zeros(len(flat)).index_add(0, owner, sums).view(scores.shape[:-1])

    def _gains(self, relevant: Tensor, where: Tensor, scores: Tensor) -> Float[Tensor, "... c"]:
        """What the metric gives for the place of each candidate."""
        place = where.cumsum(dim=-1).clamp(min=1).to(scores.dtype)
        if self.metric == "mrr":
            gains = 1 / place
        else:
            gains = 1 / ((1 + place).log2() * self._ideal_gain(relevant.sum(dim=-1), scores)[..., None])
        return gains if self.metric_cut is None else torch.where(place <= self.metric_cut, gains, 0.0)

    def _ideal_gain(self, counts: Int[Tensor, "..."], scores: Tensor) -> Float[Tensor, "..."]:
        """Of lists with these many relevant among their candidates."""
        return _ideal_gain(counts, scores.shape[-1] if self.metric_cut is None else self.metric_cut, scores)

    def extra_repr(self) -> str:
        return f"metric={self.metric!r}, metric_cut={self.metric_cut}, {super().extra_repr()}"


class RetrievedLists(NamedTuple):
    """The candidates of some queries, in the order in which they count; -1 for none."""

    ids: Int[Tensor, "b c"]
    relevant: Bool[Tensor, "b c"]

    @property
    def where(self) -> Bool[Tensor, "b c"]:
        """The candidates there are."""
        return self.ids >= 0


def with_missing_positives(
    ids: Int[Tensor, "b k"], relevant: Int[Tensor, "b r"], *, add_missing: AddMissing = "if_none"
) -> RetrievedLists:
    """Retrieved ids, marked by relevance, followed by relevant documents that were not retrieved, in stored order.

    Args:
        ids: retrieved documents, best first; -1 for none.
        relevant: all documents relevant to each query, padded with -1.
        add_missing: `"if_none"` appends all of them to lists that hold none and nothing to the others, as the official
            code does; `"always"` appends to every list those it lacks.

    Returns:
        Lists of `k + r` candidates, those that are not there -1.
    """
    choice("add_missing", add_missing, ("if_none", "always"))
    known = relevant >= 0
    same = (ids[:, :, None] == relevant[:, None, :]) & known[:, None, :]
    retrieved = same.any(dim=2)
    found = same.any(dim=1) if add_missing == "always" else retrieved.any(dim=1, keepdim=True)
    appended = torch.where(known & ~found, relevant, -1)
    return RetrievedLists(torch.cat([ids, appended], dim=1), torch.cat([retrieved, appended >= 0], dim=1))


def reciprocal_rank(relevant: Bool[Tensor, "b k"], *, cut: int = 10) -> Float[Tensor, " b"]:
    """1 over the place of the first relevant candidate within the first `cut`, 0 where there is none."""
    place = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)[:cut]
    return (relevant[:, :cut] / place).amax(dim=1)


def hit_rate(relevant: Bool[Tensor, "b k"], *, cut: int = 10) -> Float[Tensor, " b"]:
    """1 where one relevant candidate at least stands within the first `cut`, else 0.

    The official code logs it as recall; the share of a query's relevant documents that were found is another quantity.
    """
    return relevant[:, :cut].any(dim=1).float()


def _ideal_gain(counts: Int[Tensor, "..."], longest: int, like: Tensor) -> Float[Tensor, "..."]:
    """`sum_{k <= min(counts, longest)} 1 / log2(1 + k)`, the gain of a perfect list; 1 where nothing is relevant."""
    discounts = 1 / torch.arange(2, longest + 2, dtype=like.dtype, device=like.device).log2()
    sums = torch.cat([discounts.new_ones(1), discounts.cumsum(0)])
    return sums[counts.clamp(max=longest)]


def _places(positives: Bool[Tensor, "l c"]) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """List and place of every candidate to be paired: the relevant ones, or all where their number cannot be known."""
    if torch.compiler.is_compiling():
        lists, candidates = positives.shape
        every = torch.arange(lists * candidates, device=positives.device)
        return every // candidates, every % candidates
    owner, place = positives.nonzero(as_tuple=True)
    return owner, place
