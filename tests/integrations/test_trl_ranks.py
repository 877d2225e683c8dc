"""TRL's trainer with preference objectives on two ranks: plain data parallelism, and FSDP, equal to one process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from tests.integrations.tiny_models import WORDS, save_tiny_llama
from tests.ranks import run_ranks
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig
from trl.trainer.utils import add_fused_lm_head

from scorecraft.core import DPOLoss, PreferenceObjective, SimPOLoss, across_ranks
from scorecraft.integrations.trl.preference_trainer import PreferenceTrainer

STEPS = 3


def losses(folder: Path, batch: int) -> dict[str, Any]:
    """Losses of a short training, and squared norms of the weights it ends with."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    words = WORDS[:16]
    rows = {
        "prompt": [f"{word} " for word in words],
        "chosen": [f"{word} {word}" for word in words],
        "rejected": [f"{WORDS[20 + row]} {WORDS[30]} {word}" for row, word in enumerate(words)],
    }
    arguments = DPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=batch,
        max_steps=STEPS,
        learning_rate=1e-2,
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=1,
    )
    trainer = PreferenceTrainer(
        model,
        AutoModelForCausalLM.from_pretrained(folder),
        arguments,
        Dataset.from_dict(rows),
        objective=DPOLoss(beta=0.5) + 0.5 * SimPOLoss(),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    history = trainer.state.log_history
    state: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    weights = [float(value.float().pow(2).sum()) for name, value in sorted(state.items()) if "rotary" not in name]
    return {
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "weights": weights,
    }


def _on_a_rank(rank: int, folder: str, environment: dict[str, str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", **environment}
    found = losses(Path(folder), 4)
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    alone = losses(tmp_path, 8)
    run_ranks(_on_a_rank, str(tmp_path), {"MASTER_ADDR": "localhost", "MASTER_PORT": "29582"})
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert found["weights"] == pytest.approx(alone["weights"], rel=1e-5)
    assert torch.tensor(alone["losses"]).isfinite().all()


def steps_on_answers(model: Any, ids: Tensor, labels: Tensor, objective: PreferenceObjective) -> list[float]:
    """Losses of steps through the host's fused head; the first half of the rows are the chosen answers."""
    add_fused_lm_head(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = dict(zip(("chosen_tokens", "rejected_tokens"), (labels[:, 1:] != -100).sum(dim=1).chunk(2), strict=True))
    found = []
    for _ in range(STEPS):
        sums = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs.sum(dim=1)
        loss = objective(*sums.chunk(2), **tokens)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found


def answers(pairs: int) -> tuple[Tensor, Tensor]:
    """Rows of 8 tokens of which the last five are scored: chosen, then rejected."""
    ids = torch.randint(2, 50, (2, pairs, 8), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[..., :3] = -100
    return ids, labels


def _sharded(rank: int, folder: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    assert all(isinstance(one, DTensor) for one in model.parameters())
    ids, labels = (values[:, 3 * rank : 3 * rank + 3].flatten(0, 1) for values in answers(6))
    found = steps_on_answers(model, ids, labels, across_ranks(SimPOLoss()))
    weights = [float(one.full_tensor().square().sum()) for one in model.parameters()]
    Path(folder, f"rank{rank}.json").write_text(json.dumps([found, weights]))


def test_fully_sharded_equals_one_process(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids, labels = (values.flatten(0, 1) for values in answers(6))
    alone = steps_on_answers(model, ids, labels, SimPOLoss())
    weights = [float(one.square().sum()) for one in model.parameters()]
    run_ranks(_sharded, str(tmp_path))
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    means = [sum(values) / 2 for values in zip(found[0][0], found[1][0], strict=True)]
    assert means == pytest.approx(alone, rel=1e-5)
    for _, sharded in found:
        assert sharded == pytest.approx(weights, rel=1e-5)
