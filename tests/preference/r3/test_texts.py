"""Tokens, length, repetition, and what is cut out of prompts and completions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorecraft.preference.r3 import (
    STOP_STRINGS,
    length_incentive,
    query_of,
    repetition_penalty,
    response_of,
    word_tokens,
)
from scorecraft.preference.r3.texts import checked_stop_strings, reference_of

FOX = "A fox ran. A fox ran fast!"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_check_values_of_the_specification() -> None:
    tokens = word_tokens(FOX)
    assert tokens == ["A", "fox", "ran", ".", "A", "fox", "ran", "fast", "!"]
    assert length_incentive(tokens) == pytest.approx(0.09, abs=1e-15)
    assert repetition_penalty(tokens) == pytest.approx(6 / 7, abs=1e-15)
    assert word_tokens("Don't stop -- it's 3.5%! ok") == [
        "Don", "'", "t", "stop", "--", "it", "'", "s", "3", ".", "5", "%!", "ok",
    ]  # fmt: skip


def test_tokens_are_of_any_script_and_lines_are_space() -> None:
    assert word_tokens("Grüße\nan\r\n\talle") == ["Grüße", "an", "alle"]
    assert word_tokens("你好 世界") == ["你好", "世界"]  # a run each: such a language needs a segmenter
    assert word_tokens("snake_case a") == ["snake_case", "a"]
    assert word_tokens(" \n") == word_tokens("") == []
    assert repetition_penalty(word_tokens("a b c A b c")) == 1  # case counts


@pytest.mark.parametrize("order, wanted", [(1, 3 / 6), (2, 3 / 5), (3, 3 / 4), (4, 1.0), (6, 1.0), (7, 1.0)])
def test_orders_of_repetition(order: int, wanted: float) -> None:
    assert repetition_penalty(list("abcabc"), order=order) == pytest.approx(wanted, abs=1e-15)


def test_fewer_tokens_than_an_n_gram() -> None:
    assert [repetition_penalty(["x"] * count) for count in (0, 1, 2, 3, 4, 10)] == [1, 1, 1, 1, 0.5, 0.125]


@given(st.lists(st.integers(0, 3), max_size=40))
def test_repetition_is_a_share_and_blind_to_names(tokens: list[int]) -> None:
    found = repetition_penalty(tokens)
    assert 0 < found <= 1
    assert repetition_penalty([f"w{3 - token}" for token in tokens]) == found


@given(st.lists(st.sampled_from(["red", "fox", "ran", ".", "far"]), min_size=3, max_size=40))
def test_a_doubled_text(words: list[str]) -> None:
    """Length doubles, and repetition about halves: no trigram is new but the two across the seam."""
    text = " ".join(words)
    once, twice = word_tokens(text), word_tokens(f"{text} {text}")
    assert length_incentive(twice) == pytest.approx(2 * length_incentive(once))
    distinct = repetition_penalty(once) * (len(once) - 2)
    assert distinct - 1e-9 <= repetition_penalty(twice) * (len(twice) - 2) <= distinct + 2 + 1e-9


def test_units_and_orders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^argument `unit`: expected a finite number > 0, got 0"):
        length_incentive(["a"], unit=0)
    with pytest.raises(ValueError, match=r"^argument `order`: expected an integer >= 1, got 0"):
        repetition_penalty(["a"], order=0)


@pytest.mark.parametrize(
    "prompt, wanted",
    [
        ("  Why is\n the sky   blue? ", "Why is the sky blue?"),
        ("A chat.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:", "Hi Why?"),
        ("Below is an instruction.\n\n### Instruction:\nName a fox.\n\n### Response:\n", "Name a fox."),
        ("A chat. USER: One ASSISTANT: Two USER: Three ASSISTANT:", "One Three"),
        ("user: not a marker", "user: not a marker"),
        ("Why? ASSISTANT:", "Why?"),
        ("", ""),
        ([{"role": "system", "content": "Be kind."}, user(" One\n"), assistant("Two"), user("Three")], "One Three"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}], "What is it?"),
    ],
)
def test_queries(prompt: object, wanted: str) -> None:
    assert query_of(prompt) == wanted


@pytest.mark.parametrize(
    "completion, wanted",
    [
        (" \n yes \n", "yes"),
        ("one\n\n\n\ntwo", "one"),
        ("one\n\n--two\n\n____three", "one"),
        ("one\n\n____three\n\n--two", "one"),
        ("one\n\ntwo - three __ four", "one\n\ntwo - three __ four"),
        ("It is blue. ### Instruction: more", "It is blue."),
        ("It is blue.\nHuman: and?", "It is blue."),
        ("a human: being", "a human: being"),
        ("USER: nothing of mine", ""),
        ("\n\n\n\nafter a break", "after a break"),
        ([assistant("one"), {"role": "tool", "content": "3"}, assistant(" two \n\n\n\nthree")], "two"),
        ([user("one")], ""),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([], ""),
    ],
)
def test_responses(completion: object, wanted: str) -> None:
    assert response_of(completion) == wanted


def test_stop_strings_are_taken_as_they_stand() -> None:
    assert response_of("a.b+c(d", ["+c("]) == "a.b"
    assert response_of("a.b+c(d", [".."]) == "a.b+c(d"
    assert response_of("one two three", ["three", "two"]) == "one"
    assert response_of("Human: kept", ()) == "Human: kept"
    assert checked_stop_strings(["x"]) == ("x",)
    assert "### Instruction:" in STOP_STRINGS
    with pytest.raises(ValueError, match=r"^argument `stop_strings`: expected a list of texts, got 'END'"):
        checked_stop_strings("END")
    with pytest.raises(ValueError, match=r"^argument `stop_strings`: expected texts that are not empty"):
        checked_stop_strings(["END", ""])


@pytest.mark.parametrize(
    "reference, wanted",
    [(None, None), ("", None), ("  \n", None), (" Paris ", "Paris"), ([assistant("Paris")], "Paris"), ([], None)],
)
def test_references(reference: object, wanted: str | None) -> None:
    assert reference_of(reference) == wanted


def test_a_reference_is_not_cut() -> None:
    assert reference_of("one\n\n\n\ntwo") == "one\n\n\n\ntwo"


def test_what_is_neither_text_nor_messages() -> None:
    for thing in (3, None, {"role": "user"}, ["text"]):
        with pytest.raises(ValueError, match=r"^argument `prompt`: expected a text or a list of messages, got"):
            query_of(thing)
        with pytest.raises(ValueError, match=r"^argument `completion`: expected a text or a list of messages, got"):
            response_of(thing)
    for silent in ([], [assistant("Hi")]):
        with pytest.raises(ValueError, match=r"^argument `prompt`: expected a text, or messages with one of the user"):
            query_of(silent)
