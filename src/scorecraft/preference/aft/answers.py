"""From sampled answers to right and wrong ones: final answers are read and compared, repeated texts are dropped."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Literal, NamedTuple, TypeAlias

from scorecraft.core.checks import choice, describe, refuse

Parse: TypeAlias = "Callable[[str], str | None]"
"""The final answer of a text, or none."""

_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_NOT_OF_A_NUMBER = re.compile(r"(?<=\d),(?=\d{3}(?!\d))|\\?\$|\\[!,;:]")


class AnswerSet(NamedTuple):
    """The different answers to a question."""

    completions: list[str]
    labels: list[bool] | list[int]
    """Right or wrong, or ranks, one per answer."""
    repeated: int
    """How many answers were left out because they were there already."""
    conflicting: int
    """How many different answers were left out because they were judged in two ways."""


def canonical(answer: str) -> str:
    """A final answer as it is compared: `$1,234.50` is `1234.5`; what is no number keeps its words.

    Dollar signs, commas between thousands, spaces around it and a full stop at its end are left out.
    """
    words = " ".join(_NOT_OF_A_NUMBER.sub("", answer).split()).rstrip(".").strip()
    try:
        number = Decimal(words)
    except InvalidOperation:
        return words
    if not number.is_finite():
        return words
    return format(number.normalize() + 0, "f")


def gsm8k_answer(text: str) -> str | None:
    """What stands behind the last `####` of a text, in canonical form; none where there is none."""
    found = _HASHES.findall(text)
    return (canonical(found[-1]) or None) if found else None


def boxed_answer(text: str) -> str | None:
    r"""What stands in the last whole `\boxed{...}` of a text, braces inside it matched, in canonical form."""
    for start in reversed([match.end() for match in _BOXED.finditer(text)]):
        depth = 1
        for place, character in enumerate(text[start:], start):
            depth += (character == "{") - (character == "}")
            if depth == 0:
                return canonical(text[start:place]) or None
    return None


def final_answer(text: str) -> str | None:
    r"""What stands behind the last `####`, else in the last `\boxed{...}`, in canonical form."""
    found = gsm8k_answer(text)
    return boxed_answer(text) if found is None else found


def distinct_answers(
    completions: Sequence[str],
    labels: Sequence[bool] | Sequence[int],
    *,
    reference: str | None = None,
    conflicting: Literal["drop", "refuse"] = "drop",
) -> AnswerSet:
    """Each answer once, in the order in which they came; spaces around a text do not make it another.

    An answer that is judged in two ways (right and wrong, or with two ranks) would keep the loss above a floor: it is
    left out, or refused. A reference stands first and is right, whatever was said of the same text.

    Args:
        completions: texts, empty ones refused.
        labels: one per text: whether it is right, or its rank.
        reference: an answer that is known to be right, or the best one of a ranking (its rank is that of the best).
        conflicting: what to do with a text that is judged in two ways.

    Raises:
        ValueError: one line: an empty text, another number of labels, or an answer judged in two ways.
    """
    choice("conflicting", conflicting, ("drop", "refuse"))
    if len(labels) != len(completions):
        refuse("labels", f"{len(completions)} of them, one per completion", len(labels))
    judged: dict[str, bool | int] = {}
    in_two_ways: set[str] = set()
    known = None
    if reference is not None:
        known = _text("reference", reference)
        judged[known] = True if all(isinstance(one, bool) for one in labels) else min(labels, default=0)
    repeated = 0
    for completion, label in zip(completions, labels, strict=True):
        text = _text("completions", completion)
        if text not in judged:
            judged[text] = label
            continue
        repeated += 1
        if judged[text] != label and text != known:
            in_two_ways.add(text)
    if in_two_ways and conflicting == "refuse":
        refuse("labels", "one judgement of each answer", f"two of {min(in_two_ways)[:80]!r}")
    kept = {text: label for text, label in judged.items() if text not in in_two_ways}
    return AnswerSet(list(kept), list(kept.values()), repeated, len(in_two_ways))  # type: ignore[arg-type]


def split_by_final_answer(
    completions: Sequence[str],
    truth: str,
    *,
    reference: str | None = None,
    parse: Parse = final_answer,
    same: Callable[[str, str], bool] = operator.eq,
    unparsed: Literal["wrong", "drop"] = "wrong",
) -> AnswerSet:
    """Sampled answers as right or wrong by their final answer, each once.

        >>> split_by_final_answer(["3 + 4 = 7 #### 7", "3 * 4 = 12 #### 12"], "7").labels
        [True, False]

    Args:
        completions: sampled answers to one question.
        truth: the right final answer (`42`), or a text that `parse` reads it from.
        reference: the reference answer, put first among the right ones.
        parse: reads the final answer of a text, or returns none.
        same: whether a final answer (first) is the right one (second); equality of what `parse` gave, or a checker.
        unparsed: whether an answer without a final answer is wrong, or left out.

    Raises:
        ValueError: one line: an empty text or truth.

    Source: arXiv 2309.02144, section 4.1.
    """
    choice("unparsed", unparsed, ("wrong", "drop"))
    right = parse(truth)
    right = canonical(truth) if right is None else right
    if not right:
        refuse("truth", "a final answer", describe(truth))
    found = [(text, parse(text)) for text in completions]
    if unparsed == "drop":
        found = [(text, answer) for text, answer in found if answer is not None]
    labels = [answer is not None and bool(same(answer, right)) for _, answer in found]
    return distinct_answers([text for text, _ in found], labels, reference=reference)


def _text(name: str, text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        refuse(name, "texts that are not empty", describe(text))
    return text.strip()
