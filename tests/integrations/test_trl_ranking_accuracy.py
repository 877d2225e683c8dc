"""TRL: ranking accuracy logged during DPO of a tiny Llama, against scores taken by hand, on one and two processes."""

from __future__ import annotations

import inspect
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import run_ranks

pytest.importorskip("trl")
pytest.importorskip("peft")

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from scorecraft.core import IPOLoss
from scorecraft.integrations.trl.preference_trainer import PreferenceTrainer
from scorecraft.integrations.trl.ranking_accuracy import DifficultyColumns, RankingAccuracyCallback
from scorecraft.preference.ranking_accuracy import ScaledReferenceDPOLoss, diagnose_pairs

WORDS = [f"w{number}" for number in range(24)]
FIGURES = ("accuracy", "accuracy_norm", "reward_accuracy", "flipped", "unlearned", "below_threshold", "below_rounding")


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[EOS]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]", padding_side="left"
    )


def language_model(folder: Path) -> str:
    """A Llama of one layer with its tokenizer; large weights, so that its answers differ in likelihood."""
    if folder.exists():
        return str(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 3, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.6, pad_token_id=0, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def pairs(count: int, seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)

    def text(low: int, high: int) -> str:
        length = int(torch.randint(low, high, (), generator=generator))
        return " ".join(WORDS[place] for place in torch.randint(len(WORDS), (length,), generator=generator))

    rows = [{"prompt": text(2, 5), "chosen": " " + text(1, 9), "rejected": " " + text(1, 9)} for _ in range(count)]
    return Dataset.from_list(rows)


def trainer(folder: Path, kind: Any = DPOTrainer, *, held_out: Any = None, lora: bool = False, **options: Any) -> Any:
    host = {name: options.pop(name) for name in ("objective", "callbacks", "ref_model") if name in options}
    defaults: dict[str, Any] = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 4, "per_device_eval_batch_size": 8,
        "learning_rate": 3e-2, "max_steps": 6, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 3,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 1, "beta": 0.3,
        "bf16": False, "activation_checkpointing": False,
    }  # fmt: skip
    if lora:
        host["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return kind(
        language_model(folder / "model"),
        args=DPOConfig(**(defaults | options)),
        train_dataset=pairs(16),
        eval_dataset=pairs(21, seed=1) if held_out is None else held_out,
        processing_class=tokenizer(),
        **host,
    )


@torch.no_grad()
def scored_by_hand(model: Any, dataset: Dataset) -> dict[str, torch.Tensor]:
    """Log-probabilities of answers, one at a time from the whole logits in float64, and their numbers of tokens."""
    found: dict[str, list[float]] = {"chosen": [], "rejected": [], "chosen_tokens": [], "rejected_tokens": []}
    for row in dataset:
        for side in ("chosen", "rejected"):
            ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
            logs = model(input_ids=ids).logits.double().log_softmax(dim=-1)[0, :-1]
            each = logs.gather(1, ids[0, 1:, None])[len(row["prompt_ids"]) - 1 :]
            found[side].append(float(each.sum()))
            found[f"{side}_tokens"].append(len(each))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def expected(model: Any, reference: Any, dataset: Dataset) -> dict[str, float]:
    ours, theirs = scored_by_hand(model, dataset), scored_by_hand(reference, dataset)
    told = diagnose_pairs(ours["chosen"], ours["rejected"], theirs["chosen"], theirs["rejected"],
                          chosen_tokens=ours["chosen_tokens"], rejected_tokens=ours["rejected_tokens"])  # fmt: skip
    assert told.per_token is not None
    return {
        "accuracy": told.plain.ranking,
        "accuracy_norm": told.per_token.ranking,
        "reward_accuracy": told.plain.reward,
        "flipped": float(told.flips.flipped),
        "unlearned": float(told.flips.unlearned),
        "below_threshold": told.plain.ranking,
        "below_rounding": 0.0,
    }


def logged(host: Any, prefix: str = "eval") -> list[dict[str, float]]:
    """The records of ours, without what the host puts beside them."""
    start = f"{prefix}_ranking/"
    records = [
        {key.removeprefix(start): value for key, value in record.items() if key.startswith(start)}
        for record in host.state.log_history
    ]
    return [record for record in records if "flipped" in record]


class Untouched(TrainerCallback):
    """Checks that measuring leaves the model in the mode it was in."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        assert model.training


def test_contract_of_the_host(tmp_path: Path) -> None:
    """What we rely on in TRL and transformers: where a new version moves, this test says so first."""
    assert list(inspect.signature(DPOTrainer.compute_ref_log_probs).parameters) == ["self", "model", "inputs"]
    assert "log_probs" in FusedCausalLMOutput.__dataclass_fields__
    host = trainer(tmp_path, precompute_ref_log_probs=True)
    for name in ("ld_alpha", "loss_types", "beta", "ref_model", "data_collator", "model_wrapped", "accelerator"):
        assert hasattr(host, name)
    assert host.loss_types == ["sigmoid"]
    columns = {"prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"}
    assert columns <= set(host.eval_dataset.column_names)
    batch = host.data_collator([host.eval_dataset[place] for place in range(3)])
    assert batch["completion_mask"].shape == batch["input_ids"].shape == (6, batch["input_ids"].shape[1])
    assert callable(host.accelerator.reduce)
    assert "control.should_log = False" in inspect.getsource(type(host.callback_handler).on_log)  # why we restore it
    assert 'mode = "train" if self.model.training' in inspect.getsource(DPOTrainer.log)  # why we log in evaluation


@pytest.mark.parametrize("way", ["columns", "reference model", "adapter"])
def test_figures_are_those_of_scores_taken_by_hand(tmp_path: Path, way: str) -> None:
    lora = way == "adapter"
    host = trainer(tmp_path, precompute_ref_log_probs=way == "columns", lora=lora, callbacks=[Untouched()])
    callback = RankingAccuracyCallback(host)
    host.add_callback(callback)
    host.train()
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()
    wanted = expected(host.model.eval(), reference, host.eval_dataset)
    assert 0 < wanted["accuracy"] < 1  # otherwise nothing is compared
    assert wanted["reward_accuracy"] != wanted["accuracy"]
    records = logged(host)
    assert len(records) == 2  # steps 3 and 6
    assert records[-1] == pytest.approx(wanted, abs=1e-9, nan_ok=True)
    assert tuple(records[-1]) == FIGURES
    assert callback.measure() == {f"eval_ranking/{name}": value for name, value in records[-1].items()}


def test_the_host_keeps_its_own_logs(tmp_path: Path) -> None:
    """Measuring after every step neither swallows the host's records nor moves its averages into ours."""

    def training(measured: bool, folder: Path) -> list[dict[str, float]]:
        host = trainer(folder, logging_steps=2, precompute_ref_log_probs=True)
        if measured:
            host.add_callback(RankingAccuracyCallback(host, every=1))
        host.train()
        if measured:
            assert len(logged(host)) == 6  # one a step, the evaluations not twice
        keep = ("loss", "rewards/accuracies", "eval_loss", "eval_rewards/accuracies", "step")
        found = [{key: record[key] for key in keep if key in record} for record in host.state.log_history]
        return [record for record in found if len(record) > 1]

    assert training(True, tmp_path / "a") == training(False, tmp_path / "b")


def test_evaluation_returns_the_figures(tmp_path: Path) -> None:
    best = {"metric_for_best_model": "ranking/accuracy", "greater_is_better": True, "load_best_model_at_end": True}
    host = trainer(tmp_path, save_strategy="steps", save_steps=3, **best)
    host.add_callback(RankingAccuracyCallback(host))
    before = host.evaluate()
    assert before["eval_ranking/reward_accuracy"] == 0  # nothing has moved
    assert before["eval_ranking/flipped"] == before["eval_ranking/unlearned"] == 0
    host.train()
    assert host.state.best_metric == max(record["accuracy"] for record in logged(host))
    again = host.evaluate()  # of the best model, which was loaded: nothing is remembered of the last step
    assert again["eval_ranking/accuracy"] == host.state.best_metric


def test_parts_of_a_held_out_dict(tmp_path: Path) -> None:
    host = trainer(tmp_path, held_out={"a": pairs(5, seed=2), "a_b": pairs(9, seed=3)}, max_steps=3)
    host.add_callback(RankingAccuracyCallback(host))
    host.train()
    assert len(logged(host, "eval_a")) == len(logged(host, "eval_a_b")) == 1
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()
    for name in ("a", "a_b"):
        wanted = expected(host.model.eval(), reference, host.eval_dataset[name])
        assert logged(host, f"eval_{name}")[0] == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_a_subset_of_complete_pairs(tmp_path: Path) -> None:
    host = trainer(tmp_path, max_length=10, max_steps=1, eval_steps=1)
    with pytest.warns(UserWarning, match="held-out pairs exceed max_length = 10"):
        callback = RankingAccuracyCallback(host, pairs=12)
    (kept,) = callback._sets.values()
    assert 0 < len(kept) < 12
    longest = max(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in kept)
    assert longest <= 10
    own = host.eval_dataset.select(range(4))
    host.add_callback(RankingAccuracyCallback(host, own.filter(lambda row: len(row["chosen_ids"]) < 5)))
    host.train()
    assert len(logged(host)) == 1


def test_below_threshold_follows_the_loss(tmp_path: Path) -> None:
    host = trainer(tmp_path / "a", loss_type="ipo", beta=0.3, max_steps=3)
    host.add_callback(RankingAccuracyCallback(host))
    host.train()
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "a" / "model").eval()
    ours, theirs = scored_by_hand(host.model.eval(), host.eval_dataset), scored_by_hand(reference, host.eval_dataset)
    gap, before = (
        one["chosen"] / one["chosen_tokens"] - one["rejected"] / one["rejected_tokens"] for one in (ours, theirs)
    )
    slack = before + 1 / 0.6
    certain = (slack >= 0) & ((gap - slack).square() <= slack.square())
    record = logged(host)[-1]
    assert record["below_threshold"] == pytest.approx(float(certain.double().mean()))
    assert record["below_threshold"] <= record["accuracy_norm"]
    for objective, form in ((IPOLoss(beta=1e-3), "accuracy_norm"), (ScaledReferenceDPOLoss(gamma=0.5), "accuracy")):
        host = trainer(tmp_path / form, PreferenceTrainer, objective=objective, max_steps=1, eval_steps=1)
        host.add_callback(RankingAccuracyCallback(host))
        host.train()
        record = logged(host)[-1]
        assert record["below_threshold"] == pytest.approx(record[form])  # nothing is above IPO's range of 1,000 nats


def test_scaled_reference_trains(tmp_path: Path) -> None:
    """Gamma = 1 is the host's DPO to the last digits; gamma = 0 is not."""

    def losses(folder: str, kind: Any, **options: Any) -> list[float]:
        host = trainer(tmp_path / folder, kind, max_steps=3, eval_strategy="no", **options)
        host.train()
        return [record["loss"] for record in host.state.log_history if "loss" in record]

    theirs = losses("theirs", DPOTrainer)
    assert losses("one", PreferenceTrainer, objective=ScaledReferenceDPOLoss(gamma=1.0, beta=0.3)) == pytest.approx(
        theirs
    )
    zero = losses("zero", PreferenceTrainer, objective=ScaledReferenceDPOLoss(gamma=0.0, beta=0.3))
    assert zero != pytest.approx(theirs, rel=1e-2)


def test_a_model_that_is_its_own_reference(tmp_path: Path) -> None:
    """Pairs without columns are scored before the first step, and refused once it is too late."""
    host = trainer(tmp_path, precompute_ref_log_probs=True, max_steps=3)
    bare = host.eval_dataset.remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    callback = RankingAccuracyCallback(host, bare)
    host.add_callback(callback)
    with_columns = RankingAccuracyCallback(host)
    host.train()
    assert callback.measure() == pytest.approx(with_columns.measure(), nan_ok=True)
    with pytest.raises(ValueError, match=r"^argument `dataset`: expected columns ref_chosen_logps"):
        RankingAccuracyCallback(host, bare).measure()


def test_refusals(tmp_path: Path) -> None:
    host = trainer(tmp_path)
    with pytest.raises(TypeError, match=r"^argument `trainer`: expected a trl.DPOTrainer, got int"):
        RankingAccuracyCallback(1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^argument `dataset`: expected pairs prepared by the trainer"):
        RankingAccuracyCallback(host, pairs(3))
    for options, name in (({"every": 0}, "every"), ({"pairs": 0}, "pairs")):
        with pytest.raises(ValueError, match=rf"^argument `{name}`: expected an integer >= 1"):
            RankingAccuracyCallback(host, **options)
    with pytest.raises(ValueError, match=r"^argument `prefix`: expected one of 'eval', got 'test'"):
        RankingAccuracyCallback(host).measure("test")
    host.eval_dataset = None
    with pytest.raises(ValueError, match=r"^argument `dataset`: expected held-out pairs"):
        RankingAccuracyCallback(host)
    with pytest.raises(ValueError, match=r"^argument `trainer`: expected ld_alpha=None"):
        RankingAccuracyCallback(trainer(tmp_path / "ld", ld_alpha=0.5))


def test_difficulty_columns(tmp_path: Path) -> None:
    data = Dataset.from_dict({"ref_chosen_logps": [-40.0, -35.0, -7.0], "ref_rejected_logps": [-35.0, -40.0, -7.0]})
    found = data.map(DifficultyColumns(beta=0.1), batched=True)
    assert found["difficulty"][:] == pytest.approx([0.5, -0.5, 0.0], abs=1e-12)
    wanted = [0.4740769841801067, 0.9740769841801067, 0.6931471805599453]
    assert found["flip_threshold"][:] == pytest.approx(wanted, abs=1e-12)
    half = data.map(DifficultyColumns(beta=0.1, gamma=0.5), batched=True)
    assert half["difficulty"][:] == pytest.approx([0.25, -0.25, 0.0], abs=1e-12)
    with pytest.raises(ValueError, match=r"^argument `batched`: expected True"):
        data.map(DifficultyColumns())
    with pytest.raises(ValueError, match=r"^argument `dataset`: expected a column ref_rejected_logps"):
        data.remove_columns("ref_rejected_logps").map(DifficultyColumns(), batched=True)
    with pytest.raises(ValueError, match=r"^argument `beta`: expected a finite number > 0"):
        DifficultyColumns(beta=0)
    host = trainer(tmp_path, precompute_ref_log_probs=True, max_steps=1, eval_strategy="no")
    host.train_dataset = host.train_dataset.map(DifficultyColumns(beta=0.3), batched=True)
    host.train_dataset = host.train_dataset.filter(lambda row: row["difficulty"] < 2).sort("difficulty")
    host.train()
    assert 0 < len(host.train_dataset) < 16


def test_two_processes_are_one(tmp_path: Path) -> None:
    """21 pairs over two processes, whose last batches hold three and two; measured, and in distributed training."""
    language_model(tmp_path / "model")
    run_ranks(_measure_on_a_rank, tmp_path)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    measured, trained, by_hand = found[0]
    host = trainer(tmp_path)
    move(host.model)
    alone = RankingAccuracyCallback(host).measure()
    assert 0 < alone["eval_ranking/flipped"] < 1
    assert measured == pytest.approx(alone, abs=1e-12)
    assert trained == pytest.approx(by_hand, abs=1e-9)
    assert trained != {key.removeprefix("eval_ranking/"): value for key, value in measured.items()}


@torch.no_grad()
def move(model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def _measure_on_a_rank(rank: int, folder: Path) -> None:
    # The process group is there already; the host only looks at these.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29571"}
    host = trainer(folder, max_steps=2, eval_steps=2)
    assert host.accelerator.num_processes == 2
    move(host.model)
    callback = RankingAccuracyCallback(host)
    measured = callback.measure()
    host.add_callback(callback)
    host.train()
    assert host.model_wrapped is not host.model
    reference = LlamaForCausalLM.from_pretrained(folder / "model").eval()
    found = [measured, logged(host)[-1], expected(host.model.eval(), reference, host.eval_dataset)]
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


def test_a_rate_over_nothing_is_nan(tmp_path: Path) -> None:
    host = trainer(tmp_path)
    one = host.eval_dataset.select([0])
    values = RankingAccuracyCallback(host, one).measure()
    assert sum(math.isnan(values[f"eval_ranking/{name}"]) for name in ("flipped", "unlearned")) == 1
