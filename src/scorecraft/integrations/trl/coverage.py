"""TRL: its SFT trainer with the loss of Direct Coverage Optimization, and the filter that keeps its batches full.

    from trl import SFTConfig
    from scorecraft.integrations.trl.coverage import CoverageSFTTrainer

    trainer = CoverageSFTTrainer("Qwen/Qwen3-0.6B", args=SFTConfig(output_dir="out", learning_rate=1e-5),
                                 train_dataset=problems, dco_n=256, dco_epsilon=0.1)
    trainer.train()

Data, tokenisation, truncation, collation, LoRA, accumulation and checkpoints are the host's. Log-probabilities come
from its fused head, in float32 and without the logits of the whole vocabulary. `loss_type="dft"` of the host is another
thing, a weight per token that grows with its probability.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as Rows

from scorecraft.core.checks import choice, describe, natural, probability, refuse
from scorecraft.core.files import write_atomically
from scorecraft.integrations.evaluation_mode import evaluating
from scorecraft.integrations.optional import require
from scorecraft.preference.dco import (
    ApproximateCoverageLoss,
    CoverageBatchSampler,
    CoverageFilter,
    DirectCoverageLoss,
    coverage_weight,
    pass_at_n,
    sampled_coverage_weight,
)
from scorecraft.preference.dco.coverage import checked_budget
from scorecraft.preference.dco.filter import WEIGHT

require("trl", "rlhf")

from datasets import Dataset  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint  # noqa: E402
from trl.trainer.sft_trainer import SFTTrainer  # noqa: E402

IGNORED = -100
FILTER_FILE = "coverage_filter.json"
"""Where the filter stands, in every checkpoint."""
_ROWS = 1000

SuccessRates = Callable[[list[dict[str, Any]]], Float[Tensor, " k"]]
"""From rows of the training set to the share of right answers among sampled ones."""


class CoverageSFTTrainer(SFTTrainer):
    """`trl.SFTTrainer` whose loss is `-log(1 - (1 - p)^N)`, with `p` the probability of the whole target.

    The loss of a step is the mean over its examples, those of all accumulated batches and all ranks, exactly. Packed
    rows are taken apart into their examples (`packing_strategy="bfd"`, or `padding_free`). Logged beside what the host
    logs, over examples: `dco/loss` (the loss itself, whatever the reduction), `dco/weight` (the mean of `F`, how much
    of the gradient of cross entropy is left), `dco/pass_at_1`, `dco/pass_at_<N>`, and `dco/keep_rate` of the filter.

    With `dco_epsilon` each full batch is made of candidates that still have weight, scored with the model as it is when
    the batch is due: about a third of a training step per candidate. An epoch is then a pass over the candidates, and
    the number of steps is not known beforehand: epochs end early, or set `max_steps`. The filter's state is in every
    checkpoint, and a resumed run takes the same examples as one that was not interrupted.

    With `dco_success_rates` this is DCO_a, for chains of thought: the weight is made of the rates that the function
    returns for candidates and held constant, candidates at `dco_threshold` and above are dropped, and the first
    `dco_warmup_steps` steps are cross entropy on all.

    Args:
        model: as the host takes it.
        args: `trl.SFTConfig`.
        data_collator: as the host takes it.
        train_dataset: in one of the host's forms.
        dco_n: `N >= 1`, the number of samples at test time; 1 is cross entropy.
        dco_reduction: `"sum"` over the tokens of an example (the loss of the paper), or `"token_mean"` (the published
            code's default), which divides an example's gradient by its length.
        dco_epsilon: keep candidates with `F` above it, in [0, 1] (the published code: 0.1); without a number there is
            no filter.
        dco_success_rates: called with rows of the prepared training set, returns rates in [0, 1].
        dco_threshold: in [0, 1].
        dco_warmup_steps: of DCO_a.
        host: everything else that the host takes.

    Raises:
        ValueError: one line: bad arguments; packing that cuts examples, or with a filter; label smoothing, `dft`, a
            loss function, sharded sequences; an example without a target token.

    Source: arXiv 2502.07154.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        *,
        dco_n: float,
        dco_reduction: Literal["sum", "token_mean"] = "sum",
        dco_epsilon: float | None = None,
        dco_success_rates: SuccessRates | None = None,
        dco_threshold: float = 0.1,
        dco_warmup_steps: int = 20,
        **host: Any,
    ) -> None:
        self.dco_n = checked_budget("dco_n", dco_n)
        token_mean = choice("dco_reduction", dco_reduction, ("sum", "token_mean")) == "token_mean"
        self.dco_epsilon = None if dco_epsilon is None else probability("dco_epsilon", dco_epsilon)
        self.dco_success_rates = dco_success_rates
        self.dco_threshold = probability("dco_threshold", dco_threshold)
        self.dco_warmup_steps = natural("dco_warmup_steps", dco_warmup_steps)
        self.filters = dco_epsilon is not None or dco_success_rates is not None
        _check_options(args, train_dataset, host, filters=self.filters)
        check_targets("train_dataset", train_dataset)
        super().__init__(model, args, data_collator, train_dataset, **host)
        if not getattr(self.args, "packing", False):
            check_targets("train_dataset", self.train_dataset)
        parallel = self.accelerator.parallelism_config
        if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
            refuse("args", "whole sequences on each rank", "context or sequence parallelism")
        self._exact = DirectCoverageLoss(n=self.dco_n, token_mean=token_mean, reduction="none")
        self._held = ApproximateCoverageLoss(token_mean=token_mean, reduction="none")
        self.coverage_filter: CoverageFilter | None = None
        """The filter of the run at hand."""
        if self.filters:
            self.add_callback(_FilterStates(self))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of a step, and how many examples they have on all ranks together; see the host."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        own = sum((_tokens_of_examples(batch) > 0).sum() for batch in batches)
        return batches, self.accelerator.reduce(torch.as_tensor(own, device=device), "sum")

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch: its part of the mean over `num_items_in_batch` examples, or the mean over its own."""
        held = inputs.pop(WEIGHT, None)
        seen: list[Any] = []
        hook = model.register_forward_hook(lambda module, given, result: seen.append(result))
        try:
            # The host's own loss is thrown away; what it logs stays.
            host = super().compute_loss(model, inputs, return_outputs)
        finally:
            hook.remove()
        outputs = seen[0]
        answers = _answers(inputs, outputs.log_probs)
        if held is None:
            losses = self._exact(answers.sums, tokens=answers.tokens)
        else:
            losses = self._held(answers.sums, tokens=answers.tokens, coverage_weights=held)
        steps = 1
        if num_items_in_batch is None:
            loss = losses.mean()
        else:
            loss = losses.sum() * self.accelerator.num_processes / num_items_in_batch
            steps = self.current_gradient_accumulation_steps
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / steps
        self._log_coverage(answers.sums.detach(), held)
        return (loss, host[1]) if return_outputs else loss

    @torch.no_grad()
    def _log_coverage(self, log_p: Tensor, held: Tensor | None) -> None:
        weights = coverage_weight(self.dco_n, log_p) if held is None else held
        exact = DirectCoverageLoss(n=self.dco_n, reduction="none")(log_p)
        each = {
            "dco/loss": exact,
            "dco/weight": weights,
            "dco/pass_at_1": log_p.exp(),
            f"dco/pass_at_{self.dco_n:g}": pass_at_n(self.dco_n, log_p),
        }
        sums = torch.stack([torch.ones_like(log_p).sum(), *(values.float().sum() for values in each.values())])
        reduced: Any = self.accelerator.reduce(sums, "sum")
        count, *totals = reduced.tolist()
        mode = "train" if self.model is not None and self.model.training else "eval"
        for name, total in zip(each, totals, strict=True):
            self._metrics[mode][name].append(total / count)
        if mode == "train" and self.coverage_filter is not None:
            self._metrics[mode]["dco/keep_rate"].append(self.coverage_filter.keep_rate)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """See the host; with a filter, a resumed run takes it up where the checkpoint left it."""
        if not self.filters:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        args = self.args
        self.coverage_filter = CoverageFilter(
            len(self._rows),
            batch_size=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            score=self._sampled_weights if self.dco_success_rates else self._model_weights,
            epsilon=self.dco_epsilon or 0.0,
            warmup_batches=self.dco_warmup_steps if self.dco_success_rates else 0,
            passes=None if args.max_steps > 0 else math.ceil(args.num_train_epochs),
            seed=args.seed if args.data_seed is None else args.data_seed,
            device=args.device,
        )
        if resume_from_checkpoint:
            self.coverage_filter.load_state_dict(_saved_state(resume_from_checkpoint, args.output_dir))
        skips, args.ignore_data_skip = args.ignore_data_skip, True  # the filter itself knows where it was
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            args.ignore_data_skip = skips

    def get_train_dataloader(self) -> DataLoader[Any]:
        """See the host; with a filter, a loader that asks it for every batch, and reads none ahead."""
        if self.coverage_filter is None:
            return super().get_train_dataloader()
        sampler = CoverageBatchSampler(self.coverage_filter, micro_batches=self.args.gradient_accumulation_steps)
        held = self.dco_success_rates is not None
        return DataLoader(
            _WeightedRows(self._rows),
            batch_sampler=_WeightedSampler(sampler, known_length=self.args.max_steps <= 0),
            collate_fn=lambda rows: self._collate_weighted(rows, held),
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            generator=torch.Generator(),  # of its own, so that a resumed run draws what the other one did
        )

    @property
    def _rows(self) -> Any:
        """The prepared training set."""
        return self.train_dataset

    def _collate_weighted(self, rows: list[tuple[dict[str, Any], float]], held: bool) -> dict[str, Any]:
        batch = dict(self._collate([row for row, _ in rows]))
        return {**batch, WEIGHT: torch.tensor([weight for _, weight in rows])} if held else batch

    def _collate(self, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
        if self.args.remove_unused_columns and all("input_ids" in row for row in rows):
            rows = [{name: row[name] for name in ("input_ids", "labels") if name in row} for row in rows]
        return self.data_collator(rows)

    @torch.no_grad()
    def _model_weights(self, indices: list[int]) -> Tensor:
        """`F` of rows of the training set under the model as it is, in eval mode."""
        model: Any = self.model_wrapped
        rows, size = self._rows, self.args.train_batch_size
        found = []
        with evaluating(model):
            for start in range(0, len(indices), size):
                chosen = [rows[index] for index in indices[start : start + size]]
                inputs = self._prepare_inputs(dict(self._collate(chosen)))
                with self.compute_loss_context_manager():
                    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
                found.append(coverage_weight(self.dco_n, _answers(inputs, outputs.log_probs).sums))
        return torch.cat(found)

    def _sampled_weights(self, indices: list[int]) -> Tensor:
        """`F` of rows of the training set from the share of right answers, 0 where they are to be dropped."""
        assert self.dco_success_rates is not None
        rates = self.dco_success_rates([self._rows[index] for index in indices])
        if not isinstance(rates, Tensor) or rates.shape != (len(indices),):
            refuse("dco_success_rates", f"a function that returns {len(indices)} rates", describe(rates))
        return sampled_coverage_weight(self.dco_n, rates.float(), threshold=self.dco_threshold)


class _Answers(NamedTuple):
    sums: Float[Tensor, " n"]
    tokens: Int[Tensor, " n"]


def _answers(inputs: Mapping[str, Any], log_probs: Float[Tensor, "b t"]) -> _Answers:
    """Log-probabilities of whole targets, and their tokens; of a packed row one for each of its examples."""
    targets = inputs["labels"][:, 1:] != IGNORED
    # Prompt learning puts tokens of its own in front.
    each = log_probs[:, -targets.shape[1] :].float() * targets
    tokens = _tokens_of_examples(inputs)
    if "seq_idx" in inputs:
        owner = inputs["seq_idx"][0].long()
        sums = each.new_zeros(len(tokens)).index_add(0, owner[1:], each[0])
        kept = owner.bincount(minlength=len(tokens)) > 1  # the host pads packed rows with sequences of one token
        sums, tokens = sums[kept], tokens[kept]
    else:
        sums = each.sum(dim=1)
    if bool((tokens == 0).any()):
        place = int((tokens == 0).nonzero()[0])
        refuse("inputs", "a target token in every example after its first position", f"none in example {place}")
    return _Answers(sums.clamp(max=0), tokens)


def _tokens_of_examples(batch: Mapping[str, Any]) -> Int[Tensor, " n"]:
    """How many targets each example of a batch has."""
    targets = (batch["labels"][:, 1:] != IGNORED).long()
    if "seq_idx" not in batch:
        return targets.sum(dim=1)
    owner = batch["seq_idx"][0].long()
    return targets.new_zeros(int(owner[-1]) + 1).index_add(0, owner[1:], targets[0])


class _WeightedRows(Rows[tuple[dict[str, Any], float]]):
    """Rows with the weight that they were asked for with."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, asked: tuple[int, float]) -> tuple[dict[str, Any], float]:
        index, weight = asked
        return self.rows[index], weight


class _WeightedSampler(Sampler[list[tuple[int, float]]]):
    """The lists of a sampler with their weights. Where steps are counted the host must not know a length: it would
    make epochs of it, and run out of them."""

    def __init__(self, sampler: CoverageBatchSampler, *, known_length: bool) -> None:
        self.sampler = sampler
        self.known_length = known_length

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        for batch in self.sampler.dealt():
            yield list(zip(batch.indices, batch.weights.tolist(), strict=True))

    def __len__(self) -> int:
        if not self.known_length:
            raise TypeError("the number of batches depends on the filter")
        return len(self.sampler)


class _FilterStates(TrainerCallback):
    """Puts the filter's state into each checkpoint; it is the same on all ranks."""

    def __init__(self, trainer: CoverageSFTTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = self.trainer.coverage_filter
        if kept is not None and args.should_save:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            write_atomically(folder / FILTER_FILE, json.dumps(kept.state_dict()))


def check_targets(name: str, data: object) -> None:
    """Refuse a table with labels of which a row has none to score; what streams is left to the batches.

    Raises:
        ValueError: one line naming the first such row.
    """
    if not isinstance(data, Dataset) or "labels" not in data.column_names:
        return
    row = 0
    for batch in data.select_columns(["labels"]).with_format(None).iter(_ROWS):
        for labels in batch["labels"]:  # type: ignore[call-overload]
            if all(label == IGNORED for label in labels[1:]):
                refuse(name, "a target token in every example after its first position", f"none in row {row}")
            row += 1


def _saved_state(checkpoint: str | bool, output: str | None) -> dict[str, Any]:
    folder = get_last_checkpoint(output or ".") if checkpoint is True else str(checkpoint)
    path = Path(folder or output or ".") / FILTER_FILE
    if not path.is_file():
        refuse("resume_from_checkpoint", f"a checkpoint with {FILTER_FILE}, of a run with a filter", str(path.parent))
    return json.loads(path.read_text())


def _check_options(args: Any, data: Any, host: Mapping[str, Any], *, filters: bool) -> None:
    told = lambda name, default=None: getattr(args, name, default)  # noqa: E731
    if host.get("compute_loss_func") is not None:
        refuse("compute_loss_func", "none: the loss is this trainer's", describe(host["compute_loss_func"]))
    if told("label_smoothing_factor", 0):
        refuse(
            "label_smoothing_factor", "0: coverage reads the probability of the target", told("label_smoothing_factor")
        )
    if told("loss_type", "nll") != "nll":
        refuse("loss_type", "'nll': `dft` weights tokens, and the other way round", repr(told("loss_type")))
    if told("packing", False) and told("packing_strategy", "bfd") != "bfd":
        expected = "'bfd': other strategies cut examples, whose probability is then unknown"
        refuse("packing_strategy", expected, repr(told("packing_strategy")))
    if not filters:
        return
    if told("packing", False) or told("padding_free", False):
        refuse("packing", "rows of one example each where they are filtered", "packed ones")
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        refuse("train_dataset", "a table with a length where it is filtered", type(data).__name__)
    if told("dataloader_num_workers", 0):
        refuse("dataloader_num_workers", "0 where the model chooses the batches", told("dataloader_num_workers"))
