"""A generative re-ranker on the same negatives: verdicts on pairs, and the number of the positive in a list.

Three prompts per query train it by the cross entropy of their answers: the positive ("Yes"), the hardest negative
("No"), and a numbered list in which the positive stands at a random place (its number). `RerankingPrompts` writes
them, `JointRerankingLoss` is their loss; `parse_answer`, `chosen_first` and `index_token_scores` read the answers.

Source: Gu et al. 2025, arXiv 2510.13515, section 3 (equation 6).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core.batch import Reduction, reduce_losses
from scorecraft.core.checks import check_values, choice, describe, positive_integer, refuse
from scorecraft.relevance.unime_v2.positions import draw_positions, uniform_position_law

IGNORED = -100
"""The token of a place that is no part of an answer."""


class Answer(NamedTuple):
    """What a model said at the places of the answers of some prompts, and what it should have said."""

    logits: Float[Tensor, "q a v"]
    """Over the whole vocabulary, of the tokens that predict the answer's."""
    tokens: Int[Tensor, "q a"]
    """The answers, padded with `IGNORED`."""


class JointRerankingLoss(nn.Module):
    """Pairwise and listwise training of a generative re-ranker:

        L = CE("Yes" | q, positive) + CE("No" | q, hardest negative) + CE(I | q, list)

    averaged over queries. Each cross entropy runs over the full vocabulary, in float32 at least, and is the mean over
    the tokens of its answer (of which there is one, for the usual words and one-digit numbers).

    Only the places of the answers are read: take the hidden states there and apply the head to nothing else, since the
    logits of whole prompts are what fills the memory.

    Args:
        reduction: `"mean"`, `"sum"` or `"none"` over queries.
        validate: read the values of the input.

    Source: Gu et al. 2025, arXiv 2510.13515, equation 6.
    """

    def __init__(self, *, reduction: Reduction = "mean", validate: bool = True) -> None:
        super().__init__()
        self.reduction: Reduction = choice("reduction", reduction, ("mean", "sum", "none"))  # type: ignore[assignment]
        self.validate = validate

    def forward(self, positive: Answer, negative: Answer, listing: Answer) -> Tensor:
        """The loss of `q` queries, three prompts each.

        Args:
            positive: of the pair prompts with the positive; the answer is "Yes".
            negative: of the pair prompts with the hardest negative; the answer is "No".
            listing: of the list prompts; the answer is the number of the positive.

        Returns:
            A scalar, or one loss per query `[q]` with `reduction="none"`.

        Raises:
            ValueError: one line naming the argument, what was expected and what came.
        """
        named = {"positive": positive, "negative": negative, "listing": listing}
        if len({len(answer.tokens) for answer in named.values()}) > 1:
            refuse("listing", f"{len(positive.tokens)} queries in all three", f"{len(listing.tokens)}")
        parts = [answer_cross_entropy(answer, validate=self.validate, name=name) for name, answer in named.items()]
        return reduce_losses(parts[0] + parts[1] + parts[2], self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


def answer_cross_entropy(answer: Answer, *, validate: bool = True, name: str = "answer") -> Float[Tensor, " q"]:
    """`mean_a -log softmax(logits_a)[token_a]` over the tokens of each answer; 0 for an answer without tokens.

    Args:
        answer: logits `[q, a, v]` and tokens `[q, a]`.
        validate: read the values of the input.
        name: of the argument that is complained about.
    """
    logits, tokens = answer
    if logits.ndim != 3 or not logits.is_floating_point():
        refuse(name, "floating-point logits [queries, tokens, vocabulary]", describe(logits))
    if tokens.shape != logits.shape[:2] or tokens.is_floating_point():
        refuse(name, f"answer tokens of shape {tuple(logits.shape[:2])}", describe(tokens))
    read = tokens != IGNORED
    if validate:
        vocabulary = logits.shape[2]
        check_values(name, f"tokens below {vocabulary}, or {IGNORED}",
                     lambda: (~read | ((tokens >= 0) & (tokens < vocabulary))).all(), tokens)  # fmt: skip
        check_values(name, "finite logits", lambda: (logits.isfinite().all(dim=2) | ~read).all(), logits)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(tokens.shape).sum(dim=1) / read.sum(dim=1).clamp(min=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankingPrompts:
    """The three prompts of a query, as text.

    The wording is free; released checkpoints expect that of their authors.

    Args:
        pair: with `{query}` and `{candidate}`.
        listing: with `{query}` and `{candidates}`.
        item: one line of a list, with `{number}` and `{candidate}`.
        yes: the answer for a candidate that satisfies the query.
        no: the answer for one that does not.

    Raises:
        ValueError: a template without one of its fields, or equal answers.
    """

    pair: str = "Query: {query}\nCandidate: {candidate}\nDoes the candidate satisfy the query? Answer Yes or No:"
    listing: str = "Query: {query}\nCandidates:\n{candidates}\nWhich candidate satisfies the query best? Number:"
    item: str = "({number}) {candidate}"
    yes: str = "Yes"
    no: str = "No"

    def __post_init__(self) -> None:
        fields = {"pair": ("query", "candidate"), "listing": ("query", "candidates"), "item": ("number", "candidate")}
        for template, needed in fields.items():
            if missing := [name for name in needed if f"{{{name}}}" not in getattr(self, template)]:
                refuse(template, f"a template with {{{missing[0]}}}", repr(getattr(self, template)))
        if self.yes == self.no:
            refuse("no", "another word than for yes", repr(self.no))

    def of_pair(self, query: str, candidate: str) -> str:
        """The prompt that asks for a verdict on one candidate."""
        return _filled(self.pair, query=query, candidate=candidate)

    def of_list(self, query: str, candidates: Sequence[str]) -> str:
        """The prompt that asks for the best of several candidates, numbered from 1."""
        lines = [_filled(self.item, number=str(n), candidate=text) for n, text in enumerate(candidates, start=1)]
        return _filled(self.listing, query=query, candidates="\n".join(lines))

    def of_training(
        self, query: str, positive: str, negatives: Sequence[str], generator: torch.Generator, *, listed: int = 5
    ) -> list[dict[str, str]]:
        """The three prompts of a query with their answers, `{"prompt": ..., "completion": ...}` each.

        This is the form that completion-only trainers of language models read. The positive is put into the list at a
        uniformly drawn place: any other law would be learnt as a preference for places (see `positions`).

        Args:
            query: of these prompts.
            positive: what satisfies it.
            negatives: what does not, the hardest first.
            generator: of the place.
            listed: `x`, how many of the negatives stand in the list.

        Raises:
            ValueError: an empty text, or fewer negatives than `listed`.
        """
        if positive_integer("listed", listed) > len(negatives):
            refuse("negatives", f"at least listed = {listed} negatives", len(negatives))
        for name, text in (("query", query), ("positive", positive), *(("negatives", text) for text in negatives)):
            if not text.strip():
                refuse(name, "a text that is not empty", repr(text))
        place = int(draw_positions(uniform_position_law(listed + 1), 1, generator))
        candidates = [*negatives[: place - 1], positive, *negatives[place - 1 : listed]]
        return [
            {"prompt": self.of_pair(query, positive), "completion": self.yes},
            {"prompt": self.of_pair(query, negatives[0]), "completion": self.no},
            {"prompt": self.of_list(query, candidates), "completion": str(place)},
        ]


def parse_answer(answer: str, length: int) -> int | None:
    """The number that an answer such as `(3)`, or `3`, names; None when there is none in 1..`length`.

    A number in parentheses is preferred wherever it stands; a bare one must come first.
    """
    found = re.search(r"\(\s*([0-9]+)\s*\)", answer) or re.match(r"\s*([0-9]+)(?![0-9])", answer)
    number = int(found[1]) if found else 0
    return number if 1 <= number <= positive_integer("length", length) else None


def chosen_first(answer: str, length: int) -> list[int]:
    """Columns of a list in their new order: the one that the answer names first, the others as retrieved.

    An answer that cannot be read, or names no entry of the list, leaves the order of retrieval.
    """
    number = parse_answer(answer, length)
    if number is None:
        return list(range(length))
    return [number - 1, *(column for column in range(length) if column != number - 1)]


def index_token_scores(
    logits: Float[Tensor, "b v"], index_tokens: Int[Tensor, " x"] | Sequence[int]
) -> Float[Tensor, "b x"]:
    """A graded score of every entry of a list, without generation: `ln softmax` over the tokens of the numbers 1..x.

    Args:
        logits: over the vocabulary, where the number would be generated.
        index_tokens: the token of each number, one token each and all different.

    Returns:
        Log-probabilities restricted to these tokens, float32 at least; `exp` of a row sums to one.

    Raises:
        ValueError: tokens outside the vocabulary, or a token that stands for two numbers.
    """
    tokens = torch.as_tensor(index_tokens, device=logits.device)
    if logits.ndim != 2 or not logits.is_floating_point():
        refuse("logits", "floating-point logits [prompts, vocabulary]", describe(logits))
    if tokens.ndim != 1 or tokens.is_floating_point() or len(tokens.unique()) != len(tokens) or len(tokens) == 0:
        refuse("index_tokens", "a different token for each number", tokens.tolist())
    check_values("index_tokens", f"tokens below {logits.shape[1]}",
                 lambda: ((tokens >= 0) & (tokens < logits.shape[1])).all(), tokens)  # fmt: skip
    chosen = logits[:, tokens]
    return (chosen if chosen.dtype == torch.float64 else chosen.float()).log_softmax(dim=1)


def _filled(template: str, **values: str) -> str:
    """The template with its fields in one pass, so that braces in a text mean nothing."""
    return re.sub("|".join(rf"\{{{name}\}}" for name in values), lambda field: values[field[0][1:-1]], template)
