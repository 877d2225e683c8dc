"""The soft-label loss against one-directional distillation, and a judge that reads the query once against one that
reads it for every candidate.

Loss: 1,024 queries with a positive and 8 negatives, unit rows of 256 dimensions, float32, forward and backward to the
embeddings. The peer is KL(judge || scores) as sentence-transformers' `DistillKLDivLoss` computes it, on the same
scores: another value, at half the divergences.

Judge: 50 candidates of 8 to 32 words for one query of 384, a causal language model of 4 layers and 128 dimensions made
on the spot, float32. The peer encodes the 50 whole prompts.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.bench.harness import Call, Case, Entry, Figure, Shape
from scorecraft.bench.inputs import SEED, forward_backward
from scorecraft.relevance.unime_v2 import SoftLabelAlignmentLoss

TEMPERATURE = 0.02
WORDS = 1000


def _embeddings(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `[b, d]`, candidates `[b, 1 + k, d]` around them, and judge scores `[b, 1 + k]`."""
    generator = torch.Generator().manual_seed(SEED)
    b, c, d = shape["queries"], 1 + shape["negatives"], shape["d"]
    queries = torch.randn(b, d, generator=generator)
    candidates = F.normalize(queries[:, None] + torch.randn(b, c, d, generator=generator), dim=2)
    judged = torch.rand(b, c, generator=generator)
    return (
        F.normalize(queries, dim=1).to(device).requires_grad_(),
        candidates.to(device).requires_grad_(),
        judged.to(device),
    )


def _soft_labels(shape: Shape, device: torch.device) -> Call:
    queries, candidates, judged = _embeddings(shape, device)
    loss = SoftLabelAlignmentLoss(temperature=TEMPERATURE)
    return forward_backward(lambda: loss(_scores(queries, candidates), judged), queries, candidates)


def _one_direction(shape: Shape, device: torch.device) -> Call:
    queries, candidates, judged = _embeddings(shape, device)

    def loss() -> Tensor:
        logarithms = (_scores(queries, candidates) / TEMPERATURE).log_softmax(dim=1)
        return F.kl_div(logarithms, (judged / TEMPERATURE).softmax(dim=1), reduction="batchmean")

    return forward_backward(loss, queries, candidates)


def _scores(queries: Float[Tensor, "b d"], candidates: Float[Tensor, "b c d"]) -> Float[Tensor, "b c"]:
    return torch.einsum("bd,bcd->bc", queries, candidates)


def _shared_prefix(shape: Shape, device: torch.device) -> Call:
    return _judging(shape, device, reuse_prefix=True)


def _whole_prompts(shape: Shape, device: torch.device) -> Call:
    return _judging(shape, device, reuse_prefix=False)


def _judging(shape: Shape, device: torch.device, *, reuse_prefix: bool) -> Call:
    """The call that judges all candidates of one query."""
    from scorecraft.integrations.transformers import CausalLMJudge

    tokenizer = _tokenizer()
    model = _language_model(shape, len(tokenizer))
    judge = CausalLMJudge(model.to(device), tokenizer, batch_size=shape["candidates"], reuse_prefix=reuse_prefix)
    generator = torch.Generator().manual_seed(SEED)

    def text(words: int) -> str:
        return " ".join(f"w{int(word)}" for word in torch.randint(WORDS, (words,), generator=generator))

    queries = [text(shape["query"])] * shape["candidates"]
    candidates = [text(8 + 24 * number // shape["candidates"]) for number in range(shape["candidates"])]
    return lambda: judge(queries, candidates).double().mean().item()


def _language_model(shape: Shape, vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape["width"],
        intermediate_size=3 * shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=4,
        max_position_embeddings=1024,
    )
    return LlamaForCausalLM(config)


def _tokenizer() -> Any:
    """A token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from scorecraft.integrations.transformers import PROMPT

    asked = PROMPT.replace("{query}", "").replace("{candidate}", "").replace(":", " : ").replace("?", " ? ")
    words = ["[UNK]", *asked.replace(".", " . ").replace(",", " , ").split(), *(f"w{n}" for n in range(WORDS))]
    text = Tokenizer(models.WordLevel({word: n for n, word in enumerate(dict.fromkeys(words))}, unk_token="[UNK]"))
    text.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=text, unk_token="[UNK]")


CASES = (
    Case(
        name="soft labels, 1024 lists of 9",
        shape={"queries": 1024, "negatives": 8, "d": 256},
        small={"queries": 8, "negatives": 3, "d": 8},
        entries={
            "ours": Entry("SoftLabelAlignmentLoss()", _soft_labels),
            "peer": Entry("one-directional KL", _one_direction),
        },
        figures=(Figure("time"), Figure("memory")),
    ),
    Case(
        name="judging 50 candidates of one query",
        shape={"candidates": 50, "query": 384, "width": 128, "layers": 4},
        small={"candidates": 4, "query": 16, "width": 16, "layers": 1},
        entries={
            "ours": Entry("CausalLMJudge()", _shared_prefix),
            "peer": Entry("CausalLMJudge(reuse_prefix=False)", _whole_prompts, needs=("transformers",)),
        },
        figures=(Figure("time"),),
        agreement=1e-4,
    ),
)
