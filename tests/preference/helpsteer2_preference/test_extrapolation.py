"""ExPO of state dicts, of model folders and of adapters."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scorecraft.preference.helpsteer2_preference import (
    Adapter,
    checkpoints,
    extrapolate,
    extrapolate_adapter,
    extrapolate_checkpoint,
    search_factor,
)
from scorecraft.preference.helpsteer2_preference.safetensors_files import SafetensorsFile, write_safetensors

State = Mapping[str, Tensor]
CONFIG = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"], "num_attention_heads": 4}


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "embed.weight": random(7, 4),
        "layer.weight": random(4, 4),
        "norm.weight": random(4),
        "scale": random(),
        "empty": random(0, 4),
        "steps": torch.tensor(seed),
        "positions": torch.arange(5),
        "kept": torch.tensor([True, False]),
    }


def expected(weak: State, strong: State, factor: float) -> dict[str, Tensor]:
    return {
        name: (weak[name].double() + factor * (theirs.double() - weak[name].double())).to(theirs.dtype)
        if theirs.is_floating_point()
        else theirs
        for name, theirs in strong.items()
    }


def test_check_value() -> None:
    weak, strong = {"w": torch.tensor(1.0, dtype=torch.float64)}, {"w": torch.tensor(2.0, dtype=torch.float64)}
    assert extrapolate(weak, strong, 1.52)["w"].item() == 2.52
    assert extrapolate(weak, strong)["w"].item() == 2.52


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_state_dicts(dtype: torch.dtype) -> None:
    weak, strong = state(0, dtype), state(1, dtype)
    weak_and_integers = {**strong, **{name: t for name, t in weak.items() if t.is_floating_point()}}
    for factor, exactly in ((0.0, weak_and_integers), (1.0, strong)):
        found = extrapolate(weak, strong, factor)
        assert all(torch.equal(found[name], exactly[name]) for name in strong)
    found = extrapolate(weak, strong, 1.7)
    for name, tensor in expected(weak, strong, 1.7).items():
        assert found[name].dtype == strong[name].dtype
        tolerance = {torch.float64: 1e-14, torch.float32: 2e-6}.get(dtype, 2e-2)
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance / 10)
    assert found["steps"].item() == 1


def test_half_weights_are_computed_in_float32() -> None:
    weak = {"w": torch.tensor([1.0], dtype=torch.bfloat16)}
    strong = {"w": torch.tensor([1.0078125], dtype=torch.bfloat16)}
    # The difference times 1.52 in bfloat16, added in bfloat16, would be off by one step at other places.
    values = torch.linspace(-3, 3, 501).bfloat16()
    found = extrapolate({"w": values}, {"w": values.flip(0)}, 1.52)["w"]
    assert torch.equal(found, torch.lerp(values.float(), values.flip(0).float(), 1.52).bfloat16())
    assert extrapolate(weak, strong, 2.0)["w"].item() == 1.015625


def test_tied_weights_are_computed_once_and_stay_tied() -> None:
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    found = extrapolate(tied(0).state_dict(), tied(1).state_dict(), 1.5)
    assert found["embed.weight"].data_ptr() == found["head.weight"].data_ptr()
    untied = dict(tied(1).state_dict())
    untied["head.weight"] = untied["head.weight"].clone()
    found = extrapolate(tied(0).state_dict(), untied, 1.5)
    assert found["embed.weight"].data_ptr() != found["head.weight"].data_ptr()


def test_inputs_are_left_alone() -> None:
    weak, strong = state(0), state(1)
    found = extrapolate(weak, strong, 1.0)
    for tensor in found.values():
        tensor.zero_()
    assert all(torch.equal(strong[name], tensor) for name, tensor in state(1).items())


@pytest.mark.parametrize(
    "change, line",
    [
        ({"layer.weight": None}, r"argument `strong`: expected the tensors of the other model, got none named `layer"),
        ({"more": torch.ones(2)}, r"argument `weak`: expected the tensors of the other model, got none named `more`"),
        ({"norm.weight": torch.ones(5)}, r"argument `strong`: expected `norm.weight` of shape \(4,\)"),
        ({"norm.weight": torch.ones(4, dtype=torch.long)}, r"argument `strong`: expected `norm.weight` of a type like"),
        ({"norm.weight": torch.ones(4).to(torch.float8_e4m3fn)}, r"argument `strong`: expected real numbers that are"),
        ({"positions": torch.arange(5) + 1}, r"argument `strong`: expected the same integers in `positions`"),
        (
            {"norm.weight": torch.full((4,), torch.inf)},
            r"argument `factor`: expected a factor that leaves `norm.weight`",
        ),
    ],
)
def test_state_dicts_that_are_refused(change: dict[str, Tensor | None], line: str, tmp_path: Path) -> None:
    strong = {name: tensor for name, tensor in {**state(1), **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=f"^{line}[^\n]*$"):
        extrapolate(state(0), strong, 1.5)
    weak_folder, strong_folder = folder(tmp_path / "weak", state(0)), folder(tmp_path / "strong", strong)
    with pytest.raises(ValueError, match=f"^{line}[^\n]*$"):
        extrapolate_checkpoint(weak_folder, strong_folder, tmp_path / "out", factor=1.5)
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), "2"])
def test_factors_that_are_refused(factor: Any) -> None:
    with pytest.raises(ValueError, match=r"^argument `factor`: expected a finite number"):
        extrapolate(state(0), state(1), factor)


def test_a_factor_that_overflows_is_refused() -> None:
    half = {"w": torch.tensor([60000.0], dtype=torch.float16)}
    with pytest.raises(ValueError, match=r"^argument `factor`: expected a factor that leaves `w` finite in float16"):
        extrapolate({"w": torch.zeros(1, dtype=torch.float16)}, half, 1.52)


def test_search_for_the_factor() -> None:
    tried: list[float] = []

    def score(factor: float) -> float:
        tried.append(factor)
        return -((factor - 1.523) ** 2)

    found = search_factor(score)
    assert found.best == 1.52
    assert len(tried) == len(set(tried)) == 28  # 1.1, ..., 2.0, and 1.40, ..., 1.60 without those seen before
    assert list(found.scores) == sorted(tried)
    assert search_factor(lambda factor: 1.0).best == 1.0  # of equal ones the smallest
    with pytest.raises(ValueError, match=r"^argument `high`: expected a factor of at least low"):
        search_factor(score, low=2.0, high=1.0)
    with pytest.raises(ValueError, match=r"^argument `score`: expected a finite number"):
        search_factor(lambda factor: float("nan"))


# Folders


def folder(place: Path, tensors: State, shards: int = 1, config: dict[str, Any] | None = None) -> Path:
    """A model folder as transformers writes it."""
    place.mkdir()
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), place / "model.safetensors", metadata={"format": "pt"})
    else:
        told = {}
        for number in range(shards):
            file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
            part = {name: tensors[name] for name in names[number::shards]}
            save_file(part, place / file, metadata={"format": "pt"})
            told |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": told}
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
    (place / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (place / "tokenizer.json").write_text(json.dumps({"of": place.name}))
    (place / "README.md").write_text("a card")
    (place / "training_args.bin").write_bytes(b"x")
    return place


def loaded(place: Path) -> dict[str, Tensor]:
    return {name: tensor for file in place.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", [(1, 1), (3, 3), (1, 3), (2, 1)])
def test_folders(dtype: torch.dtype, shards: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_PIECE", 5)  # tensors of several pieces, the last one smaller
    weak = folder(tmp_path / "weak", state(0, dtype), shards[0])
    strong = folder(tmp_path / "strong", state(1, dtype), shards[1])
    told: list[tuple[int, int]] = []
    written = extrapolate_checkpoint(
        weak, strong, tmp_path / "out", factor=1.52, progress=lambda done, total, what: told.append((done, total))
    )
    found, wanted = loaded(tmp_path / "out"), extrapolate(state(0, dtype), state(1, dtype), 1.52)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (written.shards, written.kept, written.tensors) == (shards[1], 0, 5)
    assert written.size == sum(tensor.nbytes for tensor in wanted.values())
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (written.size, written.size)
    weights = {file.name for file in strong.glob("*.safetensors*")}
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *weights, "config.json", "tokenizer.json", "extrapolation.json"
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == {"of": "strong"}
    for name in weights:
        ours, theirs = tmp_path / "out" / name, strong / name
        assert ours.stat().st_size == theirs.stat().st_size


def test_types_are_those_of_the_strong_model(tmp_path: Path) -> None:
    weak = folder(tmp_path / "weak", state(0, torch.float32))
    strong = folder(tmp_path / "strong", state(1, torch.bfloat16))
    extrapolate_checkpoint(weak, strong, tmp_path / "out", factor=1.5)
    wanted = extrapolate(state(0), state(1, torch.bfloat16), 1.5)
    found = loaded(tmp_path / "out")
    assert all(torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in wanted)


class Stop(Exception):
    pass


def test_an_interrupted_call_goes_on(tmp_path: Path) -> None:
    weak = folder(tmp_path / "weak", state(0), 3)
    strong = folder(tmp_path / "strong", state(1), 3)
    out = tmp_path / "out"

    def stop_in_the_second(done: int, total: int, what: str) -> None:
        if what.startswith("model-00002") and done > 150:
            raise Stop

    with pytest.raises(Stop):
        extrapolate_checkpoint(weak, strong, out, progress=stop_in_the_second)
    # The finished shard is there, half of one is not, and nothing would load the folder.
    assert {file.name for file in out.iterdir()} == {"model-00001-of-00003.safetensors", "extrapolation.json"}
    (out / "model-00002-of-00003.safetensors.1.part").write_bytes(b"what a killed process leaves")
    first = (out / "model-00001-of-00003.safetensors").stat().st_mtime_ns
    begun: list[tuple[int, str]] = []
    written = extrapolate_checkpoint(weak, strong, out, progress=lambda done, _, what: begun.append((done, what)))
    assert (written.shards, written.kept) == (3, 1)
    assert begun[0][0] > 0
    assert begun[0][1].startswith("model-00002")
    assert (out / "model-00001-of-00003.safetensors").stat().st_mtime_ns == first
    wanted = extrapolate(state(0), state(1))
    assert all(torch.equal(loaded(out)[name], wanted[name]) for name in wanted)
    assert not list(out.glob("*.part"))
    assert extrapolate_checkpoint(weak, strong, out).kept == 3


def test_a_damaged_shard_is_written_again(tmp_path: Path) -> None:
    weak, strong = folder(tmp_path / "weak", state(0), 3), folder(tmp_path / "strong", state(1), 3)
    extrapolate_checkpoint(weak, strong, tmp_path / "out")
    victim = tmp_path / "out" / "model-00002-of-00003.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    (tmp_path / "out" / "model-00003-of-00003.safetensors").unlink()
    assert extrapolate_checkpoint(weak, strong, tmp_path / "out").kept == 1
    wanted = extrapolate(state(0), state(1))
    assert all(torch.equal(loaded(tmp_path / "out")[name], wanted[name]) for name in wanted)


def test_another_extrapolation_is_not_mixed_in(tmp_path: Path) -> None:
    weak, strong = folder(tmp_path / "weak", state(0)), folder(tmp_path / "strong", state(1))
    out = tmp_path / "out"
    extrapolate_checkpoint(weak, strong, out, factor=1.5)
    with pytest.raises(ValueError, match=r"^argument `out`: expected a new folder.*an extrapolation of factor 1\.5$"):
        extrapolate_checkpoint(weak, strong, out, factor=1.6)
    os.utime(strong / "model.safetensors", ns=(1, 1))
    with pytest.raises(ValueError, match=r"^argument `out`: expected a new folder.*of another strong model$"):
        extrapolate_checkpoint(weak, strong, out, factor=1.5)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"^argument `out`: expected a new or empty folder"):
        extrapolate_checkpoint(weak, strong, other)
    for name, place in (("weak", weak), ("strong", strong)):
        with pytest.raises(ValueError, match=rf"^argument `out`: expected another folder than {name}"):
            extrapolate_checkpoint(weak, strong, place)


@pytest.mark.parametrize(
    "config, line",
    [
        ({**CONFIG, "model_type": "qwen3"}, r"argument `strong`: expected the .*model_type = llama\), got qwen3"),
        ({**CONFIG, "architectures": ["LlamaForCausalLM"]}, r"argument `strong`: expected the architecture of the"),
        ({**CONFIG, "num_attention_heads": 2}, r"argument `strong`: expected the architecture .*, got 2"),
        ({**CONFIG, "quantization_config": {"bits": 4}}, r"argument `strong`: expected a model that is not quantised"),
    ],
)  # fmt: skip
def test_architectures_that_are_refused(config: dict[str, Any], line: str, tmp_path: Path) -> None:
    weak = folder(tmp_path / "weak", state(0))
    with pytest.raises(ValueError, match=f"^{line}"):
        extrapolate_checkpoint(weak, folder(tmp_path / "strong", state(1), config=config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_refused(tmp_path: Path) -> None:
    weak, strong = folder(tmp_path / "weak", state(0)), folder(tmp_path / "strong", state(1), 3)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"^argument `weak`: expected a model folder, got"):
        extrapolate_checkpoint(tmp_path / "nowhere", strong, out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^argument `weak`: expected a folder with model.safetensors or"):
        extrapolate_checkpoint(tmp_path / "empty", strong, out)
    (weak / "model.safetensors").write_bytes((weak / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"^argument `path`: expected a whole safetensors file of"):
        extrapolate_checkpoint(weak, strong, out)
    (weak / "model.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match=r"^argument `path`: expected a safetensors file, got"):
        extrapolate_checkpoint(weak, strong, out)
    (strong / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^argument `weak`: expected all shards .* without model-00002"):
        extrapolate_checkpoint(strong, weak, out)
    index = strong / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match=r"^argument `weak`: expected shards beside their index"):
        extrapolate_checkpoint(strong, weak, out)
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00003.safetensors"}}))
    with pytest.raises(ValueError, match=r"^argument `weak`: expected shards that hold what"):
        extrapolate_checkpoint(strong, weak, out)
    index.write_text("{")
    with pytest.raises(ValueError, match=r"is not JSON"):
        extrapolate_checkpoint(strong, weak, out)
    assert not out.exists()


def test_too_little_room_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weak, strong = folder(tmp_path / "weak", state(0)), folder(tmp_path / "strong", state(1))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=10))
    with pytest.raises(OSError, match="GB are free"):
        extrapolate_checkpoint(weak, strong, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_safetensors_are_read_and_written_as_the_library_does(tmp_path: Path) -> None:
    tensors = {**state(0), "half": torch.randn(3, 2).bfloat16(), "bytes": torch.arange(7, dtype=torch.uint8)}
    write_safetensors(tmp_path / "ours.safetensors", tensors, {"format": "pt"})
    theirs = load_file(tmp_path / "ours.safetensors")
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile.of(tmp_path / "theirs.safetensors")
    ours = file.tensors()
    assert file.metadata == {"format": "pt"}
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(ours[name], tensor)


# Adapters


def lora(seed: int, rank: int = 2, alpha: float = 4.0, **config: Any) -> Adapter:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    told = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "alpha_pattern": {}, "rank_pattern": {}, **config}
    return Adapter(
        told,
        {
            "base_model.model.layer.lora_A.weight": random(rank, 5),
            "base_model.model.layer.lora_B.weight": random(3, rank),
            "base_model.model.embed.lora_embedding_A": random(rank, 6),
            "base_model.model.embed.lora_embedding_B": random(4, rank),
            "base_model.model.score.weight": random(1, 3),
        },
    )


def deltas(adapter: Adapter) -> list[Tensor]:
    """What the adapter adds to the two weights of its base."""
    state, root = adapter.state, adapter.config.get("use_rslora")
    scaling = adapter.config["lora_alpha"] / adapter.config["r"] ** (0.5 if root else 1)
    return [
        scaling * state[f"base_model.model.{b}"] @ state[f"base_model.model.{a}"]
        for a, b in (
            ("layer.lora_A.weight", "layer.lora_B.weight"),
            ("embed.lora_embedding_A", "embed.lora_embedding_B"),
        )
    ]


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_on_the_weak_model_is_scaled(rslora: bool) -> None:
    strong = lora(1, use_rslora=rslora)
    base = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    found = extrapolate_adapter(strong, 1.5, base=lambda name: base if name == "score.weight" else None)
    for ours, theirs in zip(deltas(found), deltas(strong), strict=True):
        torch.testing.assert_close(ours, 1.5 * theirs, rtol=0, atol=1e-12)
    head = strong.state["base_model.model.score.weight"]
    torch.testing.assert_close(found.state["base_model.model.score.weight"], base + 1.5 * (head - base))
    patterns = lora(1, alpha_pattern={"layer": 8})
    assert extrapolate_adapter(patterns, 1.5, base=lambda name: base).config["alpha_pattern"] == {"layer": 12.0}


@pytest.mark.parametrize("rslora", [False, True])
def test_two_adapters_are_added_and_their_factors_not_mixed(rslora: bool) -> None:
    weak, strong = lora(0, rank=3, alpha=9.0), lora(1, use_rslora=rslora)
    found = extrapolate_adapter(strong, 1.5, weak=weak)
    assert found.config["r"] == 5
    for ours, low, high in zip(deltas(found), deltas(weak), deltas(strong), strict=True):
        torch.testing.assert_close(ours, -0.5 * low + 1.5 * high, rtol=0, atol=1e-5)
    name = "base_model.model.score.weight"
    torch.testing.assert_close(found.state[name], -0.5 * weak.state[name] + 1.5 * strong.state[name])
    same = extrapolate_adapter(lora(1), 1.7, weak=lora(1))
    for ours, theirs in zip(deltas(same), deltas(lora(1)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "config, line",
    [
        ({"peft_type": "IA3"}, "a LoRA adapter, got one of type 'IA3'"),
        ({"use_dora": True}, r"an adapter whose weight is W \+ s B A"),
        ({"init_lora_weights": "pissa_niter_4"}, "an adapter on an unchanged base"),
        ({"trainable_token_indices": [1]}, "an adapter without trained tokens"),
    ],
)
def test_adapters_that_are_refused(config: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"^argument `strong`: expected {line}"):
        extrapolate_adapter(lora(1, **config), 1.5)
    with pytest.raises(ValueError, match=f"^argument `weak`: expected {line}"):
        extrapolate_adapter(lora(1), 1.5, weak=lora(0, **config))


def test_pairs_of_adapters_that_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^argument `weak`: expected an adapter without rank_pattern"):
        extrapolate_adapter(lora(1), 1.5, weak=lora(0, rank_pattern={"layer": 4}))
    fewer = Adapter(lora(0).config, {"base_model.model.score.weight": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match=r"^argument `weak`: expected the tensors of the other model"):
        extrapolate_adapter(lora(1), 1.5, weak=fewer)
    with pytest.raises(ValueError, match=r"^argument `weak`: expected a base model with `score.weight`"):
        extrapolate_adapter(lora(1), 1.5)
    with pytest.raises(ValueError, match=r"^argument `strong`: expected `score.weight` of shape"):
        extrapolate_adapter(lora(1), 1.5, base=lambda name: torch.zeros(9, 3))


# The hosts' own folders


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("peft")
    return pytest.importorskip("transformers")


def llama(hosts: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return hosts.LlamaForSequenceClassification(
        hosts.LlamaConfig(
            vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, num_labels=1, pad_token_id=0,
        )
    )  # fmt: skip


def test_folders_of_transformers(hosts: Any, tmp_path: Path) -> None:
    weak, strong = llama(hosts, 0), llama(hosts, 1)
    weak.save_pretrained(tmp_path / "weak")
    strong.save_pretrained(tmp_path / "strong", max_shard_size="5KB")
    assert (tmp_path / "strong" / "model.safetensors.index.json").exists()
    extrapolate_checkpoint(tmp_path / "weak", tmp_path / "strong", tmp_path / "out", factor=1.52)
    found = hosts.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").state_dict()
    wanted = extrapolate(weak.state_dict(), strong.state_dict(), 1.52)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_tied_causal_models_of_transformers(hosts: Any, tmp_path: Path) -> None:
    def model(seed: int) -> Any:
        torch.manual_seed(seed)
        return hosts.LlamaForCausalLM(
            hosts.LlamaConfig(
                vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=2, tie_word_embeddings=True,
            )
        )  # fmt: skip

    for name, seed in (("weak", 0), ("strong", 1)):
        model(seed).save_pretrained(tmp_path / name)
    extrapolate_checkpoint(tmp_path / "weak", tmp_path / "strong", tmp_path / "out", factor=1.52)
    found = hosts.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert found.lm_head.weight.data_ptr() == found.model.embed_tokens.weight.data_ptr()
    wanted = extrapolate(model(0).state_dict(), model(1).state_dict(), 1.52)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.state_dict().items())


@pytest.mark.parametrize("on_what", ["base", "adapter"])
def test_folders_of_peft(hosts: Any, on_what: str, tmp_path: Path) -> None:
    import peft

    base = llama(hosts, 0)
    base.save_pretrained(tmp_path / "base")

    def adapted(seed: int) -> Any:
        config = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"])
        model = peft.get_peft_model(llama(hosts, 0), config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.2 * torch.randn(parameter.shape))
        model.save_pretrained(tmp_path / f"adapter{seed}")
        return model

    def weights(model: Any) -> dict[str, Tensor]:
        return model.merge_and_unload().state_dict()

    strong, weak = weights(adapted(1)), base.state_dict() if on_what == "base" else weights(adapted(2))
    source = tmp_path / ("base" if on_what == "base" else "adapter2")
    written = extrapolate_checkpoint(source, tmp_path / "adapter1", tmp_path / "out", factor=1.52)
    assert (written.shards, written.kept) == (1, 0)
    found = weights(peft.PeftModel.from_pretrained(llama(hosts, 0), str(tmp_path / "out")))
    wanted = extrapolate(weak, strong, 1.52)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert extrapolate_checkpoint(source, tmp_path / "adapter1", tmp_path / "out", factor=1.52).kept == 1


def test_adapters_with_another_base_are_refused(hosts: Any, tmp_path: Path) -> None:
    import peft

    model = peft.get_peft_model(llama(hosts, 0), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    folder(tmp_path / "other", state(0))
    with pytest.raises(ValueError, match=r"^argument `weak`: expected the adapter's base model, with 16 inputs in"):
        extrapolate_checkpoint(tmp_path / "other", tmp_path / "adapter", tmp_path / "out")
    with pytest.raises(ValueError, match=r"^argument `strong`: expected an adapter, as weak is one"):
        extrapolate_checkpoint(tmp_path / "adapter", tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()
