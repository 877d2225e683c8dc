"""The study of the preference structures: its own pieces, and from end to end at smoke scale."""

import pytest
import torch

from scorecraft.preference.dpa_logic import LogicLoss
from scorecraft.preference.dpa_logic.catalogue import SINGLE_MODEL
from scorecraft.studies.dpa_logic import STUDY, TOKENS, draw, per_token, train
from scorecraft.studies.report import html_report
from scorecraft.studies.runner import run_study

SIZES = {"train_pairs": 3000, "test_pairs": 50, "steps": 5, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_study(STUDY, scale="smoke", folder=tmp_path_factory.mktemp("dpa_logic"), jobs=1)


def test_smoke_scale_from_end_to_end(smoke):
    assert len(smoke.trials) == len(list(STUDY.meetings())) * STUDY.scale("smoke").seeds
    assert all(0 <= trial.metrics["accuracy"] <= 1 for trial in smoke.trials)
    assert smoke.verdict in ("holds", "fails", "inconclusive")
    assert STUDY.claim.sentence in html_report(smoke)


def test_a_trial_repeats_to_the_last_bit(smoke, as_a_worker):
    again = STUDY.trial(STUDY.worlds[0], STUDY.method, 1, STUDY.scale("smoke"))
    assert smoke.values("bigrams", "ccpo", "winner_change")[1] == again["winner_change"]


def test_contenders_and_recipe_are_those_of_the_specification():
    assert {contender.title for contender in STUDY.contenders} == set(SINGLE_MODEL)
    assert (STUDY.method.title, STUDY.baseline.title) == ("cCPO", "CPO")
    assert STUDY.scale("desk").settings == {
        "train_pairs": 1500, "test_pairs": 1500, "steps": 150, "learning_rate": 0.02,
    }  # fmt: skip
    assert STUDY.scale("desk").seeds >= 8


def test_pairs_are_as_described():
    reference, seen, unseen = draw(0, SIZES)
    assert reference.shape == (TOKENS, TOKENS)
    assert reference.std().item() == pytest.approx(1.5, rel=0.1)
    assert torch.equal(seen.bigrams.sum(dim=2), seen.tokens.float())
    assert (seen.tokens.min().item(), seen.tokens.max().item()) == (5, 20)
    assert unseen.bigrams.shape == (2, 50, TOKENS * TOKENS)
    # The reference knows nothing of the preferences, and answers come from it: their bigrams are as likely as it says.
    log_p = per_token(reference, seen)
    assert (log_p[0] > log_p[1]).double().mean().item() == pytest.approx(0.5, abs=0.1)
    of_rows = seen.bigrams.sum(dim=(0, 1)).view(TOKENS, TOKENS)
    frequencies = of_rows / of_rows.sum(dim=1, keepdim=True)
    torch.testing.assert_close(frequencies, reference.softmax(dim=1), rtol=0, atol=0.05)
    assert torch.equal(draw(0, SIZES)[1].bigrams, seen.bigrams)
    assert not torch.equal(draw(1, SIZES)[0], reference)


def test_per_token_is_the_mean_over_an_answer():
    reference, seen, _ = draw(0, SIZES)
    log_p = reference.log_softmax(dim=1)
    of_one = [(int(at) // TOKENS, int(at) % TOKENS, n) for at in seen.bigrams[0, 0].nonzero()
              for n in [seen.bigrams[0, 0, at].item()]]  # fmt: skip
    exact = sum(n * log_p[a, b].item() for a, b, n in of_one) / seen.tokens[0, 0].item()
    assert per_token(reference, seen)[0, 0].item() == pytest.approx(exact, rel=1e-5)


def test_training_starts_from_the_reference_and_lowers_the_loss():
    reference, seen, _ = draw(0, SIZES)
    loss = LogicLoss.named("ccpo")
    call = {"chosen_tokens": seen.tokens[0], "rejected_tokens": seen.tokens[1]}

    def value(logits):
        return loss(*(per_token(logits, seen) * seen.tokens), **call).item()

    trained = train(loss, reference, seen, SIZES)
    assert value(trained) < value(reference)
    assert torch.equal(train(loss, reference, seen, {**SIZES, "steps": 0}), reference)
