"""The generative re-ranker's loss, prompts and answers, and the law of the positive's place."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.relevance.unime_v2 import (
    Answer,
    JointRerankingLoss,
    RerankingPrompts,
    answer_cross_entropy,
    chosen_first,
    draw_positions,
    index_token_scores,
    parse_answer,
    released_position_law,
    uniform_position_law,
)

VOCABULARY = 11


def answer(count: int = 3, tokens: int = 1, seed: int = 0) -> Answer:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, tokens, VOCABULARY, generator=generator, dtype=torch.float64)
    return Answer(logits.requires_grad_(), torch.randint(VOCABULARY, (count, tokens), generator=generator))


def test_the_loss_is_the_plain_sum_of_three_cross_entropies() -> None:
    parts = [answer(seed=seed) for seed in range(3)]
    expected = sum(F.cross_entropy(part.logits[:, 0], part.tokens[:, 0]) for part in parts)
    torch.testing.assert_close(JointRerankingLoss()(*parts), expected)
    each = JointRerankingLoss(reduction="none")(*parts)
    assert each.shape == (3,)
    torch.testing.assert_close(each.sum(), JointRerankingLoss(reduction="sum")(*parts))


def test_an_answer_of_several_tokens_is_their_mean() -> None:
    part = answer(tokens=3)
    part.tokens[1, 2] = -100
    part.tokens[2] = -100
    found = answer_cross_entropy(part)
    logs = -part.logits.log_softmax(2).gather(2, part.tokens.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(found[0], logs[0].mean())
    torch.testing.assert_close(found[1], logs[1, :2].mean())
    assert found[2] == 0
    (gradient,) = torch.autograd.grad(found.sum(), part.logits)
    assert not gradient[2].any()
    assert not gradient[1, 2].any()


def test_gradient_is_the_derivative() -> None:
    parts = [answer(tokens=2, seed=seed) for seed in range(3)]
    tokens = [part.tokens for part in parts]
    assert torch.autograd.gradcheck(
        lambda *logits: JointRerankingLoss()(*map(Answer, logits, tokens)), [part.logits for part in parts]
    )


def test_half_precision_is_summed_in_single() -> None:
    part = Answer(torch.full((2, 1, 5), 200.0, dtype=torch.float16, requires_grad=True), torch.zeros(2, 1).long())
    loss = JointRerankingLoss()(part, part, part)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(3 * math.log(5))


@pytest.mark.parametrize(
    "spoil, message",
    [
        ({"logits": torch.zeros(3, VOCABULARY)}, "`negative`: expected floating-point logits"),
        ({"tokens": torch.zeros(3, 2).long()}, r"`negative`: expected answer tokens of shape \(3, 1\)"),
        ({"tokens": torch.full((3, 1), VOCABULARY)}, f"`negative`: expected tokens below {VOCABULARY}"),
        ({"logits": torch.full((3, 1, VOCABULARY), math.nan)}, "`negative`: expected finite logits"),
    ],
)
def test_bad_answers_are_refused(spoil: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="argument " + message):
        JointRerankingLoss()(answer(), answer()._replace(**spoil), answer())
    with pytest.raises(ValueError, match="argument `listing`: expected 3 queries"):
        JointRerankingLoss()(answer(), answer(), answer(count=2))


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_the_three_prompts_of_a_query() -> None:
    prompts = RerankingPrompts()
    places = set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        pair, against, listing = prompts.of_training("Q", "good", [f"bad {n}" for n in range(7)], generator, listed=3)
        assert pair["completion"] == "Yes"
        assert "Candidate: good" in pair["prompt"]
        assert against["completion"] == "No"
        assert "Candidate: bad 0" in against["prompt"]
        place = int(listing["completion"])
        assert f"({place}) good\n" in listing["prompt"]
        order = [listing["prompt"].index(f"bad {n}") for n in range(3)]
        assert order == sorted(order)
        assert "bad 3" not in listing["prompt"]
        assert "(4)" in listing["prompt"]
        assert "(5)" not in listing["prompt"]
        places.add(place)
    assert places == {1, 2, 3, 4}


def test_braces_in_a_text_mean_nothing() -> None:
    assert "Query: {candidate}\nCandidate: {query} {x}" in RerankingPrompts().of_pair("{candidate}", "{query} {x}")


def test_bad_prompts_are_refused() -> None:
    generator = torch.Generator()
    for call, message in (
        (lambda: RerankingPrompts(pair="no field"), "`pair`: expected a template with {query}"),
        (lambda: RerankingPrompts(item="{candidate}"), "`item`: expected a template with {number}"),
        (lambda: RerankingPrompts(no="Yes"), "`no`: expected another word"),
        (
            lambda: RerankingPrompts().of_training("q", "p", ["n"], generator),
            "`negatives`: expected at least listed = 5",
        ),
        (lambda: RerankingPrompts().of_training("q", " ", ["n"] * 5, generator), "`positive`: expected a text"),
        (
            lambda: RerankingPrompts().of_training("q", "p", ["n", ""], generator, listed=2),
            "`negatives`: expected a te",
        ),
    ):
        with pytest.raises(ValueError, match="argument " + message):
            call()


@pytest.mark.parametrize(
    "text, number",
    [
        ("(3)", 3), (" ( 2 ) is best", 2), ("3", 3), ("\n4\n", 4), ("The best is (5).", 5), ("1. or (2)", 2),
        ("12", None), ("(0)", None), ("(6)", None), ("", None), ("none", None), ("the 3", None), ("(three)", None),
    ],
)  # fmt: skip
def test_answers_are_parsed(text: str, number: int | None) -> None:
    assert parse_answer(text, 5) == number
    order = chosen_first(text, 5)
    assert sorted(order) == list(range(5))
    if number is None:
        assert order == list(range(5))
    else:
        assert order[0] == number - 1
        assert order[1:] == sorted(order[1:])


def test_scores_of_the_index_tokens() -> None:
    logits = answer().logits[:, 0]
    found = index_token_scores(logits, [7, 2, 5])
    torch.testing.assert_close(found, logits[:, [7, 2, 5]].log_softmax(1))
    whole = logits.log_softmax(1)[:, [7, 2, 5]]
    assert torch.equal(found.argsort(1), whole.argsort(1))
    assert index_token_scores(logits.half(), torch.tensor([1, 2])).dtype == torch.float32
    for tokens in ([1, 1], [], [0, VOCABULARY]):
        with pytest.raises(ValueError, match="argument `index_tokens`: expected "):
            index_token_scores(logits, tokens)


# --- places ----------------------------------------------------------------------------------------------------------


def test_check_values_of_the_released_law() -> None:
    expected = torch.tensor([0.3208333333, 0.3208333333, 0.1958333333, 0.1125, 0.05, 0], dtype=torch.float64)
    torch.testing.assert_close(released_position_law(), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(released_position_law().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_the_released_law_is_that_of_its_builder() -> None:
    generator = torch.Generator().manual_seed(0)
    most = torch.randint(1, 5, (200_000,), generator=generator)
    places = 1 + (torch.rand(200_000, generator=generator) * (most + 1)).long()
    shares = torch.bincount(places, minlength=7)[1:] / 200_000
    torch.testing.assert_close(shares.double(), released_position_law(), rtol=0, atol=5e-3)


@pytest.mark.parametrize("law", [uniform_position_law(6), released_position_law()], ids=["uniform", "released"])
def test_positions_are_drawn_by_their_law(law: Tensor) -> None:
    places = draw_positions(law, 100_000, torch.Generator().manual_seed(1))
    shares = torch.bincount(places, minlength=7)[1:] / 100_000
    torch.testing.assert_close(shares.double(), law, rtol=0, atol=6e-3)
    assert torch.equal(places, draw_positions(law, 100_000, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("law", [uniform_position_law(6), released_position_law()], ids=["uniform", "released"])
def test_a_list_scorer_learns_the_law_as_a_bias(law: Tensor) -> None:
    """Trained on lists whose positive scores higher by what the data says, a free bias per place becomes `ln p`."""
    generator = torch.Generator().manual_seed(2)
    count = 40_000
    places = draw_positions(law, count, generator) - 1
    evidence = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    evidence[torch.arange(count), places] += 1  # N(1, 1) against N(0, 1): the log-odds are the score less 1/2
    bias = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([bias], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(evidence + bias, places)
        loss.backward()
        return loss

    optimiser.step(closure)
    learnt = (bias - bias.logsumexp(0)).detach()
    seen = law > 0
    torch.testing.assert_close(learnt[seen], law[seen].log(), rtol=0, atol=0.06)
    assert (learnt[~seen] < -6).all()


def test_bad_laws_are_refused() -> None:
    for call, name in (
        (lambda: uniform_position_law(0), "length"),
        (lambda: released_position_law(4), "length"),
        (lambda: draw_positions(torch.zeros(3), 2, torch.Generator()), "law"),
        (lambda: draw_positions(torch.tensor([1, 2]), 2, torch.Generator()), "law"),
        (lambda: draw_positions(torch.ones(3), 0, torch.Generator()), "count"),
    ):
        with pytest.raises(ValueError, match=f"argument `{name}`: expected "):
            call()
