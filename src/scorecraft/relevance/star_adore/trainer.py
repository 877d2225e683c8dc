"""ADORE: train the query encoder alone, against hard negatives retrieved at every step from a frozen index."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.core.checks import choice, describe, natural, non_negative, positive, positive_integer, refuse
from scorecraft.core.files import write_atomically
from scorecraft.core.lists import ListObjective
from scorecraft.relevance.embedding_store import Progress, fingerprint_of_module
from scorecraft.relevance.star_adore.adore import (
    AddMissing,
    AdoreLoss,
    RetrievedLists,
    hit_rate,
    reciprocal_rank,
    with_missing_positives,
)
from scorecraft.relevance.star_adore.lamb import decay_groups
from scorecraft.relevance.star_adore.relevant import RelevantDocuments
from scorecraft.relevance.vector_index import Found, VectorIndex, Vectors, check_vectors, rows_of_vectors

_Module = TypeVar("_Module", bound=nn.Module)

_SAMPLED_ROWS = 256
"""Rows of the document embeddings by which they are recognised."""


class AdoreStep(NamedTuple):
    """What one step was like, without gradient; ranks are those of the retrieved lists, before anything is appended."""

    loss: Float[Tensor, ""]
    reciprocal_rank: Float[Tensor, ""]
    """Mean over the queries of 1 over the place of the first relevant document, 0 beyond 10."""
    hit_rate: Float[Tensor, ""]
    """Share of the queries with at least one relevant document within the first 10."""


class AdoreEpoch(NamedTuple):
    """Means over the queries of an epoch."""

    loss: float
    reciprocal_rank: float
    hit_rate: float


class AdoreTrainer:
    """Trains a query encoder on the ranks its queries have among frozen documents.

    Each step embeds a batch of queries with dropout on, retrieves `depth` documents with the very same embeddings
    (detached), scores them again as `score_scale * <x_q, X_d>` from the exact rows of `documents`, and follows the
    gradient of the loss to the query encoder:

        trainer = AdoreTrainer(query_encoder, documents, ExactIndex(documents), relevant)
        trainer.train(queries, epochs=6)

    The documents are constants. A query encoder that shares weights with the document encoder must be a copy
    (`detached_copy`), for the document embeddings would no longer be those of its twin.

    With `parts` above 1 a batch is embedded in that many parts and the search for each runs in a thread beside the
    embedding of the next: the same embeddings, and the same gradient.

    Training is seeded. With a `folder`, the whole state (weights, optimiser, random numbers, place in the epoch) is
    saved every `save_every` steps and at the end of every epoch, and `train` goes on from there.

    Args:
        query_encoder: a module from a batch of queries to embeddings `[b, d]`. A batch is what `queries[rows]` gives
            for a tensor, and a list of queries for any other sequence.
        documents: `[n, d]`, a tensor or an array, memory-mapped or not.
        index: over the same documents; may be approximate or compressed.
        relevant: the relevant documents of all queries.
        loss: a list objective, of lists in retrieved order; MRR over the whole list when left out.
        depth: documents retrieved, at least 1 (sensible 50 to 500).
        add_missing: see `with_missing_positives`.
        score_scale: > 0; 1 as in the paper, more for embeddings of length 1.
        learning_rate: of AdamW, > 0.
        weight_decay: of AdamW, >= 0; biases and LayerNorms do not decay.
        warmup_steps: over which the learning rate rises from 0.
        schedule: how it goes on: `"linear"` down to 0 at the last step, or `"constant"`.
        max_norm: the gradient is clipped to this norm at every step, > 0.
        batch_size: queries of a step.
        parts: see above, at least 1.
        seed: of the order of the queries.
        folder: where the state is kept; None keeps none.
        save_every: steps between two states, at least 1.

    Raises:
        ValueError: one line: documents, index and `relevant` do not fit together, or a hyper-parameter out of range.

    Source: Zhan et al. 2021, arXiv 2104.08051, section 5.2; hyper-parameters of the official code.
    """

    def __init__(
        self,
        query_encoder: nn.Module,
        documents: Vectors,
        index: VectorIndex,
        relevant: RelevantDocuments,
        *,
        loss: ListObjective | None = None,
        depth: int = 200,
        add_missing: AddMissing = "if_none",
        score_scale: float = 1.0,
        learning_rate: float = 5e-6,
        weight_decay: float = 0.01,
        warmup_steps: int = 2000,
        schedule: Literal["linear", "constant"] = "linear",
        max_norm: float = 1.0,
        batch_size: int = 32,
        parts: int = 1,
        seed: int = 0,
        folder: str | Path | None = None,
        save_every: int = 1000,
    ) -> None:
        check_vectors("documents", documents)
        indexed, shape = (len(index), index.dimension), tuple(documents.shape)
        if indexed != shape:
            refuse("index", f"an index of vectors {shape}, as documents", indexed)
        if relevant.documents != len(documents):
            refuse("relevant", f"numbers of {len(documents)} documents", f"of {relevant.documents}")
        self.query_encoder = query_encoder
        self.documents, self.index, self.relevant = documents, index, relevant
        self.loss = AdoreLoss() if loss is None else loss
        self.depth = positive_integer("depth", depth)
        self.add_missing: AddMissing = choice("add_missing", add_missing, ("if_none", "always"))  # type: ignore[assignment]
        self.score_scale = positive("score_scale", score_scale)
        self.learning_rate = positive("learning_rate", learning_rate)
        self.warmup_steps = natural("warmup_steps", warmup_steps)
        self.schedule = choice("schedule", schedule, ("linear", "constant"))
        self.max_norm = positive("max_norm", max_norm)
        self.batch_size = positive_integer("batch_size", batch_size)
        self.parts = positive_integer("parts", parts)
        self.seed = natural("seed", seed)
        self.folder = None if folder is None else Path(folder)
        self.save_every = positive_integer("save_every", save_every)
        self.weight_decay = non_negative("weight_decay", weight_decay)
        groups = decay_groups(query_encoder, weight_decay)
        if not groups:
            refuse("query_encoder", "a module with trainable parameters", type(query_encoder).__name__)
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate)

    def train(
        self, queries: Sequence[Any] | Tensor, *, epochs: int = 6, progress: Progress | None = None
    ) -> list[AdoreEpoch]:
        """Train for some epochs, or what is left of them, and return the means of each.

        Args:
            queries: as many as `relevant` knows.
            epochs: at least 1; part of the schedule, so that a state of a run of other length is not gone on with.
            progress: called as `progress(done, total, what)` after every step.

        Raises:
            ValueError: one line: not as many queries as expected, or a folder with a state of another encoder, other
                documents or options.
        """
        if len(queries) != len(self.relevant):
            refuse("queries", f"{len(self.relevant)} queries, as many as `relevant` knows", len(queries))
        per_epoch = -(-len(queries) // self.batch_size)
        total = positive_integer("epochs", epochs) * per_epoch
        state = None if self.folder is None else _State(self.folder, self._fingerprint(epochs))
        step, history = (0, []) if state is None else state.load(self.query_encoder, self.optimizer)
        unfinished = history.pop() if len(history) > step // per_epoch else [0.0, 0.0, 0.0]
        sums = torch.tensor(unfinished, dtype=torch.float64)
        while step < total:
            for rows in self._batches(len(queries), step // per_epoch, step % per_epoch):
                self._set_learning_rate(step, total)
                sums += torch.stack(self.step(_taken(queries, rows), rows)).double() * len(rows)
                step += 1
                if progress is not None:
                    progress(step, total, "steps")
                if state is not None and step % self.save_every == 0 and step % per_epoch:
                    state.save(step, [*history, sums.tolist()], self.query_encoder, self.optimizer)
            history.append((sums / len(queries)).tolist())
            sums.zero_()
            if state is not None:
                state.save(step, history, self.query_encoder, self.optimizer)
        return [AdoreEpoch(*means) for means in history]

    def step(self, batch: Any, rows: Int[Tensor, " b"]) -> AdoreStep:
        """One update of the query encoder on a batch of queries, of which `rows` says which they are."""
        self.query_encoder.train()
        self.optimizer.zero_grad()
        x, found = self._embedded_and_found(batch, len(rows))
        known = self.relevant[rows]
        lists = with_missing_positives(found.ids.cpu(), known, add_missing=self.add_missing)
        with torch.autocast(x.device.type, enabled=False):
            loss = self._loss_of(x, lists, (known >= 0).sum(dim=1))
        loss.backward()
        nn.utils.clip_grad_norm_(self.query_encoder.parameters(), self.max_norm)
        self.optimizer.step()
        retrieved = lists.relevant[:, : found.ids.shape[1]]
        return AdoreStep(loss.detach().cpu(), reciprocal_rank(retrieved).mean(), hit_rate(retrieved).mean())

    def _loss_of(self, x: Float[Tensor, "b d"], lists: RetrievedLists, counts: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        rows = rows_of_vectors(self.documents, lists.ids.clamp(min=0), x)
        scores = self.score_scale * torch.einsum("bd,bkd->bk", x.to(rows.dtype), rows)
        call = {"relevant_counts": counts.to(x.device)} if isinstance(self.loss, AdoreLoss) else {}
        return self.loss(scores, lists.relevant.to(x.device), lists.where.to(x.device), **call)

    def _embedded_and_found(self, batch: Any, size: int) -> tuple[Float[Tensor, "b d"], Found]:
        """Embeddings of the batch, with gradient, and what they retrieve."""
        chunk = -(-size // self.parts)
        parts = [batch] if self.parts == 1 else [batch[start : start + chunk] for start in range(0, size, chunk)]
        embeddings, searches = [], []
        with ThreadPoolExecutor(1) if self.parts > 1 else nullcontext() as threads:
            for part in parts:
                x = self.query_encoder(part)
                if x.ndim != 2 or x.shape[1] != self.documents.shape[1] or not x.is_floating_point():
                    expected = f"a module that gives embeddings [b, {self.documents.shape[1]}], as documents"
                    refuse("query_encoder", expected, describe(x))
                embeddings.append(x)
                detached = x.detach().float()
                searches.append(self._search(detached) if threads is None else threads.submit(self._search, detached))
            found = [search if isinstance(search, Found) else search.result() for search in searches]
        joined = Found(torch.cat([part.scores for part in found]), torch.cat([part.ids for part in found]))
        return torch.cat(embeddings), joined

    def _search(self, x: Float[Tensor, "b d"]) -> Found:
        return self.index.search(x, self.depth)

    def _batches(self, queries: int, epoch: int, first: int) -> Iterator[Int[Tensor, " b"]]:
        """The batches of an epoch from the one numbered `first`; the last may be short."""
        entropy = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(entropy[0] >> np.uint64(1)))
        yield from torch.randperm(queries, generator=generator).split(self.batch_size)[first:]

    def _set_learning_rate(self, step: int, total: int) -> None:
        """Up over the warm-up, then as the schedule says, at the step numbered from 0."""
        factor = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "linear" and step >= self.warmup_steps:
            factor = (total - step) / max(1, total - self.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor

    def _fingerprint(self, epochs: int) -> dict[str, Any]:
        """What a saved state belongs to."""
        every = max(1, len(self.documents) // _SAMPLED_ROWS)
        sample = rows_of_vectors(self.documents, slice(0, None, every), torch.empty(0)).contiguous().numpy()
        return {
            "encoder": fingerprint_of_module(self.query_encoder),
            "documents": [*self.documents.shape, hashlib.sha256(sample.tobytes()).hexdigest()],
            "relevant": self.relevant.fingerprint,
            "loss": " ".join(repr(self.loss).split()),
            "depth": self.depth,
            "add_missing": self.add_missing,
            "score_scale": self.score_scale,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "warmup_steps": self.warmup_steps,
            "schedule": self.schedule,
            "max_norm": self.max_norm,
            "batch_size": self.batch_size,
            "parts": self.parts,
            "seed": self.seed,
            "epochs": epochs,
        }


class _State:
    """The state of a training in a folder: a file of tensors, and one that names it and says where training stands."""

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self._path = folder / "training.json"

    def load(self, encoder: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[list[float]]]:
        """Put everything back as it was saved, if it was: the step to go on with and the epochs so far."""
        if not self._path.exists():
            return 0, []
        told = json.loads(self._path.read_text(encoding="utf-8"))
        other = [name for name, value in self.fingerprint.items() if told["fingerprint"].get(name) != value]
        if other:
            expected = f"a state with the same {', '.join(other)}, or an empty folder"
            refuse("folder", expected, f"another training in {self.folder}")
        tensors = _safetensors().load_file(self.folder / told["tensors"])
        state = optimizer.state_dict()
        state["state"] = {}
        weights: dict[str, Tensor] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "encoder":
                weights[rest] = value
            elif kind == "optimizer":
                number, _, key = rest.partition("/")
                state["state"].setdefault(int(number), {})[key] = value
        encoder.load_state_dict(weights)
        optimizer.load_state_dict(state)
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"])
        return told["step"], told["epochs"]

    def save(self, step: int, epochs: list[list[float]], encoder: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the tensors, then the file that names them, then remove those of before."""
        tensors = {f"encoder/{name}": value for name, value in encoder.state_dict().items()}
        for number, entries in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{key}": value for key, value in entries.items()}
        tensors["random/cpu"] = torch.get_rng_state()
        if any(parameter.is_cuda for parameter in encoder.parameters()):
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        # Each its own memory, for tied weights are refused.
        whole = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        name = f"step-{step}.safetensors"
        write_atomically(self.folder / name, _safetensors().save(whole))
        told = {"step": step, "epochs": epochs, "tensors": name, "fingerprint": self.fingerprint}
        write_atomically(self._path, json.dumps(told, indent=1) + "\n")
        for earlier in self.folder.glob("step-*.safetensors"):
            if earlier.name != name:
                earlier.unlink()


def detached_copy(encoder: _Module) -> _Module:
    """A copy that shares no weight with the encoder: a query encoder to train while the documents' stays as it is."""
    return copy.deepcopy(encoder)


def _taken(queries: Sequence[Any] | Tensor, rows: Int[Tensor, " b"]) -> Any:
    if isinstance(queries, Tensor):
        return queries[rows.to(queries.device)]
    return [queries[row] for row in rows.tolist()]


def _safetensors() -> ModuleType:
    try:
        return import_module("safetensors.torch")
    except ModuleNotFoundError as error:
        raise ImportError('safetensors is not installed: pip install "scorecraft[text]"') from error
