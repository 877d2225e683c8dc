"""The generated pages of the site say what cards and records say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.comparisons.test_comparison import found as comparison_result

from scorecraft.catalog import Entry, entries, records, site, study_record
from scorecraft.catalog.objectives import pictured_types
from scorecraft.comparisons.report import write_report
from scorecraft.studies.result import StudyResult

DOCS = Path(__file__).parents[2] / "docs"
DONE = [entry for entry in entries() if entry.done]


@pytest.fixture(scope="module")
def pages() -> dict[str, str | bytes]:
    return dict(site.generated_pages())


def test_every_finished_paper_has_a_page() -> None:
    assert {page.stem for page in (DOCS / "papers").glob("*.md")} == {entry.paper.slug for entry in DONE}


@pytest.mark.parametrize("entry", DONE, ids=lambda entry: entry.paper.slug)
def test_a_paper_page_completes_the_text(entry: Entry, pages: dict[str, str | bytes]) -> None:
    text = (DOCS / "papers" / f"{entry.paper.slug}.md").read_text()
    page = site.paper_page(entry.paper.slug, text)
    assert page.startswith(text.rstrip())
    assert entry.paper.bibtex in page
    assert all(f"::: {name}" in page for name in entry.paper.api)
    record = study_record(entry.paper.slug)
    if record is None:
        assert "Not recorded yet." in page
        return
    result = StudyResult.from_json(record)
    assert result.claim.sentence in page
    assert f"**{result.verdict}**" in page
    for world in result.worlds:
        assert f"papers/{entry.paper.slug}-{world.name}.png" in pages


def test_the_catalogue_lists_all_papers_and_links_the_finished_ones(pages: dict[str, str | bytes]) -> None:
    page = pages["papers/index.md"]
    assert f"{len(entries())} papers, {len(DONE)} of them finished." in page
    for entry in entries():
        assert entry.paper.title in page
        assert (f"]({entry.paper.slug}.md)" in page) == entry.done


def test_every_objective_has_its_picture(pages: dict[str, str | bytes]) -> None:
    for name in pictured_types():
        assert f"](curves/{name}.svg)" in pages["objectives.md"]
        assert pages[f"curves/{name}.svg"].startswith(b"<?xml")


def test_recorded_comparisons_become_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = comparison_result()
    files = write_report(result, tmp_path / "run")
    place = tmp_path / "comparisons" / "similarity"
    place.mkdir(parents=True)
    shutil.copy(files.json, place / "letters.json")
    shutil.copy(files.plot, place / "letters.png")
    monkeypatch.setattr(records, "results_folder", lambda: tmp_path)
    page = site.choosing_page()
    assert f"> {result.answer}" in page
    assert "| **First** | 0.497" in page
    assert "| **Second** | 0.4" in page  # not told from the best
    assert "| Third | 0.198" in page
    assert "](choosing/similarity-letters.png)" in page
    assert dict(site.generated_pages())["choosing/similarity-letters.png"] == files.plot.read_bytes()
    (place / "letters.json").write_text("{}")
    with pytest.raises(records.BadRecord, match=r"expected a comparison with its `ranking`"):
        site.choosing_page()


def test_results_link_to_pages_of_the_site(pages: dict[str, str | bytes]) -> None:
    assert "](papers/tcm.md)" in pages["results.md"]
    assert "results/studies" not in pages["results.md"]
    assert "docs/papers" not in pages["results.md"]
