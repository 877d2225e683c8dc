"""The README keeps its word: its tables are what was recorded, its links lead somewhere, its code runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scorecraft.catalog import readme

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
HUB_MODEL = "all-MiniLM-L6-v2"


def test_tables_are_what_was_recorded() -> None:
    assert readme.refreshed(README) == README, "run `python -m scorecraft.catalog.readme`"


def test_stale_tables_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = "<!-- generated:{} -->\n{}<!-- /generated -->\n"
    stale = (
        "before\n"
        + "".join(block.format(name, "typed by hand\n") for name in ("verdicts", "comparisons", "benchmarks"))
        + "after\n"
    )
    path = tmp_path / "README.md"
    path.write_text(stale)
    monkeypatch.setattr(readme, "checkout", lambda: tmp_path)
    assert readme.main(["--check"]) == 1
    assert path.read_text() == stale
    assert readme.main([]) == 0
    fresh = path.read_text()
    assert "typed by hand" not in fresh
    assert fresh.startswith("before\n<!-- generated:verdicts -->\n| paper |")
    assert fresh.endswith("<!-- /generated -->\nafter\n")
    assert readme.main(["--check"]) == 0


def test_missing_markers_are_named() -> None:
    with pytest.raises(
        readme.BadReadme, match="expected one block for each of verdicts, comparisons, benchmarks, got none"
    ):
        readme.refreshed("# A README without tables\n")


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("https://")]
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


@pytest.fixture
def offline_model(tmp_path: Path) -> str:
    """A tiny model on disk in place of the one the README takes from the hub."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", "cat", "kitten", "dog"])}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = sentence_transformers.SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)])
    model.save_pretrained(str(tmp_path / "model"))
    return str(tmp_path / "model")


@pytest.mark.parametrize("block", BLOCKS, ids=["torch", "pytorch-metric-learning", "sentence-transformers"])
def test_code_runs(block: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for host in ("pytorch_metric_learning", "torchmetrics"):
        if host in block:
            pytest.importorskip(host)
    if "sentence_transformers" in block:
        assert HUB_MODEL in block
        block = block.replace(HUB_MODEL, request.getfixturevalue("offline_model"))
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), names)
    if "trainer" in names:
        assert names["trainer"].state.global_step > 0  # type: ignore[attr-defined]


def test_there_is_code_for_the_three_ways_of_use() -> None:
    assert len(BLOCKS) == 3
    assert all(len([line for line in block.splitlines() if line.strip()]) <= 12 for block in BLOCKS)
