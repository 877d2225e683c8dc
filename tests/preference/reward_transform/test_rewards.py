"""Reward functions around reward functions, as trainers call them."""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from scorecraft.preference.reward_transform import (
    AllOf,
    AnswerReference,
    AnyOf,
    AtLeast,
    LearnedReference,
    LogicReward,
    LogSigmoidReward,
    Not,
    PromptReference,
    RewardStore,
    SampledReference,
    StoredReference,
    best_of,
)

PROMPTS = ["p0", "p1", "p2", "p3"]
TEXTS = ["a", "bb", "ccc", "dddd"]


def length(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def evens(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """Only of texts of even length."""
    return [None if len(text) % 2 else float(len(text)) for text in completions]


def log_sigmoid(*odds: float) -> list[float]:
    return logsigmoid(torch.tensor(odds, dtype=torch.float64)).tolist()


def test_of_a_number_a_column_and_a_function() -> None:
    wanted = pytest.approx(log_sigmoid(-1.5, -0.5, 0.5, 1.5), rel=1e-14)
    given: list[tuple[Any, dict[str, Any]]] = [
        (2.5, {}),
        (None, {"r_ref": [2.5] * 4}),
        (None, {"r_ref": [9.0] * 4, "ref_mean": [9.0] * 4, "ref_std": [9.0] * 4} | {"r_ref": np.full(4, 2.5)}),
        ("threshold", {"threshold": torch.full((4,), 2.5), "r_ref": [0.0] * 4}),
        (lambda prompts, **columns: [2.5 for _ in prompts], {}),
    ]
    for reference, columns in given:
        assert LogSigmoidReward(length, reference=reference)(PROMPTS, TEXTS, **columns) == wanted
    twice = LogSigmoidReward(length, reference=2.5, scale=2.0)(PROMPTS, TEXTS)
    assert twice == pytest.approx(log_sigmoid(-3, -1, 1, 3), rel=1e-14)


def test_of_moments() -> None:
    columns = {"ref_mean": [1.0, 2.0, None, 4.0], "ref_std": [0.5, 0.0, 1.0, 2.0]}
    z = 1.0364333894937898
    found = LogSigmoidReward(length)(PROMPTS, TEXTS, **columns)
    assert found[2] is None
    assert [found[0], found[1], found[3]] == pytest.approx(log_sigmoid(-0.5 * z, 0.0, -2 * z), rel=1e-13)
    # A quantile that is asked for goes before the column of another.
    half = LogSigmoidReward(length, quantile=0.5)(PROMPTS, TEXTS, **columns, r_ref=[0.0] * 4)
    assert [half[0], half[3]] == pytest.approx(log_sigmoid(0.0, 0.0), rel=1e-14)


def test_none_is_what_does_not_apply() -> None:
    good = LogSigmoidReward(evens, reference="r_ref")
    found = good(PROMPTS, TEXTS, r_ref=[0.0, 1.0, 0.0, None])
    assert found[0] is found[2] is found[3] is None
    assert found[1] == pytest.approx(log_sigmoid(1.0)[0], rel=1e-14)
    both = AllOf([good, LogSigmoidReward(length, reference=2.0)])(PROMPTS, TEXTS, r_ref=[0.0, 1.0, 0.0, None])
    wanted = log_sigmoid(-1.0, 0.0, 1.0, 2.0)
    wanted[1] += log_sigmoid(1.0)[0]
    assert both == pytest.approx(wanted, rel=1e-14)
    nowhere = AllOf([good])(PROMPTS, TEXTS, r_ref=[None] * 4)
    assert nowhere == [None] * 4


def test_combinations() -> None:
    one, other = LogSigmoidReward(length, reference=2.0), LogSigmoidReward(length, reference=3.5, name="strict")
    p, q = (torch.tensor([1.0, 2, 3, 4], dtype=torch.float64).sub(ref).sigmoid() for ref in (2.0, 3.5))
    cases = [
        (AllOf([one, other]), p * q),
        (AllOf([one, other], weights=[2.0, 0.5]), p**2 * q**0.5),
        (AnyOf([one, other]), 1 - (1 - p) * (1 - q)),
        (AtLeast(1, [one, other]), 1 - (1 - p) * (1 - q)),
        (AtLeast(2, [one, other]), p * q),
        (Not(one), 1 - p),
        (AllOf([Not(AnyOf([one, other])), one]), (1 - p) * (1 - q) * p),
    ]
    for reward, wanted in cases:
        found = torch.tensor(reward(PROMPTS, TEXTS), dtype=torch.float64)
        torch.testing.assert_close(found.exp(), wanted, rtol=1e-12, atol=0)
    assert [case[0].__name__ for case in cases[:1]] == ["AllOf(log_sigmoid(length), log_sigmoid(strict))"]
    assert cases[3][0].__name__ == "AtLeast(1, log_sigmoid(length), log_sigmoid(strict))"
    assert repr(Not(one)) == "Not(log_sigmoid(length))"


def test_what_is_logged() -> None:
    logged: dict[str, list[float]] = {}
    columns = {"log_metric": lambda name, value: logged.setdefault(name, []).append(value)}
    AllOf([LogSigmoidReward(evens, reference=3.0), LogSigmoidReward(length, reference=1.0)])(PROMPTS, TEXTS, **columns)
    sigmoid = lambda z: 1 / (1 + math.exp(-z))  # noqa: E731
    assert logged == {
        "evens/reward": [3.0],
        "evens/good": [pytest.approx((sigmoid(-1) + sigmoid(1)) / 2)],
        "length/reward": [2.5],
        "length/good": [pytest.approx(sum(map(sigmoid, (0, 1, 2, 3))) / 4)],
    }
    LogSigmoidReward(evens, reference=3.0)(["p"], ["a"], **columns)
    assert len(logged["evens/reward"]) == 1


class Asynchronous:
    async def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return length(prompts, completions)


@pytest.mark.parametrize(
    "reward",
    [
        functools.partial(length, unused=1),
        Asynchronous(),
        lambda completions, **columns: np.array([len(text) for text in completions]),
        lambda completions, **columns: torch.tensor([len(text) for text in completions]),
        lambda completions, **columns: [torch.tensor(float(len(text))) for text in completions],
        lambda completions, **columns: (len(text) for text in completions),
    ],
)
def test_any_reward_callable(reward: Any) -> None:
    found = LogSigmoidReward(reward, reference=2.5)(PROMPTS, TEXTS)
    assert found == pytest.approx(log_sigmoid(-1.5, -0.5, 0.5, 1.5), rel=1e-14)


def test_names() -> None:
    assert LogSigmoidReward(functools.partial(length)).__name__ == "log_sigmoid(length)"
    assert LogSigmoidReward(Asynchronous()).__name__ == "log_sigmoid(Asynchronous)"


def test_they_can_be_sent_to_another_process() -> None:
    reward = AllOf(
        [LogSigmoidReward(length, reference=AnswerReference(length, "xx")), LogSigmoidReward(length, reference=1.0)]
    )
    assert pickle.loads(pickle.dumps(reward))(PROMPTS, TEXTS) == reward(PROMPTS, TEXTS)  # noqa: S301


class Sampler:
    """Three answers to each prompt, and a record of who was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, prompts: list[Any], count: int) -> list[list[str]]:
        self.asked += prompts
        return [["x" * (int(prompt[1]) + number) for number in range(count)] for prompt in prompts]


@pytest.mark.parametrize("estimator", ["empirical", "gaussian"])
def test_sampled_reference(estimator: Any) -> None:
    sample = Sampler()
    reference = SampledReference(length, sample, count=3, estimator=estimator, part=2)
    for _ in range(2):
        found = reference(["p4", "p0", "p4", "p2"])
        above = 1.7 if estimator == "empirical" else 1 + 1.0364333894937898 * math.sqrt(2 / 3)
        assert found == pytest.approx([4 + above, above, 4 + above, 2 + above], rel=1e-13)
    assert sample.asked == ["p4", "p0", "p2"]
    reward = LogSigmoidReward(length, reference=reference)
    assert reward(["p0"], ["xxx"]) == pytest.approx(log_sigmoid(3 - above), rel=1e-13)


def test_a_store_is_read_at_another_quantile_without_sampling(tmp_path: Path) -> None:
    sample = Sampler()
    first = SampledReference(length, sample, count=5, store=RewardStore(tmp_path, made_by="Sampler"))
    assert first(["p1", "p2"]) == pytest.approx([4.4, 5.4], rel=1e-14)
    again = SampledReference(length, sample, count=5, quantile=0.5, store=RewardStore(tmp_path, made_by="Sampler"))
    assert again(["p2", "p1"]) == [4.0, 3.0]
    assert sample.asked == ["p1", "p2"]
    read = StoredReference(RewardStore(tmp_path), quantile=0.25)
    assert read(["p1"]) == [2.0]
    assert StoredReference(RewardStore(tmp_path), "harmless")(["p1"]) == [None]
    with pytest.raises(ValueError, match=r"^argument `prompt`: expected one of the 2 prompts in"):
        read(["p3"])


def test_a_reward_that_reads_a_column() -> None:
    def near(prompts: Any, completions: Any, truth: Any, **columns: Any) -> list[float | None]:
        return [None if wanted is None else -abs(len(text) - wanted)
                for text, wanted in zip(completions, truth, strict=True)]  # fmt: skip

    sample = Sampler()
    reference = SampledReference(near, sample, count=3, quantile=1.0, columns=["truth"])
    # Of p1 with answers of 1 to 3 letters: the same prompt with another truth is another prompt.
    assert reference(["p1", "p1", "p1", "p1"], truth=[2, 9, None, 2], other=[1]) == [0.0, -6.0, None, 0.0]
    assert sample.asked == ["p1", "p1", "p1"]
    with pytest.raises(ValueError, match=r"^argument `columns`: expected a column `truth`, got the columns other$"):
        reference(["p1"], other=[1])
    stored = StoredReference(reference.store, quantile=0.0, columns=["truth"])
    assert stored(["p1"], truth=[9]) == [-8.0]


def test_reference_of_a_known_answer(tmp_path: Path) -> None:
    calls: list[Any] = []

    def counted(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        calls.append((list(prompts), list(completions)))
        return [None if prompt == "p2" else float(len(text)) for prompt, text in zip(prompts, completions, strict=True)]

    canned = AnswerReference(counted, "I can't", store=RewardStore(tmp_path, made_by="counted"))
    assert canned(["p0", "p1", "p0", "p2"]) == [7.0, 7.0, 7.0, None]
    assert canned(["p1"]) == [7.0]
    assert calls == [(["p0", "p1", "p2"], ["I can't"] * 3)]
    gold = AnswerReference(counted, column="chosen", store=RewardStore(tmp_path, made_by="counted"))
    assert gold(["p0", "p1", "p0"], chosen=["x", "yy", "zzz"]) == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=r"^argument `columns`: expected a column `chosen`, got the columns none$"):
        gold(["p0"])
    for options in ({}, {"answer": "x", "column": "chosen"}):
        with pytest.raises(ValueError, match=r"^argument `answer`: expected an answer, or a column of them"):
            AnswerReference(counted, **options)


def test_conversations() -> None:
    def of_messages(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        assert all(set(messages[0]) == {"role", "content"} for messages in completions)
        return [float(len(messages[0]["content"])) for messages in completions]

    prompt = [{"role": "user", "content": "p1"}]
    answer = [{"role": "assistant", "content": "xxxx"}]
    canned = AnswerReference(of_messages, "No.")
    assert LogSigmoidReward(of_messages, reference=canned)([prompt], [answer]) == pytest.approx(log_sigmoid(1.0))
    gold = AnswerReference(of_messages, column="chosen")
    assert gold([prompt, prompt], chosen=[answer, "x"]) == [4.0, 1.0]


def test_learned_reference() -> None:
    texts: list[str] = []

    def encode(given: list[str]) -> torch.Tensor:
        texts.extend(given)
        return torch.tensor([[float(len(text))] for text in given])

    head = PromptReference(1, kind="quantile", quantile=0.5)
    head.fit(encode(["a", "bb", "ccc"]), torch.tensor([[1.0], [2.0], [3.0]]))
    texts.clear()
    reference = LearnedReference(head, encode)
    chat = [{"role": "system", "content": "be"}, {"role": "user", "content": "so"}, {"role": "tool", "content": None}]
    for _ in range(2):
        assert reference(["aa", chat, "aa"]) == pytest.approx([2.0, 5.0, 2.0], abs=0.1)
    assert texts == ["aa", "be\nso"]


def test_best_of() -> None:
    candidates = [["aaa", "b"], ["cc"], ["d", "eeee", "ffff"]]
    assert best_of(length, PROMPTS[:3], candidates) == [0, 0, 1]
    assert best_of(
        LogSigmoidReward(evens, reference="r_ref"), PROMPTS[:2], [["a", "bb"], ["cc"]], r_ref=[1.0, 2.0]
    ) == [1, 0]
    # A sum of raw rewards takes the lopsided candidate, the sum of log-sigmoids the even one.
    table = {"lopsided": (30.0, -5.0), "even": (1.0, 1.0)}
    rewards = [lambda completions, i=i, **columns: [table[text][i] for text in completions] for i in range(2)]
    good = AllOf([LogSigmoidReward(reward, reference=0.0) for reward in rewards])
    assert best_of(good, ["p"], [["lopsided", "even"]]) == [1]
    assert best_of(
        lambda completions, **columns: [sum(table[text]) for text in completions], ["p"], [["lopsided", "even"]]
    ) == [0]
    lines: list[tuple[Any, Any, str]] = [
        (["p"], [[]], "argument `candidates`: expected at least one candidate per prompt, got none at 0"),
        (["p"], [["a"], ["b"]], "argument `candidates`: expected 1 lists, one per prompt, got 2"),
        (
            ["p", "q"],
            [["aa"], ["b"]],
            "argument `reward`: expected a reward for some candidate of every prompt, got none at 1",
        ),
    ]
    for prompts, given, line in lines:
        with pytest.raises(ValueError, match=r"^argument") as caught:
            best_of(evens, prompts, given)
        assert str(caught.value) == line


def returns(values: Any) -> Callable[..., Any]:
    def scored(**columns: Any) -> Any:
        return values

    return scored


@pytest.mark.parametrize(
    ("reward", "options", "line"),
    [
        (returns([1.0]), {}, "argument `reward`: expected 4 numbers or Nones from `scored`, one per completion, got 1"),
        (
            returns([1.0] * 5),
            {},
            "argument `reward`: expected 4 numbers or Nones from `scored`, one per completion, got 5",
        ),
        (returns([]), {}, "argument `reward`: expected 4 numbers or Nones from `scored`, one per completion, got 0"),
        (returns(None), {}, "argument `reward`: expected a list of 4 numbers or Nones from `scored`, got NoneType"),
        (returns(1.0), {}, "argument `reward`: expected a list of 4 numbers or Nones from `scored`, got float"),
        (returns({"a": 1}), {}, "argument `reward`: expected a list of 4 numbers or Nones from `scored`, got dict"),
        (returns("1234"), {}, "argument `reward`: expected a list of 4 numbers or Nones from `scored`, got str"),
        (
            returns([1.0, math.nan, 2, 3]),
            {},
            "argument `reward`: expected finite numbers or Nones from `scored`, got nan at 1",
        ),
        (
            returns([1.0, 2, 3, -math.inf]),
            {},
            "argument `reward`: expected finite numbers or Nones from `scored`, got -inf at 3",
        ),
        (
            returns([1.0, "2", 3, 4]),
            {},
            "argument `reward`: expected numbers or Nones from `scored`, got '2' (str) at 1",
        ),
        (
            returns(torch.ones(4, 2)),
            {},
            "argument `reward`: expected numbers or Nones from `scored`, got float32 tensor",
        ),
        (
            length,
            {"r_ref": [1.0]},
            "argument `reference`: expected 4 numbers or Nones from the reference of `length`, one",
        ),
        (
            length,
            {"r_ref": [1.0, 2, 3, math.nan]},
            "argument `reference`: expected finite numbers or Nones from the reference",
        ),
        (
            length,
            {"truth": [1]},
            "argument `reference`: expected a reference, or the columns `ref_mean` and `ref_std`, or `r_ref`, got the",
        ),
        (
            length,
            {"ref_mean": [1.0], "ref_std": [1.0, 2.0]},
            "argument `reference`: expected as many values of `ref_std`",
        ),
    ],
)
def test_refusals_when_called(reward: Any, options: dict[str, Any], line: str) -> None:
    good = LogSigmoidReward(reward) if options else LogSigmoidReward(reward, reference=0.0)
    for one in (good, AllOf([good])):
        with pytest.raises(ValueError, match=r"^argument") as caught:
            one(PROMPTS, TEXTS, **options)
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: LogSigmoidReward("my/model"),
            "argument `reward`: expected a function of (prompts, completions, **columns)",
        ),
        (
            lambda: LogSigmoidReward(torch.nn.Linear(1, 1)),
            "argument `reward`: expected a function of (prompts, completions",
        ),
        (
            lambda: LogSigmoidReward(length, reference=math.nan),
            "argument `reference`: expected a finite number, got nan",
        ),
        (lambda: LogSigmoidReward(length, reference=True), "argument `reference`: expected a finite number, got True"),
        (
            lambda: LogSigmoidReward(length, reference=[1.0]),
            "argument `reference`: expected a number, the name of a column",
        ),
        (lambda: LogSigmoidReward(length, reference=1.0, quantile=0.5), "argument `quantile`: expected None beside a"),
        (
            lambda: LogSigmoidReward(length, quantile=1.0),
            "argument `quantile`: expected a number inside of (0, 1), got 1.0",
        ),
        (
            lambda: LogSigmoidReward(length, scale=0.0),
            "argument `scale`: expected a finite number > 0, got 0.0 (float)",
        ),
        (lambda: AllOf([]), "argument `rewards`: expected at least one reward, got none"),
        (lambda: AllOf([length]), "argument `rewards`: expected log-probabilities of being good: wrap others in"),
        (
            lambda: AllOf([LogSigmoidReward(length)], weights=[1, 2]),
            "argument `weights`: expected 1 numbers >= 0, one per",
        ),
        (
            lambda: AllOf([LogSigmoidReward(length)], weights=[-1]),
            "argument `weights`: expected 1 numbers >= 0, one per",
        ),
        (
            lambda: AtLeast(2, [LogSigmoidReward(length)]),
            "argument `count`: expected from 1 to 1, the number of rewards, got 2",
        ),
        (
            lambda: AtLeast(0, [LogSigmoidReward(length)]),
            "argument `count`: expected from 1 to 1, the number of rewards, got 0",
        ),
        (lambda: Not(length), "argument `reward`: expected a log-probability of being good: wrap others in"),
        (
            lambda: SampledReference(length, Sampler(), count=0),
            "argument `count`: expected an integer >= 1, got 0 (int)",
        ),
        (
            lambda: SampledReference(length, Sampler(), quantile=2.0),
            "argument `quantile`: expected a number in [0, 1], got",
        ),
        (
            lambda: SampledReference(length, lambda p, n: [["a"]], count=2)(["p"]),
            "argument `sample`: expected 2 answers to each of 1 prompts, got 1 prompts with [1] answers",
        ),
        (
            lambda: SampledReference(returns([1.0]), Sampler(), count=2)(["p1"]),
            "argument `reward`: expected 2 numbers or Nones from `reward`, one per completion, got 1",
        ),
    ],
)
def test_refusals_at_the_door(call: Callable[[], object], line: str) -> None:
    with pytest.raises(ValueError, match=r"^argument") as caught:
        call()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_reward_of_ones_own() -> None:
    class Always(LogicReward):
        __name__ = "always"

        def judge(self, prompts: Any, completions: Any, **columns: Any) -> Any:
            return LogSigmoidReward(length, reference=0.0).judge(prompts, completions)

    found = AnyOf([Always()])(PROMPTS, TEXTS)
    assert found == pytest.approx(LogSigmoidReward(length, reference=0.0)(PROMPTS, TEXTS), rel=1e-13)
