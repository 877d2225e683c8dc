"""Relevance from a language model: the logits of "yes" and "no" at the answer position, without the vocabulary.

A re-ranker reads two logits of one position. Of the `[b, t, vocabulary]` logits that a language-model head makes, the
functions here compute `2 b`: one row of hidden states per prompt, times two rows of the head, in float32. In bfloat16
the logits near 20 are spaced by 0.125, and documents tie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core.checks import check_values, describe, refuse

Mask: TypeAlias = Bool[Tensor, "b t"] | Integer[Tensor, "b t"]
"""True, or any number above 0, where a prompt has a token."""


def answer_positions(attention_mask: Mask) -> Int[Tensor, " b"]:
    """The position of each row's last token, whichever side the row is padded on.

    Args:
        attention_mask: `[b, t]`, above 0 at tokens and 0 at padding.

    Raises:
        ValueError: not a bool or integer matrix, or a row that is padding throughout.
    """
    if attention_mask.ndim != 2 or attention_mask.is_floating_point() or attention_mask.shape[1] == 0:
        refuse("attention_mask", "a bool or integer matrix [b, t]", describe(attention_mask))
    tokens = attention_mask > 0
    check_values("attention_mask", "a token in every row (no row of padding alone)", tokens.any(1).all, attention_mask)
    length = tokens.shape[1]
    return length - 1 - tokens.flip(1).to(torch.uint8).argmax(dim=1)


def answer_states(hidden: Float[Tensor, "b t d"], attention_mask: Mask) -> Float[Tensor, "b d"]:
    """The hidden state at each row's answer position.

    Args:
        hidden: `[b, t, d]`, the last hidden states (after the final norm: what the head would read).
        attention_mask: `[b, t]`, above 0 at tokens.

    Raises:
        ValueError: shapes that do not fit, a row that is padding throughout, or a state that is not finite.
    """
    if hidden.ndim != 3 or not hidden.is_floating_point():
        refuse("hidden", "floating-point hidden states [b, t, d]", describe(hidden))
    if attention_mask.shape != hidden.shape[:2]:
        refuse("attention_mask", f"a mask of shape {tuple(hidden.shape[:2])}", describe(attention_mask))
    rows = torch.arange(len(hidden), device=hidden.device)
    states = hidden[rows, answer_positions(attention_mask)]
    check_values("hidden", "finite values at the answer positions", states.isfinite().all, states)
    return states


def two_row_logits(
    hidden: Float[Tensor, "b t d"], attention_mask: Mask, rows: Float[Tensor, "2 d"]
) -> Float[Tensor, "2 b"]:
    """The logits `(z_yes, z_no) = (M_y h, M_n h)` at each row's answer position, in float32 at least.

    They are the two score channels that the re-ranking objectives read. Rank by `z_yes - z_no`, or by its sigmoid, the
    probability of "yes" among the two.

    Args:
        hidden: `[b, t, d]`, the last hidden states.
        attention_mask: `[b, t]`, above 0 at tokens; rows may be padded on either side.
        rows: `[2, d]`, the rows of the head for "yes" and for "no", in this order (`token_rows`).

    Raises:
        ValueError: shapes that do not fit, a row that is padding throughout, or a state that is not finite.
    """
    if rows.ndim != 2 or len(rows) != 2:
        refuse("rows", "two rows of the head, [2, d]: yes, then no", describe(rows))
    return row_logits(answer_states(hidden, attention_mask), rows)


def grouped_logits(
    hidden: Float[Tensor, "b t d"],
    attention_mask: Mask,
    yes_rows: Float[Tensor, "k d"],
    no_rows: Float[Tensor, "m d"],
) -> Float[Tensor, "2 b"]:
    """`two_row_logits` with several tokens per label: the log-sum-exp over the rows of each.

    For variants of case or spacing ("yes", "Yes", " yes"), whose probabilities add up, and for further label words.

    Args:
        hidden: `[b, t, d]`, the last hidden states.
        attention_mask: `[b, t]`, above 0 at tokens.
        yes_rows: `[k, d]`, the head's rows of all tokens that mean yes.
        no_rows: `[m, d]`, those of all tokens that mean no.

    Raises:
        ValueError: shapes that do not fit, a row that is padding throughout, or a state that is not finite.
    """
    for name, rows in (("yes_rows", yes_rows), ("no_rows", no_rows)):
        if rows.ndim != 2 or len(rows) == 0:
            refuse(name, "at least one row of the head, [k, d]", describe(rows))
    states = answer_states(hidden, attention_mask)
    return torch.stack([row_logits(states, rows).logsumexp(dim=0) for rows in (yes_rows, no_rows)])


def row_logits(
    states: Float[Tensor, "... d"], rows: Float[Tensor, "k d"], bias: Float[Tensor, " k"] | None = None
) -> Float[Tensor, "k ..."]:
    """Logits of some rows of the head alone, in float32 at least, also under autocast.

    Args:
        states: `[..., d]`, what the head reads.
        rows: `[k, d]`, some rows of its weight.
        bias: `[k]`, where the head has one.

    Raises:
        ValueError: rows of another width than the states.
    """
    if rows.shape[-1] != states.shape[-1]:
        refuse("rows", f"rows of width {states.shape[-1]}, as the states", describe(rows))
    exact = torch.promote_types(states.dtype, torch.float32)
    with torch.autocast(states.device.type, enabled=False):
        logits = F.linear(states.to(exact), rows.to(exact), None if bias is None else bias.to(exact))
    return logits.movedim(-1, 0)


def token_rows(weight: Float[Tensor, "v d"], yes: int, no: int) -> Float[Tensor, "2 d"]:
    """The rows of a head for the tokens "yes" and "no", differentiable in the head's weight.

    Args:
        weight: `[vocabulary, d]`, the weight of the language-model head.
        yes: token id of the relevant answer.
        no: token id of the other one.

    Raises:
        ValueError: the same token twice, or an id outside of the vocabulary.
    """
    for name, token in (("yes", yes), ("no", no)):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < len(weight):
            refuse(name, f"one token id below {len(weight)}", describe(token))
    if yes == no:
        refuse("no", "another token than `yes`", f"token {no} for both")
    return torch.stack([weight[yes], weight[no]])


def label_token(encode: Callable[[str], Sequence[int]], label: str) -> int:
    """The single token of a label word.

        >>> yes = label_token(lambda text: tokenizer.encode(text, add_special_tokens=False), "yes")  # doctest: +SKIP

    "yes", " yes" and "Yes" are different tokens, and the one to take is the one that follows the prompt's last token.

    Args:
        encode: from a text to its token ids, without special tokens.
        label: the word as it stands in the answer, spaces and case included.

    Raises:
        ValueError: the word is several tokens, or none.
    """
    ids = list(encode(label))
    if len(ids) != 1:
        refuse("label", "a word of one token", f"{label!r}, which is {len(ids)} tokens {ids}")
    return ids[0]
