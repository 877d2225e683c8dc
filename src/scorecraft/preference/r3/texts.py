"""What is read off the text alone: its tokens, its length, its repetition; and texts cut out of conversations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from scorecraft.core.checks import positive, positive_integer, refuse

Tokenize: TypeAlias = Callable[[str], Sequence[Any]]
"""From a text to its tokens, anything that can be compared."""

USER_MARKERS = ("### Instruction:", "USER:", "Human:")
ASSISTANT_MARKERS = ("### Response:", "ASSISTANT:", "Assistant:")
STOP_STRINGS = (*USER_MARKERS, *ASSISTANT_MARKERS, "\n\n\n\n", "\n\n--", "\n\n____")
"""Where a response is cut: role markers, and what base models go on with. Matched as they stand, case and all."""
LENGTH_UNIT = 100
"""Tokens that are worth 1."""
ORDER = 3
"""Tokens that repeat together."""
_TOKEN = re.compile(r"\w+|[^\w\s]+")
_MARKER = re.compile("(" + "|".join(map(re.escape, (*USER_MARKERS, *ASSISTANT_MARKERS))) + ")")


def word_tokens(text: str) -> list[str]:
    r"""Maximal runs of word characters, or of characters that are neither word nor space: `\w+|[^\w\s]+`.

    Case-sensitive, line breaks count as space. A language without spaces has one token per run: give a segmenter
    instead where a function takes `tokenize`.

    Source: arXiv 2402.03469, the released code.
    """
    return _TOKEN.findall(text)


def length_incentive(tokens: Sequence[Any], *, unit: float = LENGTH_UNIT) -> float:
    """`LI = tokens / unit`.

    Args:
        tokens: of a response.
        unit: tokens that are worth 1, above 0.
    """
    return len(tokens) / positive("unit", unit)


def repetition_penalty(tokens: Sequence[Any], *, order: int = ORDER) -> float:
    """`RP = distinct n-grams / n-grams`, a factor in (0, 1]; 1 where there are fewer than `order` tokens.

    Over the whole response, across sentences. Long texts repeat n-grams by nature, so the penalty grows with length.

    Args:
        tokens: of a response.
        order: the `n`, at least 1.
    """
    grams = len(tokens) - positive_integer("order", order) + 1
    if grams < 1:
        return 1.0
    return len({tuple(tokens[start : start + order]) for start in range(grams)}) / grams


def query_of(prompt: Any) -> str:
    """What was asked: the user's turns of a conversation, white space collapsed.

    Args:
        prompt: a text, or messages with `role` and `content`; system prompts and answers are left out. In a text the
            role markers (such as `USER:` and `### Response:`) say whose turn it is; without any it is all the user's.

    Raises:
        ValueError: neither of the two, or a conversation in which no user says anything.
    """
    if isinstance(prompt, str):
        return " ".join(" ".join(_user_turns(prompt)).split())
    said = [_content(message) for message in _messages("prompt", prompt) if message.get("role") == "user"]
    if not said:
        refuse("prompt", "a text, or messages with one of the user", f"roles {_roles(prompt)}")
    return " ".join(" ".join(said).split())


def response_of(completion: Any, stop_strings: Sequence[str] = STOP_STRINGS) -> str:
    """What was answered: a text or the last assistant's message, stripped, cut at the first stop string, and stripped.

    Args:
        completion: a text, or messages with `role` and `content`; where no assistant speaks the response is empty.
        stop_strings: the earliest occurrence of any of them ends the response; matched literally.
    """
    if not isinstance(completion, str):
        said = [_content(one) for one in _messages("completion", completion) if one.get("role") == "assistant"]
        completion = said[-1] if said else ""
    text = completion.strip()
    ends = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))].strip()


def reference_of(reference: Any) -> str | None:
    """A reference answer, a text or messages; None where there is none or nothing in it."""
    return None if reference is None else response_of(reference, ()) or None


def checked_stop_strings(stop_strings: Iterable[str]) -> tuple[str, ...]:
    """Stop strings that can end something."""
    if isinstance(stop_strings, str):
        refuse("stop_strings", "a list of texts", repr(stop_strings))
    found = tuple(stop_strings)
    if not all(isinstance(stop, str) and stop for stop in found):
        refuse("stop_strings", "texts that are not empty", repr(found))
    return found


def _user_turns(text: str) -> list[str]:
    first, *rest = _MARKER.split(text)
    turns = [turn for marker, turn in zip(rest[::2], rest[1::2], strict=True) if marker in USER_MARKERS]
    return turns if any(marker in USER_MARKERS for marker in rest[::2]) else [first]


def _messages(name: str, messages: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
        refuse(name, "a text or a list of messages", type(messages).__name__)
    return messages


def _content(message: Mapping[str, Any]) -> str:
    """The text of a message, of one in parts the texts among them."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content or ()
    return " ".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))


def _roles(messages: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(message.get("role")) for message in messages) or "none"
