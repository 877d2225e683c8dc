"""The card, its BibTeX, and the way from an object to its papers."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from scorecraft.core.paper import Paper, citation, papers_of

FIRST = Paper(
    slug="first",
    title="On A & B",
    arxiv="1904.06627",
    date="2019-04-14",
    room="similarity",
    kind="loss",
    authors="Doe, Jane and Roe, Richard",
    venue="CVPR 2019",
)
SECOND = Paper(slug="second", title="Second", arxiv="2510.02730", date="2025-10", room="density", kind="loss")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two packages with cards, a module inside the first, and classes and a function that live there."""
    for name, card in (("paper_one", FIRST), ("paper_one.parts", None), ("paper_two", SECOND), ("no_paper", None)):
        module = ModuleType(name)
        if card is not None:
            module.PAPER = card  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)

    def metric() -> None:
        pass

    metric.__module__ = "paper_one.parts"
    return SimpleNamespace(
        Loss=type("Loss", (), {"__module__": "paper_one.parts"}),
        Other=type("Other", (), {"__module__": "paper_two"}),
        Nothing=type("Nothing", (), {"__module__": "no_paper"}),
        metric=metric,
    )


def test_bibtex_says_what_is_known() -> None:
    assert FIRST.bibtex == (
        "@misc{first2019,\n"
        "  author = {Doe, Jane and Roe, Richard},\n"
        "  title = {{On A \\& B}},\n"
        "  year = {2019},\n"
        "  eprint = {1904.06627},\n"
        "  archivePrefix = {arXiv},\n"
        "  url = {https://arxiv.org/abs/1904.06627},\n"
        "  note = {CVPR 2019},\n"
        "}"
    )
    assert "author" not in SECOND.bibtex
    assert "note" not in SECOND.bibtex


def test_citation_of_class_instance_function_and_subclass(modules: SimpleNamespace) -> None:
    subclass = type("Mine", (modules.Loss,), {"__module__": "no_paper"})
    for thing in (modules.Loss, modules.Loss(), modules.metric, subclass, subclass()):
        assert papers_of(thing) == [FIRST]
    assert citation(modules.Loss()) == FIRST.bibtex


def test_citation_of_compositions_names_each_paper_once(modules: SimpleNamespace) -> None:
    total = modules.Nothing()
    total.objectives = [modules.Loss(), modules.Other(), modules.Loss()]
    for inner in (total, {"first": modules.Loss(), "second": modules.Other()}, (modules.Loss(), modules.Other())):
        wrapped = modules.Nothing()
        wrapped.objective = inner
        assert papers_of(wrapped) == [FIRST, SECOND]
        assert citation(wrapped) == f"{FIRST.bibtex}\n\n{SECOND.bibtex}"


def test_nothing_to_cite(modules: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="implements a paper, got `Nothing`, which cites none"):
        citation(modules.Nothing())
    with pytest.raises(ValueError, match="got `int`"):
        citation(3)


@pytest.mark.parametrize(
    "wrong",
    [{"slug": "Multi-Similarity"}, {"arxiv": "arXiv:1904.06627"}, {"date": "Apr 14, 2019"}, {"room": "kitchen"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_cards_are_checked(wrong: dict[str, str]) -> None:
    good = {
        "slug": "first",
        "title": "T",
        "arxiv": "1904.06627",
        "date": "2019-04-14",
        "room": "similarity",
        "kind": "k",
    }
    (name,) = wrong
    with pytest.raises(ValueError, match=f"argument `{name}`: expected"):
        Paper(**{**good, **wrong})
