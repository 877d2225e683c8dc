"""TRL's DPO trainer with preference objectives, on a tiny model built on the spot."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from peft import LoraConfig
from tests.integrations.tiny_models import WORDS, save_tiny_llama
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from scorecraft.core import BradleyTerryLoss, DPOLoss, IPOLoss, PreferenceObjective, SimPOLoss, SLiCLoss
from scorecraft.integrations.trl.preference_trainer import PreferenceTrainer
from scorecraft.preference.answer_log_probabilities import answer_log_probabilities


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def rows(count: int = 8) -> dict[str, list[str]]:
    """A prompt, an answer that goes on with the prompt's word, and one that does not; of different lengths."""
    words = [WORDS[index] for index in range(count)]
    return {
        "prompt": [f"{word} " for word in words],
        "chosen": [f"{word} {word}" for word in words],
        "rejected": [f"{WORDS[20 + index]} {WORDS[30]} {word}" for index, word in enumerate(words)],
    }


def trainer(
    folder: Path, tmp_path: Path, objective: PreferenceObjective | None, kind: type = PreferenceTrainer, **given: Any
) -> Any:
    options: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": 1,
        "max_length": 32,
        "gradient_checkpointing": False,
    }
    options |= given.pop("options", {})
    extra = {} if objective is None else {"objective": objective}
    data = Dataset.from_dict(given.pop("rows", rows()))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return kind(
        str(folder), args=DPOConfig(**options), train_dataset=data, processing_class=tokenizer, **extra, **given
    )


def weights(trained: Any) -> Tensor:
    return torch.cat([one.detach().flatten() for one in trained.model.parameters()])


def losses(trained: Any) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "objective, loss_type", [(DPOLoss(beta=0.5), "sigmoid"), (IPOLoss(beta=0.5), "ipo")], ids=["dpo", "ipo"]
)
def test_equal_to_the_host(folder: Path, tmp_path: Path, objective: PreferenceObjective, loss_type: str) -> None:
    theirs = trainer(folder, tmp_path, None, DPOTrainer, options={"beta": 0.5, "loss_type": loss_type})
    ours = trainer(folder, tmp_path, objective)
    theirs.train()
    ours.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "objective", [SimPOLoss(), SLiCLoss(average_log_probabilities=True), DPOLoss() + 0.5 * SimPOLoss()], ids=str
)
def test_trains_towards_the_chosen(folder: Path, tmp_path: Path, objective: PreferenceObjective) -> None:
    trained = trainer(folder, tmp_path, objective, options={"max_steps": 15})
    assert (trained.ref_model is None) == (not objective.needs_reference)
    trained.train()
    assert losses(trained)[-1] < losses(trained)[0]
    last = [entry for entry in trained.state.log_history if "ranking/accuracy" in entry][-1]
    assert last["ranking/accuracy"] == 1
    assert ("rewards/accuracies" in last) == objective.needs_reference


def test_value_is_that_of_the_whole_logits(folder: Path, tmp_path: Path) -> None:
    objective = DPOLoss(beta=0.3)
    held = trainer(folder, tmp_path, objective)
    inputs = held.data_collator([held.train_dataset[index] for index in range(4)])
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    hidden = model.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    sums, tokens = answer_log_probabilities(hidden, model.lm_head.weight, labels)
    assert tokens.tolist() == inputs["completion_mask"].sum(dim=1).tolist()
    held.model.eval()
    with torch.no_grad():
        held.model.lm_head.weight.mul_(1.5)
    moved = answer_log_probabilities(hidden, model.lm_head.weight * 1.5, labels).sums
    (chosen, rejected), (before_chosen, before_rejected) = moved.chunk(2), sums.chunk(2)
    wanted = objective(chosen, rejected, reference_chosen=before_chosen, reference_rejected=before_rejected)
    assert held.compute_loss(held.model, inputs).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_accumulated_batches_are_one_batch(folder: Path, tmp_path: Path) -> None:
    whole = trainer(folder, tmp_path, DPOLoss(), options={"per_device_train_batch_size": 8, "max_steps": 1})
    parts = trainer(
        folder, tmp_path, DPOLoss(),
        options={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 1},
    )  # fmt: skip
    whole.train()
    parts.train()
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-5)


def test_lora_and_precomputed_references(folder: Path, tmp_path: Path) -> None:
    adapted = trainer(
        folder,
        tmp_path,
        DPOLoss(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    adapted.train()
    assert losses(adapted)[0] == pytest.approx(0.693147, abs=1e-5)
    ahead = trainer(folder, tmp_path, DPOLoss(), options={"precompute_ref_log_probs": True})
    ahead.train()
    plain = trainer(folder, tmp_path, DPOLoss())
    plain.train()
    assert losses(ahead) == pytest.approx(losses(plain), rel=1e-5)


def test_evaluation_logs_both_accuracies(folder: Path, tmp_path: Path) -> None:
    held = trainer(folder, tmp_path, DPOLoss(), eval_dataset=Dataset.from_dict(rows(4)))
    found = held.evaluate()
    assert found["eval_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert 0 <= found["eval_ranking/accuracy"] <= 1
    assert found["eval_rewards/accuracies"] == 0


def changed(column: str, row: int, value: str) -> dict[str, list[str]]:
    table = rows()
    table[column][row] = value
    return table


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    same = changed("rejected", 3, rows()["chosen"][3])
    with pytest.raises(ValueError, match=r"argument `train_dataset`: expected two different .* rejected in row 3"):
        trainer(folder, tmp_path, DPOLoss(), rows=same)
    with pytest.raises(ValueError, match=r"`train_dataset`: expected an answer in every row, got an empty `chosen` in"):
        trainer(folder, tmp_path, DPOLoss(), rows=changed("chosen", 2, "  "))
    with pytest.raises(ValueError, match=r"argument `objective`: expected an objective of log-probabilities alone"):
        trainer(folder, tmp_path, BradleyTerryLoss())
    other = AutoModelForCausalLM.from_pretrained(save_tiny_llama(tmp_path / "other", vocabulary=60))
    with pytest.raises(ValueError, match=r"`ref_model`: expected the tokenizer of the model \(51 tokens\), got a voc"):
        trainer(folder, tmp_path, DPOLoss(), ref_model=other)


def test_contract_with_the_host() -> None:
    """What the trainer relies on."""
    assert list(inspect.signature(DPOTrainer.compute_loss).parameters) == [
        "self", "model", "inputs", "return_outputs", "num_items_in_batch",
    ]  # fmt: skip
    assert list(inspect.signature(DPOTrainer.compute_ref_log_probs).parameters) == ["self", "model", "inputs"]
    assert DPOTrainer.loss_is_scaled_for_ga is False
    source = inspect.getsource(DPOTrainer)
    for name in ("self.precompute_ref_logps", "self._metrics[mode]", "self.aux_loss_enabled", "fused_lm_head=True"):
        assert name in source
