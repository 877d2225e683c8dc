"""TRL's GRPO and RLOO trainers with log-sigmoid rewards, on a tiny Llama built on the spot."""

from __future__ import annotations

import inspect
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import run_ranks

pytest.importorskip("trl")

from datasets import Dataset, DatasetDict
from tests.integrations.tiny_models import WORDS, save_tiny_llama, word_tokenizer
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import get_callable_name, is_async_callable

from scorecraft.integrations.trl.rewards import (
    AllOf,
    AnswerReference,
    LogSigmoidReward,
    Not,
    PolicySampler,
    RewardModel,
    RewardStore,
    SampledReference,
    StoredReference,
    add_reference_rewards,
    scaling_problem,
)
from scorecraft.preference.reward_transform import sample_quantile

TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
PROMPTS = ["w1 w2", "w3", "w4 w5 w6", "w3", "w7", "w8 w9"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def numbers(completion: Any) -> list[int]:
    return [int(word[1:]) for word in text_of(completion).split() if word.startswith("w")]


def low(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """The mean of the words' numbers, the smaller the better."""
    return [-sum(numbers(one)) / (10 * max(len(numbers(one)), 1)) for one in completions]


def even(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """How many of the words have even numbers; does not apply to answers without words."""
    return [sum(1.0 - number % 2 for number in numbers(one)) if numbers(one) else None for one in completions]


REWARDS: dict[str, Any] = {"low": low, "even": even}


def sampler(folder: Path, **options: Any) -> PolicySampler:
    return PolicySampler(str(folder), **{"max_completion_length": 4, **options})


def trainer(folder: Path, tmp_path: Path, reward: Any, data: Dataset, kind: Any = GRPOTrainer, **given: Any) -> Any:
    options: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 4,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": 1,
        "activation_checkpointing": False,
        "log_completions": False,
    }
    if kind is GRPOTrainer:
        options["scale_rewards"] = "none"
    config = GRPOConfig if kind is GRPOTrainer else RLOOConfig
    tokenizer = sampler(folder).tokenizer
    tokenizer.chat_template = TEMPLATE
    args = config(**(options | given.pop("options", {})))
    return kind(str(folder), reward_funcs=reward, args=args, train_dataset=data, processing_class=tokenizer, **given)


def logged(trained: Any, name: str) -> list[float]:
    return [entry[name] for entry in trained.state.log_history if name in entry]


def log_sigmoid(odds: float) -> float:
    return logsigmoid(torch.tensor(odds, dtype=torch.float64)).item()


class Dying:
    """A sampler that is stopped after some prompts."""

    def __init__(self, sample: PolicySampler, after: float = math.inf) -> None:
        self.sample = sample
        self.made_by = sample.made_by
        self.after = after
        self.asked: list[Any] = []

    def __call__(self, prompts: list[Any], count: int) -> list[list[Any]]:
        if len(self.asked) + len(prompts) > self.after:
            raise KeyboardInterrupt
        self.asked += prompts
        return self.sample(prompts, count)


def test_references_are_computed_once_stored_and_trained_with(folder: Path, tmp_path: Path) -> None:
    """From the base policy to a trained one, with an interruption, and a second quantile for nothing."""
    data = Dataset.from_dict({"prompt": PROMPTS})
    kept = tmp_path / "references"
    with pytest.raises(KeyboardInterrupt):
        add_reference_rewards(data, Dying(sampler(folder), after=3), REWARDS, 8, folder=kept, part=2)
    assert len(RewardStore(kept)) == 3  # of the first two parts, which have a prompt in common
    again = Dying(sampler(folder))
    told = add_reference_rewards(data, again, REWARDS, 8, folder=kept, part=2)
    assert again.asked == ["w7", "w8 w9"]
    whole = add_reference_rewards(data, sampler(folder), REWARDS, 8)
    assert told.to_dict() == whole.to_dict()
    assert told.column_names == [
        "prompt",
        *(f"{kind}_{name}" for name in REWARDS for kind in ("r_ref", "ref_mean", "ref_std")),
    ]

    # Nothing is left to compute, for this quantile or another.
    stored = RewardStore(kept)
    for quantile in (0.85, 0.5):
        read = add_reference_rewards(data, Dying(sampler(folder), after=0), REWARDS, 8, folder=kept, quantile=quantile)
        for row, prompt in zip(read, PROMPTS, strict=True):
            samples = torch.tensor(stored[prompt]["low"], dtype=torch.float64)
            assert len(samples) == 8
            assert row["r_ref_low"] == pytest.approx(sample_quantile(samples, quantile).item(), rel=1e-12)
            assert row["ref_mean_low"] == pytest.approx(samples.mean().item(), rel=1e-12)
            assert row["ref_std_low"] == pytest.approx(samples.std(correction=0).item(), rel=1e-9, abs=1e-12)

    good = AllOf([LogSigmoidReward(reward, reference=f"r_ref_{name}") for name, reward in REWARDS.items()])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        held = trainer(folder, tmp_path, good, told)
        before = torch.cat([one.detach().flatten().clone() for one in held.model.parameters()])
        held.train()
    assert (torch.cat([one.detach().flatten() for one in held.model.parameters()]) - before).abs().max() > 1e-4

    # What the host was told is the sum of log-sigmoids by hand, and its advantage the distance to the group's mean.
    references = {row["prompt"]: row for row in told}
    found = held._logs["rewards"]["AllOf(log_sigmoid(low), log_sigmoid(even))"]
    wanted = []
    for prompt, completion in zip(held._logs["prompt"], held._logs["completion"], strict=True):
        odds = [reward([prompt], [completion])[0] for reward in REWARDS.values()]
        refs = [references[prompt][f"r_ref_{name}"] for name in REWARDS]
        wanted.append(sum(log_sigmoid(r - ref) for r, ref in zip(odds, refs, strict=True) if r is not None))
    assert len(found) == 8  # the host keeps those of the last step
    assert list(found) == pytest.approx(wanted, abs=1e-5)
    groups = torch.tensor(wanted).view(-1, 4)
    torch.testing.assert_close(
        torch.tensor(list(held._logs["advantages"])).view(-1, 4), groups - groups.mean(dim=1, keepdim=True),
        rtol=0, atol=1e-5,
    )  # fmt: skip
    assert logged(held, "reward")[-1] == pytest.approx(sum(wanted) / 8, abs=1e-5)
    assert len(logged(held, "low/reward")) == len(logged(held, "even/good")) == 2
    raw = low([], list(held._logs["completion"]))
    assert logged(held, "low/reward")[-1] == pytest.approx(sum(raw) / 8, abs=1e-5)
    assert all(0 < value < 1 for value in logged(held, "low/good"))


def test_listed_in_the_host_it_is_the_weighted_sum(folder: Path, tmp_path: Path) -> None:
    """Also where one of them does not apply: the host leaves it out, as `AllOf` does."""
    data = Dataset.from_dict({"prompt": PROMPTS})

    def odd_only(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [float(sum(numbers(one)) % 5) if sum(numbers(one)) % 2 else None for one in completions]

    parts = [LogSigmoidReward(low, reference=-2.0), LogSigmoidReward(odd_only, reference=2.0)]
    together = trainer(folder, tmp_path, AllOf(parts, weights=[1.0, 0.5]), data)
    together.train()
    listed = trainer(folder, tmp_path, list(parts), data, options={"reward_weights": [1.0, 0.5]})
    listed.train()
    assert any(math.isnan(value) for value in listed._logs["rewards"]["log_sigmoid(odd_only)"])
    assert logged(listed, "reward") == pytest.approx(logged(together, "reward"), abs=1e-6)
    assert list(listed._logs["advantages"]) == pytest.approx(list(together._logs["advantages"]), abs=1e-5)
    torch.testing.assert_close(listed.model.state_dict(), together.model.state_dict(), rtol=0, atol=1e-5)


def conversations() -> Dataset:
    return Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": prompt}] for prompt in PROMPTS], "chosen": ["w0"] * len(PROMPTS)}
    )


class Patient:
    """An asynchronous reward."""

    async def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return low(prompts, completions)


def test_rloo_with_conversations(folder: Path, tmp_path: Path) -> None:
    tokenizer = sampler(folder).tokenizer
    tokenizer.chat_template = TEMPLATE
    sample = sampler(folder, tokenizer=tokenizer)
    data = add_reference_rewards(conversations(), sample, low, count=4)
    harmless = LogSigmoidReward(even, reference=AnswerReference(even, "w1 w2"))
    good = AllOf([
        LogSigmoidReward(Patient()),
        harmless,
        Not(LogSigmoidReward(low, reference=AnswerReference(low, column="chosen"))),
        LogSigmoidReward(low, reference=SampledReference(low, sample, count=2), name="lower"),
    ])  # fmt: skip
    held = trainer(folder, tmp_path, good, data, RLOOTrainer)
    held.train()
    references = {row["prompt"][0]["content"]: row["r_ref"] for row in data}
    prompt, completion = held._logs["prompt"][0], held._logs["completion"][0]
    assert [message["role"] for message in completion] == ["assistant"]
    (answers,) = sample([prompt], 2)
    lower = sample_quantile(torch.tensor(low([], answers), dtype=torch.float64)).item()
    raw, count = low([], [completion])[0], even([], [completion])[0]
    wanted = log_sigmoid(raw - references[prompt[0]["content"]]) + log_sigmoid(-raw) + log_sigmoid(raw - lower)
    wanted += 0.0 if count is None else log_sigmoid(count - 1.0)
    assert held._logs["rewards"][good.__name__][0] == pytest.approx(wanted, abs=1e-5)


# Group normalisation


def test_the_host_is_looked_at(folder: Path, tmp_path: Path) -> None:
    """Once, whether alone or combined; never where nothing is undone."""
    data = Dataset.from_dict({"prompt": PROMPTS})
    cases: list[tuple[Any, dict[str, Any], str | None]] = [
        (
            GRPOTrainer,
            {"scale_rewards": "group"},
            r'^scale_rewards="group" divides rewards by their spread within a group',
        ),
        (GRPOTrainer, {"scale_rewards": True}, r'^scale_rewards="group" divides'),
        (GRPOTrainer, {"multi_objective_aggregation": "normalize_then_sum"}, r"^multi_objective_aggregation="),
        (GRPOTrainer, {"scale_rewards": "batch"}, None),
        (GRPOTrainer, {"scale_rewards": False}, None),
        (RLOOTrainer, {}, None),
    ]
    for kind, options, line in cases:
        one = LogSigmoidReward(low, reference=-2.0)
        held = trainer(folder, tmp_path, AllOf([one, Not(one)]), data, kind, options={**options, "max_steps": 2})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            held.train()
        found = [str(one.message) for one in caught if "undoes the log-sigmoid" in str(one.message)]
        assert len(found) == (line is not None), (options, found)
        if line is not None:
            with pytest.warns(UserWarning, match=line):
                LogSigmoidReward(low, reference=0.0)(["w1"], ["w2"], log_metric=held._log_metric)
    assert scaling_problem(GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)) is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LogSigmoidReward(low, reference=0.0)(["w1"], ["w2"], log_metric=lambda name, value: None)


def test_what_group_normalisation_does_to_good_groups(folder: Path, tmp_path: Path) -> None:
    """All answers far above the reference: their differences are next to nothing, unless they are blown up."""
    data = Dataset.from_dict({"prompt": PROMPTS})
    spread = {}
    for scale in ("none", "batch", "group"):
        reward = LogSigmoidReward(low, reference="r_ref")
        # Of the two prompts in a batch one is easy, the other hard.
        mixed = data.select([0, 1]).add_column("r_ref", [-20.0, -2.0])
        held = trainer(folder, tmp_path, reward, mixed, options={"scale_rewards": scale, "max_steps": 1})
        if scale == "group":
            with pytest.warns(UserWarning, match="undoes the log-sigmoid"):
                held.train()
        else:
            held.train()
        rows = zip(held._logs["prompt"], held._logs["advantages"], strict=True)
        spread[scale] = max(abs(value) for prompt, value in rows if prompt == PROMPTS[0])
    assert spread["none"] < 1e-6
    assert spread["batch"] < 1e-4
    assert spread["group"] > 100 * spread["batch"]


# Rewards that are not as they should be


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([1.0], "argument `reward`: expected 8 numbers or Nones from `broken`, one per completion, got 1"),
        ([1.0] * 9, "argument `reward`: expected 8 numbers or Nones from `broken`, one per completion, got 9"),
        ([1.0] * 7 + [math.nan], "argument `reward`: expected finite numbers or Nones from `broken`, got nan at 7"),
        (None, "argument `reward`: expected a list of 8 numbers or Nones from `broken`, got NoneType"),
    ],
)
def test_one_clear_line_out_of_the_trainer(folder: Path, tmp_path: Path, values: Any, line: str) -> None:
    def broken(**columns: Any) -> Any:
        return values

    held = trainer(folder, tmp_path, LogSigmoidReward(broken, reference=0.0), Dataset.from_dict({"prompt": PROMPTS}))
    with pytest.raises(ValueError, match=r"^argument") as caught:
        held.train()
    assert str(caught.value) == line


def test_nowhere_applicable_is_the_hosts_none(folder: Path, tmp_path: Path) -> None:
    def never(completions: Any, **columns: Any) -> list[None]:
        return [None] * len(completions)

    held = trainer(folder, tmp_path, [LogSigmoidReward(never, reference=0.0), LogSigmoidReward(low, reference=-2.0)],
                   Dataset.from_dict({"prompt": PROMPTS}), options={"max_steps": 1})  # fmt: skip
    held.train()
    assert all(math.isnan(value) for value in held._logs["rewards"]["log_sigmoid(never)"])
    assert all(math.isfinite(value) for value in held._logs["advantages"])


# Reward models


def reward_model(folder: Path) -> Any:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 3, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, num_labels=1, pad_token_id=0, eos_token_id=len(WORDS) + 2, bos_token_id=None,
        initializer_range=0.5, attention_dropout=0.5,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "[EOS]"})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return LlamaForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("conversation", [False, True])
def test_a_reward_model_is_read_as_the_host_reads_it(folder: Path, tmp_path: Path, conversation: bool) -> None:
    place = tmp_path / "helpfulness"
    model = reward_model(place)
    ours = RewardModel(str(place), batch_size=3)
    assert get_callable_name(ours) == "helpfulness"
    add_reference_rewards(
        Dataset.from_dict({"prompt": ["w1 "]}), lengths, ours, 2, folder=tmp_path / "kept", made_by="l"
    )
    assert RewardStore(tmp_path / "kept").made_by["rewards"] == {"reward": str(place)}  # type: ignore[index]
    data = conversations() if conversation else Dataset.from_dict({"prompt": [prompt + " " for prompt in PROMPTS]})
    good = LogSigmoidReward(model, tokenizer=ours.tokenizer, reference=0.5)
    held = trainer(folder, tmp_path, [str(place), ours, good], data)
    held.reward_func_names[1] = "ours"
    held.train()
    theirs, found, utility = (torch.tensor(list(values)) for values in held._logs["rewards"].values())
    assert theirs.unique().numel() == 8
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(utility, logsigmoid(theirs - 0.5), rtol=1e-5, atol=1e-5)


def test_a_reward_model_in_training_mode_is_left_there_and_read_in_eval_mode(tmp_path: Path) -> None:
    model = reward_model(tmp_path / "helpfulness").train()
    ours = RewardModel(model)
    assert ours(["w1 "] * 4, ["w2 w3"] * 4) == pytest.approx([ours(["w1 "], ["w2 w3"])[0]] * 4, rel=1e-5)
    assert model.training
    assert repr(ours) == "RewardModel(helpfulness)"
    # A batch of several lengths is padded on the side that the model does not read.
    texts = ["w2", "w2 w3 w4", "w5 w6"]
    assert ours(["w1 "] * 3, texts) == pytest.approx([ours(["w1 "], [text])[0] for text in texts], rel=1e-5)


# The base policy


def test_answers_follow_from_the_prompt_alone(folder: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    sample = sampler(folder)
    first = sample(["w1 w2", "w3"], 4)
    assert torch.equal(torch.rand(3), wanted)  # of the training, which is left alone
    assert sample(["w3", "w1 w2"], 4) == first[::-1]
    assert first[0] != first[1]
    assert sampler(folder, seed=1)(["w3"], 4) != [first[1]]
    assert [len(one) for one in first] == [4, 4]
    assert all(0 <= len(text.split()) <= 4 for one in first for text in one)
    assert sample.made_by == {"model": str(folder), "max_completion_length": 4, "temperature": 1.0, "seed": 0}


def test_it_samples_from_the_whole_distribution(folder: Path) -> None:
    """As the host does, whatever a model's own configuration cuts away; by the frequencies of first words."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    model.generation_config.top_k = 1
    model.generation_config.top_p = 0.1
    tokenizer = sampler(folder).tokenizer
    for temperature in (1.0, 2.0):
        sample = PolicySampler(model, tokenizer, max_completion_length=1, temperature=temperature)
        (texts,) = sample(["w1 w2"], 4000)
        counts = torch.zeros(len(tokenizer))
        for text in texts:
            counts[tokenizer.convert_tokens_to_ids(text)] += 1 if text else 0
        with torch.no_grad():
            logits = model(**tokenizer("w1 w2", return_tensors="pt")).logits[0, -1]
        p = (logits / temperature).softmax(dim=0)
        shown = torch.tensor([not token.startswith("[") for token in tokenizer.convert_ids_to_tokens(range(len(p)))])
        assert (counts / 4000 - p)[shown].abs().max() < 0.03
    assert model.training is False


# Data sets


def lengths(prompts: list[Any], count: int) -> list[list[str]]:
    """Answers of 1 to `count` words."""
    return [[" ".join(["w2"] * (1 + number)) for number in range(count)] for _ in prompts]


def test_every_kind_of_data_set(tmp_path: Path) -> None:
    data = Dataset.from_dict({"prompt": PROMPTS, "other": list(range(6))})
    told = add_reference_rewards(data, lengths, even, 5)
    assert told["r_ref"] == pytest.approx([4.4] * 6)
    assert told["ref_mean"] == pytest.approx([3.0] * 6)
    assert told["ref_std"] == pytest.approx([math.sqrt(2)] * 6)
    assert told["other"][:] == list(range(6))
    gaussian = add_reference_rewards(data, lengths, even, 5, estimator="gaussian", ddof=1, quantile=0.5)
    assert gaussian["r_ref"] == pytest.approx([3.0] * 6)
    assert gaussian["ref_std"] == pytest.approx([math.sqrt(2.5)] * 6)
    split = add_reference_rewards(DatasetDict(train=data, test=data.select([0])), lengths, {"even": even}, 5)
    assert split["test"]["r_ref_even"] == pytest.approx([4.4])
    stream = add_reference_rewards(data.to_iterable_dataset(), lengths, even, 5)
    assert [row["r_ref"] for row in stream] == pytest.approx([4.4] * 6)
    assert stream.features is not None

    # A first part without any reward, and columns that a reward reads.
    def of_truth(completions: Any, truth: Any, **columns: Any) -> list[float | None]:
        return [None if wanted < 0 else float(wanted) for wanted in truth]

    asked = Dataset.from_dict({"prompt": ["w1"] * 4, "truth": [-1, -1, 3, 2]})
    found = add_reference_rewards(asked, lengths, of_truth, 2, columns=["truth"], part=2, folder=tmp_path, made_by="l")
    assert found["r_ref"][:] == [None, None, 3.0, 2.0]
    assert found.features["r_ref"].dtype == "float64"
    stored = StoredReference(RewardStore(tmp_path), columns=["truth"])
    assert stored(["w1", "w1"], truth=[-1, 2]) == [None, 2.0]


def test_refusals(folder: Path, tmp_path: Path) -> None:
    data = Dataset.from_dict({"prompt": PROMPTS})
    kept = tmp_path / "kept"
    add_reference_rewards(data, lengths, even, 2, folder=kept, made_by="lengths")
    two = LlamaForSequenceClassification(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_labels=2,
                                                     num_hidden_layers=1, num_attention_heads=1))  # fmt: skip

    def add(rewards: Any = even, count: int = 2, rows: Any = data, sample: Any = lengths, **options: Any) -> None:
        add_reference_rewards(rows, sample, rewards, count, **options)

    earlier: dict[str, Any] = {"folder": kept, "made_by": "lengths"}
    short: Any = lambda completions, **columns: [1.0]  # noqa: E731
    calls: list[tuple[Callable[[], object], str]] = [
        (
            lambda: add(rows=data.rename_column("prompt", "question")),
            "argument `dataset`: expected the columns prompt, got none of ['prompt']",
        ),
        (
            lambda: add(columns=["truth"]),
            "argument `dataset`: expected the columns prompt, truth, got none of ['truth']",
        ),
        (
            lambda: add(rows=data.add_column("r_ref", [0.0] * 6)),
            "argument `dataset`: expected a data set without the columns that are added, got r_ref",
        ),
        (lambda: add({}), "argument `rewards`: expected at least one reward, got none"),
        (lambda: add(count=0), "argument `count`: expected an integer >= 1, got 0 (int)"),
        (lambda: add(quantile=2), "argument `quantile`: expected a number in [0, 1], got 2 (int)"),
        (lambda: add(ddof=2), "argument `ddof`: expected 0 or 1, got 2"),
        (
            lambda: add(folder=tmp_path / "new"),
            "argument `made_by`: expected what produces the answers, such as policy",
        ),
        (
            lambda: add(**{**earlier, "made_by": "others"}),
            'argument `made_by`: expected {"policy": "lengths", "samples": 2, "rewards": {"reward": "even"}',
        ),
        (lambda: add(low, **earlier), "argument `made_by`: expected"),
        (lambda: add(count=3, **earlier), "argument `made_by`: expected"),
        (lambda: add(sample=lambda prompts, count: [["w1"]]), "argument `sample`: expected 2 answers to each of"),
        (
            lambda: add(short),
            "argument `reward`: expected 10 numbers or Nones from `reward`, one per completion, got 1",
        ),
        (
            lambda: RewardModel(two),
            "argument `model`: expected a sequence classifier with one logit (num_labels=1), got",
        ),
        (lambda: RewardModel(torch.nn.Linear(2, 2)), "argument `model`: expected a name, or a sequence classifier of"),
        (
            lambda: LogSigmoidReward(low, tokenizer=1),
            "argument `tokenizer`: expected None beside a reward function, got",
        ),
        (lambda: PolicySampler(torch.nn.Linear(2, 2)), "argument `model`: expected a name, or a causal language model"),
        (lambda: sampler(folder, temperature=0), "argument `temperature`: expected a finite number > 0, got 0 (int)"),
        (lambda: sampler(folder, max_completion_length=0), "argument `max_completion_length`: expected an integer >="),
        (lambda: sampler(folder, seed=-1), "argument `seed`: expected an integer >= 0, got -1 (int)"),
    ]
    for call, line in calls:
        with pytest.raises(ValueError, match=r"^argument") as caught:
            call()
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    with pytest.raises(TypeError, match=r"^argument `dataset`: expected a datasets.Dataset, got list$"):
        add_reference_rewards(["w1"], lengths, even)


# Several processes


def _on_a_rank(rank: int, folder: str, place: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29574"}
    asked: list[Any] = []

    def sample(prompts: list[Any], count: int) -> list[list[str]]:
        asked.extend(prompts)
        return [[f"w{rank}", "w4"] for _ in prompts]  # the ranks would not agree

    data = Dataset.from_dict({"prompt": PROMPTS})
    told = add_reference_rewards(data, sample, low, 2, folder=f"{place}/kept", made_by="two", part=2)
    for given, options in ((data, {}), (data.to_iterable_dataset(), {"folder": f"{place}/kept", "made_by": "two"})):
        with pytest.raises(
            ValueError, match=r"^argument `folder`: expected a folder, and a data set that is no stream"
        ):
            add_reference_rewards(given, sample, low, 2, **options)
    held = trainer(Path(folder), Path(place, str(rank)), LogSigmoidReward(low), told)
    assert held.accelerator.num_processes == 2
    held.train()
    found = {
        "asked": asked,
        "r_ref": told["r_ref"][:],
        "reward": logged(held, "reward"),
        "good": logged(held, "low/good"),
    }
    Path(place, f"{rank}.json").write_text(json.dumps(found))


def test_processes_share_the_prompts_and_read_the_same(folder: Path, tmp_path: Path) -> None:
    run_ranks(_on_a_rank, str(folder), str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    # The rows of the halves; the prompt that both have is computed by whoever comes first, or both, and read as one.
    assert [prompt for prompt in first["asked"] if prompt != "w3"] == ["w1 w2", "w4 w5 w6"]
    assert [prompt for prompt in second["asked"] if prompt != "w3"] == ["w7", "w8 w9"]
    assert "w3" in first["asked"] + second["asked"]
    assert first["r_ref"] == second["r_ref"]
    ours, theirs = -0.4 + 0.85 * 0.4, -0.4 + 0.85 * 0.3
    assert [first["r_ref"][place] for place in (0, 2, 4, 5)] == pytest.approx([ours, ours, theirs, theirs])
    assert first["r_ref"][1] == first["r_ref"][3]
    assert first["reward"] == second["reward"]
    assert first["good"] == second["good"]


# The host


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
def test_contract_with_the_host(kind: Any) -> None:
    """What rewards rely on that the host does not promise."""
    source = inspect.getsource(kind._calculate_rewards)
    # The way from a reward to the trainer's configuration.
    assert 'reward_kwargs["log_metric"] = self._log_metric' in source
    assert list(inspect.signature(kind._log_metric).parameters) == ["self", "name", "value"]
    # How rewards are called, and that None means what it means.
    assert "prompts=prompts, completions=completions, completion_ids=completion_ids_list, **reward_kwargs" in source
    assert 'if key not in ["prompt", "completion", "completion_ids"]' in source
    assert "reward if reward is not None else torch.nan" in source
    # How a reward model is read.
    assert '[{"messages": p + c} for p, c in zip(prompts, completions, strict=True)]' in source
    assert "texts = [p + c for p, c in zip(prompts, completions, strict=True)]" in source
    assert 'padding_side="right", add_special_tokens=False' in source
    assert ".logits[:, 0]" in source
    whole = inspect.getsource(kind)
    # How completions are made.
    for line in ('"do_sample": True', '"top_p": self.top_p', '"top_k": self.top_k', "skip_special_tokens=True"):
        assert line in whole
    assert '[[{"role": "assistant", "content": content}] for content in contents]' in whole
    good = LogSigmoidReward(low, reference=0.0)
    assert get_callable_name(AllOf([good])) == "AllOf(log_sigmoid(low))"
    assert not is_async_callable(LogSigmoidReward(Patient(), reference=0.0))


def test_contract_with_the_configuration() -> None:
    fields = GRPOConfig.__dataclass_fields__
    assert fields["scale_rewards"].default == "group"
    assert fields["multi_objective_aggregation"].default == "sum_then_normalize"
    assert (fields["top_p"].default, fields["top_k"].default, fields["repetition_penalty"].default) == (1.0, 0, 1.0)
    source = inspect.getsource(GRPOTrainer)
    assert 'if self.scale_rewards != "none":\n                advantages = advantages / (std_rewards + 1e-4)' in source
    assert "reward_k = (grouped - mean_k) / (std_k + 1e-4)" in source
    assert not {"scale_rewards", "multi_objective_aggregation"} & RLOOConfig.__dataclass_fields__.keys()
