"""Which of CPO, ORPO and cCPO lets the winner's likelihood fall least?

All contenders of a seed share the reference that they start from, the pairs of answers and the labels; they differ in
the preference structure alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.preference.dpa_logic import PAPER, LogicLoss
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Settings, Study, World
from scorecraft.studies.worlds import generator

TOKENS = 24
SHORTEST, LONGEST = 5, 20
REFERENCE_SPREAD, REWARD_SPREAD, SHARPNESS = 1.5, 0.5, 8.0


class Pairs(NamedTuple):
    """Pairs of answers as counts of bigrams, the preferred one first."""

    bigrams: Float[Tensor, "2 n b"]
    tokens: Int[Tensor, "2 n"]


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """Train on some pairs and look at others: who is ranked higher, and how log-probabilities moved."""
    reference, seen, unseen = draw(seed, scale.settings)
    loss = LogicLoss.named(contender.settings["loss"], beta=1.0, average_log_probabilities=True)
    trained = train(loss, reference, seen, scale.settings)
    before, after = per_token(reference, unseen), per_token(trained, unseen)
    moved = (after - before).mean(dim=1)
    return {
        "winner_change": moved[0].item(),
        "loser_change": moved[1].item(),
        "accuracy": (after[0] > after[1]).double().mean().item(),
    }


def draw(seed: int, sizes: Settings) -> tuple[Float[Tensor, "24 24"], Pairs, Pairs]:
    """Logits of a bigram model, and pairs of its answers to learn from and to look at.

    The logits are `1.5 N(0, 1)`. An answer has 5 to 20 tokens; the two of a pair follow the same token and are
    preferred with probability `sigmoid(8 (r - r'))`, where r is the mean over an answer of bigram weights
    `0.5 N(0, 1)`.
    """
    random = generator(seed, "bigrams")
    reference = REFERENCE_SPREAD * torch.randn(TOKENS, TOKENS, generator=random)
    rewards = REWARD_SPREAD * torch.randn(TOKENS, TOKENS, generator=random).flatten()

    def pairs(count: int) -> Pairs:
        prompts = torch.randint(TOKENS, (count,), generator=random)
        lengths = torch.randint(SHORTEST, LONGEST + 1, (2, count), generator=random)
        counts = torch.stack([_answers(reference, prompts, of_one, random) for of_one in lengths])
        scores = counts @ rewards / lengths
        first = torch.rand(count, generator=random) < (SHARPNESS * (scores[0] - scores[1])).sigmoid()
        return Pairs(torch.where(first[:, None], counts, counts.flip(0)), torch.where(first, lengths, lengths.flip(0)))

    return reference, pairs(sizes["train_pairs"]), pairs(sizes["test_pairs"])


def train(loss: LogicLoss, reference: Float[Tensor, "24 24"], seen: Pairs, told: Settings) -> Float[Tensor, "24 24"]:
    """Adam on all pairs at once, from the reference."""
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=told["learning_rate"])
    for _ in range(told["steps"]):
        chosen, rejected = per_token(logits, seen) * seen.tokens
        optimizer.zero_grad()
        loss(chosen, rejected, chosen_tokens=seen.tokens[0], rejected_tokens=seen.tokens[1]).backward()
        optimizer.step()
    return logits.detach()


def per_token(logits: Float[Tensor, "24 24"], pairs: Pairs) -> Float[Tensor, "2 n"]:
    """Mean log-probabilities of answers per token."""
    return pairs.bigrams @ logits.log_softmax(dim=1).flatten() / pairs.tokens


def _answers(
    logits: Float[Tensor, "24 24"], prompts: Int[Tensor, " n"], lengths: Int[Tensor, " n"], random: torch.Generator
) -> Float[Tensor, "n b"]:
    """Counts of the bigrams of sampled answers, the first one from the prompt."""
    probabilities, last = logits.softmax(dim=1), prompts
    counts = torch.zeros(len(prompts), TOKENS * TOKENS)
    for place in range(LONGEST):
        following = torch.multinomial(probabilities[last], 1, generator=random)[:, 0]
        within = (place < lengths).float()
        counts.scatter_add_(1, (last * TOKENS + following)[:, None], within[:, None])
        last = following
    return counts


_TRAINING = {"learning_rate": 0.02}

STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "With cCPO, which keeps the winner whole, log p(winner) per token falls less than with CPO.",
        metric="winner_change",
        margin=0.0,
    ),
    further_claims=(
        Claim(
            "It falls less with cCPO than with ORPO.",
            metric="winner_change",
            margin=0.0,
            baseline="orpo",
        ),
        Claim(
            "It falls less with ORPO than with CPO.",
            metric="winner_change",
            margin=0.0,
            method="orpo",
        ),
        Claim(
            "Of these and unCPO, the least constrained unCPO displaces most: it falls less even with CPO.",
            metric="winner_change",
            margin=0.0,
            method="cpo",
            baseline="uncpo",
        ),
        Claim(
            "cCPO ranks held-out pairs better than unCPO.",
            metric="accuracy",
            margin=0.0,
            baseline="uncpo",
        ),
    ),
    metrics=(
        Metric("winner_change", "change of log p(winner) per token", decimals=2),
        Metric("loser_change", "change of log p(loser) per token", better="lower", decimals=2),
        Metric("accuracy", "held-out ranking accuracy"),
    ),
    worlds=(
        World(
            "bigrams",
            "a bigram model",
            "Answers of 5 to 20 tokens out of 24 from a random bigram model, preferred by Bradley-Terry on eight times"
            " the mean of random bigram rewards; 1,500 pairs to learn from, 1,500 others to look at, log-probabilities"
            " per token.",
        ),
    ),
    contenders=(
        Contender("ccpo", "cCPO", "method", {"loss": "ccpo"}),
        Contender("cpo", "CPO", "baseline", {"loss": "cpo"}),
        *(
            Contender(name.lower(), name, settings={"loss": name.lower()})
            for name in ("ORPO", "unCPO", "CE", "CEUnl", "fUNL", "cfUNL")
        ),
    ),
    trial=trial,
    scales=(
        Scale("smoke", 2, {**_TRAINING, "train_pairs": 200, "test_pairs": 200, "steps": 20}),
        Scale("desk", 8, {**_TRAINING, "train_pairs": 1500, "test_pairs": 1500, "steps": 150}),
    ),
    notes=(
        "The structures alone are compared: no term of supervised fine-tuning stands beside CPO and ORPO, as their"
        " papers have it.",
        "That CPO, ORPO and cCPO are equally accurate is no claim here: their accuracies stand in the table.",
        "The paper's claim is about win rates of language models of half a billion parameters, which are not rerun;"
        " this is the mechanism on a model whose every probability can be seen.",
    ),
)
