"""R3 and its factors: check values, properties, branches, and what trainers see of them."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scorecraft.preference.r3 import (
    PAPER,
    CachedEncoder,
    Calibration,
    LengthIncentive,
    R3Parts,
    R3Reward,
    R3Scorer,
    RelevanceReward,
    RepetitionPenalty,
    contriever,
    cosine,
    regularized_relevance,
)

FOX = "A fox ran. A fox ran fast!"
RP = 6 / 7
TOPICS = ("fox", "sky", "tea")


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def topics(texts: list[str]) -> Tensor:
    """How often each topic is there."""
    return torch.tensor([[float(text.count(topic)) for topic in TOPICS] for text in texts])


def unit(texts: list[str]) -> Tensor:
    return nn.functional.normalize(topics(texts), dim=1)


def always(relevance: float) -> Callable[[list[str]], Tensor]:
    """An encoder under which any two texts have this relevance."""
    return lambda texts: torch.full((len(texts), 1), math.sqrt(relevance), dtype=torch.float64)


def test_check_values_of_the_specification() -> None:
    length, repetition = vector(0.09, 0.09), vector(RP, RP)
    found = regularized_relevance(vector(1.4, 2.1), length, repetition, torch.tensor([False, True]))
    assert found.tolist() == pytest.approx([0.108, 2.633142857142857], abs=1e-14)


def test_check_values_of_texts() -> None:
    types, references = ["OE", "CE"], [None, "A fox."]
    for relevance, place, wanted in ((1.4, 0, 0.108), (2.1, 1, 2.633142857142857)):
        parts = R3Scorer(always(relevance))(["A fox?"] * 2, [FOX] * 2, references, types)
        assert parts.reward[place].item() == pytest.approx(wanted, rel=1e-6)  # embeddings are float32
        assert parts.length.tolist() == pytest.approx([0.09, 0.09], abs=1e-15)
        assert parts.repetition.tolist() == pytest.approx([RP, RP], abs=1e-15)
        assert parts.constrained.tolist() == [False, True]
        assert parts.relevance.tolist() == pytest.approx([relevance] * 2, rel=1e-6)


@given(
    relevance=st.floats(0, 4),
    factor=st.floats(0, 3),
    length=st.floats(0.01, 6),
    repetition=st.floats(0.01, 1),
    constrained=st.booleans(),
)
def test_not_negative_and_linear_in_relevance(
    relevance: float, factor: float, length: float, repetition: float, constrained: bool
) -> None:
    def reward(value: float) -> float:
        return regularized_relevance(
            vector(value), vector(length), vector(repetition), torch.tensor([constrained])
        ).item()

    assert reward(relevance) >= 0
    assert reward(factor * relevance) == pytest.approx(factor * reward(relevance), abs=1e-12)


def test_a_doubled_text_gains_almost_nothing() -> None:
    """Length doubles and repetition halves, so that what is left is the seam."""
    text = "Light of short wavelengths is scattered by the air, which makes the whole sky look blue to us."
    scorer = R3Scorer(always(1.0))
    once, twice = scorer(["sky"] * 2, [text, f"{text} {text}"]).reward.tolist()
    assert twice == pytest.approx(once, rel=0.12)
    assert scorer(["sky"], [" ".join([text] * 20)]).reward.item() == pytest.approx(once, rel=0.15)


def test_switches_are_factors_of_one() -> None:
    relevance, length, repetition = vector(1.4, 2.1), vector(0.09, 0.2), vector(RP, 0.5)
    constrained = torch.tensor([False, True])

    def reward(**switches: bool) -> list[float]:
        return regularized_relevance(relevance, length, repetition, constrained, **switches).tolist()

    calibrated = 2.1 / 3.5 * 5.12
    assert reward() == pytest.approx([1.4 * 0.09 * RP, calibrated * 0.5], abs=1e-14)
    assert reward(use_length=False) == pytest.approx([1.4 * RP, calibrated * 0.5], abs=1e-14)
    assert reward(use_repetition=False) == pytest.approx([1.4 * 0.09, calibrated], abs=1e-14)
    # No relevance, no branch: the constrained one gets length and repetition as well.
    assert reward(use_relevance=False) == pytest.approx([0.09 * RP, 0.2 * 0.5], abs=1e-14)
    assert reward(use_relevance=False, use_length=False, use_repetition=False) == [1.0, 1.0]


def test_switches_of_the_scorer() -> None:
    given: tuple[Any, ...] = (["fox?", "fox?"], ["a fox and the sky", "a fox"], ["the sky", "the sky"], ["CE", "OE"])
    plain = R3Scorer(topics)(*given)
    assert plain.constrained.tolist() == [True, False]
    assert plain.relevance.tolist() == [1.0, 1.0]
    assert plain.reward.tolist() == pytest.approx([5.12 / 3.5, 0.02])
    no_branch = R3Scorer(topics, branching=False)(*given)
    assert no_branch.constrained.tolist() == no_branch.fallback.tolist() == [False, False]
    assert no_branch.reward.tolist() == pytest.approx([0.05, 0.02])

    def refused(texts: list[str]) -> Tensor:
        raise AssertionError("nothing is embedded where relevance is off")

    no_relevance = R3Scorer(refused, use_relevance=False)(*given)
    assert no_relevance.reward.tolist() == pytest.approx([0.05, 0.02])
    assert no_relevance.constrained.tolist() == [False, False]
    assert R3Scorer(topics, use_length=False)(*given).reward.tolist() == pytest.approx([5.12 / 3.5, 1.0])


def test_negative_relevance() -> None:
    """Left alone a penalty raises what is below 0; clamped it is 0."""
    relevance, length = vector(-0.5, -0.5), vector(0.1, 0.1)
    constrained = torch.tensor([False, False])
    more, less = regularized_relevance(relevance, length, vector(0.2, 1.0), constrained).tolist()
    assert (more, less) == pytest.approx((-0.01, -0.05))
    for branch in (False, True):
        found = regularized_relevance(
            relevance, length, vector(0.2, 1.0), torch.tensor([branch] * 2), clamp_relevance=True
        )
        assert found.tolist() == [0, 0]


def test_an_empty_response_earns_nothing() -> None:
    shifted = Calibration(-1.0, 1.0, 0.5, 5.0)  # which gives no relevance something
    empty = ["", " \n ", "USER: me", [], [{"role": "assistant", "content": ""}]]
    for switches in ({}, {"use_relevance": False}, {"use_length": False}, {"use_repetition": False}):
        for kind in ("OE", "CE"):
            parts = R3Scorer(unit, calibration=shifted, **switches)(["fox"] * 5, empty, ["fox"] * 5, [kind] * 5)
            assert parts.reward.tolist() == parts.length.tolist() == [0.0] * 5
            assert parts.repetition.tolist() == [1.0] * 5
    assert regularized_relevance(vector(1.0), vector(0.0), vector(1.0), torch.tensor([True])).item() == 0
    none = R3Scorer(unit)([], [])
    assert all(len(part) == 0 for part in none)
    assert R3Reward(unit, normalisation="joint")([], []) == []


def test_what_is_missing_is_open_ended_and_counted() -> None:
    types = ["CE", "CE", "CE", None, "OE", "CONSTRAINED", "OPENENDED"]
    references = ["tea", None, " ", "tea", None, [{"role": "assistant", "content": "tea"}], "tea"]
    parts = R3Scorer(topics)(["fox"] * 7, ["fox tea tea"] * 7, references, types)
    assert parts.constrained.tolist() == [True, False, False, False, False, True, False]
    assert parts.fallback.tolist() == [False, True, True, True, False, False, False]
    assert parts.relevance.tolist() == [2.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0]
    # A column that is not there at all is missing for every row; that of references only where one is needed.
    assert R3Scorer(topics)(["fox"], ["fox"]).fallback.tolist() == [True]
    assert R3Scorer(topics)(["fox"] * 2, ["fox"] * 2, None, ["OE", "CE"]).fallback.tolist() == [False, True]


def test_conversations_and_texts_are_the_same() -> None:
    scorer = R3Scorer(topics)
    conversation = [
        {"role": "system", "content": "You are a tea."},
        {"role": "user", "content": "What of the"},
        {"role": "assistant", "content": "tea?"},
        {"role": "user", "content": "fox?"},
    ]
    answer = [{"role": "assistant", "content": "No tea"}, {"role": "assistant", "content": " A fox, a fox!\n\n\n\ntea"}]
    first = scorer([conversation], [answer])
    second = scorer(["What of the fox?"], ["A fox, a fox!"])
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert first.relevance.item() == 2


def test_queries_and_references_are_embedded_once() -> None:
    asked: list[str] = []

    def counting(texts: list[str]) -> Tensor:
        asked.extend(texts)
        return topics(texts)

    scorer = R3Scorer(counting, calibration=cosine())
    scorer.kept(["fox?"])
    for answer in ("a fox", "the fox"):
        scorer(["fox?", " fox? ", "sky?"], [answer] * 3, [None, None, "sky"], ["OE", "OE", "CE"])
    assert sorted(text for text in asked if "?" in text or text == "sky") == ["fox?", "sky"]
    assert asked.count("a fox") == asked.count("the fox") == 3


def test_units_orders_and_tokens_of_ones_own() -> None:
    """A language without spaces: one token per character."""
    scorer = R3Scorer(always(1.0), unit=10, order=2, tokenize=list, stop_strings=["。"])
    parts = scorer(["天"], ["天空天空。后"])
    assert parts.length.item() == pytest.approx(0.4)
    assert parts.repetition.item() == pytest.approx(2 / 3)
    assert LengthIncentive(unit=10, tokenize=list, stop_strings=["。"])(["天"], ["天空天空。后"]) == [0.4]
    assert RepetitionPenalty(order=2, tokenize=list, stop_strings=["。"])(["天"], ["天空天空。后"]) == [2 / 3]


def test_the_range_of_another_encoder_is_warned_of_once() -> None:
    constrained: tuple[Any, ...] = (["fox?"], ["a fox"], ["fox"], ["CE"])
    scorer = R3Scorer(unit)
    with pytest.warns(UserWarning, match=r"unit vectors.*ends at 3\.5: pass calibration=cosine\(\)"):
        low = scorer(*constrained).reward.item()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer(*constrained)
        R3Scorer(unit)(["fox?"], ["a fox"])  # the open-ended branch has no range
        R3Scorer(topics)(["fox?"], ["fox fox"], ["fox"], ["CE"])
        R3Scorer(unit, calibration=Calibration(0.0, 1.0000001, 0.0, 5.12))(*constrained)
        high = R3Scorer(unit, calibration=cosine())(*constrained).reward.item()
    assert high == pytest.approx(3.5 * low) == pytest.approx(5.12)


def test_the_factors_multiply_to_r3() -> None:
    prompts, answers = ["fox?", "sky?", "tea?"], [FOX, "the sky, the sky, the sky", "fox"]
    columns: dict[str, Any] = {
        "reference": ["tea", "a sky", None],
        "query_type": ["OE", "CE", "OE"],
        "other": [1, 2, 3],
    }
    relevance = RelevanceReward(topics)(prompts, answers, **columns)
    to_reference = RelevanceReward(topics, to="reference", calibration=contriever())(prompts, answers, **columns)
    length = LengthIncentive()(prompts, answers, **columns)
    repetition = RepetitionPenalty()(prompts, answers, **columns)
    assert relevance == [2.0, 3.0, 0.0]
    assert to_reference == pytest.approx([0.0, 3 / 3.5 * 5.12, None])
    found = R3Reward(topics)(prompts, answers, **columns)
    assert found == pytest.approx(
        [relevance[0] * length[0] * repetition[0], to_reference[1] * repetition[1], 0.0]  # type: ignore[operator]
    )
    assert RelevanceReward(topics)(prompts, ["", "sky", "tea"]) == [0.0, 1.0, 1.0]
    assert RelevanceReward(topics, to="reference")(prompts, answers) == [None, None, None]
    names = [
        one.__name__ for one in (R3Reward(topics), LengthIncentive(), RepetitionPenalty(), RelevanceReward(topics))
    ]
    assert names == ["r3", "length_incentive", "repetition_penalty", "relevance_to_query"]


def test_parts_are_logged_where_the_trainer_can() -> None:
    metrics: dict[str, float] = {}
    extras: dict[str, list[Any]] = {}
    reward = R3Reward(topics, normalisation="joint")
    found = reward(
        ["fox?", "fox?"], [FOX, "fox"], ["sky", "fox"], ["OE", "CE"], log_metric=metrics.__setitem__,
        log_extra=extras.__setitem__,
    )  # fmt: skip
    raw = R3Scorer(topics)(["fox?", "fox?"], [FOX, "fox"], ["sky", "fox"], ["OE", "CE"])
    assert found != raw.reward.tolist()
    assert set(metrics) == set(extras) == {f"r3/{name}" for name in R3Parts._fields}
    for name, values in raw._asdict().items():
        assert extras[f"r3/{name}"] == values.tolist()
        assert metrics[f"r3/{name}"] == pytest.approx(values.double().mean().item())


def test_running_normalisation() -> None:
    """Against moments taken over everything seen so far, and clipped."""
    reward = R3Reward(always(1.0), normalisation="joint")
    seen: list[float] = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        answers = [" ".join(f"w{i}" for i in range(count)) for count in torch.randint(1, 60, (4,), generator=generator)]
        raw = R3Scorer(always(1.0))(["q"] * 4, answers).reward.tolist()
        seen += raw
        so_far = vector(*seen)
        wanted = (vector(*raw) - so_far.mean()) / so_far.std(correction=0)
        assert reward(["q"] * 4, answers) == pytest.approx(wanted.tolist(), abs=1e-9)
    alike = R3Reward(always(1.0), normalisation="joint")
    assert alike(["q"] * 300, ["one two"] * 300) == [0.0] * 300
    assert alike(["q"], [" ".join(f"w{i}" for i in range(99))]) == [10.0]


def test_each_branch_has_its_own_moments() -> None:
    prompts, answers = ["fox"] * 4, ["fox", "fox a b c", "fox", "fox fox"]
    types, references = ["OE", "OE", "CE", "CE"], ["fox"] * 4
    raw = R3Scorer(topics)(prompts, answers, references, types).reward
    assert raw[2] > 10 * raw[1]
    found = R3Reward(topics, normalisation="per_branch")(prompts, answers, references, types)
    assert found == pytest.approx([-1, 1, -1, 1])
    joint = R3Reward(topics, normalisation="joint")(prompts, answers, references, types)
    assert abs(joint[1] - joint[0]) < 0.1
    open_ended = R3Reward(topics, normalisation="per_branch")(prompts[:2], answers[:2])
    assert open_ended == pytest.approx([-1, 1])


def test_lengths_and_types_are_refused() -> None:
    scorer, reward = R3Scorer(topics), R3Reward(topics)
    with pytest.raises(ValueError, match=r"^argument `queries`: expected 2 of them, one per response, got 1$"):
        reward(["fox"], ["a", "b"])
    with pytest.raises(ValueError, match=r"^argument `references`: expected 1 of them, one per response, got 2$"):
        scorer(["fox"], ["a"], ["b", "c"])
    with pytest.raises(ValueError, match=r"^argument `query_types`: expected 1 of them, one per response, got 0$"):
        scorer(["fox"], ["a"], None, [])
    with pytest.raises(ValueError, match=r"^argument `query_type`: expected one of 'OE', .*, got 'open'$"):
        scorer(["fox"], ["a"], None, ["open"])
    for to, name in (("query", "prompts"), ("reference", "reference")):
        with pytest.raises(ValueError, match=rf"^argument `{name}`: expected 2 of them, one per completion, got 1$"):
            RelevanceReward(topics, to=to)(["a"] * (1 if to == "query" else 2), ["a", "b"], ["c"])  # type: ignore[arg-type]


def test_constructors_refuse() -> None:
    for kind in (R3Scorer, R3Reward, RelevanceReward):
        for thing in (nn.Linear(2, 2), "facebook/contriever"):
            with pytest.raises(ValueError, match=r"^argument `encode`: expected a function from texts to embeddings"):
                kind(thing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^argument `options`: expected no options beside an R3Scorer"):
        R3Reward(R3Scorer(topics), use_length=False)
    with pytest.raises(ValueError, match=r"^argument `normalisation`: expected one of 'none', 'joint', 'per_branch'"):
        R3Reward(topics, normalisation="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^argument `to`: expected one of 'query', 'reference'"):
        RelevanceReward(topics, to="answer")  # type: ignore[arg-type]
    for options, name in (({"unit": 0}, "unit"), ({"order": 0}, "order"), ({"cache": 0}, "limit"),
                          ({"stop_strings": "END"}, "stop_strings")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^argument `{name}`: expected"):
            R3Scorer(topics, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^argument `length`: expected one per response, shape \(2,\)"):
        regularized_relevance(vector(1, 1), vector(1), vector(1, 1))
    with pytest.raises(ValueError, match=r"^argument `constrained`: expected a bool tensor, got int64"):
        regularized_relevance(vector(1), vector(1), vector(1), torch.tensor([1]))


def test_an_encoder_that_breaks_is_named() -> None:
    with pytest.raises(ValueError, match=r"^argument `encode`: expected finite embeddings, got nan"):
        R3Reward(lambda texts: topics(texts) * math.nan)(["fox"], ["fox"])
    with pytest.raises(ValueError, match=r"^argument `encode`: expected embeddings \[1, d\], one per text"):
        R3Reward(lambda texts: torch.ones(5, 3))(["fox"], ["fox"])


def test_shared_scorer_keeps_one_cache() -> None:
    scorer = R3Scorer(topics)
    R3Reward(scorer)(["fox"], ["a fox"])
    assert isinstance(scorer.kept, CachedEncoder)
    assert len(scorer.kept) == 1
    assert R3Reward(scorer).scorer is scorer


def test_public_names_are_what_the_card_says() -> None:
    """Also once a module of the package has been imported by its full name, which sets it on the package."""
    package = importlib.import_module("scorecraft.preference.r3")
    modules = {"query_types", "relevance", "relevance_triples", "reverse_engineering", "reward", "texts"}
    for module in modules:
        importlib.import_module(f"scorecraft.preference.r3.{module}")
    for dotted in PAPER.api:
        parent, _, name = dotted.rpartition(".")
        assert parent == "scorecraft.preference.r3"
        assert callable(getattr(package, name)), name
        assert name in package.__all__
    assert not modules & set(package.__all__)
