"""The set-wise trainer on transformers' own, on tiny models built on the spot."""

from __future__ import annotations

import copy
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from datasets import Dataset, load_dataset
from tests.integrations.tiny_models import WORDS, save_tiny_llama
from tests.ranks import run_ranks
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from scorecraft.core import InfoNCELoss, ListNetLoss, ListObjective, across_ranks
from scorecraft.integrations.transformers.set_wise import (
    SetWiseCollator,
    SetWiseTrainer,
    check_head,
    load_answer_sets,
    read_row,
    score_answers_in_forward,
)
from scorecraft.preference.aft import (
    AFTLoss,
    AlignmentFineTuning,
    PROLoss,
    RankedAFTLoss,
    RRHFLoss,
    assessment_accuracy,
    gsm8k_answer,
)

GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def rows(count: int = 8, *, ranks: bool = False) -> dict[str, list[Any]]:
    """Questions of ragged sets of answers: right ones go on with the prompt's word, two sets lack a group.

    A reference is the first answer, or a text of its own.
    """
    table: dict[str, list[Any]] = {"prompt": [], "completions": [], "ranks" if ranks else "labels": [], "reference": []}
    for index in range(count):
        word = WORDS[index]
        right = [f"{word} {word}", f"{word} w40 {word}"][: 1 + index % 2]
        wrong = [f"w{20 + index} w30", f"w31 w32 w{20 + index} w33", "w41"][: 1 + index % 3]
        right, wrong = (right[:1], []) if index == 3 else ([], wrong) if index == 4 else (right, wrong)
        answers = right + wrong
        table["prompt"].append(f"{word} w45")
        table["completions"].append(answers)
        if ranks:
            table["ranks"].append([place // 2 for place in range(len(answers))])
        else:
            table["labels"].append([True] * len(right) + [False] * len(wrong))
        table["reference"].append(f"{word} w44 {word}" if index in (1, 5, 7) else answers[0])
    return table


def trainer(folder: Path, tmp_path: Path, objective: ListObjective | None = None, **given: Any) -> SetWiseTrainer:
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
        "seed": 1,
        "max_grad_norm": 0.0,
    }
    options |= given.pop("options", {})
    data = given.pop("train_dataset", None) or Dataset.from_dict(given.pop("rows", rows()))
    return SetWiseTrainer(
        given.pop("model", str(folder)),
        TrainingArguments(**options),
        data,
        objective=AFTLoss() if objective is None else objective,
        **given,
    )


def weights(trained: Any) -> Tensor:
    return torch.cat([one.detach().flatten() for one in trained.model.parameters()])


def logged(trained: Any, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trained.state.log_history if name in entry]


def by_hand(folder: Path, table: dict[str, list[Any]], model: Any = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores `[q, c]`, relevance, mask and reference log-probabilities, one text at a time from whole logits."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval() if model is None else model

    def score(prompt: str, answer: str) -> tuple[Tensor, int]:
        before = tokenizer(prompt)["input_ids"]
        whole = [*before, *tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        logits = model(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
        each = logits[range(len(before) - 1, len(whole) - 1), whole[len(before) :]]
        return each.sum(), len(whole) - len(before)

    answers = max(map(len, table["completions"]))
    scores, relevance, mask, references = [], [], [], []
    for index, (prompt, completions) in enumerate(zip(table["prompt"], table["completions"], strict=True)):
        missing = answers - len(completions)
        own = [total / count for total, count in (score(prompt, text) for text in completions)]
        scores.append(torch.stack([*own, *[torch.zeros(())] * missing]))
        grades = table["labels"][index] if "labels" in table else [-rank + 9 for rank in table["ranks"][index]]
        relevance.append([float(grade) for grade in grades] + [0.0] * missing)
        mask.append([True] * len(completions) + [False] * missing)
        references.append(score(prompt, table["reference"][index])[0])
    return torch.stack(scores), torch.tensor(relevance), torch.tensor(mask), torch.stack(references)


OBJECTIVES = [
    AFTLoss(constraint="none"),
    AFTLoss(),
    AFTLoss(constraint="boundary"),
    RRHFLoss(),
    RRHFLoss(constraint="detach"),
    PROLoss(constraint="detach"),
    InfoNCELoss(),
    ListNetLoss(),
    AFTLoss() + 0.5 * RRHFLoss(constraint="detach"),
    InfoNCELoss() + 0.5 * AFTLoss(reduction="sum"),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_value_and_gradient_are_those_of_whole_logits(folder: Path, tmp_path: Path, objective: ListObjective) -> None:
    held = trainer(folder, tmp_path, objective, alignment_weight=0.7)
    inputs = held.data_collator([held.train_dataset[index] for index in range(8)])
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    scores, relevance, mask, references = by_hand(folder, rows(), model)
    wanted = AlignmentFineTuning(objective, weight=0.7)(scores, relevance, mask, reference_log_probabilities=references)
    wanted.backward()
    held.model.eval()
    found = held.compute_loss(held.model, inputs)
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    for mine, theirs in zip(held.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_ranks_are_read(folder: Path, tmp_path: Path) -> None:
    table = rows(ranks=True)
    held = trainer(folder, tmp_path, RankedAFTLoss(constraint="boundary"), rows=table)
    inputs = held.data_collator([held.train_dataset[index] for index in range(8)])
    scores, relevance, mask, references = by_hand(folder, table)
    wanted = AlignmentFineTuning(RankedAFTLoss(constraint="boundary"))(
        scores, relevance, mask, reference_log_probabilities=references
    )
    held.model.eval()
    assert held.compute_loss(held.model, inputs).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("reference_loss", ["sum", "mean", "none"])
def test_forms_of_the_reference(folder: Path, tmp_path: Path, reference_loss: Any) -> None:
    table = rows()
    if reference_loss == "none":
        del table["reference"]
    held = trainer(folder, tmp_path, AFTLoss(constraint="none"), rows=table, reference_loss=reference_loss)
    held.model.eval()
    inputs = held.data_collator([held.train_dataset[index] for index in range(8)])
    scores, relevance, mask, references = by_hand(folder, rows())
    alignment = AFTLoss(constraint="none")(scores, relevance, mask)
    lengths = torch.tensor([len(text.split()) + 1 for text in rows()["reference"]])
    wanted = {
        "sum": alignment - references.mean(),
        "mean": alignment - (references / lengths).mean(),
        "none": alignment,
    }[reference_loss]
    assert held.compute_loss(held.model, inputs).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("objective", [AFTLoss(), InfoNCELoss() + 0.3 * AFTLoss(constraint="boundary")], ids=str)
def test_accumulated_batches_are_one_batch(folder: Path, tmp_path: Path, objective: ListObjective) -> None:
    """Batches of 3, 3 and 1 questions, of which InfoNCE counts those with a right answer."""
    runs = [
        trainer(folder, tmp_path, objective, rows=rows(7), options=options | {"max_steps": 2, "optim": "sgd"})
        for options in (
            {"per_device_train_batch_size": 7},
            {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 7},
        )
    ]
    for run in runs:
        run.train()
    for run in runs[1:]:
        assert logged(run) == pytest.approx(logged(runs[0]), rel=1e-5)
        assert logged(run, "loss/alignment") == pytest.approx(logged(runs[0], "loss/alignment"), rel=1e-5)
        torch.testing.assert_close(weights(run), weights(runs[0]), rtol=1e-5, atol=1e-6)


def forward_calls(held: SetWiseTrainer) -> list[tuple[int, bool]]:
    """Rows and gradient mode of each pass of a training step of all questions."""
    calls: list[tuple[int, bool]] = []
    hook = held.model.model.register_forward_pre_hook(
        lambda module, given, named: calls.append((len(named["input_ids"]), torch.is_grad_enabled())), with_kwargs=True
    )
    held.model.train()
    held.compute_loss(held.model, held.data_collator([held.train_dataset[index] for index in range(8)])).backward()
    hook.remove()
    return calls


def test_wrong_answers_are_scored_without_a_graph_under_the_detached_constraint(folder: Path, tmp_path: Path) -> None:
    table = rows()
    wrong = sum(not label for labels in table["labels"] for label in labels)
    own = sum(
        reference not in answers for reference, answers in zip(table["reference"], table["completions"], strict=True)
    )
    everything = sum(map(len, table["completions"])) + own
    assert forward_calls(trainer(folder, tmp_path, AFTLoss(constraint="boundary"))) == [(everything, True)]
    # Of the set of wrong answers alone one is its reference; the set of a right one has nothing to spare.
    assert forward_calls(trainer(folder, tmp_path)) == [(wrong - 1, False), (everything - wrong + 1, True)]
    # Without references, the answers of the two sets that lack a group need no gradient either.
    del table["reference"]
    without = trainer(folder, tmp_path, rows=table, reference_loss="none")
    paired = sum(sum(labels) for labels in table["labels"] if not all(labels))
    assert forward_calls(without) == [(everything - own - paired, False), (paired, True)]
    both = trainer(folder, tmp_path, AFTLoss() + RRHFLoss(), rows=table, reference_loss="none")
    assert forward_calls(both) == [(everything - own, True)]


def test_a_batch_without_a_pair_has_a_zero_gradient(folder: Path, tmp_path: Path) -> None:
    table = {"prompt": ["w1"], "completions": [["w2", "w3 w4"]], "labels": [[False, False]]}
    for objective in (
        AFTLoss(),
        AFTLoss(constraint="boundary"),
        RRHFLoss(constraint="detach"),
        PROLoss(constraint="detach"),
    ):
        held = trainer(folder, tmp_path, objective, rows=table, reference_loss="none")
        loss = held.compute_loss(held.model, held.data_collator([held.train_dataset[0]]))
        loss.backward()
        assert loss == 0
        assert all((one.grad == 0).all() for one in held.model.parameters() if one.grad is not None)


def test_training_assesses_better_and_evaluation_says_so(folder: Path, tmp_path: Path) -> None:
    held = trainer(
        folder,
        tmp_path,
        options={"max_steps": 25, "per_device_eval_batch_size": 3},
        eval_dataset=Dataset.from_dict(rows()),
    )
    before = held.evaluate()
    held.train()
    after = held.evaluate()
    assert after["eval_assessment_accuracy"] > before["eval_assessment_accuracy"]
    assert after["eval_loss"] < before["eval_loss"]
    scores, relevance, mask, references = by_hand(folder, rows())
    alignment = AFTLoss()(scores, relevance, mask).item()
    assert before["eval_loss"] == pytest.approx(alignment - references.mean().item(), rel=1e-5)
    assert before["eval_loss/alignment"] == pytest.approx(alignment, rel=1e-5)
    assert before["eval_assessment_accuracy"] == pytest.approx(assessment_accuracy(scores, relevance, mask).item())
    right = (relevance > 0) & mask
    assert before["eval_perplexity/right"] == pytest.approx((-scores[right]).exp().mean().item(), rel=1e-5)
    assert before["eval_perplexity/wrong"] == pytest.approx((-scores[mask & ~right]).exp().mean().item(), rel=1e-5)
    assert logged(held, "assessment_accuracy")[-1] > 0.9


def test_metrics_of_the_user_see_scores_and_labels(folder: Path, tmp_path: Path) -> None:
    def best_is_right(found: Any) -> dict[str, float]:
        missing = found.label_ids == -100
        best = np.where(missing, -np.inf, found.predictions).argmax(axis=1)
        return {"best": float((found.label_ids[np.arange(len(best)), best] > 0).mean())}

    held = trainer(
        folder,
        tmp_path,
        eval_dataset=Dataset.from_dict(rows()),
        compute_metrics=best_is_right,
        options={"per_device_eval_batch_size": 3},
    )
    scores, relevance, mask, _ = by_hand(folder, rows())
    best = scores.masked_fill(~mask, -torch.inf).argmax(dim=1)
    wanted = relevance.gather(1, best[:, None]).mean().item()
    assert held.evaluate()["eval_best"] == pytest.approx(wanted)


def test_mixed_precision(folder: Path, tmp_path: Path) -> None:
    whole = trainer(folder, tmp_path, eval_dataset=Dataset.from_dict(rows())).evaluate()
    half = trainer(folder, tmp_path, eval_dataset=Dataset.from_dict(rows()), options={"bf16": True})
    assert half.evaluate()["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-2)
    half.train()
    assert all(one.dtype == torch.float32 for one in half.model.parameters())


def test_checkpoints_go_on_where_they_stopped(folder: Path, tmp_path: Path) -> None:
    options = {"max_steps": 6, "save_steps": 3, "save_strategy": "steps"}
    whole = trainer(folder, tmp_path / "whole", options=options)
    whole.train()
    stopped = tmp_path / "whole" / "out" / "checkpoint-3"
    again = trainer(folder, tmp_path / "again", options=options)
    again.train(resume_from_checkpoint=str(stopped))
    assert again.state.global_step == 6
    torch.testing.assert_close(weights(again), weights(whole), rtol=1e-5, atol=1e-6)
    again.save_model(str(tmp_path / "kept"))
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "kept")
    torch.testing.assert_close(weights(again), torch.cat([one.flatten() for one in kept.parameters()]).detach())
    assert (tmp_path / "kept" / "tokenizer.json").exists()


EVERY_ROW = {"max_steps": 8, "learning_rate": 0.05, "per_device_train_batch_size": 8}


@pytest.mark.parametrize("ready", [False, True], ids=["peft_config", "adapted model"])
def test_lora(folder: Path, tmp_path: Path, ready: bool) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    if ready:
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        held = trainer(folder, tmp_path, model=model, processing_class=tokenizer, options=EVERY_ROW)
    else:
        held = trainer(folder, tmp_path, peft_config=config, options=EVERY_ROW)
    before = {name: one.detach().clone() for name, one in held.model.named_parameters()}
    inputs = held.data_collator([held.train_dataset[index] for index in range(8)])
    held.model.eval()
    scores, relevance, mask, references = by_hand(folder, rows())  # adapters start at zero
    wanted = AFTLoss()(scores, relevance, mask) - references.mean()
    assert held.compute_loss(held.model, inputs).item() == pytest.approx(wanted.item(), rel=1e-5)
    held.train()
    moved = {name for name, one in held.model.named_parameters() if not torch.equal(one, before[name])}
    assert moved
    assert all("lora" in name for name in moved)
    assert logged(held)[-1] < logged(held)[0]
    held.save_model(str(tmp_path / "kept"))
    assert (tmp_path / "kept" / "adapter_model.safetensors").exists()


def test_prompt_learning(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    held = trainer(folder, tmp_path, peft_config=config, options=EVERY_ROW)
    held.train()
    assert logged(held)[-1] < logged(held)[0]


def test_gradient_checkpointing_changes_nothing(folder: Path, tmp_path: Path) -> None:
    plain = trainer(folder, tmp_path)
    saving = trainer(folder, tmp_path, options={"gradient_checkpointing": True})
    plain.train()
    saving.train()
    torch.testing.assert_close(weights(saving), weights(plain), rtol=1e-5, atol=1e-6)


def test_rows_may_stream(folder: Path, tmp_path: Path) -> None:
    table = Dataset.from_dict(rows())
    streamed = trainer(folder, tmp_path, train_dataset=table.to_iterable_dataset())
    streamed.train()
    assert streamed.args.accelerator_config.dispatch_batches is False
    assert len(logged(streamed)) == 2
    broken = rows()
    broken["labels"][0] = [True] * 9
    with pytest.raises(ValueError, match=r"argument `rows`: expected 2 `labels`, one per completion, got 9 in row 0"):
        trainer(folder, tmp_path, train_dataset=Dataset.from_dict(broken).to_iterable_dataset()).train()


def test_other_models_and_a_bias_in_the_head() -> None:
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=2)).eval()
    gpt.lm_head = torch.nn.Linear(8, 40)
    check_head(gpt)
    score_answers_in_forward(gpt)
    score_answers_in_forward(gpt)
    ids = torch.randint(0, 40, (3, 7))
    labels = ids.clone()
    labels[:, :3] = -100
    wanted = gpt(ids).logits.log_softmax(dim=-1)[:, 2:-1].gather(2, ids[:, 3:, None]).sum(dim=(1, 2))
    torch.testing.assert_close(gpt(ids, answer_labels=labels).sums, wanted)
    twin = copy.deepcopy(gpt)
    with torch.no_grad():
        twin.lm_head.weight.mul_(2)
    assert not torch.allclose(twin(ids, answer_labels=labels).sums, wanted)
    assert "input_ids" in inspect.signature(gpt.forward).parameters
    small = {"vocab_size": 40, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    scaled = GraniteForCausalLM(GraniteConfig(**small, logits_scaling=1.1))
    capped = Gemma2ForCausalLM(Gemma2Config(**small, head_dim=4, final_logit_softcapping=30.0))
    for model in (scaled, capped):
        with pytest.raises(ValueError, match=r"argument `model`: expected logits that are its head times its last hid"):
            check_head(model)
    check_head(GraniteForCausalLM(GraniteConfig(**small, logits_scaling=1.0)))


def test_collator(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id
    collate = SetWiseCollator(tokenizer)
    batch = collate(
        [
            {"prompt": "w1 w2", "completions": ["w3", "w4 w5"], "labels": [True, False], "reference": "w3 w3 w3"},
            {"prompt": "w6", "completions": ["w7", "w8", "w9"], "ranks": [3, 1, 3], "reference": 1},
        ]
    )
    w = {f"w{number}": number + 2 for number in range(10)}
    assert batch["input_ids"].shape == (2, 3, 6)
    assert batch["input_ids"][0, 1].tolist() == [w["w1"], w["w2"], w["w4"], w["w5"], end, 0]
    assert batch["targets"][0, 1].tolist() == [-100, -100, w["w4"], w["w5"], end, -100]
    assert batch["targets"][0, 2].tolist() == [-100, -100, w["w3"], w["w3"], w["w3"], end]
    assert batch["attention_mask"].sum(dim=2).tolist() == [[4, 5, 6], [3, 3, 3]]
    assert batch["relevance"].tolist() == [[1, 0, 0], [0, 2, 0]]
    assert batch["candidates"].tolist() == [[True, True, False], [True, True, True]]
    assert batch["reference"].tolist() == [[False, False, True], [False, True, False]]
    short = SetWiseCollator(tokenizer, max_length=3)
    cut = short([{"prompt": "w1", "completions": ["w2 w3 w4", "w5"], "labels": [1, 0]}])
    assert cut["targets"][0].tolist() == [[-100, w["w2"], w["w3"]], [-100, w["w5"], end]]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}w9 "
    chat = SetWiseCollator(tokenizer)(
        [{"prompt": [{"role": "user", "content": "w1"}], "completions": ["w2"], "labels": [True]}]
    )
    assert chat["input_ids"][0, 0].tolist() == [w["w1"], w["w9"], w["w2"], end]


REFUSED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda row: row.update(completions=["w1", " "]), r"answers that are not empty, got ' ' as completion 1 of row 5"),
    (lambda row: row.update(completions=[]), r"a list of `completions` in every row, one at least, got \[\] in row 5"),
    (lambda row: row.update(completions=None), r"a list of `completions` in every row"),
    (lambda row: row.update(labels=[True]), r"2 `labels`, one per completion, got 1 in row 5"),
    (lambda row: row.update(labels=[True, 3]), r"`labels` that are true or false, got \[True, 3\] in row 5"),
    (lambda row: row.pop("labels"), r"either `labels` or `ranks` in every row, got neither in row 5"),
    (lambda row: row.update(ranks=[1, 2]), r"either `labels` or `ranks` in every row, got both in row 5"),
    (
        lambda row: (row.pop("labels"), row.update(ranks=[1, True])),
        r"`ranks` that are integers, got \[1, True\] in row 5",
    ),
    (lambda row: row.pop("reference"), r"a `reference` in every row \(or reference_loss='none'\), got none in row 5"),
    (lambda row: row.update(reference=2), r"a `reference` that is a text or a place below 2, got 2 in row 5"),
    (lambda row: row.update(reference=" "), r"a reference that is not empty, got ' ' in row 5"),
    (lambda row: row.update(prompt=""), r"a `prompt` of text or messages in every row, got '' in row 5"),
]


@pytest.mark.parametrize("change, message", REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_rows_that_are_refused(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    row: dict[str, Any] = {"prompt": "w1", "completions": ["w2", "w3"], "labels": [True, False], "reference": 0}
    read_row(row, needs_reference=True, name="train_dataset", place=5)
    change(row)
    with pytest.raises(ValueError, match=r"^argument `train_dataset`: expected " + message) as caught:
        read_row(row, needs_reference=True, name="train_dataset", place=5)
    assert "\n" not in str(caught.value)


def test_what_the_trainer_refuses(folder: Path, tmp_path: Path) -> None:
    table = rows()
    table["labels"][6] = [True]
    with pytest.raises(ValueError, match=r"argument `train_dataset`: expected 2 `labels`.* got 1 in row 6"):
        trainer(folder, tmp_path, rows=table)
    with pytest.raises(ValueError, match=r"argument `eval_dataset`: expected 2 `labels`"):
        trainer(folder, tmp_path, eval_dataset=Dataset.from_dict(table))
    table = rows()
    del table["reference"]
    with pytest.raises(ValueError, match=r"argument `train_dataset`: expected a `reference` in every row"):
        trainer(folder, tmp_path, rows=table)
    with pytest.raises(ValueError, match=r"argument `objective`: expected an objective of one score per answer"):
        trainer(folder, tmp_path, AFTLoss(reduction="none"))
    with pytest.raises(ValueError, match=r"argument `objective`: expected the objective itself"):
        trainer(folder, tmp_path, across_ranks(AFTLoss()))
    with pytest.raises(TypeError, match=r"argument `objective`: expected a list objective, got Linear"):
        trainer(folder, tmp_path, torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"argument `alignment_weight`: expected a finite number >= 0"):
        trainer(folder, tmp_path, alignment_weight=-1)
    collate = SetWiseCollator(AutoTokenizer.from_pretrained(folder), max_length=2)
    with pytest.raises(
        ValueError, match=r"argument `max_length`: expected room for answers behind prompts of 2 tokens"
    ):
        collate([{"prompt": "w1 w2", "completions": ["w3"], "labels": [True]}])
    with pytest.raises(ValueError, match=r"argument `rows`: expected a prompt of one token at least"):
        collate([{"prompt": " ", "completions": ["w3"], "labels": [True]}])


def test_answers_from_files(tmp_path: Path) -> None:
    flat = [
        {"q": "one", "a": "1", "ok": True, "gold": "I"},
        {"q": "two", "a": "3", "ok": False, "gold": "II"},
        {"q": "one", "a": "1 ", "ok": True, "gold": "I"},
        {"q": "one", "a": "2", "ok": False, "gold": "I"},
        {"q": "two", "a": "3", "ok": True, "gold": "II"},
    ]
    file = tmp_path / "flat.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in flat))
    columns = {"prompt": "q", "completion": "a"}
    found = load_answer_sets(file, label="ok", reference="gold", **columns)
    assert found.to_list() == [
        {"prompt": "one", "completions": ["I", "1", "2"], "labels": [True, True, False], "reference": 0},
        {"prompt": "two", "completions": ["II"], "labels": [True], "reference": 0},
    ]
    graded = load_answer_sets(tmp_path, split="flat", label=lambda row: row["a"].strip() == "1", **columns)
    assert graded["labels"] == [[True, False], [False]]
    ready = tmp_path / "ready.parquet"
    Dataset.from_dict(rows()).to_parquet(str(ready))
    assert load_answer_sets(ready).to_dict() == Dataset.from_dict(rows()).to_dict()
    for call, message in (
        (
            lambda: load_answer_sets(file, label="right", **columns),
            r"`source`: expected a column `right`, got q, a, ok",
        ),
        (
            lambda: load_answer_sets(file, **columns),
            r"`label`: expected a column or function of labels, .* got neither",
        ),
        (lambda: load_answer_sets(file, label="ok", rank="ok", **columns), r"`label`: expected .* got both"),
        (lambda: load_answer_sets(file, label="gold", **columns), r"`label`: expected labels that are true or false"),
        (lambda: load_answer_sets(file, label="ok", conflicting="refuse", **columns), r"`labels`: expected one judge"),
        (lambda: load_answer_sets(tmp_path, split="train"), r"`source`: expected one file train.parquet, .* got flat"),
        (lambda: load_answer_sets(tmp_path / "none.jsonl"), r"`source`: expected a file or folder that is there"),
    ):
        with pytest.raises(ValueError, match="^argument " + message):
            call()


def test_contract_with_the_host() -> None:
    """What the trainer relies on."""
    assert list(inspect.signature(Trainer.compute_loss).parameters) == [
        "self", "model", "inputs", "return_outputs", "num_items_in_batch",
    ]  # fmt: skip
    assert list(inspect.signature(Trainer.get_batch_samples).parameters) == [
        "self", "epoch_iterator", "num_batches", "device",
    ]  # fmt: skip
    assert list(inspect.signature(Trainer.prediction_step).parameters) == [
        "self", "model", "inputs", "prediction_loss_only", "ignore_keys",
    ]  # fmt: skip
    assert list(inspect.signature(Trainer.log).parameters) == ["self", "logs", "start_time"]
    assert "metric_key_prefix" in inspect.signature(Trainer.evaluation_loop).parameters
    assert Trainer.loss_is_scaled_for_ga is None
    source = inspect.getsource(Trainer)
    for name in (
        "self.loss_is_scaled_for_ga is not None",
        "batch_samples, num_items_in_batch = self.get_batch_samples(",
        "self._set_signature_columns_if_needed()",
        "self._signature_columns",
    ):
        assert name in source


RANKED = {"detached": AFTLoss(), "sum": InfoNCELoss() + 0.3 * AFTLoss(constraint="boundary")}


def _train_on_a_rank(rank: int, folder: Path, out: Path) -> None:
    port = (out / "port").read_text()
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}  # the group is there already
    found: dict[str, Any] = {}
    for name, objective in RANKED.items():
        held = trainer(
            folder, out / name, objective,
            options={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "optim": "sgd"},
            eval_dataset=Dataset.from_dict(rows(7)),
        )  # fmt: skip
        assert held.accelerator.num_processes == 2
        held.train()
        found[name] = {"weights": weights(held).tolist(), "loss": logged(held), "eval": figures(held.evaluate())}
    (out / f"{rank}.json").write_text(json.dumps(found))


def figures(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "/" in name or "accuracy" in name}


def test_two_ranks_equal_one_process(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "port").write_text(str(29600 + os.getpid() % 300))
    run_ranks(_train_on_a_rank, folder, tmp_path)
    on_ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for name, objective in RANKED.items():
        alone = trainer(
            folder, tmp_path, objective,
            options={"per_device_train_batch_size": 8, "optim": "sgd"}, eval_dataset=Dataset.from_dict(rows(7)),
        )  # fmt: skip
        start = weights(alone).clone()
        alone.train()
        assert (weights(alone) - start).abs().max() > 1e-3
        for found in on_ranks:
            torch.testing.assert_close(torch.tensor(found[name]["weights"]), weights(alone), rtol=1e-5, atol=1e-5)
            assert found[name]["loss"] == pytest.approx(logged(alone), rel=1e-5)
            assert found[name]["eval"] == pytest.approx(figures(alone.evaluate()), rel=1e-4)


def gsm8k_model(texts: list[str]) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A small language model over the bytes of these texts, in pieces."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=["[PAD]", "[EOS]"], show_progress=False,
                                   initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]", eos_token="[EOS]")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=600, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


@pytest.mark.skipif(not GSM8K.exists(), reason=f"{GSM8K} is not there")
def test_gsm8k_with_several_answers_per_question(tmp_path: Path) -> None:
    table = load_answer_sets(
        GSM8K, split="model_solutions", prompt="question", completion="solution", label="is_correct",
        reference="ground_truth",
    )  # fmt: skip
    assert len(table) == 1319
    assert all(2 <= len(row["completions"]) <= 5 and row["labels"][0] for row in table)
    both = [index for index, labels in enumerate(table["labels"]) if not all(labels)]
    train, held_out = table.select(both[:8]), table.select(both[8:16])
    model, tokenizer = gsm8k_model([text for row in train for text in [row["prompt"], *row["completions"]]])
    held = SetWiseTrainer(
        model,
        TrainingArguments(
            str(tmp_path / "out"), per_device_train_batch_size=4, max_steps=6, learning_rate=1e-2, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, seed=1,
        ),
        train,
        held_out,
        objective=AFTLoss(constraint="boundary"),
        processing_class=tokenizer,
        reference_loss="mean",
        max_length=600,
    )  # fmt: skip
    before = held.evaluate()
    held.train()
    after = held.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_perplexity/right"] < before["eval_perplexity/right"]
    assert 0 <= after["eval_assessment_accuracy"] <= 1


@pytest.mark.skipif(not GSM8K.exists(), reason=f"{GSM8K} is not there")
def test_gsm8k_final_answers_are_read(tmp_path: Path) -> None:
    """What the data say of an answer is what its final answer says."""
    truths = load_dataset("parquet", data_files=str(GSM8K / "test.parquet"), split="train")["answer"]
    read = [gsm8k_answer(text) for text in truths]
    assert None not in read
    solutions = load_dataset("parquet", data_files=str(GSM8K / "model_solutions.parquet"), split="train")

    def parse(text: str) -> str | None:
        return gsm8k_answer(text.replace("\nA: ", "\n#### "))

    agreed = [(parse(row["solution"]) == read[row["question_id"]]) == row["is_correct"] for row in solutions]
    assert sum(agreed) / len(agreed) > 0.99
