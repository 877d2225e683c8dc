"""sentence-transformers: an evaluator that asks whether one threshold serves all queries.

It stands beside the host's `InformationRetrievalEvaluator`, is made of the same three dictionaries, and measures what
that one cannot see: ranks within a query do not change when all scores of the query shift, a threshold does.

    from scorecraft.integrations.sentence_transformers.evaluation import RocEvaluator

    evaluator = RocEvaluator(queries, corpus, relevant_docs, false_positive_rates=(0.001,), name="dev")
    evaluator(model)        # {"dev_cosine_pooled_auc": ..., "dev_cosine_threshold@fpr=0.001": ..., ...}
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scorecraft.core.checks import positive_integer, probability, refuse
from scorecraft.integrations.optional import require
from scorecraft.relevance.mw.roc import twice_wins

require("sentence_transformers", "text")

from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator  # noqa: E402

logger = logging.getLogger(__name__)


class RocEvaluator(SentenceEvaluator):
    """Pooled ROC of a retriever over all pairs of a query and a passage, by the model's own similarity.

    Calling it returns, under `<name>_<similarity>_`:

    - `pooled_auc`, `pooled_aoc`: area under and over the ROC curve of all pairs together, ties counting one half;
      the primary metric is `pooled_auc`;
    - `per_query_auc`: the mean over queries of the AUC of each on its own;
    - `threshold@fpr=<f>`, `tpr@fpr=<f>`: for each rate `f` the smallest score that at most this share of all irrelevant
      pairs reaches, and the share of the relevant pairs that reach it.

    All are exact for the scores as they are rounded, which may set equal texts a last bit apart. The scores of relevant
    pairs are computed first; then the corpus passes in chunks, of which only counts stay, and the highest irrelevant
    scores, as many as the largest rate asks for.

    Args:
        queries: texts by query id; those without relevant passages are left out.
        corpus: texts by passage id.
        relevant_docs: the relevant passage ids of each query id.
        false_positive_rates: the rates `f`, each in [0, 1].
        corpus_chunk_size: passages encoded and scored at once.
        show_progress_bar: as of the host.
        batch_size: texts encoded at once.
        name: prefix of the metrics.
        write_csv: append the metrics to `roc_evaluation_<name>_results.csv` in the output path of a call.
        truncate_dim: as of the host.

    Raises:
        ValueError: no query with a relevant passage, a relevant passage that is not in the corpus, or a bad option.

    Source: arXiv 2510.00137 (the pooled ROC curve as the measure of a retriever).
    """

    def __init__(
        self,
        queries: Mapping[str, Any],
        corpus: Mapping[str, Any],
        relevant_docs: Mapping[str, AbstractSet[str]],
        *,
        false_positive_rates: Sequence[float] = (0.01,),
        corpus_chunk_size: int = 50_000,
        show_progress_bar: bool = False,
        batch_size: int = 32,
        name: str = "",
        write_csv: bool = True,
        truncate_dim: int | None = None,
    ) -> None:
        super().__init__()
        ids = [query for query in queries if relevant_docs.get(query)]
        if not ids:
            refuse(
                "relevant_docs", "a relevant passage for at least one of the queries", f"{len(relevant_docs)} entries"
            )
        self.queries = [queries[query] for query in ids]
        self.corpus = list(corpus.values())
        place = {passage: column for column, passage in enumerate(corpus)}
        missing = next(((q, p) for q in ids for p in relevant_docs[q] if p not in place), None)
        if missing is not None:
            refuse("relevant_docs", "passages of the corpus", f"{missing[1]!r}, relevant to query {missing[0]!r}")
        pairs = sorted((row, place[p]) for row, query in enumerate(ids) for p in relevant_docs[query])
        self.rows, self.columns = torch.tensor(pairs).T
        self.false_positive_rates = [probability("false_positive_rates", rate) for rate in false_positive_rates]
        self.corpus_chunk_size = positive_integer("corpus_chunk_size", corpus_chunk_size)
        self.show_progress_bar = show_progress_bar
        self.batch_size = positive_integer("batch_size", batch_size)
        self.name = name
        self.write_csv = write_csv
        self.truncate_dim = truncate_dim

    def __call__(  # type: ignore[override]
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Evaluate a model; `epoch` and `steps` are written beside the metrics."""
        similarity = cast(str, model.similarity_fn_name)
        with torch.no_grad():
            measured = self._measure(model)
        found = {f"{similarity}_{key}": value for key, value in measured.items()}
        self.primary_metric = f"{similarity}_pooled_auc"
        metrics = self.prefix_name_to_metrics(found, self.name)
        for key, value in metrics.items():
            logger.info("%s: %.6f", key, value)
        if output_path is not None and self.write_csv:
            self._append(Path(output_path), {"epoch": epoch, "steps": steps, **found})
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the evaluator's parameters."""
        shown: dict[str, Any] = {"false_positive_rates": self.false_positive_rates}
        return shown if self.truncate_dim is None else shown | {"truncate_dim": self.truncate_dim}

    def _measure(self, model: SentenceTransformer) -> dict[str, float]:
        queries = self._encode(model, self.queries, of_queries=True)
        rows, columns = self.rows.to(queries.device), self.columns.to(queries.device)
        relevant, place = columns.unique(return_inverse=True)
        passages = self._encode(model, [self.corpus[column] for column in relevant.tolist()], of_queries=False)
        positives = torch.cat(
            [
                model.similarity_pairwise(queries[part], passages[found])
                for part, found in zip(rows.split(_PAIRS), place.split(_PAIRS), strict=True)
            ]
        )
        counts = torch.bincount(rows, minlength=len(queries))
        own = _rows_of(positives, rows, counts)

        pairs = len(self.queries) * len(self.corpus) - len(rows)
        allowed = [_count_within(rate, pairs) for rate in self.false_positive_rates]
        kept = min(max(allowed, default=0) + 1, pairs)
        won = torch.zeros((), dtype=torch.int64, device=queries.device)
        won_by_query = torch.zeros_like(counts)
        highest = positives.new_empty(0)
        lowest = positives.min()
        for part, scores, negatives in self._blocks(model, queries, rows, columns):
            values = scores[negatives]
            won += twice_wins(positives, values)
            won_by_query[part] += _twice_wins_by_query(own[part], counts[part], scores, negatives)
            highest = torch.cat([highest, values])
            highest = highest.topk(min(kept, len(highest))).values
            lowest = torch.minimum(lowest, values.min()) if len(values) else lowest

        total = 2 * len(rows) * pairs
        by_query = won_by_query / (2.0 * counts * (len(self.corpus) - counts))
        found = {
            "pooled_auc": int(won) / total if total else float("nan"),
            "pooled_aoc": (total - int(won)) / total if total else float("nan"),
            "per_query_auc": float(by_query.nanmean()),
        }
        for rate, number in zip(self.false_positive_rates, allowed, strict=True):
            threshold = _threshold(positives, highest, number, lowest)
            found[f"threshold@fpr={rate:g}"] = float(threshold)
            found[f"tpr@fpr={rate:g}"] = float((positives >= threshold).double().mean())
        return found

    def _blocks(
        self, model: SentenceTransformer, queries: Tensor, rows: Tensor, columns: Tensor
    ) -> Iterator[tuple[slice, Float[Tensor, "q c"], Bool[Tensor, "q c"]]]:
        """The scores of some queries against a chunk of the corpus, and which of them belong to irrelevant passages."""
        for start in range(0, len(self.corpus), self.corpus_chunk_size):
            chunk = self.corpus[start : start + self.corpus_chunk_size]
            passages = self._encode(model, chunk, of_queries=False)
            inside = (columns >= start) & (columns < start + len(chunk))
            step = max(1, _SCORES // len(chunk))
            for row in range(0, len(queries), step):
                scores = model.similarity(queries[row : row + step], passages)
                negatives = torch.ones_like(scores, dtype=torch.bool)
                here = inside & (rows >= row) & (rows < row + step)
                negatives[rows[here] - row, columns[here] - start] = False
                yield slice(row, row + step), scores, negatives

    def _encode(self, model: SentenceTransformer, texts: list[Any], *, of_queries: bool) -> Float[Tensor, "n d"]:
        encode = model.encode_query if of_queries else model.encode_document
        found = encode(
            texts,
            batch_size=self.batch_size,
            show_progress_bar=self.show_progress_bar,
            convert_to_tensor=True,
            truncate_dim=self.truncate_dim,
        )
        return cast(Tensor, found)

    def _append(self, folder: Path, row: dict[str, float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"roc_evaluation{'_' + self.name if self.name else ''}_results.csv"
        fresh = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            if fresh:
                writer.writerow(row)
            writer.writerow(row.values())


_PAIRS = 1 << 16
"""Relevant pairs scored at once."""
_SCORES = 1 << 22
"""Scores of all pairs that are looked at together."""


def _count_within(rate: float, pairs: int) -> int:
    """The largest number with `number / pairs <= rate`, as floating-point numbers divide."""
    number = round(rate * pairs)
    return number if not pairs or number / pairs <= rate else number - 1


def _rows_of(positives: Tensor, rows: Tensor, counts: Tensor) -> Float[Tensor, "q longest"]:
    """The positives of each query in increasing order, padded with +inf."""
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    filled = positives.new_full((len(counts), int(counts.max())), torch.inf)
    filled[rows, place] = positives
    return filled.sort(dim=1).values


def _twice_wins_by_query(own: Tensor, counts: Tensor, scores: Tensor, negatives: Tensor) -> Tensor:
    """As `twice_wins` for each query, its positives against its negatives in a chunk."""
    scores = scores.contiguous()
    not_above = torch.searchsorted(own, scores) + torch.searchsorted(own, scores, right=True)
    return torch.where(negatives, 2 * counts[:, None] - not_above, 0).sum(dim=1)


def _threshold(positives: Tensor, highest: Tensor, allowed: int, lowest: Tensor) -> Tensor:
    """The smallest score that at most `allowed` negatives reach; `highest` holds one more of them, decreasing."""
    if allowed >= len(highest):
        return lowest
    scores = torch.cat([positives, highest])
    return torch.where(scores > highest[allowed], scores, torch.inf).min()
