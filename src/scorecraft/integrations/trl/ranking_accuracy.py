"""TRL: does the model that DPO trains rank held-out pairs as they are preferred, and which pairs has it flipped?

    from trl import DPOConfig, DPOTrainer
    from scorecraft.integrations.trl.ranking_accuracy import DifficultyColumns, RankingAccuracyCallback

    args = DPOConfig(output_dir="out", precompute_ref_log_probs=True, eval_strategy="steps", eval_steps=100)
    trainer = DPOTrainer("Qwen/Qwen3-0.6B", args=args, train_dataset=pairs, eval_dataset=held_out)
    trainer.add_callback(RankingAccuracyCallback(trainer))
    trainer.train_dataset = trainer.train_dataset.map(DifficultyColumns(beta=args.beta), batched=True)
    trainer.train()                                  # logs eval_ranking/accuracy, eval_ranking/flipped, ...

Log-probabilities come from the host's fused head and sums are taken as the host takes them, so that the model and its
reference are compared under one kernel. DPO with a scaled reference trains in
`scorecraft.integrations.trl.preference_trainer.PreferenceTrainer(..., objective=ScaledReferenceDPOLoss(gamma=0.5))`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from scorecraft.core import IPOLoss
from scorecraft.core.checks import describe, non_negative, positive, positive_integer, refuse
from scorecraft.integrations.evaluation_mode import evaluating
from scorecraft.integrations.optional import require
from scorecraft.preference.ranking_accuracy import (
    below_rounding,
    flip_categories,
    flip_threshold,
    ipo_threshold,
    log_ratio,
    pair_difficulty,
    ranking_accuracy,
    reward_accuracy,
)

require("trl", "rlhf")

from accelerate.utils import is_peft_model, send_to_device  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from trl import DPOTrainer  # noqa: E402  # pyright: ignore[reportPrivateImportUsage]

_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
_NOT_OF_THE_MODEL = ("completion_mask", *_REFERENCE)
_TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")
_PER_TOKEN = {"ipo", "sigmoid_norm"}
"""Losses of the host that read log-probabilities per token."""


class RankingAccuracyCallback(TrainerCallback):
    """Logs ranking accuracy and flips on held-out pairs, at every evaluation and every so many steps.

    Beside the host's own figures stand, with its prefix for held-out data (`eval_`, or `eval_<name>_`),

    - `ranking/accuracy`: share of pairs whose chosen answer is at least as likely as the rejected one;
    - `ranking/accuracy_norm`: the same of mean log-probabilities per token;
    - `ranking/reward_accuracy`: share of pairs whose log-ratio rose above the reference's, what trainers log;
    - `ranking/flipped`: of the pairs that the reference ranks wrong, the share that the model ranks right;
    - `ranking/unlearned`: of the pairs that the reference ranks right, the share that the model ranks wrong;
    - `ranking/below_threshold`: share of pairs whose loss is low enough that the ranking is right for certain. By the
      paper's theorem this is the accuracy of the form, sum or mean, that the loss reads, for every decreasing loss of
      the margin; for IPO it is a lower bound of it, by the sufficient threshold;
    - `ranking/below_rounding`: share of pairs whose log-ratio is below the rounding of the precision in use.

    A rate over no pairs is NaN. At evaluations the figures are also in what `evaluate` returns, so that
    `metric_for_best_model="ranking/accuracy"` works. Pairs longer than `max_length` are left out, with a warning: a cut
    answer has another likelihood.

    The reference is read from the columns of `precompute_ref_log_probs=True` where they are, else scored once by the
    host's own route: its reference model, or the model with the adapter switched off; where the model is its own
    reference, before the first step. Under `sync_ref_model` it is scored at every measurement.

    Every process scores its share of the pairs, each as many batches, and sums are added over processes.

    Args:
        trainer: a `trl.DPOTrainer` or a subclass; then `trainer.add_callback(callback)`.
        dataset: the held-out pairs, as the trainer has prepared them (`trainer.eval_dataset["name"]`); its whole
            `eval_dataset` when left out, each part of it for itself where it is a dict.
        every: also measure after every so many steps.
        pairs: how many pairs of a data set are drawn; None for all of them.
        seed: of the draw.

    Raises:
        ValueError: one line: no held-out pairs, pairs that are not prepared, options of the host under which the
            log-probability of an answer is no sum over its tokens, or a reference that is no longer there.

    Source: Chen et al. 2024, arXiv 2405.19534, definition 2.3 and section 4.
    """

    def __init__(
        self,
        trainer: DPOTrainer,
        dataset: Dataset | None = None,
        *,
        every: int | None = None,
        pairs: int | None = 1000,
        seed: int = 0,
    ) -> None:
        if not isinstance(trainer, DPOTrainer):
            raise TypeError(f"argument `trainer`: expected a trl.DPOTrainer, got {type(trainer).__name__}")
        if trainer.ld_alpha is not None:
            refuse("trainer", "ld_alpha=None, so that log-probabilities are sums over tokens", trainer.ld_alpha)
        parallel = trainer.accelerator.parallelism_config
        if parallel is not None and parallel.non_data_parallel_size > 1:
            refuse("trainer", "processes that differ in their data alone", repr(parallel))
        self.trainer: Any = trainer
        self.every = None if every is None else positive_integer("every", every)
        self.pairs = None if pairs is None else positive_integer("pairs", pairs)
        self.seed = seed
        given = trainer.eval_dataset if dataset is None else dataset
        self._own = dataset is not None
        sets = given if isinstance(given, Mapping) else {"": given}
        self._sets = {f"eval_{name}" if name else "eval": self._drawn(name, part) for name, part in sets.items()}
        self._references: dict[str, Float[Tensor, "2 n"]] = {}
        self._training = False
        self._measured: dict[str, dict[str, float]] = {}
        """Figures of the step that is being trained, so that an evaluation right behind it does not measure again."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the reference while the model may still be it."""
        self._training = True
        for prefix in self._sets:
            self._reference_of(prefix)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the figures of the last step."""
        self._measured.clear()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget them; the host may have loaded another model."""
        self._training = False
        self._measured.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure and log every so many steps."""
        if self.every is not None and state.global_step % self.every == 0:
            for prefix in self._sets:
                self._log(prefix, control)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Measure and log what was evaluated, and put it into the evaluation's own figures."""
        found = {} if metrics is None else metrics
        for prefix in self._sets:
            if f"{prefix}_runtime" in found or (self._own and any(key.startswith("eval_") for key in found)):
                found.update(self._log(prefix, control))

    def measure(self, prefix: str = "eval") -> dict[str, float]:
        """The figures of the model as it is, without logging them.

        Args:
            prefix: `"eval"`, or `"eval_<name>"` where the held-out data are a dict.
        """
        if prefix not in self._sets:
            refuse("prefix", "one of " + ", ".join(map(repr, self._sets)), repr(prefix))
        reference = self._reference_of(prefix)
        scored = self._score(prefix, self.trainer.model_wrapped)
        return {f"{prefix}_ranking/{name}": value for name, value in self._figures(scored, reference).items()}

    def _log(self, prefix: str, control: Any) -> dict[str, float]:
        if prefix in self._measured:
            return self._measured[prefix]
        figures = self.measure(prefix)
        if self._training:
            self._measured[prefix] = figures
        wanted = control.should_log
        with evaluating(self.trainer.model):  # in training mode the host would log, and forget, its own averages
            self.trainer.log(dict(figures))
        control.should_log = wanted  # which the host takes as done by any log
        return figures

    def _figures(self, scored: _Scored, reference: Float[Tensor, "2 n"]) -> dict[str, float]:
        """Figures over all processes, from sums."""
        counts = {"chosen_tokens": scored.tokens[0], "rejected_tokens": scored.tokens[1]}
        whole = log_ratio(*scored.sums), log_ratio(*reference)
        mean = log_ratio(*scored.sums, **counts), log_ratio(*reference, **counts)
        category = flip_categories(*whole)
        each = [
            torch.ones_like(whole[0]),
            ranking_accuracy(whole[0], reduction="none"),
            ranking_accuracy(mean[0], reduction="none"),
            reward_accuracy(*whole, reduction="none"),
            self._below_threshold(whole, mean),
            below_rounding(*scored.sums, dtype=self._precision()),
            *(category == place for place in range(4)),
        ]
        sums = (torch.stack([one.double() for one in each]) * scored.counted).sum(dim=1)
        sums = self.trainer.accelerator.reduce(sums.to(self.trainer.accelerator.device), reduction="sum").cpu()
        pairs, ranked, ranked_mean, rewarded, below, rounding, kept, unlearned, flipped, unflipped = sums
        return {
            "accuracy": float(ranked / pairs),
            "accuracy_norm": float(ranked_mean / pairs),
            "reward_accuracy": float(rewarded / pairs),
            "flipped": float(flipped / (flipped + unflipped)),
            "unlearned": float(unlearned / (kept + unlearned)),
            "below_threshold": float(below / pairs),
            "below_rounding": float(rounding / pairs),
        }

    def _below_threshold(self, whole: tuple[Tensor, Tensor], mean: tuple[Tensor, Tensor]) -> Tensor:
        """Which pairs are ranked right for certain, by the loss the trainer takes."""
        objective = getattr(self.trainer, "objective", None)  # a PreferenceTrainer's
        if objective is not None:
            per_token = objective.average_log_probabilities
            beta = objective.beta if isinstance(objective, IPOLoss) else None
        else:
            kinds = set(self.trainer.loss_types)
            per_token = kinds <= _PER_TOKEN
            beta = self.trainer.beta if kinds == {"ipo"} else None
        gap, reference = mean if per_token else whole
        if beta is None:
            return gap >= 0
        right, sufficient = ipo_threshold(reference, beta=beta)
        return right & ((gap - reference - 1 / (2 * beta)).square() <= sufficient)

    def _reference_of(self, prefix: str) -> Float[Tensor, "2 n"]:
        """Log-probabilities of this process's pairs under the reference."""
        found = self._references.get(prefix)
        if found is None or self.trainer.args.sync_ref_model:
            rows, _ = self._share(prefix)
            dataset = self._sets[prefix]
            if set(_REFERENCE) <= set(dataset.column_names):
                columns = dataset.select_columns(list(_REFERENCE)).select(rows)
                found = torch.tensor([columns[name][:] for name in _REFERENCE]).float().clamp(max=0).double()
            else:
                found = self._score(prefix, None).sums
            self._references[prefix] = found
        return found

    @torch.no_grad()
    def _score(self, prefix: str, model: Any | None) -> _Scored:
        """Sums and counts of tokens of this process's pairs, under a model or under the reference (None)."""
        trainer, dataset = self.trainer, self._sets[prefix]
        if (
            model is None
            and trainer.ref_model is None
            and not is_peft_model(trainer.model)
            and trainer.state.global_step
        ):
            refuse(
                "dataset", f"columns {' and '.join(_REFERENCE)}, as the model is no longer its own reference", "none"
            )
        rows, counted = self._share(prefix)
        sums, tokens = [], []
        size = trainer.args.per_device_eval_batch_size
        with evaluating(trainer.model):
            for start in range(0, len(rows), size):
                batch = trainer.data_collator([dataset[row] for row in rows[start : start + size]])
                batch = send_to_device(batch, trainer.accelerator.device)
                if model is None:
                    own = trainer.model_wrapped if trainer.ref_model is None else trainer.ref_model
                    found = torch.stack(trainer.compute_ref_log_probs(own, batch))
                else:
                    found = self._log_probabilities(model, batch)
                sums.append(found.float().clamp(max=0).double().cpu())
                tokens.append(torch.stack(batch["completion_mask"][:, 1:].sum(dim=1).chunk(2)).cpu())
        return _Scored(torch.cat(sums, dim=1), torch.cat(tokens, dim=1), counted)

    def _log_probabilities(self, model: Any, batch: Mapping[str, Any]) -> Float[Tensor, "2 b"]:
        """As the host computes them for its loss."""
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        told = {name: value for name, value in batch.items() if name not in _NOT_OF_THE_MODEL}
        with self.trainer.accelerator.autocast():
            each = model(**told, use_cache=False, labels=labels, fused_lm_head=True).log_probs
        # Prompt learning puts tokens of its own in front.
        return torch.stack(each[:, -(labels.shape[1] - 1) :].sum(dim=1).chunk(2))

    def _share(self, prefix: str) -> tuple[list[int], Float[Tensor, " n"]]:
        """This process's rows, as many on each, and a 0 for those that only make up the number."""
        accelerator, total = self.trainer.accelerator, len(self._sets[prefix])
        places = range(accelerator.process_index, _up(total, accelerator.num_processes), accelerator.num_processes)
        return [place % total for place in places], torch.tensor([float(place < total) for place in places])

    def _drawn(self, name: str, dataset: Any) -> Dataset:
        """A subset, of complete pairs."""
        argument = f"dataset[{name!r}]" if name else "dataset"
        if not isinstance(dataset, Dataset) or not len(dataset):
            refuse(
                argument, "held-out pairs, a datasets.Dataset (or an eval_dataset of the trainer)", describe(dataset)
            )
        tokenized = set(_TOKENS) <= set(dataset.column_names)
        if not tokenized and not {"image", "images"} & set(dataset.column_names):
            refuse(argument, f"pairs prepared by the trainer, columns {', '.join(_TOKENS)}", dataset.column_names)
        if self.pairs is not None and self.pairs < len(dataset):
            dataset = dataset.shuffle(seed=self.seed).select(range(self.pairs))
        limit = self.trainer.args.max_length
        if not tokenized or limit is None:
            return dataset
        rows = zip(*(dataset[column] for column in _TOKENS), strict=True)
        complete = [
            place for place, (prompt, *answers) in enumerate(rows) if len(prompt) + max(map(len, answers)) <= limit
        ]
        if not complete:
            refuse(argument, f"pairs of at most max_length = {limit} tokens", "none such")
        if len(complete) < len(dataset):
            cut = len(dataset) - len(complete)
            warnings.warn(
                f"{cut} of {len(dataset)} held-out pairs exceed max_length = {limit} and are left out of the ranking"
                " accuracy",
                stacklevel=3,
            )
        return dataset.select(complete)

    def _precision(self) -> torch.dtype:
        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return mixed.get(self.trainer.accelerator.mixed_precision, self.trainer.model.dtype)  # type: ignore[return-value]


@dataclass(frozen=True)
class DifficultyColumns:
    """`dataset.map(DifficultyColumns(beta=0.1), batched=True)` adds `difficulty` and `flip_threshold` to each pair.

    The difficulty `beta gamma c` is the reward margin at which the ranking of a pair becomes right, at most 0 where the
    reference has it right; the threshold is the loss of DPO there. Filter or sort by them:
    `trainer.train_dataset.filter(lambda pair: pair["difficulty"] < 3)`. The columns `ref_chosen_logps` and
    `ref_rejected_logps` are those that the trainer adds with `precompute_ref_log_probs=True`.

    Args:
        beta: > 0, of the loss.
        gamma: >= 0, of the loss; 1 for DPO.

    Raises:
        ValueError: bad options; in `map`, columns that are not there or hold no log-probabilities.

    Source: Chen et al. 2024, arXiv 2405.19534, theorem 4.1.
    """

    beta: float = 0.1
    gamma: float = 1.0

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        non_negative("gamma", self.gamma)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[float]]:
        """The two columns of a batch of rows."""
        for name in _REFERENCE:
            if name not in batch:
                refuse("dataset", f"a column {name} (precompute_ref_log_probs=True)", ", ".join(batch))
        chosen, rejected = (torch.as_tensor(batch[name], dtype=torch.float64) for name in _REFERENCE)
        if chosen.ndim != 1:
            refuse("batched", "True, dataset.map(..., batched=True)", "one row at a time")
        difficulty = pair_difficulty(log_ratio(chosen, rejected), beta=self.beta, gamma=self.gamma)
        return {"difficulty": difficulty.tolist(), "flip_threshold": flip_threshold(difficulty).tolist()}


class _Scored(NamedTuple):
    sums: Float[Tensor, "2 n"]
    tokens: Float[Tensor, "2 n"]
    counted: Float[Tensor, " n"]


def _up(total: int, unit: int) -> int:
    """The next multiple."""
    return -(-total // unit) * unit
