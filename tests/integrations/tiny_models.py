"""Models of a few thousand weights, built on the spot, and options to train them with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(48)]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each of the words."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16)


def save_tiny_bert(folder: Path) -> Path:
    """A Bert of one layer with its tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_llama(folder: Path, *, vocabulary: int = len(WORDS) + 3) -> Path:
    """A causal language model of one layer with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=len(WORDS) + 2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "[EOS]"})
    tokenizer.save_pretrained(folder)
    return folder


def training_arguments(folder: Path, **options: Any) -> SentenceTransformerTrainingArguments:
    """Arguments of a short training that prints and keeps nothing."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 4,
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-3,
        "batch_sampler": BatchSamplers.GROUP_BY_LABEL,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
    }
    return SentenceTransformerTrainingArguments(**(defaults | options))
