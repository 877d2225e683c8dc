"""The logits of yes and no: what the whole head would have said, at the last token, whichever side is padded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scorecraft.relevance.two_row_scoring import (
    answer_positions,
    answer_states,
    grouped_logits,
    label_token,
    row_logits,
    token_rows,
    two_row_logits,
)

VOCABULARY, YES, NO = 50, 7, 31


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


@pytest.fixture
def head() -> Tensor:
    return torch.randn(VOCABULARY, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def mask() -> Tensor:
    """Right padding, left padding, none, both with a hole: a tool's output may have been masked."""
    return torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]])


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.uint8])
def test_the_last_token_whichever_side_is_padded(mask: Tensor, dtype: torch.dtype) -> None:
    assert answer_positions(mask.to(dtype)).tolist() == [2, 4, 4, 3]


def test_padding_side_is_found_row_by_row(hidden: Tensor, mask: Tensor) -> None:
    expected = torch.stack([hidden[0, 2], hidden[1, 4], hidden[2, 4], hidden[3, 3]])
    torch.testing.assert_close(answer_states(hidden, mask), expected, rtol=0, atol=0)


def test_equal_to_the_whole_head(hidden: Tensor, mask: Tensor, head: Tensor) -> None:
    found = two_row_logits(hidden, mask, token_rows(head, YES, NO))
    logits = hidden @ head.T
    rows, last = torch.arange(4), torch.tensor([2, 4, 4, 3])
    expected = torch.stack([logits[rows, last, YES], logits[rows, last, NO]])
    torch.testing.assert_close(found, expected)
    weights = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((value * weights).sum(), hidden)[0] for value in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_gradcheck(hidden: Tensor, mask: Tensor, head: Tensor) -> None:
    rows = token_rows(head, YES, NO).requires_grad_()
    torch.autograd.gradcheck(lambda h, r: two_row_logits(h, mask, r), (hidden, rows))


def test_the_head_receives_gradient_in_two_rows_alone(hidden: Tensor, mask: Tensor, head: Tensor) -> None:
    head.requires_grad_()
    two_row_logits(hidden, mask, token_rows(head, YES, NO)).sum().backward()
    assert head.grad is not None
    assert head.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [YES, NO]


def test_half_precision_states_give_float32_logits() -> None:
    """Near 20, bfloat16 logits are 0.125 apart: two documents that differ must not tie."""
    hidden = torch.tensor([[[20.0, 1.0]], [[20.0, 1.03125]]], dtype=torch.bfloat16)
    rows = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.bfloat16)
    mask = torch.ones(2, 1, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = two_row_logits(hidden, mask, rows)
    assert logits.dtype == torch.float32
    assert logits[0].tolist() == [21.0, 21.03125]
    assert (hidden[:, 0] @ rows[0]).unique().numel() == 1  # what bfloat16 would have said


def test_several_tokens_per_label(hidden: Tensor, mask: Tensor, head: Tensor) -> None:
    """The log-sum-exp of a group: the two-label probability is that of the groups together."""
    yes, no = [YES, 3, 4], [NO]
    found = grouped_logits(hidden, mask, head[yes], head[no])
    logits = answer_states(hidden, mask) @ head.T
    chance = logits[:, yes].exp().sum(1) / (logits[:, yes].exp().sum(1) + logits[:, no].exp().sum(1))
    torch.testing.assert_close((found[0] - found[1]).sigmoid(), chance)
    torch.testing.assert_close(grouped_logits(hidden, mask, head[[YES]], head[[NO]]),
                               two_row_logits(hidden, mask, token_rows(head, YES, NO)))  # fmt: skip


def test_rows_of_any_states_with_a_bias(head: Tensor) -> None:
    states = torch.randn(2, 3, 6, dtype=torch.float64)
    bias = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found = row_logits(states, head[[YES, NO]], bias)
    torch.testing.assert_close(found, ((states @ head.T)[..., [YES, NO]] + bias).movedim(-1, 0))


def test_compiles_to_one_graph(hidden: Tensor, mask: Tensor, head: Tensor) -> None:
    rows = token_rows(head, YES, NO)
    compiled = torch.compile(two_row_logits, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden, mask, rows), two_row_logits(hidden, mask, rows))


def test_one_token_per_label() -> None:
    tokens = {"yes": [7], "relevant": [4, 9], "": []}
    assert label_token(tokens.__getitem__, "yes") == 7
    for label, said in (("relevant", r"2 tokens \[4, 9\]"), ("", "0 tokens")):
        with pytest.raises(ValueError, match=f"argument `label`: expected a word of one token, got .*{said}"):
            label_token(tokens.__getitem__, label)


def test_bad_input_is_refused(hidden: Tensor, mask: Tensor, head: Tensor) -> None:
    rows = token_rows(head, YES, NO)
    padding = mask.clone()
    padding[2] = 0
    broken = hidden.detach().clone()
    broken[0, 2, 0] = torch.nan
    beyond = hidden.detach().clone()
    beyond[0, 3, 0] = torch.nan  # behind the answer: never read
    assert two_row_logits(beyond, mask, rows).isfinite().all()
    refused = {
        "attention_mask`: expected a token in every row": lambda: two_row_logits(hidden, padding, rows),
        "attention_mask`: expected a mask of shape": lambda: two_row_logits(hidden, mask[:, 1:], rows),
        "attention_mask`: expected a bool or integer matrix": lambda: answer_positions(mask.double()),
        "hidden`: expected finite values": lambda: two_row_logits(broken, mask, rows),
        "hidden`: expected floating-point hidden states": lambda: two_row_logits(hidden[0], mask, rows),
        "rows`: expected two rows": lambda: two_row_logits(hidden, mask, head),
        "rows`: expected rows of width 6": lambda: two_row_logits(hidden, mask, rows[:, 1:]),
        "no`: expected another token": lambda: token_rows(head, YES, YES),
        "yes`: expected one token id below 50": lambda: token_rows(head, VOCABULARY, NO),
        "no`: expected one token id below 50": lambda: token_rows(head, YES, [NO, 3]),  # type: ignore[arg-type]
        "yes_rows`: expected at least one row": lambda: grouped_logits(hidden, mask, head[:0], head[:1]),
    }
    for said, call in refused.items():
        with pytest.raises(ValueError, match=f"argument `{said}"):
            call()
