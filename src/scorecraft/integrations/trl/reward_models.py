"""TRL: reward models trained on ratings, and on preferences that have a strength.

    from scorecraft import ScaledBradleyTerryLoss
    from scorecraft.integrations.trl.reward_models import (
        PreferenceStrengthRewardTrainer, RewardRegressionTrainer, reward_model_from_regression,
    )

    first = RewardRegressionTrainer("meta-llama/Llama-3.1-8B-Instruct", args, train_dataset=ratings)
    first.train()
    model = reward_model_from_regression(first.model, slot=4)
    PreferenceStrengthRewardTrainer(
        model, args, objective=ScaledBradleyTerryLoss(), train_dataset=pairs, processing_class=first.processing_class
    ).train()

Both take `RewardConfig`, and read texts as `RewardTrainer` does: standard or conversational, with or without a prompt
of its own, end-of-sequence added to plain texts, too long examples left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core.checks import describe, refuse
from scorecraft.core.preferences import PreferenceObjective
from scorecraft.core.separable import OfRanks, in_working_precision, terms_of
from scorecraft.integrations.optional import require
from scorecraft.preference.helpsteer2_preference import (
    ATTRIBUTES,
    MaskedRegressionLoss,
    ScaledBradleyTerryLoss,
    accuracy_by_strength,
    reward_head,
)
from scorecraft.preference.helpsteer2_preference.regression import HELPFULNESS, MASKED

require("trl", "rlhf")

from accelerate.utils import gather_object  # noqa: E402
from datasets import Dataset, IterableDataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from trl import RewardConfig, RewardTrainer  # noqa: E402  # pyright: ignore[reportPrivateImportUsage]

Rows: TypeAlias = Dataset | IterableDataset
_HEAD = "score"


class PreferenceStrengthRewardTrainer(RewardTrainer):
    """TRL's reward trainer with any objective of rewards, and a strength for every pair.

    The data are those of `RewardTrainer` with a column `strength` (TRL's own column `margin` serves as well): how
    strongly the chosen answer is preferred, at least 0, such as 1 to 3. Whatever TRL logs is logged, and
    `accuracy_strength_<m>` beside it: the share of pairs of strength `m` (rounded to whole numbers) in the right order.

    A step of several micro-batches, or of several processes, has the loss and gradient of one batch, also where ties
    are dropped, micro-batches are uneven, or the mean divides by strengths. `center_rewards_coefficient` is added as
    TRL adds it. A head named `score` is applied in float32, whatever the precision of the rest: bfloat16 rewards near 3
    come in steps of 0.016.

    Args:
        model: as in `RewardTrainer`.
        args: a `RewardConfig`.
        objective: a preference objective that reads rewards, with `reduction="mean"`;
            `ScaledBradleyTerryLoss()` when left out.
        train_dataset: with the columns above.
        eval_dataset: likewise, or several by name.
        options: the further arguments of `RewardTrainer`, such as `processing_class` and `peft_config`.

    Raises:
        TypeError: no preference objective.
        ValueError: one line: an objective of log-probabilities or of another reduction, a data set without strengths
            where the objective needs them, a strength that is negative or missing, an empty answer, or a pair whose
            answers are the same.

    Source: Wang et al. 2024, arXiv 2410.01257, section 3.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: RewardConfig | None = None,
        *,
        objective: PreferenceObjective | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        **options: Any,
    ) -> None:
        self.objective = _checked_objective(ScaledBradleyTerryLoss() if objective is None else objective)
        super().__init__(
            model,
            args,
            train_dataset=None if train_dataset is None else self._admitted("train_dataset", train_dataset),
            eval_dataset=None if eval_dataset is None else self._each("eval_dataset", eval_dataset),
            **options,
        )
        _apply_head_in_float32(self.model)
        self._order: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"train": [], "eval": []}

    def evaluate(self, eval_dataset: Any = None, *args: Any, **options: Any) -> dict[str, float]:
        """As in `RewardTrainer`; a data set handed over here is checked like that of the constructor."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._each("eval_dataset", eval_dataset)
        return super().evaluate(cast(Any, eval_dataset), *args, **options)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of a step, and what the means of the objective's terms divide by, on all processes."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, None
        counts = torch.stack([self._counts(len(one["input_ids"]) // 2, one.get("margin"), device) for one in samples])
        everywhere: Any = self.accelerator.gather(counts.sum(dim=0, keepdim=True))
        return samples, everywhere.sum(dim=0)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective of the rewards of a micro-batch, as its part of the loss of the whole step."""
        strength = inputs.pop("margin", None)
        # TRL runs the model and keeps its own metrics; its loss is left aside.
        outputs: Any = super().compute_loss(model, inputs, return_outputs=True)[1]
        chosen, rejected = in_working_precision(outputs.logits.squeeze(-1)).chunk(2)
        own = self._counts(len(chosen), strength, chosen.device)
        whole = own if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        shares = own / torch.where(whole > 0, whole, 1.0)
        coefficient = getattr(self.args, "center_rewards_coefficient", None)
        loss = (coefficient or 0.0) * shares[0] * (chosen + rejected).square().mean()
        for share, (factor, objective) in zip(shares[1:], terms_of(self.objective), strict=True):
            loss = loss + factor * share * objective(chosen, rejected, strength=strength)
        if strength is not None:
            self._order[self._mode()].append((chosen.detach(), rejected.detach(), strength))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `RewardTrainer`, with the accuracy of the pairs of each strength since the last call."""
        mode = self._mode()
        seen, self._order[mode] = self._order[mode], []
        counts: dict[int, tuple[int, int]] = {}
        own = accuracy_by_strength(*(torch.cat(part) for part in zip(*seen, strict=True))) if seen else {}
        for level, (right, pairs) in gather_object([(level, tuple(one)) for level, one in own.items()]):
            before = counts.get(level, (0, 0))
            counts[level] = (before[0] + right, before[1] + pairs)
        prefix = "eval_" if mode == "eval" else ""
        for level, (right, pairs) in sorted(counts.items()):
            logs[f"{prefix}accuracy_strength_{level}"] = right / pairs
        super().log(logs, start_time)

    def _mode(self) -> str:
        assert self.model is not None
        return "train" if self.model.training else "eval"

    def _counts(self, pairs: int, strength: Tensor | None, device: torch.device) -> Float[Tensor, " k"]:
        """How many pairs there are, and what the mean of each of the objective's terms divides by."""
        number = torch.full((), float(pairs), device=device)
        found = [number]
        for _, objective in terms_of(self.objective):
            counted = cast(Any, getattr(objective, "counted", None))
            if counted is None or strength is None:
                found.append(number)
            else:
                found.append(counted(strength.float()).sum().to(device))
        return torch.stack(found)

    def _each(self, name: str, rows: Any) -> Any:
        if isinstance(rows, Mapping):
            return {key: self._admitted(f"{name}[{key!r}]", one) for key, one in rows.items()}
        return self._admitted(name, rows)

    def _admitted(self, name: str, rows: Any) -> Any:
        """The data set with its strengths in the column that TRL's collator carries through, checked."""
        if not isinstance(rows, (Dataset, IterableDataset)):
            return rows  # the host says what it takes
        columns = _columns(rows)
        if "strength" in columns and "margin" in columns:
            refuse(name, "a column strength or a column margin", "both")
        if "strength" in columns:
            rows = rows.rename_column("strength", "margin")
        elif "margin" not in columns and self.objective.needs_strength:
            refuse(name, f"a column strength ({type(self.objective).__name__})", sorted(columns))
        return _checked(name, rows, _check_pair)


class RewardRegressionTrainer(Trainer):
    """Trains a head of one output per attribute on ratings, those that are missing left out.

    Columns: `completion` (a text or messages), `prompt` where it is apart, and `labels`, a list of as many ratings as
    the head has outputs, with -100 or None where there is none; or `input_ids` and `labels`, when the texts are tokens
    already. `helpsteer2_ratings` makes them of HelpSteer2's. The mean runs over all ratings of a step, however they
    are spread over micro-batches and processes. The head is applied in float32.

    Args:
        model: a sequence-classification model with an output per rating, or its name or folder: the head then gets as
            many outputs as the first example has ratings.
        args: a `RewardConfig`, whose `eos_token`, `max_length`, `pad_to_multiple_of` and `disable_dropout` are read.
        objective: `MaskedRegressionLoss(attributes=(4,))` for helpfulness alone; all attributes when left out.
        train_dataset: with the columns above.
        eval_dataset: likewise, or several by name.
        processing_class: the tokenizer; that of the model when left out.
        peft_config: of peft, to train an adapter.
        options: further arguments of `transformers.Trainer`.

    Raises:
        TypeError: another objective.
        ValueError: one line: no such columns, as many ratings as there are outputs expected, a rating that is not
            finite, an example without a rating that counts, or an empty completion.

    Source: Wang et al. 2024, arXiv 2410.01257, section 3.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: RewardConfig | None = None,
        *,
        objective: MaskedRegressionLoss | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        **options: Any,
    ) -> None:
        self.objective = MaskedRegressionLoss() if objective is None else objective
        if not isinstance(self.objective, MaskedRegressionLoss) or self.objective.reduction != "mean":
            raise TypeError(f"argument `objective`: expected a MaskedRegressionLoss of the mean, got {objective!r}")
        if isinstance(self.objective, OfRanks):
            self.objective: MaskedRegressionLoss = self.objective.objective
        args = RewardConfig("reward-regression") if args is None else args
        if train_dataset is None:
            refuse("train_dataset", "a data set of ratings", "none")
        if isinstance(model, str):
            told: Any = args.model_init_kwargs or {}
            model = AutoModelForSequenceClassification.from_pretrained(
                model, **{"num_labels": _ratings_of(train_dataset), **told}
            )
        host: Any = model
        multiple: Any = args.pad_to_multiple_of
        self._outputs = int(host.config.num_labels)
        tokenizer: Any = processing_class or AutoTokenizer.from_pretrained(host.config.name_or_path)
        tokenizer.eos_token = args.eos_token or tokenizer.eos_token
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        # Where the host looks for the last token.
        host.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        self._tokenizer, self._max_length = tokenizer, args.max_length
        if peft_config is not None:
            from peft import get_peft_model

            host = get_peft_model(host, peft_config)
        if args.disable_dropout:
            for module in host.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0
        super().__init__(
            model=host,
            args=args,
            train_dataset=self._prepared("train_dataset", train_dataset),
            eval_dataset=None if eval_dataset is None else self._each(eval_dataset),
            processing_class=tokenizer,
            data_collator=RatingCollator(tokenizer.pad_token_id, multiple),
            **options,
        )
        # The host would count labels by itself, and not those of the objective.
        self.model_accepts_loss_kwargs = False
        _apply_head_in_float32(self.model)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **options: Any) -> dict[str, float]:
        """As in `transformers.Trainer`; a data set handed over here is prepared like that of the constructor."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._each(eval_dataset)
        return super().evaluate(cast(Any, eval_dataset), *args, **options)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of a step, and the number of their ratings, on all processes."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, None
        counts = torch.stack([self.objective.rated(one["labels"]).sum().to(device) for one in samples])
        everywhere: Any = self.accelerator.gather(counts.sum(dim=0, keepdim=True))
        return samples, everywhere.sum()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The squared error of a micro-batch, as its part of the loss of the whole step."""
        targets = inputs.pop("labels")
        outputs = model(**inputs, use_cache=False)
        loss = self.objective(outputs.logits, targets)
        if num_items_in_batch is not None:
            own = self.objective.rated(targets).sum()
            loss = loss * own * self.accelerator.num_processes / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def _each(self, rows: Any) -> Any:
        if isinstance(rows, Mapping):
            return {key: self._prepared(f"eval_dataset[{key!r}]", one) for key, one in rows.items()}
        return self._prepared("eval_dataset", rows)

    def _prepared(self, name: str, rows: Any) -> Any:
        columns = _columns(rows)
        if "labels" not in columns or not columns & {"completion", "input_ids"}:
            refuse(name, "columns completion (and prompt) or input_ids, and labels", sorted(columns))

        def check(name: str, place: int, row: Mapping[str, Any]) -> None:
            _check_rating(name, place, row, self._outputs, self.objective)

        rows = _checked(name, rows, check)
        if "input_ids" not in columns:
            rows = rows.map(_tokens, fn_kwargs={"tokenizer": self._tokenizer})
        longest = self._max_length
        return rows if longest is None else rows.filter(lambda row: len(row["input_ids"]) <= longest)


class RatingCollator:
    """Pads tokens on the right, and stacks ratings `[n, a]`.

    Args:
        pad_token: the token to pad with.
        multiple: to which lengths are rounded up.
    """

    def __init__(self, pad_token: int, multiple: int | None = None) -> None:
        self.pad_token = pad_token
        self.multiple = multiple or 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        longest = -(-max(len(row["input_ids"]) for row in rows) // self.multiple) * self.multiple
        tokens = torch.full((len(rows), longest), self.pad_token)
        mask = torch.zeros_like(tokens)
        for place, row in enumerate(rows):
            tokens[place, : len(row["input_ids"])] = torch.as_tensor(row["input_ids"])
            mask[place, : len(row["input_ids"])] = 1
        ratings = [[MASKED if rating is None else float(rating) for rating in row["labels"]] for row in rows]
        return {"input_ids": tokens, "attention_mask": mask, "labels": torch.tensor(ratings)}


def reward_model_from_regression(
    model: Any, *, slot: int = HELPFULNESS, weights: Sequence[float] | None = None
) -> PreTrainedModel:
    """The Bradley-Terry model that starts from a regression model: its body, and one of its outputs as the reward.

    Args:
        model: a sequence-classification model with a linear head `score` or `classifier`, changed in place; an adapter
            of peft on it is merged first.
        slot: the output that becomes the reward, counted from 0.
        weights: one per output, for a weighted sum instead of a slot.

    Raises:
        ValueError: no linear head, no such output, or another number of weights.
    """
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    name = next((name for name in (_HEAD, "classifier") if isinstance(getattr(model, name, None), nn.Linear)), None)
    if name is None:
        refuse("model", "a model with a linear head named score or classifier", type(model).__name__)
    setattr(model, name, reward_head(getattr(model, name), slot=slot, weights=weights))
    model.config.num_labels = model.num_labels = 1
    _apply_head_in_float32(model)
    return model


def helpsteer2_pairs(dataset: Rows) -> Rows:
    """HelpSteer2's preferences as pairs: columns `prompt`, `chosen`, `rejected`, `strength`; ties are left out.

    Args:
        dataset: with `prompt`, `response_1`, `response_2` and `preference_strength` (-3 to 3, negative where response 1
            is better), as `load_dataset("nvidia/HelpSteer2", data_dir="preference")` gives it.
    """

    def pair(row: Mapping[str, Any]) -> dict[str, Any]:
        better, worse = ("response_1", "response_2") if row["preference_strength"] < 0 else ("response_2", "response_1")
        return {
            **_turns(row["prompt"], chosen=row[better], rejected=row[worse]),
            "strength": float(abs(row["preference_strength"])),
        }

    return dataset.filter(lambda row: row["preference_strength"] != 0).map(
        pair, remove_columns=sorted(_columns(dataset) - {"prompt"})
    )


def helpsteer2_ratings(dataset: Rows, *, attributes: Sequence[str] = ATTRIBUTES) -> Rows:
    """HelpSteer2's ratings as columns `prompt`, `completion` and `labels`, with -100 for attributes it does not have.

    Args:
        dataset: with `prompt`, `response` and a column per attribute, as `load_dataset("nvidia/HelpSteer2")` gives it.
        attributes: the outputs of the head, in order; the nine of the released models when left out.
    """

    def rated(row: Mapping[str, Any]) -> dict[str, Any]:
        found = [row.get(attribute) for attribute in attributes]
        labels = [MASKED if rating is None else float(rating) for rating in found]
        return {**_turns(row["prompt"], completion=row["response"]), "labels": labels}

    return dataset.map(rated, remove_columns=sorted(_columns(dataset) - {"prompt"}))


def _turns(prompt: str, **answers: str) -> dict[str, Any]:
    """A prompt and answers to it as messages; `<extra_id_1>User` and the like part the turns of a longer prompt."""
    turns = []
    for place, part in enumerate(prompt.split("<extra_id_1>")):
        role, _, content = part.partition("\n") if place else ("user", "", part)
        turns.append({"role": role.strip().lower(), "content": content.strip() if place else part.strip()})
    told = {name: [{"role": "assistant", "content": answer}] for name, answer in answers.items()}
    return {"prompt": turns, **told}


def _tokens(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The tokens of an example as `RewardTrainer` would make them."""
    whole = row["prompt"] + row["completion"] if row.get("prompt") is not None else row["completion"]
    if isinstance(whole, str):
        end = tokenizer.eos_token
        return {"input_ids": tokenizer(text=whole if whole.endswith(end) else whole + end)["input_ids"]}
    options = row.get("chat_template_kwargs") or {}
    return {"input_ids": tokenizer.apply_chat_template(whole, tokenize=True, return_dict=True, **options)["input_ids"]}


def _apply_head_in_float32(model: Any) -> None:
    """Let linear heads named `score` (of an adapter, too) compute in float32, inside autocast and on half weights."""

    def in_float32(head: nn.Linear, args: tuple[Any, ...], output: Tensor) -> Tensor:
        hidden = args[0]
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if head.bias is None else head.bias.float()
            return F.linear(hidden.float(), head.weight.float(), bias)

    for name, module in model.named_modules():
        if type(module) is nn.Linear and _HEAD in name.split(".") and not getattr(module, "_in_float32", False):
            module.register_forward_hook(in_float32)
            module._in_float32 = True  # type: ignore[assignment]


def _checked_objective(objective: Any) -> PreferenceObjective:
    if not isinstance(objective, PreferenceObjective):
        raise TypeError(f"argument `objective`: expected a preference objective, got {type(objective).__name__}")
    if isinstance(objective, OfRanks):  # the trainer counts on all processes by itself
        return _checked_objective(objective.objective)
    if objective.reads != "rewards":
        refuse("objective", "an objective that reads rewards", repr(objective))
    if any(one.reduction != "mean" for _, one in terms_of(objective)):
        refuse("objective", "an objective with reduction='mean'", repr(objective))
    return objective


def _columns(rows: Any) -> set[str]:
    """The names of the columns; of a stream that does not know them, those of its first row."""
    return set(rows.column_names or next(iter(rows)))


Check = Callable[[str, int, Mapping[str, Any]], None]


def _checked(name: str, rows: Rows, check: Check) -> Rows:
    """The rows, looked at now, or as they come where they are a stream."""
    if isinstance(rows, Dataset):
        for place, row in enumerate(rows):
            check(name, place, row)  # type: ignore[arg-type]
        return rows

    def as_it_comes(row: dict[str, Any], place: int) -> dict[str, Any]:
        check(name, place, row)
        return row

    return rows.map(as_it_comes, with_indices=True)


def _check_pair(name: str, place: int, row: Mapping[str, Any]) -> None:
    answers = [row.get(key, row.get(f"{key}_ids")) for key in ("chosen", "rejected")]
    for key, answer in zip(("chosen", "rejected"), answers, strict=True):
        _check_answer(name, place, key, answer)
    if answers[0] == answers[1]:
        refuse(name, "two different answers in every pair", f"the same twice in row {place}")
    if "margin" in row:
        strength = row["margin"]
        if not isinstance(strength, (int, float)) or not 0 <= strength < float("inf"):
            refuse(name, "a strength of at least 0 in every row", f"{describe(strength)} in row {place}")


def _check_rating(name: str, place: int, row: Mapping[str, Any], outputs: int, objective: MaskedRegressionLoss) -> None:
    if "completion" in row:
        _check_answer(name, place, "completion", row["completion"])
    labels = row["labels"]
    if not isinstance(labels, (list, tuple)) or len(labels) != outputs:
        got = f"{len(labels)}" if isinstance(labels, (list, tuple)) else describe(labels)
        refuse(name, f"{outputs} labels in every row, one per output of the head", f"{got} in row {place}")
    ratings = torch.tensor([[objective.mask_value if rating is None else float(rating) for rating in labels]])
    if not bool(ratings.isfinite().all()):
        refuse(name, "finite labels", f"{labels} in row {place}")
    if not bool(objective.rated(ratings).any()):
        refuse(name, "a rating that counts in every row", f"{labels} in row {place}")


def _check_answer(name: str, place: int, key: str, answer: Any) -> None:
    if isinstance(answer, list) and answer and isinstance(answer[-1], dict):
        answer = answer[-1].get("content")
    if not (answer.strip() if isinstance(answer, str) else answer):
        refuse(name, f"a {key} answer in every row", f"an empty one in row {place}")


def _ratings_of(rows: Any) -> int:
    first = next(iter(rows))
    if not isinstance(first.get("labels"), (list, tuple)):
        refuse("train_dataset", "a column labels of lists", sorted(first))
    return len(first["labels"])
