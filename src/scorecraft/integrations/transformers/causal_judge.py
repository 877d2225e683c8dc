"""A causal language model as a judge of relevance.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from scorecraft.integrations.transformers import CausalLMJudge

    judge = CausalLMJudge(AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name))
    judge(["how tall is the Eiffel tower"] * 2, ["330 metres", "It was built in 1889."])  # two scores in [0, 1]

The instruction and the query stand first in the prompt, so that they are encoded once for all candidates of a query.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.core.checks import describe, positive_integer, refuse
from scorecraft.integrations.optional import require
from scorecraft.relevance.embedding_store import Progress, fingerprint_of_module
from scorecraft.relevance.two_row_scoring import grouped_logits

require("transformers", "text")

from transformers import PreTrainedModel, PreTrainedTokenizerBase  # noqa: E402

PROMPT = (
    "Query: {query}\nCandidate: {candidate}\n"
    "Does the candidate satisfy the query? Answer Yes if it does, and No if it does not.\nAnswer:"
)
"""A plain prompt; a chat model wants its own turns around it, and a released judge the wording of its authors."""


class CausalLMJudge:
    """The probability that a causal language model answers "yes" to whether a candidate satisfies a query:

        s = e^{z_yes} / (e^{z_yes} + e^{z_no}) = sigmoid(z_yes - z_no)

    from the two logits at the place of the answer. Of the head only these rows are applied, in float32: with a large
    vocabulary that is all but the whole memory of the last layer, and scores from bfloat16 logits would be tied.

    Pairs of one query are judged together, wherever they stand: what comes before the candidate is encoded once, its
    keys and values are shared, and candidates of like length go through the model together. Scores are those of whole
    prompts up to rounding.

    The prompt is tokenised in three parts, the head with the query, the candidate, and the tail, so that a candidate
    that is too long is cut at its end and never the question behind it. Texts only: images have no place in it.

    Args:
        model: a causal language model of the host, on its device; it is put into evaluation for the calls.
        tokenizer: of that model.
        prompt: with `{query}` before `{candidate}`, once each.
        yes: the answer word, or several whose probabilities are added; each must be one token behind the prompt, with
            the space that belongs to it.
        no: the other word or words.
        batch_size: candidates that go through the model together.
        max_length: tokens of the longest prompt; as many as the model has positions when left out.
        reuse_prefix: encode the part before the candidate once per query. Without it every prompt is encoded whole, as
            a model needs whose cache cannot be repeated over a batch.
        progress: called as `progress(done, total, what)` after every batch.

    Raises:
        ValueError: a prompt without its fields, an answer word that is not one token there, the same token for both, or
            a model whose logits are not its head times its last hidden state; when called, as many queries as
            candidates are expected, none of them empty, and a query that leaves room for a candidate.

    Source: Gu et al. 2025, arXiv 2510.13515, section 3 (equation 2).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt: str = PROMPT,
        yes: str | Sequence[str] = " Yes",
        no: str | Sequence[str] = " No",
        batch_size: int = 32,
        max_length: int | None = None,
        reuse_prefix: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.prompt = prompt
        self._head, self._tail = _split(prompt)
        # A space before the candidate belongs to its first word, as tokenisers see it.
        self._gap = self._head[len(self._head.rstrip(" ")) :]
        self._head = self._head.rstrip(" ")
        self.yes, self.no = _words("yes", yes), _words("no", no)
        self._yes_tokens = [self._answer_token("yes", word) for word in self.yes]
        self._no_tokens = [self._answer_token("no", word) for word in self.no]
        if shared := set(self._yes_tokens) & set(self._no_tokens):
            refuse("no", "other tokens than those of yes", f"token {min(shared)} in both")
        self.batch_size = positive_integer("batch_size", batch_size)
        self.max_length = self._positions() if max_length is None else positive_integer("max_length", max_length)
        self.reuse_prefix = reuse_prefix
        self.progress = progress
        self._check_head()

    def __call__(self, queries: Sequence[str], candidates: Sequence[str]) -> Float[Tensor, " n"]:
        """The score of each pair, in [0, 1], float32 on the CPU.

        Args:
            queries: `n` texts; repeat a query for each of its candidates.
            candidates: `n` texts.
        """
        queries, candidates = list(queries), list(candidates)
        if len(queries) != len(candidates):
            refuse("candidates", f"{len(queries)} texts, one per query", len(candidates))
        for name, texts in (("queries", queries), ("candidates", candidates)):
            for place, text in enumerate(texts):
                if not isinstance(text, str) or not text.strip():
                    refuse(name, "texts that are not empty", f"{describe(text)} at {place}")
        scores = torch.zeros(len(queries))
        if not queries:
            return scores
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                done = 0
                for places, found in self._judged(queries, candidates):
                    scores[places] = found.float().cpu()
                    done += len(places)
                    if self.progress is not None:
                        self.progress(done, len(queries), "judging")
        finally:
            self.model.train(training)
        return scores

    @property
    def fingerprint(self) -> str:
        """A hash of what the scores depend on: prompt, words, length and weights."""
        told = repr((self.prompt, self.yes, self.no, self.max_length))
        return hashlib.sha256(f"{told} {fingerprint_of_module(self.model)}".encode()).hexdigest()

    def __repr__(self) -> str:
        words = f"yes={'|'.join(self.yes)!r}, no={'|'.join(self.no)!r}"
        return f"{type(self).__name__}({type(self.model).__name__}, {words}, batch_size={self.batch_size})"

    def _judged(self, queries: list[str], candidates: list[str]) -> Iterator[tuple[list[int], Float[Tensor, " b"]]]:
        """Places of the pairs, and their scores, batch by batch."""
        tail = self._encode(self._tail)
        places_of: dict[str, list[int]] = {}
        for place, query in enumerate(queries):
            places_of.setdefault(query, []).append(place)
        heads = {query: [*self._begin(), *self._encode(_filled(self._head, query))] for query in places_of}
        endings: list[list[int]] = []
        for place, (query, text) in enumerate(zip(queries, candidates, strict=True)):
            room = self.max_length - len(heads[query]) - len(tail)
            if room < 1:
                refuse("queries", f"prompts below max_length = {self.max_length} tokens", f"no room at {place}")
            endings.append([*self._encode(self._gap + text)[:room], *tail])
        if not self.reuse_prefix:
            whole = [[*heads[query], *ending] for query, ending in zip(queries, endings, strict=True)]
            for batch in self._by_length(range(len(queries)), whole):
                yield batch, self._score([whole[place] for place in batch], None)
            return
        for query, places in places_of.items():
            prefix = self._decoder()(input_ids=self._tensor([heads[query]]), use_cache=True).past_key_values
            for batch in self._by_length(places, endings):
                yield batch, self._score([endings[place] for place in batch], prefix)

    def _by_length(self, places: Sequence[int], texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """The places in batches, the longest texts first: what does not fit into the memory fails at once."""
        ordered = sorted(places, key=lambda place: -len(texts[place]))
        for start in range(0, len(ordered), self.batch_size):
            yield ordered[start : start + self.batch_size]

    def _score(self, texts: list[list[int]], prefix: Any | None) -> Float[Tensor, " b"]:
        """The scores of prompts of which `prefix`, a cache of one row, holds the beginning."""
        longest = max(map(len, texts))
        mask = self._tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        tokens = self._tensor([[*text, *[0] * (longest - len(text))] for text in texts])
        known = 0
        call: dict[str, Any] = {"use_cache": False}
        if prefix is not None:
            known = prefix.get_seq_length()
            cache = copy.deepcopy(prefix)  # the model appends to what it is given
            cache.batch_repeat_interleave(len(texts))
            call = {"use_cache": True, "past_key_values": cache}
        hidden = self._decoder()(
            input_ids=tokens,
            attention_mask=torch.cat([mask.new_ones(len(texts), known), mask], dim=1),
            position_ids=torch.arange(known, known + longest, device=mask.device).expand(len(texts), -1),
            **call,
        ).last_hidden_state
        yes, no = self._logits(hidden, mask)
        return (yes - no).sigmoid()

    def _logits(self, hidden: Float[Tensor, "b t d"], mask: Int[Tensor, "b t"]) -> Float[Tensor, "2 b"]:
        weight = self.model.get_output_embeddings().weight
        return grouped_logits(hidden.to(weight.device), mask.to(weight.device), weight[self._yes_tokens],
                              weight[self._no_tokens])  # fmt: skip

    def _check_head(self) -> None:
        """See on one prompt that two rows of the head say what the whole model says."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            tokens = self._tensor([[*self._begin(), *self._encode(_filled(self._head, "a") + self._tail)]])
            whole = self.model(input_ids=tokens, use_cache=False).logits[:, -1].float()
            hidden = self._decoder()(input_ids=tokens, use_cache=False).last_hidden_state
            ours = self._logits(hidden, torch.ones_like(tokens))
        self.model.train(training)
        theirs = torch.stack([whole[:, ids].logsumexp(dim=1) for ids in (self._yes_tokens, self._no_tokens)])
        if not torch.allclose(ours, theirs.to(ours.device), rtol=0.05, atol=0.05):  # theirs may be bfloat16
            kind = type(self.model).__name__
            refuse("model", "logits that are its head times its last hidden state", f"{kind}, which changes them")

    def _answer_token(self, name: str, word: str) -> int:
        """The one token that a word adds to the prompt."""
        before, after = self._encode(self._tail), self._encode(self._tail + word)
        added = after[len(before) :]
        if after[: len(before)] != before or len(added) != 1:
            refuse(name, "a word that is one token behind the prompt", f"{word!r}, which is {len(added)} tokens there")
        if added[0] == self.tokenizer.unk_token_id:
            refuse(name, "a word that the tokenizer knows", repr(word))
        return added[0]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[return-value]

    def _begin(self) -> list[int]:
        """The token that the tokenizer puts before every text, if it does."""
        special: list[int] = self.tokenizer("", verbose=False)["input_ids"]  # type: ignore[assignment]
        return special[:1] if special and special[0] == self.tokenizer.bos_token_id else []

    def _decoder(self) -> nn.Module:
        return self.model.get_decoder()

    def _tensor(self, rows: list[list[int]]) -> Int[Tensor, "b t"]:
        return torch.tensor(rows, dtype=torch.long, device=self.model.device)

    def _positions(self) -> int:
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def _split(prompt: str) -> tuple[str, str]:
    """The parts of a prompt before and behind the candidate."""
    fields = ("{query}", "{candidate}")
    if any(prompt.count(field) != 1 for field in fields) or prompt.index(fields[0]) > prompt.index(fields[1]):
        refuse("prompt", "a text with {query} and then {candidate}, once each", repr(prompt))
    head, tail = prompt.split("{candidate}")
    if not tail.strip():
        refuse("prompt", "a question behind {candidate}, which the answer follows", repr(prompt))
    return head, tail


def _filled(head: str, query: str) -> str:
    before, behind = head.split("{query}")
    return before + query + behind


def _words(name: str, words: str | Sequence[str]) -> tuple[str, ...]:
    found = (words,) if isinstance(words, str) else tuple(words)
    if not found or len(set(found)) != len(found) or not all(word.strip() for word in found):
        refuse(name, "a word, or several different ones", repr(words))
    return found
