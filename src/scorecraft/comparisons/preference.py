"""`compare preference`: which objective aligns a language model best with one's own pairs of answers?

Every seed splits the pairs. Each contender trains the same model in TRL's own trainer on the same batches, once per
learning rate of the same grid; the rate with the best reward accuracy on the validation pairs is taken, and the test
pairs are looked at once, with that model. The reference is the model before training. The model called `tiny` is built
on the spot: a byte-level tokenizer made from the texts, and two layers that first learn to write the chosen answers of
the training pairs.
"""

from __future__ import annotations

import copy
import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.catalog.objectives import make_preference_objective
from scorecraft.comparisons.comparison import TEST, TRAINING, Comparison, contender_name, tuned
from scorecraft.comparisons.labelled_data import BadData
from scorecraft.comparisons.preference_data import PreferenceData, load_preferences
from scorecraft.comparisons.text_ranking import Parts, rounds, split_queries, training_options
from scorecraft.core.files import write_atomically
from scorecraft.integrations.optional import require
from scorecraft.preference.ranking_accuracy import PairDiagnosis, diagnose_pairs
from scorecraft.studies.study import Contender, Metric, Scale, World
from scorecraft.studies.worlds import generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY = "tiny"
DEFAULT_OBJECTIVES = ("dpo", "ipo", "simpo", "logic: L -> W given W | L")
METRICS = (
    Metric("reward_accuracy", "reward accuracy"),
    Metric("ranking_accuracy", "ranking accuracy"),
    Metric("ranking_accuracy_per_token", "ranking accuracy, per token"),
    Metric("idealized_accuracy", "idealised ranking accuracy (median over beta)"),
    Metric("reference_ranking_accuracy", "ranking accuracy of the reference"),
    Metric("difficulty", "median difficulty of a pair (beta 0.1)", "lower", decimals=2),
    Metric("flipped", "share of wrong rankings put right"),
    Metric("chosen_change", "change of log p(chosen) per token", decimals=3),
    Metric("validation", "reward accuracy on the validation pairs"),
)
_TINY: dict[str, Any] = {"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 512}  # fmt: skip
_SCORED = 16
"""Pairs that are scored at a time."""


def preference_comparison(
    source: str,
    objectives: Sequence[str],
    *,
    model: str = TINY,
    steps: int = 40,
    batch: int = 16,
    learning_rates: Sequence[float] | None = None,
    pairs: int = 400,
    max_tokens: int = 128,
    split: str | None = None,
    log_probabilities: Path | None = None,
) -> Comparison:
    """A comparison of objectives on pairs of answers.

    Args:
        source: the data, see `load_preferences`, which also takes `split`.
        objectives: as they are typed (`dpo:beta=0.5`, `logic: L -> W given W | L`).
        model: `tiny`, a folder, or the name of a causal language model on the hub.
        steps: batches per training.
        batch: pairs per batch.
        learning_rates: the grid; for a tiny model or a pretrained one where left out.
        pairs: at most so many are used, drawn once.
        max_tokens: at which a dialogue is cut, from its beginning.
        log_probabilities: a folder for one table per trial with the log-probabilities of its test pairs, as
            `scorecraft diagnose preference` reads them.

    Raises:
        BadData, UnknownObjective, ValueError: in one line.
    """
    require("trl", "rlhf")
    for text in objectives:
        make_preference_objective(text)
    data = load_preferences(source, split=split)
    kept = min(pairs, len(data))
    if kept < 10:
        raise BadData(f"data `{source}`: expected at least 10 pairs of two different answers, got {kept}")
    if model != TINY:
        causal_model(model, 0)
    rates = learning_rates or ((1e-3, 3e-3) if model == TINY else (1e-6, 5e-6))
    left_out = f" ({data.left_out} with an empty answer or two equal ones left out)" if data.left_out else ""
    world = World(
        "data",
        source,
        f"{kept} of {len(data)} pairs of answers{left_out}; pairs of their own for training, validation and test; "
        f"model: {model}.",
        {
            "source": source,
            "sha256": data.digest(),
            "split": split,
            "pairs": kept,
            "model": model,
            "max_tokens": max_tokens,
        },
    )
    return Comparison(
        task="preference",
        metrics=METRICS,
        world=world,
        contenders=tuple(Contender(contender_name(text), text, settings={"objective": text}) for text in objectives),
        trial=partial(preference_trial, folder=log_probabilities),
        scale=Scale("desk", 8, {"steps": steps, "batch": batch, "learning_rates": ", ".join(f"{r:g}" for r in rates),
                                "weight_decay": 0.0}),
        test_share=TEST / TRAINING,
    )  # fmt: skip


class Answers(NamedTuple):
    """What a model thinks of some pairs: log-probabilities of whole answers, and their lengths."""

    chosen: Float[Tensor, " n"]
    rejected: Float[Tensor, " n"]
    chosen_tokens: Int[Tensor, " n"]
    rejected_tokens: Int[Tensor, " n"]


def preference_trial(
    world: World, contender: Contender, seed: int, scale: Scale, *, folder: Path | None = None
) -> Mapping[str, float]:
    """Train one model per learning rate, choose on the validation pairs, measure on the test pairs."""
    told, data = scale.settings, _pairs_in(world)
    parts = split_queries(len(data), seed)
    model, tokenizer = start_of(world, data, parts, seed)
    validation, test = (_tokenized(data, tokenizer, part) for part in (parts.validation, parts.test))
    longest = world.settings["max_tokens"]
    before = {name: scored(model, rows, longest) for name, rows in (("validation", validation), ("test", test))}

    def attempt(rate: float) -> tuple[float, PreTrainedModel]:
        trained = _trained(model, tokenizer, contender.settings["objective"], data, parts.training, rate, world, told,
                           seed)  # fmt: skip
        return diagnosis(scored(trained, validation, longest), before["validation"]).plain.reward, trained

    reached, trained = tuned(told["learning_rates"], attempt)
    after = scored(trained, test, longest)
    found = diagnosis(after, before["test"])
    if folder is not None:
        write_log_probabilities(folder / f"{contender.name}-{seed}.csv", after, before["test"])
    assert found.per_token is not None
    assert found.plain.idealized is not None
    change = (after.chosen - before["test"].chosen) / after.chosen_tokens
    flipped = float(found.flips.flipped)
    return {
        "reward_accuracy": found.plain.reward,
        "ranking_accuracy": found.plain.ranking,
        "ranking_accuracy_per_token": found.per_token.ranking,
        "idealized_accuracy": float(found.plain.idealized.median),
        "reference_ranking_accuracy": found.plain.reference_ranking,
        "difficulty": float(found.difficulty.median()),
        "flipped": flipped if flipped == flipped else 0.0,
        "chosen_change": float(change.mean()),
        "validation": reached,
    }


def diagnosis(after: Answers, before: Answers) -> PairDiagnosis:
    """Accuracies, difficulties and flips of pairs; the annotators are taken to be of one mind."""
    return diagnose_pairs(
        after.chosen,
        after.rejected,
        before.chosen,
        before.rejected,
        chosen_tokens=after.chosen_tokens,
        rejected_tokens=after.rejected_tokens,
        alpha=torch.ones(len(after.chosen), dtype=after.chosen.dtype),
    )


def write_log_probabilities(path: Path, after: Answers, before: Answers) -> None:
    """A table of pairs as `scorecraft diagnose preference` reads it."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["chosen", "rejected", "reference_chosen", "reference_rejected", "chosen_tokens",
                     "rejected_tokens"])  # fmt: skip
    columns = (after.chosen, after.rejected, before.chosen, before.rejected, after.chosen_tokens, after.rejected_tokens)
    writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
    write_atomically(path, table.getvalue())


@torch.no_grad()
def scored(model: PreTrainedModel, rows: Sequence[Mapping[str, list[int]]], longest: int) -> Answers:
    """Log-probabilities of both answers of tokenised pairs, each cut to its last tokens as in training."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from scorecraft.preference.answer_log_probabilities import answer_log_probabilities

    collate = DataCollatorForPreference(pad_token_id=0, max_length=longest, truncation_mode="keep_end")
    backbone, head = model.get_decoder(), cast(torch.nn.Linear, model.get_output_embeddings())
    model.eval()
    sums, tokens = [], []
    for start in range(0, len(rows), _SCORED):
        inputs = collate([dict(row) for row in rows[start : start + _SCORED]])
        ids, mask = inputs["input_ids"].to(model.device), inputs["attention_mask"].to(model.device)
        labels = ids.masked_fill(inputs["completion_mask"].to(model.device) == 0, -100)
        hidden = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        found = answer_log_probabilities(hidden, head.weight, labels, bias=head.bias)
        sums.append(found.sums.cpu().view(2, -1))
        tokens.append(found.tokens.cpu().view(2, -1))
    (chosen, rejected), (chosen_tokens, rejected_tokens) = torch.cat(sums, dim=1), torch.cat(tokens, dim=1)
    return Answers(chosen, rejected, chosen_tokens, rejected_tokens)


def start_of(
    world: World, data: PreferenceData, parts: Parts, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that every contender of a seed starts from."""
    name = world.settings["model"]
    if name != TINY:
        return causal_model(name, seed)
    tokenizer = tiny_tokenizer(world.settings["source"], world.settings["split"], world.settings["pairs"])
    return _tiny_model(tokenizer, data, parts, seed, world), tokenizer


def causal_model(name: str, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model with its tokenizer, from a folder or the hub.

    Raises:
        BadData: in one line.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise BadData(
            f"model `{name}`: expected `{TINY}`, a folder, or a causal language model of the hub "
            f"({str(error).splitlines()[0]})"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return _on_device(model), tokenizer


def _on_device(model: Any) -> Any:
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=1)
def tiny_tokenizer(source: str, split: str | None, pairs: int) -> PreTrainedTokenizerBase:
    """Byte pairs of the texts themselves: no file, no unknown token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    data = _drawn(source, split, pairs)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_TINY["vocab_size"], special_tokens=["<pad>", "<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    words.train_from_iterator([*data.prompts, *data.chosen, *data.rejected], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def _tiny_model(
    tokenizer: PreTrainedTokenizerBase, data: PreferenceData, parts: Parts, seed: int, world: World
) -> PreTrainedModel:
    """Two layers that have learnt to write the chosen answers of the training pairs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**_TINY, pad_token_id=0, bos_token_id=None, eos_token_id=1))
    _on_device(model).train()
    rows = _tokenized(data, tokenizer, parts.training)
    longest = world.settings["max_tokens"]
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    random = generator(seed, "first steps")
    for order in rounds(len(rows), 60 * 16, random).split(16):
        texts = [torch.tensor((rows[row]["prompt_ids"] + rows[row]["chosen_ids"])[-longest:]) for row in order.tolist()]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(model.device)
        there = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        there = there.to(model.device)
        loss = model(input_ids=ids, attention_mask=there, labels=ids.masked_fill(there == 0, -100)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def _tokenized(
    data: PreferenceData, tokenizer: PreTrainedTokenizerBase, part: Int[Tensor, " p"]
) -> list[dict[str, list[int]]]:
    """Pairs as TRL's trainer tokenises them."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])  # type: ignore[arg-type]

    rows = []
    for row in part.tolist():
        prompt = data.prompts[row]
        start = ids(prompt)
        both = (ids(prompt + text + str(tokenizer.eos_token)) for text in (data.chosen[row], data.rejected[row]))
        chosen, rejected = (whole[len(start) :] for whole in both)
        rows.append({"prompt_ids": start, "chosen_ids": chosen, "rejected_ids": rejected})
    return rows


def _trained(
    start: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    objective: str,
    data: PreferenceData,
    training: Int[Tensor, " t"],
    rate: float,
    world: World,
    told: Mapping[str, Any],
    seed: int,
) -> PreTrainedModel:
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from transformers import PrinterCallback
    from trl.trainer.dpo_config import DPOConfig

    from scorecraft.integrations.trl.preference_trainer import PreferenceTrainer

    disable_progress_bar()
    order = training[rounds(len(training), told["steps"] * told["batch"], generator(seed, "rows"))]
    rows = Dataset.from_dict(
        {
            name: [texts[row] for row in order.tolist()]
            for name, texts in (("prompt", data.prompts), ("chosen", data.chosen), ("rejected", data.rejected))
        }
    )
    model = copy.deepcopy(start)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder,
            max_length=world.settings["max_tokens"],
            truncation_mode="keep_end",
            bf16=False,
            gradient_checkpointing=False,
            **training_options(told, rate, seed, model.device),
        )
        trainer = PreferenceTrainer(
            model,
            copy.deepcopy(start),
            arguments,
            rows,
            objective=make_preference_objective(objective),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model


def _pairs_in(world: World) -> PreferenceData:
    told = world.settings
    return _drawn(told["source"], told["split"], told["pairs"])


@lru_cache(maxsize=1)
def _drawn(source: str, split: str | None, pairs: int) -> PreferenceData:
    """The pairs that take part."""
    data = load_preferences(source, split=split)
    rows = torch.randperm(len(data), generator=generator(0, "pairs"))[:pairs].sort().values.tolist()
    prompts, chosen, rejected = (
        tuple(part[row] for row in rows) for part in (data.prompts, data.chosen, data.rejected)
    )
    return PreferenceData(prompts, chosen, rejected)
