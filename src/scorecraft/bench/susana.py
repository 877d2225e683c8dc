"""The ICNN loss of an episode, forward and backward, against the broadcast form; and the score of a large set.

Episode: 30 classes of 16 points (one support and 15 queries), d = 512, float32, unit rows around random centres with
cosines of about 0.25 within a class and 0 between classes; four neighbours scored, sixteen fetched. The peer is the
broadcast form, the loss as it is usually written: all differences in one `n x n x d` tensor, then the same score.

Large set: 20,000 points, d = 128, 1,000 classes of 20, measured without gradient. Searched in blocks, or by faiss
where that is installed.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.bench.harness import Call, Case, Entry, Figure, Shape, below_peer
from scorecraft.bench.inputs import classes_of, clustered, forward_backward
from scorecraft.similarity.susana import ICNNLoss, icnn_score

EPISODE_CLASS, SET_CLASS, SPREAD = 16, 20, 1.7
NEIGHBOURS = 4


def broadcast_icnn(x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """`-log` of the ICNN score by one `n x n x d` tensor of differences; the self is the first neighbour."""
    distances = ((x[:, None] - x[None]).square().sum(dim=2) + 1e-6).sqrt()
    near, index = distances.topk(EPISODE_CLASS + 1, dim=1, largest=False)
    near, same = near[:, 1:], (labels[index] == labels[:, None])[:, 1:]
    nearest_other = torch.where(same, torch.inf, near).amin(dim=1, keepdim=True)
    met = nearest_other < torch.inf
    near, same = near[:, :NEIGHBOURS], same[:, :NEIGHBOURS].float()

    ratio = torch.where(met, near / torch.where(met, nearest_other, 1.0), 0.0)
    ratio = ratio / ratio.amax(dim=1, keepdim=True).clamp(min=1)
    of_same = (ratio * same).sum(dim=1) / (same.sum(dim=1) + 1e-7)
    lambda_same = 1 - of_same.sum() / ((same.sum(dim=1) > 0).sum() + 1e-7)

    intruders = near * (1 - same)
    of_other = (intruders / (intruders.max() + 1e-7)).sum(dim=1) / ((1 - same).sum(dim=1) + 1e-7)
    lambda_other = of_other.sum() / (((1 - same).sum(dim=1) > 0).sum() + 1e-7)
    if same.all():
        lambda_other = 1 - lambda_other

    return -(((lambda_same + lambda_other) / 2 + same.mean()) / 2).log()


def _inputs(shape: Shape, per_class: int, device: torch.device) -> tuple[Tensor, Tensor]:
    labels = classes_of(per_class, shape["n"], device)
    return clustered(labels, shape["d"], SPREAD), labels


def _ours(shape: Shape, device: torch.device) -> Call:
    x, labels = _inputs(shape, EPISODE_CLASS, device)
    x.requires_grad_()
    loss = ICNNLoss(neighbours=NEIGHBOURS, fetched=EPISODE_CLASS)
    return forward_backward(lambda: loss(x, labels), x)


def _broadcast(shape: Shape, device: torch.device) -> Call:
    x, labels = _inputs(shape, EPISODE_CLASS, device)
    x.requires_grad_()
    return forward_backward(lambda: broadcast_icnn(x, labels), x)


def _large_set(shape: Shape, device: torch.device) -> Call:
    x, labels = _inputs(shape, SET_CLASS, device)
    return lambda: icnn_score(x, labels).score.item()


CASES = (
    Case(
        name="ICNN of a 30-way episode, n=480",
        shape={"n": 480, "d": 512},
        small={"n": 96, "d": 16},
        entries={
            "ours": Entry(f"ICNNLoss(fetched={EPISODE_CLASS})", _ours),
            "peer": Entry("broadcast form, n x n x d differences", _broadcast),
        },
        figures=(Figure("time"), Figure("memory", (below_peer(20),))),
        agreement=1e-4,
    ),
    Case(
        name="ICNN score, n=20000",
        shape={"n": 20_000, "d": 128},
        small={"n": 80, "d": 16},
        entries={"ours": Entry("icnn_score()", _large_set)},
        figures=(Figure("time"), Figure("memory")),
    ),
)
