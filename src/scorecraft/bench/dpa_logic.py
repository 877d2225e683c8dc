"""Preference formulas: compiling one over 12 propositions, and a compiled one against the sum over its worlds.

Compiling: a text of 33 conjunctions of three literals out of 12 propositions is read, tabulated, turned into decision
diagrams and evaluated once, in float64. The peer sums the same formula over its 4,096 worlds, one at a time.

Evaluating: DPO's structure on 65,536 pairs, float32, forward and backward. The peer sums over the 16 worlds of each
pair, the floor is DPO written by hand.
"""

from __future__ import annotations

import random
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from scorecraft.bench.harness import Bound, Call, Case, Entry, Figure, Shape
from scorecraft.bench.inputs import SEED, forward_backward
from scorecraft.core import AnswerPairs, DPOLoss, PreferenceObjective
from scorecraft.preference.dpa_logic import CATALOGUE, LogicLoss, PreferenceStructure, log1mexp


def _formula(propositions: int) -> tuple[str, list[str]]:
    """A structure of disjunctions of random conjunctions, as text, and the names of its propositions."""
    names = [f"X{index}" for index in range(propositions)]
    draw = random.Random(SEED)

    def either(count: int) -> str:
        chosen = [draw.sample(names, 3) for _ in range(count)]
        return " | ".join("(" + " & ".join(draw.choice(("", "~")) + name for name in three) + ")" for three in chosen)

    return f"({either(12)}) -> ({either(12)}) given {either(6)} both {either(3)}", names


def _point(propositions: int) -> Float[Tensor, " n"]:
    return torch.linspace(0.2, 0.8, propositions, dtype=torch.float64).log()


def _compiled(shape: Shape, device: torch.device) -> Call:
    text, names = _formula(shape["propositions"])
    point = _point(len(names)).to(device)
    return lambda: PreferenceStructure.parse(text, names).log_ratio(point).item()


def _world_by_world(shape: Shape, device: torch.device) -> Call:
    text, names = _formula(shape["propositions"])
    core, rest = text.split(" given ")
    given, both = rest.split(" both ")
    left, right = core.split(" -> ")
    p, p_c, p_a = (
        compile(one.replace("~", " not ").replace("&", " and ").replace("|", " or "), "formula", "eval")
        for one in (f"(not {left}) | {right}", given, both)
    )
    probabilities = _point(len(names)).exp().tolist()

    def call() -> float:
        plus = minus = 0.0
        for world in product((True, False), repeat=len(names)):
            values = dict(zip(names, world, strict=True))
            if not eval(p_c, values):
                continue
            weight = 1.0
            for holds, probability in zip(world, probabilities, strict=True):
                weight *= probability if holds else 1 - probability
            core_holds, in_both = eval(p, values), eval(p_a, values)
            plus += weight * (core_holds or in_both)
            minus += weight * (not core_holds or in_both)
        return float(torch.tensor(plus / minus, dtype=torch.float64).log())

    return call


class _SumOverWorlds(PreferenceObjective):
    """DPO as the log-sum-exp of the worlds of both sides."""

    needs_reference = True

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        structure = CATALOGUE["dpo"].structure
        self.holds = torch.tensor(list(product((True, False), repeat=4)), device=device)
        self.sides = [
            torch.tensor([bool(side >> world & 1) for world in range(16)], device=device)
            for side in (structure.plus, structure.minus)
        ]

    def pair_loss(self, pairs: AnswerPairs) -> Float[Tensor, " n"]:
        assert pairs.reference_chosen is not None
        assert pairs.reference_rejected is not None
        columns = [pairs.chosen, pairs.rejected, pairs.reference_chosen, pairs.reference_rejected]
        values = torch.stack(columns, dim=-1)[:, None]
        weights = torch.where(self.holds, values, log1mexp(values)).sum(dim=2)
        plus, minus = (weights.masked_fill(~side, -torch.inf).logsumexp(dim=1) for side in self.sides)
        return -F.logsigmoid(0.1 * (plus - minus))


def _step(loss: PreferenceObjective, shape: Shape, device: torch.device) -> Call:
    generator = torch.Generator().manual_seed(SEED)
    values = torch.empty(4, shape["pairs"]).uniform_(-4, -0.1, generator=generator).to(device)
    chosen, rejected = values[0].requires_grad_(), values[1].requires_grad_()
    reference = {"reference_chosen": values[2], "reference_rejected": values[3]}
    return forward_backward(lambda: loss(chosen, rejected, **reference), chosen, rejected)


CASES = (
    Case(
        name="compiling a formula of 12 propositions",
        shape={"propositions": 12},
        small={"propositions": 4},
        entries={
            "ours": Entry("PreferenceStructure.parse(...).log_ratio", _compiled),
            "peer": Entry("world by world", _world_by_world),
        },
        figures=(Figure("time", (Bound("ours", 1.0, "<= 1 s"),)),),
        agreement=1e-9,
    ),
    Case(
        name="DPO from its formula, 65536 pairs",
        shape={"pairs": 65536},
        small={"pairs": 16},
        entries={
            "ours": Entry('LogicLoss.named("dpo")', lambda s, d: _step(LogicLoss.named("dpo"), s, d)),
            "peer": Entry("sum over 16 worlds", lambda s, d: _step(_SumOverWorlds(d), s, d)),
            "floor": Entry("DPOLoss()", lambda s, d: _step(DPOLoss(), s, d)),
        },
        figures=(Figure("time"), Figure("memory")),
        agreement=1e-4,
    ),
)
