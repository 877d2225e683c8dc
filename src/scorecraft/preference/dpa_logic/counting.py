"""Weighted model counts in the log domain, differentiable.

Truth tables (see `worlds`) hold the meaning; for evaluation a set of worlds becomes a reduced ordered decision diagram,
built by halving its table and keeping equal halves once. It is evaluated in time linear in its nodes, a level at a
time. The weights of a proposition and its negation sum to one, so propositions that a path skips contribute nothing:
the diagram needs no smoothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core import reductions
from scorecraft.core.checks import check_values, describe, refuse
from scorecraft.core.separable import in_working_precision
from scorecraft.preference.dpa_logic.formulas import Formula, parse_formula, truth_table
from scorecraft.preference.dpa_logic.worlds import checked_propositions, everything, halves, literals_of

_FALSE, _TRUE = 0, 1


def log1mexp(log_probabilities: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`log(1 - p)` from `log p <= 0`.

    Closer to 0 than the precision resolves, `log p` is taken at that distance, with the derivative there: the result is
    finite (about -16 in float32, -36 in float64).
    """
    nearest = -torch.finfo(log_probabilities.dtype).eps
    kept = log_probabilities - (log_probabilities - nearest).clamp(min=0).detach()
    return reductions.log1mexp(kept)


class LogCount(nn.Module):
    """`log sum_{v in worlds} prod_{v_i = 1} p_i prod_{v_i = 0} (1 - p_i)`, as a decision diagram.

    Args:
        worlds: the set, not empty.
        propositions: how many there are.
    """

    def __init__(self, worlds: int, propositions: int) -> None:
        super().__init__()
        levels = _diagram(worlds, propositions)
        self.nodes = sum(map(len, levels))
        self.levels = [index for index, level in enumerate(levels) if level]
        for index in self.levels:
            children = torch.tensor(levels[index]).T
            self.register_buffer(f"children_{index}", children, persistent=False)

    def forward(self, holds: Float[Tensor, "... n"], fails: Float[Tensor, "... n"]) -> Float[Tensor, "..."]:
        """The count from `log p` and `log(1 - p)`."""
        ends = holds.new_tensor([-math.inf, 0.0]).expand(*holds.shape[:-1], 2)
        values = ends
        for index in reversed(self.levels):
            if_true, if_false = (values.index_select(-1, one) for one in getattr(self, f"children_{index}"))
            here = slice(index, index + 1)
            found = torch.logaddexp(holds[..., here] + if_true, fails[..., here] + if_false)
            values = torch.cat([values, found], dim=-1)
        return values[..., -1]

    def extra_repr(self) -> str:
        return f"nodes={self.nodes}"


class LogRatio(nn.Module):
    """`rho = log WMC(plus) - log WMC(minus)` of log-probabilities `[..., n]`.

    Where both sets are cubes, rho is a sum of literals, in which shared ones have cancelled. Otherwise with the worlds
    `S` that both share, rho is `softplus(log a - log S) - softplus(log b - log S)` for the counts `a`, `b` of the
    others: the difference of two nearly equal counts is never taken.

    Args:
        plus: the worlds above the line, not empty.
        minus: those below, not empty.
        propositions: how many there are.
    """

    def __init__(self, plus: int, minus: int, propositions: int) -> None:
        super().__init__()
        self.literals = shared_free_literals(plus, minus, propositions)
        self.parts = nn.ModuleDict()
        if self.literals is None:
            sets = {"shared": plus & minus, "plus": plus & ~minus, "minus": minus & ~plus}
            self.parts.update({name: LogCount(worlds, propositions) for name, worlds in sets.items() if worlds})

    def forward(self, log_probabilities: Float[Tensor, "... n"]) -> Float[Tensor, "..."]:
        """Rho."""
        if self.literals is not None:
            return self.of_columns(log_probabilities.unbind(dim=-1))
        fails = log1mexp(log_probabilities)
        counts = {name: part(log_probabilities, fails) for name, part in self.parts.items()}
        shared = counts.get("shared")
        if shared is None:
            return counts["plus"] - counts["minus"]
        found = 0 * shared  # with a gradient of zero where nothing is counted on one side alone
        if "plus" in counts:
            found = found - F.logsigmoid(shared - counts["plus"])
        if "minus" in counts:
            found = found + F.logsigmoid(shared - counts["minus"])
        return found

    def of_columns(self, columns: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "..."]:
        """Rho from the log-probabilities of each proposition, put together only where that is needed."""
        if self.literals is None:
            return self(torch.stack(list(columns), dim=-1))
        terms = [(columns[index] if holds else log1mexp(columns[index]), sign) for index, holds, sign in self.literals]
        if not terms:  # the same cube on both sides; the gradient is zero, and there is one
            return 0 * columns[0]
        (first, sign), *rest = terms
        found = first if sign > 0 else -first
        for one, sign in rest:
            found = found + one if sign > 0 else found - one
        return found


def shared_free_literals(plus: int, minus: int, propositions: int) -> tuple[tuple[int, bool, int], ...] | None:
    """`((index, holds, sign), ...)` of a log-ratio of two cubes without the literals of both; None of other sets."""
    above, below = literals_of(plus, propositions), literals_of(minus, propositions)
    if above is None or below is None:
        return None
    return (
        *((index, holds, 1) for index, holds in above if (index, holds) not in below),
        *((index, holds, -1) for index, holds in below if (index, holds) not in above),
    )


def log_weighted_count(
    formula: str | Formula,
    log_probabilities: Float[Tensor, "... n"],
    *,
    propositions: Sequence[str],
    validate: bool = True,
) -> Float[Tensor, "..."]:
    """`log WMC(F; p)`: the probability that a formula holds, of independent propositions.

    Args:
        formula: over the named propositions.
        log_probabilities: `[..., n]`, finite and at most 0, in the order of the names.
        propositions: the names.
        validate: read the values.

    Raises:
        ValueError: one line: a formula that cannot be read or that no world satisfies, log-probabilities above 0.
    """
    names = checked_propositions(propositions)
    parsed = parse_formula(formula, names) if isinstance(formula, str) else formula
    worlds = truth_table(parsed, names)
    if not worlds:
        refuse("formula", "a formula that holds in some world", f"`{parsed}`, which holds in none")
    values = checked_probabilities(log_probabilities, len(names), validate=validate)
    return LogCount(worlds, len(names)).to(values.device)(values, log1mexp(values))


def semantic_loss(
    formula: str | Formula,
    log_probabilities: Float[Tensor, "... n"],
    *,
    propositions: Sequence[str],
    validate: bool = True,
) -> Float[Tensor, "..."]:
    """`-log WMC(F; p)`; see `log_weighted_count`.

    Source: Xu et al. 2018, "A Semantic Loss Function for Deep Learning with Symbolic Knowledge"; arXiv 2412.17696.
    """
    return -log_weighted_count(formula, log_probabilities, propositions=propositions, validate=validate)


def checked_probabilities(values: Tensor, propositions: int, *, validate: bool) -> Tensor:
    """Log-probabilities `[..., n]`, finite and at most 0, in float32 at least."""
    if not isinstance(values, Tensor):
        raise TypeError(f"argument `log_probabilities`: expected a tensor, got {type(values).__name__}")
    if values.ndim == 0 or values.shape[-1] != propositions or not values.is_floating_point():
        refuse("log_probabilities", f"floating-point values [..., {propositions}]", describe(values))
    if validate:
        check_values(
            "log_probabilities",
            "finite log-probabilities <= 0",
            lambda: values.isfinite() & (values <= 0),
            values,
        )
    return in_working_precision(values)


def _diagram(worlds: int, propositions: int) -> list[list[tuple[int, int]]]:
    """Nodes by level, each the places of its children in evaluation order: the two ends, then the last level first."""
    levels: list[list[tuple[tuple[int, int], tuple[int, int]]]] = [[] for _ in range(propositions)]
    memo: dict[tuple[int, int], tuple[int, int]] = {}

    def node(part: int, n: int) -> tuple[int, int]:
        """`(level, position)`; the ends are at the level behind the last."""
        if part in (0, everything(n)):
            return propositions, _TRUE if part else _FALSE
        if (part, n) not in memo:
            holds, fails = (node(half, n - 1) for half in halves(part, n))
            level = propositions - n
            if holds == fails:
                memo[part, n] = holds
            else:
                levels[level].append((holds, fails))
                memo[part, n] = level, len(levels[level]) - 1
        return memo[part, n]

    node(worlds, propositions)
    first, place = {propositions: 0}, 2
    for level in reversed(range(propositions)):
        first[level] = place
        place += len(levels[level])
    return [
        [(first[at_true] + true, first[at_false] + false) for (at_true, true), (at_false, false) in level]
        for level in levels
    ]
