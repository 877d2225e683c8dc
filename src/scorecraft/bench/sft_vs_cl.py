"""Two rows of the head against all of it; and the contrastive loss by chunks against the plain one.

Scoring: 4 prompts of 256 tokens, right-padded to different lengths, hidden width 512, vocabulary 152,000, float32, from
the hidden states to `z_yes - z_no` and back to the hidden states. The peer is the plain form: the logits of every
position and token, of which two are read at the last position of each row.

Chunks: 16 queries of 1 + 15 documents, each 64 states of width 256, scored by a perceptron of width 1,024 that reads
every state; forward and backward, gradients of the perceptron. The peer is the same loss on all documents at once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.bench.harness import Call, Case, Entry, Figure, Shape, below_peer
from scorecraft.bench.inputs import SEED, forward_backward
from scorecraft.relevance.sft_vs_cl import ContrastiveRerankingLoss, chunked_reranking
from scorecraft.relevance.two_row_scoring import answer_states, row_logits, token_rows, two_row_logits

WIDTH, HIDDEN, CHUNK = 256, 1024, 16


def _prompts(
    shape: Shape, device: torch.device
) -> tuple[Float[Tensor, "b t d"], Int[Tensor, "b t"], Float[Tensor, "v d"], tuple[int, int]]:
    generator = torch.Generator().manual_seed(SEED)
    batch, length, width, vocabulary = (shape[name] for name in ("batch", "length", "width", "vocabulary"))
    hidden = torch.randn(batch, length, width, generator=generator).to(device).requires_grad_()
    head = (torch.randn(vocabulary, width, generator=generator) * width**-0.5).to(device)
    lengths = torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long().to(device)
    return hidden, mask, head, (vocabulary // 3, vocabulary // 2)


def _two_rows(shape: Shape, device: torch.device) -> Call:
    hidden, mask, head, (yes, no) = _prompts(shape, device)

    def score() -> Tensor:
        logits = two_row_logits(hidden, mask, token_rows(head, yes, no))
        return (logits[0] - logits[1]).sigmoid().sum()

    return forward_backward(score, hidden)


def _all_logits(shape: Shape, device: torch.device) -> Call:
    hidden, mask, head, (yes, no) = _prompts(shape, device)
    last, rows = mask.sum(dim=1) - 1, torch.arange(len(mask), device=device)

    def score() -> Tensor:
        logits = (hidden @ head.T)[rows, last]
        return (logits[:, yes] - logits[:, no]).sigmoid().sum()

    return forward_backward(score, hidden)


class _Scorer(nn.Module):
    """States of a document to its logits of yes and no, read at its last state."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        self.network = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))
        for parameter in self.network.parameters():
            scale = parameter.shape[-1] ** -0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
        self.rows = nn.Parameter(torch.randn(2, WIDTH, generator=generator) * WIDTH**-0.5)

    def forward(self, states: Float[Tensor, "k t 256"]) -> Float[Tensor, "2 k"]:
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return row_logits(answer_states(self.network(states), mask), self.rows)


def _documents(shape: Shape, device: torch.device) -> tuple[_Scorer, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED + 1)
    count = shape["queries"] * shape["documents"]
    states = torch.randn(count, shape["length"], WIDTH, generator=generator).to(device)
    first = torch.arange(shape["documents"], device=device) == 0
    return _Scorer().to(device), states, first.expand(shape["queries"], -1)


def _chunked(shape: Shape, device: torch.device) -> Call:
    scorer, states, relevance = _documents(shape, device)
    loss = chunked_reranking(ContrastiveRerankingLoss(), scorer, chunk=CHUNK)
    return forward_backward(lambda: loss(states, relevance), *scorer.parameters())


def _plain(shape: Shape, device: torch.device) -> Call:
    scorer, states, relevance = _documents(shape, device)
    loss = ContrastiveRerankingLoss()
    return forward_backward(lambda: loss(scorer(states).unflatten(1, relevance.shape), relevance), *scorer.parameters())


CASES = (
    Case(
        name="yes and no of 4 prompts, vocabulary 152000",
        shape={"batch": 4, "length": 256, "width": 512, "vocabulary": 152_000},
        small={"batch": 2, "length": 8, "width": 16, "vocabulary": 600},
        entries={
            "ours": Entry("two_row_logits()", _two_rows),
            "peer": Entry("the head's logits, two of them read", _all_logits),
        },
        figures=(Figure("time"), Figure("memory", (below_peer(50),))),
        agreement=1e-4,
    ),
    Case(
        name="contrast over 16 x 16 documents by chunks",
        shape={"queries": 16, "documents": 16, "length": 64},
        small={"queries": 2, "documents": 3, "length": 4},
        entries={
            "ours": Entry(f"chunked_reranking(chunk={CHUNK})", _chunked),
            "peer": Entry("all documents at once", _plain),
        },
        figures=(Figure("time"), Figure("memory")),
        agreement=1e-4,
    ),
)
