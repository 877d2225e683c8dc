"""R3: relevance times length times repetition for open questions, calibrated relevance to a reference for others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scorecraft.core.checks import choice, describe, positive, positive_integer, refuse
from scorecraft.preference.r3.query_types import CONSTRAINED, query_type
from scorecraft.preference.r3.relevance import (
    UNIT_TOLERANCE,
    CachedEncoder,
    Calibration,
    Encode,
    are_unit_vectors,
    embeddings_of,
    row_relevance,
)
from scorecraft.preference.r3.texts import (
    LENGTH_UNIT,
    ORDER,
    STOP_STRINGS,
    Tokenize,
    checked_stop_strings,
    length_incentive,
    query_of,
    reference_of,
    repetition_penalty,
    response_of,
    word_tokens,
)

Normalisation: TypeAlias = Literal["none", "joint", "per_branch"]
NORMALISATIONS = ("none", "joint", "per_branch")
_CLIP = 10.0


class R3Parts(NamedTuple):
    """The factors of each response's reward."""

    reward: Float[Tensor, " b"]
    relevance: Float[Tensor, " b"]
    """To the query, or to the reference answer in the constrained branch; before calibration. 0 for an empty response,
    and where relevance is switched off."""
    length: Float[Tensor, " b"]
    repetition: Float[Tensor, " b"]
    constrained: Bool[Tensor, " b"]
    """Which branch was taken."""
    fallback: Bool[Tensor, " b"]
    """Taken for open-ended because the type or the reference answer is missing."""


def regularized_relevance(
    relevance: Float[Tensor, " b"],
    length: Float[Tensor, " b"],
    repetition: Float[Tensor, " b"],
    constrained: Bool[Tensor, " b"] | None = None,
    *,
    calibration: Calibration | None = None,
    use_relevance: bool = True,
    use_length: bool = True,
    use_repetition: bool = True,
    clamp_relevance: bool = False,
) -> Float[Tensor, " b"]:
    """`R3 = r LI RP` for open-ended queries, `F(r) RP` for constrained ones; 0 for an empty response.

    A factor that is switched off is 1. Without relevance there is no branch either, as `F` needs one: every response
    gets `LI RP`.

    Args:
        relevance: `[b]`, to the query, and to the reference answer where `constrained`.
        length: `[b]`, the length incentive; 0 marks an empty response.
        repetition: `[b]`, the repetition penalty, in (0, 1].
        constrained: bool `[b]`, which queries are; where left out, none is.
        calibration: `F`, of the encoder; Contriever's where left out.
        use_relevance, use_length, use_repetition: the ablations.
        clamp_relevance: count relevance below 0 as 0. Off, as in the released code, more repetition means a higher
            reward there.

    Raises:
        ValueError: shapes that do not fit, or `constrained` that is not bool.

    Source: arXiv 2402.03469.
    """
    for name, value in (("length", length), ("repetition", repetition), ("constrained", constrained)):
        if value is not None and value.shape != relevance.shape:
            refuse(name, f"one per response, shape {tuple(relevance.shape)}", describe(value))
    if constrained is not None and constrained.dtype != torch.bool:
        refuse("constrained", "a bool tensor", describe(constrained))
    one = torch.ones_like(relevance)
    incentive = length if use_length else one
    penalty = repetition if use_repetition else one
    if not use_relevance:
        reward = incentive * penalty
    else:
        relevance = relevance.clamp(min=0) if clamp_relevance else relevance
        reward = relevance * incentive * penalty
        if constrained is not None:
            reward = torch.where(constrained, (calibration or Calibration())(relevance) * penalty, reward)
    return torch.where(length > 0, reward, 0.0)


class R3Scorer:
    """Scores texts: prepares them, counts, embeds, and combines.

        scorer = R3Scorer(encode, calibration=cosine())
        scorer(["How do magnets work?"], ["A magnet is ..."]).reward

    Queries and references are embedded once and kept; responses are embedded every time.

    Args:
        encode: from texts to embeddings `[n, d]`; the encoder in eval mode, on a device of its own.
        calibration: of the encoder: `contriever()` (the default), `cosine()`, or what `calibrate` fits. Unit vectors
            with Contriever's range are warned of once: constrained rewards would be 3.5 times too small.
        use_relevance, use_length, use_repetition: see `regularized_relevance`.
        branching: treat constrained queries as such; off, all are open-ended.
        clamp_relevance: see `regularized_relevance`.
        stop_strings: where a response ends; see `response_of`.
        unit: tokens that are worth a length incentive of 1.
        order: tokens that repeat together.
        tokenize: of the response; `word_tokens` where left out. With another, the unit of length changes.
        cache: queries and references that are kept.

    Source: arXiv 2402.03469.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        calibration: Calibration | None = None,
        use_relevance: bool = True,
        use_length: bool = True,
        use_repetition: bool = True,
        branching: bool = True,
        clamp_relevance: bool = False,
        stop_strings: Sequence[str] = STOP_STRINGS,
        unit: float = LENGTH_UNIT,
        order: int = ORDER,
        tokenize: Tokenize = word_tokens,
        cache: int = 100_000,
    ) -> None:
        self.encode = checked_encode(encode)
        self.calibration = Calibration() if calibration is None else calibration
        self.use_relevance = use_relevance
        self.use_length = use_length
        self.use_repetition = use_repetition
        self.branching = branching
        self.clamp_relevance = clamp_relevance
        self.stop_strings = checked_stop_strings(stop_strings)
        self.unit = positive("unit", unit)
        self.order = positive_integer("order", order)
        self.tokenize = tokenize
        self.kept = CachedEncoder(encode, limit=cache)
        """Embeddings of queries and references; call it with texts to embed them beforehand."""
        self._warned = False

    def __call__(
        self,
        queries: Sequence[Any],
        responses: Sequence[Any],
        references: Sequence[Any] | None = None,
        query_types: Sequence[str | None] | None = None,
    ) -> R3Parts:
        """The rewards of responses, with their factors.

        Args:
            queries: texts or conversations; see `query_of`.
            responses: one per query, texts or messages; see `response_of`.
            references: reference answers, texts or messages, which constrained queries need.
            query_types: `"OE"` or `"CE"`, or the aliases of `query_type`. A query without a type, and a constrained one
                without a reference answer, is taken for open-ended, and counted in `fallback`.

        Raises:
            ValueError: one line: lists of different lengths, an unknown type, embeddings that are not finite.
        """
        count = len(responses)
        for name, values in (("queries", queries), ("references", references), ("query_types", query_types)):
            if values is not None and len(values) != count:
                refuse(name, f"{count} of them, one per response", len(values))
        answers = [reference_of(one) for one in references or [None] * count]
        types = [None if one is None else query_type(one) for one in query_types or [None] * count]
        branching = self.branching and self.use_relevance
        constrained = [branching and kind == CONSTRAINED and answer is not None
                       for kind, answer in zip(types, answers, strict=True)]  # fmt: skip
        fallback = [branching and (kind is None or (kind == CONSTRAINED and answer is None))
                    for kind, answer in zip(types, answers, strict=True)]  # fmt: skip

        texts = [response_of(response, self.stop_strings) for response in responses]
        tokens = [self.tokenize(text) for text in texts]
        length = torch.tensor([length_incentive(one, unit=self.unit) for one in tokens], dtype=torch.float64)
        repetition = torch.tensor([repetition_penalty(one, order=self.order) for one in tokens], dtype=torch.float64)
        relevance = torch.zeros(count, dtype=torch.float64)
        filled = [place for place in range(count) if len(tokens[place])]
        if self.use_relevance and filled:
            against = [str(answers[place]) if constrained[place] else query_of(queries[place]) for place in filled]
            found = embeddings_of(self.encode, [texts[place] for place in filled])
            if any(constrained):
                self._look(found)
            relevance[filled] = row_relevance(found, self.kept(against)).double()
        branch = torch.tensor(constrained, dtype=torch.bool)
        reward = regularized_relevance(
            relevance,
            length,
            repetition,
            branch,
            calibration=self.calibration,
            use_relevance=self.use_relevance,
            use_length=self.use_length,
            use_repetition=self.use_repetition,
            clamp_relevance=self.clamp_relevance,
        )
        return R3Parts(reward, relevance, length, repetition, branch, torch.tensor(fallback, dtype=torch.bool))

    def _look(self, embeddings: Float[Tensor, "n d"]) -> None:
        """Warn once where Contriever's range meets unit vectors."""
        if not self._warned and self.calibration.high > 1 + UNIT_TOLERANCE and are_unit_vectors(embeddings):
            self._warned = True
            warnings.warn(
                "the encoder returns unit vectors, whose relevance is at most 1, and the calibration ends at"
                f" {self.calibration.high:g}: pass calibration=cosine(), or fit one with calibrate(...)",
                stacklevel=3,
            )


class R3Reward:
    """R3 as a reward function, `(prompts, completions, reference=None, query_type=None, **columns) -> list of floats`.

    The columns `reference` and `query_type` of a data set are read where they are. Where the trainer offers
    `log_metric` the means of the parts are logged as `r3/reward` (before normalisation), `r3/relevance`, `r3/length`,
    `r3/repetition`, `r3/constrained` and `r3/fallback`, the share whose type or reference answer is missing; where it
    offers `log_extra` the parts of each completion stand in its table.

    Args:
        scorer: an `R3Scorer`, or an encoder to make one of, with the options of `R3Scorer`.
        normalisation: of the reward by its running mean and standard deviation, clipped to +-10: `"none"`, `"joint"`,
            or `"per_branch"`, which keeps one branch from dominating. Each process has running moments of its own, and
            a continued training begins them anew.
        options: of `R3Scorer`.

    Raises:
        ValueError: one line: options beside an `R3Scorer`; when called, see `R3Scorer`.

    Source: arXiv 2402.03469.
    """

    __name__ = "r3"

    def __init__(self, scorer: R3Scorer | Encode, *, normalisation: Normalisation = "none", **options: Any) -> None:
        if isinstance(scorer, R3Scorer) and options:
            refuse("options", "no options beside an R3Scorer, which has its own", ", ".join(options))
        self.scorer = scorer if isinstance(scorer, R3Scorer) else R3Scorer(scorer, **options)
        self.normalisation = choice("normalisation", normalisation, NORMALISATIONS)
        self.moments = {constrained: RunningMoments() for constrained in (False, True)}
        """Of each branch; of all rewards under False where they are normalised jointly."""

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        reference: Sequence[Any] | None = None,
        query_type: Sequence[str | None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """The reward of each completion."""
        parts = self.scorer(prompts, completions, reference, query_type)
        log_parts(parts, columns)
        return self._normalised(parts).tolist()

    def _normalised(self, parts: R3Parts) -> Tensor:
        if self.normalisation == "none":
            return parts.reward
        if self.normalisation == "joint":
            return self.moments[False].normalise(parts.reward)
        rewards = parts.reward.clone()
        for constrained, moments in self.moments.items():
            rows = parts.constrained == constrained
            rewards[rows] = moments.normalise(parts.reward[rows])
        return rewards


class RelevanceReward:
    """Relevance alone as a reward function: to the query, or with `to="reference"` to the reference answer.

    On its own it is hacked by copying the question; it is here to be logged (with a weight of 0) or compared.

    Args:
        encode: from texts to embeddings.
        to: `"query"`, or `"reference"`, where completions without a reference answer get None: not applicable.
        calibration: of the encoder, to bring relevance to the scale of R3; left as it is where left out.
        stop_strings: where a response ends.
        cache: queries or references whose embeddings are kept.

    Raises:
        ValueError: when called, one line: prompts or references of another number than completions.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        to: Literal["query", "reference"] = "query",
        calibration: Calibration | None = None,
        stop_strings: Sequence[str] = STOP_STRINGS,
        cache: int = 100_000,
    ) -> None:
        self.to = choice("to", to, ("query", "reference"))
        self.encode = checked_encode(encode)
        self.calibration = calibration
        self.kept = CachedEncoder(encode, limit=cache)
        self.stop_strings = checked_stop_strings(stop_strings)
        self.__name__ = f"relevance_to_{to}"

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        reference: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The relevance of each completion, 0 for an empty one."""
        for name, values in (("prompts", prompts), ("reference", reference)):
            if values is not None and len(values) != len(completions):
                refuse(name, f"{len(completions)} of them, one per completion", len(values))
        if self.to == "query":
            against: list[str | None] = [query_of(prompt) for prompt in prompts]
        else:
            against = [reference_of(one) for one in reference or [None] * len(completions)]
        texts = [response_of(completion, self.stop_strings) for completion in completions]
        found: list[float | None] = [None if other is None else 0.0 for other in against]
        places = [place for place, other in enumerate(against) if other is not None and texts[place]]
        if places:
            ours = embeddings_of(self.encode, [texts[place] for place in places])
            theirs = self.kept([str(against[place]) for place in places])
            relevance = row_relevance(ours, theirs)
            if self.calibration is not None:
                relevance = self.calibration(relevance)
            for place, value in zip(places, relevance.tolist(), strict=True):
                found[place] = value
        return found


class LengthIncentive:
    """`tokens / 100` as a reward function.

    Args:
        unit: tokens that are worth 1.
        tokenize: of the response; `word_tokens` where left out.
        stop_strings: where a response ends.
    """

    __name__ = "length_incentive"

    def __init__(
        self,
        *,
        unit: float = LENGTH_UNIT,
        tokenize: Tokenize = word_tokens,
        stop_strings: Sequence[str] = STOP_STRINGS,
    ) -> None:
        self.unit = positive("unit", unit)
        self.tokenize = tokenize
        self.stop_strings = checked_stop_strings(stop_strings)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """The length incentive of each completion."""
        texts = (response_of(completion, self.stop_strings) for completion in completions)
        return [length_incentive(self.tokenize(text), unit=self.unit) for text in texts]


class RepetitionPenalty:
    """The share of distinct trigrams as a reward function, in (0, 1].

    Args:
        order: tokens that repeat together.
        tokenize: of the response; `word_tokens` where left out.
        stop_strings: where a response ends.
    """

    __name__ = "repetition_penalty"

    def __init__(
        self,
        *,
        order: int = ORDER,
        tokenize: Tokenize = word_tokens,
        stop_strings: Sequence[str] = STOP_STRINGS,
    ) -> None:
        self.order = positive_integer("order", order)
        self.tokenize = tokenize
        self.stop_strings = checked_stop_strings(stop_strings)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """The repetition penalty of each completion."""
        texts = (response_of(completion, self.stop_strings) for completion in completions)
        return [repetition_penalty(self.tokenize(text), order=self.order) for text in texts]


@dataclass
class RunningMoments:
    """Mean and variance of everything seen, by Chan's update."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""

    def normalise(self, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Take in the values, then `(v - mean) / sd`, clipped to +-10; 0 while there is no spread."""
        if not len(values):
            return values
        new, mean = len(values), values.mean().item()
        total, shift = self.count + new, mean - self.mean
        self.squares += (values - mean).square().sum().item() + shift**2 * self.count * new / total
        self.mean += shift * new / total
        self.count = total
        spread = math.sqrt(self.squares / total)
        if spread == 0:
            return torch.zeros_like(values)
        return ((values - self.mean) / spread).clamp(-_CLIP, _CLIP)


def checked_encode(encode: Encode) -> Encode:
    """A function of texts, and not a model, which would be called with something else."""
    if isinstance(encode, nn.Module) or not callable(encode):
        expected = (
            "a function from texts to embeddings [n, d] (a model: see TextEncoder in scorecraft.integrations.trl)"
        )
        refuse("encode", expected, type(encode).__name__)
    return encode


def log_parts(parts: R3Parts, columns: Mapping[str, Any]) -> None:
    """Hand the parts to the trainer's `log_metric` and `log_extra`, where it has them."""
    metric, extra = columns.get("log_metric"), columns.get("log_extra")
    for name, values in parts._asdict().items():
        if metric is not None and len(values):
            metric(f"r3/{name}", values.double().mean().item())
        if extra is not None:
            extra(f"r3/{name}", values.tolist())
