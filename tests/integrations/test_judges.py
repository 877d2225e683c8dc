"""transformers: a causal language model as a judge, with and without the reuse of the prompt's beginning."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from scorecraft.integrations.transformers import CausalLMJudge

WORDS = [f"w{number}" for number in range(40)]
TAIL = ["Does", "the", "candidate", "satisfy", "the", "query", "?", "Answer", "Yes", "if", "it", "does", ",", "and",
        "No", "if", "it", "does", "not", ".", "Answer", ":"]  # fmt: skip
"""The prompt behind the candidate."""
SIZES: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
                         "initializer_range": 0.5, "num_key_value_heads": 2}  # fmt: skip


def tokenizer(begin: bool = False) -> PreTrainedTokenizerFast:
    words = list(dict.fromkeys(["[PAD]", "[UNK]", "<s>", "</s>", *WORDS, "Query", "Candidate", *TAIL, "yes", "no"]))
    text = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    if begin:
        text.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", words.index("<s>")), ("</s>", words.index("</s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=text, unk_token="[UNK]", pad_token="[PAD]", bos_token="<s>", eos_token="</s>"
    )


VOCABULARY = len(tokenizer())


def llama(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=128, **(SIZES | options))).eval()


def other_model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.5
        )
        return GPT2LMHeadModel(config).eval()
    # A window shorter than the prompt: the cache keeps only its end.
    config = MistralConfig(vocab_size=VOCABULARY, max_position_embeddings=128, sliding_window=9, **SIZES)
    return MistralForCausalLM(config).eval()


def pairs(count: int = 14, seed: int = 0) -> tuple[list[str], list[str]]:
    """Pairs of four queries in mixed order, candidates of one to nine words."""
    generator = torch.Generator().manual_seed(seed)

    def text(words: int) -> str:
        return " ".join(WORDS[int(i)] for i in torch.randint(40, (words,), generator=generator))

    queries = [text(3 + 2 * number) for number in range(4)]
    return [queries[n * 7 % 4] for n in range(count)], [text(1 + n * 5 % 9) for n in range(count)]


def one_by_one(
    model: PreTrainedModel, words: PreTrainedTokenizerFast, queries: list[str], texts: list[str]
) -> list[float]:
    """The definition: the whole prompt of every pair alone, full logits, softmax over the two."""
    yes, no = words.convert_tokens_to_ids(["Yes", "No"])
    found = []
    for query, text in zip(queries, texts, strict=True):
        prompt = CausalLMJudge(model, words).prompt.format(query=query, candidate=text)
        ids = words(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1]
        found.append(float(logits[[yes, no]].softmax(0)[0]))
    return found


@pytest.mark.parametrize("reuse_prefix", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_scores_are_those_of_whole_prompts_one_by_one(reuse_prefix: bool, batch_size: int) -> None:
    model, words = llama(), tokenizer()
    queries, texts = pairs()
    expected = torch.tensor(one_by_one(model, words, queries, texts))
    found = CausalLMJudge(model, words, batch_size=batch_size, reuse_prefix=reuse_prefix)(queries, texts)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.max() - expected.min() > 0.1


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_other_positions_and_other_caches(name: str) -> None:
    model, words = other_model(name), tokenizer()
    queries, texts = pairs()
    expected = torch.tensor(one_by_one(model, words, queries, texts))
    found = CausalLMJudge(model, words, batch_size=4)(queries, texts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_prefix_is_encoded_once_per_query() -> None:
    model = llama()
    queries, texts = pairs()
    judge = CausalLMJudge(model, tokenizer(), batch_size=4)
    seen: list[tuple[int, int]] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, __, call: seen.append(tuple(call["input_ids"].shape)), with_kwargs=True
    )
    judge(queries, texts)
    tail = 3 + len(TAIL)
    alone = [shape for shape in seen if shape[0] == 1 and shape[1] < tail]
    assert len(alone) == 4  # the queries; everything else begins at the candidate
    assert all(rows <= 4 for rows, _ in seen)
    assert sum(rows * length for rows, length in seen) < 14 * (tail + 9) + 4 * tail


def test_the_head_is_applied_to_two_rows_only() -> None:
    model = llama()
    judge = CausalLMJudge(model, tokenizer())
    model.lm_head.forward = None  # would fail when called
    assert judge(["w1"], ["w2"]).shape == (1,)


def test_half_precision_models_are_read_in_single() -> None:
    model = llama().bfloat16()
    queries, texts = pairs()
    found = CausalLMJudge(model, tokenizer(), batch_size=5)(queries, texts)
    assert found.dtype == torch.float32
    exact = CausalLMJudge(llama(), tokenizer())(queries, texts)
    assert (found - exact).abs().max() < 0.1


def test_variants_of_a_word_are_added() -> None:
    model, words = llama(), tokenizer()
    found = CausalLMJudge(model, words, yes=(" Yes", " yes"), no=(" No", " no"))(["w1 w2"], ["w3"])
    prompt = CausalLMJudge(model, words).prompt.format(query="w1 w2", candidate="w3")
    logits = model(**words(prompt, add_special_tokens=False, return_tensors="pt")).logits[0, -1]
    four = logits[words.convert_tokens_to_ids(["Yes", "yes", "No", "no"])].softmax(0)
    torch.testing.assert_close(found[0], four[:2].sum().detach(), rtol=1e-4, atol=1e-5)


def test_the_beginning_of_a_text_is_marked_and_its_end_is_not() -> None:
    model, marked = llama(), tokenizer(begin=True)
    found = CausalLMJudge(model, marked)(["w1 w2"], ["w3"])
    prompt = CausalLMJudge(model, marked).prompt.format(query="w1 w2", candidate="w3")
    ids = marked(prompt, return_tensors="pt")["input_ids"][:, :-1]
    logits = model(input_ids=ids).logits[0, -1]
    expected = logits[marked.convert_tokens_to_ids(["Yes", "No"])].softmax(0)[0]
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-4, atol=1e-5)


def test_a_long_candidate_loses_its_end_and_never_the_question() -> None:
    judge = CausalLMJudge(llama(), tokenizer(), max_length=40)
    room = 40 - len(["Query", ":", "w1", "w2", "Candidate", ":"]) - len(TAIL)
    text = " ".join(WORDS[n % 40] for n in range(60))
    cut = " ".join(text.split()[:room])
    found = judge(["w1 w2", "w1 w2"], [text, cut])
    torch.testing.assert_close(found[0], found[1])
    assert judge(["w1 w2"], [" ".join(text.split()[: room - 1])]) != found[0]
    with pytest.raises(
        ValueError, match="argument `queries`: expected prompts below max_length = 40 tokens, got no room"
    ):
        judge([text], ["w1"])
    assert CausalLMJudge(llama(), tokenizer()).max_length == 128


def test_progress_and_nothing_to_judge() -> None:
    told: list[tuple[int, int, str]] = []
    judge = CausalLMJudge(llama(), tokenizer(), batch_size=4, progress=lambda *what: told.append(what))
    queries, texts = pairs()
    judge(queries, texts)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1] == (14, 14, "judging")
    assert judge([], []).shape == (0,)


def test_the_model_is_left_as_it_was() -> None:
    model = llama(attention_dropout=0.5).train()
    judge = CausalLMJudge(model, tokenizer())
    queries, texts = pairs()
    first = judge(queries, texts)
    assert torch.equal(first, judge(queries, texts))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_fingerprint_changes_with_what_the_scores_depend_on() -> None:
    model, words = llama(), tokenizer()
    one = CausalLMJudge(model, words)
    assert one.fingerprint == CausalLMJudge(copy.deepcopy(model), words, batch_size=2).fingerprint
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    prompt = "Query: {query} Candidate: {candidate} Answer:"
    others = [
        CausalLMJudge(other, words),
        CausalLMJudge(model, words, prompt=prompt),
        CausalLMJudge(model, words, yes=" yes"),
        CausalLMJudge(model, words, max_length=64),
    ]
    assert len({judge.fingerprint for judge in (one, *others)}) == 5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"yes": " Yes indeed"}, "`yes`: expected a word that is one token behind the prompt, got ' Yes indeed'"),
        ({"yes": " certainly"}, "`yes`: expected a word that the tokenizer knows, got ' certainly'"),
        ({"no": " Yes"}, "`no`: expected other tokens than those of yes"),
        ({"no": ()}, "`no`: expected a word, or several different ones"),
        ({"prompt": "{candidate} {query}:"}, "`prompt`: expected a text with {query} and then {candidate}"),
        ({"prompt": "{query} {candidate}"}, "`prompt`: expected a question behind {candidate}"),
        ({"prompt": "{query}:"}, "`prompt`: expected a text with {query} and then {candidate}"),
        ({"batch_size": 0}, "`batch_size`: expected an integer >= 1"),
        ({"max_length": 0}, "`max_length`: expected an integer >= 1"),
    ],
)
def test_what_is_refused_before_the_first_call(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="argument " + message) as caught:
        CausalLMJudge(llama(), tokenizer(), **options)
    assert "\n" not in str(caught.value)


def test_what_is_refused_at_a_call() -> None:
    judge = CausalLMJudge(llama(), tokenizer())
    with pytest.raises(ValueError, match="argument `candidates`: expected 2 texts, one per query, got 1"):
        judge(["w1", "w2"], ["w3"])
    with pytest.raises(ValueError, match=r"argument `candidates`: expected texts that are not empty, got ' ' .* at 1"):
        judge(["w1", "w2"], ["w3", " "])
    with pytest.raises(ValueError, match=r"argument `queries`: expected texts that are not empty, got '' .* at 0"):
        judge([""], ["w3"])


def test_a_model_that_changes_its_logits_is_refused() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=VOCABULARY, max_position_embeddings=128, head_dim=8, final_logit_softcapping=1.0,
                          **SIZES)  # fmt: skip
    with pytest.raises(
        ValueError, match=r"argument `model`: expected logits that are its head times .* Gemma2ForCausalLM"
    ):
        CausalLMJudge(Gemma2ForCausalLM(config).eval(), tokenizer())


def test_without_the_host_there_is_one_clear_line() -> None:
    code = """
        import sys
        sys.modules["transformers"] = None
        try:
            import scorecraft.integrations.transformers
        except ImportError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == 'transformers is not installed: pip install "scorecraft[text]"\n'


def test_contract_with_transformers() -> None:
    """What the judge relies on in the host."""
    assert list(inspect.signature(DynamicCache.batch_repeat_interleave).parameters) == ["self", "repeats"]
    assert "get_seq_length" in dir(DynamicCache)
    assert callable(PreTrainedModel.get_decoder)
    assert callable(PreTrainedModel.get_output_embeddings)
    accepted = set(inspect.signature(LlamaForCausalLM(llama().config).get_decoder().forward).parameters)
    assert {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache"} <= accepted
    assert hasattr(llama().config.get_text_config(), "max_position_embeddings")
