"""What is said about a structure."""

import json

import pytest
import torch

from scorecraft.core import preference_gradients
from scorecraft.preference.dpa_logic import (
    CATALOGUE,
    LogicLoss,
    PreferenceStructure,
    describe_structure,
    every_structure,
)

ONE = torch.ones(1, dtype=torch.int64)


@pytest.mark.parametrize("name", CATALOGUE)
def test_values_and_weights_are_those_of_the_loss(name):
    known = CATALOGUE[name]
    found = describe_structure(known.structure, loss=known.loss, beta=known.beta)
    loss = LogicLoss(known.structure, loss=known.loss, beta=known.beta, average_log_probabilities=True)
    log_p = {key: torch.tensor([value], dtype=torch.float64).log() for key, value in found.point.items()}
    call = {"chosen_tokens": ONE, "rejected_tokens": ONE}
    if loss.needs_reference:
        call |= {"reference_chosen": log_p["RW"], "reference_rejected": log_p["RL"]}
    assert found.value == pytest.approx(loss(log_p["W"], log_p["L"], **call).item(), abs=1e-14)
    pulls = preference_gradients(loss, log_p["W"], log_p["L"], **call)
    assert list(found.weights) == ["W", "L"]  # the reference is a constant
    assert [one.value for one in found.weights.values()] == pytest.approx([one.item() for one in pulls], abs=1e-13)


def test_every_printed_formula_says_what_the_numbers_say():
    for structure in every_structure():
        if not structure.is_finite:
            continue
        found = describe_structure(structure)
        values = dict(found.point)
        if found.semantic is not None:
            text = found.semantic
            assert eval(text, {}, values) == pytest.approx(torch.tensor(-found.value).double().exp().item(), rel=1e-6)
        for weight in found.weights.values():
            if weight.slope is not None:
                assert eval(weight.slope, {}, values) == pytest.approx(weight.slope_value, abs=1e-12), structure
        for world, (core, condition, both) in zip(
            found.worlds, ((one.core, one.condition, one.both) for one in found.worlds), strict=True
        ):
            assert world.plus == ((core or both) and condition)
            assert world.minus == ((not core or both) and condition)


def test_the_text():
    text = str(describe_structure(CATALOGUE["orpo"].structure, at={"W": 0.5}))
    for line in (
        "L -> W given W ^ L",
        "  P_C = W ^ L",
        "rho  = log [ W*(1 - L) / ((1 - W)*L) ]   (a name stands for its probability)",
        "loss = -log sigmoid(beta rho), beta = 1",
        "     = -log [ W*(1 - L) / (W*(1 - L) + (1 - W)*L) ] at beta = 1",
        "T F   T   T    -   plus",
        "  W   d rho = 1/(1 - W) = 2, d loss = -0.8",
        "entails           cCPO, unCPO, cfUNL",
        "entailed by       CEUnl",
    ):
        assert line in text.splitlines()


def test_it_is_plain_data():
    found = describe_structure(CATALOGUE["dpo"].structure, loss="squared", beta=0.1)
    assert json.loads(json.dumps(found.as_json()))["place"]["equals"] == ["DPO"]
    assert found.semantic is None


def test_structures_over_other_propositions_have_no_place():
    names = [f"X{index}" for index in range(5)]
    found = describe_structure(PreferenceStructure.parse("X0 -> X1 & X2 | X3 ^ X4", names))
    assert found.place is None
    assert len(found.worlds) == 32
    assert "... 32 worlds in all" in str(found)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"at": {"X": 0.5}}, "argument `at`: expected probabilities of W, L, got 'X'"),
        ({"at": {"W": 1.0}}, "argument `at`: expected a probability of W in \\(0, 1\\), got 1.0"),
        ({"loss": "hinge"}, "argument `loss`: expected one of"),
        ({"beta": 0.0}, "argument `beta`: expected a finite number > 0"),
    ],
)
def test_refusals(options, told):
    with pytest.raises(ValueError, match=told):
        describe_structure(CATALOGUE["orpo"].structure, **options)
