"""TRL: rewards as log-probabilities of being good, for `GRPOTrainer` and `RLOOTrainer`, and reward models as functions.

    from trl import GRPOConfig, GRPOTrainer
    from scorecraft.integrations.trl.rewards import (
        AllOf, LogSigmoidReward, PolicySampler, RewardModel, add_reference_rewards,
    )

    rewards = {"helpful": RewardModel("my/helpfulness"), "harmless": RewardModel("my/harmlessness")}
    dataset = add_reference_rewards(dataset, PolicySampler("Qwen/Qwen3-0.6B"), rewards, folder="references")
    good = AllOf([LogSigmoidReward(reward, reference=f"r_ref_{name}") for name, reward in rewards.items()])
    args = GRPOConfig(output_dir="out", scale_rewards="none", beta=0.05)
    trainer = GRPOTrainer("Qwen/Qwen3-0.6B", reward_funcs=good, train_dataset=dataset, args=args)

A reward of None means that it does not apply, as the host has it.
"""

from __future__ import annotations

import copy
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from scorecraft.core.checks import natural, positive, positive_integer, refuse
from scorecraft.integrations.evaluation_mode import evaluating
from scorecraft.integrations.optional import require
from scorecraft.preference.reward_transform import (
    AllOf,
    AnswerReference,
    AnyOf,
    AtLeast,
    LearnedReference,
    Not,
    RewardStore,
    SampledReference,
    StoredReference,
    best_of,
    fill,
    reference_reward,
    sample_moments,
)
from scorecraft.preference.reward_transform import LogSigmoidReward as LogSigmoidOfFunction
from scorecraft.preference.reward_transform.references import QUANTILE, Estimator
from scorecraft.preference.reward_transform.rewards import (
    Completion,
    Judged,
    Reference,
    Reward,
    Sample,
    keyed_prompts,
    name_of,
    sampled_rewards,
)
from scorecraft.preference.reward_transform.store import Prompt, prompt_key

require("trl", "rlhf")

from accelerate import PartialState  # noqa: E402
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, Value  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402
from trl.data_utils import apply_chat_template, is_conversational  # noqa: E402

__all__ = [
    "AllOf",
    "AnswerReference",
    "AnyOf",
    "AtLeast",
    "LearnedReference",
    "LogSigmoidReward",
    "Not",
    "PolicySampler",
    "RewardModel",
    "RewardStore",
    "SampledReference",
    "StoredReference",
    "add_reference_rewards",
    "best_of",
    "scaling_problem",
]

AnyDataset: TypeAlias = Any
"""A `datasets.Dataset`, one that streams, or a dict of such."""


class RewardModel:
    """A sequence classifier with one logit as a reward function: `(prompts, completions, **columns) -> floats`.

    Texts are made as the host makes them for a reward model: prompt and completion in one, a conversation by the chat
    template, padded on the right. The logit is read in float32, in eval mode and without gradient, on whatever device
    the model stands.

    Args:
        model: a name or folder, or a model of `AutoModelForSequenceClassification` with `num_labels=1`.
        tokenizer: of the model; loaded from where the model came from when left out.
        batch_size: texts at a time.

    Raises:
        ValueError: one line: a model with more than one logit.
    """

    def __init__(self, model: str | nn.Module, tokenizer: Any = None, *, batch_size: int = 16) -> None:
        loaded: Any = model
        if isinstance(model, str):
            loaded = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).to(_processes().device)
        config = getattr(loaded, "config", None)
        if not isinstance(loaded, nn.Module) or config is None:
            refuse("model", "a name, or a sequence classifier of transformers", type(model).__name__)
        if config.num_labels != 1:
            refuse("model", "a sequence classifier with one logit (num_labels=1)", f"{config.num_labels} logits")
        self.model: Any = loaded
        self.tokenizer: Any = AutoTokenizer.from_pretrained(config._name_or_path) if tokenizer is None else tokenizer
        self.batch_size = positive_integer("batch_size", batch_size)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # The classifiers of causal models read the last token that is not padding.
        config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.made_by = str(config._name_or_path) or type(loaded).__name__
        """What a folder of rewards says of the model."""
        self.__name__ = self.made_by.rstrip("/").split("/")[-1]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float]:
        """The logit of each prompt with its completion."""
        texts = [self._text(prompt, answer) for prompt, answer in zip(prompts, completions, strict=True)]
        found: list[float] = []
        with evaluating(self.model):
            for start in range(0, len(texts), self.batch_size):
                batch = self.tokenizer(
                    text=texts[start : start + self.batch_size],
                    return_tensors="pt",
                    padding=True,
                    padding_side="right",
                    add_special_tokens=False,
                )
                logits = self.model(**batch.to(next(self.model.parameters()).device)).logits
                found += logits[:, 0].float().tolist()
        return found

    def __repr__(self) -> str:
        return f"RewardModel({self.__name__})"

    def _text(self, prompt: Any, completion: Completion) -> str:
        if is_conversational({"prompt": prompt}):
            return apply_chat_template({"messages": [*prompt, *completion]}, self.tokenizer)["text"]
        return prompt + completion


class LogSigmoidReward(LogSigmoidOfFunction):
    """`log sigmoid(scale (r - r_ref))` of a reward function or a reward model, as a reward function.

    The columns `r_ref`, or `ref_mean` and `ref_std`, of the data set are read when no reference is given. Logged beside
    the host's own figures: `<name>/reward` and `<name>/good`. Combine several by `AllOf`, `AnyOf`, `AtLeast`, `Not`, or
    list them in `reward_funcs`: the host's sum of them is `AllOf`, its `reward_weights` the exponents.

    Warns, at the first call by a trainer, where the trainer's configuration would undo the transform; see
    `scaling_problem`.

    Args:
        reward: a reward function, or the name or model of a sequence classifier with one logit.
        tokenizer: of the model, where it is one.
        reference, quantile, scale, name: see `scorecraft.preference.reward_transform.LogSigmoidReward`.

    Source: arXiv 2402.00742.
    """

    def __init__(
        self,
        reward: Reward | str | nn.Module,
        *,
        tokenizer: Any = None,
        reference: float | str | Reference | None = None,
        quantile: float | None = None,
        scale: float = 1.0,
        name: str | None = None,
    ) -> None:
        function = as_reward(reward, tokenizer)
        super().__init__(function, reference=reference, quantile=quantile, scale=scale, name=name)
        self._looked = False

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any) -> Judged:
        """See the base class."""
        # Rewards are not told who calls them, but how to log is a method of the trainer.
        trainer = getattr(columns.get("log_metric"), "__self__", None)
        if trainer is not None and not self._looked:
            self._looked = True
            if (problem := scaling_problem(getattr(trainer, "args", None))) is not None:
                warnings.warn(problem, stacklevel=2)
        return super().judge(prompts, completions, **columns)


class PolicySampler:
    """`sample(prompts, count)` of a causal language model, as the host's trainers sample completions.

    Every prompt is sampled by itself, all its answers at once, with a seed that follows from the prompt: the answers do
    not depend on what was sampled before, so that a run that was stopped and goes on has those of one that was not.

    Args:
        model: a name or folder, or a causal language model, which stays on its device. The base policy: not the one in
            training.
        tokenizer: of the model; loaded from where the model came from when left out.
        max_completion_length: most tokens of an answer.
        temperature: above 0; give that of the training.
        seed: of the answers.
    """

    def __init__(
        self,
        model: str | nn.Module,
        tokenizer: Any = None,
        *,
        max_completion_length: int = 256,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        loaded: Any = model
        if isinstance(model, str):
            loaded = AutoModelForCausalLM.from_pretrained(model)
            loaded.to(_processes().device)
        if not hasattr(loaded, "generate"):
            refuse("model", "a name, or a causal language model of transformers", type(model).__name__)
        self.model: Any = loaded
        name = loaded.config._name_or_path
        self.tokenizer: Any = AutoTokenizer.from_pretrained(name) if tokenizer is None else tokenizer
        self.max_completion_length = positive_integer("max_completion_length", max_completion_length)
        self.temperature = positive("temperature", temperature)
        self.seed = natural("seed", seed)
        self.made_by = {
            "model": name,
            "max_completion_length": max_completion_length,
            "temperature": self.temperature,
            "seed": seed,
        }
        """What a folder of rewards says of the answers."""

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], count: int) -> list[list[Completion]]:
        """`count` answers to each prompt: texts, or lists of an assistant's message."""
        device = self.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(self.model):
            return [self._answers(prompt, count, device) for prompt in prompts]

    def _answers(self, prompt: Prompt, count: int, device: torch.device) -> list[Completion]:
        conversation = is_conversational({"prompt": prompt})
        text = apply_chat_template({"prompt": prompt}, self.tokenizer)["prompt"] if conversation else prompt
        # A chat template writes its special tokens itself.
        given = self.tokenizer(text, return_tensors="pt", add_special_tokens=not conversation).to(device)
        torch.manual_seed(int(prompt_key([self.seed, prompt])[:15], 16))
        pad = self.tokenizer.pad_token_id
        tokens = self.model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            num_return_sequences=count,
            max_new_tokens=self.max_completion_length,
            pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
            do_sample=True,
            temperature=self.temperature,
            # The host samples from the whole distribution, whatever the model's own configuration cuts away.
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
        )[:, given["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [[{"role": "assistant", "content": one}] for one in texts] if conversation else texts


def as_reward(reward: Reward | str | nn.Module, tokenizer: Any = None) -> Reward:
    """A reward function as it is, a reward model as a `RewardModel`."""
    if isinstance(reward, (str, nn.Module)):
        return RewardModel(reward, tokenizer)
    if tokenizer is not None:
        refuse("tokenizer", "None beside a reward function", type(tokenizer).__name__)
    return reward


def add_reference_rewards(
    dataset: AnyDataset,
    sample: Sample,
    rewards: Reward | str | nn.Module | Mapping[str, Reward | str | nn.Module],
    count: int = 16,
    *,
    quantile: float = QUANTILE,
    estimator: Estimator = "empirical",
    ddof: int = 0,
    columns: Sequence[str] = (),
    folder: str | Path | None = None,
    made_by: str | Mapping[str, Any] | None = None,
    part: int = 16,
) -> AnyDataset:
    """A data set with the reference reward of every prompt: `count` answers of the base policy, scored once.

    Adds `r_ref`, `ref_mean` and `ref_std`, or `r_ref_<name>` and so on where the rewards have names. Runs through the
    host's `map`, with its progress bar; a stream is worked off as it is read. Equal prompts are sampled once.

    With a `folder` the rewards of all answers are kept there, part by part: a run that was stopped goes on where it
    was, another quantile costs no new answer, and a folder of another policy, number of answers or rewards is refused.
    Several processes share the prompts among them, and then all read the folder.

    Args:
        dataset: with a column `prompt`, texts or conversations.
        sample: a `PolicySampler`, or `sample(prompts, count)`: for each prompt `count` completions of the base policy,
            in the form in which the trainer gives them to rewards (a text, or a list with the assistant's message).
        rewards: one, or several by name: reward functions or reward models.
        count: answers per prompt, 8 to 64.
        quantile, estimator, ddof: see `scorecraft.preference.reward_transform.reference_reward`.
        columns: names of the columns that the rewards read; a prompt with other values in them is another prompt.
        folder: where the rewards are kept; needed in several processes, where all of them see it.
        made_by: what produces the answers, such as policy and temperature; a `PolicySampler` tells by itself.
        part: prompts sampled, scored and kept at a time.

    Returns:
        The data set. Where a reward applies to none of a prompt's answers its columns hold None.

    Raises:
        ValueError: one line: no column `prompt`, columns that are there already, a folder of something else, answers or
            rewards of the wrong number, rewards that are not finite.

    Source: arXiv 2402.00742, the quantile of the base policy's rewards.
    """
    named = isinstance(rewards, Mapping)
    given: Mapping[str, Any] = rewards if isinstance(rewards, Mapping) else {"reward": rewards}
    if not given:
        refuse("rewards", "at least one reward", "none")
    functions = {name: as_reward(reward) for name, reward in given.items()}
    positive_integer("count", count)
    reference_reward(torch.zeros(1), quantile=quantile, estimator=estimator)
    made_by = getattr(sample, "made_by", None) if made_by is None else made_by
    if folder is not None and not made_by:
        refuse("made_by", "what produces the answers, such as policy and temperature, beside a folder", made_by)
    processes = _processes()
    if processes.num_processes > 1 and (folder is None or isinstance(dataset, (IterableDataset, IterableDatasetDict))):
        refuse("folder", "a folder, and a data set that is no stream, in several processes", folder)
    what = {
        "policy": made_by,
        "samples": count,
        "rewards": {name: getattr(one, "made_by", name_of(one)) for name, one in functions.items()},
        "columns": sorted(columns),
    }
    added = {
        name: tuple(f"{kind}_{name}" if named else kind for kind in ("r_ref", "ref_mean", "ref_std"))
        for name in functions
    }
    read = tuple(columns)
    store = RewardStore()

    def with_references(batch: Mapping[str, list[Any]]) -> dict[str, list[float | None]]:
        prompts = batch["prompt"]
        told = {name: batch[name] for name in read}
        keys = keyed_prompts(prompts, told)
        fill(store, keys, sampled_rewards(prompts, sample, functions, count, told), part=part)
        found: dict[str, list[float | None]] = {column: [] for three in added.values() for column in three}
        for key in keys:
            for name, three in added.items():
                values: Sequence[float | None] = (None, None, None)
                if name in store[key]:
                    samples = torch.tensor(store[key][name], dtype=torch.float64)
                    moments = sample_moments(samples, ddof=ddof)
                    reference = reference_reward(samples, quantile=quantile, estimator=estimator, ddof=ddof)
                    values = reference.item(), moments.mean.item(), moments.std.item()
                for column, value in zip(three, values, strict=True):
                    found[column].append(value)
        return found

    names = [one for three in added.values() for one in three]
    if processes.num_processes > 1:
        store = RewardStore(folder, made_by=what)
        _mapped(_share(dataset, processes), with_references, names, read, part)
        processes.wait_for_everyone()
    store = RewardStore(folder, made_by=what)
    return _mapped(dataset, with_references, names, read, part)


def _share(dataset: AnyDataset, processes: PartialState) -> AnyDataset:
    """The rows of this process."""
    if isinstance(dataset, DatasetDict):
        return DatasetDict({split: _share(rows, processes) for split, rows in dataset.items()})
    return dataset.shard(processes.num_processes, processes.process_index) if isinstance(dataset, Dataset) else dataset


def _processes() -> PartialState:
    """The processes of this training, on whatever device."""
    return PartialState(cpu=not torch.accelerator.is_available())


def _mapped(
    dataset: AnyDataset, function: Callable[..., Any], added: list[str], read: tuple[str, ...], part: int
) -> AnyDataset:
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        return type(dataset)(
            {split: _mapped(rows, function, added, read, part) for split, rows in dataset.items()}  # type: ignore[arg-type]
        )
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(f"argument `dataset`: expected a datasets.Dataset, got {type(dataset).__name__}")
    there = dataset.column_names
    if there is not None:
        if missing := {"prompt", *read} - set(there):
            refuse("dataset", f"the columns {', '.join(sorted({'prompt', *read}))}", f"none of {sorted(missing)}")
        if again := set(added) & set(there):
            refuse("dataset", "a data set without the columns that are added", ", ".join(sorted(again)))
    features = copy.deepcopy(dataset.features)
    if features is not None:  # said beforehand, as a first part without any value would leave the type open
        features.update({column: Value("float64") for column in added})
    if isinstance(dataset, IterableDataset):
        return dataset.map(function, batched=True, batch_size=part, features=features)
    return dataset.map(
        function,
        batched=True,
        batch_size=part,
        features=features,
        load_from_cache_file=False,
        keep_in_memory=True,
        new_fingerprint=uuid.uuid4().hex,  # what makes the values cannot be hashed; they are kept in the folder
        desc="Reference rewards",
    )


def scaling_problem(config: Any) -> str | None:
    """What in a trainer's configuration would undo the log-sigmoid, and what to set instead; None where nothing does.

    Dividing by the standard deviation of a group gives every group the same spread: the differences within a group
    whose answers are all good, which the transform has made small on purpose, are blown up again.

    Args:
        config: `trl.GRPOConfig` or `trl.RLOOConfig`.
    """
    if getattr(config, "multi_objective_aggregation", None) == "normalize_then_sum":
        return (
            'multi_objective_aggregation="normalize_then_sum" divides every reward by its spread within a group, which'
            ' undoes the log-sigmoid: use "sum_then_normalize" with scale_rewards="none"'
        )
    if getattr(config, "scale_rewards", None) == "group":
        return (
            'scale_rewards="group" divides rewards by their spread within a group, which undoes the log-sigmoid: use'
            ' scale_rewards="none" or "batch"'
        )
    return None
