"""Group ordering of 64 lists, forward and backward, against the relaxed permutation matrices of diffsort.

Inputs: float32 scores like the cosines of a model half trained, negatives uniform in [-1, 0.5] and positives in
[-0.5, 1], so that the groups overlap; a list is 10 + 1, 56 + 8 or 112 + 16 of them. Both sides sort the groups first.
The peer is what the method's official code does: a `DiffSortNet` of the odd-even network with the Cauchy link gives the
whole permutation matrix of every list, whose columns are summed to the two groups, and `BCELoss` holds the result
against one-hot groups.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.bench.harness import Call, Case, Entry, Figure, Shape, below_peer
from scorecraft.bench.inputs import SEED, forward_backward
from scorecraft.similarity.groco import group_ordering_loss

STEEPNESS = 1.0


def _scores(shape: Shape, device: torch.device) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b p"]]:
    generator = torch.Generator().manual_seed(SEED)
    negatives = 1.5 * torch.rand(shape["lists"], shape["negatives"], generator=generator) - 1
    positives = 1.5 * torch.rand(shape["lists"], shape["positives"], generator=generator) - 0.5
    return negatives.to(device).requires_grad_(), positives.to(device).requires_grad_()


def _ours(shape: Shape, device: torch.device) -> Call:
    negatives, positives = _scores(shape, device)
    return forward_backward(
        lambda: group_ordering_loss(negatives, positives, steepness=STEEPNESS), negatives, positives
    )


def _peer(shape: Shape, device: torch.device) -> Call:
    from diffsort import DiffSortNet

    negatives, positives = _scores(shape, device)
    split = (shape["negatives"], shape["positives"])
    network = DiffSortNet("odd_even", sum(split), device=str(device), steepness=STEEPNESS, distribution="cauchy")
    group = torch.arange(sum(split), device=device) >= split[0]
    targets = F.one_hot(group.long(), 2).to(negatives.dtype).expand(shape["lists"], -1, -1)
    cross_entropy = nn.BCELoss()

    def loss() -> Tensor:
        ordered = torch.cat([negatives.sort(dim=1).values, positives.sort(dim=1).values], dim=1)
        _, permutation = network(ordered)
        groups = torch.stack([part.sum(dim=2) for part in permutation.split(split, dim=2)], dim=2)
        return cross_entropy(groups.clamp(0, 1), targets)

    return forward_backward(loss, negatives, positives)


def _case(negatives: int, positives: int, faster: float, leaner: float | None) -> Case:
    return Case(
        name=f"lists of {negatives + positives}",
        shape={"lists": 64, "negatives": negatives, "positives": positives},
        small={"lists": 4, "negatives": 5, "positives": 2},
        entries={
            "ours": Entry("group_ordering_loss()", _ours),
            "peer": Entry("diffsort DiffSortNet + BCELoss", _peer, needs=("diffsort",)),
        },
        figures=(
            Figure("time", (below_peer(faster),)),
            Figure("memory", () if leaner is None else (below_peer(leaner),)),
        ),
        agreement=1e-4,
    )


CASES = (_case(10, 1, 2, None), _case(56, 8, 8, 16), _case(112, 16, 25, 60))
