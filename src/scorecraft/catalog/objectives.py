"""Objectives as they are typed: `n_pair`, `multi_similarity:alpha=2,beta=40`, `multi_similarity + 0.5*tcm`."""

from __future__ import annotations

import ast
import inspect
import operator
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache, reduce
from pkgutil import resolve_name
from typing import TypeAlias, TypeVar

from scorecraft.catalog.entries import entries, family_modules
from scorecraft.core import (
    BatchObjective,
    Cosine,
    ListObjective,
    Objective,
    PreferenceObjective,
    RowObjective,
    ScoreMap,
    in_batch,
    list_losses,
    preference_losses,
)

_PICTURED_SCALE = 20.0
LOGIC = "logic:"
"""What stands before a preference formula."""

AnyObjective: TypeAlias = ListObjective | Objective | PreferenceObjective
KindT = TypeVar("KindT", bound=AnyObjective)


class UnknownObjective(ValueError):
    """A name or an option that no objective has."""


@cache
def objective_types() -> dict[str, type[Objective]]:
    """Every objective of the families that can be made from hyper-parameters alone, by its name.

    The name is the class's own in lower-case words, without `Loss`: `NPairLoss` is `n_pair`.
    """
    kinds = (
        member
        for module in family_modules()
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, Objective) and member.__module__ == module.__name__
    )
    abstract = (Objective, RowObjective, BatchObjective)
    found = {_words(kind): kind for kind in kinds if kind not in abstract and not kind.__name__.startswith("_")}
    return dict(sorted(found.items()))


def find_objective(name: str) -> type[Objective]:
    """The objective of a name, of a class name, or of a paper's slug (the first objective of its interface).

    Raises:
        UnknownObjective: there is none; the message names the nearest ones.
    """
    word = name.strip().replace("-", "_")
    known = objective_types()
    for kind in known.values():
        if word == kind.__name__:
            return kind
    word = word.lower()
    if word in known:
        return known[word]
    if word in _of_papers():
        return _of_papers()[word]
    near = get_close_matches(word, dict.fromkeys([*known, *_of_papers()]), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(f'`{other}`' for other in near)}?" if near else "there are " + ", ".join(known)
    raise UnknownObjective(f"unknown objective `{name}`: {hint}")


@cache
def ranking_objective_types() -> dict[str, type[ListObjective] | type[Objective]]:
    """What queries against candidates can be trained with: every list objective, and the pair objectives of relevance.

    Named as in `objective_types`: `InfoNCELoss` is `info_nce`.
    """
    found: dict[str, type[ListObjective] | type[Objective]] = {
        name: kind for name, kind in objective_types().items() if ".relevance." in kind.__module__
    }
    for module in (list_losses, *family_modules()):
        for member in vars(module).values():
            if isinstance(member, type) and issubclass(member, ListObjective) and member is not ListObjective:
                found[_words(member)] = member
    return dict(sorted(found.items()))


def make_ranking_objective(text: str, *, score: ScoreMap | None = None) -> ListObjective | Objective:
    """An objective over queries and candidates from its name and options: `NAME[:option=value,...]`.

    Underscores and hyphens do not matter (`infonce`), and a paper's slug is its first objective.

    Args:
        text: what was typed.
        score: of an objective over pairs of embeddings; a list objective is given scores.

    Raises:
        UnknownObjective: no objective has this name, or it has no such option.
        ValueError: the objective refuses a value; the line names the option.
    """
    name, given = read_spelling(text)
    kind = _find_among(name, ranking_objective_types())
    _check_options(name, kind, given)
    if issubclass(kind, ListObjective):
        return kind.example(**given)
    if score is not None:
        given["score"] = score
    return kind.example(classes=2, dimension=2, **given)


def pictured_types() -> dict[str, type[ListObjective] | type[Objective]]:
    """The objectives that have a weight curve: those on one score per pair, lists of candidates among them."""
    lists = {
        name: kind
        for name, kind in ranking_objective_types().items()
        if issubclass(kind, ListObjective) and kind.channels == 1 and kind.order_invariant
    }
    return dict(sorted({**objective_types(), **lists}.items()))


def make_pictured(text: str, *, classes: int, dimension: int) -> Objective:
    """An objective for a labelled batch; a list objective as one in which each item ranks all others.

    Raises:
        UnknownObjective, ValueError: as `make_objective` and `make_ranking_objective`.
    """
    try:
        return make_objective(text, classes=classes, dimension=dimension)
    except UnknownObjective as error:
        try:
            objective = make_ranking_objective(text)
        except UnknownObjective:
            raise error from None
    if isinstance(objective, Objective):
        return objective
    if objective.channels > 1 or not objective.order_invariant:
        reads = f"{objective.channels} scores per candidate" if objective.channels > 1 else "lists in order"
        raise UnknownObjective(f"objective `{text}` reads {reads}: it has no curve over the score of a pair")
    return in_batch(objective, score=_PICTURED_SCALE * Cosine())


@cache
def answer_objective_types() -> dict[str, type[PreferenceObjective]]:
    """Every objective on pairs of answers, on rewards or log-probabilities.

    Named as in `objective_types`: `DPOLoss` is `dpo`.
    """
    found = {
        _words(member): member
        for module in (preference_losses, *family_modules())
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, PreferenceObjective) and member is not PreferenceObjective
    }
    return dict(sorted(found.items()))


@cache
def preference_objective_types() -> dict[str, type[PreferenceObjective]]:
    """What a language model can be trained with on pairs of answers: the objectives that read log-probabilities alone.

    Named as in `objective_types`.
    """
    return {
        name: kind
        for name, kind in answer_objective_types().items()
        if kind.reads == "log_probabilities" and not kind.needs_strength
    }


def make_preference_objective(
    text: str, known: Mapping[str, type[PreferenceObjective]] | None = None
) -> PreferenceObjective:
    """An objective on pairs of answers: `[FACTOR*]NAME[:option=value,...] + ...`.

    Or `logic: FORMULA[; option=value,...]`, a preference formula or the name of a known loss. Underscores and hyphens
    do not matter, and a paper's slug is its first objective.

    Args:
        text: what was typed.
        known: what may be named; `preference_objective_types()` when left out.

    Raises:
        UnknownObjective: no objective has this name, or it has no such option.
        ValueError: the objective refuses a value, or the formula cannot be read; the line says where.
    """
    if text.strip().lower().startswith(LOGIC):
        from scorecraft.preference.dpa_logic import LogicLoss

        formula, _, options = text.strip()[len(LOGIC) :].partition(";")
        _, given = read_spelling(f"logic:{options}")
        _check_options("logic", LogicLoss, given)
        return LogicLoss.read(formula.strip(), **given)

    known = preference_objective_types() if known is None else known

    def made(factor: float, term: str) -> PreferenceObjective:
        name, given = read_spelling(term)
        kind = _find_among(name, known)
        _check_options(name, kind, given)
        objective = kind.example(**given)
        return objective if factor == 1 else factor * objective  # type: ignore[return-value]

    terms = map(_factor_of, re.split(r"\s+\+\s+", text.strip()))
    return reduce(operator.add, (made(factor, term) for factor, term in terms))


def make_explained(text: str, *, classes: int, dimension: int) -> Objective | PreferenceObjective:
    """An objective that can be pictured: over the pairs of a labelled batch, or over pairs of answers.

    Raises:
        UnknownObjective, ValueError: as `make_pictured` and `make_preference_objective`.
    """
    known = answer_objective_types()
    try:
        return make_preference_objective(text, known)
    except UnknownObjective as error:
        name = read_spelling(_factor_of(re.split(r"\s+\+\s+", text.strip())[0])[1])[0]
        if text.strip().lower().startswith(LOGIC) or _is_among(name, known):
            raise
        try:
            return make_pictured(text, classes=classes, dimension=dimension)
        except UnknownObjective as other:
            # Of two unknown names the message with the nearer one helps.
            raise (error if get_close_matches(name, known, n=1) else other) from None


def _is_among(name: str, known: Mapping[str, type[KindT]]) -> bool:
    try:
        _find_among(name, known)
    except UnknownObjective:
        return False
    return True


def _find_among(name: str, known: Mapping[str, type[KindT]]) -> type[KindT]:
    """By name, class name or a paper's slug, whatever the underscores and hyphens."""
    plain = {other.replace("_", ""): kind for other, kind in known.items()}
    plain |= {kind.__name__.lower(): kind for kind in known.values()}
    for entry in entries():
        kinds = (thing for thing in map(resolve_name, entry.paper.api) if thing in known.values())
        if (kind := next(kinds, None)) is not None:
            plain.setdefault(entry.paper.slug.replace("_", ""), kind)
    word = re.sub(r"[-_]", "", name.strip().lower())
    if word in plain:
        return plain[word]
    near = get_close_matches(word, plain, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else "there are " + ", ".join(known)
    raise UnknownObjective(f"unknown objective `{name}`: {hint}")


def make_objective(text: str, *, classes: int, dimension: int) -> Objective:
    """An objective from its name and options, or a sum of several: `[FACTOR*]NAME[:option=value,...] + ...`.

    Args:
        text: what was typed. Values are Python literals; anything else is a string.
        classes: how many classes the labels have, for objectives that hold something per class.
        dimension: of the embeddings.

    Raises:
        UnknownObjective: no objective has this name, or it has no such option.
        ValueError: the objective refuses a value; the line names the option.
    """
    made = (
        _make_term(factor, term, classes=classes, dimension=dimension)
        for factor, term in map(_factor_of, re.split(r"\s+\+\s+", text.strip()))
    )
    return reduce(operator.add, made)


def _factor_of(term: str) -> tuple[float, str]:
    found = re.fullmatch(r"(?:([\d.]+(?:e[+-]?\d+)?)\s*\*\s*)?(.+)", term)
    if found is None:
        raise UnknownObjective(f"cannot read `{term}`: expected NAME, or FACTOR*NAME")
    return float(found[1] or 1), found[2]


def _make_term(factor: float, text: str, *, classes: int, dimension: int) -> Objective:
    name, given = read_spelling(text)
    kind = find_objective(name)
    _check_options(name, kind, given)
    made = kind.example(classes=classes, dimension=dimension, **given)
    return made if factor == 1 else factor * made


def read_spelling(text: str) -> tuple[str, dict[str, object]]:
    """Name and options of `NAME:option=value,option=value`.

    Raises:
        UnknownObjective: it is not written so.
    """
    name, _, options = text.partition(":")
    given: dict[str, object] = {}
    for part in filter(None, re.split(r",(?![^(\[]*[)\]])", options)):  # not inside brackets
        option, equals, value = part.partition("=")
        if not equals or not option.strip().isidentifier():
            raise UnknownObjective(f"cannot read `{part}` of `{text}`: expected NAME:option=value,option=value")
        try:
            given[option.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            given[option.strip()] = value.strip()
    return name.strip(), given


def _check_options(name: str, kind: type[AnyObjective], given: Iterable[str]) -> None:
    known = _option_names(kind)
    for option in given:
        if option not in known:
            near = get_close_matches(option, known, n=1, cutoff=0.4)
            hint = f"did you mean `{near[0]}`?" if near else f"expected one of {', '.join(known) or 'none'}"
            raise UnknownObjective(f"objective `{name}` has no option `{option}`: {hint}")


def _option_names(kind: type[AnyObjective]) -> list[str]:
    """What `example` passes on: the keyword-only hyper-parameters that can be typed."""
    parameters = inspect.signature(kind).parameters.values()
    not_typed = ("score", "reduction", "validate")
    return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in not_typed]


@cache
def _of_papers() -> dict[str, type[Objective]]:
    """The first objective in each finished paper's interface, by slug."""
    found = {}
    for entry in entries():
        things = (resolve_name(name) for name in entry.paper.api)
        kinds = (thing for thing in things if isinstance(thing, type) and issubclass(thing, Objective))
        if (kind := next(kinds, None)) is not None:
            found[entry.paper.slug] = kind
    return found


def _words(kind: type[AnyObjective]) -> str:
    """The name of a class in lower-case words; pieces of one or two letters are no words (`SLiC` is `slic`)."""
    name = kind.__name__.removesuffix("Loss")
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return re.sub(r"_(?=[a-z]{1,2}(_|$))", "", words)
