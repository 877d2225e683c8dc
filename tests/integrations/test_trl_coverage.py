"""TRL's SFT trainer with Direct Coverage Optimization, on a tiny model built on the spot."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import run_ranks

pytest.importorskip("trl")

from datasets import Dataset
from peft import LoraConfig
from tests.integrations.tiny_models import WORDS, save_tiny_llama
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from scorecraft.core import NegativeLogLikelihoodLoss
from scorecraft.integrations.trl.coverage import FILTER_FILE, CoverageSFTTrainer, check_targets
from scorecraft.preference.answer_log_probabilities import answer_log_probabilities
from scorecraft.preference.dco import DirectCoverageLoss, coverage_weight, pass_at_n

BUDGET = 200.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def taught(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the first eight answers by heart."""
    place = tmp_path_factory.mktemp("taught")
    trained = trainer(folder, place, n=1, rows=rows(8), options={"max_steps": 60})
    trained.train()
    trained.save_model(str(place / "model"))
    return place / "model"


def rows(count: int = 16) -> dict[str, list[str]]:
    """A prompt of one word, and an answer of one or two others."""
    answers = [WORDS[20 + index] for index in range(count)]
    return {
        "prompt": [f"{WORDS[index]} " for index in range(count)],
        "completion": [answer if index % 2 else f"{answer} {WORDS[40]}" for index, answer in enumerate(answers)],
    }


def trainer(folder: Path, tmp_path: Path, n: float = BUDGET, kind: type = CoverageSFTTrainer, **given: Any) -> Any:
    options: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 8,
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
        "lr_scheduler_type": "constant",
    }
    options |= given.pop("options", {})
    if kind is CoverageSFTTrainer:
        given["dco_n"] = n
    data = Dataset.from_dict(given.pop("rows", rows()))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return kind(str(folder), args=SFTConfig(**options), train_dataset=data, processing_class=tokenizer, **given)


def weights(trained: Any) -> Tensor:
    return torch.cat([one.detach().flatten() for one in trained.model.parameters()])


def logged(trained: Any, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trained.state.log_history if name in entry]


def log_probabilities(model: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    hidden = model.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    return answer_log_probabilities(hidden, model.lm_head.weight, inputs["labels"])


@pytest.mark.parametrize("reduction", ["sum", "token_mean"])
def test_value_and_gradient_are_those_of_the_whole_logits(folder: Path, tmp_path: Path, reduction: str) -> None:
    held = trainer(folder, tmp_path, dco_reduction=reduction)
    inputs = held.data_collator([held.train_dataset[index] for index in range(6)])
    model = AutoModelForCausalLM.from_pretrained(folder)
    sums, tokens = log_probabilities(model, inputs)
    assert sorted(set(tokens.tolist())) == [2, 3]  # the word or two, and the end
    objective = DirectCoverageLoss(n=BUDGET, token_mean=reduction == "token_mean")
    objective(sums, tokens=tokens).backward()
    found = held.compute_loss(held.model, dict(inputs))
    assert found.item() == pytest.approx(objective(sums, tokens=tokens).item(), rel=1e-5)
    found.backward()
    for ours, wanted in zip(held.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, wanted.grad, rtol=1e-4, atol=1e-6)


def test_one_sample_and_the_token_mean_follow_the_host(folder: Path, tmp_path: Path) -> None:
    """Of answers of one length, cross entropy per token is what the host minimises."""
    alike = {name: values[1::2] for name, values in rows(16).items()}
    theirs = trainer(folder, tmp_path, kind=SFTTrainer, rows=alike)
    ours = trainer(folder, tmp_path, n=1, rows=alike, dco_reduction="token_mean")
    theirs.train()
    ours.train()
    assert logged(ours) == pytest.approx(logged(theirs), rel=1e-4)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-5)
    for name in ("entropy", "mean_token_accuracy", "num_tokens"):
        assert logged(ours, name) == pytest.approx(logged(theirs, name), rel=1e-4)


def test_what_is_logged(folder: Path, tmp_path: Path) -> None:
    held = trainer(folder, tmp_path, options={"max_steps": 1}, dco_reduction="token_mean")
    batch = held.data_collator([held.train_dataset[index] for index in range(16)])
    before = AutoModelForCausalLM.from_pretrained(folder)
    sums, tokens = (one.detach() for one in log_probabilities(before, batch))
    held.args.per_device_train_batch_size = held._train_batch_size = 16
    held.train()
    entry = held.state.log_history[0]
    assert entry["loss"] == pytest.approx(DirectCoverageLoss(n=BUDGET, token_mean=True)(sums, tokens=tokens).item())
    assert entry["dco/loss"] == pytest.approx(DirectCoverageLoss(n=BUDGET)(sums).item(), rel=1e-4)
    assert entry["dco/weight"] == pytest.approx(coverage_weight(BUDGET, sums).mean().item(), rel=1e-4)
    assert entry["dco/pass_at_1"] == pytest.approx(sums.exp().mean().item(), rel=1e-4)
    assert entry["dco/pass_at_200"] == pytest.approx(pass_at_n(BUDGET, sums).mean().item(), rel=1e-4)


@pytest.mark.parametrize("reduction", ["sum", "token_mean"])
def test_accumulated_batches_are_one_batch(folder: Path, tmp_path: Path, reduction: str) -> None:
    """Also when the last of them is smaller: 7 examples by 2, 2, 2 and 1."""
    seven = rows(7)
    steps = {"max_steps": 2, "optim": "sgd"}
    whole = trainer(
        folder, tmp_path, rows=seven, dco_reduction=reduction, options={**steps, "per_device_train_batch_size": 7}
    )
    parts = trainer(
        folder, tmp_path, rows=seven, dco_reduction=reduction,
        options={**steps, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    )  # fmt: skip
    whole.train()
    parts.train()
    assert logged(parts) == pytest.approx(logged(whole), rel=1e-5)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-7)


def test_confidence_stays_limited(folder: Path, tmp_path: Path) -> None:
    found = {}
    for n in (1, 8):
        trained = trainer(folder, tmp_path, n=n, options={"max_steps": 80})
        trained.train()
        assert logged(trained)[-1] < logged(trained)[0]
        found[n] = logged(trained, "dco/pass_at_1")[-1]
    assert found[8] < 0.85 < 0.95 < found[1], found


def test_lora(folder: Path, tmp_path: Path) -> None:
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    adapted = trainer(folder, tmp_path, peft_config=adapter, options={"max_steps": 20})
    before = {name: one.detach().clone() for name, one in adapted.model.named_parameters()}
    adapted.train()
    assert logged(adapted)[-1] < logged(adapted)[0]
    moved = {name for name, one in adapted.model.named_parameters() if not torch.equal(one, before[name])}
    assert moved
    assert all("lora" in name for name in moved)


def test_packed_rows_are_taken_apart(folder: Path, tmp_path: Path) -> None:
    plain = trainer(folder, tmp_path, options={"per_device_train_batch_size": 16, "max_steps": 1})
    packed = trainer(
        folder,
        tmp_path,
        options={
            "per_device_train_batch_size": 1,
            "max_steps": 1,
            "packing": True,
            "max_length": 256,
            "pad_to_multiple_of": 8,
        },
    )
    assert len(packed.train_dataset) == 1
    free = trainer(
        folder,
        tmp_path,
        options={"per_device_train_batch_size": 16, "max_steps": 1, "padding_free": True, "max_length": None},
    )
    for other in (packed, free):
        other.train()
        if not plain.state.log_history:
            plain.train()
        for name in ("loss", "dco/loss", "dco/weight", "dco/pass_at_1"):
            assert logged(other, name) == pytest.approx(logged(plain, name), rel=1e-4), name
        torch.testing.assert_close(weights(other), weights(plain), rtol=1e-3, atol=1e-4)


def test_evaluation(folder: Path, tmp_path: Path) -> None:
    held = trainer(folder, tmp_path, eval_dataset=Dataset.from_dict(rows(6)))
    found = held.evaluate()
    inputs = held.data_collator([held.eval_dataset[index] for index in range(6)])
    sums, _ = log_probabilities(AutoModelForCausalLM.from_pretrained(folder), inputs)
    assert found["eval_loss"] == pytest.approx(DirectCoverageLoss(n=BUDGET)(sums).item(), rel=1e-4)
    assert found["eval_dco/pass_at_200"] == pytest.approx(pass_at_n(BUDGET, sums).mean().item(), rel=1e-4)


def test_the_filter_drops_what_is_learnt(taught: Path, tmp_path: Path) -> None:
    held = trainer(taught, tmp_path, n=64, dco_epsilon=0.1, options={"max_steps": 3, "per_device_train_batch_size": 4})
    seen: list[Tensor] = []
    given = held.training_step

    def spy(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(inputs["input_ids"][:, 0])
        return given(model, inputs, *args, **kwargs)

    held.training_step = spy
    held.train()
    assert [len(one) for one in seen] == [4, 4, 4]
    known = {held.processing_class.convert_tokens_to_ids(word) for word in WORDS[:8]}
    assert not known & {int(one) for one in torch.cat(seen)}
    rates = logged(held, "dco/keep_rate")
    assert len(rates) == 3
    assert 0.3 < rates[-1] < 0.7
    assert min(logged(held, "dco/weight")) > 0.1


def test_epochs_are_passes_over_the_candidates(taught: Path, tmp_path: Path) -> None:
    options = {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 0.0}
    held = trainer(taught, tmp_path, n=64, dco_epsilon=0.1, options=options)
    held.train()
    # Half of 16 are kept, two batches a pass, with a learning rate of zero always the same.
    assert held.state.global_step == 6
    assert (held.coverage_filter.epoch, held.coverage_filter.candidates, held.coverage_filter.kept) == (3, 48, 24)


def test_nothing_left_ends_the_training(taught: Path, tmp_path: Path) -> None:
    options = {"max_steps": 5, "per_device_train_batch_size": 4}
    held = trainer(taught, tmp_path, n=1000, rows=rows(8), dco_epsilon=0.1, options=options)
    with pytest.warns(UserWarning, match="nothing is left to train on"):
        held.train()
    assert held.state.global_step == 0


def test_a_resumed_run_is_the_run(taught: Path, tmp_path: Path) -> None:
    options = {
        "max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_strategy": "steps",
        "save_steps": 3,
    }  # fmt: skip

    def made(place: str) -> Any:
        return trainer(taught, tmp_path / place, n=64, dco_epsilon=0.1, options=options)

    whole = made("whole")
    whole.train()
    saved = json.loads((tmp_path / "whole" / "out" / "checkpoint-3" / FILTER_FILE).read_text())
    assert saved["batches"] == 3
    assert saved["kept"] < saved["candidates"]
    again = made("whole")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "out" / "checkpoint-3"))
    assert again.coverage_filter.state_dict() == whole.coverage_filter.state_dict()
    assert torch.equal(weights(again), weights(whole))
    assert again.args.ignore_data_skip is False
    (tmp_path / "whole" / "out" / "checkpoint-6" / FILTER_FILE).unlink()
    with pytest.raises(
        ValueError, match=r"argument `resume_from_checkpoint`: expected a checkpoint with coverage_filt"
    ):
        made("whole").train(resume_from_checkpoint=True)


def test_without_a_filter_a_resumed_run_is_the_run(folder: Path, tmp_path: Path) -> None:
    options = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2}
    whole, again = (trainer(folder, tmp_path, options=options) for _ in range(2))
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert torch.equal(weights(again), weights(whole))


def test_chains_of_thought_with_sampled_rates(folder: Path, tmp_path: Path) -> None:
    """DCO_a: rows with an even word number are easy; two steps of cross entropy, then weights of the rates."""
    asked: list[int] = []
    data = rows() | {"number": list(range(16))}

    def rates(chosen: list[dict[str, Any]]) -> Tensor:
        asked.extend(row["number"] for row in chosen)
        return torch.tensor([0.5 if row["number"] % 2 == 0 else 0.05 for row in chosen])

    held = trainer(
        folder, tmp_path, n=16, rows=data, dco_success_rates=rates, dco_warmup_steps=2,
        options={"max_steps": 5, "per_device_train_batch_size": 4, "remove_unused_columns": True},
    )  # fmt: skip
    held.train()
    weight = coverage_weight(16, torch.tensor(0.05).log()).item()
    assert logged(held, "dco/weight") == pytest.approx([1, 1, weight, weight, weight])
    assert asked
    before = AutoModelForCausalLM.from_pretrained(folder)
    first = held.state.log_history[0]
    assert first["loss"] > first["dco/loss"]  # cross entropy against the loss of 16 samples
    inputs = held.data_collator([held.train_dataset[index] for index in range(4)])
    held.model.load_state_dict(before.state_dict())
    sums, _ = log_probabilities(before, inputs)
    given = {**inputs, "coverage_weight": torch.tensor([1.0, 0.5, 0.0, 0.25])}
    wanted = (-sums * given["coverage_weight"]).mean().item()
    assert held.compute_loss(held.model, given).item() == pytest.approx(wanted, rel=1e-5)
    assert NegativeLogLikelihoodLoss()(sums.detach()).item() > wanted


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    calls: list[tuple[dict[str, Any], str]] = [
        ({"n": 0.5}, "argument `dco_n`: expected a number of samples >= 1, got 0.5"),
        ({"dco_reduction": "mean"}, "argument `dco_reduction`: expected one of"),
        ({"dco_epsilon": 2}, "argument `dco_epsilon`: expected a number in"),
        ({"dco_threshold": -1}, "argument `dco_threshold`"),
        ({"dco_warmup_steps": -1}, "argument `dco_warmup_steps`"),
        ({"options": {"loss_type": "dft"}}, "argument `loss_type`: expected 'nll'"),
        ({"options": {"label_smoothing_factor": 0.1}}, "argument `label_smoothing_factor`: expected 0"),
        ({"options": {"packing": True, "packing_strategy": "wrapped"}}, "argument `packing_strategy`: expected 'bfd'"),
        ({"options": {"packing": True}, "dco_epsilon": 0.1}, "argument `packing`: expected rows of one example"),
        ({"options": {"dataloader_num_workers": 2}, "dco_epsilon": 0.1}, "argument `dataloader_num_workers`"),
        ({"compute_loss_func": print}, "argument `compute_loss_func`: expected none"),
    ]
    for given, line in calls:
        with pytest.raises(ValueError, match=r"^argument") as caught:
            trainer(folder, tmp_path, **given)
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)


def test_no_target_token(folder: Path, tmp_path: Path) -> None:
    line = r"^argument `train_dataset`: expected a target token in every example after its first .* none in row 2$"
    table = {"input_ids": [[2, 3, 4]] * 4, "labels": [[-100, 3, 4], [2, 3, 4], [2, -100, -100], [-100, -100, 4]]}
    with pytest.raises(ValueError, match=line):
        trainer(folder, tmp_path, rows=table)
    check_targets("train_dataset", Dataset.from_dict(rows()))  # no labels yet
    held = trainer(folder, tmp_path)
    inputs = held.data_collator([held.train_dataset[index] for index in range(3)])
    inputs["labels"][1] = -100
    with pytest.raises(ValueError, match=r"^argument `inputs`: expected a target token .* got none in example 1$"):
        held.compute_loss(held.model, inputs)


def _train_on_a_rank(rank: int, folder: str, place: str) -> None:
    # The process group is there already; the host only looks at these.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29573"}
    for name, given in SHARED.items():
        options = {**given["options"], "per_device_train_batch_size": 4}
        trained = trainer(Path(folder), Path(place, f"{name}{rank}"), **{**given, "options": options})
        assert trained.accelerator.num_processes == 2
        trained.train()
        state = None if trained.coverage_filter is None else trained.coverage_filter.state_dict()
        found = {"loss": logged(trained), "weights": weights(trained).tolist(), "state": state}
        found |= {key: logged(trained, key) for key in ("dco/loss", "dco/weight", "dco/pass_at_1")}
        Path(place, f"{name}{rank}.json").write_text(json.dumps(found))


SHARED: dict[str, dict[str, Any]] = {
    "plain": {"options": {"max_steps": 3, "learning_rate": 0.1, "optim": "sgd"}},
    "filtered": {"n": 64, "dco_epsilon": 0.1, "options": {"max_steps": 3, "learning_rate": 0.1, "optim": "sgd"}},
}


def test_two_ranks_equal_one_process(taught: Path, tmp_path: Path) -> None:
    run_ranks(_train_on_a_rank, str(taught), str(tmp_path))
    for name, given in SHARED.items():
        alone = trainer(
            taught, tmp_path / name, **{**given, "options": {**given["options"], "per_device_train_batch_size": 8}}
        )
        alone.train()
        both = [json.loads((tmp_path / f"{name}{rank}.json").read_text()) for rank in (0, 1)]
        for found in both:
            torch.testing.assert_close(torch.tensor(found["weights"]), weights(alone), rtol=0, atol=1e-5)
            for key in ("loss", "dco/loss", "dco/weight", "dco/pass_at_1"):
                assert found[key] == pytest.approx(logged(alone, key), abs=1e-5), (name, key)
        if name == "filtered":
            assert both[0]["state"] == both[1]["state"]
            wanted = alone.coverage_filter.state_dict()
            assert wanted["kept"] < wanted["candidates"]
            values = pytest.approx(wanted.pop("weights"), abs=1e-5)
            assert both[0]["state"].pop("weights") == values
            assert both[0]["state"] == wanted


def test_contract_with_the_host() -> None:
    """What the trainer relies on."""
    assert list(inspect.signature(SFTTrainer.compute_loss).parameters) == [
        "self", "model", "inputs", "return_outputs", "num_items_in_batch",
    ]  # fmt: skip
    assert list(inspect.signature(Trainer.get_batch_samples).parameters) == [
        "self", "epoch_iterator", "num_batches", "device",
    ]  # fmt: skip
    assert list(inspect.signature(Trainer.train).parameters) == [
        "self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval",
    ]  # fmt: skip
    assert "loss_is_scaled_for_ga" in vars(Trainer)
    source = inspect.getsource(SFTTrainer)
    for name in ("self._metrics[mode]", "self.aux_loss_enabled", "self.router_aux_loss_coef", "fused_lm_head=True"):
        assert name in source
    assert source.count("fused_lm_head=True") == 3  # one for each loss; ours meets the last alone
    loop = inspect.getsource(Trainer)
    for name in ("self.current_gradient_accumulation_steps = len(batch_samples)", "self.args.ignore_data_skip"):
        assert name in loop
    assert loop.index("self.get_batch_samples(epoch_iterator") < loop.index("self.training_step(model, inputs, num")
    assert loop.index("self._save_checkpoint(model, trial)") < loop.index("self.callback_handler.on_save(")
    collated = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(
        [{"input_ids": [1, 2]}, {"input_ids": [3]}]
    )
    assert collated["seq_idx"].tolist() == [[0, 0, 1]]
