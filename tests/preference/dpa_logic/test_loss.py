"""The loss: the specification's values, the losses it stands for, gradients, defaults and refusals."""

import math
import warnings

import pytest
import torch

from scorecraft.core import DPOLoss, IPOLoss, SimPOLoss, SLiCLoss, citation, preference_gradients
from scorecraft.preference.dpa_logic import CATALOGUE, FormulaError, LogicLoss, PreferenceStructure, semantic_loss
from scorecraft.preference.dpa_logic.catalogue import SINGLE_MODEL

VALUES = {
    "CE": (0.847297860387203, 0.356674943938732),
    "CEUnl": (-0.322773392263051, 0.867500567704723),
    "CPO": (0.559615787935423, 0.451985123743057),
    "ORPO": (1.252762968495368, 0.251314428280906),
    "cCPO": (1.763588592261359, 0.158224005214894),
    "unCPO": (1.992430164690206, 0.127833371509885),
    "fUNL": (0.405465108108164, 0.510825623765991),
    "cfUNL": (1.609437912434100, 0.182321556793955),
}
W, L = (torch.tensor([value], dtype=torch.float64).log() for value in (0.7, 0.4))
ONE = torch.ones(1, dtype=torch.int64)
TOKENS = {"chosen_tokens": ONE, "rejected_tokens": ONE}


def batch(n=6, seed=0):
    """Sums of log-probabilities, reference and token counts."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 12, (2, n), generator=random)
    sums = -torch.empty(4, n, dtype=torch.float64).uniform_(0.1, 2.0, generator=random) * tokens.repeat(2, 1)
    call = {
        "reference_chosen": sums[2],
        "reference_rejected": sums[3],
        "chosen_tokens": tokens[0],
        "rejected_tokens": tokens[1],
    }
    return sums[0], sums[1], call


@pytest.mark.parametrize("name", VALUES)
def test_check_values(name):
    rho, value = VALUES[name]
    loss = LogicLoss.named(name)
    assert loss.log_ratio(loss.pairs(W, L, **TOKENS)).item() == pytest.approx(rho, abs=1e-14)
    assert loss(W, L, **TOKENS).item() == pytest.approx(value, abs=1e-14)


def test_ceunl_is_the_largest_and_uncpo_the_smallest_as_entailment_demands():
    values = {name: LogicLoss.named(name)(W, L, **TOKENS).item() for name in SINGLE_MODEL}
    assert max(values, key=values.get) == "CEUnl"
    assert min(values, key=values.get) == "unCPO"


def test_dpo_check_value():
    at = torch.tensor([[-1.2], [-0.9], [-1.0], [-1.1]], dtype=torch.float64)
    found = LogicLoss.named("dpo", beta=1.0)(at[0], at[1], reference_chosen=at[2], reference_rejected=at[3])
    assert found.item() == pytest.approx(math.log1p(math.exp(0.4)), abs=1e-14)


@pytest.mark.parametrize(
    "name, options, by_hand",
    [
        ("dpo", {}, DPOLoss()),
        ("dpo", {"beta": 0.7}, DPOLoss(beta=0.7)),
        ("sigmoid_norm", {}, DPOLoss(average_log_probabilities=True)),
        ("ipo", {}, IPOLoss()),
        ("slic", {}, SLiCLoss()),
        ("slic", {"beta": 0.3}, SLiCLoss(delta=0.3)),
        ("simpo", {}, SimPOLoss(beta=2.0, gamma=1.0)),
        ("simpo", {"beta": 4.0}, SimPOLoss(beta=4.0, gamma=2.0)),
    ],
)
def test_published_losses_are_recovered_with_their_gradients(name, options, by_hand):
    chosen, rejected, call = batch()
    loss = LogicLoss.named(name, **options)
    assert loss.needs_reference == by_hand.needs_reference
    assert loss.needs_tokens == by_hand.needs_tokens
    torch.testing.assert_close(loss(chosen, rejected, **call), by_hand(chosen, rejected, **call), rtol=1e-12, atol=0)
    for one, other in zip(
        preference_gradients(loss, chosen, rejected, **call),
        preference_gradients(by_hand, chosen, rejected, **call),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_the_other_published_losses_by_their_formulas():
    chosen, rejected, call = batch()
    p, q = chosen / call["chosen_tokens"], rejected / call["rejected_tokens"]
    odds = (p - torch.log1p(-p.exp())) - (q - torch.log1p(-q.exp()))
    exact = {
        "ce": -p,
        "ceunl": -p - torch.log1p(-q.exp()),
        "orpo": torch.log1p(torch.exp(-odds)),
        "funl": -torch.log1p(-q.exp()),
        "rrhf": (q - p).relu(),
    }
    for name, values in exact.items():
        found = LogicLoss.named(name, reduction="none")(chosen, rejected, **call)
        torch.testing.assert_close(found, values, rtol=1e-11, atol=1e-13)
    cpo = LogicLoss.named("cpo", reduction="none")(chosen, rejected)
    torch.testing.assert_close(cpo, torch.log1p(torch.exp(rejected - chosen)), rtol=1e-12, atol=1e-300)
    # TRL's hinge with its beta: relu(1 - beta m).
    gap = (chosen - rejected) - (call["reference_chosen"] - call["reference_rejected"])
    hinge = LogicLoss.named("hinge", reduction="none")(chosen, rejected, **call)
    torch.testing.assert_close(0.1 * hinge, (1 - 0.1 * gap).relu(), rtol=1e-12, atol=1e-14)


def test_the_reference_form_of_cpo_is_dpo():
    chosen, rejected, call = batch()
    loss = LogicLoss("L -> W given W | L both W & L", beta=0.1, reference=True)
    assert loss.needs_reference
    assert not loss.needs_tokens
    assert loss(chosen, rejected, **call).item() == pytest.approx(DPOLoss()(chosen, rejected, **call).item(), rel=1e-13)


@pytest.mark.parametrize("name", SINGLE_MODEL)
def test_a_reference_form_at_the_reference_costs_log_two(name):
    chosen, rejected, call = batch()
    call |= {"reference_chosen": chosen, "reference_rejected": rejected}
    loss = LogicLoss.named(name, reference=True, reduction="none")
    torch.testing.assert_close(
        loss(chosen, rejected, **call), torch.full((6,), math.log(2), dtype=torch.float64), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("formula", ["W", "W & ~L", "L -> W", "~L", "W ^ L"])
def test_without_condition_it_is_the_semantic_loss(formula):
    chosen, rejected, call = batch()
    found = LogicLoss(formula, reduction="none")(chosen, rejected, **call)
    point = torch.stack([chosen / call["chosen_tokens"], rejected / call["rejected_tokens"]], dim=1)
    torch.testing.assert_close(found, semantic_loss(formula, point, propositions=("W", "L")), rtol=1e-11, atol=1e-13)


def test_a_condition_makes_it_minus_the_log_of_a_conditional_probability():
    chosen, rejected, call = batch()
    point = torch.stack([chosen / call["chosen_tokens"], rejected / call["rejected_tokens"]], dim=1)
    found = LogicLoss("L -> W given W | L", reduction="none")(chosen, rejected, **call)
    joint, given = (semantic_loss(text, point, propositions=("W", "L")) for text in ("W", "W | L"))
    torch.testing.assert_close(found, joint - given, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("link", ["logistic", "squared", "margin"])
@pytest.mark.parametrize("name", ["cpo", "ccpo", "uncpo", "ceunl", "dpo"])
def test_gradients(name, link):
    chosen, rejected, call = batch()
    loss = LogicLoss(CATALOGUE[name].structure, loss=link, beta=0.9, average_log_probabilities=True)
    assert torch.autograd.gradcheck(
        lambda a, b: loss(a, b, **call), (chosen.requires_grad_(), rejected.requires_grad_())
    )


def test_the_weights_are_the_slope_of_rho_times_that_of_the_link():
    to_chosen, to_rejected = preference_gradients(LogicLoss.named("orpo"), W, L, **TOKENS)
    factor = -1 / (1 + math.exp(VALUES["ORPO"][0]))
    assert to_chosen.item() == pytest.approx(factor / 0.3, rel=1e-13)
    assert to_rejected.item() == pytest.approx(-factor / 0.6, rel=1e-13)


def test_the_three_links():
    rho = VALUES["cCPO"][0]
    for link, beta, value in (
        ("logistic", 0.5, math.log1p(math.exp(-0.5 * rho))),
        ("squared", 0.5, (rho - 1) ** 2),
        ("margin", 2.0, 2 - rho),
        ("margin", 1.0, 0.0),
        ("margin", 0.0, 0.0),
    ):
        assert LogicLoss(loss=link, beta=beta)(W, L, **TOKENS).item() == pytest.approx(value, abs=1e-14)


def test_the_default_average_follows_the_form():
    averaged = {name for name in CATALOGUE if LogicLoss.named(name).average_log_probabilities}
    assert averaged == {"ce", "ceunl", "orpo", "ccpo", "uncpo", "funl", "cfunl", "ipo", "simpo", "rrhf", "dpo-norm"}
    assert LogicLoss.named("orpo", reference=True).needs_tokens


def test_summed_log_probabilities_warn_where_they_change_the_loss_and_only_there():
    with pytest.warns(UserWarning, match="has factors 1 - p, which are 1 for the summed") as caught:
        loss = LogicLoss.named("orpo", average_log_probabilities=False)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What the warning says: the odds ratio becomes the ratio of CPO.
        chosen, rejected = torch.tensor([-150.0]), torch.tensor([-160.0])
        assert loss(chosen, rejected).item() == LogicLoss.named("cpo")(chosen, rejected).item()
        LogicLoss.named("dpo", average_log_probabilities=False)
        LogicLoss.named("cpo", average_log_probabilities=True)
        LogicLoss.named("orpo")


def test_probabilities_of_one_and_of_almost_nothing_are_finite():
    for name in SINGLE_MODEL:
        loss = LogicLoss.named(name, average_log_probabilities=True)
        for chosen in (0.0, -1e-9, -1e4):
            for rejected in (0.0, -1e-9, -1e4):
                answers = torch.tensor([chosen]), torch.tensor([rejected])
                assert loss(*answers, **TOKENS).isfinite()
                assert all(one.isfinite().all() for one in preference_gradients(loss, *answers, **TOKENS))


@pytest.mark.parametrize("worlds", [["TT"], ["TT", "FF"], ["TT", "TF", "FT"]])
def test_equal_sides_give_a_constant_with_a_zero_gradient(worlds):
    loss = LogicLoss(PreferenceStructure.of_worlds(worlds, worlds), average_log_probabilities=True)
    assert loss(W, L, **TOKENS).item() == pytest.approx(math.log(2))
    assert [one.item() for one in preference_gradients(loss, W, L, **TOKENS)] == [0, 0]


def test_reading_what_is_typed():
    assert LogicLoss.read("orpo", beta=2.0).beta == 2.0
    assert LogicLoss.read("W -> L").structure == PreferenceStructure.parse("W -> L")
    assert LogicLoss.example().structure == CATALOGUE["ccpo"].structure
    assert LogicLoss.example(beta=3.0).beta == 3.0


def test_it_adds_and_cites():
    chosen, rejected, call = batch()
    total = LogicLoss.named("dpo") + 0.5 * LogicLoss()
    exact = LogicLoss.named("dpo")(chosen, rejected, **call) + 0.5 * LogicLoss()(chosen, rejected, **call)
    torch.testing.assert_close(total(chosen, rejected, **call), exact)
    assert "2412.17696" in citation(total)
    assert repr(LogicLoss.named("simpo")).startswith("LogicLoss(")
    assert "loss='logistic', beta=2, manual_reference=" in repr(LogicLoss.named("simpo"))


def test_it_has_no_state_and_compiles_whole():
    loss = LogicLoss.named("uncpo", validate=False)
    assert loss.state_dict() == {}
    chosen, rejected, call = batch()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(chosen, rejected, **call), loss(chosen, rejected, **call))


@pytest.mark.parametrize(
    "options, told",
    [
        ({"loss": "hinge"}, "argument `loss`: expected one of 'logistic', 'squared', 'margin', got 'hinge'"),
        ({"beta": 0.0}, "argument `beta`: expected a finite number > 0"),
        ({"loss": "margin", "beta": -0.1}, "argument `beta`: expected a finite number >= 0"),
        ({"formula": "W & ~W"}, "argument `structure`: expected worlds on both sides"),
        ({"formula": "W given W"}, "whose minus set is empty"),
        ({"formula": 3}, "argument `formula`: expected a formula or structure over W, L"),
        (
            {"formula": PreferenceStructure.parse("A", ("A", "B"))},
            "argument `formula`: expected a formula or structure",
        ),
        ({"formula": "W & RL", "reference": True}, "argument `structure`: expected one of the model alone"),
        ({"manual_reference": (-1.0, -2.0)}, "argument `manual_reference`: expected none for a structure"),
        ({"reference": True, "manual_reference": (-1.0, 0.0)}, "expected two finite log-probabilities below 0"),
        ({"reference": True, "manual_reference": -1.0}, "expected two finite log-probabilities below 0"),
    ],
)
def test_refused_options(options, told):
    with pytest.raises(ValueError, match="argument `") as caught:
        LogicLoss(**options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refused_calls():
    with pytest.raises(FormulaError, match="column 6"):
        LogicLoss("L -> X")
    with pytest.raises(ValueError, match=r"argument `chosen`: expected finite log-probabilities <= 0, got 0\.5"):
        LogicLoss()(torch.tensor([0.5]), torch.tensor([-1.0]), **TOKENS)
    with pytest.raises(ValueError, match="argument `chosen_tokens`: expected the number of tokens"):
        LogicLoss()(W, L)
    with pytest.raises(ValueError, match="argument `reference_chosen`: expected log-probabilities under the reference"):
        LogicLoss.named("dpo")(W, L)
