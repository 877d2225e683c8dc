"""TRL: R3 and its factors as reward functions of `GRPOTrainer` and `RLOOTrainer`, and whether a strong reward follows.

    from trl import GRPOConfig, GRPOTrainer
    from scorecraft.integrations.trl.r3_rewards import R3Reward, ReverseRewardCallback, TextEncoder

    reward = R3Reward(TextEncoder("facebook/contriever"))     # reads the columns `reference` and `query_type`
    trainer = GRPOTrainer("Qwen/Qwen3-0.6B", reward_funcs=reward, train_dataset=dataset, args=GRPOConfig("out"))
    trainer.add_callback(ReverseRewardCallback(trainer, held_out, reward, "my/strong-reward-model"))

With another encoder than Contriever say what its relevance is like: `calibration=cosine()` for unit vectors, else
`calibrate(encode, responses, references)`. The factors by themselves, `RelevanceReward`, `LengthIncentive` and
`RepetitionPenalty`, are added by the host where several are listed; R3 multiplies them.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scorecraft.core.checks import describe, positive_integer, refuse
from scorecraft.integrations.evaluation_mode import evaluating
from scorecraft.integrations.optional import require
from scorecraft.integrations.trl.rewards import PolicySampler, as_reward
from scorecraft.preference.r3 import (
    CheckpointRewards,
    LengthIncentive,
    R3Reward,
    R3Scorer,
    RelevanceReward,
    RepetitionPenalty,
    calibrate,
    contriever,
    cosine,
    mean_pool,
)
from scorecraft.preference.reward_transform.rewards import Completion, Reward, call_reward

require("trl", "rlhf")

from transformers import TrainerCallback  # noqa: E402

__all__ = [
    "CheckpointRewards",
    "LengthIncentive",
    "R3Reward",
    "R3Scorer",
    "RelevanceReward",
    "RepetitionPenalty",
    "ReverseRewardCallback",
    "TextEncoder",
    "calibrate",
    "contriever",
    "cosine",
]


class TextEncoder:
    """A model as a function from texts to embeddings `[n, d]`, for `R3Reward`: in eval mode, without gradient.

        R3Reward(TextEncoder("facebook/contriever"))
        R3Reward(TextEncoder("sentence-transformers/all-MiniLM-L6-v2"), calibration=cosine())
        R3Reward(TextEncoder(AutoModel.from_pretrained(...), AutoTokenizer.from_pretrained(...)))

    A model of transformers is pooled by the mean over its tokens, in float32. Texts that are too long lose their
    beginning, as in the released code; a `SentenceTransformer` that is given embeds as it is set up.

    Args:
        model: a name, which sentence-transformers loads; a `SentenceTransformer`; or a model of transformers.
        tokenizer: of a model of transformers.
        batch_size: texts at a time.
        max_length: most tokens of a text for a model of transformers; the tokenizer's own where left out.

    Raises:
        ValueError: one line: neither of the three, or a tokenizer that is missing or not wanted.
    """

    def __init__(
        self,
        model: str | nn.Module,
        tokenizer: Any = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        self.model: Any = model
        self.batch_size = positive_integer("batch_size", batch_size)
        self.max_length = None if max_length is None else positive_integer("max_length", max_length)
        if isinstance(model, str):
            self.model = require("sentence_transformers", "text").SentenceTransformer(model)
            self.model.tokenizer.truncation_side = "left"
        if not isinstance(self.model, nn.Module):
            refuse("model", "a name, a SentenceTransformer, or a model of transformers", describe(model))
        host = sys.modules.get("sentence_transformers")
        self._is_sentence_transformer = host is not None and isinstance(self.model, host.SentenceTransformer)
        if self._is_sentence_transformer:
            for name, value in (("tokenizer", tokenizer), ("max_length", max_length)):
                if value is not None:
                    refuse(name, "None beside a SentenceTransformer, which has its own", type(value).__name__)
        else:
            if tokenizer is None:
                refuse("tokenizer", "the tokenizer of a model of transformers", "None")
            self.tokenizer: Any = copy.deepcopy(tokenizer)
            self.tokenizer.truncation_side = "left"

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """The embeddings, in float32 on the CPU."""
        with evaluating(self.model):
            if self._is_sentence_transformer:
                options = {"convert_to_tensor": True, "show_progress_bar": False}
                return self.model.encode(list(texts), batch_size=self.batch_size, **options).float().cpu()
            parts = range(0, len(texts), self.batch_size)
            return torch.cat([self._pooled(list(texts[start : start + self.batch_size])) for start in parts])

    def _pooled(self, texts: list[str]) -> Float[Tensor, "b d"]:
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=self.max_length)
        batch = batch.to(next(self.model.parameters()).device)
        return mean_pool(self.model(**batch).last_hidden_state, batch["attention_mask"]).float().cpu()


class ReverseRewardCallback(TrainerCallback):
    """Does a strong reward rise along with the one that is trained with? Measured on rollouts every so many steps.

    Logged: `eval_r3/proxy` and `eval_r3/gold`, the mean rewards of the completions to which both apply, and from the
    second measurement on `eval_r3/spearman`, their rank correlation over the checkpoints so far, where both vary.
    `callback.checkpoints` holds them all.

    Args:
        trainer: whose `log` is used; then `trainer.add_callback(callback)`.
        prompts: held-out ones, texts or conversations.
        proxy: the reward that is trained with, a reward function; `R3Reward` without normalisation.
        gold: a strong reward, a reward function, or the name or model of a sequence classifier with one logit.
        sample: `sample(model, prompts)`: a completion for each prompt by the model as it is. Left out, one is sampled
            with the trainer's temperature and length, with the same random numbers at every measurement.
        every: steps between measurements; the first is before training.
        columns: passed on to both rewards, one value per prompt.
        path: of a file that keeps the measurements, so that a continued training goes on with them. What it holds of
            the step that training begins at, and of later ones, is measured anew.

    Raises:
        ValueError: one line: no prompts, columns of another length, a normalised proxy; when measuring, completions or
            rewards of another number, rewards that are not finite, or that nowhere both apply.

    Source: arXiv 2402.03469, reverse reward engineering.
    """

    def __init__(
        self,
        trainer: Any,
        prompts: Sequence[Any],
        proxy: Reward,
        gold: Reward | str | nn.Module,
        *,
        sample: Callable[[Any, list[Any]], Sequence[Completion]] | None = None,
        every: int = 100,
        columns: Mapping[str, Sequence[Any]] | None = None,
        path: str | Path | None = None,
    ) -> None:
        if not len(prompts):
            refuse("prompts", "at least one prompt", "none")
        if isinstance(proxy, R3Reward) and proxy.normalisation != "none":
            expected = "a reward without running moments, which measuring would move, such as R3Reward(proxy.scorer)"
            refuse("proxy", expected, f"normalisation={proxy.normalisation!r}")
        self.trainer = trainer
        self.prompts = list(prompts)
        self.sample = self._sample if sample is None else sample
        self.proxy = proxy
        self.gold = as_reward(gold)
        self.every = positive_integer("every", every)
        self.columns = {name: list(values) for name, values in (columns or {}).items()}
        for name, values in self.columns.items():
            if len(values) != len(self.prompts):
                refuse("columns", f"{len(self.prompts)} values of `{name}`, one per prompt", len(values))
        self.checkpoints = CheckpointRewards(path)
        if not trainer.is_world_process_zero():
            self.checkpoints.path = None  # every process measures, one writes

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model that training begins with."""
        self.checkpoints.forget(state.global_step)
        self._measure(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure every so many steps."""
        if state.global_step % self.every == 0:
            self._measure(state, control)

    def _measure(self, state: Any, control: Any) -> None:
        model = self.trainer.model
        with evaluating(model):  # in training mode the host would log, and forget, its own averages
            completions = self.sample(model, self.prompts)
            if len(completions) != len(self.prompts):
                refuse("sample", f"{len(self.prompts)} completions, one per prompt", len(completions))
            self.checkpoints.record(state.global_step, *self._rewards(completions))
            figures = {"eval_r3/proxy": self.checkpoints.proxy[-1], "eval_r3/gold": self.checkpoints.gold[-1]}
            if len(self.checkpoints) > 1 and not math.isnan(found := self.checkpoints.monotonicity().spearman):
                figures["eval_r3/spearman"] = found
            wanted = control.should_log
            self.trainer.log(figures)
            control.should_log = wanted  # which the host takes as done by any log

    def _sample(self, model: Any, prompts: list[Any]) -> list[Completion]:
        args = self.trainer.args
        sampler = PolicySampler(
            model,
            self.trainer.processing_class,
            max_completion_length=args.max_completion_length,
            temperature=args.temperature,
        )
        return [answer for (answer,) in sampler(prompts, 1)]

    def _rewards(self, completions: Sequence[Completion]) -> tuple[list[float], list[float]]:
        """Of the completions to which both apply."""
        proxy, gold = (
            call_reward(reward, self.prompts, completions, self.columns) for reward in (self.proxy, self.gold)
        )
        both = [(ours, theirs) for ours, theirs in zip(proxy, gold, strict=True)
                if ours is not None and theirs is not None]  # fmt: skip
        if not both:
            refuse("gold", "a completion to which proxy and gold reward both apply", "none")
        return [ours for ours, _ in both], [theirs for _, theirs in both]
