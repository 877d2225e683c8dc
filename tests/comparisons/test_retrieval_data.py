"""Collections from folders, files and the hub, and what is refused about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from scorecraft.comparisons.labelled_data import BadData
from scorecraft.comparisons.retrieval_data import load_retrieval

DOCUMENTS = {"d1": "a wing in a flow", "d2": "heat", "d3": "shock waves"}
QUERIES = {"q1": "wings", "q2": "what of heat"}
QRELS = [("q1", "d1", 2), ("q1", "d2", 0), ("q2", "d2", 1)]


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def parquet(folder: Path) -> Path:
    write_rows(folder / "corpus.parquet", [{"doc_id": key, "text": text} for key, text in DOCUMENTS.items()])
    write_rows(folder / "queries.parquet", [{"query_id": key, "text": text} for key, text in QUERIES.items()])
    write_rows(folder / "qrels.parquet", [{"query_id": q, "doc_id": d, "relevance": r} for q, d, r in QRELS])
    return folder


def beir(folder: Path) -> Path:
    rows = [{"_id": key, "title": text.split()[0], "text": text.split(" ", 1)[-1]} for key, text in DOCUMENTS.items()]
    rows[1]["title"] = ""
    write_rows(folder / "corpus.jsonl", rows)
    write_rows(folder / "queries.jsonl", [{"_id": key, "text": text} for key, text in QUERIES.items()])
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in QRELS)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines[:2]) + "\n")
    return folder


def trec(folder: Path) -> Path:
    (folder / "corpus.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in DOCUMENTS.items()))
    (folder / "queries.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in QUERIES.items()))
    (folder / "qrels.txt").write_text("".join(f"{q} 0 {d} {r}\n" for q, d, r in QRELS))
    return folder


@pytest.mark.parametrize("form", [parquet, beir, trec])
def test_folders(tmp_path: Path, form: Callable[[Path], Path]) -> None:
    data = load_retrieval(str(form(tmp_path)))
    assert data.document_ids == ("d1", "d2", "d3")
    assert data.documents[0] == "a wing in a flow"
    assert data.documents[1] == "heat"
    assert data.queries == ("wings", "what of heat")
    assert data.qrels == {"q1": {"d1": 2.0}, "q2": {"d2": 1.0}}


def test_splits_of_beir(tmp_path: Path) -> None:
    beir(tmp_path)
    with pytest.raises(BadData, match=r"no relevant document for query `q2`; --drop-incomplete leaves them out"):
        load_retrieval(str(tmp_path), split="train")
    assert load_retrieval(str(tmp_path), split="train", drop_incomplete=True).query_ids == ("q1",)
    with pytest.raises(BadData, match=r"expected one file of judgements `dev`, got test, train"):
        load_retrieval(str(tmp_path), split="dev")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_pairs(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, object]] = [
        {"query": "wings", "positive": "a wing", "negative_1": "heat", "negative_2": "shock"},
        {"query": "wings", "positive": "two wings", "negative_1": "heat", "negative_2": "ice"},
        {"query": "cold", "positive": "ice", "negative_1": "heat", "negative_2": "a wing"},
    ]
    write_rows(tmp_path / f"pairs{suffix}", rows)
    data = load_retrieval(str(tmp_path / f"pairs{suffix}"))
    text = dict(zip(data.document_ids, data.documents, strict=True))
    assert data.queries == ("wings", "cold")
    assert sorted(text[key] for key in data.qrels[data.query_ids[0]]) == ["a wing", "two wings"]
    assert [text[key] for key in data.negatives[data.query_ids[0]]] == ["heat", "shock", "ice"]


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    parts = {
        "corpus": {"corpus": [{"_id": key, "title": "", "text": text} for key, text in DOCUMENTS.items()]},
        "queries": {"queries": [{"_id": key, "text": text} for key, text in QUERIES.items()]},
    }
    judged = {"test": [{"query-id": q, "corpus-id": d, "score": r} for q, d, r in QRELS]}

    def load(name: str, part: str | None = None) -> object:
        return judged if name == "BeIR/wings-qrels" else parts[part or ""]

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["corpus", "queries"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_retrieval("BeIR/wings").qrels == {"q1": {"d1": 2.0}, "q2": {"d2": 1.0}}


def replaced(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (
            lambda f: replaced(f, "corpus.tsv", "\theat", "\t "),
            "empty document `d2`; --drop-incomplete leaves them out",
        ),
        (lambda f: replaced(f, "qrels.txt", "d2 1", "d9 1"), "judgements of an unknown document `d9`"),
        (lambda f: replaced(f, "qrels.txt", "q2 0", "q9 0"), "judgements of an unknown query `q9`"),
        (lambda f: replaced(f, "qrels.txt", "d2 1", "d2 0"), "no relevant document for query `q2`"),
        (lambda f: replaced(f, "qrels.txt", "d2 1", "d2 one"), "line 3 is neither"),
        (lambda f: replaced(f, "qrels.txt", "d2 1", "d2 nan"), "the relevance of document `d2` to query `q2` is nan"),
        (lambda f: replaced(f, "corpus.tsv", "d3", "d1"), "the document id `d1` stands twice"),
        (lambda f: replaced(f, "corpus.tsv", "\tshock", " shock"), "line 3 has 1 fields"),
        (lambda f: (f / "queries.tsv").unlink(), "expected queries.parquet, .jsonl or .tsv inside"),
        (lambda f: (f / "qrels.txt").unlink(), "expected one file of judgements `qrels`, got none"),
    ],
)
def test_what_is_refused_is_one_line(tmp_path: Path, spoil: Callable[[Path], object], line: str) -> None:
    spoil(trec(tmp_path))
    with pytest.raises(BadData) as caught:
        load_retrieval(str(tmp_path))
    assert str(caught.value).startswith(f"data `{tmp_path}")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_incomplete_parts_are_left_out_when_asked(tmp_path: Path) -> None:
    trec(tmp_path)
    replaced(tmp_path, "corpus.tsv", "\theat", "\t ")
    data = load_retrieval(str(tmp_path), drop_incomplete=True)
    assert (data.document_ids, data.query_ids) == (("d1", "d3"), ("q1",))


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="there is no such file or folder"):
        load_retrieval(str(tmp_path / "nothing"))
    (tmp_path / "pairs.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(BadData, match="expected a column `positive` or `pos`"):
        load_retrieval(str(tmp_path / "pairs.jsonl"))
    (tmp_path / "pairs.jsonl").write_text("[1]\n")
    with pytest.raises(BadData, match="line 1 is no JSON object"):
        load_retrieval(str(tmp_path / "pairs.jsonl"))
