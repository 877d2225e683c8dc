"""A preference step from hidden states: DPO's loss of 8 answers of 512 tokens, with the gradients of states and head.

Four pairs of answers, all tokens scored, width 512, a vocabulary of 32,000, float32: the states stand for what a
transformer's backbone gives, and the head's weight is trained. The first case compares with the whole logits and
autograd, the second with the fused head of TRL's trainers, the third with the whole logits where the head is frozen, as
it is under LoRA.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.bench.harness import Bound, Call, Case, Entry, Figure, Shape, below_peer
from scorecraft.bench.inputs import SEED, forward_backward
from scorecraft.core import DPOLoss
from scorecraft.preference.answer_log_probabilities import answer_log_probabilities

Sums = Callable[[Float[Tensor, "b t d"], Float[Tensor, "v d"], Int[Tensor, "b t"]], Float[Tensor, " b"]]


def _ours(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    return answer_log_probabilities(hidden, head, labels).sums


def _whole_logits(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    logits = hidden[:, :-1] @ head.T
    return logits.log_softmax(dim=-1).gather(2, labels[:, 1:, None])[..., 0].sum(dim=1)


def _fused_head(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    states, targets = hidden[:, :-1].reshape(-1, hidden.shape[-1]), labels[:, 1:].reshape(-1)
    each = ChunkedLogProbFunction.apply(states, head, None, targets, 1.0, 32_768, None, 1.0, ("log_probs",))[0]
    return each.view(len(labels), -1).sum(dim=1)


def _step(sums: Sums, *, frozen: bool = False) -> Callable[[Shape, torch.device], Call]:
    def build(shape: Shape, device: torch.device) -> Call:
        generator = torch.Generator().manual_seed(SEED)
        answers, tokens, width, vocabulary = (shape[name] for name in ("answers", "tokens", "d", "vocabulary"))
        hidden = torch.randn(answers, tokens, width, generator=generator).to(device).requires_grad_()
        head = torch.randn(vocabulary, width, generator=generator).mul_(width**-0.5).to(device)
        labels = torch.randint(0, vocabulary, (answers, tokens), generator=generator).to(device)
        leaves = (hidden,) if frozen else (hidden, head.requires_grad_())
        loss = DPOLoss()

        def call() -> Tensor:
            chosen, rejected = sums(hidden, head, labels).chunk(2)
            # The reference is what the model was a moment ago.
            return loss(
                chosen, rejected, reference_chosen=chosen.detach() - 1, reference_rejected=rejected.detach() - 2
            )

        return forward_backward(call, *leaves)

    return build


_SIZES = {"answers": 8, "tokens": 512, "d": 512, "vocabulary": 32_000}
_SMALL = {"answers": 2, "tokens": 6, "d": 8, "vocabulary": 20}
_NO_SLOWER = Bound("ratio_to_peer", 1.0, "<= 1 x peer")


def _case(name: str, peer: Entry, time: Bound, memory: Bound, *, frozen: bool = False) -> Case:
    return Case(
        name=name,
        shape=_SIZES,
        small=_SMALL,
        entries={"ours": Entry("answer_log_probabilities + DPOLoss", _step(_ours, frozen=frozen)), "peer": peer},
        figures=(Figure("time", (time,)), Figure("memory", (memory,))),
        agreement=1e-4,
    )


CASES = (
    _case(
        "from states, against whole logits",
        Entry("whole logits, autograd", _step(_whole_logits)),
        Bound("ratio_to_peer", 1.4, "<= 1.4 x peer"),
        below_peer(6),
    ),
    _case(
        "from states, against the fused head",
        Entry("TRL ChunkedLogProbFunction", _step(_fused_head), needs=("trl",)),
        _NO_SLOWER,
        _NO_SLOWER,
    ),
    _case(
        "head frozen, against whole logits",
        Entry("whole logits, autograd", _step(_whole_logits, frozen=True)),
        Bound("ratio_to_peer", 1.4, "<= 1.4 x peer"),
        below_peer(6),
        frozen=True,
    ),
)
