"""Reading final answers, and splitting sampled answers by them."""

from __future__ import annotations

import pytest

from scorecraft.preference.aft import (
    boxed_answer,
    canonical,
    distinct_answers,
    final_answer,
    gsm8k_answer,
    split_by_final_answer,
)


@pytest.mark.parametrize(
    "answer, wanted",
    [
        ("42", "42"), (" $1,234.50 ", "1234.5"), ("1,000,000", "1000000"), ("42.0", "42"), ("007", "7"), ("-3.", "-3"),
        ("-0", "0"), ("1e3", "1000"), (r"\$12", "12"), ("3 apples", "3 apples"), ("two   thirds.", "two thirds"),
        ("1,23", "1,23"), ("nan", "nan"), (r"\frac{1}{2}", r"\frac{1}{2}"), ("0.10", "0.1"),
    ],
)  # fmt: skip
def test_canonical_form(answer: str, wanted: str) -> None:
    assert canonical(answer) == wanted


def test_final_answers() -> None:
    assert gsm8k_answer("9 * 2 = $<<9*2=18>>18 every day.\n#### 18") == "18"
    assert gsm8k_answer("#### 1\nno, #### 1,842\n") == "1842"
    assert gsm8k_answer("the answer is 18") is None
    assert gsm8k_answer("####\n18") is None
    assert boxed_answer(r"so \boxed{42}") == "42"
    assert boxed_answer(r"\boxed{1} and then $\boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
    assert boxed_answer(r"\boxed{7} and a broken \boxed{8") == "7"
    assert boxed_answer(r"\boxed{}") is None
    assert boxed_answer("42") is None
    assert final_answer(r"\boxed{4} #### 5") == "5"
    assert final_answer(r"\boxed{4}") == "4"
    assert final_answer("nothing") is None


def test_answers_are_split_by_their_final_answer() -> None:
    found = split_by_final_answer(
        ["a #### 7.0", "b #### 8", "a #### 7.0 ", "no answer", r"c \boxed{7}"], truth="the reference\n#### 7"
    )
    assert found.completions == ["a #### 7.0", "b #### 8", "no answer", r"c \boxed{7}"]
    assert found.labels == [True, False, False, True]
    assert (found.repeated, found.conflicting) == (1, 0)
    dropped = split_by_final_answer(["a #### 7", "no answer"], "7", unparsed="drop")
    assert (dropped.completions, dropped.labels) == (["a #### 7"], [True])
    with_reference = split_by_final_answer(["b #### 8", "ref #### 7"], "7", reference="ref #### 7")
    assert (with_reference.completions, with_reference.labels) == (["ref #### 7", "b #### 8"], [True, False])


def test_answers_are_read_and_compared_by_callables() -> None:
    found = split_by_final_answer(
        ["x\nA: 7", "y\nA: 7.2", "z\nA: 9"],
        "7",
        parse=lambda text: text.partition("A: ")[2] or None,
        same=lambda answer, truth: abs(float(answer) - float(truth)) < 0.5,
    )
    assert found.labels == [True, True, False]


def test_an_answer_in_both_groups_is_dropped_or_refused() -> None:
    answers, labels = ["a", "b", "a ", "c"], [True, False, False, True]
    found = distinct_answers(answers, labels)
    assert (found.completions, found.labels, found.repeated, found.conflicting) == (["b", "c"], [False, True], 1, 1)
    with pytest.raises(ValueError, match="argument `labels`: expected one judgement of each answer, got two of 'a'"):
        distinct_answers(answers, labels, conflicting="refuse")
    # What is known to be right stays so.
    known = distinct_answers(answers, labels, reference="a", conflicting="refuse")
    assert (known.completions, known.labels, known.conflicting) == (["a", "b", "c"], [True, False, True], 0)


def test_ranked_answers() -> None:
    found = distinct_answers(["a", "b", "a", "c", "b"], [2, 3, 2, 1, 4])
    assert (found.completions, found.labels, found.conflicting) == (["a", "c"], [2, 1], 1)
    first = distinct_answers(["a", "b"], [2, 3], reference="r")
    assert (first.completions, first.labels) == (["r", "a", "b"], [2, 2, 3])


def test_what_is_refused() -> None:
    for call, message in (
        (lambda: distinct_answers(["a"], []), "argument `labels`: expected 1 of them, one per completion, got 0"),
        (
            lambda: distinct_answers(["a", " "], [True, False]),
            "argument `completions`: expected texts that are not empty",
        ),
        (lambda: distinct_answers(["a"], [True], reference=""), "argument `reference`: expected texts that are not"),
        (lambda: distinct_answers(["a"], [True], conflicting="keep"), "argument `conflicting`: expected one of"),
        (lambda: split_by_final_answer(["a"], " "), "argument `truth`: expected a final answer"),
        (lambda: split_by_final_answer(["a"], "1", unparsed="right"), "argument `unparsed`: expected one of"),
    ):
        with pytest.raises(ValueError, match="^" + message):
            call()
