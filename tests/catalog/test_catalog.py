"""The catalogue: forty-five papers, the finished ones found by themselves, and what was recorded about them."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import pytest

from scorecraft import catalog
from scorecraft.catalog import records
from scorecraft.catalog.planned import PLANNED
from scorecraft.core.paper import ROOMS, Paper

FINISHED = [entry for entry in catalog.entries() if entry.done]


def test_forty_five_papers() -> None:
    slugs = [entry.paper.slug for entry in catalog.entries()]
    assert len(slugs) == len(set(slugs)) == 45
    assert len({entry.paper.arxiv for entry in catalog.entries()}) == 45
    assert Counter(entry.paper.room for entry in catalog.entries()) == {
        "similarity": 7,
        "relevance": 9,
        "preference": 7,
        "probability": 5,
        "importance": 5,
        "density": 12,
    }


def test_the_first_three_are_finished() -> None:
    assert {"multi_similarity", "tcm", "unpg"} <= {entry.paper.slug for entry in FINISHED}


@pytest.mark.parametrize("entry", FINISHED, ids=lambda entry: entry.paper.slug)
def test_finished_cards_agree_with_the_plan_and_resolve(entry: catalog.Entry) -> None:
    planned = {paper.slug: paper for paper in PLANNED}[entry.paper.slug]
    for fact in ("title", "arxiv", "date", "room"):
        assert getattr(entry.paper, fact) == getattr(planned, fact)
    assert entry.paper.api
    for name in entry.paper.api:
        assert callable(resolve_name(name)), name


@pytest.mark.parametrize("entry", catalog.entries(), ids=lambda entry: entry.paper.slug)
def test_cards_are_complete(entry: catalog.Entry) -> None:
    paper = entry.paper
    assert re.fullmatch(r"\d{4}-\d\d(-\d\d)?", paper.date)
    assert paper.room in ROOMS
    assert paper.title.strip()
    assert paper.kind.strip()
    # An arXiv identifier begins with year and month, and a paper is listed within days of it.
    year, month = paper.date.split("-")[:2]
    submitted, listed = 12 * int(f"20{paper.arxiv[:2]}") + int(paper.arxiv[2:4]), 12 * int(year) + int(month)
    assert abs(listed - submitted) <= 1


def test_slugs_are_found_however_they_are_written() -> None:
    assert catalog.find("Multi-Similarity").paper.slug == "multi_similarity"


def test_unknown_slugs_name_the_nearest() -> None:
    with pytest.raises(catalog.UnknownPaper, match="unknown paper `multi_similarty`: did you mean `multi_similarity`"):
        catalog.find("multi_similarty")
    with pytest.raises(catalog.UnknownPaper, match="`scorecraft list` names them all"):
        catalog.find("xyzzy")


def test_search() -> None:
    assert catalog.search("hard negatives")[0].paper.slug == "star_adore"
    assert catalog.search("threshold margin")[0].paper.slug == "tcm"
    assert {entry.paper.room for entry in catalog.search("similarity")} >= {"similarity"}
    assert catalog.search("") == []
    assert catalog.search("no such words") == []


def test_a_finished_card_supersedes_the_planned_one() -> None:
    done = replace(PLANNED[0], api=("scorecraft.MultiSimilarityLoss",))
    entries = {entry.paper.slug: entry for entry in catalog.collect([done, done], PLANNED)}
    assert entries[done.slug] == catalog.Entry(done, done=True)
    assert not entries[PLANNED[1].slug].done


def test_two_papers_cannot_share_a_slug() -> None:
    other = replace(PLANNED[0], title="Another")
    with pytest.raises(ValueError, match="two papers have the slug `multi_similarity`"):
        catalog.collect([PLANNED[0], other], [])


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(records, "results_folder", lambda: tmp_path)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_verdicts_are_read_from_results(results: Path) -> None:
    entry = catalog.find("tcm")
    assert entry.verdict is None
    write(results / "studies" / "tcm" / "desk.json", json.dumps({"verdict": "inconclusive"}))
    assert entry.verdict == "inconclusive"
    assert entry.row()["verdict"] == "inconclusive"


@pytest.mark.parametrize("text", ["{", "[]", '{"verdict": "splendid"}'])
def test_damaged_records_are_named(results: Path, text: str) -> None:
    path = results / "studies" / "tcm" / "desk.json"
    write(path, text)
    with pytest.raises(catalog.BadRecord, match=re.escape(f"{path}: expected")):
        catalog.study_record("tcm")


def test_damaged_benchmarks_are_named(results: Path) -> None:
    path = results / "bench" / "cpu.json"
    assert catalog.bench_record() is None
    write(path, "{}")
    with pytest.raises(catalog.BadRecord, match="expected a list of `rows`"):
        catalog.bench_record()


def test_every_card_makes_bibtex() -> None:
    for entry in catalog.entries():
        assert entry.paper.bibtex.count("{") == entry.paper.bibtex.count("}")


def test_paper_type_is_exported() -> None:
    assert all(isinstance(entry.paper, Paper) for entry in catalog.entries())
