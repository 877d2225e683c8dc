"""TRL: reward models on ratings and on preferences with a strength, on a Llama of a few thousand weights."""

from __future__ import annotations

import copy
import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("trl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import Dataset, IterableDataset, load_dataset
from peft import LoraConfig, PeftModel, TaskType
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
)
from trl import RewardConfig, RewardTrainer

from scorecraft.core import BradleyTerryLoss, DPOLoss, across_ranks
from scorecraft.integrations.trl.reward_models import (
    PreferenceStrengthRewardTrainer,
    RewardRegressionTrainer,
    helpsteer2_pairs,
    helpsteer2_ratings,
    reward_model_from_regression,
)
from scorecraft.preference.helpsteer2_preference import (
    MarginBradleyTerryLoss,
    MaskedRegressionLoss,
    ScaledBradleyTerryLoss,
)

WORDS = [f"w{number}" for number in range(30)]
ULTRAFEEDBACK = Path(__file__).resolve().parents[3] / "shared" / "data" / "ultrafeedback_sample"
CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[EOS]", "user", "assistant", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]", model_max_length=32
    )
    made.add_special_tokens({"eos_token": "[EOS]"})
    made.chat_template = CHAT
    return made


def tiny(outputs: int = 1, seed: int = 0) -> LlamaForSequenceClassification:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=35, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, num_labels=outputs, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return LlamaForSequenceClassification(config)


def config(folder: Path, **options: Any) -> RewardConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "num_train_epochs": 1, "learning_rate": 1e-2,
        "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "bf16": False, "activation_checkpointing": False, "seed": 1,
        "max_grad_norm": 0.0,
    }  # fmt: skip
    return RewardConfig(**(defaults | options))


def pairs(count: int = 8, **columns: list[Any]) -> Dataset:
    """An answer with the word w0 is better than one without it."""
    return Dataset.from_dict(
        {
            "prompt": [f"w{number % 5 + 10} " for number in range(count)],
            "chosen": [f"w0 w{number % 7 + 1}" for number in range(count)],
            "rejected": [f"w{number % 6 + 20} w{number % 7 + 1} w3" for number in range(count)],
            "strength": [float(number % 3 + 1) for number in range(count)],
            **columns,
        }
    )


def ratings(count: int = 8, **columns: list[Any]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt": [f"w{number % 5 + 10} " for number in range(count)],
            "completion": [f"w{number % 3}" for number in range(count)],
            "labels": [
                [float(number % 3), None if number % 2 else 1.0, -100.0 if number % 4 else 3.0]
                for number in range(count)
            ],
            **columns,
        }
    )


def trained_weights(trainer: Trainer) -> dict[str, Tensor]:
    trainer.train()
    assert trainer.model is not None
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max((first[name] - second[name]).abs().max().item() for name in first)


def test_contract_of_the_reward_trainer() -> None:
    """What is overridden, and what the host must do for it."""
    named = ["model", "inputs", "return_outputs", "num_items_in_batch"]
    assert list(inspect.signature(RewardTrainer.compute_loss).parameters)[1:] == named
    assert list(inspect.signature(Trainer.compute_loss).parameters)[1:] == named
    arguments = ["epoch_iterator", "num_batches", "device"]
    assert list(inspect.signature(Trainer.get_batch_samples).parameters)[1:] == arguments
    assert "num_items_in_batch" in inspect.getsource(Trainer.training_step)
    assert list(inspect.signature(RewardTrainer.log).parameters)[1:] == ["logs", "start_time"]
    assert list(inspect.signature(RewardTrainer.evaluate).parameters)[1] == "eval_dataset"
    assert RewardTrainer.loss_is_scaled_for_ga is False  # ours is: True
    for own in (PreferenceStrengthRewardTrainer, RewardRegressionTrainer):
        assert own.loss_is_scaled_for_ga is True
    source = inspect.getsource(RewardTrainer.compute_loss)
    assert "torch.chunk(outputs.logits.squeeze(-1), chunks=2)" in source  # chosen answers come first
    assert "center_rewards_coefficient * torch.mean((rewards_chosen + rewards_rejected) ** 2)" in source
    assert "(loss, outputs) if return_outputs" in source
    training = inspect.getsource(Trainer.training_step)
    assert "if self.loss_is_scaled_for_ga is not None:" in training


def test_contract_of_the_collator(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trainer = PreferenceStrengthRewardTrainer(
        tiny(), config(tmp_path), train_dataset=pairs(), processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "margin"}
    assert batch["input_ids"].shape[0] == 8
    assert sorted(batch["margin"].unique().tolist()) == [1, 2, 3]


@pytest.mark.parametrize("column", ["strength", "margin"])
@pytest.mark.parametrize("objective", [None, ScaledBradleyTerryLoss(normalize="weights"), MarginBradleyTerryLoss()])
def test_the_loss_is_the_objective_of_the_rewards(
    objective: Any, column: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    data = pairs(4)
    trainer = PreferenceStrengthRewardTrainer(
        tiny(), config(tmp_path), objective=objective, processing_class=tokenizer,
        train_dataset=data if column == "strength" else data.rename_column("strength", "margin"),
    )  # fmt: skip
    model = copy.deepcopy(trainer.model).eval()

    def reward(texts: list[str]) -> Tensor:
        tokens = tokenizer([text + "[EOS]" for text in texts], padding=True, padding_side="right", return_tensors="pt")
        return model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits[:, 0]

    chosen = reward([prompt + answer for prompt, answer in zip(data["prompt"], data["chosen"], strict=True)])
    rejected = reward([prompt + answer for prompt, answer in zip(data["prompt"], data["rejected"], strict=True)])
    expected = (objective or ScaledBradleyTerryLoss())(chosen, rejected, strength=torch.tensor(data["strength"]))
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), abs=2e-5)


def test_without_strengths_it_is_trls_own_trainer(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    data = pairs().remove_columns("strength")
    options: dict[str, Any] = {"train_dataset": data, "processing_class": tokenizer}
    args = {"center_rewards_coefficient": 0.01, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    ours = PreferenceStrengthRewardTrainer(tiny(), config(tmp_path, **args), objective=BradleyTerryLoss(), **options)
    theirs = RewardTrainer(tiny(), config(tmp_path, **args), **options)
    assert largest_difference(trained_weights(ours), trained_weights(theirs)) < 1e-6
    kept = ("loss", "accuracy", "margin", "mean_reward", "num_tokens")
    for own, other in zip(ours.state.log_history[:-1], theirs.state.log_history[:-1], strict=True):
        assert {name: own[name] for name in kept} == pytest.approx({name: other[name] for name in kept}, abs=1e-4)
    margins = pairs().rename_column("strength", "margin")
    options["train_dataset"] = margins
    with_margin = PreferenceStrengthRewardTrainer(
        tiny(), config(tmp_path), objective=MarginBradleyTerryLoss(), **options
    )
    assert largest_difference(
        trained_weights(with_margin), trained_weights(RewardTrainer(tiny(), config(tmp_path), **options))
    ) < 1e-6  # fmt: skip


@pytest.mark.parametrize(
    "objective",
    [
        ScaledBradleyTerryLoss(),
        ScaledBradleyTerryLoss(normalize="weights"),
        across_ranks(ScaledBradleyTerryLoss()),
        0.5 * ScaledBradleyTerryLoss(normalize="weights") + BradleyTerryLoss(),
    ],
)
def test_accumulation_is_one_large_batch(objective: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    # Seven pairs in parts of two, the last one alone, ties among them.
    data = pairs(7, strength=[0.0, 0.0, 3.0, 1.0, 2.0, 0.0, 3.0])

    def weights(size: int, parts: int) -> dict[str, Tensor]:
        trainer = PreferenceStrengthRewardTrainer(
            tiny(),
            config(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=parts, optim="sgd",
                   learning_rate=0.5, center_rewards_coefficient=0.1),
            objective=objective, train_dataset=data, processing_class=tokenizer,
        )  # fmt: skip
        return trained_weights(trainer)

    whole, in_parts = weights(7, 1), weights(2, 4)
    assert largest_difference(whole, in_parts) < 1e-6
    assert largest_difference(whole, dict(tiny().state_dict())) > 1e-3


def test_accuracy_of_every_strength_is_logged(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trainer = PreferenceStrengthRewardTrainer(
        tiny(), config(tmp_path, num_train_epochs=12), train_dataset=pairs(24), eval_dataset={"held out": pairs(9)},
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    assert {f"accuracy_strength_{m}" for m in (1, 2, 3)} <= set().union(*trainer.state.log_history)
    metrics = trainer.evaluate(pairs(10))
    logged = trainer.state.log_history[-1]
    assert metrics["eval_loss"] < 0.2
    assert [logged[f"eval_accuracy_strength_{m}"] for m in (1, 2, 3)] == [1.0, 1.0, 1.0]
    assert not [name for name in logged if name.startswith("accuracy_strength")]
    wrong_way = pairs(6)
    wrong_way = wrong_way.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    trainer.evaluate(wrong_way)
    assert [trainer.state.log_history[-1][f"eval_accuracy_strength_{m}"] for m in (1, 2, 3)] == [0.0, 0.0, 0.0]


def test_a_stream_of_pairs(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    def stream(**columns: list[Any]) -> IterableDataset:
        return pairs(8, **columns).to_iterable_dataset()

    def trainer(rows: IterableDataset) -> PreferenceStrengthRewardTrainer:
        return PreferenceStrengthRewardTrainer(
            tiny(), config(tmp_path, max_steps=2), train_dataset=rows, processing_class=tokenizer
        )

    trainer(stream()).train()
    with pytest.raises(ValueError, match=r"^argument `train_dataset`: expected a strength of at least 0"):
        trainer(stream(strength=[-1.0] * 8)).train()


def test_lora_is_trained_saved_and_loaded(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny().save_pretrained(base)
    trainer = PreferenceStrengthRewardTrainer(
        tiny(), config(tmp_path, num_train_epochs=4), train_dataset=pairs(), processing_class=tokenizer,
        peft_config=LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(
        LlamaForSequenceClassification.from_pretrained(base), str(tmp_path / "adapter")
    ).eval()
    tokens = torch.arange(3, 12)[None]
    found = loaded(input_ids=tokens).logits
    torch.testing.assert_close(found, trainer.model.eval()(input_ids=tokens).logits)
    assert (found - tiny().eval()(input_ids=tokens).logits).abs().max() > 1e-3


def test_a_saved_model_is_an_ordinary_folder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trainer = PreferenceStrengthRewardTrainer(
        tiny(), config(tmp_path), train_dataset=pairs(), processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert largest_difference(dict(loaded.state_dict()), dict(trainer.model.state_dict())) == 0


def test_the_head_computes_in_float32_under_autocast(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trainer = PreferenceStrengthRewardTrainer(
        tiny(), config(tmp_path), train_dataset=pairs(), processing_class=tokenizer
    )
    tokens = torch.arange(3, 12)[None]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rewards = trainer.model(input_ids=tokens).logits
        plain = tiny()(input_ids=tokens).logits
    assert (rewards.dtype, plain.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(rewards, plain.float(), atol=0.01, rtol=0.05)


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"strength": [1.0] * 7 + [-1.0]}, r"a strength of at least 0 in every row, got -1.0 \(float\) in row 7"),
        ({"strength": [1.0] * 7 + [None]}, r"a strength of at least 0 in every row, got None \(NoneType\) in row 7"),
        ({"strength": [1.0] * 7 + [float("nan")]}, "a strength of at least 0 in every row"),
        ({"chosen": ["w0"] * 7 + [" "]}, "a chosen answer in every row, got an empty one in row 7"),
        ({"rejected": [""] + ["w0"] * 7}, "a rejected answer in every row, got an empty one in row 0"),
        ({"chosen": ["w0"] * 8, "rejected": ["w1", *["w0"] * 7]}, "two different answers in every pair, got the same"),
        ({"margin": [1.0] * 8}, "a column strength or a column margin, got both"),
    ],
)
def test_pairs_that_are_refused(
    columns: dict[str, list[Any]], expected: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^argument `train_dataset`: expected {expected}"):
        PreferenceStrengthRewardTrainer(
            tiny(), config(tmp_path), train_dataset=pairs(**columns), processing_class=tokenizer
        )
    with pytest.raises(ValueError, match=r"^argument `eval_dataset\['a'\]`: expected"):
        PreferenceStrengthRewardTrainer(
            tiny(), config(tmp_path), train_dataset=pairs(), eval_dataset={"a": pairs(**columns)},
            processing_class=tokenizer,
        )  # fmt: skip


def test_messages_and_tokens_are_looked_at_as_well(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    def trainer(**columns: list[Any]) -> None:
        PreferenceStrengthRewardTrainer(
            tiny(), config(tmp_path), train_dataset=Dataset.from_dict({**columns, "strength": [1.0]}),
            processing_class=tokenizer,
        )  # fmt: skip

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "w1"}, {"role": "assistant", "content": text}]

    trainer(chosen=[said("w2")], rejected=[said("w3")])
    with pytest.raises(ValueError, match="a rejected answer in every row"):
        trainer(chosen=[said("w2")], rejected=[said("")])
    with pytest.raises(ValueError, match="two different answers"):
        trainer(chosen=[said("w2")], rejected=[said("w2")])
    trainer(chosen_ids=[[5, 6]], rejected_ids=[[5]])
    with pytest.raises(ValueError, match="two different answers"):
        trainer(chosen_ids=[[5, 6]], rejected_ids=[[5, 6]])
    with pytest.raises(ValueError, match="a chosen answer in every row"):
        trainer(chosen_ids=[[]], rejected_ids=[[5, 6]])


def test_objectives_that_are_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    def trainer(objective: Any, data: Dataset) -> None:
        PreferenceStrengthRewardTrainer(
            tiny(), config(tmp_path), objective=objective, train_dataset=data, processing_class=tokenizer
        )

    with pytest.raises(ValueError, match=r"^argument `objective`: expected an objective that reads rewards"):
        trainer(DPOLoss(), pairs())
    with pytest.raises(ValueError, match=r"^argument `objective`: expected an objective with reduction='mean'"):
        trainer(ScaledBradleyTerryLoss(reduction="sum"), pairs())
    with pytest.raises(TypeError, match=r"^argument `objective`: expected a preference objective"):
        trainer(torch.nn.MSELoss(), pairs())
    with pytest.raises(ValueError, match=r"^argument `train_dataset`: expected a column strength"):
        trainer(ScaledBradleyTerryLoss(), pairs().remove_columns("strength"))


@pytest.mark.skipif(not ULTRAFEEDBACK.exists(), reason=f"{ULTRAFEEDBACK} is not there")
def test_real_pairs_with_the_difference_of_their_scores(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = load_dataset("parquet", data_dir=str(ULTRAFEEDBACK), split="train", cache_dir=str(tmp_path / "cache"))
    rows = rows.map(lambda row: {"strength": row["score_chosen"] - row["score_rejected"]})

    def trainer(data: Dataset) -> PreferenceStrengthRewardTrainer:
        return PreferenceStrengthRewardTrainer(
            tiny(), config(tmp_path, max_length=32, max_steps=2), train_dataset=data, processing_class=tokenizer
        )

    with pytest.raises(ValueError, match=r"^argument `train_dataset`: expected (two different|a (chosen|rejected))"):
        trainer(rows)
    usable = rows.filter(
        lambda row: row["chosen"].strip() and row["rejected"].strip() and row["chosen"] != row["rejected"]
    )
    assert len(rows) - len(usable) == 6
    short = usable.filter(lambda row: max(len(row["chosen"]), len(row["rejected"])) < 100)
    trainer(short).train()


# Regression


def test_regression_learns_ratings_and_leaves_missing_ones_out(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    data = ratings(24)
    trainer = RewardRegressionTrainer(
        tiny(3), config(tmp_path, num_train_epochs=15, learning_rate=3e-2), train_dataset=data, eval_dataset=data,
        processing_class=tokenizer,
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 4
    assert trainer.evaluate({"some": ratings(4)})["eval_some_loss"] < before / 4


def test_regression_reads_texts_as_the_reward_trainer_does(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    def messages(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    asked = [[{"role": "user", "content": "w1 w2"}]]
    for prompt, chosen, rejected in (
        (["w1 w2 "], ["w3 w4"], ["w5"]),
        (["w1 "], ["w3[EOS]"], ["w5"]),
        (asked, [messages("w3")], [messages("w4")]),
        (["w1 "], ["w3 " * 40], ["w4 " * 40]),  # longer than max_length: left out
    ):
        theirs = RewardTrainer(
            tiny(), config(tmp_path, max_length=16), processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": prompt * 2, "chosen": chosen * 2, "rejected": rejected * 2}),
        ).train_dataset  # fmt: skip
        ours = RewardRegressionTrainer(
            tiny(1), config(tmp_path, max_length=16), processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": prompt, "completion": chosen, "labels": [[1.0]]}),
        ).train_dataset  # fmt: skip
        assert list(ours["input_ids"]) == list(theirs["chosen_ids"])[: len(ours)]
        assert (len(ours) == 0) == (len(theirs) == 0)


@pytest.mark.parametrize(
    "objective", [None, MaskedRegressionLoss(attributes=(0, 1)), across_ranks(MaskedRegressionLoss())]
)
def test_regression_counts_ratings_over_the_whole_step(
    objective: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    data = ratings(7)

    def weights(size: int, parts: int) -> dict[str, Tensor]:
        trainer = RewardRegressionTrainer(
            tiny(3),
            config(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=parts, optim="sgd",
                   learning_rate=0.05),
            objective=objective, train_dataset=data, processing_class=tokenizer,
        )  # fmt: skip
        return trained_weights(trainer)

    whole, in_parts = weights(7, 1), weights(2, 4)
    assert largest_difference(whole, in_parts) < 1e-6
    assert largest_difference(whole, dict(tiny(3).state_dict())) > 1e-3


def test_from_ratings_to_preferences(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """The whole recipe: regression from a folder, its head's slot, scaled Bradley-Terry."""
    tiny(1).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    labels = [[-100.0] * 4 + [float(number % 3 == 0) * 4] + [-100.0] * 4 for number in range(12)]
    first = RewardRegressionTrainer(
        str(tmp_path / "base"), config(tmp_path, model_init_kwargs={"ignore_mismatched_sizes": True}),
        objective=MaskedRegressionLoss(attributes=(4,)), train_dataset=ratings(12, labels=labels),
    )  # fmt: skip
    first.train()
    tokens = torch.arange(3, 12)[None]
    expected = first.model.eval()(input_ids=tokens).logits
    assert expected.shape == (1, 9)
    model = reward_model_from_regression(first.model, slot=4)
    torch.testing.assert_close(model(input_ids=tokens).logits, expected[:, 4:5])
    second = PreferenceStrengthRewardTrainer(
        model, config(tmp_path), train_dataset=pairs(), processing_class=first.processing_class
    )
    second.train()
    second.save_model(str(tmp_path / "reward"))
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").config.num_labels == 1


def test_an_adapter_is_merged_before_its_head_is_cut(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trainer = RewardRegressionTrainer(
        tiny(3), config(tmp_path, num_train_epochs=3), train_dataset=ratings(), processing_class=tokenizer,
        peft_config=LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    trainer.train()
    tokens = torch.arange(3, 12)[None]
    expected = trainer.model.eval()(input_ids=tokens).logits
    model = reward_model_from_regression(trainer.model, weights=[0.0, 1.0, 2.0])
    torch.testing.assert_close(
        model(input_ids=tokens).logits[:, 0], expected @ torch.tensor([0.0, 1.0, 2.0]), atol=1e-5, rtol=1e-5
    )
    assert not isinstance(model, PeftModel)


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"labels": [[1.0, 2.0]] * 8}, "3 labels in every row, one per output of the head, got 2 in row 0"),
        ({"labels": [1.0] * 8}, "3 labels in every row"),
        ({"labels": [[1.0, 2.0, 3.0]] * 7 + [[-100.0] * 3]}, "a rating that counts in every row"),
        ({"labels": [[1.0, float("nan"), 3.0]] * 8}, "finite labels"),
        ({"completion": ["w1"] * 7 + [""]}, "a completion answer in every row, got an empty one in row 7"),
    ],
)
def test_ratings_that_are_refused(
    columns: dict[str, list[Any]], expected: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^argument `train_dataset`: expected {expected}"):
        RewardRegressionTrainer(tiny(3), config(tmp_path), train_dataset=ratings(**columns), processing_class=tokenizer)


def test_what_else_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    options: dict[str, Any] = {"processing_class": tokenizer}
    with pytest.raises(ValueError, match=r"^argument `train_dataset`: expected columns completion"):
        RewardRegressionTrainer(tiny(3), config(tmp_path), train_dataset=pairs(), **options)
    with pytest.raises(ValueError, match=r"^argument `train_dataset`: expected a data set of ratings"):
        RewardRegressionTrainer(tiny(3), config(tmp_path), **options)
    with pytest.raises(TypeError, match=r"^argument `objective`: expected a MaskedRegressionLoss"):
        RewardRegressionTrainer(
            tiny(3),
            config(tmp_path),
            objective=F.mse_loss,
            train_dataset=ratings(),
            **options,  # type: ignore[arg-type]
        )
    with pytest.raises(ValueError, match=r"^argument `model`: expected a model with a linear head"):
        reward_model_from_regression(torch.nn.Linear(2, 2))


def test_helpsteer2_as_it_is_published() -> None:
    told = Dataset.from_dict(
        {
            "split": ["train"] * 3,
            "prompt": ["q", "one\n<extra_id_1>Assistant\ntwo\n<extra_id_1>User\nthree", "q"],
            "response_1": ["a1", "b1", "c1"],
            "response_2": ["a2", "b2", "c2"],
            "preference_strength": [-3, 1, 0],
        }
    )
    found = helpsteer2_pairs(told)
    assert set(found.column_names) == {"prompt", "chosen", "rejected", "strength"}
    assert [row["strength"] for row in found] == [3.0, 1.0]
    assert found[0]["chosen"] == [{"role": "assistant", "content": "a1"}]
    assert found[1]["chosen"][0]["content"] == "b2"
    assert [(turn["role"], turn["content"]) for turn in found[1]["prompt"]] == [
        ("user", "one"), ("assistant", "two"), ("user", "three")
    ]  # fmt: skip
    rated = helpsteer2_ratings(
        Dataset.from_dict({"prompt": ["q"], "response": ["a"], "helpfulness": [3], "correctness": [2],
                           "coherence": [4], "complexity": [1], "verbosity": [0]})
    )  # fmt: skip
    assert rated[0]["labels"] == [-100.0] * 4 + [3.0, 2.0, 4.0, 1.0, 0.0]
    assert rated[0]["completion"] == [{"role": "assistant", "content": "a"}]
