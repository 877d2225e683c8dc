"""Words of formulas and ratios, and complaints that point at a column."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

DEEPEST = 100
"""How deep texts may nest."""


class FormulaError(ValueError):
    """A text that cannot be read: one line, with the column (from 1) where it went wrong in `column`."""

    def __init__(self, message: str, text: str, column: int) -> None:
        super().__init__(message)
        self.text = text
        self.column = column

    def pointer(self) -> str:
        """The text with a caret below the place."""
        return f"{self.text}\n{' ' * (self.column - 1)}^"


class Token(NamedTuple):
    """A word or a sign; the empty text is the end."""

    text: str
    column: int


class Reader:
    """The tokens of a text, read from left to right.

    Args:
        argument: what the text is called in complaints.
        text: what is read.
        signs: signs, longer ones before their beginnings.
    """

    def __init__(self, argument: str, text: str, signs: Sequence[str]) -> None:
        if not isinstance(text, str):
            raise TypeError(f"argument `{argument}`: expected text, got {type(text).__name__}")
        self.argument, self.text = argument, text
        pattern = re.compile(rf"\s*(?:({'|'.join(map(re.escape, signs))}|[A-Za-z_]\w*|\d+)|(\S))")
        self._tokens: list[Token] = []
        position = 0
        while (match := pattern.match(text, position)) is not None:
            token = Token(match[1] or match[2], match.start(1 if match[1] else 2) + 1)
            if not match[1]:
                self.complain(f"a proposition, a bracket or one of {' '.join(signs)}", token)
            self._tokens.append(token)
            position = match.end()
        self._tokens.append(Token("", len(text.rstrip()) + 1))
        self._next = self._depth = 0

    @property
    def token(self) -> Token:
        """What comes next."""
        return self._tokens[self._next]

    def take(self, *wanted: str) -> Token | None:
        """Read on if one of these comes next."""
        return self.advance() if self.token.text in wanted else None

    def advance(self) -> Token:
        """Read on."""
        token = self.token
        self._next += bool(token.text)
        return token

    def expect(self, wanted: str, expected: str) -> None:
        """Read one sign, and complain if something else comes."""
        if self.take(wanted) is None:
            self.complain(expected, self.token)

    def end(self, expected: str) -> None:
        """Complain if anything is left."""
        if self.token.text:
            self.complain(expected, self.token)

    @contextmanager
    def nested(self) -> Iterator[None]:
        """One level deeper, as far as `DEEPEST`."""
        self._depth += 1
        if self._depth > DEEPEST:
            self.complain(f"at most {DEEPEST} levels of nesting", self.token)
        yield
        self._depth -= 1

    def proposition(self, token: Token, known: Sequence[str]) -> int:
        """The index of a proposition; complain with the known ones."""
        if token.text not in known:
            self.complain(f"one of the propositions {', '.join(known)}", token)
        return list(known).index(token.text)

    def complain(self, expected: str, token: Token) -> NoReturn:
        """Raise the line about a token."""
        got = f"`{token.text}`" if token.text else "its end"
        raise FormulaError(
            f"argument `{self.argument}`: expected {expected} at column {token.column} of `{self.text}`, got {got}",
            self.text,
            token.column,
        )
