"""What is laid out for a new paper is what the house asks for, and it fits in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from scorecraft.catalog import entries
from scorecraft.catalog.entries import Entry
from scorecraft.catalog.new_paper import AlreadyThere, lay_out, skeleton

PLANNED = [entry for entry in entries() if not entry.done]


def test_files_are_laid_out_once(tmp_path: Path) -> None:
    entry = PLANNED[0]
    written = lay_out(entry, tmp_path)
    slug, room = entry.paper.slug, entry.paper.room
    assert {str(path.relative_to(tmp_path)) for path in written} == {
        f"src/scorecraft/{room}/{slug}/__init__.py",
        f"src/scorecraft/{room}/{slug}/loss.py",
        f"src/scorecraft/studies/{slug}.py",
        f"tests/{room}/{slug}/test_loss.py",
        f"docs/papers/{slug}.md",
    }
    for path in written:
        if path.suffix == ".py":
            ast.parse(path.read_text())
    with pytest.raises(AlreadyThere, match="is there already"):
        lay_out(entry, tmp_path)


def test_a_finished_paper_is_not_laid_out_again(tmp_path: Path) -> None:
    with pytest.raises(AlreadyThere, match="is finished"):
        lay_out(next(entry for entry in entries() if entry.done), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("entry", PLANNED, ids=lambda entry: entry.paper.slug)
def test_the_card_is_the_planned_one(entry: Entry) -> None:
    (text,) = [text for path, text in skeleton(entry.paper).items() if path.endswith(f"{entry.paper.slug}/__init__.py")]
    (card,) = [node.value for node in ast.parse(text).body if isinstance(node, ast.Assign) and _named(node, "PAPER")]
    assert isinstance(card, ast.Call)
    fields = {one.arg: ast.literal_eval(one.value) for one in card.keywords}
    for name in ("slug", "title", "arxiv", "date", "room", "kind", "venue"):
        assert fields.get(name, "") == getattr(entry.paper, name)


def _named(node: ast.Assign, name: str) -> bool:
    return isinstance(node.targets[0], ast.Name) and node.targets[0].id == name


def test_a_skeleton_imports_and_says_what_is_missing(tmp_path: Path) -> None:
    entry = next(entry for entry in PLANNED if entry.paper.room == "density")
    files = skeleton(entry.paper)
    (loss,) = [text for path, text in files.items() if path.endswith("loss.py") and path.startswith("src")]
    (tmp_path / "loss.py").write_text(loss)
    kind = "".join(part.capitalize() for part in entry.paper.slug.split("_")) + "Loss"
    code = f"import torch, loss\nloss.{kind}()(torch.randn(4, 2), torch.arange(4) % 2)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "NotImplementedError: write the loss of each row" in run.stderr
