"""sentence-transformers: hard negatives mined by a judge, and the loss that learns from the judge's scores.

    from sentence_transformers import SentenceTransformerTrainer
    from scorecraft.integrations.sentence_transformers import SoftLabelLoss, mine_judged_negatives
    from scorecraft.integrations.transformers import CausalLMJudge

    dataset = mine_judged_negatives(pairs, model, CausalLMJudge(language_model, tokenizer), folder="mined")
    SentenceTransformerTrainer(model, arguments, train_dataset=dataset, loss=SoftLabelLoss(model)).train()

`mine_judged_negatives` stands beside the host's `mine_hard_negatives`, `SoftLabelLoss` beside its `DistillKLDivLoss`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core import citation
from scorecraft.core.checks import check_values, describe, positive_integer, refuse
from scorecraft.core.files import write_atomically
from scorecraft.integrations.optional import require
from scorecraft.relevance.embedding_store import (
    EmbeddingStore,
    Progress,
    check_corpus,
    fingerprint_of_corpus,
    fingerprint_of_module,
)
from scorecraft.relevance.unime_v2.mining import (
    MISSING,
    Fallback,
    Pool,
    candidate_pool,
    check_judge_scores,
    judged_negatives,
)
from scorecraft.relevance.unime_v2.soft_labels import SoftLabelAlignmentLoss
from scorecraft.relevance.vector_index import ExactIndex, Vectors

require("sentence_transformers", "text")
require("datasets", "text")

from datasets import Dataset  # noqa: E402
from sentence_transformers import CrossEncoder, SentenceTransformer  # noqa: E402
from sentence_transformers.base.losses.merged_forward import embed_columns  # noqa: E402
from sentence_transformers.util import pairwise_cos_sim  # noqa: E402

Features: TypeAlias = Mapping[str, Any]
"""One text column of a batch, as the host's preprocessing returns it."""
Judge: TypeAlias = Callable[[list[str], list[str]], Any]
"""`judge(queries, candidates)`: a score in [0, 1] for each pair, as a tensor, an array or a list."""
Similarity: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From two matrices of embeddings to the similarity of each pair of rows."""

_QUERIES_TOGETHER = 1024
"""Queries that are searched at once."""
_PAIRS_TOGETHER = 1 << 12
"""Pairs that a CrossEncoder gets at once; it makes its own batches of them."""


class SoftLabelLoss(nn.Module):
    """Candidates of a query distributed as its judge scores say: symmetric KL divergence of two softmaxes.

    Over a query's candidates, the positive and its negatives, with `u` the similarities of the model and `s` the scores
    of the dataset,

        L = mean_q 1/2 [ KL(P||Q) + KL(Q||P) ],   P = softmax(u / temperature),  Q = softmax(s / temperature)

    (`scorecraft.relevance.unime_v2.SoftLabelAlignmentLoss`). Columns are (query, positive, negative_1, ...,
    negative_k), labels the scores `[b, 1 + k]` in this order, as `mine_judged_negatives` returns them. A candidate that
    repeats an earlier one of its query, token by token, counts once.

    A query reads its own candidates and nothing else. So gradient accumulation over micro-batches has exactly the
    gradient of the large batch, which makes gradient caching pointless, and nothing is gathered across devices.

    Args:
        model: the `SentenceTransformer` being trained.
        similarity_fct: of the rows of two matrices; the cosine by default, the dot product for models that normalise.
        temperature: of both softmaxes, > 0 (sensible 0.02 to 0.1).

    Raises:
        ValueError: a temperature not above zero; at the first batch, when there is no negative, or labels are no scores
            of the candidates.

    Source: Gu et al. 2025 (arXiv 2510.13515), section 3.
    """

    def __init__(
        self, model: SentenceTransformer, similarity_fct: Similarity = pairwise_cos_sim, temperature: float = 0.02
    ) -> None:
        super().__init__()
        self.model = model
        self.similarity_fct = similarity_fct
        self.objective = SoftLabelAlignmentLoss(temperature=temperature)

    def forward(self, sentence_features: Iterable[Features], labels: Float[Tensor, "b c"] | None) -> Float[Tensor, ""]:
        """The loss of one batch as the trainer hands it over."""
        columns: list[Any] = list(sentence_features)
        distinct = _distinct(columns[1:])  # looked at first, since modules may change features as they pass
        return self._loss(embed_columns(self.model, columns), labels, distinct)

    def compute_loss_from_embeddings(
        self, embeddings: list[Float[Tensor, "b d"]], labels: Float[Tensor, "b c"] | None
    ) -> Float[Tensor, ""]:
        """The loss of embeddings that were computed already, as other losses of the host call it; every candidate
        counts."""
        return self._loss(embeddings, labels, None)

    def _loss(self, embeddings: list[Tensor], labels: Tensor | None, distinct: Tensor | None) -> Tensor:
        if len(embeddings) < 3:
            refuse("sentence_features", "columns (query, positive, negative_1, ...)", f"{len(embeddings)} columns")
        query, *candidates = embeddings
        shape = (len(query), len(candidates))
        if labels is None or labels.shape != shape or not labels.is_floating_point():
            got = "none" if labels is None else describe(labels)
            refuse("labels", f"a score for each of the {shape[1]} candidates, shape {shape}, in a column `scores`", got)
        check_values("labels", "finite scores >= 0", lambda: (labels.isfinite() & (labels >= 0)).all(), labels)
        similarities = torch.stack([self.similarity_fct(query, candidate) for candidate in candidates], dim=1)
        return self.objective(similarities, labels.detach(), distinct)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the loss's parameters."""
        name = getattr(self.similarity_fct, "__name__", type(self.similarity_fct).__name__)
        return {"similarity_fct": name, "temperature": self.objective.temperature}

    @property
    def citation(self) -> str:
        """BibTeX of the paper; the host writes it into the model card."""
        return citation(self.objective)


def mine_judged_negatives(
    dataset: Dataset,
    model: SentenceTransformer,
    judge: Judge | CrossEncoder,
    anchor_column_name: str | None = None,
    positive_column_name: str | None = None,
    corpus: Sequence[str] | None = None,
    *,
    num_negatives: int = 8,
    pool: int = 50,
    max_score: float | None = None,
    margin: float = 0.1,
    ratio: float | None = None,
    stride: int = 5,
    fallback: Fallback = "skip",
    query_prompt_name: str | None = None,
    query_prompt: str | None = None,
    corpus_prompt_name: str | None = None,
    corpus_prompt: str | None = None,
    batch_size: int = 32,
    folder: str | Path | None = None,
    part: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Dataset:
    """Hard negatives for a dataset of (query, positive) pairs, filtered and scored by a judge.

    For each query the `pool` most similar texts of the corpus are judged along with its positives; what scores above
    `s_positive - margin` is dropped as a false negative, and of the rest every `stride`-th is taken, then again from
    the second, until there are `num_negatives` (`scorecraft.relevance.unime_v2.judged_negatives`). A short list is
    repeated, which `SoftLabelLoss` notices. All positives of a query, in whichever rows, are none of its negatives, and
    each gets a row of its own.

    Judging is what takes long. With `folder`, embeddings and judge scores are on disk part by part: an interrupted run
    goes on where it was, and a run on other texts, with another model or judge is refused. A judge is told apart by its
    attribute `fingerprint`, a module by its weights, and another callable by its name alone.

    Args:
        dataset: with a column of queries and one of positives.
        model: embeds both sides (`encode_query`, `encode_document`); similarities are cosines.
        judge: `judge(queries, candidates)` with scores in [0, 1], such as a `CausalLMJudge`; or a `CrossEncoder`, whose
            logits then go through a sigmoid.
        anchor_column_name: of the queries; the first column when left out.
        positive_column_name: of the positives; the second column when left out.
        corpus: texts to search besides the positives.
        num_negatives: `k` >= 1 (sensible 4 to 10).
        pool: candidates judged per query, at least `num_negatives` (sensible 20 to 200).
        max_score: `delta`, only candidates of similarity strictly below (sensible 0.9 to 1).
        margin: `beta` in [0, 1], in judge scores (sensible 0 to 0.2).
        ratio: `rho` in [0, 1]: with it a candidate may also score up to `ratio * s_positive` (sensible 0.9).
        stride: how far apart the chosen stand in the order of retrieval.
        fallback: what becomes of a query none of whose candidates passes: `"skip"` leaves it out, `"positive"` and
            `"one"` give it random negatives of its pool with the score of its positive, or 1.
        query_prompt_name, query_prompt, corpus_prompt_name, corpus_prompt: as in the host.
        batch_size: texts that are embedded together.
        folder: of what is to survive an interruption; nothing is written without it.
        part: queries whose scores are written together.
        seed: of random negatives.
        progress: called as `progress(done, total, what)`.

    Returns:
        A dataset with columns `query`, `positive`, `negative_1` ... `negative_k` and `scores` (of length `1 + k`, the
        positive first), as `SoftLabelLoss` reads them.

    Raises:
        ValueError: one line: empty texts, a corpus or pool smaller than `num_negatives`, a judge that returns NaN, a
            value outside [0, 1] or another number of scores, or a folder of another run.

    Source: Gu et al. 2025 (arXiv 2510.13515), section 3.
    """
    positive_integer("num_negatives", num_negatives)
    if positive_integer("pool", pool) < num_negatives:
        refuse("pool", f"at least num_negatives = {num_negatives} candidates", pool)
    positive_integer("part", part)
    known = _known_pairs(dataset, anchor_column_name, positive_column_name, corpus)
    if (others := len(known.texts) - int((known.positives != MISSING).sum(dim=1).min())) < num_negatives:
        refuse("corpus", f"at least num_negatives = {num_negatives} texts besides the positives of a query", others)
    home = None if folder is None else Path(folder)
    queries, documents = _embeddings(
        model, known, home, batch_size, progress,
        query={"prompt_name": query_prompt_name, "prompt": query_prompt},
        document={"prompt_name": corpus_prompt_name, "prompt": corpus_prompt},
    )  # fmt: skip
    found = _search(queries, documents, known.positives, pool, max_score, progress)
    scores = _judge_all(judge, known, found, home, part, progress)
    of_pool, of_positives = scores[:, : found.ids.shape[1]], scores[:, found.ids.shape[1] :]

    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for column in range(known.positives.shape[1]):
        there = known.positives[:, column] != MISSING
        chosen = judged_negatives(
            of_pool[there], of_positives[there, column], found.where[there],
            margin=margin, ratio=ratio, stride=stride, count=num_negatives, fallback=fallback, generator=generator,
        )  # fmt: skip
        negatives = found.ids[there].gather(1, chosen.positions.clamp(min=0))
        for place, query in enumerate(there.nonzero().flatten().tolist()):
            if chosen.counted[place]:
                rows.append({
                    "of": (query, column),
                    "negatives": negatives[place].tolist(),
                    "scores": [float(of_positives[query, column]), *chosen.scores[place].tolist()],
                })  # fmt: skip
    rows.sort(key=lambda row: row["of"])
    columns: dict[str, list[Any]] = {
        "query": [known.queries[row["of"][0]] for row in rows],
        "positive": [known.texts[int(known.positives[row["of"]])] for row in rows],
    }
    for number in range(num_negatives):
        columns[f"negative_{number + 1}"] = [known.texts[row["negatives"][number]] for row in rows]
    return Dataset.from_dict(columns | {"scores": [row["scores"] for row in rows]})


class _Known(NamedTuple):
    """A dataset of pairs as texts, each once, and who belongs to whom."""

    queries: list[str]
    texts: list[str]
    """What is searched: the corpus and all positives."""
    positives: Tensor
    """Int `[q, p]`, places among the texts, padded with `MISSING`."""


def _known_pairs(dataset: Dataset, anchor: str | None, positive: str | None, corpus: Sequence[str] | None) -> _Known:
    names = dataset.column_names
    if len(dataset) == 0 or len(names) < 2:
        refuse("dataset", "rows with a column of queries and one of positives", f"{len(dataset)} rows of {names}")
    anchor, positive = anchor or names[0], positive or names[1]
    for argument, name in (("anchor_column_name", anchor), ("positive_column_name", positive)):
        if name not in names:
            refuse(argument, "one of " + ", ".join(map(repr, names)), repr(name))
    anchors, positives = list(dataset[anchor]), list(dataset[positive])
    others = list(corpus or ())
    for argument, texts in (("dataset", anchors), ("dataset", positives), ("corpus", others)):
        if not all(isinstance(text, str) for text in texts):
            refuse(argument, "columns of texts", describe(next(text for text in texts if not isinstance(text, str))))
        if texts:
            check_corpus(argument, texts)
    texts = list(dict.fromkeys([*others, *positives]))
    place = {text: number for number, text in enumerate(texts)}
    of: dict[str, dict[int, None]] = {}
    for query, text in zip(anchors, positives, strict=True):
        of.setdefault(query, {})[place[text]] = None
    widest = max(map(len, of.values()))
    padded = torch.tensor([[*own, *[MISSING] * (widest - len(own))] for own in of.values()])
    return _Known(list(of), texts, padded)


def _embeddings(
    model: SentenceTransformer,
    known: _Known,
    folder: Path | None,
    batch_size: int,
    progress: Progress | None,
    *,
    query: dict[str, str | None],
    document: dict[str, str | None],
) -> tuple[Vectors, Vectors]:
    """Unit vectors of queries and texts, out of `folder` where they are there already."""
    told: dict[str, Any] = {"batch_size": batch_size, "normalize_embeddings": True, "convert_to_tensor": True,
                            "show_progress_bar": False}  # fmt: skip
    found = []
    for what, texts, encode, prompt in (
        ("queries", known.queries, model.encode_query, query),
        ("corpus", known.texts, model.encode_document, document),
    ):

        def embed(some: Sequence[str], encode: Callable[..., Tensor] = encode, prompt: Any = prompt) -> Tensor:
            return encode(list(some), **prompt, **told)

        if folder is None:
            size = 64 * batch_size
            parts = []
            for start in range(0, len(texts), size):
                parts.append(embed(texts[start : start + size]))
                if progress is not None:
                    progress(min(start + size, len(texts)), len(texts), f"{what} embedded")
            found.append(torch.cat(parts))
        else:
            encoder = hashlib.sha256(f"{fingerprint_of_module(model)} {prompt}".encode()).hexdigest()
            store = EmbeddingStore.write(folder / what, embed, texts, encoder=encoder, progress=progress)
            found.append(store.vectors)
    return found[0], found[1]


def _search(
    queries: Vectors, documents: Vectors, positives: Tensor, size: int, cap: float | None, progress: Progress | None
) -> Pool:
    """The pool of every query."""
    index = ExactIndex(documents)
    parts: list[Pool] = []
    for start in range(0, len(queries), _QUERIES_TOGETHER):
        rows = slice(start, start + _QUERIES_TOGETHER)
        some = queries[rows]
        some = some if isinstance(some, Tensor) else torch.from_numpy(np.array(some))
        parts.append(_full_pool(index, some, positives[rows], size, cap))
        if progress is not None:
            progress(min(start + _QUERIES_TOGETHER, len(queries)), len(queries), "queries searched")
    return Pool(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _full_pool(index: ExactIndex, queries: Tensor, positives: Tensor, size: int, cap: float | None) -> Pool:
    """Pools as large as asked for, or as the corpus allows: twice as many are fetched while too similar ones fall out.

    All pools are `size` columns wide, or as wide as there are texts.
    """
    width = min(size, len(index))
    fetched = width + positives.shape[1]
    while True:
        scores, ids = index.search(queries, min(fetched, len(index)))
        pool = candidate_pool(ids.cpu(), scores.cpu(), positives, size=width, cap=cap)
        if fetched >= len(index) or bool(pool.where.all()):
            return pool
        fetched *= 2


def _judge_all(
    judge: Judge | CrossEncoder, known: _Known, pool: Pool, folder: Path | None, part: int, progress: Progress | None
) -> Float[Tensor, "q c"]:
    """Judge scores of every query's pool, then of its positives; 0 where nothing stands."""
    candidates = torch.cat([pool.ids, known.positives], dim=1)
    there = candidates != MISSING
    scores = torch.zeros(candidates.shape)
    ask = _as_callable(judge)
    parts = None if folder is None else _Parts(folder / "judging", _fingerprint(judge, known, candidates, part))
    for number, start in enumerate(range(0, len(candidates), part)):
        rows = slice(start, start + part)
        of_query, column = there[rows].nonzero(as_tuple=True)
        count = len(of_query)
        found = None if parts is None else parts.read(number, count)
        if found is None:
            queries = [known.queries[start + row] for row in of_query.tolist()]
            texts = [known.texts[place] for place in candidates[rows][of_query, column].tolist()]
            found = torch.as_tensor(ask(queries, texts)).detach().cpu().float()
            check_judge_scores(found, (count,))
            if parts is not None:
                parts.write(number, found)
        scores[rows][of_query, column] = found
        if progress is not None:
            progress(min(start + part, len(candidates)), len(candidates), "queries judged")
    return scores


def _as_callable(judge: Judge | CrossEncoder) -> Judge:
    if not isinstance(judge, CrossEncoder):
        return judge

    def ask(queries: list[str], candidates: list[str]) -> Tensor:
        pairs = list(zip(queries, candidates, strict=True))
        return torch.cat([
            judge.predict(pairs[start : start + _PAIRS_TOGETHER], activation_fn=nn.Sigmoid(), convert_to_tensor=True,
                          show_progress_bar=False)
            for start in range(0, len(pairs), _PAIRS_TOGETHER)
        ])  # fmt: skip

    return ask


def _fingerprint(judge: Judge | CrossEncoder, known: _Known, candidates: Tensor, part: int) -> dict[str, str]:
    """What the scores of a folder belong to."""
    identity = getattr(judge, "fingerprint", None)
    if identity is None and isinstance(judge, nn.Module):
        identity = fingerprint_of_module(judge)
    if identity is None:
        identity = f"{judge.__module__}.{getattr(judge, '__qualname__', type(judge).__qualname__)}"
    texts = fingerprint_of_corpus([*known.queries, *known.texts, candidates])
    return {"judge": str(identity), "pairs": texts, "part": str(part)}


class _Parts:
    """Judge scores on disk, one file for every few queries."""

    def __init__(self, folder: Path, fingerprint: dict[str, str]) -> None:
        self.folder = folder
        path = folder / "judging.json"
        if not path.exists():
            write_atomically(path, json.dumps(fingerprint, indent=1) + "\n")
            return
        recorded = json.loads(path.read_text(encoding="utf-8"))
        for name, ours in fingerprint.items():
            if recorded.get(name) != ours:
                refuse("folder", f"one for this run, or a new one: {folder} holds scores of another {name}",
                       f"{name} {ours[:12]} instead of {str(recorded.get(name))[:12]}")  # fmt: skip

    def read(self, number: int, count: int) -> Float[Tensor, " n"] | None:
        path = self._path(number)
        if not path.exists():
            return None
        scores: NDArray[np.float32] = np.load(path, allow_pickle=False)
        if scores.shape != (count,):
            refuse("folder", f"{count} scores in {path}: delete that file and run again", len(scores))
        return torch.from_numpy(scores)

    def write(self, number: int, scores: Float[Tensor, " n"]) -> None:
        content = io.BytesIO()
        np.save(content, scores.numpy(), allow_pickle=False)
        write_atomically(self._path(number), content.getvalue())

    def _path(self, number: int) -> Path:
        return self.folder / f"scores_{number:06d}.npy"


def _distinct(columns: Sequence[Features]) -> Bool[Tensor, "b c"] | None:
    """Which candidates are not an earlier one of their row again, by their tokens; None where tokens have no rows."""
    tokens: list[Tensor] = []
    for column in columns:
        ids, mask = column.get("input_ids"), column.get("attention_mask")
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            return None
        tokens.append(ids if mask is None else torch.where(mask > 0, ids, MISSING))
    if not tokens:
        return None
    longest = max(ids.shape[1] for ids in tokens)
    texts = torch.stack([F.pad(ids, (0, longest - ids.shape[1]), value=MISSING) for ids in tokens], dim=1)
    same = (texts[:, :, None] == texts[:, None, :]).all(dim=-1)
    earlier = torch.ones(len(tokens), len(tokens), dtype=torch.bool, device=same.device).tril(-1)
    return ~(same & earlier).any(dim=-1)
