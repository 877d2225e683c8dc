"""Reward functions in the form that trainers call: `(prompts, completions, **columns) -> list of floats and Nones`.

    helpful = LogSigmoidReward(helpfulness, reference=0.4)
    harmless = LogSigmoidReward(harmlessness, reference=AnswerReference(harmlessness, "I can't answer that."))
    AllOf([helpful, harmless])(prompts, completions)

None stands for "does not apply", in what is wrapped and in what comes out. Everything here is arithmetic on lists of
floats, in float64, around reward functions that may be slow.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scorecraft.core.checks import describe, finite, natural, positive, positive_integer, refuse
from scorecraft.preference.reward_transform.learned import PromptReference
from scorecraft.preference.reward_transform.logic import Judgement, all_of, any_of, at_least, judged, negated
from scorecraft.preference.reward_transform.policy import best_candidate
from scorecraft.preference.reward_transform.references import (
    QUANTILE,
    Estimator,
    gaussian_quantile,
    reference_reward,
)
from scorecraft.preference.reward_transform.store import Prompt, RewardStore, fill

Completion: TypeAlias = Any
"""A text, or a list of messages."""
Reward: TypeAlias = Callable[..., Sequence[float | None]]
"""`reward(prompts, completions, **columns)`: a number for each completion, None where it does not apply."""
Reference: TypeAlias = Callable[..., Sequence[float | None]]
"""`reference(prompts, **columns)`: `r_ref` for each prompt, None where the reward does not apply."""
Sample: TypeAlias = Callable[[list[Prompt], int], Sequence[Sequence[Completion]]]
"""`sample(prompts, count)`: for each prompt `count` answers of the base policy."""


class Judged(NamedTuple):
    """Of each completion."""

    judgement: Judgement
    applies: Bool[Tensor, " b"]


class LogicReward(ABC):
    """A reward that is the log-probability of being good, so that such can be combined."""

    __name__: str
    """What trainers log it under."""

    @abstractmethod
    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any) -> Judged:
        """The log-probabilities of good and not good of each completion, float64 on the CPU."""

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """`log P(good)` of each completion, at most 0; None where nothing applies."""
        found = self.judge(prompts, completions, **columns)
        return _with_none(found.judgement.good, found.applies)

    def __repr__(self) -> str:
        return self.__name__


class LogSigmoidReward(LogicReward):
    """`log sigmoid(scale (r - r_ref))` of a reward function: the log-probability of beating the reference.

    Logged where the trainer offers `log_metric`: `<name>/reward`, the mean of the raw reward, and `<name>/good`, the
    mean probability of being good.

    Args:
        reward: `(prompts, completions, **columns) -> floats or Nones`, also asynchronous. Log-odds of a Bradley-Terry
            model, neither normalised nor clipped.
        reference: a number; the name of a column; a function of `(prompts, **columns)`, such as the classes here; or
            None for the columns `r_ref`, else `ref_mean` and `ref_std`.
        quantile: with None as reference, of the Gaussian with the columns' moments; given one, these are read and
            `r_ref` is not. Left out it is 0.85.
        scale: of the log-odds, above 0.
        name: of the reward; the function's own where left out.

    Raises:
        ValueError: when called, in one line: rewards that are NaN or infinite or of another number than completions,
            or a reference that is not there.

    Source: arXiv 2402.00742.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        reference: float | str | Reference | None = None,
        quantile: float | None = None,
        scale: float = 1.0,
        name: str | None = None,
    ) -> None:
        if isinstance(reward, nn.Module) or not callable(reward):
            expected = "a function of (prompts, completions, **columns) (a model: see scorecraft.integrations.trl)"
            refuse("reward", expected, type(reward).__name__)
        if quantile is not None:
            gaussian_quantile(0.0, 1.0, quantile)
            if reference is not None:
                refuse("quantile", "None beside a reference, which has its own", quantile)
        if isinstance(reference, (int, float)):
            finite("reference", reference)
        elif reference is not None and not isinstance(reference, str) and not callable(reference):
            refuse("reference", "a number, the name of a column, a function or None", describe(reference))
        self.reward = reward
        self.reference = reference
        self.quantile = quantile
        self.scale = positive("scale", scale)
        self.name = name_of(reward) if name is None else name
        self.__name__ = f"log_sigmoid({self.name})"

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any) -> Judged:
        """See the base class."""
        rewards = call_reward(self.reward, prompts, completions, columns, name=self.name)
        references = self._references(prompts, columns)
        raw, scored = _with_mask(rewards)
        reference, referred = _with_mask(references)
        applies = scored & referred
        found = Judged(judged(raw, reference, scale=self.scale, where=applies), applies)
        log = columns.get("log_metric")
        if log is not None and applies.any():
            log(f"{self.name}/reward", raw[applies].mean().item())
            log(f"{self.name}/good", found.judgement.good[applies].exp().mean().item())
        return found

    def _references(self, prompts: Sequence[Prompt], columns: Mapping[str, Any]) -> list[float | None]:
        reference = self.reference
        if isinstance(reference, (int, float)):
            return [float(reference)] * len(prompts)
        if callable(reference):
            values = reference(prompts, **columns)
        elif reference is not None:
            if reference not in columns:
                refuse("reference", f"a column `{reference}`", f"the columns {_names(columns)}")
            values = columns[reference]
        elif "r_ref" in columns and self.quantile is None:
            values = columns["r_ref"]
        elif "ref_mean" in columns and "ref_std" in columns:
            quantile = QUANTILE if self.quantile is None else self.quantile
            means, stds = columns["ref_mean"], columns["ref_std"]
            if len(means) != len(stds):
                refuse("reference", f"as many values of `ref_std` as of `ref_mean`, {len(means)}", len(stds))
            values = [
                None if mean is None or std is None else gaussian_quantile(float(mean), float(std), quantile).item()
                for mean, std in zip(means, stds, strict=True)
            ]
        else:
            wanted = "columns `ref_mean` and `ref_std`" + ("" if self.quantile is not None else ", or `r_ref`")
            refuse("reference", f"a reference, or the {wanted}", f"the columns {_names(columns)}")
        return _checked("reference", values, len(prompts), f"the reference of `{self.name}`")


class _Combined(LogicReward):
    """Several rewards about the same completions."""

    def __init__(self, rewards: Sequence[LogicReward]) -> None:
        self.rewards = list(rewards)
        if not self.rewards:
            refuse("rewards", "at least one reward", "none")
        for reward in self.rewards:
            if not isinstance(reward, LogicReward):
                expected = "log-probabilities of being good: wrap others in LogSigmoidReward"
                refuse("rewards", expected, name_of(reward))
        self.__name__ = f"{type(self).__name__}({', '.join(reward.__name__ for reward in self.rewards)})"

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any) -> Judged:
        """See the base class."""
        found = [reward.judge(prompts, completions, **columns) for reward in self.rewards]
        good, bad = (torch.stack([one.judgement[part] for one in found], dim=1) for part in (0, 1))
        applies = torch.stack([one.applies for one in found], dim=1)
        return Judged(self._combine(Judgement(good, bad), applies), applies.any(dim=1))

    @abstractmethod
    def _combine(self, judgement: Judgement, applies: Bool[Tensor, "b n"]) -> Judgement: ...


class AllOf(_Combined):
    """Good in every property: the sum of the rewards, those left out that do not apply.

    Args:
        rewards: `LogSigmoidReward` and combinations of such.
        weights: exponents of the probabilities, at least 0; all 1 where left out.
    """

    def __init__(self, rewards: Sequence[LogicReward], *, weights: Sequence[float] | None = None) -> None:
        super().__init__(rewards)
        self.weights = None if weights is None else torch.tensor(list(weights), dtype=torch.float64)
        if self.weights is not None and (self.weights.shape != (len(self.rewards),) or not (self.weights >= 0).all()):
            refuse("weights", f"{len(self.rewards)} numbers >= 0, one per reward", list(weights or []))

    def _combine(self, judgement: Judgement, applies: Bool[Tensor, "b n"]) -> Judgement:
        return all_of(judgement, weights=self.weights, where=applies)


class AnyOf(_Combined):
    """Good in at least one property, of those that apply.

    Args:
        rewards: `LogSigmoidReward` and combinations of such.
    """

    def _combine(self, judgement: Judgement, applies: Bool[Tensor, "b n"]) -> Judgement:
        return any_of(judgement, where=applies)


class AtLeast(_Combined):
    """Good in at least `count` properties, or in all that apply where fewer do.

    Args:
        count: from 1 to the number of rewards.
        rewards: `LogSigmoidReward` and combinations of such.
    """

    def __init__(self, count: int, rewards: Sequence[LogicReward]) -> None:
        super().__init__(rewards)
        if not 1 <= natural("count", count) <= len(self.rewards):
            refuse("count", f"from 1 to {len(self.rewards)}, the number of rewards", count)
        self.count = count
        self.__name__ = f"AtLeast({count}, {', '.join(reward.__name__ for reward in self.rewards)})"

    def _combine(self, judgement: Judgement, applies: Bool[Tensor, "b n"]) -> Judgement:
        return at_least(judgement, self.count, where=applies)


class Not(LogicReward):
    """Good where another reward is not, `log sigmoid(r_ref - r)`.

    Args:
        reward: a `LogSigmoidReward` or a combination of such.
    """

    def __init__(self, reward: LogicReward) -> None:
        if not isinstance(reward, LogicReward):
            refuse("reward", "a log-probability of being good: wrap others in LogSigmoidReward", name_of(reward))
        self.reward = reward
        self.__name__ = f"Not({reward.__name__})"

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any) -> Judged:
        """See the base class."""
        found = self.reward.judge(prompts, completions, **columns)
        return Judged(negated(found.judgement), found.applies)


class StoredReference:
    """`r_ref` from the rewards in a store; nothing is computed.

    Args:
        store: a filled one, such as the folder of `add_reference_rewards`.
        name: of the reward in it.
        quantile, estimator: see `reference_reward`.
        columns: names of the columns that the reward reads; a prompt with other values in them is another prompt.

    Raises:
        ValueError: when called: a prompt that the store does not hold.
    """

    def __init__(
        self,
        store: RewardStore,
        name: str = "reward",
        *,
        quantile: float = QUANTILE,
        estimator: Estimator = "empirical",
        columns: Sequence[str] = (),
    ) -> None:
        reference_reward(torch.zeros(1), quantile=quantile, estimator=estimator)
        self.store = store
        self.name = name
        self.quantile = quantile
        self.estimator: Estimator = estimator
        self.columns = tuple(columns)

    def __call__(self, prompts: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """`r_ref` of each prompt, None where none of its answers had a reward."""
        read = columns_read(self.columns, columns)
        keys = keyed_prompts(prompts, read)
        self._fill(prompts, keys, read)
        return [self._of(self.store[key]) for key in keys]

    def _fill(self, prompts: Sequence[Prompt], keys: list[Prompt], read: dict[str, Sequence[Any]]) -> None:
        """Nothing to do: what is there is there."""

    def _of(self, rewards: Mapping[str, list[float]]) -> float | None:
        if self.name not in rewards:
            return None
        samples = torch.tensor(rewards[self.name], dtype=torch.float64)
        return reference_reward(samples, quantile=self.quantile, estimator=self.estimator).item()


class SampledReference(StoredReference):
    """`r_ref` as a quantile of the base policy's own rewards; a prompt is sampled when it is first met, and only then.

    Several processes that share the answers to a prompt need one reference: compute it beforehand then, and read it by
    `StoredReference` or from the data set.

    Args:
        reward: the same that is centred.
        sample: `sample(prompts, count)`, answers of the base policy, frozen as it is.
        count: answers per prompt, 8 to 64.
        quantile, estimator: see `reference_reward`.
        store: where the rewards are kept; in memory where left out.
        columns: names of the columns that the reward reads; a prompt with other values in them is another prompt.
        part: prompts sampled, scored and kept at a time.
    """

    def __init__(
        self,
        reward: Reward,
        sample: Sample,
        *,
        count: int = 16,
        quantile: float = QUANTILE,
        estimator: Estimator = "empirical",
        store: RewardStore | None = None,
        columns: Sequence[str] = (),
        part: int = 16,
    ) -> None:
        store = RewardStore() if store is None else store
        super().__init__(store, quantile=quantile, estimator=estimator, columns=columns)
        self.reward = reward
        self.sample = sample
        self.count = positive_integer("count", count)
        self.part = positive_integer("part", part)

    def _fill(self, prompts: Sequence[Prompt], keys: list[Prompt], read: dict[str, Sequence[Any]]) -> None:
        compute = sampled_rewards(prompts, self.sample, {self.name: self.reward}, self.count, read)
        fill(self.store, keys, compute, part=self.part)


class AnswerReference(StoredReference):
    """`r_ref = r(x, answer)`: the reward of one known answer, fixed or from a column.

        AnswerReference(harmlessness, "I can't answer that.")  # a refusal is the least that is acceptable
        AnswerReference(helpfulness, column="chosen")          # as good as the answer the policy was tuned on

    Args:
        reward: the same that is centred.
        answer: a text; in conversations it is the assistant's message.
        column: name of a column of answers, in place of one.
        store: where the rewards are kept; in memory where left out.
        columns: names of the columns that the reward reads.
    """

    def __init__(
        self,
        reward: Reward,
        answer: str | None = None,
        *,
        column: str | None = None,
        store: RewardStore | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        if (answer is None) == (column is None):
            refuse("answer", "an answer, or a column of them", "neither" if answer is None else "both")
        super().__init__(RewardStore() if store is None else store, columns=columns)
        self.reward = reward
        self.answer = answer
        self.column = column

    def __call__(self, prompts: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """`r_ref` of each prompt, None where the reward does not apply to its answer."""
        read = columns_read(self.columns, columns)
        if self.column is None:
            answers: Sequence[Any] = [self.answer] * len(prompts)
        else:
            answers = columns_read((self.column,), columns)[self.column]
        keys = keyed_prompts(prompts, {**read, "answer of reference": answers})

        def compute(places: list[int]) -> list[dict[str, list[float]]]:
            chosen = [prompts[place] for place in places]
            given = [as_completion(answers[place], prompts[place]) for place in places]
            told = {name: [values[place] for place in places] for name, values in read.items()}
            found = call_reward(self.reward, chosen, given, told)
            return [{} if value is None else {self.name: [value]} for value in found]

        fill(self.store, keys, compute, part=max(len(prompts), 1))
        return [self._of(self.store[key]) for key in keys]


class LearnedReference:
    """`r_ref` as a fitted head predicts it from the prompt's embedding; a prompt is embedded when it is first met.

    Args:
        head: a fitted `PromptReference`.
        encode: from texts to embeddings `[n, d]`; of a conversation, the contents of its messages by lines.
        store: where the predictions are kept; in memory where left out.
    """

    def __init__(
        self,
        head: PromptReference,
        encode: Callable[[list[str]], Float[Tensor, "n d"]],
        *,
        store: RewardStore | None = None,
    ) -> None:
        self.head = head
        self.encode = encode
        self.store = RewardStore() if store is None else store

    def __call__(self, prompts: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """`r_ref` of each prompt."""
        fill(self.store, prompts, lambda places: self._predict([prompts[place] for place in places]), part=256)
        return [self.store[prompt]["reference"][0] for prompt in prompts]

    @torch.no_grad()
    def _predict(self, prompts: list[Prompt]) -> list[dict[str, list[float]]]:
        predicted = self.head(self.encode([prompt_text(prompt) for prompt in prompts]))
        return [{"reference": [value]} for value in predicted.tolist()]


def best_of(
    reward: Reward,
    prompts: Sequence[Prompt],
    candidates: Sequence[Sequence[Completion]],
    **columns: Sequence[Any],
) -> list[int]:
    """For each prompt the candidate with the largest reward, the first of equals; those without a reward are left out.

    Args:
        reward: such as `AllOf([...])`.
        prompts: `n` of them.
        candidates: for each prompt any number of completions, at least one.
        columns: of the prompts, passed on to the reward.

    Raises:
        ValueError: a prompt without candidates, or none of whose candidates has a reward.
    """
    if len(candidates) != len(prompts):
        refuse("candidates", f"{len(prompts)} lists, one per prompt", len(candidates))
    counts = [len(one) for one in candidates]
    if 0 in counts:
        refuse("candidates", "at least one candidate per prompt", f"none at {counts.index(0)}")
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    repeated = {name: [values[row] for row in rows] for name, values in columns.items()}
    flat = [candidate for one in candidates for candidate in one]
    found = call_reward(reward, [prompts[row] for row in rows], flat, repeated)
    chosen, start = [], 0
    for row, count in enumerate(counts):
        values, there = _with_mask(found[start : start + count])
        if not there.any():
            refuse("reward", "a reward for some candidate of every prompt", f"none at {row}")
        chosen.append(int(best_candidate(values, there)))
        start += count
    return chosen


def sampled_rewards(
    prompts: Sequence[Prompt],
    sample: Sample,
    rewards: Mapping[str, Reward],
    count: int,
    columns: Mapping[str, Sequence[Any]],
) -> Callable[[list[int]], list[dict[str, list[float]]]]:
    """What `fill` calls: sample answers to some of the prompts and score them; a reward that never applies is left out.

    Args:
        prompts: all of them.
        sample: of the base policy.
        rewards: by name.
        count: answers per prompt.
        columns: passed on to the rewards, one value per prompt.
    """

    def compute(places: list[int]) -> list[dict[str, list[float]]]:
        chosen = [prompts[place] for place in places]
        answers = sample(chosen, count)
        if len(answers) != len(chosen) or any(len(one) != count for one in answers):
            got = f"{len(answers)} prompts with {sorted({len(one) for one in answers})} answers"
            refuse("sample", f"{count} answers to each of {len(chosen)} prompts", got)
        repeated = [prompt for prompt in chosen for _ in range(count)]
        told = {name: [values[place] for place in places for _ in range(count)] for name, values in columns.items()}
        flat = [answer for one in answers for answer in one]
        found: list[dict[str, list[float]]] = [{} for _ in chosen]
        for name, reward in rewards.items():
            values = call_reward(reward, repeated, flat, told, name=name)
            for row in range(len(chosen)):
                applying = [value for value in values[row * count : (row + 1) * count] if value is not None]
                if applying:
                    found[row][name] = applying
        return found

    return compute


def call_reward(
    reward: Reward,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    columns: Mapping[str, Any],
    *,
    name: str | None = None,
) -> list[float | None]:
    """The rewards of a function, seen to be one finite number or None for each completion.

    Raises:
        ValueError: in one line that names the function: NaN, infinity, or another number of rewards.
    """
    found: Any = reward(prompts=list(prompts), completions=list(completions), **columns)
    if inspect.isawaitable(found):
        found = _awaited(found)
    return _checked("reward", found, len(completions), f"`{name_of(reward) if name is None else name}`")


def columns_read(names: Sequence[str], columns: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Some of the columns.

    Raises:
        ValueError: one that is not there.
    """
    for name in names:
        if name not in columns:
            refuse("columns", f"a column `{name}`", f"the columns {_names(columns)}")
    return {name: columns[name] for name in names}


def keyed_prompts(prompts: Sequence[Prompt], columns: Mapping[str, Sequence[Any]]) -> list[Prompt]:
    """The prompts as a store knows them: with the values of the columns that a reward reads, if any."""
    if not columns:
        return list(prompts)
    return [
        {"prompt": prompt, "columns": {name: values[row] for name, values in columns.items()}}
        for row, prompt in enumerate(prompts)
    ]


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text: itself, or the contents of its messages by lines."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt if isinstance(message.get("content"), str))


def as_completion(answer: Completion, prompt: Prompt) -> Completion:
    """An answer in the form of the prompt: a text to a text, an assistant's message to a conversation."""
    if isinstance(answer, str) and not isinstance(prompt, str):
        return [{"role": "assistant", "content": answer}]
    return answer


def _checked(what: str, values: Any, count: int, source: str) -> list[float | None]:
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        refuse(what, f"a list of {count} numbers or Nones from {source}", type(values).__name__)
    values = list(values)
    if len(values) != count:
        refuse(what, f"{count} numbers or Nones from {source}, one per completion", len(values))
    found: list[float | None] = []
    for place, value in enumerate(values):
        if value is None:
            found.append(None)
            continue
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            number = None
        if number is None or isinstance(value, str):
            refuse(what, f"numbers or Nones from {source}", f"{describe(value)} at {place}")
        if not math.isfinite(number):
            refuse(what, f"finite numbers or Nones from {source}", f"{number} at {place}")
        found.append(number)
    return found


def _with_mask(values: Sequence[float | None]) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:
    there = torch.tensor([value is not None for value in values], dtype=torch.bool)
    return torch.tensor([0.0 if value is None else value for value in values], dtype=torch.float64), there


def _with_none(values: Float[Tensor, " b"], there: Bool[Tensor, " b"]) -> list[float | None]:
    return [value if known else None for value, known in zip(values.tolist(), there.tolist(), strict=True)]


def _awaited(found: Any) -> Any:
    """What an asynchronous reward returns, wherever this is called from: a loop of its own in a thread of its own."""

    async def wait() -> Any:
        return await found

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()


def name_of(thing: Any) -> str:
    """What a function is called, as trainers log it."""
    while hasattr(thing, "func"):  # functools.partial
        thing = thing.func
    return getattr(thing, "__name__", type(thing).__name__)


def _names(columns: Mapping[str, Any]) -> str:
    return ", ".join(name for name, value in columns.items() if isinstance(value, Sequence)) or "none"
