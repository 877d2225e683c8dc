"""Collections for retrieval: a corpus, queries, and which documents are relevant to which query.

They are read from a folder (parquet, BEIR's jsonl and tsv, TREC qrels), from one file of (query, positive[, negatives])
rows, or from the hub.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from scorecraft.comparisons.labelled_data import BadData
from scorecraft.integrations.optional import require

Row: TypeAlias = Mapping[str, Any]

_ID_NAMES = {
    "document": ("doc_id", "_id", "id", "docid", "corpus-id", "pid"),
    "query": ("query_id", "_id", "id", "qid", "query-id"),
}
_TEXT_NAMES = ("text", "contents", "content", "body", "query", "title")
_QREL_QUERY = ("query_id", "query-id", "qid", "query")
_QREL_DOCUMENT = ("doc_id", "corpus-id", "docid", "document", "pid")
_QREL_RELEVANCE = ("relevance", "score", "rel", "label")
_PAIR_QUERY = ("query", "anchor", "question", "sentence1")
_PAIR_POSITIVE = ("positive", "pos", "answer", "passage", "sentence2")


@dataclass(frozen=True)
class RetrievalData:
    """A collection with its judgements; what is not judged counts as not relevant."""

    document_ids: tuple[str, ...]
    documents: tuple[str, ...]
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    qrels: Mapping[str, Mapping[str, float]]
    """Relevance > 0 of documents by query and document id."""
    negatives: Mapping[str, tuple[str, ...]]
    """Ids of known negatives by query id, where the data name them."""

    def digest(self) -> str:
        """SHA-256 of all of it: two runs must not mix trials on different data."""
        found = hashlib.sha256()
        for part in (self.document_ids, self.documents, self.query_ids, self.queries):
            for text in part:
                found.update(text.encode() + b"\0")
        found.update(json.dumps([self.qrels, self.negatives], sort_keys=True, default=dict).encode())
        return found.hexdigest()


@lru_cache(maxsize=2)
def load_retrieval(source: str, *, split: str | None = None, drop_incomplete: bool = False) -> RetrievalData:
    """Read a collection.

    Args:
        source: a folder with `corpus`, `queries` and `qrels` (each `.parquet`, `.jsonl` or `.tsv`; qrels also as TREC's
            four columns in `.txt` or `.qrels`, or one file per split in a folder `qrels/`); a `.jsonl` or `.parquet`
            file of rows (query, positive[, negatives]); or the name of a hub data set in either form.
        split: of the judgements, `test` or the only one when left out.
        drop_incomplete: leave out empty documents, queries without a relevant document and judgements of unknown ids,
            which are refused otherwise.

    Raises:
        BadData: in one line.
        ImportError: an optional package is needed; the line says how to install it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        parts = _folder(path, split)
    elif path.is_file():
        parts = _pairs(source, rows_of_file(path))
    elif source.startswith((".", "/", "~")) or path.suffix in (".jsonl", ".parquet"):
        _bad(source, "there is no such file or folder")
    else:
        parts = _hub(source, split)
    return _checked(source, *parts, drop_incomplete=drop_incomplete)


_Parts: TypeAlias = "tuple[dict[str, str], dict[str, str], list[tuple[str, str, float]], dict[str, list[str]]]"


def _folder(path: Path, split: str | None) -> _Parts:
    documents = _texts(path, "document", rows_of_file(_part(path, ("corpus", "documents", "collection"))))
    queries = _texts(path, "query", rows_of_file(_part(path, ("queries", "topics"))))
    return documents, queries, list(_judgements(_qrels_file(path, split))), {}


def _part(path: Path, stems: Sequence[str]) -> Path:
    for stem in stems:
        for suffix in (".parquet", ".jsonl", ".tsv"):
            if (file := path / f"{stem}{suffix}").is_file():
                return file
    _bad(path, f"expected {stems[0]}.parquet, .jsonl or .tsv inside")


def _qrels_file(path: Path, split: str | None) -> Path:
    if split is None:
        for suffix in (".parquet", ".tsv", ".txt", ".qrels"):
            if (file := path / f"qrels{suffix}").is_file():
                return file
    found = sorted(file for file in (path / "qrels").glob("*") if file.suffix in (".parquet", ".tsv", ".txt", ".qrels"))
    wanted = [file for file in found if file.stem == (split or "test")] or (found if split is None else [])
    if len(wanted) != 1:
        there = ", ".join(file.stem for file in found) or "none"
        _bad(path, f"expected one file of judgements `{split or 'qrels'}`, got {there}; choose one with --split")
    return wanted[0]


def rows_of_file(path: Path) -> Iterator[Row]:
    """The rows of a file as mappings; a `.tsv` without a header has the columns `id` and `text`."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        require("pyarrow", "text")
        import pyarrow
        import pyarrow.parquet

        try:
            yield from pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            _bad(path, f"cannot read it as parquet ({error})")
    elif kind == ".jsonl":
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    _bad(path, f"line {number} is no JSON ({error})")
                if not isinstance(row, dict):
                    _bad(path, f"line {number} is no JSON object")
                yield row
    elif kind == ".tsv":
        with path.open(newline="", encoding="utf-8") as file:
            for number, cells in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
                if len(cells) != 2:
                    _bad(path, f"line {number} has {len(cells)} fields, expected an id and a text")
                yield {"id": cells[0], "text": cells[1]}
    else:
        _bad(path, f"expected .parquet, .jsonl or .tsv, got {kind or 'no suffix'}")


def _texts(source: object, what: str, rows: Iterable[Row]) -> dict[str, str]:
    """Texts by id; a title stands before the text."""
    found: dict[str, str] = {}
    names: tuple[str, str] | None = None
    for row in rows:
        if names is None:
            names = _named(source, row, _ID_NAMES[what]), _named(source, row, _TEXT_NAMES)
        identity = str(row[names[0]])
        if identity in found:
            _bad(source, f"the {what} id `{identity}` stands twice")
        title = row.get("title") if names[1] != "title" else None
        found[identity] = " ".join(part.strip() for part in (title, row[names[1]]) if isinstance(part, str) and part)
    if not found:
        _bad(source, f"expected at least one {what}")
    return found


def _judgements(path: Path) -> Iterator[tuple[str, str, float]]:
    if path.suffix == ".parquet":
        yield from _judgements_of_rows(path, rows_of_file(path))
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            cells = line.split()
            if not cells or (number == 1 and not _is_number(cells[-1])):  # BEIR's header
                continue
            if len(cells) not in (3, 4) or not _is_number(cells[-1]):
                _bad(path, f"line {number} is neither `query document relevance` nor TREC's four columns")
            yield cells[0], cells[-2], float(cells[-1])


def _judgements_of_rows(source: object, rows: Iterable[Row]) -> Iterator[tuple[str, str, float]]:
    names: tuple[str, str, str] | None = None
    for row in rows:
        if names is None:
            names = (_named(source, row, _QREL_QUERY), _named(source, row, _QREL_DOCUMENT),
                     _named(source, row, _QREL_RELEVANCE))  # fmt: skip
        query, document, relevance = (row[name] for name in names)
        if isinstance(relevance, bool) or not isinstance(relevance, (int, float)):
            _bad(source, f"expected numbers as `{names[2]}`, got {relevance!r}")
        yield str(query), str(document), float(relevance)


def _pairs(source: object, rows: Iterable[Any]) -> _Parts:
    """Rows (query, positive[, negatives]): equal texts are one query or one document."""
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    judgements: list[tuple[str, str, float]] = []
    negatives: dict[str, list[str]] = {}

    def identity(known: dict[str, str], text: object) -> str:
        if not isinstance(text, str):
            _bad(source, f"expected texts, got {text!r}")
        return known.setdefault(text, str(len(known)))

    for row in rows:
        query = identity(queries, row[_named(source, row, _PAIR_QUERY)])
        for text in _listed(row[_named(source, row, _PAIR_POSITIVE)]):
            judgements.append((query, identity(documents, text), 1.0))
        for name in sorted(row):
            if re.fullmatch(r"negatives?(_\d+)?|neg", name) and row[name] is not None:
                negatives.setdefault(query, []).extend(identity(documents, text) for text in _listed(row[name]))
    by_id = {identity: text for text, identity in documents.items()}
    return by_id, {identity: text for text, identity in queries.items()}, judgements, negatives


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _hub(source: str, split: str | None) -> _Parts:
    require("datasets", "text")
    import datasets

    try:
        names = datasets.get_dataset_config_names(source)
        if {"corpus", "queries"} <= set(names):
            corpus, queries = (_only_split(datasets.load_dataset(source, part)) for part in ("corpus", "queries"))
            apart = "qrels" not in names and "default" not in names
            judged = datasets.load_dataset(f"{source}-qrels") if apart else datasets.load_dataset(
                source, "qrels" if "qrels" in names else "default")  # fmt: skip
            rows: Any = judged[split or ("test" if "test" in judged else next(iter(judged)))]
            return (
                _texts(source, "document", corpus),
                _texts(source, "query", queries),
                list(_judgements_of_rows(source, rows)),
                {},
            )
        return _pairs(source, datasets.load_dataset(source, split=split or "train"))
    except BadData:
        raise
    except Exception as error:  # the hub's clients raise errors of many libraries
        _bad(source, f"neither a file or folder, nor could the hub give it ({type(error).__name__}: {error})")


def _only_split(splits: Any) -> Any:
    return next(iter(splits.values()))


def _checked(
    source: object,
    documents: dict[str, str],
    queries: dict[str, str],
    judgements: list[tuple[str, str, float]],
    negatives: dict[str, list[str]],
    *,
    drop_incomplete: bool,
) -> RetrievalData:
    def refuse_or_drop(found: Sequence[str], what: str) -> None:
        if found and not drop_incomplete:
            more = f" ({len(found)} such)" if len(found) > 1 else ""
            _bad(source, f"{what} `{found[0]}`{more}; --drop-incomplete leaves them out")

    empty = [identity for identity, text in documents.items() if not text.strip()]
    refuse_or_drop(empty, "empty document")
    blank = [identity for identity, text in queries.items() if not text.strip()]
    refuse_or_drop(blank, "empty query")
    for query, document, relevance in judgements:
        if not math.isfinite(relevance):
            _bad(source, f"the relevance of document `{document}` to query `{query}` is {relevance}")
    unknown = [query for query, _, _ in judgements if query not in queries]
    refuse_or_drop(unknown, "judgements of an unknown query")
    unknown = [document for _, document, _ in judgements if document not in documents]
    refuse_or_drop(unknown, "judgements of an unknown document")
    for identity in empty:
        del documents[identity]
    qrels: dict[str, dict[str, float]] = {}
    for query, document, relevance in judgements:
        if relevance > 0 and query in queries and document in documents:
            qrels.setdefault(query, {})[document] = relevance
    without = [identity for identity in queries if identity not in qrels]
    refuse_or_drop(without, "no relevant document for query")
    kept = [identity for identity in queries if identity in qrels and queries[identity].strip()]
    if not kept:
        _bad(source, "expected at least one query with a relevant document")
    return RetrievalData(
        document_ids=tuple(documents),
        documents=tuple(documents.values()),
        query_ids=tuple(kept),
        queries=tuple(queries[identity] for identity in kept),
        qrels={identity: qrels[identity] for identity in kept},
        negatives={identity: tuple(dict.fromkeys(negatives[identity])) for identity in kept if identity in negatives},
    )


def _named(source: object, row: Row, names: Sequence[str]) -> str:
    """The first of some usual names that a row has."""
    for name in names:
        if name in row:
            return name
    _bad(source, f"expected a column {' or '.join(f'`{name}`' for name in names)}, got {', '.join(map(str, row))}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _bad(source: object, problem: str) -> NoReturn:
    raise BadData(f"data `{source}`: {' '.join(problem.split())}")
