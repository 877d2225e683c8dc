"""Log-probabilities of answers from hidden states, without the logits of the whole vocabulary.

A language-model head makes `[b, t, vocabulary]` logits, of which a preference reads one number per answer. Here only
the tokens of the answers are scored, a chunk of them at a time. Where the head is frozen (LoRA) the gradient of the
hidden states is taken in the forward pass, and no logit is computed twice; else the backward pass computes them again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from scorecraft.core.checks import check_values, describe, positive_integer, refuse

IGNORED = -100
"""The label of tokens that are not scored: prompt and padding."""
_CHUNK = 256


class AnswerLogProbabilities(NamedTuple):
    """Of each answer."""

    sums: Float[Tensor, " b"]
    """The log-probability of the whole answer, at most 0."""
    tokens: Int[Tensor, " b"]
    """How many tokens were scored."""


def answer_log_probabilities(
    hidden: Float[Tensor, "b t d"],
    head: Float[Tensor, "v d"],
    labels: Int[Tensor, "b t"],
    *,
    bias: Float[Tensor, " v"] | None = None,
    chunk: int = _CHUNK,
) -> AnswerLogProbabilities:
    """`sum_t log softmax(W h_t + bias)[label_{t+1}]` over the tokens of each answer.

    Args:
        hidden: `[b, t, d]`, the last hidden states (after the final norm: what the head reads).
        head: `[v, d]`, the weight `W` of the head.
        labels: int `[b, t]`, the token ids with -100 on prompt and padding; the state at `t` scores the label at
            `t + 1`, so that the first label is never scored.
        bias: `[v]`, of the head.
        chunk: tokens at a time; the largest buffer is `chunk * v` numbers.

    Returns:
        Sums in float32 at least, and token counts. Differentiable once in `hidden`, `head` and `bias`.

    Raises:
        ValueError: one line: shapes that do not fit, labels outside the vocabulary, an answer without a token.
    """
    if hidden.ndim != 3 or not hidden.is_floating_point():
        refuse("hidden", "floating-point hidden states [b, t, d]", describe(hidden))
    if head.ndim != 2 or head.shape[1] != hidden.shape[2] or not head.is_floating_point():
        refuse("head", f"a floating-point weight of shape [v, {hidden.shape[2]}]", describe(head))
    if labels.shape != hidden.shape[:2] or labels.is_floating_point() or labels.dtype == torch.bool:
        refuse("labels", f"token ids of shape {tuple(hidden.shape[:2])}", describe(labels))
    if bias is not None and bias.shape != head.shape[:1]:
        refuse("bias", f"one number per row of the head, shape {tuple(head.shape[:1])}", describe(bias))
    positive_integer("chunk", chunk)
    targets = labels[:, 1:]
    scored: Bool[Tensor, "b t"] = targets != IGNORED
    known = lambda: ((targets >= 0) & (targets < len(head))) | ~scored  # noqa: E731
    check_values("labels", f"token ids below {len(head)}, or {IGNORED}", known, targets)
    tokens = scored.sum(dim=1)
    check_values("labels", "a token in every answer after its first position", lambda: tokens > 0, tokens)
    each: Tensor = _TokenLogProbabilities.apply(  # type: ignore[assignment]
        hidden[:, :-1][scored], head, bias, targets[scored], chunk
    )
    owner = torch.arange(len(labels), device=labels.device).repeat_interleave(tokens)
    return AnswerLogProbabilities(each.new_zeros(len(labels)).index_add(0, owner, each), tokens)


class _TokenLogProbabilities(torch.autograd.Function):
    """`log softmax(W h_m + bias)[target_m]`, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "m d"],
        head: Float[Tensor, "v d"],
        bias: Float[Tensor, " v"] | None,
        targets: Int[Tensor, " m"],
        chunk: int,
    ) -> Float[Tensor, " m"]:
        device = hidden.device
        if torch.is_autocast_enabled(device.type):
            hidden, head = (one.to(torch.get_autocast_dtype(device.type)) for one in (hidden, head))
        ctx.chunk, ctx.in_forward = chunk, ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[1:3])
        precision = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        found = torch.empty(len(hidden), dtype=precision, device=device)
        normalisers = torch.empty_like(found)
        pulls = torch.empty_like(hidden) if ctx.in_forward else None
        buffer = hidden.new_empty(min(chunk, len(hidden)), len(head))
        for rows, logits in _chunks(hidden, head, bias, buffer):
            normalisers[rows] = logits.logsumexp(dim=1)
            found[rows] = logits.gather(1, targets[rows, None])[:, 0] - normalisers[rows]
            if pulls is not None:
                probabilities = logits.sub_(normalisers[rows, None]).exp_().to(head.dtype)
                torch.sub(head[targets[rows]], probabilities @ head, out=pulls[rows])
        if pulls is not None:
            ctx.save_for_backward(pulls)
        else:
            ctx.save_for_backward(hidden, head, bias, targets, normalisers)
        return found.clamp_(max=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = gradients
        if ctx.in_forward:
            (pulls,) = ctx.saved_tensors
            return (pulls * gradient.to(pulls.dtype)[:, None], None, None, None, None)
        hidden, head, bias, targets, normalisers = ctx.saved_tensors
        needs_hidden, needs_head, needs_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.empty_like(hidden) if needs_hidden else None
        to_head = torch.zeros_like(head, dtype=normalisers.dtype) if needs_head else None
        to_bias = torch.zeros_like(bias, dtype=normalisers.dtype) if needs_bias else None
        buffer = hidden.new_empty(min(ctx.chunk, len(hidden)), len(head))
        for rows, logits in _chunks(hidden, head, bias, buffer):
            coefficients = gradient[rows]
            pulls = logits.sub_(normalisers[rows, None]).exp_().mul_(-coefficients[:, None])
            pulls.scatter_add_(1, targets[rows, None], coefficients[:, None])
            if to_bias is not None:
                to_bias += pulls.sum(dim=0)
            pulls = pulls.to(head.dtype)
            if to_hidden is not None:
                torch.mm(pulls, head, out=to_hidden[rows])
            if to_head is not None:
                if to_head.dtype == pulls.dtype:
                    to_head.addmm_(pulls.T, hidden[rows])
                else:
                    to_head += pulls.T @ hidden[rows]
        return (
            to_hidden,
            None if to_head is None else to_head.to(head.dtype),
            None if to_bias is None else to_bias.to(bias.dtype),
            None,
            None,
        )


def _chunks(hidden: Tensor, head: Tensor, bias: Tensor | None, buffer: Tensor) -> Any:
    """Rows, and their logits in float32 at least: one buffer, written again and again."""
    for start in range(0, len(hidden), max(len(buffer), 1)):
        rows = slice(start, min(start + len(buffer), len(hidden)))
        logits = torch.mm(hidden[rows], head.T, out=buffer[: rows.stop - start])
        if bias is not None:
            logits += bias
        yield rows, logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
