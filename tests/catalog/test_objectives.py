"""Objectives by name, and their weight curves."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from scorecraft.catalog.objectives import (
    UnknownObjective,
    answer_objective_types,
    find_objective,
    make_explained,
    make_objective,
    make_pictured,
    pictured_types,
)
from scorecraft.catalog.weight_curves import CLASSES, DIMENSION, margin_curve, weight_curve
from scorecraft.core import DPOLoss, NegativeDistance, Objective, ObjectiveSum, PreferenceObjective
from scorecraft.similarity.multi_similarity import ContrastiveLoss, MultiSimilarityLoss, NPairLoss
from scorecraft.similarity.tcm import ThresholdConsistentMarginLoss
from scorecraft.similarity.unpg import UNPGLoss


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("multi_similarity", MultiSimilarityLoss),
        ("multi-similarity", MultiSimilarityLoss),
        ("MultiSimilarityLoss", MultiSimilarityLoss),
        ("n_pair", NPairLoss),
        ("contrastive", ContrastiveLoss),
        ("tcm", ThresholdConsistentMarginLoss),
        ("threshold_consistent_margin", ThresholdConsistentMarginLoss),
        ("unpg", UNPGLoss),
    ],
)
def test_names(name: str, kind: type) -> None:
    assert find_objective(name) is kind


def test_options_reach_the_objective() -> None:
    made = make_objective("multi_similarity:alpha=3,mining=False", classes=5, dimension=4)
    assert isinstance(made, MultiSimilarityLoss)
    assert (made.alpha, made.mining, made.beta) == (3.0, False, 50.0)
    unpg = make_objective("unpg:whisker=None", classes=5, dimension=4)
    assert isinstance(unpg, UNPGLoss)
    assert unpg.whisker is None
    assert unpg.head.weight.shape == (5, 4)


def test_sums_are_spelled_as_in_python() -> None:
    made = make_objective("multi_similarity:alpha=3 + 0.5*tcm + 1e-1 * triplet", classes=5, dimension=4)
    assert isinstance(made, ObjectiveSum)
    assert made.factors == [1.0, 0.5, 0.1]
    assert [type(part).__name__ for part in made.objectives] == [
        "MultiSimilarityLoss",
        "ThresholdConsistentMarginLoss",
        "TripletLoss",
    ]
    assert made.objectives[0].alpha == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("multisim", "unknown objective `multisim`: did you mean `multi_similarity`?"),
        ("triplet:magin=1", "objective `triplet` has no option `magin`: did you mean `margin`?"),
        ("triplet:margin", "cannot read `margin` of `triplet:margin`: expected NAME:option=value,option=value"),
        ("triplet:score=3", "objective `triplet` has no option `score`"),
        ("triplet + 2*tripplet", "unknown objective `tripplet`: did you mean `triplet`?"),
    ],
)
def test_what_cannot_be_made_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UnknownObjective) as caught:
        make_objective(text, classes=3, dimension=4)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_refused_value_names_the_option() -> None:
    with pytest.raises(ValueError, match="argument `alpha`: expected a finite number > 0"):
        make_objective("multi_similarity:alpha=-1", classes=3, dimension=4)


@pytest.mark.parametrize("name", pictured_types())
def test_every_objective_has_a_curve(name: str) -> None:
    curve = weight_curve(make_pictured(name, classes=CLASSES, dimension=DIMENSION), points=21)
    assert len(curve.scores) == len(curve.positive) == len(curve.negative) == 21
    assert all(math.isfinite(value) for value in (*curve.positive, *curve.negative))
    assert any(curve.negative) or any(curve.positive)
    assert curve.positives_around > curve.negatives_around


def test_what_has_no_curve_says_why() -> None:
    with pytest.raises(UnknownObjective, match="reads 2 scores per candidate: it has no curve"):
        make_pictured("unified_reranking", classes=3, dimension=4)
    with pytest.raises(UnknownObjective, match="reads lists in order"):
        make_pictured("adore", classes=3, dimension=4)
    with pytest.raises(UnknownObjective, match="unknown objective `multisim`: did you mean `multi_similarity`"):
        make_pictured("multisim", classes=3, dimension=4)


def test_the_curve_is_the_closed_form() -> None:
    curve = weight_curve(ContrastiveLoss(threshold=0.3), points=41)
    assert (curve.scores[0], curve.scores[-1]) == (-1.0, 1.0)
    assert all(value == pytest.approx(-1) for value in curve.positive)
    for score, value in zip(curve.scores, curve.negative, strict=True):
        assert value == pytest.approx(float(score > 0.3))


def test_other_scores_run_over_the_batch() -> None:
    curve = weight_curve(ContrastiveLoss(score=NegativeDistance()), points=5)
    assert curve.scores[0] < -1
    assert curve.scores[-1] == pytest.approx(0)
    assert torch.tensor(curve.positive).isfinite().all()


@pytest.mark.parametrize("name", answer_objective_types())
def test_every_objective_on_answers_has_a_curve(name: str) -> None:
    objective = make_explained(name, classes=CLASSES, dimension=DIMENSION)
    assert isinstance(objective, PreferenceObjective)
    curve = margin_curve(objective, points=21)
    assert len(curve.margins) == len(curve.chosen) == len(curve.rejected) == 21
    assert all(math.isfinite(value) for value in (*curve.chosen, *curve.rejected))
    assert any(value < 0 for value in curve.chosen)


def test_the_curve_over_the_margin_is_the_closed_form() -> None:
    curve = margin_curve(DPOLoss(beta=0.2), points=9)
    for margin, chosen, rejected in zip(curve.margins, curve.chosen, curve.rejected, strict=True):
        assert rejected == pytest.approx(0.2 / (1 + math.exp(0.2 * margin)))
        assert chosen == pytest.approx(-rejected)


def test_what_is_explained_is_named_or_refused() -> None:
    read = partial(make_explained, classes=CLASSES, dimension=DIMENSION)
    for text in ("0.5*dpo + slic:delta=2", "logic: L -> W given W | L", "bradley-terry"):
        assert isinstance(read(text), PreferenceObjective)
    assert isinstance(read("n-pair"), Objective)
    for text, told in (("dpo:betta=1", "did you mean `beta`"), ("simpoo", "did you mean `simpo`"),
                       ("multisim", "did you mean `multi_similarity`"), ("adore", "reads lists in order")):  # fmt: skip
        with pytest.raises(UnknownObjective, match=told):
            read(text)
