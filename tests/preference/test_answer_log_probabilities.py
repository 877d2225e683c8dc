"""Log-probabilities of answers by chunks: equal to those of the whole logits, with their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.preference.answer_log_probabilities import answer_log_probabilities


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 5, generator=generator, dtype=dtype)
    head, bias = torch.randn(11, 5, generator=generator, dtype=dtype), torch.randn(11, generator=generator, dtype=dtype)
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    labels[0, :3] = labels[1, :5] = labels[2, 5:] = -100
    return hidden, head, bias, labels


def whole(hidden: Tensor, head: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, on all logits."""
    logits = hidden[:, :-1] @ head.T + (0 if bias is None else bias)
    targets = labels[:, 1:]
    scored = targets != -100
    each = logits.log_softmax(dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return torch.where(scored, each, 0.0).sum(dim=1), scored.sum(dim=1)


@pytest.mark.parametrize("trained", ["hidden", "head", "both", "all"])
@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_equal_to_the_whole_logits(trained: str, chunk: int) -> None:
    hidden, head, bias, labels = data()
    leaves = {"hidden": [hidden], "head": [head], "both": [hidden, head], "all": [hidden, head, bias]}[trained]
    for leaf in leaves:
        leaf.requires_grad_()
    ours = answer_log_probabilities(hidden, head, labels, bias=bias, chunk=chunk)
    sums, tokens = whole(hidden, head, bias, labels)
    torch.testing.assert_close(ours.sums, sums, rtol=1e-12, atol=1e-12)
    assert ours.tokens.tolist() == tokens.tolist()
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = torch.autograd.grad((weights * ours.sums).sum(), leaves)
    wanted = torch.autograd.grad((weights * sums).sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    hidden, head, _, labels = data(torch.float32)
    small = answer_log_probabilities(hidden.to(dtype), head.to(dtype), labels)
    assert small.sums.dtype == torch.float32
    torch.testing.assert_close(small.sums, whole(hidden, head, None, labels)[0], rtol=0.03, atol=0.1)


def test_under_autocast() -> None:
    hidden, head, _, labels = data(torch.float32)
    hidden.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        sums = answer_log_probabilities(hidden, head, labels).sums
    assert sums.dtype == torch.float32
    (found,) = torch.autograd.grad(sums.sum(), hidden)
    (wanted,) = torch.autograd.grad(whole(hidden, head, None, labels)[0].sum(), hidden)
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.999


def test_certain_tokens_have_log_probability_zero_not_more() -> None:
    hidden = torch.full((1, 3, 1), 1e4)
    sums = answer_log_probabilities(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([[-100, 0, 0]])).sums
    assert sums.tolist() == [0.0]


def test_what_is_refused() -> None:
    hidden, head, bias, labels = data()
    empty = labels.clone()
    empty[1] = -100
    for arguments, line in [
        ((hidden[0], head, labels), r"argument `hidden`: expected floating-point hidden states \[b, t, d\], got"),
        ((hidden, head[:, 1:], labels), r"argument `head`: expected a floating-point weight of shape \[v, 5\], got"),
        ((hidden, head, labels[:2]), r"argument `labels`: expected token ids of shape \(3, 7\), got"),
        ((hidden, head, labels + 90), r"argument `labels`: expected token ids below 11, or -100, got"),
        ((hidden, head, empty), r"argument `labels`: expected a token in every answer .*, got 0 at \[1\]"),
    ]:
        with pytest.raises(ValueError, match=line):
            answer_log_probabilities(*arguments)
    with pytest.raises(ValueError, match=r"argument `bias`: expected one number per row of the head"):
        answer_log_probabilities(hidden, head, labels, bias=bias[1:])
