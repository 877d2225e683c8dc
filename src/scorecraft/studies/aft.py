"""Does aligning right answers above wrong ones degrade a language model, and do the two constraints prevent it?

The world is a Markov chain, so that the model can be held against the truth. Wrong answers are right ones with two
tokens replaced: mostly good text, as wrong chains of thought are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scorecraft.preference.aft import PAPER, AFTLoss, AlignmentFineTuning, assessment_accuracy, mean_log_probabilities
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Settings, Study, World
from scorecraft.studies.worlds import generator

VOCABULARY, TRANSITIONS, REPLACED, ANSWERS = 24, 16, 2, 3


class Bigrams(NamedTuple):
    """Sequences as counts of their bigrams, from which a bigram model reads log-probabilities."""

    references: Float[Tensor, "q 576"]
    answers: Float[Tensor, "q c 576"]
    """The right ones first, then as many wrong ones."""


class Chain(NamedTuple):
    """The truth of a seed, what is trained on, and pairs of a right and a wrong answer that are not."""

    truth: Float[Tensor, "24 24"]
    train: Bigrams
    held_out: Bigrams


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """Fine-tune on references, then align as the contender does, and measure."""
    told = {**world.settings, **scale.settings, **contender.settings}
    chain = draw(seed, told)
    logits = train(torch.zeros_like(chain.truth), chain.train, told["first_steps"], None, told)
    if contender.role != "reference":
        constraint = told["constraint"]
        alignment = None if constraint == "alone" else AFTLoss(constraint=constraint, beta=told["beta"])
        logits = train(logits, chain.train, told["steps"], alignment, told)
    return measure(logits, chain)


def draw(seed: int, told: Settings) -> Chain:
    """A chain over 24 tokens, the softmax of logits `2 N(0, 1)`, and sequences of 16 transitions from it.

    A question has a reference, three right answers from the chain, and three wrong ones, each a right one in which two
    tokens are replaced by random ones. A held-out pair is a right answer and its corruption.
    """
    random = generator(seed, "bigram chain")
    truth = (2 * torch.randn(VOCABULARY, VOCABULARY, generator=random)).log_softmax(dim=1)

    def part(questions: int, answers: int) -> Bigrams:
        references = sampled(truth, questions, random)
        right = sampled(truth, questions * answers, random)
        wrong = corrupted(right, random)
        both = [bigrams(one).unflatten(0, (questions, answers)) for one in (right, wrong)]
        return Bigrams(bigrams(references), torch.cat(both, dim=1))

    return Chain(truth, part(told["questions"], ANSWERS), part(told["pairs"], 1))


def sampled(truth: Float[Tensor, "24 24"], count: int, random: torch.Generator) -> Int[Tensor, "n 17"]:
    """Sequences of the chain, the first token uniform."""
    tokens = [torch.randint(VOCABULARY, (count,), generator=random)]
    for _ in range(TRANSITIONS):
        tokens.append(torch.multinomial(truth.exp()[tokens[-1]], 1, generator=random)[:, 0])
    return torch.stack(tokens, dim=1)


def corrupted(sequences: Int[Tensor, "n 17"], random: torch.Generator) -> Int[Tensor, "n 17"]:
    """The sequences with two of their tokens replaced by random ones."""
    places = torch.rand(sequences.shape, generator=random).argsort(dim=1)[:, :REPLACED]
    tokens = torch.randint(VOCABULARY, places.shape, generator=random)
    return sequences.scatter(1, places, tokens)


def bigrams(sequences: Int[Tensor, "n 17"]) -> Float[Tensor, "n 576"]:
    """How often each bigram stands in each sequence."""
    pairs = VOCABULARY * sequences[:, :-1] + sequences[:, 1:]
    counts = torch.zeros(len(sequences), VOCABULARY**2)
    return counts.scatter_add(1, pairs, torch.ones_like(pairs, dtype=counts.dtype))


def train(
    logits: Float[Tensor, "24 24"], data: Bigrams, steps: int, alignment: AFTLoss | None, told: Settings
) -> Float[Tensor, "24 24"]:
    """Adam on all questions at once, on the references alone or with the alignment of the answers beside it."""
    logits = logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=told["learning_rate"])
    weight = 0.0 if alignment is None else told["weight"]
    objective = AlignmentFineTuning(
        AFTLoss(validate=False) if alignment is None else alignment, weight=weight, reference=told["reference"]
    )
    relevance = torch.zeros(data.answers.shape[:2])
    relevance[:, :ANSWERS] = 1
    for _ in range(steps):
        optimizer.zero_grad()
        references, answers = log_probabilities(logits, data.references), log_probabilities(logits, data.answers)
        lengths = torch.full(references.shape, TRANSITIONS)
        scores = answers / TRANSITIONS
        loss = objective(scores, relevance, reference_log_probabilities=references, reference_tokens=lengths)
        loss.backward()
        optimizer.step()
    return logits.detach()


def log_probabilities(logits: Float[Tensor, "24 24"], counts: Float[Tensor, "... 576"]) -> Float[Tensor, "..."]:
    """Of whole sequences under a bigram model."""
    return counts @ logits.log_softmax(dim=1).flatten()


def measure(logits: Float[Tensor, "24 24"], chain: Chain) -> dict[str, float]:
    """The divergence from the chain per state, and the scores of held-out pairs."""
    sums = log_probabilities(logits, chain.held_out.answers)
    scores = mean_log_probabilities(sums, torch.full(sums.shape, TRANSITIONS))
    found = logits.log_softmax(dim=1)
    return {
        "divergence": float((chain.truth.exp() * (chain.truth - found)).sum(dim=1).mean()),
        "right": float(scores[:, 0].mean()),
        "wrong": float(scores[:, 1].mean()),
        "assessment": float(assessment_accuracy(scores, torch.tensor([1.0, 0.0]).expand(scores.shape))),
    }


_TRAINING = {"first_steps": 60, "steps": 200, "learning_rate": 0.02, "beta": 0.15}
_NAMES = {"none": "plain", "detach": "detached", "boundary": "boundary"}


def _contender(constraint: str, weight: float, role: str = "contender") -> Contender:
    name = f"{_NAMES[constraint]}_{weight:g}"
    title = f"{_NAMES[constraint]}, lambda {weight:g}"
    return Contender(name, title, role, {"constraint": constraint, "weight": weight})  # type: ignore[arg-type]


STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "Where the alignment dominates (lambda 20), the detached constraint leaves the model at most a fifth as far"
        " from the truth as no constraint does.",
        metric="divergence",
        margin=0.8,
        relative=True,
    ),
    further_claims=(
        Claim(
            "So does the boundary constraint.",
            metric="divergence",
            margin=0.8,
            relative=True,
            method="boundary_20",
            baseline="plain_20",
        ),
        Claim(
            "The detached constraint assesses held-out answers no worse than no constraint does.",
            metric="assessment",
            margin=0.0,
            method="detached_20",
            baseline="plain_20",
        ),
        Claim(
            "The boundary constraint assesses held-out answers no worse than no constraint does.",
            metric="assessment",
            margin=0.0,
            method="boundary_20",
            baseline="plain_20",
        ),
        Claim(
            "At lambda 1 the detached constraint comes closer to the truth than fine-tuning on references alone.",
            metric="divergence",
            margin=0.0,
            method="detached_1",
            baseline="fine_tuning",
        ),
        Claim(
            "At lambda 1 the boundary constraint comes closer to the truth than fine-tuning on references alone.",
            metric="divergence",
            margin=0.0,
            method="boundary_1",
            baseline="fine_tuning",
        ),
    ),
    metrics=(
        Metric("divergence", "KL(truth || model) per state", "lower"),
        Metric("right", "score of right answers", decimals=2),
        Metric("wrong", "score of wrong answers", decimals=2),
        Metric("assessment", "assessment accuracy"),
    ),
    worlds=(
        World(
            "chain",
            "bigram chain",
            "A random chain over 24 tokens writes references and right answers of 16 transitions; a wrong answer is a"
            " right one with two tokens replaced. 400 questions with 3 right and 3 wrong answers, 500 held-out pairs."
            " The loss of a reference is its mean over tokens.",
            {"reference": "mean"},
        ),
        World(
            "whole_reference",
            "bigram chain, references summed",
            "The same, with the loss of a reference summed over its 16 tokens as in the paper's formula, so that the"
            " alignment weighs a sixteenth as much.",
            {"reference": "sum"},
        ),
    ),
    contenders=(
        _contender("none", 20, "baseline"),
        _contender("detach", 20, "method"),
        _contender("boundary", 20),
        _contender("none", 1),
        _contender("detach", 1),
        _contender("boundary", 1),
        Contender("fine_tuning", "references alone", settings={"constraint": "alone"}),
        Contender("start", "before alignment", "reference"),
    ),
    trial=trial,
    scales=(
        Scale("smoke", 2, {**_TRAINING, "questions": 60, "pairs": 60, "first_steps": 20, "steps": 20}),
        Scale("desk", 8, {**_TRAINING, "questions": 400, "pairs": 500}),
    ),
    notes=(
        "The judged world takes the mean over a reference's tokens, in which the alignment dominates at lambda 20 as"
        " the claim says; the sum is shown beside it.",
        "A chain tests the mechanism: what plain alignment does to text that is mostly good. Gains in task accuracy"
        " (GSM8K and others) need language models and are not shown here.",
    ),
)
