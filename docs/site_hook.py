"""Puts the generated pages into the site; what they say is written in `scorecraft.catalog.site`."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from scorecraft.catalog import entries, site

ROOT = Path(__file__).parents[1]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Order the pages, one for each finished paper."""
    papers = [{entry.paper.slug: f"papers/{entry.paper.slug}.md"} for entry in entries() if entry.done]
    config.nav = [
        {"Start": "index.md"},
        {"How an objective is evaluated": "engine.md"},
        {"Weight curves": "objectives.md"},
        {"Papers": [{"The catalogue": "papers/index.md"}, *papers]},
        {"Which objective should I use?": "choosing.md"},
        {"What was measured": "results.md"},
        {"Coming from pytorch-metric-learning": "migration.md"},
        {"Contributing": "contributing.md"},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that are no files of `docs/`."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
    for path, content in [*site.generated_pages(), ("contributing.md", contributing)]:
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Complete the page of a paper."""
    place = Path(page.file.src_uri)
    if place.parent.name == "papers" and place.stem != "index":
        return site.paper_page(place.stem, markdown)
    return markdown
