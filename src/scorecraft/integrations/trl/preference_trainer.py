"""TRL: its DPO trainer with any preference objective.

    from trl import DPOConfig
    from scorecraft import IPOLoss
    from scorecraft.integrations.trl.preference_trainer import PreferenceTrainer

    trainer = PreferenceTrainer("Qwen/Qwen3-0.6B", args=DPOConfig(output_dir="out"), train_dataset=pairs,
                                objective=IPOLoss(beta=0.1))
    trainer.train()

Data, tokenisation, collation, references (a frozen copy, an adapter switched off, precomputed columns), LoRA,
accumulation and checkpoints are the host's. Log-probabilities come from its fused head, so that no logits of the whole
vocabulary are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scorecraft.core import PreferenceObjective
from scorecraft.core.checks import refuse
from scorecraft.integrations.optional import require

require("trl", "rlhf")

from datasets import Dataset, IterableDataset  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402

_NOT_OF_THE_MODEL = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
_BATCH = 1000


class PreferenceTrainer(DPOTrainer):
    """`trl.DPOTrainer` whose loss is a preference objective on log-probabilities of answers.

    Logged beside the loss: `rewards/accuracies` (the log-ratio to the reference moved the right way) and
    `rewards/margins` where there is a reference, `ranking/accuracy` (the chosen answer is at least as likely as the
    rejected one), `logps/chosen` and `logps/rejected`. Options of `DPOConfig` that choose or shape its own loss
    (`loss_type`, `beta`, `label_smoothing`, `f_divergence_type`, `use_weighting`, `ld_alpha`) play no part: they belong
    to the objective.

    Args:
        model: as the host takes it.
        ref_model: as the host takes it; not kept when the objective needs no reference.
        args: `trl.DPOConfig`.
        train_dataset: pairs in one of the host's forms.
        objective: any preference objective that reads log-probabilities, or a sum of such.
        host: everything else that the host takes.

    Raises:
        ValueError: one line: an objective of rewards, pairs whose answers are equal or empty, a reference whose
            vocabulary is another.
    """

    model: Any
    args: Any
    accelerator: Any

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        *,
        objective: PreferenceObjective,
        **host: Any,
    ) -> None:
        if not isinstance(objective, PreferenceObjective):
            got = type(objective).__name__
            raise TypeError(f"argument `objective`: expected a preference objective, got {got}")
        if objective.reads != "log_probabilities" or objective.needs_strength or objective.reduction == "none":
            expected = "an objective of log-probabilities alone, reduced to one number"
            refuse("objective", expected, repr(objective))
        check_pairs("train_dataset", train_dataset)
        evaluated = host.get("eval_dataset")
        for name, data in evaluated.items() if isinstance(evaluated, Mapping) else [("eval_dataset", evaluated)]:
            check_pairs(name, data)
        super().__init__(model, ref_model, args, train_dataset=train_dataset, **host)
        self.objective = objective.to(self.model.device)
        if not objective.needs_reference and not self.args.sync_ref_model:
            self.ref_model = None
        if self.ref_model is not None:
            _check_vocabularies(self.model, self.ref_model)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's value on a batch of pairs; see the host."""
        mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        told = {name: value for name, value in inputs.items() if name not in _NOT_OF_THE_MODEL}
        outputs = model(**told, use_cache=False, labels=labels, fused_lm_head=True)
        tokens = mask[:, 1:].sum(dim=1)
        # Prompt learning puts tokens of its own in front.
        each = outputs.log_probs[:, -(mask.shape[1] - 1) :]
        chosen, rejected = each.float().sum(dim=1).clamp(max=0).chunk(2)
        counts = dict(zip(("chosen_tokens", "rejected_tokens"), tokens.chunk(2), strict=True))
        reference = self._reference_of(inputs) if self.objective.needs_reference else {}
        loss = self.objective(chosen, rejected, **counts, **reference)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        self._log_pairs(chosen.detach(), rejected.detach(), reference)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _reference_of(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Log-probabilities under the reference: precomputed, or by the host's own route."""
        if self.precompute_ref_logps:
            found = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            found = self.compute_ref_log_probs(self.model if self.ref_model is None else self.ref_model, inputs)
        return {
            name: values.float().clamp(max=0)
            for name, values in zip(("reference_chosen", "reference_rejected"), found, strict=True)
        }

    @torch.no_grad()
    def _log_pairs(self, chosen: Tensor, rejected: Tensor, reference: dict[str, Tensor]) -> None:
        figures = {
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            "ranking/accuracy": (chosen >= rejected).float(),
        }
        if reference:
            margins = chosen - reference["reference_chosen"] - (rejected - reference["reference_rejected"])
            figures |= {"rewards/margins": margins, "rewards/accuracies": (margins > 0).float()}
        kept = self._metrics["train" if self.model.training else "eval"]
        for name, values in figures.items():
            kept[name].append(self.accelerator.gather_for_metrics(values).mean().item())


def check_pairs(name: str, data: object) -> None:
    """Refuse pairs whose answers are equal or empty; what streams, or is no such table, is left to the host.

    Raises:
        ValueError: one line naming the first such row.
    """
    if not isinstance(data, Dataset) or isinstance(data, IterableDataset):
        return
    columns = next((two for two in (("chosen", "rejected"), ("chosen_ids", "rejected_ids"))
                    if set(two) <= set(data.column_names)), None)  # fmt: skip
    if columns is None:
        return
    row = 0
    for batch in data.select_columns(list(columns)).iter(_BATCH):
        table: dict[str, Any] = dict(batch)
        for chosen, rejected in zip(table[columns[0]], table[columns[1]], strict=True):
            if chosen == rejected:
                refuse(name, "two different answers in every row", f"chosen equal to rejected in row {row}")
            for column, answer in zip(columns, (chosen, rejected), strict=True):
                if _is_empty(answer):
                    refuse(name, "an answer in every row", f"an empty `{column}` in row {row}")
            row += 1


def _is_empty(answer: Any) -> bool:
    """Whether there is nothing to score: no text, no tokens, or a last message without text."""
    if isinstance(answer, str):
        return not answer.strip()
    if len(answer) and isinstance(answer[-1], Mapping):
        last = answer[-1]
        return not last.get("content") and not last.get("tool_calls")
    return not len(answer)


def _check_vocabularies(model: Any, reference: Any) -> None:
    """A reference made for another tokenizer scores other words."""
    sizes = [int(one.config.get_text_config().vocab_size) for one in (model, reference)]
    if sizes[0] != sizes[1]:
        refuse("ref_model", f"the tokenizer of the model ({sizes[0]} tokens)", f"a vocabulary of {sizes[1]}")
