"""The alignment losses in their linear forms against the double sum over pairs.

One question with 2,000 right and 2,000 wrong answers, and one with 4,000 ranked ones, float32, forward and backward to
the scores. The peer is the same loss as its formula is written: a matrix of all pairs, and the log-sum-exp over it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.bench.harness import Call, Case, Entry, Figure, Shape, below_peer
from scorecraft.bench.inputs import SEED, forward_backward
from scorecraft.core.list_losses import ordered_pairs
from scorecraft.preference.aft import AFTLoss, RankedAFTLoss

BETA = 0.15


def _scores(shape: Shape, device: torch.device) -> Float[Tensor, " c"]:
    """Mean log-probabilities around -1."""
    generator = torch.Generator().manual_seed(SEED)
    count = shape["right"] + shape["wrong"] if "right" in shape else shape["answers"]
    return (-1 + 0.3 * torch.randn(count, generator=generator)).to(device).requires_grad_()


def _labels(shape: Shape, device: torch.device) -> Float[Tensor, " c"]:
    return torch.cat([torch.ones(shape["right"]), torch.zeros(shape["wrong"])]).to(device)


def _grades(shape: Shape, device: torch.device) -> Int[Tensor, " c"]:
    """Every answer at a rank of its own."""
    return torch.randperm(shape["answers"], generator=torch.Generator().manual_seed(SEED + 1)).to(device)


def _ours(constraint: str) -> Callable[[Shape, torch.device], Call]:
    def build(shape: Shape, device: torch.device) -> Call:
        scores, relevance = _scores(shape, device), _labels(shape, device)
        loss = AFTLoss(constraint=constraint, beta=BETA)  # type: ignore[arg-type]
        return forward_backward(lambda: loss(scores, relevance), scores)

    return build


def _double_sum(constraint: str) -> Callable[[Shape, torch.device], Call]:
    def build(shape: Shape, device: torch.device) -> Call:
        scores, right = _scores(shape, device), shape["right"]

        def loss() -> Tensor:
            p, n = scores[:right, None], scores[None, right:]
            terms = [scores.new_zeros(1), (n - p).flatten()]
            if constraint == "boundary":
                boundary = p.detach().amin() - BETA
                terms.append((2 * boundary - p.detach() - n).flatten())
            return torch.cat(terms).logsumexp(dim=0)

        return forward_backward(loss, scores)

    return build


def _ranked(shape: Shape, device: torch.device) -> Call:
    scores, grades = _scores(shape, device), _grades(shape, device)
    loss = RankedAFTLoss(constraint="none")
    return forward_backward(lambda: loss(scores, grades), scores)


def _ranked_pairs(shape: Shape, device: torch.device) -> Call:
    scores, grades = _scores(shape, device), _grades(shape, device)
    pairs = ordered_pairs(grades, torch.ones_like(grades, dtype=torch.bool))

    def loss() -> Tensor:
        differences = (scores[None, :] - scores[:, None])[pairs]
        return torch.cat([scores.new_zeros(1), differences]).logsumexp(dim=0)

    return forward_backward(loss, scores)


def _case(constraint: str) -> Case:
    name = {"none": "plain", "boundary": "boundary"}[constraint]
    return Case(
        name=f"{name}, 2000 right and 2000 wrong answers",
        shape={"right": 2000, "wrong": 2000},
        small={"right": 5, "wrong": 7},
        entries={
            "ours": Entry(f'AFTLoss(constraint="{constraint}")', _ours(constraint)),
            "peer": Entry("double sum over the pairs", _double_sum(constraint)),
        },
        figures=(Figure("time", (below_peer(10),)), Figure("memory", (below_peer(10),))),
        agreement=1e-5,
    )


CASES = (
    _case("none"),
    _case("boundary"),
    Case(
        name="plain, 4000 ranked answers",
        shape={"answers": 4000},
        small={"answers": 9},
        entries={
            "ours": Entry('RankedAFTLoss(constraint="none")', _ranked),
            "peer": Entry("double sum over the pairs", _ranked_pairs),
        },
        figures=(Figure("time", (below_peer(10),)), Figure("memory", (below_peer(10),))),
        agreement=1e-5,
    ),
)
