"""Training a causal language model on several judged answers per question, with any list objective.

    from transformers import TrainingArguments
    from scorecraft.integrations.transformers.set_wise import SetWiseTrainer, load_answer_sets
    from scorecraft.preference.aft import AFTLoss

    data = load_answer_sets("answers.jsonl", prompt="question", completion="solution", label="is_correct",
                            reference="worked_solution")
    trainer = SetWiseTrainer("Qwen/Qwen3-0.6B", TrainingArguments("out"), data, objective=AFTLoss())
    trainer.train()

A row of the data is a question with all its answers: `prompt` (a text, or the messages of a chat), `completions` (a
list of texts), `labels` (a list of truth values) or `ranks` (a list of integers, smaller is better), and `reference`,
the answer that is fine-tuned on: its place among the completions, or a text. Everything else is the host's: LoRA,
accumulation, mixed precision, several devices, checkpoints.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scorecraft.core import ListObjective
from scorecraft.core.checks import choice, describe, non_negative, positive_integer, refuse
from scorecraft.core.list_losses import ordered_pairs
from scorecraft.core.separable import OfRanks, terms_of
from scorecraft.integrations.evaluation_mode import evaluating
from scorecraft.integrations.optional import require
from scorecraft.preference.aft import (
    Constrained,
    assessment_accuracy,
    distinct_answers,
    mean_log_probabilities,
    perplexity,
)
from scorecraft.preference.answer_log_probabilities import (
    IGNORED,
    AnswerLogProbabilities,
    answer_log_probabilities,
)

require("transformers", "text")
require("accelerate", "text")
require("datasets", "text")

import datasets  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments  # noqa: E402
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled  # noqa: E402

COLUMNS = ("prompt", "completions", "labels", "ranks", "reference")
_FIGURES = ("loss/alignment", "loss/reference", "assessment_accuracy", "perplexity/right", "perplexity/wrong")
_FILES = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}


class SetWiseRow(NamedTuple):
    """A question with its judged answers, checked."""

    prompt: str | list[dict[str, str]]
    completions: list[str]
    relevance: list[int]
    """1 and 0, or the last rank less the answer's own."""
    reference: int | str | None
    """A place among the completions, or a text that is none of them."""


def read_row(row: Mapping[str, Any], *, needs_reference: bool = False, name: str = "row", place: int = 0) -> SetWiseRow:
    """Check a row of a data set and read it.

    Args:
        row: with the columns of this module.
        needs_reference: whether a row without a reference is refused.
        name: of the data, for the error.
        place: of the row in it.

    Raises:
        ValueError: one line: no answer, an empty one, another number of labels than answers, both labels and ranks or
            neither, a reference that is missing or none of the answers' places.
    """
    at = f"row {place}"
    prompt: Any = row.get("prompt")
    messages = isinstance(prompt, list) and bool(prompt) and all(isinstance(one, dict) for one in prompt)
    if not (messages or (isinstance(prompt, str) and prompt)):
        refuse(name, "a `prompt` of text or messages in every row", f"{prompt!r} in {at}")
    completions = row.get("completions")
    if not isinstance(completions, (list, tuple)) or not completions:
        refuse(name, "a list of `completions` in every row, one at least", f"{completions!r} in {at}")
    for number, text in enumerate(completions):
        if not isinstance(text, str) or not text.strip():
            refuse(name, "answers that are not empty", f"{text!r} as completion {number} of {at}")
    relevance = _relevance(name, at, row, len(completions))
    reference = row.get("reference")
    if isinstance(reference, str):
        texts = [text.strip() for text in completions]
        if not reference.strip():
            refuse(name, "a reference that is not empty", f"{reference!r} in {at}")
        reference = texts.index(reference.strip()) if reference.strip() in texts else reference
    elif reference is None and needs_reference:
        refuse(name, "a `reference` in every row (or reference_loss='none')", f"none in {at}")
    elif reference is not None and not (_integer(reference) and 0 <= reference < len(completions)):
        refuse(name, f"a `reference` that is a text or a place below {len(completions)}", f"{reference!r} in {at}")
    return SetWiseRow(prompt, list(completions), relevance, reference)


def _relevance(name: str, at: str, row: Mapping[str, Any], answers: int) -> list[int]:
    labels, ranks = row.get("labels"), row.get("ranks")
    if (labels is None) == (ranks is None):
        refuse(name, "either `labels` or `ranks` in every row", f"{'neither' if labels is None else 'both'} in {at}")
    column, judged = ("labels", labels) if ranks is None else ("ranks", ranks)
    if not isinstance(judged, (list, tuple)) or len(judged) != answers:
        got = len(judged) if isinstance(judged, (list, tuple)) else repr(judged)
        refuse(name, f"{answers} `{column}`, one per completion", f"{got} in {at}")
    if ranks is None:
        if not all(one in (0, 1) for one in judged):
            refuse(name, "`labels` that are true or false", f"{judged} in {at}")
        return [int(one) for one in judged]
    if not all(_integer(one) for one in judged):
        refuse(name, "`ranks` that are integers", f"{judged} in {at}")
    return [max(judged) - one for one in judged]


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class SetWiseCollator:
    """Rows of questions as tensors `[questions, answers, tokens]`, in which a question stays whole.

    An answer's tokens are what its text adds behind the prompt (where the two are tokenised as one), and the end of
    sequence. `targets` holds them with -100 elsewhere, `relevance` and `candidates` what a list objective reads,
    `reference` the answer that is fine-tuned on. A reference that is no completion is an answer more, which is no
    candidate.

    Args:
        tokenizer: of the model; chat prompts take its template.
        max_length: tokens of prompt and answer, longer answers are cut at their end; nothing is cut when left out.
        needs_reference: refuse rows without a reference.

    Raises:
        ValueError: when called: rows that `read_row` refuses, a prompt that leaves no room for an answer.
    """

    def __init__(self, tokenizer: Any, *, max_length: int | None = None, needs_reference: bool = False) -> None:
        self.tokenizer = tokenizer
        self.max_length = None if max_length is None else positive_integer("max_length", max_length)
        self.needs_reference = needs_reference

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        read = [
            read_row(row, needs_reference=self.needs_reference, name="rows", place=place)
            for place, row in enumerate(rows)
        ]
        encoded = [self._encode(row, place) for place, row in enumerate(read)]
        answers = max(map(len, encoded))
        longest = max(len(prompt) + len(answer) for row in encoded for prompt, answer in row)
        shape = (len(read), answers, longest)
        ids, mask = torch.full(shape, self._padding()), torch.zeros(shape, dtype=torch.long)
        targets = torch.full(shape, IGNORED)
        relevance = torch.zeros(shape[:2])
        candidates, reference = (torch.zeros(shape[:2], dtype=torch.bool) for _ in range(2))
        for q, (row, texts) in enumerate(zip(read, encoded, strict=True)):
            for place, (prompt, answer) in enumerate(texts):
                start, end = len(prompt), len(prompt) + len(answer)
                ids[q, place, :end] = torch.tensor([*prompt, *answer])
                mask[q, place, :end] = 1
                targets[q, place, start:end] = torch.tensor(answer)
            count = len(row.completions)
            relevance[q, :count] = torch.tensor(row.relevance, dtype=relevance.dtype)
            candidates[q, :count] = True
            if row.reference is not None:
                reference[q, count if isinstance(row.reference, str) else row.reference] = True
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "targets": targets,
            "relevance": relevance,
            "candidates": candidates,
            "reference": reference,
        }

    def _encode(self, row: SetWiseRow, place: int) -> list[tuple[list[int], list[int]]]:
        """Tokens of the prompt and of each answer, that of a reference of its own last."""
        texts = [*row.completions, *([row.reference] if isinstance(row.reference, str) else [])]
        if isinstance(row.prompt, str):
            prompt, whole = row.prompt, True
        else:
            prompt = self.tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True, tokenize=False)
            whole = False  # the template has put the special tokens in
        end = self.tokenizer.eos_token_id
        before = self._tokens([prompt], special=whole)[0]
        before = before[:-1] if whole and before[-1:] == [end] else before
        if not before:
            refuse("rows", "a prompt of one token at least, behind which an answer stands", f"none in row {place}")
        alone = self._tokens(texts, special=False)
        together = self._tokens([prompt + text for text in texts], special=whole)
        answers = []
        for number, (with_prompt, own) in enumerate(zip(together, alone, strict=True)):
            answer = with_prompt[len(before) :] if with_prompt[: len(before)] == before else own
            if not answer:
                refuse("rows", "answers of one token at least", f"none in completion {number} of row {place}")
            answer = answer if end is None or answer[-1] == end else [*answer, end]
            if self.max_length is not None:
                answer = answer[: max(self.max_length - len(before), 0)]
            if not answer:
                refuse("max_length", f"room for answers behind prompts of {len(before)} tokens", self.max_length)
            answers.append((before, answer))
        return answers

    def _tokens(self, texts: list[str], *, special: bool) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]

    def _padding(self) -> int:
        """The token of padding; any will do, because it is masked."""
        found = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in found if token is not None)


class SetWiseTrainer(Trainer):
    """`transformers.Trainer` on questions with several answers: `L = L_VFT + lambda * L_align`.

    `L_align` is any list objective on the mean log-probabilities of a question's answers, `L_VFT` the negative
    log-likelihood of its reference; both are means over the questions of all accumulated batches and all devices, so
    that accumulation and data parallelism change nothing. All answers go through the model in one pass, and through its
    head a chunk of tokens at a time, without logits of the whole vocabulary. Where the constraint `detach` leaves
    answers without a gradient, those are scored in a pass of their own that keeps nothing for the backward pass.

    Logged beside the loss, in training and evaluation: `loss/alignment`, `loss/reference`, `assessment_accuracy` (how
    often a better answer is scored above a worse one) and `perplexity/right` and `perplexity/wrong` (relevance above 0,
    and the others), which tell whether good text is unlearned.

    The sharded parameters of DeepSpeed ZeRO-3 are not supported, nor models that scale or cap their logits.

    Args:
        model: a causal language model of the host, with adapters or without, or the name of one.
        args: the host's.
        train_dataset: rows as described in this module; other columns are left alone.
        eval_dataset: likewise, or a mapping of several.
        objective: any list objective of one score per answer, or a sum of such.
        alignment_weight: lambda >= 0.
        reference_loss: `"sum"` of the reference's token losses, as in the paper, their `"mean"`, or `"none"`: no
            reference is needed then.
        processing_class: the tokenizer; that of the model's name when left out.
        data_collator: a `SetWiseCollator` when left out.
        max_length: of that collator.
        peft_config: adapters to be put on the model.
        host: everything else that the host takes.

    Raises:
        ValueError: one line: an objective of several channels, not reduced or across ranks; rows that `read_row`
            refuses; a model whose logits are not its head times its last hidden state.
    """

    loss_is_scaled_for_ga = True
    model: Any
    args: Any
    accelerator: Any

    def __init__(
        self,
        model: Any,
        args: TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        objective: ListObjective,
        alignment_weight: float = 1.0,
        reference_loss: Literal["sum", "mean", "none"] = "sum",
        processing_class: Any = None,
        data_collator: Any = None,
        max_length: int | None = None,
        peft_config: Any = None,
        **host: Any,
    ) -> None:
        _check_objective(objective)
        self.alignment_weight = non_negative("alignment_weight", alignment_weight)
        self.reference_loss = choice("reference_loss", reference_loss, ("sum", "mean", "none"))
        needs_reference = reference_loss != "none"
        check_rows("train_dataset", train_dataset, needs_reference=needs_reference)
        for name, data in eval_dataset.items() if isinstance(eval_dataset, dict) else [("eval_dataset", eval_dataset)]:
            check_rows(name, data, needs_reference=needs_reference)
        options: Any = TrainingArguments(output_dir="tmp_trainer") if args is None else args
        if is_deepspeed_zero3_enabled():
            refuse("args", "parameters that are whole on every device", "DeepSpeed ZeRO-3")
        if isinstance(train_dataset, torch.utils.data.IterableDataset):
            # Batches of several processes would be joined and cut again, and are of different lengths.
            options.accelerator_config.dispatch_batches = False
        if isinstance(model, str):
            processing_class = AutoTokenizer.from_pretrained(model) if processing_class is None else processing_class
            model = AutoModelForCausalLM.from_pretrained(model)
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(model.config._name_or_path)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        check_head(base)
        score_answers_in_forward(base)
        if peft_config is not None:
            model = require("peft", "rlhf").get_peft_model(model, peft_config)
        if data_collator is None:
            data_collator = SetWiseCollator(processing_class, max_length=max_length, needs_reference=needs_reference)
        super().__init__(
            model, options, data_collator, train_dataset, eval_dataset, processing_class=processing_class, **host
        )
        self.objective = objective.to(self.args.device)
        self._parts: list[tuple[float, ListObjective]] = terms_of(objective)  # type: ignore[assignment]
        self._figures: dict[str, Tensor | None] = {"train": None, "eval": None}

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The objective of a batch of questions, or its share in that of all accumulated batches on all devices."""
        loss, scores, figures = self._evaluate_batch(model, inputs, num_items_in_batch)
        if self.model.training:
            self._add_figures("train", figures)
        return (loss, {"scores": scores.detach()}) if return_outputs else loss

    def _evaluate_batch(
        self, model: Any, inputs: dict[str, Tensor], totals: Tensor | None
    ) -> tuple[Tensor, Float[Tensor, "q c"], Float[Tensor, "q f"]]:
        sums, tokens = self._log_probabilities(model, inputs)
        relevance, candidates, reference = (inputs[name] for name in ("relevance", "candidates", "reference"))
        scores = mean_log_probabilities(sums, tokens.clamp(min=1), validate=False)
        own = self._counts(inputs).to(scores.dtype)
        shares = own / own.clamp(min=1)
        if totals is not None:
            shares = own / totals.to(own).clamp(min=1) * self.accelerator.num_processes
        lists = self._parts[0][1].lists(scores, relevance, candidates)
        loss = scores.new_zeros(())
        for (factor, part), share in zip(self._parts, shares, strict=False):
            processes = 1 if totals is None else self.accelerator.num_processes
            loss = loss + factor * part.evaluate(lists) * (share if part.reduction == "mean" else processes)
        loss = self.alignment_weight * loss
        of_reference = scores.new_zeros(len(scores))
        if self.reference_loss != "none":
            taken = sums if self.reference_loss == "sum" else scores
            of_reference = -torch.where(reference, taken, 0.0).sum(dim=1)
            loss = loss + of_reference.mean() * shares[-1]
        with torch.no_grad():
            aligned = sum(
                factor * part.list_loss(lists.scores, lists.relevance, lists.where) for factor, part in self._parts
            )
            figures = _figures_of(scores.detach(), relevance, candidates, aligned, of_reference)  # type: ignore[arg-type]
        return loss, scores, figures

    def _log_probabilities(
        self, model: Any, inputs: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "q c"], Int[Tensor, "q c"]]:
        """Log-probabilities and lengths of the answers; 0 where there is none."""
        candidates, reference = inputs["candidates"], inputs["reference"]
        wanted = candidates if self.reference_loss == "none" else candidates | reference
        passes = [(wanted, torch.is_grad_enabled())]
        if torch.is_grad_enabled() and self._some_without_gradient:
            pulled = self._pulled(inputs["relevance"], candidates)
            pulled = pulled if self.reference_loss == "none" else pulled | reference
            pulled = _never_empty(pulled, wanted)
            rest = wanted & ~pulled
            if self.accelerator.num_processes > 1:
                rest = _never_empty(rest, wanted)  # all devices make as many passes, because each one communicates
            passes = [(rest, False), (pulled, True)] if bool(rest.any()) else [(pulled, True)]
        sums = torch.zeros(wanted.shape, device=wanted.device)
        tokens = torch.zeros(wanted.shape, dtype=torch.long, device=wanted.device)
        for rows, differentiable in passes:
            with torch.set_grad_enabled(differentiable):
                found = _score(model, inputs, rows)
            # A row that is scored twice keeps the second score.
            sums = sums.to(found.sums.dtype).masked_scatter(rows, found.sums)
            tokens = tokens.masked_scatter(rows, found.tokens)
        return sums, tokens

    @property
    def _some_without_gradient(self) -> bool:
        return all(isinstance(part, Constrained) and part.constraint == "detach" for _, part in self._parts)

    def _pulled(self, relevance: Tensor, candidates: Bool[Tensor, "q c"]) -> Bool[Tensor, "q c"]:
        """The candidates that some term of the objective has a gradient for."""
        pulled = torch.zeros_like(candidates)
        for _, part in self._parts:
            assert isinstance(part, Constrained)
            pulled |= part.receives_gradient(relevance, candidates)
        return pulled

    def _counts(self, inputs: dict[str, Tensor]) -> Float[Tensor, " k"]:
        """The questions that the mean of each term runs over, and all of them."""
        relevance, candidates = inputs["relevance"], inputs["candidates"]
        counts = [part.counts(relevance, candidates).sum() for _, part in self._parts]
        return torch.stack([*counts, counts[0].new_tensor(len(candidates))]).to(torch.float32)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of one step; in place of a number of tokens, the numbers of questions on all devices."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = [self._counts(batch).to(device) for batch in batches]
        total = torch.stack(own).sum(dim=0) if own else torch.zeros(len(self._parts) + 1, device=device)
        return batches, self.accelerator.reduce(total, reduction="sum")

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss of a batch of questions; their scores and labels are collected with `evaluate` alone."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, scores, figures = self._evaluate_batch(model, inputs, None)
        self._add_figures("eval", self.accelerator.gather_for_metrics(figures))
        if prediction_loss_only:
            return loss, None, None
        missing = torch.where(inputs["candidates"], inputs["relevance"], -100.0)
        return loss, scores, missing

    def evaluation_loop(self, *given: Any, metric_key_prefix: str = "eval", **named: Any) -> Any:
        """See the host; its metrics hold the figures of this trainer as well."""
        self._figures["eval"] = None
        output: Any = super().evaluation_loop(*given, metric_key_prefix=metric_key_prefix, **named)
        found = _means(self._figures["eval"])
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the figures of the training batches since the last time beside the loss."""
        if "loss" in logs and self._figures["train"] is not None:
            summed = self.accelerator.reduce(self._figures["train"], reduction="sum")
            logs = {**logs, **_means(summed)}
            self._figures["train"] = None
        super().log(logs, start_time)

    def _add_figures(self, mode: str, figures: Float[Tensor, "q f"]) -> None:
        summed, before = figures.sum(dim=0), self._figures[mode]
        self._figures[mode] = summed if before is None else before + summed

    def _set_signature_columns_if_needed(self) -> None:
        """The columns that the collator reads, in place of those of the model."""
        if self._signature_columns is None:
            self._signature_columns = list(COLUMNS)


def score_answers_in_forward(model: Any) -> None:
    """Let `model(..., answer_labels=labels)` give `AnswerLogProbabilities`; without it, the call is as before.

    The head is applied inside the forward pass of the model, so that what wraps the model (adapters, data parallelism)
    sees one call. Doing it twice changes nothing.

    Args:
        model: a causal language model, without what may wrap it.
    """
    before = vars(model).get("forward")  # of something that was there first; else the method of whatever is called
    if getattr(before, "scores_answers", False):
        return

    @functools.wraps(type(model).forward)
    def forward(self: Any, *given: Any, answer_labels: Int[Tensor, "b t"] | None = None, **named: Any) -> Any:
        if answer_labels is None:
            return type(self).forward(self, *given, **named) if before is None else before(*given, **named)
        told = {name: value for name, value in named.items() if value is not None and name != "labels"}
        hidden = self.get_decoder()(*given, **told).last_hidden_state
        head = self.get_output_embeddings()
        weight, bias = (_whole(one) for one in (head.weight, getattr(head, "bias", None)))
        # Prompt learning puts states of its own in front.
        hidden = hidden[:, -answer_labels.shape[1] :].to(weight.device)
        return answer_log_probabilities(hidden, weight, answer_labels.to(weight.device), bias=bias)

    forward.scores_answers = True  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)  # a copy of the model has its own


def check_head(model: Any) -> None:
    """Refuse a model whose logits are not its head times its last hidden state.

    Raises:
        ValueError: one line.
    """
    kind = type(model).__name__
    changed = f"{kind}, which changes them"
    expected = "logits that are its head times its last hidden state"
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        refuse("model", "a causal language model with a head", kind)
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        refuse("model", expected, changed)  # small logits would not show it
    device = model.get_input_embeddings().weight.device
    if device.type == "meta":
        return
    tokens = torch.arange(1, 5, device=device)[None] % len(head.weight)
    with torch.no_grad(), evaluating(model):
        logits = model(input_ids=tokens, use_cache=False).logits.float()
        hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
        ours = torch.nn.functional.linear(hidden.to(head.weight), head.weight, getattr(head, "bias", None)).float()
    apart = (ours.to(logits.device) - logits).abs().amax()
    if not bool(apart <= 0.01 * logits.abs().amax()):  # they may be bfloat16
        refuse("model", expected, changed)


def check_rows(name: str, data: Any, *, needs_reference: bool = False) -> None:
    """Refuse a data set with a row that cannot be trained on; one that streams is checked batch by batch.

    Raises:
        ValueError: one line naming the first such row.
    """
    if data is None or isinstance(data, (torch.utils.data.IterableDataset, datasets.IterableDataset)):
        return
    if isinstance(data, datasets.Dataset):
        data = data.select_columns([column for column in data.column_names if column in COLUMNS])
    for place, row in enumerate(data):
        read_row(row, needs_reference=needs_reference, name=name, place=place)


def load_answer_sets(
    source: str | Path,
    *,
    split: str = "train",
    prompt: str = "prompt",
    completion: str = "completion",
    label: str | Callable[[Mapping[str, Any]], bool] | None = None,
    rank: str | None = None,
    reference: str | None = None,
    conflicting: Literal["drop", "refuse"] = "drop",
) -> datasets.Dataset:
    """A data set of questions with all their answers, from a file, a folder or the hub.

    Rows that have a column `completions` are questions already and stay as they are. Else a row is one answer: those
    with the same prompt become a question, in the order in which they come, each text once (`distinct_answers`). The
    reference is put first, as a right answer.

    Args:
        source: a `.parquet`, `.jsonl` or `.json` file; a folder with such a file named after the split; or the name of
            a hub data set.
        split: of a folder or a hub data set.
        prompt: name of the column of questions.
        completion: of that of answers.
        label: of that of labels (true or false), or a function of a row that says whether its answer is right.
        rank: of that of ranks, in place of labels.
        reference: of that of the reference answers, if there is one.
        conflicting: what to do with an answer that is judged in two ways.

    Raises:
        ValueError: one line: nothing to read, a column that is not there, neither labels nor ranks (or both).
    """
    table = _read(Path(source).expanduser(), str(source), split)
    if "completions" in table.column_names:
        check_rows("source", table)
        return table
    if (label is None) == (rank is None):
        refuse(
            "label", "a column or function of labels, or else the column `rank`", "neither" if rank is None else "both"
        )
    judged: Any = rank if label is None else label
    for column in (prompt, completion, judged, reference):
        if isinstance(column, str) and column not in table.column_names:
            refuse("source", f"a column `{column}`", ", ".join(table.column_names))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    row: Any
    for row in table:
        groups.setdefault(row[prompt], []).append(row)
    kept: dict[str, list[Any]] = {"prompt": [], "completions": [], "ranks" if label is None else "labels": []}
    if reference is not None:
        kept["reference"] = []
    for question, rows in groups.items():
        verdicts: list[Any] = [judged(row) if callable(judged) else row[judged] for row in rows]
        for verdict in verdicts if rank is None else ():
            if verdict not in (0, 1):
                refuse("label", "labels that are true or false", repr(verdict))
        verdicts = [bool(one) if rank is None else one for one in verdicts]
        known = None if reference is None else rows[0][reference]
        answers = distinct_answers(
            [row[completion] for row in rows], verdicts, reference=known, conflicting=conflicting
        )
        if not answers.completions:
            continue
        kept["prompt"].append(question)
        kept["completions"].append(answers.completions)
        kept["ranks" if label is None else "labels"].append(answers.labels)
        if reference is not None:
            kept["reference"].append(0)
    return datasets.Dataset.from_dict(kept)


def _read(path: Path, source: str, split: str) -> datasets.Dataset:
    if path.is_dir():
        files = [file for suffix in _FILES if (file := path / f"{split}{suffix}").is_file()]
        if len(files) != 1:
            there = ", ".join(sorted(file.name for file in path.iterdir() if file.suffix in _FILES)) or "none"
            refuse("source", f"one file {split}.parquet, .jsonl or .json in the folder", there)
        path = files[0]
    if path.is_file():
        if path.suffix not in _FILES:
            refuse("source", f"a file of {', '.join(_FILES)}", path.name)
        return datasets.load_dataset(_FILES[path.suffix], data_files=str(path), split="train")  # type: ignore[return-value]
    if source.startswith((".", "/", "~")) or path.suffix in _FILES:
        refuse("source", "a file or folder that is there, or a hub data set", source)
    return datasets.load_dataset(source, split=split)  # type: ignore[return-value]


def _score(model: Any, inputs: dict[str, Tensor], rows: Bool[Tensor, "q c"]) -> AnswerLogProbabilities:
    """The answers of some rows, without the columns that are padding in all of them."""
    mask = inputs["attention_mask"][rows]
    longest = int(mask.sum(dim=1).amax())
    return AnswerLogProbabilities(
        *model(
            input_ids=inputs["input_ids"][rows][:, :longest],
            attention_mask=mask[:, :longest],
            answer_labels=inputs["targets"][rows][:, :longest],
            use_cache=False,
        )
    )


def _never_empty(rows: Bool[Tensor, "q c"], wanted: Bool[Tensor, "q c"]) -> Bool[Tensor, "q c"]:
    """`rows`, or the first of the wanted ones where there is none."""
    if bool(rows.any()):
        return rows
    first = torch.zeros_like(wanted)
    first.view(-1)[int(wanted.flatten().int().argmax())] = True
    return first


def _figures_of(
    scores: Float[Tensor, "q c"],
    relevance: Float[Tensor, "q c"],
    candidates: Bool[Tensor, "q c"],
    aligned: Float[Tensor, " q"],
    of_reference: Float[Tensor, " q"],
) -> Float[Tensor, "q f"]:
    """Of each question, every figure and what it counts for."""
    pairs = ordered_pairs(relevance, candidates).any(dim=(-2, -1))
    assessed = assessment_accuracy(scores, relevance, candidates, reduction="none").nan_to_num(0.0)
    right = (relevance > 0) & candidates
    wrong = candidates & ~right
    each = perplexity(torch.where(candidates, scores, 0.0))
    one = torch.ones_like(aligned)
    columns = [aligned, one, of_reference.detach(), one, assessed, pairs]
    for group in (right, wrong):
        columns += [torch.where(group, each, 0.0).sum(dim=1), group.sum(dim=1)]
    return torch.stack([column.to(scores.dtype) for column in columns], dim=1)


def _means(summed: Float[Tensor, " f"] | None) -> dict[str, float]:
    """Every figure that counted for something."""
    if summed is None:
        return {}
    values = summed.unflatten(0, (-1, 2)).tolist()
    return {name: total / count for name, (total, count) in zip(_FIGURES, values, strict=True) if count}


def _whole(parameter: Any) -> Any:
    """A parameter that FSDP has sharded, gathered."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def _check_objective(objective: object) -> None:
    if not isinstance(objective, ListObjective):
        got = type(objective).__name__
        raise TypeError(f"argument `objective`: expected a list objective, got {got}")
    if any(isinstance(part, OfRanks) for _, part in terms_of(objective)):
        refuse("objective", "the objective itself, the trainer sees to the ranks", type(objective).__name__)
    if objective.channels != 1 or objective.reduction == "none":
        refuse("objective", "an objective of one score per answer, reduced to one number", describe(objective))
