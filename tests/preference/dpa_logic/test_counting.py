"""Weighted model counts in the log domain against their definition, and where numbers are hard."""

import itertools
import math
import random
import time

import pytest
import torch

from scorecraft.preference.dpa_logic import (
    LogCount,
    LogRatio,
    PreferenceStructure,
    every_structure,
    log1mexp,
    log_weighted_count,
    semantic_loss,
)
from scorecraft.preference.dpa_logic.counting import shared_free_literals
from scorecraft.preference.dpa_logic.worlds import everything, is_true, members


def summed(worlds, log_p):
    """`log WMC` as the log-sum-exp over worlds."""
    n = log_p.shape[-1]
    log_q = torch.log(-torch.expm1(log_p))
    each = [
        sum(log_p[..., i] if is_true(world, i, n) else log_q[..., i] for i in range(n)) for world in members(worlds)
    ]
    return torch.stack(each).logsumexp(dim=0)


def points(n, rows=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, n, generator=generator, dtype=torch.float64).clamp(1e-3, 1 - 1e-3).log()


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_log1mexp_keeps_its_precision_on_both_sides(dtype, rtol):
    values = [-1e-5, -0.1, -0.69, -0.7, -1.0, -5.0, -20.0, -50.0]
    log_p = torch.tensor(values, dtype=dtype, requires_grad=True)
    found = log1mexp(log_p)
    exact = [math.log1p(-math.exp(v)) if v < -1 else math.log(-math.expm1(v)) for v in log_p.tolist()]
    torch.testing.assert_close(found, torch.tensor(exact, dtype=dtype), rtol=rtol, atol=0)
    (slope,) = torch.autograd.grad(found.sum(), log_p)
    torch.testing.assert_close(
        slope, torch.tensor([-1 / math.expm1(-v) for v in log_p.tolist()], dtype=dtype), rtol=10 * rtol, atol=1e-15
    )


@pytest.mark.parametrize("dtype, floor", [(torch.float32, -15.942385), (torch.float64, -36.04365338911715)])
def test_log1mexp_at_zero_is_finite_with_a_straight_derivative(dtype, floor):
    log_p = torch.zeros(1, dtype=dtype, requires_grad=True)
    found = log1mexp(log_p)
    assert found.item() == pytest.approx(floor, rel=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), log_p)
    assert slope.item() == pytest.approx(-1 / torch.finfo(dtype).eps, rel=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_counts_of_all_sets_equal_the_sum_over_worlds(n):
    log_p = points(n)
    for worlds in range(1, everything(n) + 1):
        torch.testing.assert_close(
            LogCount(worlds, n)(log_p, log1mexp(log_p)), summed(worlds, log_p), rtol=1e-12, atol=1e-12
        )


def test_a_random_set_over_eight_propositions_with_its_gradient():
    draw, log_p = random.Random(0), points(8, rows=2).requires_grad_()
    worlds = draw.getrandbits(256)
    count = LogCount(worlds, 8)
    assert count.nodes < 256
    found, exact = count(log_p, log1mexp(log_p)).sum(), summed(worlds, log_p).sum()
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(one, log_p)[0] for one in (found, exact)), rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: count(x, log1mexp(x)), (log_p,))


def test_all_ratios_of_two_propositions_equal_the_difference_of_sums():
    log_p = points(2)
    for structure in every_structure():
        if structure.is_finite:
            found = LogRatio(structure.plus, structure.minus, 2)(log_p)
            exact = summed(structure.plus, log_p) - summed(structure.minus, log_p)
            torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-12)


def test_cubes_are_a_sum_of_literals_and_shared_ones_cancel():
    tt, tf, ft, ff = 1, 2, 4, 8
    assert shared_free_literals(tt | tf, tt | ft, 2) == ((0, True, 1), (1, True, -1))
    assert shared_free_literals(tf, ft, 2) == ((0, True, 1), (1, False, 1), (0, False, -1), (1, True, -1))
    assert shared_free_literals(tt, tf, 2) == ((1, True, 1), (1, False, -1))
    assert shared_free_literals(tt, tt, 2) == ()
    assert shared_free_literals(tt | ff, tf, 2) is None
    dpo = PreferenceStructure.decompile("W*RL / (L*RW)").compiled()
    assert dpo.literals is not None
    assert len(dpo.literals) == 4
    assert len(dpo.parts) == 0


class Unfactored(LogRatio):
    """The general form, whatever the sets are."""

    def __init__(self, plus, minus, propositions):
        super().__init__(plus, minus, propositions)
        self.literals = None
        sets = {"shared": plus & minus, "plus": plus & ~minus, "minus": minus & ~plus}
        self.parts.update({name: LogCount(worlds, propositions) for name, worlds in sets.items() if worlds})


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-14), (torch.float32, 1e-7)])
def test_the_general_form_of_cpo_agrees_with_the_factored_one_where_the_shared_world_dominates(dtype, atol):
    cpo = PreferenceStructure.decompile("W / L")
    log_p = torch.tensor([[-1e-4, -3e-4], [-2e-3, -1e-3], [-0.3, -0.9], [-9.0, -4.0]], dtype=dtype)
    factored, general = LogRatio(cpo.plus, cpo.minus, 2)(log_p), Unfactored(cpo.plus, cpo.minus, 2)(log_p)
    torch.testing.assert_close(factored, log_p[:, 0] - log_p[:, 1], rtol=0, atol=0)
    torch.testing.assert_close(general, factored, rtol=1e-3 if dtype == torch.float32 else 1e-11, atol=atol)


def test_shared_worlds_do_not_swallow_a_small_difference():
    # All three are almost sure; the first counts A & B & C and a little more on either side.
    names = ("A", "B", "C")
    structure = PreferenceStructure.parse("A & ~B & C given A & C & ~B | ~A & B & C | A & B & C both A & B & C", names)
    log_p = torch.tensor([-1e-9, -3e-9, -1e-9], dtype=torch.float64)
    p, q = log_p[:2].exp(), -torch.expm1(log_p[:2])
    exact = torch.log1p(q[1] / p[1]) - torch.log1p(q[0] / p[0])  # 2e-9, which 1 + 2e-9 holds to seven digits
    assert structure.log_ratio(log_p).item() == pytest.approx(exact.item(), rel=1e-12)


def test_twelve_propositions_are_compiled_in_under_a_second():
    names = [f"X{index}" for index in range(12)]
    draw = random.Random(1)

    def either(count):
        cubes = (draw.sample(names, 3) for _ in range(count))
        return " | ".join("(" + " & ".join(draw.choice(("", "~")) + name for name in cube) + ")" for cube in cubes)

    text = f"({either(12)}) -> ({either(12)}) given {either(6)} both {either(3)}"

    def compiled():
        begin = time.perf_counter()
        structure = PreferenceStructure.parse(text, names)
        module = structure.compiled()
        return time.perf_counter() - begin, structure, module

    # The fastest of three: other programs of the machine may hold one of them up.
    took, structure, module = min((compiled() for _ in range(3)), key=lambda run: run[0])
    assert took < 1
    log_p = points(12, rows=1)
    exact = summed(structure.plus, log_p) - summed(structure.minus, log_p)
    torch.testing.assert_close(module(log_p), exact, rtol=1e-10, atol=1e-12)


def test_a_chain_of_twenty_propositions_stays_small():
    names = [f"X{index}" for index in range(20)]
    text = " & ".join(f"({a} -> {b})" for a, b in itertools.pairwise(names))
    module = PreferenceStructure.parse(text, names).compiled()
    assert sum(part.nodes for part in module.parts.values()) == 76
    half = torch.full((20,), 0.5, dtype=torch.float64).log()
    assert math.exp(log_weighted_count(text, half, propositions=names).item()) == pytest.approx(21 / 2**20)


def test_semantic_loss_is_minus_the_log_of_the_count():
    log_p = torch.tensor([0.7, 0.4], dtype=torch.float64).log()
    assert semantic_loss("L -> W", log_p, propositions=("W", "L")).item() == pytest.approx(
        0.127833371509885, abs=1e-14
    )  # -log(1 - 0.4 * 0.3)
    assert log_weighted_count("true", log_p, propositions=("W", "L")).item() == 0


@pytest.mark.parametrize(
    "values, told",
    [
        (torch.tensor([0.1, -1.0]), "expected finite log-probabilities <= 0, got 0.1"),
        (torch.tensor([-math.inf, -1.0]), "expected finite log-probabilities <= 0, got -inf"),
        (torch.tensor([math.nan, -1.0]), "expected finite log-probabilities <= 0, got nan"),
        (torch.tensor([-1.0]), r"expected floating-point values \[..., 2\], got float32 tensor of shape \(1,\)"),
        (torch.tensor([-1, -1]), "expected floating-point values"),
        (torch.tensor(-1.0), "expected floating-point values"),
    ],
)
def test_refused_log_probabilities(values, told):
    with pytest.raises(ValueError, match="argument `log_probabilities`: " + told):
        semantic_loss("W", values, propositions=("W", "L"))


def test_refused_formulas_and_names():
    log_p = torch.tensor([-1.0, -1.0])
    with pytest.raises(
        ValueError, match="argument `formula`: expected a formula that holds in some world, got `W & ~W`"
    ):
        semantic_loss("W & ~W", log_p, propositions=("W", "L"))
    for names in (["W", "W"], ["given"], ["a b"], [], [f"X{n}" for n in range(21)]):
        with pytest.raises(ValueError, match="argument `propositions`: expected 1 to 20 different words"):
            semantic_loss("true", log_p, propositions=names)
    with pytest.raises(TypeError, match="argument `log_probabilities`: expected a tensor, got list"):
        semantic_loss("W", [-1.0, -1.0], propositions=("W", "L"))


def test_half_precision_is_computed_in_single():
    log_p = torch.tensor([-0.5, -1.5], dtype=torch.float16)
    found = semantic_loss("L -> W", log_p, propositions=("W", "L"))
    assert found.dtype == torch.float32
